//! The header as NATS header fields: readable by any NATS client, checked like the binary form.
//!
//! ```text
//! Vecmq-Frame: version;codec;producer;epoch;seq;rows;index;count;total;offset;chunk;crc;itemsize;
//!              header crc           (one line)
//! Vecmq-Dtype: float32          absent for plain bytes
//! Vecmq-Shape: 100,256          absent for plain bytes; "()" for a scalar
//! ```
//! Numbers are decimal, the checksums 8 hexadecimal digits. The header's checksum covers the binary
//! form, so it covers dtype and shape too.

use std::fmt::Write as _;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::codec::Codec;
use crate::frame::header::{Header, WIRE_VERSION};
use crate::frame::{Layout, MessageId, ProducerId};

const FRAME: &str = "Vecmq-Frame";
const DTYPE: &str = "Vecmq-Dtype";
const SHAPE: &str = "Vecmq-Shape";
const SCALAR: &str = "()";
/// Longest field that is read: 32 dimensions of 20 digits.
const FIELD_BYTES_MAX: usize = 1024;

impl Header {
    /// The header as NATS header fields.
    pub fn to_fields(&self) -> Vec<(&'static str, String)> {
        let mut frame = String::with_capacity(160);
        // Writing to a String cannot fail.
        let _ = write!(
            frame,
            "{WIRE_VERSION};{};{};{};{};{};{};{};{};{};{};{:08x};{};{:08x}",
            self.codec.name(),
            self.id.producer,
            self.id.epoch,
            self.id.seq,
            self.rows,
            self.index,
            self.count,
            self.total_bytes,
            self.offset,
            self.chunk_bytes,
            self.checksum,
            self.layout.as_ref().map_or(0, Layout::itemsize),
            self.own_checksum(),
        );
        let mut fields = vec![(FRAME, frame)];
        if let Some(layout) = &self.layout {
            fields.push((DTYPE, layout.dtype().to_owned()));
            fields.push((SHAPE, shape_text(layout.shape())));
        }
        fields
    }

    /// Reads the header from NATS header fields; None when there is no frame field: a plain NATS
    /// message.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for fields that are no valid header, [`ErrorKind::Unsupported`] for a
    /// wire version or codec that this build does not know.
    pub fn from_fields<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>> {
        let Some(frame) = get(FRAME) else { return Ok(None) };
        let (dtype, shape) = (get(DTYPE), get(SHAPE));
        let fields = [Some(frame), dtype, shape];
        if fields.into_iter().flatten().any(|field| field.len() > FIELD_BYTES_MAX) {
            return Err(bad("field length"));
        }
        let mut parts = frame.split(';');
        let mut next = || parts.next().ok_or_else(|| bad("number of parts"));
        let version: u8 = number(next()?)?;
        if version != WIRE_VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("frame fields: wire version {version}, this build reads {WIRE_VERSION}"),
            ));
        }
        let codec: Codec = next()?.parse()?;
        let id = MessageId {
            producer: ProducerId::parse(next()?)?,
            epoch: number(next()?)?,
            seq: number(next()?)?,
        };
        let header = Self {
            id,
            rows: number(next()?)?,
            index: number(next()?)?,
            count: number(next()?)?,
            total_bytes: number(next()?)?,
            offset: number(next()?)?,
            chunk_bytes: number(next()?)?,
            codec,
            checksum: hex(next()?)?,
            layout: layout(number(next()?)?, dtype, shape)?,
        };
        let stored = hex(next()?)?;
        if parts.next().is_some() || stored != header.own_checksum() {
            return Err(bad("checksum"));
        }
        header.validate()?;
        Ok(Some(header))
    }

    /// The checksum that ends the binary form.
    fn own_checksum(&self) -> u32 {
        let mut binary = Vec::with_capacity(128);
        self.encode(&mut binary);
        binary.last_chunk().map_or(0, |crc| u32::from_le_bytes(*crc))
    }
}

fn shape_text(shape: &[u64]) -> String {
    if shape.is_empty() {
        return SCALAR.to_owned();
    }
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn layout(itemsize: u16, dtype: Option<&str>, shape: Option<&str>) -> Result<Option<Layout>> {
    match (itemsize, dtype, shape) {
        (0, None, None) => Ok(None),
        (0, ..) => Err(bad("itemsize")),
        (_, Some(dtype), Some(SCALAR)) => Layout::new(dtype, itemsize, Vec::new()).map(Some),
        (_, Some(dtype), Some(shape)) => {
            let shape = shape.split(',').map(number).collect::<Result<Vec<u64>>>()?;
            Layout::new(dtype, itemsize, shape).map(Some)
        }
        _ => Err(bad("dtype or shape")),
    }
}

/// A decimal number as this crate writes it: no sign, no leading zero.
fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    let canonical = text == "0" || !text.starts_with(['0', '+']);
    text.parse().ok().filter(|_| canonical).ok_or_else(|| bad("number"))
}

fn hex(text: &str) -> Result<u32> {
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.len() != 8 || !text.bytes().all(digits) {
        return Err(bad("checksum"));
    }
    u32::from_str_radix(text, 16).map_err(|_| bad("checksum"))
}

fn bad(field: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("frame fields: bad {field}"))
}
