//! Seqs of a topic that has no journal (mode `nats`).
//!
//! One message of the stream can hold many of the topic, packed rows or small messages that left
//! together, and each of them needs a seq of its own. So a seq is the stream's sequence and a place
//! in that message: `stream_seq << 20 | row`. Seqs grow in the order of the topic, with gaps.

/// Packed rows are at most a million.
const ROW_BITS: u32 = 20;
const ROW_MASK: u64 = (1 << ROW_BITS) - 1;

/// The seq of the first message in a message of the stream.
pub(super) fn first_seq(stream_seq: u64) -> u64 {
    stream_seq << ROW_BITS
}

/// Where a seq lies: the stream's sequence, and the place in that message.
pub(super) fn place(seq: u64) -> (u64, u32) {
    // The mask leaves 20 bits.
    (seq >> ROW_BITS, u32::try_from(seq & ROW_MASK).unwrap_or(u32::MAX))
}
