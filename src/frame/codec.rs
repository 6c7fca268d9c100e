//! Compressors of one chunk, and its checksum.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::str::FromStr;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{
    CParameter, ParamSwitch, find_frame_compressed_size, get_frame_content_size,
};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::aligned::AlignedBuffer;
use crate::frame::{pk3, planes};

/// How the body of a frame is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The bytes themselves.
    Raw = 0,
    /// One zstd frame, of any level; named after the first one that was written. Sparse and
    /// repeated data.
    Zstd1 = 1,
    /// Byte planes, each raw, constant or a zstd frame: dense floats.
    Planes = 2,
    /// Exponents packed to 3 bits: float32 and bfloat16, at near memory speed.
    Pk3 = 3,
    /// One LZ4 block and its CRC-32C: repeated data, faster than zstd.
    Lz4 = 4,
}

impl Codec {
    /// All of them, by wire id.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Zstd1, Self::Planes, Self::Pk3, Self::Lz4];

    /// The codec's name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd1 => "zstd1",
            Self::Planes => "planes",
            Self::Pk3 => "pk3",
            Self::Lz4 => "lz4",
        }
    }

    /// The name that users give: zstd has levels there.
    pub fn option(self) -> &'static str {
        if self == Self::Zstd1 { "zstd" } else { self.name() }
    }

    /// The codec of a wire id.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an id that this build does not know.
    pub fn from_id(id: u8) -> Result<Self> {
        Self::ALL.get(usize::from(id)).copied().ok_or_else(|| unknown(&id.to_string()))
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name).ok_or_else(|| unknown(name))
    }
}

fn unknown(codec: &str) -> Error {
    let known = Codec::ALL.map(Codec::name).join(", ");
    Error::new(ErrorKind::Unsupported, format!("codec {codec:?}: this build has {known}"))
}

/// How a chunk is to be coded: a codec, and how hard zstd tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    codec: Codec,
    zstd_level: i32,
}

/// Levels of zstd that can be asked for: 20 and more would take 100s of MB.
const ZSTD_LEVELS: RangeInclusive<i32> = 1..=19;

impl Coding {
    /// zstd at a level.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a level that is not 1 to 19.
    pub fn zstd(level: i32) -> Result<Self> {
        if !ZSTD_LEVELS.contains(&level) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("zstd level: expected {ZSTD_LEVELS:?}, got {level}"),
            ));
        }
        Ok(Self { codec: Codec::Zstd1, zstd_level: level })
    }

    /// The coding of an option: a codec's name, and a level where it is zstd.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a name that is none, a level of another codec or one that is not 1
    /// to 19.
    pub fn parse(name: &str, level: Option<i32>) -> Result<Self> {
        let codec = Codec::ALL.into_iter().find(|codec| codec.option() == name);
        match (codec, level) {
            (Some(Codec::Zstd1), level) => Self::zstd(level.unwrap_or(1)),
            (Some(codec), None) => Ok(codec.into()),
            (Some(_), Some(level)) => Err(Error::new(
                ErrorKind::Config,
                format!("codec level: {level} is one of zstd, the codec is {name:?}"),
            )),
            (None, _) => {
                let known = Codec::ALL.map(Codec::option).join(", ");
                Err(Error::new(ErrorKind::Config, format!("codec: expected {known}, got {name:?}")))
            }
        }
    }

    /// The codec.
    pub fn codec(self) -> Codec {
        self.codec
    }
}

impl From<Codec> for Coding {
    fn from(codec: Codec) -> Self {
        Self { codec, zstd_level: 1 }
    }
}

impl PartialEq<Codec> for Coding {
    fn eq(&self, codec: &Codec) -> bool {
        self.codec == *codec
    }
}

/// CRC-32C, at memory speed.
pub fn checksum(bytes: &[u8]) -> u32 {
    // The 32-bit algorithms return their checksum in the low half.
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes)).unwrap_or(0)
}

/// [`checksum`] of pieces that come one after the other.
#[cfg(feature = "queue")]
pub(crate) fn checksum_of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    pieces.into_iter().for_each(|piece| digest.update(piece));
    u32::try_from(digest.finalize()).unwrap_or(0)
}

