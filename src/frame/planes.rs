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

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::{Strategy, compress, decompress};

const BLOCK_BYTES: usize = 256 << 10;
const MODE_RAW: u8 = 0;
const MODE_CONSTANT: u8 = 1;
const MODE_ZSTD: u8 = 2;
const PLANE_HEADER_BYTES: usize = 5;

/// Bits per byte above which a plane is noise: Huffman would save less than it costs to decode.
const NOISE_BITS: f64 = 7.6;
/// Bits per byte below which a plane has runs for the match finder.
const RUNS_BITS: f64 = 1.0;
/// Bytes of a plane that are looked at: noise then shows 7.96 of its 8 bits, far from the border,
/// and looking takes a sixteenth of the time that Huffman coding takes.
const SAMPLE_BYTES: usize = 4 << 10;

/// Codes a chunk; the result may be larger than the chunk.
pub(super) fn encode(itemsize: u16, chunk: &[u8]) -> Result<Vec<u8>> {
    let itemsize = usize::from(itemsize.max(1));
    let (elements, tail) = chunk.split_at(chunk.len() - chunk.len() % itemsize);
    let mut out = Vec::with_capacity(chunk.len());
    let mut split = Split::default();
    for block in elements.chunks(block_bytes(itemsize)) {
        encode_block(block.len() / itemsize, split.planes_of(itemsize, block), &mut out)?;
    }
    out.extend_from_slice(tail);
    Ok(out)
}

fn block_bytes(itemsize: usize) -> usize {
    BLOCK_BYTES - BLOCK_BYTES % itemsize
}

fn encode_block(count: usize, planes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let mut entry_at = out.len();
    out.resize(entry_at + planes.len() / count * PLANE_HEADER_BYTES, 0);
    for plane in planes.chunks(count) {
        let start = out.len();
        let mode = encode_plane(plane, out)?;
        let length = u32::try_from(out.len() - start)
            .map_err(|_| Error::new(ErrorKind::TooLarge, "coded plane exceeds 4 GiB"))?;
        let [a, b, c, d] = length.to_le_bytes();
        let entry = out.get_mut(entry_at..).and_then(|rest| rest.first_chunk_mut());
        if let Some(entry) = entry {
            *entry = [mode, a, b, c, d];
        }
        entry_at += PLANE_HEADER_BYTES;
    }
    Ok(())
}

fn encode_plane(plane: &[u8], out: &mut Vec<u8>) -> Result<u8> {
    // Equal to itself one byte further on: one comparison at memory speed.
    if let (Some((&first, behind)), Some((_, before))) = (plane.split_first(), plane.split_last())
        && behind == before
    {
        out.push(first);
        return Ok(MODE_CONSTANT);
    }
    let bits = sampled_entropy(plane);
    if bits <= NOISE_BITS {
        let strategy = if bits < RUNS_BITS { Strategy::Fast } else { Strategy::Huffman };
        let coded = compress(strategy, plane)?;
        if coded.len() < plane.len() {
            out.extend_from_slice(&coded);
            return Ok(MODE_ZSTD);
        }
    }
    out.extend_from_slice(plane);
    Ok(MODE_RAW)
}

/// Order-0 entropy of a sample spread over the plane, in bits per byte.
fn sampled_entropy(plane: &[u8]) -> f64 {
    let step = plane.len().div_ceil(SAMPLE_BYTES).max(1);
    let mut counts = [0_u32; 256];
    let mut total = 0_u32;
    for &byte in plane.iter().step_by(step) {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
        total += 1;
    }
    let total = f64::from(total);
    let bits = |&count: &u32| f64::from(count) * (total / f64::from(count)).log2();
    counts.iter().filter(|&&count| count > 0).map(bits).sum::<f64>() / total
}

