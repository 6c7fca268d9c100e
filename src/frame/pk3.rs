//! Exponents packed to 3 bits: for float32 and bfloat16, at near memory speed.
//!
//! Dense floats have few exponents. Seven that follow each other get the codes 0 to 6; code 7 is an
//! escape, and the exponent stands in a list. Everything else is noise and stays as it is.
//!
//! ```text
//! body    = blocks of 65,536 elements, the last shorter; then the bytes that are no whole element,
//!           as they are
//! block   = base u8, escapes count e u32, codes, low bits, escapes (e bytes); little-endian
//! element = rotated left by one bit: exponent (8 bits), mantissa, sign
//! code    = exponent - base where that is 0 to 6, else 7
//! low     4-byte elements: the lowest 16 bits of each (2n bytes), then the 8 above (n bytes)
//!         2-byte elements: the lowest 8 bits of each (n bytes)               n = elements
//! codes   = groups of 256 elements, the last shorter: with m = a group's elements / 8, rounded up,
//!           m bytes of bit 0, m bytes of bit 1, m bytes of bit 2
//!           bit k of byte j belongs to the group's element j + k*m; bits without an element are 0
//! escapes = exponents, ordered by group, byte j, bit k
//! ```

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::Room;
use crate::frame::simd::{self, Kernel};

const BLOCK_ELEMENTS: usize = 1 << 16;
const BLOCK_HEADER_BYTES: usize = 5;
const GROUP_ELEMENTS: usize = 256;
/// Bytes that hold one bit of every element of a whole group.
const GROUP_LANES: usize = GROUP_ELEMENTS / 8;
const ESCAPE: u8 = 7;
/// Elements that are looked at to choose the base, and how many of them follow each other: a cache
/// line is fetched as a whole.
const SAMPLE_ELEMENTS: usize = 1 << 10;
const SAMPLE_RUN: usize = 16;
/// Share of escapes, in eighths, from which 3 bits an element and a byte an escape save nothing.
const ESCAPES_EIGHTHS_MAX: usize = 5;

/// Codes a chunk; None: there is nothing to gain.
pub(super) fn encode(itemsize: u16, chunk: &[u8], room: &mut Room<'_>) -> Option<()> {
    match itemsize {
        2 => encode_elements::<2>(chunk, room),
        4 => encode_elements::<4>(chunk, room),
        _ => None,
    }
}

fn encode_elements<const SIZE: usize>(chunk: &[u8], room: &mut Room<'_>) -> Option<()> {
    let (elements, tail) = chunk.as_chunks::<SIZE>();
    for block in elements.chunks(BLOCK_ELEMENTS) {
        let base = choose_base(block)?;
        let codes_bytes = codes_bytes(block.len());
        let packed_bytes = BLOCK_HEADER_BYTES + codes_bytes + (SIZE - 1) * block.len();
        let (packed, escapes) = room.rest().split_at_mut_checked(packed_bytes)?;
        let (header, packed) = packed.split_at_mut(BLOCK_HEADER_BYTES);
        let (codes, low) = packed.split_at_mut(codes_bytes);
        let escapes_count = simd::run(Pack { base, block, codes, low, escapes })?;
        let [a, b, c, d] = u32::try_from(escapes_count).ok()?.to_le_bytes();
        header.copy_from_slice(&[base, a, b, c, d]);
        room.take(packed_bytes + escapes_count)?;
    }
    room.put(tail)
}

/// Decodes a body into exactly `out`.
pub(super) fn decode(itemsize: u16, body: &[u8], out: &mut [u8]) -> Result<()> {
    match itemsize {
        2 => decode_elements::<2>(body, out),
        4 => decode_elements::<4>(body, out),
        _ => Err(damaged("size of the elements")),
    }
}

