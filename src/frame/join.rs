//! The frames of one group, all of them at hand -> its payload, in memory of the caller.

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::decode_summed;
use crate::frame::{Frame, Header, Layout};

/// The bytes that [`join_into`] needs for a group of which `frames` are all frames, in order.
///
/// # Errors
/// [`ErrorKind::Incomplete`] when they are not, [`ErrorKind::Corrupt`] when they contradict each
/// other.
pub fn joined_bytes<'a>(frames: impl Iterator<Item = &'a Frame>) -> Result<u64> {
    let mut known: Option<&Header> = None;
    let mut count = 0;
    for frame in frames {
        let header = &frame.header;
        let first = *known.get_or_insert(header);
        if header.index != count {
            return Err(Error::new(
                ErrorKind::Incomplete,
                format!("message {}: frame {count} of {} is missing", first.id, first.count),
            ));
        }
        if !same_group(first, header) {
            return Err(corrupt(header, "header contradicts its group"));
        }
        count += 1;
    }
    match known {
        Some(first) if first.count == count => Ok(first.total_bytes),
        _ => Err(Error::new(
            ErrorKind::Incomplete,
            format!("a group of frames ended after {count} of them"),
        )),
    }
}

/// Decodes every frame to its place in `out`, which has [`joined_bytes`]. A body is copied once.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when a body does not decode to what its header says.
pub fn join_into<'a>(frames: impl Iterator<Item = &'a Frame>, out: &mut [u8]) -> Result<()> {
    let mut rest = out;
    for Frame { header, body } in frames {
        let chunk_bytes = header.chunk_bytes as usize;
        let (chunk, after) = rest
            .split_at_mut_checked(chunk_bytes)
            .ok_or_else(|| corrupt(header, "chunks exceed the payload"))?;
        let itemsize = header.layout.as_ref().map_or(1, Layout::itemsize);
        if decode_summed(header.codec, itemsize, body, chunk)? != header.checksum {
            return Err(corrupt(header, "checksum does not match"));
        }
        rest = after;
    }
    Ok(())
}

/// Headers of one tile size tile the payload by themselves, each checked that when it was read.
fn same_group(first: &Header, other: &Header) -> bool {
    other.id == first.id
        && other.rows == first.rows
        && other.count == first.count
        && other.total_bytes == first.total_bytes
        && other.tile_bytes() == first.tile_bytes()
        && other.layout == first.layout
}

fn corrupt(header: &Header, what: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("frame {} of message {}: {what}", header.index, header.id),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::frame::{Codec, MessageId, Outgoing, Plan, ProducerId};

    fn frames(payload: &Bytes, seq: u64) -> Vec<Frame> {
        let id = MessageId { producer: ProducerId([7; 16]), epoch: 1, seq };
        let plan = Plan::new(payload.len() as u64, 1, 1000).expect("three chunks");
        let outgoing = Outgoing { id, rows: 1, layout: None, payload: payload.clone() };
        (0..plan.count).map(|n| outgoing.frame(&plan, n, Codec::Raw).expect("frame")).collect()
    }

    fn join(frames: &[Frame]) -> Result<Vec<u8>> {
        let size = joined_bytes(frames.iter())?;
        let mut out = vec![0; usize::try_from(size).expect("small")];
        join_into(frames.iter(), &mut out)?;
        Ok(out)
    }

    fn payload() -> Bytes {
        (0..2500u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>().into()
    }

    #[test]
    fn a_whole_group_comes_back() {
        assert_eq!(join(&frames(&payload(), 1)).expect("whole"), payload());
        assert_eq!(join(&frames(&Bytes::new(), 1)).expect("empty"), b"");
    }

    #[test]
    fn missing_and_misplaced_frames_are_refused() {
        let whole = frames(&payload(), 1);
        for gone in 0..whole.len() {
            let mut cut = whole.clone();
            cut.remove(gone);
            assert_eq!(join(&cut).expect_err("cut").kind(), ErrorKind::Incomplete);
        }
        let mut swapped = whole.clone();
        swapped.swap(0, 1);
        assert_eq!(join(&swapped).expect_err("swapped").kind(), ErrorKind::Incomplete);
        assert_eq!(join(&[]).expect_err("none").kind(), ErrorKind::Incomplete);
    }

    #[test]
    fn foreign_and_damaged_frames_are_refused() {
        let mut mixed = frames(&payload(), 1);
        let other = frames(&payload(), 2);
        mixed.splice(1..2, other.into_iter().skip(1).take(1));
        assert_eq!(join(&mixed).expect_err("mixed").kind(), ErrorKind::Corrupt);
        let mut damaged = frames(&payload(), 1);
        let last = damaged.last_mut().expect("three");
        last.body = vec![1; last.body.len()].into();
        assert_eq!(join(&damaged).expect_err("damaged").kind(), ErrorKind::Corrupt);
    }
}