/// Decodes a body into exactly `out`.
pub(super) fn decode(itemsize: u16, body: &[u8], out: &mut [u8]) -> Result<()> {
    let itemsize = usize::from(itemsize.max(1));
    let (elements, tail) = out.split_at_mut(out.len() - out.len() % itemsize);
    let mut rest = body;
    let mut split = Split::default();
    for block in elements.chunks_mut(block_bytes(itemsize)) {
        split.planes.resize(block.len(), 0);
        decode_block(itemsize, &mut rest, &mut split.planes)?;
        split.join(itemsize, block);
    }
    if rest.len() != tail.len() {
        return Err(damaged("length of the tail"));
    }
    tail.copy_from_slice(rest);
    Ok(())
}

fn decode_block(itemsize: usize, rest: &mut &[u8], planes: &mut [u8]) -> Result<()> {
    let count = planes.len() / itemsize;
    let table = take(rest, itemsize * PLANE_HEADER_BYTES)?;
    let (entries, _) = table.as_chunks::<PLANE_HEADER_BYTES>();
    for (plane, &[mode, length @ ..]) in planes.chunks_mut(count).zip(entries) {
        let coded = take(rest, u32::from_le_bytes(length) as usize)?;
        match (mode, coded) {
            (MODE_RAW, coded) if coded.len() == plane.len() => plane.copy_from_slice(coded),
            (MODE_CONSTANT, &[byte]) => plane.fill(byte),
            (MODE_ZSTD, coded) => decompress(coded, plane)?,
            _ => return Err(damaged("mode or length of a plane")),
        }
    }
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

/// A block as planes, and room to get there.
///
/// Bytes at even places, then those at odd places, log2(itemsize) times over: that splits elements
/// of 2, 4, 8 or 16 bytes, and one loop over 16-bit words does it, which compilers turn into SSE2:
/// 23 GB/s a round (back: 41). Picking one byte out of each element stayed at 3.5 GB/s.
#[derive(Default)]
struct Split {
    planes: Vec<u8>,
    spare: Vec<u8>,
}

impl Split {
    fn planes_of<'a>(&'a mut self, itemsize: usize, block: &'a [u8]) -> &'a [u8] {
        if itemsize == 1 {
            return block;
        }
        self.planes.resize(block.len(), 0);
        if !itemsize.is_power_of_two() {
            for (place, plane) in self.planes.chunks_mut(block.len() / itemsize).enumerate() {
                let bytes = block.iter().skip(place).step_by(itemsize);
                plane.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
            }
            return &self.planes;
        }
        self.spare.resize(block.len(), 0);
        unzip(block, &mut self.planes);
        for _ in 1..itemsize.ilog2() {
            std::mem::swap(&mut self.planes, &mut self.spare);
            unzip(&self.spare, &mut self.planes);
        }
        &self.planes
    }

    fn join(&mut self, itemsize: usize, block: &mut [u8]) {
        if itemsize == 1 {
            block.copy_from_slice(&self.planes);
            return;
        }
        if !itemsize.is_power_of_two() {
            for (place, plane) in self.planes.chunks(block.len() / itemsize).enumerate() {
                let bytes = block.iter_mut().skip(place).step_by(itemsize);
                bytes.zip(plane).for_each(|(out, byte)| *out = *byte);
            }
            return;
        }
        self.spare.resize(block.len(), 0);
        for _ in 1..itemsize.ilog2() {
            zip(&self.planes, &mut self.spare);
            std::mem::swap(&mut self.planes, &mut self.spare);
        }
        zip(&self.planes, block);
    }
}

/// The bytes at even places, then those at odd places.
fn unzip(bytes: &[u8], out: &mut [u8]) {
    let (words, _) = bytes.as_chunks::<2>();
    let (low, high) = out.split_at_mut(words.len());
    for (out, word) in low.iter_mut().zip(words) {
        *out = (u16::from_le_bytes(*word) & 0xFF) as u8;
    }
    for (out, word) in high.iter_mut().zip(words) {
        *out = (u16::from_le_bytes(*word) >> 8) as u8;
    }
}

/// Undoes [`unzip`].
fn zip(bytes: &[u8], out: &mut [u8]) {
    let (words, _) = out.as_chunks_mut::<2>();
    let (low, high) = bytes.split_at(words.len());
    for ((word, low), high) in words.iter_mut().zip(low).zip(high) {
        *word = (u16::from(*low) | u16::from(*high) << 8).to_le_bytes();
    }
}
