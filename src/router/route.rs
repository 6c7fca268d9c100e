//! The two routes, and the reasons to take one.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// The embedded log.
    Queue,
    /// JetStream.
    Nats,
}

impl Route {
    /// The word that receipts carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Nats => "nats",
        }
    }

    /// The route that it is not.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Queue => Self::Nats,
            Self::Nats => Self::Queue,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Route {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "queue" => Ok(Self::Queue),
            "nats" => Ok(Self::Nats),
            _ => Err(Error::new(
                ErrorKind::Config,
                format!("route: expected 'queue' or 'nats', got {text:?}"),
            )),
        }
    }
}

/// Why a message goes where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Smaller than the threshold.
    Below,
    /// At the threshold or larger.
    AtOrAbove,
    /// Sent the other way, to keep both costs known.
    Probe,
    /// The threshold was given, not learned.
    Fixed,
}

/// A route and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where the message goes.
    pub route: Route,
    /// Why.
    pub reason: Reason,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_survives_its_name() {
        for route in [Route::Queue, Route::Nats] {
            assert_eq!(route.to_string().parse::<Route>().ok(), Some(route));
        }
        assert_eq!("".parse::<Route>().map_err(|error| error.kind()), Err(ErrorKind::Config));
    }
}
