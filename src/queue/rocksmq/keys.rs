//! The bytes of keys.

use crate::error::{Error, ErrorKind, Result};

/// Digits of the largest id, which is an i64 in Milvus.
const ID_DIGITS_MAX: usize = 19;

/// A message's topic and id.
pub(super) fn message(key: &[u8]) -> Result<(&str, u64)> {
    let text = std::str::from_utf8(key).map_err(|_| foreign(key))?;
    let (topic, id) = text.rsplit_once('/').ok_or_else(|| foreign(key))?;
    Ok((topic, id_of(id).ok_or_else(|| foreign(key))?))
}

/// An id as Milvus writes it: decimal, without zeros in front.
pub(super) fn id_of(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded = digits.len() > 1 && digits.starts_with('0');
    if !plain || padded || digits.is_empty() || digits.len() > ID_DIGITS_MAX {
        return None;
    }
    digits.parse().ok().filter(|id| i64::try_from(*id).is_ok())
}

/// The key of a message.
pub(super) fn of_message(topic: &str, id: u64) -> Vec<u8> {
    format!("{topic}/{id}").into_bytes()
}

/// All keys of a topic lie from the first of these up to the second.
pub(super) fn topic_range(topic: &str) -> (Vec<u8>, Vec<u8>) {
    // '0' comes right after '/'.
    (format!("{topic}/").into_bytes(), format!("{topic}0").into_bytes())
}

/// The smallest and the largest id of that many digits.
pub(super) fn ids_of_width(digits: usize) -> (u64, u64) {
    let power = |exponent: usize| {
        u32::try_from(exponent).ok().and_then(|exponent| 10_u64.checked_pow(exponent))
    };
    let low = if digits <= 1 { 0 } else { power(digits - 1).unwrap_or(u64::MAX) };
    let high = power(digits).map_or(u64::MAX, |above| above - 1);
    (low, high)
}

/// Decimal digits of an id.
pub(super) fn width(id: u64) -> usize {
    id.checked_ilog10().map_or(1, |log| log as usize + 1)
}

fn foreign(key: &[u8]) -> Error {
    let shown: String = key.escape_ascii().to_string().chars().take(100).collect();
    Error::new(
        ErrorKind::Corrupt,
        format!("expected keys \"topic/<decimal id>\" as RocksMQ writes them, got \"{shown}\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_decimal() {
        assert_eq!(message(b"a-b/470714801077354497").ok(), Some(("a-b", 470_714_801_077_354_497)));
        assert_eq!(message(b"t/0").ok(), Some(("t", 0)));
        assert_eq!(id_of("9223372036854775807"), Some(u64::MAX / 2));
        for id in ["", "-1", "+1", "01", "1a", " 1", "9223372036854775808", "10000000000000000000"]
        {
            assert_eq!(id_of(id), None, "{id:?}");
        }
        for key in [&b"topic"[..], b"t/", b"t/x", b"\xff/1"] {
            assert_eq!(message(key).map_err(|e| e.kind()), Err(ErrorKind::Corrupt));
        }
    }

    #[test]
    fn widths_cover_all_ids_once() {
        assert_eq!(ids_of_width(1), (0, 9));
        assert_eq!(ids_of_width(2), (10, 99));
        assert_eq!(ids_of_width(19).0, 1_000_000_000_000_000_000);
        for id in [0, 1, 9, 10, 99, 100, u64::MAX / 2] {
            let (low, high) = ids_of_width(width(id));
            assert!((low..=high).contains(&id), "{id}");
        }
    }
}
