//! Byte planes: the first bytes of all elements, then the second bytes, and so on.
//!
//! The mantissa bytes of dense floats are noise, the exponent bytes are not: split, each plane is
//! coded by itself. Plain Python (`zstandard` and a numpy transpose) decodes it.
//!
//! ```text
//! body  = blocks of 262,144 raw bytes (rounded down to whole elements), the last shorter; then
//!         the bytes that are no whole element, as they are
//! block = itemsize x (mode u8, coded length u32), then the coded planes
//! mode  = 0 raw: length n   1 constant: length 1   2 one zstd frame   n = elements of the block
//! ```

use std::sync::LazyLock;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::aligned::AlignedBuffer;
use crate::frame::codec::{Room, Strategy, compress, decompress};
use crate::frame::simd::{self, Kernel};

const BLOCK_BYTES: usize = 256 << 10;
const MODE_RAW: u8 = 0;
const MODE_CONSTANT: u8 = 1;
const MODE_ZSTD: u8 = 2;
const PLANE_HEADER_BYTES: usize = 5;

/// Bits per byte above which a plane is noise: Huffman would save less than it costs to decode.
const NOISE_BITS: f64 = 7.6;
/// Bits per byte below which a plane has runs for the match finder.
const RUNS_BITS: f64 = 1.0;
/// Bytes of a plane that are looked at: noise then shows 7.91 of its 8 bits, far from the border,
/// and looking takes a twentieth of the time that Huffman coding takes.
const SAMPLE_BYTES: usize = 2 << 10;
/// Elements of a sample that follow each other: a cache line is fetched as a whole.
const SAMPLE_RUN: usize = 16;

/// Codes a chunk; None: it does not fit the room.
pub(super) fn encode(itemsize: u16, chunk: &[u8], room: &mut Room<'_>) -> Result<Option<()>> {
    let itemsize = usize::from(itemsize.max(1));
    let (elements, tail) = chunk.split_at(chunk.len() - chunk.len() % itemsize);
    let block_bytes = block_bytes(itemsize).min(elements.len());
    // The plane that is being coded.
    let mut plane = AlignedBuffer::new((block_bytes / itemsize) as u64)?;
    for block in elements.chunks(block_bytes.max(1)) {
        if encode_block(itemsize, block, plane.as_mut(), room).is_none() {
            return Ok(None);
        }
    }
    Ok(room.put(tail))
}

/// Share of the planes of a body's first block that are Huffman-coded.
pub(super) fn coded_share(itemsize: u16, body: &[u8]) -> f64 {
    let table = body.chunks_exact(PLANE_HEADER_BYTES).take(usize::from(itemsize));
    table.filter(|entry| entry.first() == Some(&MODE_ZSTD)).count() as f64 / f64::from(itemsize)
}

fn block_bytes(itemsize: usize) -> usize {
    BLOCK_BYTES - BLOCK_BYTES % itemsize
}

fn encode_block(
    itemsize: usize,
    block: &[u8],
    plane: &mut [u8],
    room: &mut Room<'_>,
) -> Option<()> {
    let plane = plane.get_mut(..block.len() / itemsize)?;
    let mut table = Vec::with_capacity(itemsize * PLANE_HEADER_BYTES);
    let table_at = room.written();
    room.take(itemsize * PLANE_HEADER_BYTES)?;
    let bits = sampled_entropies(itemsize, block);
    let is_split = split_dense(&bits, block, plane, room)?;
    for (index, bits) in bits.into_iter().enumerate() {
        let is_last = index + 1 == itemsize;
        let (mut mode, mut length) = (MODE_RAW, plane.len());
        if bits <= NOISE_BITS {
            if !is_split {
                simd::run(Pick { itemsize, index, block, out: plane });
            }
            let start = room.written();
            if let Some(coded) = encode_plane(bits, plane, room) {
                (mode, length) = (coded, room.written() - start);
            }
        }
        if mode == MODE_RAW && is_split && is_last {
            room.put(plane)?;
        } else if mode == MODE_RAW && !is_split {
            let out = room.take(plane.len())?;
            simd::run(Pick { itemsize, index, block, out });
        }
        table.push(mode);
        // Of a plane of a block, at most 256 KiB.
        table.extend_from_slice(&u32::try_from(length).ok()?.to_le_bytes());
    }
    room.overwrite(table_at, &table)
}