fn decode_elements<const SIZE: usize>(body: &[u8], out: &mut [u8]) -> Result<()> {
    let (elements, tail) = out.as_chunks_mut::<SIZE>();
    let mut rest = body;
    let mut take = |count: usize| -> Result<&[u8]> {
        let (head, behind) = rest.split_at_checked(count).ok_or_else(|| damaged("length"))?;
        rest = behind;
        Ok(head)
    };
    for block in elements.chunks_mut(BLOCK_ELEMENTS) {
        let &[base, count @ ..] =
            take(BLOCK_HEADER_BYTES)?.first_chunk::<5>().ok_or_else(|| damaged("length"))?;
        let codes = take(codes_bytes(block.len()))?;
        let low = take((SIZE - 1) * block.len())?;
        let escapes = take(u32::from_le_bytes(count) as usize)?;
        if !simd::run(Unpack { base, block, codes, low, escapes }) {
            return Err(damaged("codes or escapes"));
        }
    }
    if rest.len() != tail.len() {
        return Err(damaged("length of the tail"));
    }
    tail.copy_from_slice(rest);
    Ok(())
}

fn damaged(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("packed exponents: bad {what}"))
}

fn codes_bytes(elements: usize) -> usize {
    let whole = elements / GROUP_ELEMENTS * GROUP_LANES;
    3 * (whole + (elements % GROUP_ELEMENTS).div_ceil(8))
}

/// The exponent of the code 0: most of a sample lies in the window that begins there. None: too
/// little of it does.
fn choose_base<const SIZE: usize>(block: &[[u8; SIZE]]) -> Option<u8> {
    // Odd: rows have a power of two of elements, and their columns differ.
    let step = block.len().div_ceil(SAMPLE_ELEMENTS) | 1;
    // Two tables: a count that was just written is slow to read.
    let mut counts = [[0_u16; 256]; 2];
    let mut total = 0;
    for run in block.chunks(SAMPLE_RUN).step_by(step) {
        for pair in run.chunks(2) {
            for (counts, element) in counts.iter_mut().zip(pair) {
                if let Some(count) = counts.get_mut(usize::from(exponent(element))) {
                    *count += 1;
                }
            }
        }
        total += run.len();
    }
    let [one, other] = counts;
    let mut counts = [0; 256];
    for ((sum, one), other) in counts.iter_mut().zip(one).zip(other) {
        *sum = usize::from(one) + usize::from(other);
    }
    let windows = counts.windows(usize::from(ESCAPE)).map(|window| window.iter().sum::<usize>());
    let (base, covered) = windows.enumerate().max_by_key(|(_, covered)| *covered)?;
    let escapes = total - covered;
    if 8 * escapes > ESCAPES_EIGHTHS_MAX * total { None } else { u8::try_from(base).ok() }
}

/// The rotated element, in the low bits.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn rotated<const SIZE: usize>(element: &[u8; SIZE]) -> u32 {
    match *element.as_slice() {
        [a, b] => u32::from(u16::from_le_bytes([a, b]).rotate_left(1)),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).rotate_left(1),
        _ => 0,
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "the shift leaves 8 bits")]
#[inline(always)]
fn exponent<const SIZE: usize>(element: &[u8; SIZE]) -> u8 {
    (rotated(element) >> (8 * (SIZE - 1))) as u8
}

/// One byte for each element of a group: 8 rows of 32, of which a short group fills `m` each.
type Rows = [u8; GROUP_ELEMENTS];
/// Bits 0, 1 and 2 of the codes of a group: 32 bytes each, 8 to a word.
type Planes = [[u64; 4]; 3];
/// One bit in every byte of a word.
const ONES: u64 = 0x0101_0101_0101_0101;

struct Pack<'a, const SIZE: usize> {
    base: u8,
    block: &'a [[u8; SIZE]],
    codes: &'a mut [u8],
    low: &'a mut [u8],
    escapes: &'a mut [u8],
}

