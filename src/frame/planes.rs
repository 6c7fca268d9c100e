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
/// Bytes of a plane that are looked at. 12 KB predict the ratio with a median error of 0.4 %.
const SAMPLE_BYTES: usize = 12 << 10;

/// Codes a chunk; the result may be larger than the chunk.
pub(super) fn encode(itemsize: u16, chunk: &[u8]) -> Result<Vec<u8>> {
    let itemsize = usize::from(itemsize.max(1));
    let (elements, tail) = chunk.split_at(chunk.len() - chunk.len() % itemsize);
    let mut out = Vec::with_capacity(chunk.len());
    let mut split = Vec::new();
    for block in elements.chunks(block_bytes(itemsize)) {
        split.resize(block.len(), 0);
        transpose(itemsize, block, &mut split);
        encode_block(block.len() / itemsize, &split, &mut out)?;
    }
    out.extend_from_slice(tail);
    Ok(out)
}

fn block_bytes(itemsize: usize) -> usize {
    BLOCK_BYTES - BLOCK_BYTES % itemsize
}

fn encode_block(count: usize, split: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let mut bodies = Vec::with_capacity(split.len());
    for plane in split.chunks(count) {
        let start = bodies.len();
        let mode = encode_plane(plane, &mut bodies)?;
        let length = u32::try_from(bodies.len() - start)
            .map_err(|_| Error::new(ErrorKind::TooLarge, "coded plane exceeds 4 GiB"))?;
        out.push(mode);
        out.extend_from_slice(&length.to_le_bytes());
    }
    out.extend_from_slice(&bodies);
    Ok(())
}

fn encode_plane(plane: &[u8], out: &mut Vec<u8>) -> Result<u8> {
    if let Some((&first, rest)) = plane.split_first()
        && rest.iter().all(|&byte| byte == first)
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
    let mut split = Vec::new();
    for block in elements.chunks_mut(block_bytes(itemsize)) {
        split.resize(block.len(), 0);
        decode_block(itemsize, &mut rest, &mut split)?;
        untranspose(itemsize, &split, block);
    }
    if rest.len() != tail.len() {
        return Err(damaged("length of the tail"));
    }
    tail.copy_from_slice(rest);
    Ok(())
}

fn decode_block(itemsize: usize, rest: &mut &[u8], split: &mut [u8]) -> Result<()> {
    let count = split.len() / itemsize;
    let table = take(rest, itemsize * PLANE_HEADER_BYTES)?;
    let (entries, _) = table.as_chunks::<PLANE_HEADER_BYTES>();
    for (plane, &[mode, length @ ..]) in split.chunks_mut(count).zip(entries) {
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

fn transpose(itemsize: usize, block: &[u8], split: &mut [u8]) {
    match itemsize {
        2 => transpose_by::<2>(block, split),
        4 => transpose_by::<4>(block, split),
        8 => transpose_by::<8>(block, split),
        _ => {
            for (place, plane) in split.chunks_mut(block.len() / itemsize).enumerate() {
                let bytes = block.iter().skip(place).step_by(itemsize);
                plane.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
            }
        }
    }
}

/// The element size as a constant: the compiler turns each pass into vector shuffles.
fn transpose_by<const N: usize>(block: &[u8], split: &mut [u8]) {
    let (elements, _) = block.as_chunks::<N>();
    for (place, plane) in split.chunks_mut(elements.len()).enumerate() {
        for (out, element) in plane.iter_mut().zip(elements) {
            *out = element.get(place).copied().unwrap_or_default();
        }
    }
}

fn untranspose(itemsize: usize, split: &[u8], block: &mut [u8]) {
    match itemsize {
        2 => untranspose_by::<2>(split, block),
        4 => untranspose_by::<4>(split, block),
        8 => untranspose_by::<8>(split, block),
        _ => {
            for (place, plane) in split.chunks(block.len() / itemsize).enumerate() {
                let bytes = block.iter_mut().skip(place).step_by(itemsize);
                bytes.zip(plane).for_each(|(out, byte)| *out = *byte);
            }
        }
    }
}

fn untranspose_by<const N: usize>(split: &[u8], block: &mut [u8]) {
    let (elements, _) = block.as_chunks_mut::<N>();
    let count = elements.len();
    for (place, plane) in split.chunks(count).enumerate() {
        for (element, byte) in elements.iter_mut().zip(plane) {
            if let Some(slot) = element.get_mut(place) {
                *slot = *byte;
            }
        }
    }
}
