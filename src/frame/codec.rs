//! Compressors of one chunk, and its checksum.

use std::cell::RefCell;
use std::str::FromStr;

use crc_fast::CrcAlgorithm;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{
    CParameter, ParamSwitch, find_frame_compressed_size, get_frame_content_size,
};

use crate::error::{Error, ErrorKind, Result};
use crate::frame::planes;

/// How the body of a frame is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The bytes themselves.
    Raw = 0,
    /// One zstd frame at level 1: sparse and repeated data.
    Zstd1 = 1,
    /// Byte planes, each raw, constant or a zstd frame: dense floats.
    Planes = 2,
}

impl Codec {
    /// The codec's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Zstd1 => "zstd1",
            Self::Planes => "planes",
        }
    }

    /// The codec of a wire id.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an id that this build does not know.
    pub fn from_id(id: u8) -> Result<Self> {
        match id {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd1),
            2 => Ok(Self::Planes),
            _ => Err(unknown(&id.to_string())),
        }
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Raw, Self::Zstd1, Self::Planes]
            .into_iter()
            .find(|codec| codec.name() == name)
            .ok_or_else(|| unknown(name))
    }
}

fn unknown(codec: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("codec {codec:?}: this build has raw, zstd1 and planes"),
    )
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
/// [`ErrorKind::Corrupt`] when the compressor itself fails.
pub fn encode(codec: Codec, itemsize: u16, chunk: &[u8]) -> Result<Option<Vec<u8>>> {
    let body = match codec {
        Codec::Raw => return Ok(None),
        Codec::Zstd1 => compress(Strategy::Fast, chunk)?,
        Codec::Planes => planes::encode(itemsize, chunk)?,
    };
    Ok((body.len() < chunk.len()).then_some(body))
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
    /// Level 1: matches and entropy.
    Fast,
    /// Entropy alone: what is left to gain on a plane of exponents.
    Huffman,
}

/// Fastest level at which the match finder gives up; literals are compressed all the same.
const HUFFMAN_LEVEL: i32 = -500;

thread_local! {
    // A context is 100s of KB to set up and a few us to use again.
    static FAST: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static HUFFMAN: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECODE: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

pub(super) fn compress(strategy: Strategy, bytes: &[u8]) -> Result<Vec<u8>> {
    let run = |cell: &RefCell<Option<Compressor<'static>>>| -> std::io::Result<Vec<u8>> {
        let mut slot = cell.borrow_mut();
        let context = match &mut *slot {
            Some(context) => context,
            None => slot.insert(compressor(strategy)?),
        };
        context.compress(bytes)
    };
    let coded = match strategy {
        Strategy::Fast => FAST.with(run),
        Strategy::Huffman => HUFFMAN.with(run),
    };
    coded.map_err(|e| Error::with_source(ErrorKind::Corrupt, "zstd cannot compress", e))
}

fn compressor(strategy: Strategy) -> std::io::Result<Compressor<'static>> {
    match strategy {
        Strategy::Fast => Compressor::new(1),
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