impl<const SIZE: usize> Kernel for Pack<'_, SIZE> {
    /// Escapes; None: there is no room for them.
    type Output = Option<usize>;
    const WIDE: bool = SIZE == 4;

    #[expect(clippy::inline_always, reason = "a kernel")]
    #[inline(always)]
    fn run(self) -> Option<usize> {
        let Self { base, block, codes, low, escapes } = self;
        let mut escapes_count = 0;
        let (groups, last) = block.as_chunks::<GROUP_ELEMENTS>();
        let (low16, low8) = low.split_at_mut((SIZE - 2) * block.len());
        let (low16, _) = low16.as_chunks_mut::<2>();
        let (low16_groups, low16_last) = low16.as_chunks_mut::<GROUP_ELEMENTS>();
        let (low8_groups, low8_last) = low8.as_chunks_mut::<GROUP_ELEMENTS>();
        let (codes, codes_last) = codes.split_at_mut(3 * GROUP_LANES * groups.len());
        let (codes_groups, _) = codes.as_chunks_mut::<{ 3 * GROUP_LANES }>();
        let mut low16_groups = low16_groups.iter_mut();
        let mut rows = [base; GROUP_ELEMENTS];
        for ((group, codes), low8) in groups.iter().zip(codes_groups).zip(low8_groups) {
            let low16 = low16_groups.next().map_or(&mut [][..], |low16| low16.as_mut_slice());
            split(group, &mut rows, low16, low8);
            let planes = planes_of(&rows, base);
            let (words, _) = codes.as_chunks_mut::<8>();
            for (out, word) in words.iter_mut().zip(planes.as_flattened()) {
                *out = word.to_le_bytes();
            }
            escapes_count += collect_escapes(&planes, &rows, escapes.get_mut(escapes_count..)?)?;
        }
        if !last.is_empty() {
            let lanes = last.len().div_ceil(8);
            // What stands for no element gets the code 0.
            let mut exponents = [base; GROUP_ELEMENTS];
            split(last, &mut exponents, low16_last, low8_last);
            rows = [base; GROUP_ELEMENTS];
            for (row, exponents) in rows.chunks_mut(GROUP_LANES).zip(exponents.chunks(lanes)) {
                row.iter_mut().zip(exponents).for_each(|(out, exponent)| *out = *exponent);
            }
            let planes = planes_of(&rows, base);
            for (out, plane) in codes_last.chunks_mut(lanes).zip(&planes) {
                let bytes = plane.iter().flat_map(|word| word.to_le_bytes());
                out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = byte);
            }
            escapes_count += collect_escapes(&planes, &rows, escapes.get_mut(escapes_count..)?)?;
        }
        Some(escapes_count)
    }
}

/// Elements -> exponents and what is left of them.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[expect(clippy::cast_possible_truncation, reason = "cut to the bits that are meant")]
#[inline(always)]
fn split<const SIZE: usize>(
    elements: &[[u8; SIZE]],
    exponents: &mut Rows,
    low16: &mut [[u8; 2]],
    low8: &mut [u8],
) {
    for (out, element) in exponents.iter_mut().zip(elements) {
        *out = exponent(element);
    }
    for (out, element) in low16.iter_mut().zip(elements) {
        *out = (rotated(element) as u16).to_le_bytes();
    }
    for (out, element) in low8.iter_mut().zip(elements) {
        *out = (rotated(element) >> (8 * (SIZE - 2))) as u8;
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn planes_of(rows: &Rows, base: u8) -> Planes {
    let codes = rows.map(|exponent| exponent.wrapping_sub(base).min(ESCAPE));
    let (words, _) = codes.as_chunks::<8>();
    let (rows, _) = words.as_chunks::<4>();
    let mut planes = Planes::default();
    let [zero, one, two] = &mut planes;
    for (k, row) in rows.iter().enumerate() {
        for (((word, zero), one), two) in row.iter().zip(&mut *zero).zip(&mut *one).zip(&mut *two) {
            let word = u64::from_le_bytes(*word);
            *zero |= (word & ONES) << k;
            *one |= (word >> 1 & ONES) << k;
            *two |= (word >> 2 & ONES) << k;
        }
    }
    planes
}

/// Escapes that are taken out of a word without asking how many there are: it mostly has fewer, and
/// a branch that is guessed wrong costs as much as ten of them.
const ESCAPES_AT_ONCE: usize = 4;

/// Where in the rows the escape of the lowest bit of a word lies; of no bit, anywhere.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn place(word: usize, bits: u64) -> usize {
    let bit = bits.trailing_zeros() as usize;
    bit % 8 * GROUP_LANES + 8 * word + bit / 8
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn masks(planes: &Planes) -> [u64; 4] {
    let [zero, one, two] = planes;
    let mut masks = [0; 4];
    for (((mask, zero), one), two) in masks.iter_mut().zip(zero).zip(one).zip(two) {
        *mask = zero & one & two;
    }
    masks
}

/// Writes the escapes of a group to the front of `escapes`; None: they do not fit.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn collect_escapes(planes: &Planes, rows: &Rows, escapes: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    for (word, mut bits) in masks(planes).into_iter().enumerate() {
        let end = at + bits.count_ones() as usize;
        loop {
            let out = escapes.get_mut(at..)?.first_chunk_mut::<ESCAPES_AT_ONCE>()?;
            for out in out {
                *out = rows.get(place(word, bits)).copied().unwrap_or_default();
                bits &= bits.wrapping_sub(1);
            }
            if bits == 0 {
                break;
            }
            at += ESCAPES_AT_ONCE;
        }
        at = end;
    }
    Some(at)
}