/// Dense floats: all planes but the last are noise. One pass over the block writes them to the room
/// and the last one to `plane`; false: the block is not like that, and nothing was written.
fn split_dense(bits: &[f64], block: &[u8], plane: &mut [u8], room: &mut Room<'_>) -> Option<bool> {
    let is_dense = bits.split_last().is_some_and(|(last, others)| {
        *last <= NOISE_BITS && others.iter().all(|bits| *bits > NOISE_BITS)
    });
    match bits.len() {
        2 if is_dense => {
            let noise = room.take(plane.len())?;
            simd::run(Split2 { block, noise, last: plane });
        }
        4 if is_dense => {
            let noise = room.take(3 * plane.len())?;
            simd::run(Split4 { block, noise, last: plane });
        }
        _ => return Some(false),
    }
    Some(true)
}

/// Codes one plane of a block, which was picked out of it, to less than its length; None: it is
/// noise, or there is no room.
fn encode_plane(bits: f64, plane: &[u8], room: &mut Room<'_>) -> Option<u8> {
    if bits < RUNS_BITS
        && let (Some((&first, behind)), Some((_, before))) =
            (plane.split_first(), plane.split_last())
        // Equal to itself one byte further on: one comparison at memory speed.
        && behind == before
    {
        room.put(&[first])?;
        return Some(MODE_CONSTANT);
    }
    let strategy = if bits < RUNS_BITS { Strategy::Level(1) } else { Strategy::Huffman };
    let start = room.written();
    if compress(strategy, plane, room).is_some() && room.written() - start < plane.len() {
        return Some(MODE_ZSTD);
    }
    room.back_to(start);
    None
}

/// Every count times its logarithm: 1,024 logarithms would take as long as the rest of a block.
static WEIGHTED: LazyLock<Vec<f64>> = LazyLock::new(|| {
    (0..=SAMPLE_BYTES).map(|count| count as f64 * (count.max(1) as f64).log2()).collect()
});

/// Planes that are looked at in one pass over the elements.
const COUNTED_AT_ONCE: usize = 8;

/// Order-0 entropy of a sample spread over each plane, in bits per byte.
fn sampled_entropies(itemsize: usize, block: &[u8]) -> Vec<f64> {
    // Odd: rows have a power of two of elements, and their columns differ.
    let step = (block.len() / itemsize).div_ceil(SAMPLE_BYTES) | 1;
    let mut entropies = Vec::with_capacity(itemsize);
    for first in (0..itemsize).step_by(COUNTED_AT_ONCE) {
        let planes = COUNTED_AT_ONCE.min(itemsize - first);
        let mut counts = [[0_u16; 256]; COUNTED_AT_ONCE];
        let mut total = 0_u16;
        let runs = block.chunks(SAMPLE_RUN * itemsize).step_by(step);
        for element in runs.flat_map(|run| run.chunks_exact(itemsize)) {
            let bytes = element.get(first..first + planes).unwrap_or_default();
            for (counts, byte) in counts.iter_mut().zip(bytes) {
                if let Some(count) = counts.get_mut(usize::from(*byte)) {
                    *count += 1;
                }
            }
            total += 1;
        }
        entropies.extend(counts.iter().take(planes).map(|counts| entropy(counts, total)));
    }
    entropies
}

fn entropy(counts: &[u16; 256], total: u16) -> f64 {
    let weighted = |count: u16| WEIGHTED.get(usize::from(count)).copied().unwrap_or_default();
    let sum: f64 = counts.iter().map(|&count| weighted(count)).sum();
    f64::from(total).log2() - sum / f64::from(total)
}