/// Codes a chunk. None: it does not shrink, send it raw.
///
/// # Errors
/// [`ErrorKind::TooLarge`] when there is no memory for it.
pub fn encode(coding: impl Into<Coding>, itemsize: u16, chunk: &[u8]) -> Result<Option<Bytes>> {
    let coding = coding.into();
    let room_bytes = match coding.codec {
        Codec::Raw => return Ok(None),
        Codec::Lz4 => lz4_flex::block::get_maximum_output_size(chunk.len()) + 4,
        // What would not fit is not worth coding.
        _ => chunk.len(),
    };
    let mut buffer = AlignedBuffer::new(room_bytes as u64)?;
    let mut room = Room::new(buffer.as_mut());
    let coded = match coding.codec {
        Codec::Raw => None,
        Codec::Zstd1 => compress(Strategy::Level(coding.zstd_level), chunk, &mut room),
        Codec::Planes => planes::encode(itemsize, chunk, &mut room)?,
        Codec::Pk3 => pk3::encode(itemsize, chunk, &mut room),
        Codec::Lz4 => compress_lz4(chunk, &mut room),
    };
    let coded_bytes = room.written;
    if coded.is_none() || coded_bytes >= chunk.len() {
        return Ok(None);
    }
    buffer.truncate(coded_bytes);
    // Much smaller, it would hold memory that no window counts.
    let is_small = coded_bytes < room_bytes / 2;
    Ok(Some(if is_small { Bytes::copy_from_slice(buffer.as_ref()) } else { buffer.into_bytes() }))
}

/// Memory that a coder fills from the front.
pub(super) struct Room<'a> {
    bytes: &'a mut [u8],
    written: usize,
}

impl<'a> Room<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, written: 0 }
    }

    /// What is left, for a coder that knows only afterwards how much it takes.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.written..).unwrap_or_default()
    }

    /// The next bytes, whose content is unspecified; None: there are not so many.
    pub(super) fn take(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self.written.checked_add(count)?;
        let taken = self.bytes.get_mut(self.written..end)?;
        self.written = end;
        Some(taken)
    }

    /// Bytes so far.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Forgets what was written after that.
    pub(super) fn back_to(&mut self, written: usize) {
        self.written = self.written.min(written);
    }

    pub(super) fn overwrite(&mut self, start: usize, bytes: &[u8]) -> Option<()> {
        self.bytes.get_mut(start..start + bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.take(bytes.len())?.copy_from_slice(bytes);
        Some(())
    }
}

fn compress_lz4(chunk: &[u8], room: &mut Room<'_>) -> Option<()> {
    let coded_bytes = lz4_flex::block::compress_into(chunk, room.rest()).ok()?;
    let block = room.take(coded_bytes)?;
    let covered = checksum(block);
    room.put(&covered.to_le_bytes())
}

/// Decodes a body into exactly the chunk's raw bytes.
///
/// # Errors
/// [`ErrorKind::Corrupt`] when the body does not decode to `out.len()` bytes.
pub fn decode_into(codec: Codec, itemsize: u16, body: &[u8], out: &mut [u8]) -> Result<()> {
    match codec {
        Codec::Raw if body.len() == out.len() => {
            out.copy_from_slice(body);
            Ok(())
        }
        Codec::Raw => Err(wrong_length(body.len(), out.len())),
        Codec::Zstd1 => decompress(body, out),
        Codec::Planes => planes::decode(itemsize, body, out),
        Codec::Pk3 => pk3::decode(itemsize, body, out),
        Codec::Lz4 => decompress_lz4(body, out),
    }
}

/// Bytes that stay in the second cache between their copy and their checksum.
const PIECE_BYTES: usize = 64 << 10;

/// As [`decode_into`]; gives the [`checksum`] of what `out` holds then.
pub(super) fn decode_summed(
    codec: Codec,
    itemsize: u16,
    body: &[u8],
    out: &mut [u8],
) -> Result<u32> {
    if codec != Codec::Raw || body.len() != out.len() || out.len() <= PIECE_BYTES {
        decode_into(codec, itemsize, body, out)?;
        return Ok(checksum(out));
    }
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    for (piece, out) in body.chunks(PIECE_BYTES).zip(out.chunks_mut(PIECE_BYTES)) {
        out.copy_from_slice(piece);
        digest.update(out);
    }
    Ok(u32::try_from(digest.finalize()).unwrap_or(0))
}