struct Unpack<'a, const SIZE: usize> {
    base: u8,
    block: &'a mut [[u8; SIZE]],
    codes: &'a [u8],
    low: &'a [u8],
    escapes: &'a [u8],
}

impl<const SIZE: usize> Kernel for Unpack<'_, SIZE> {
    /// The codes fit the elements and the escapes.
    type Output = bool;
    const WIDE: bool = SIZE == 4;

    #[expect(clippy::inline_always, reason = "a kernel")]
    #[inline(always)]
    fn run(self) -> bool {
        let Self { base, block, codes, low, escapes } = self;
        let mut escapes_count = 0;
        let (low16, low8) = low.split_at((SIZE - 2) * block.len());
        let (low16, _) = low16.as_chunks::<2>();
        let (groups, last) = block.as_chunks_mut::<GROUP_ELEMENTS>();
        let (low16_groups, low16_last) = low16.as_chunks::<GROUP_ELEMENTS>();
        let (low8_groups, low8_last) = low8.as_chunks::<GROUP_ELEMENTS>();
        let (codes, codes_last) = codes.split_at(3 * GROUP_LANES * groups.len());
        let (codes_groups, _) = codes.as_chunks::<{ 3 * GROUP_LANES }>();
        let mut low16_groups = low16_groups.iter();
        for ((group, codes), low8) in groups.iter_mut().zip(codes_groups).zip(low8_groups) {
            let low16 = low16_groups.next().map_or(&[][..], |low16| low16.as_slice());
            let mut planes = Planes::default();
            let (words, _) = codes.as_chunks::<8>();
            for (out, word) in planes.as_flattened_mut().iter_mut().zip(words) {
                *out = u64::from_le_bytes(*word);
            }
            let mut rows = rows_of(&planes, base);
            escapes_count +=
                place_escapes(&planes, &mut rows, escapes.get(escapes_count..).unwrap_or_default());
            join(group, &rows, low16, low8);
        }
        if !last.is_empty() {
            let lanes = last.len().div_ceil(8);
            let mut planes = Planes::default();
            for (plane, codes) in planes.iter_mut().zip(codes_last.chunks(lanes)) {
                for (word, codes) in plane.iter_mut().zip(codes.chunks(8)) {
                    let mut bytes = [0; 8];
                    bytes.iter_mut().zip(codes).for_each(|(out, byte)| *out = *byte);
                    *word = u64::from_le_bytes(bytes);
                }
            }
            let mut rows = rows_of(&planes, base);
            escapes_count +=
                place_escapes(&planes, &mut rows, escapes.get(escapes_count..).unwrap_or_default());
            let mut exponents = [base; GROUP_ELEMENTS];
            for (row, exponents) in rows.chunks(GROUP_LANES).zip(exponents.chunks_mut(lanes)) {
                exponents.iter_mut().zip(row).for_each(|(out, exponent)| *out = *exponent);
            }
            let (_, unused) = exponents.split_at(last.len());
            if unused.iter().any(|exponent| *exponent != base) {
                return false;
            }
            join(last, &exponents, low16_last, low8_last);
        }
        escapes_count == escapes.len()
    }
}

#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn rows_of(planes: &Planes, base: u8) -> Rows {
    let [zero, one, two] = planes;
    let mut rows = [0; GROUP_ELEMENTS];
    let (words, _) = rows.as_chunks_mut::<8>();
    let (words, _) = words.as_chunks_mut::<4>();
    for (k, row) in words.iter_mut().enumerate() {
        for (((out, zero), one), two) in row.iter_mut().zip(zero).zip(one).zip(two) {
            let word = (zero >> k & ONES) | (one >> k & ONES) << 1 | (two >> k & ONES) << 2;
            *out = word.to_le_bytes();
        }
    }
    rows.map(|code| code.wrapping_add(base))
}

