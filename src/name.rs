//! Rules for the names that users give.

use crate::error::{Error, ErrorKind, Result};

/// Longest name. JetStream accepts 255 bytes for a stream; group subjects append 60 to the topic's.
const NAME_BYTES_MAX: usize = 190;

/// Checks a topic or subscription group name: it is also a JetStream stream or consumer name.
///
/// # Errors
/// [`ErrorKind::InvalidName`] naming the rule and the character.
pub fn validate_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidName,
            format!("{what} name: expected 1 to {NAME_BYTES_MAX} bytes, got {}", name.len()),
        ));
    }
    let illegal = name.chars().find(|&c| !c.is_ascii_graphic() || ".*>/\\".contains(c));
    illegal.map_or(Ok(()), |c| {
        Err(Error::new(
            ErrorKind::InvalidName,
            format!(
                "{what} name {name:?}: expected printable ASCII without whitespace and . * > / \\, \
                 got {c:?}"
            ),
        ))
    })
}