/// Decodes one LZ4 block into exactly `out`; it allocates nothing. The block's own checksum: a
/// match that is moved by a flipped bit may lie on equal bytes, and the chunk's would not tell.
fn decompress_lz4(body: &[u8], out: &mut [u8]) -> Result<()> {
    let expected = out.len();
    let block = match body.split_last_chunk() {
        Some((block, stored)) if u32::from_le_bytes(*stored) == checksum(block) => block,
        _ => return Err(Error::new(ErrorKind::Corrupt, "LZ4 block: its checksum does not match")),
    };
    match lz4_flex::block::decompress_into(block, out) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(wrong_length(found, expected)),
        Err(e) => Err(Error::with_source(
            ErrorKind::Corrupt,
            format!("frame body is no LZ4 block of {expected} bytes"),
            e,
        )),
    }
}

fn wrong_length(found: usize, expected: usize) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("frame body decodes to {found} bytes, its header says {expected}"),
    )
}

/// How hard a zstd frame is made.
#[derive(Clone, Copy)]
pub(super) enum Strategy {
    /// A level of zstd: matches and entropy.
    Level(i32),
    /// Entropy alone: what is left to gain on a plane of exponents.
    Huffman,
}

/// Fastest level at which the match finder gives up; literals are compressed all the same.
const HUFFMAN_LEVEL: i32 = -500;

thread_local! {
    // A context is 100s of KB to set up and a few us to use again.
    static LEVELS: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static HUFFMAN: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECODE: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// None: it does not fit the room that is left.
pub(super) fn compress(strategy: Strategy, bytes: &[u8], room: &mut Room<'_>) -> Option<()> {
    let rest = room.rest();
    let run = |cell: &RefCell<Option<Compressor<'static>>>| -> std::io::Result<usize> {
        let mut slot = cell.borrow_mut();
        let context = match &mut *slot {
            Some(context) => context,
            None => slot.insert(compressor(strategy)?),
        };
        if let Strategy::Level(level) = strategy {
            context.set_compression_level(level)?;
        }
        context.compress_to_buffer(bytes, rest)
    };
    let coded = match strategy {
        Strategy::Level(_) => LEVELS.with(run),
        Strategy::Huffman => HUFFMAN.with(run),
    };
    // Room is all that a compressor of memory can lack; raw is right in any case.
    room.take(coded.ok()?).map(|_| ())
}

fn compressor(strategy: Strategy) -> std::io::Result<Compressor<'static>> {
    match strategy {
        Strategy::Level(level) => Compressor::new(level),
        Strategy::Huffman => {
            let mut context = Compressor::new(HUFFMAN_LEVEL)?;
            context.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
            Ok(context)
        }
    }
}

/// Decompresses one zstd frame into exactly `out`; a frame that declares another size is refused
/// unread. zstd itself would also take several frames, or skippable ones, in a row.
pub(super) fn decompress(body: &[u8], out: &mut [u8]) -> Result<()> {
    let expected = out.len();
    let declared = get_frame_content_size(body).ok().flatten();
    // zstd ignores one bit of its frame descriptor; every flipped bit is damage here.
    let unused_bit = body.get(4).is_none_or(|descriptor| descriptor & 0x10 != 0);
    if unused_bit
        || declared != Some(expected as u64)
        || find_frame_compressed_size(body) != Ok(body.len())
    {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("frame body is not one zstd frame of {expected} bytes"),
        ));
    }
    let found = DECODE.with(|cell| -> std::io::Result<usize> {
        let mut slot = cell.borrow_mut();
        let context = match &mut *slot {
            Some(context) => context,
            None => slot.insert(Decompressor::new()?),
        };
        context.decompress_to_buffer(body, out)
    });
    match found {
        Ok(found) if found == expected => Ok(()),
        Ok(found) => Err(wrong_length(found, expected)),
        Err(e) => Err(Error::with_source(
            ErrorKind::Corrupt,
            format!("frame body is no zstd frame of {expected} bytes"),
            e,
        )),
    }
}