/// Takes the escapes of a group from the front of `escapes`, and says how many; may be more than
/// there are.
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn place_escapes(planes: &Planes, rows: &mut Rows, escapes: &[u8]) -> usize {
    let mut at = 0;
    for (word, mut bits) in masks(planes).into_iter().enumerate() {
        let end = at + bits.count_ones() as usize;
        loop {
            let rest = escapes.get(at..).unwrap_or_default();
            let taken = rest.first_chunk().copied().unwrap_or_else(|| {
                let mut padded = [0; ESCAPES_AT_ONCE];
                padded.iter_mut().zip(rest).for_each(|(out, exponent)| *out = *exponent);
                padded
            });
            for exponent in taken {
                let place = if bits == 0 { GROUP_ELEMENTS } else { place(word, bits) };
                if let Some(out) = rows.get_mut(place) {
                    *out = exponent;
                }
                bits &= bits.wrapping_sub(1);
            }
            if bits == 0 {
                break;
            }
            at += ESCAPES_AT_ONCE;
        }
        at = end;
    }
    at
}

/// Undoes [`split`].
#[expect(clippy::inline_always, reason = "part of a kernel")]
#[inline(always)]
fn join<const SIZE: usize>(
    elements: &mut [[u8; SIZE]],
    exponents: &Rows,
    low16: &[[u8; 2]],
    low8: &[u8],
) {
    let places = elements.iter_mut().zip(exponents).zip(low8);
    if SIZE == 4 {
        for (((element, exponent), low8), low16) in places.zip(low16) {
            let word = u32::from(*exponent) << 24
                | u32::from(*low8) << 16
                | u32::from(u16::from_le_bytes(*low16));
            if let Some(element) = element.first_chunk_mut::<4>() {
                *element = word.rotate_right(1).to_le_bytes();
            }
        }
    } else {
        for ((element, exponent), low8) in places {
            let word = u16::from(*exponent) << 8 | u16::from(*low8);
            if let Some(element) = element.first_chunk_mut::<2>() {
                *element = word.rotate_right(1).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use crate::frame::simd::Level;

    /// Exponents of all kinds: few, many, one, every one.
    fn elements<const SIZE: usize>(count: usize, seed: u64) -> Vec<[u8; SIZE]> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 24
        };
        let masks = [0x7F_0000_0000, u64::MAX, 0, 0x3_0000_0000];
        let mask = *masks.get(usize::try_from(seed % 4).unwrap()).unwrap();
        let mut element = || {
            let word = next() & (mask | 0xFFFF);
            *word.to_le_bytes().first_chunk::<8>().unwrap()
        };
        (0..count).map(|_| element().last_chunk::<SIZE>().copied().unwrap()).collect()
    }

    fn both_ways_agree<const SIZE: usize>() {
        for count in [0, 1, 7, 8, 9, 255, 256, 257, 300, 511, 1024, 5000] {
            for seed in 0..8 {
                let block = elements::<SIZE>(count, seed);
                let base = u8::try_from(seed * 30).unwrap();
                let pack = |level: Level| {
                    let (mut codes, mut low) =
                        (vec![1; codes_bytes(count)], vec![2; (SIZE - 1) * count]);
                    let mut escapes = vec![0; count + ESCAPES_AT_ONCE];
                    let kernel = Pack {
                        base,
                        block: &block,
                        codes: &mut codes,
                        low: &mut low,
                        escapes: &mut escapes,
                    };
                    let taken = simd::run_at(level, kernel).unwrap();
                    escapes.truncate(taken);
                    (codes, low, escapes)
                };
                let (codes, low, escapes) = pack(Level::Portable);
                let unpack = |level: Level| {
                    let mut out = vec![[3; SIZE]; count];
                    let kernel = Unpack {
                        base,
                        block: &mut out,
                        codes: &codes,
                        low: &low,
                        escapes: &escapes,
                    };
                    assert!(simd::run_at(level, kernel));
                    out
                };
                for level in Level::all() {
                    assert_eq!(pack(level), (codes.clone(), low.clone(), escapes.clone()));
                    assert_eq!(unpack(level), block, "{level:?}");
                }
            }
        }
    }

    #[test]
    fn all_levels_do_the_same() {
        both_ways_agree::<2>();
        both_ways_agree::<4>();
    }
}