/// Decodes a body into exactly `out`.
pub(super) fn decode(itemsize: u16, body: &[u8], out: &mut [u8]) -> Result<()> {
    let itemsize = usize::from(itemsize.max(1));
    let (elements, tail) = out.split_at_mut(out.len() - out.len() % itemsize);
    let block_bytes = block_bytes(itemsize).min(elements.len());
    let mut rest = body;
    // Planes that do not lie in the body as they are.
    let mut decoded = AlignedBuffer::new(block_bytes as u64)?;
    for block in elements.chunks_mut(block_bytes.max(1)) {
        decode_block(itemsize, &mut rest, decoded.as_mut(), block)?;
    }
    if rest.len() != tail.len() {
        return Err(damaged("length of the tail"));
    }
    tail.copy_from_slice(rest);
    Ok(())
}

fn decode_block(
    itemsize: usize,
    rest: &mut &[u8],
    decoded: &mut [u8],
    block: &mut [u8],
) -> Result<()> {
    let count = block.len() / itemsize;
    let table = take(rest, itemsize * PLANE_HEADER_BYTES)?;
    let (entries, _) = table.as_chunks::<PLANE_HEADER_BYTES>();
    let mut planes = Vec::with_capacity(itemsize);
    for (room, &[mode, length @ ..]) in decoded.chunks_mut(count).zip(entries) {
        let coded = take(rest, u32::from_le_bytes(length) as usize)?;
        let plane: &[u8] = match (mode, coded) {
            (MODE_RAW, coded) if coded.len() == count => coded,
            (MODE_CONSTANT, &[byte]) => {
                room.fill(byte);
                room
            }
            (MODE_ZSTD, coded) => {
                decompress(coded, room)?;
                room
            }
            _ => return Err(damaged("mode or length of a plane")),
        };
        planes.push(plane);
    }
    simd::run(Join { planes: &planes, block });
    Ok(())
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(count).ok_or_else(|| damaged("length"))?;
    *rest = tail;
    Ok(head)
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("byte planes: bad {what}"))
}

/// Takes one plane out of a block.
struct Pick<'a> {
    itemsize: usize,
    index: usize,
    block: &'a [u8],
    out: &'a mut [u8],
}

impl Kernel for Pick<'_> {
    type Output = ();
    const WIDE: bool = true;

    #[expect(clippy::inline_always, reason = "a kernel")]
    #[expect(clippy::cast_possible_truncation, reason = "the byte that is meant")]
    #[inline(always)]
    fn run(self) {
        let Self { itemsize, index, block, out } = self;
        match itemsize {
            2 => {
                let (words, _) = block.as_chunks();
                for (out, word) in out.iter_mut().zip(words) {
                    *out = (u16::from_le_bytes(*word) >> (8 * index)) as u8;
                }
            }
            4 => {
                let (words, _) = block.as_chunks();
                for (out, word) in out.iter_mut().zip(words) {
                    *out = (u32::from_le_bytes(*word) >> (8 * index)) as u8;
                }
            }
            8 => {
                let (words, _) = block.as_chunks();
                for (out, word) in out.iter_mut().zip(words) {
                    *out = (u64::from_le_bytes(*word) >> (8 * index)) as u8;
                }
            }
            _ => {
                let bytes = block.iter().skip(index).step_by(itemsize);
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
            }
        }
    }
}

/// Takes both planes out of a block of 2-byte elements.
struct Split2<'a> {
    block: &'a [u8],
    noise: &'a mut [u8],
    last: &'a mut [u8],
}

impl Kernel for Split2<'_> {
    type Output = ();
    const WIDE: bool = false;

    #[expect(clippy::inline_always, reason = "a kernel")]
    #[inline(always)]
    fn run(self) {
        let (words, _) = self.block.as_chunks::<2>();
        for ((word, noise), last) in words.iter().zip(self.noise).zip(self.last) {
            [*noise, *last] = *word;
        }
    }
}

/// Takes all four planes out of a block of 4-byte elements.
struct Split4<'a> {
    block: &'a [u8],
    /// Three of them.
    noise: &'a mut [u8],
    last: &'a mut [u8],
}

