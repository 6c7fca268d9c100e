//! The user's message headers.

use crate::error::{Error, ErrorKind, Result};

/// Bytes that all headers of a message may take, as NATS encodes them. The server's limit is 64 KiB
/// for these and the frame's own.
const ENCODED_BYTES_MAX: usize = 60 << 10;

/// Key and value pairs that travel with a message, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Checks and takes headers.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidHeaders`] for a key that is not printable ASCII without space and colon,
    /// a reserved key ("Nats-", "Vecmq-"), a line break or surrounding space in a value, or
    /// more bytes than fit.
    pub fn new(pairs: Vec<(String, String)>) -> Result<Self> {
        for (key, value) in &pairs {
            check_key(key)?;
            if value.contains(['\r', '\n', '\0']) || value.trim() != value {
                return Err(bad(format!(
                    "header {key:?}: expected a value without line breaks and surrounding space"
                )));
            }
        }
        let headers = Self(pairs);
        let bytes = headers.encoded_len();
        if bytes > ENCODED_BYTES_MAX {
            return Err(bad(format!(
                "message headers of {bytes} bytes exceed the limit of {ENCODED_BYTES_MAX} bytes"
            )));
        }
        Ok(headers)
    }

    /// Takes what came with a message, whoever sent it: not checked again.
    pub fn received(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// No headers.
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    /// The pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes on a NATS connection: "key: value" and a line break each.
    pub fn encoded_len(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len() + 4).sum()
    }
}

fn check_key(key: &str) -> Result<()> {
    let legal = !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if !legal {
        return Err(bad(format!(
            "header key {key:?}: expected printable ASCII without space and colon"
        )));
    }
    let lower = key.to_ascii_lowercase();
    if lower.starts_with("nats-") || lower.starts_with("vecmq-") {
        return Err(bad(format!("header key {key:?}: \"Nats-\" and \"Vecmq-\" are reserved")));
    }
    Ok(())
}

fn bad(context: String) -> Error {
    Error::new(ErrorKind::InvalidHeaders, context)
}