impl Kernel for Split4<'_> {
    type Output = ();
    const WIDE: bool = true;

    #[expect(clippy::inline_always, reason = "a kernel")]
    #[inline(always)]
    fn run(self) {
        let (words, _) = self.block.as_chunks::<4>();
        let (first, noise) = self.noise.split_at_mut(words.len());
        let (second, third) = noise.split_at_mut(words.len());
        let noise = first.iter_mut().zip(second).zip(third);
        for ((word, ((first, second), third)), last) in words.iter().zip(noise).zip(self.last) {
            [*first, *second, *third, *last] = *word;
        }
    }
}

/// Makes a block out of its planes.
struct Join<'a> {
    planes: &'a [&'a [u8]],
    block: &'a mut [u8],
}

impl Kernel for Join<'_> {
    type Output = ();
    const WIDE: bool = true;

    #[expect(clippy::inline_always, reason = "a kernel")]
    #[inline(always)]
    fn run(self) {
        let Self { planes, block } = self;
        let (fours, rest) = planes.as_chunks::<4>();
        match (fours, rest) {
            ([], [plane]) => block.copy_from_slice(plane),
            ([], [low, high]) => {
                let (words, _) = block.as_chunks_mut();
                for (word, (low, high)) in words.iter_mut().zip(low.iter().zip(*high)) {
                    *word = (u16::from(*low) | u16::from(*high) << 8).to_le_bytes();
                }
            }
            ([four], []) => {
                let (words, _) = block.as_chunks_mut();
                for (word, joined) in words.iter_mut().zip(words_of(four)) {
                    *word = joined.to_le_bytes();
                }
            }
            ([low, high], []) => {
                let (words, _) = block.as_chunks_mut();
                for (word, (low, high)) in words.iter_mut().zip(words_of(low).zip(words_of(high))) {
                    *word = (u64::from(low) | u64::from(high) << 32).to_le_bytes();
                }
            }
            _ => {
                for (index, plane) in planes.iter().enumerate() {
                    let bytes = block.iter_mut().skip(index).step_by(planes.len());
                    bytes.zip(*plane).for_each(|(out, byte)| *out = *byte);
                }
            }
        }
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn words_of([a, b, c, d]: &[&[u8]; 4]) -> impl Iterator<Item = u32> {
    let (low, high) = (a.iter().zip(*b), c.iter().zip(*d));
    low.zip(high).map(|((a, b), (c, d))| u32::from_le_bytes([*a, *b, *c, *d]))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use crate::frame::simd::Level;

    #[test]
    fn all_levels_do_the_same() {
        for itemsize in [1, 2, 3, 4, 8, 16] {
            for count in [1, 5, 31, 32, 33, 200, 1000] {
                let block: Vec<u8> =
                    (0..itemsize * count).map(|i| (i * i % 251).try_into().unwrap()).collect();
                let planes: Vec<Vec<u8>> = (0..itemsize)
                    .map(|index| block.iter().skip(index).step_by(itemsize).copied().collect())
                    .collect();
                for level in Level::all() {
                    for (index, plane) in planes.iter().enumerate() {
                        let mut out = vec![0; count];
                        let kernel = Pick { itemsize, index, block: &block, out: &mut out };
                        simd::run_at(level, kernel);
                        assert_eq!(out, *plane, "{level:?}");
                    }
                    let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
                    let mut out = vec![0; block.len()];
                    simd::run_at(level, Join { planes: &planes, block: &mut out });
                    assert_eq!(out, block, "{level:?}");
                    let (mut noise, mut last) = (vec![0; (itemsize - 1) * count], vec![0; count]);
                    let (block, rest, top) = (&block, &mut noise, &mut last);
                    match itemsize {
                        2 => simd::run_at(level, Split2 { block, noise: rest, last: top }),
                        4 => simd::run_at(level, Split4 { block, noise: rest, last: top }),
                        _ => continue,
                    }
                    assert_eq!([noise, last].concat(), planes.concat(), "{level:?}");
                }
            }
        }
    }
}
