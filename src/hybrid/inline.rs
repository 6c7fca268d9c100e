//! Inline entries: small messages that lie in the journal whole, several in one entry.
//!
//! Little-endian:
//!
//! ```text
//!   0   1  kind = 0
//!   1   3  zero
//!   4   4  blocks n
//!   then for each of the n blocks, a message, packed rows or a run of messages that are alike:
//!       4  messages of equal size that the payload is cut into: a run of plain bytes, else 1
//!       4  length of the user headers, bytes
//!       h  user headers: count u16, then per header: key length u16, key, value length u32, value
//!       4  CRC-32C of the block up to here
//!       .  its frames, as many as the first one says:
//!            4  body length
//!            .  frame header (see frame::header)
//!            .  zeros, until the body begins at a multiple of 64 (of 16 for bodies under 64 bytes)
//!            .  body
//! ```
//!
//! Entries are read into 64-byte aligned memory, so a raw body can be handed out where it lies.
//!
//! A run is what small messages of one call become where they have headers, dtype and shape in
//! common: one frame header and one checksum for all of them. Arrays are written as packed rows.
//! 50,000 x 1 KB from Python in calls of 512: 3.4 us a message with a header each and described in
//! Python, 1.0 us in runs and borrowed by the core.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::frame::{
    AlignedWriter, Assembly, CHUNK_BYTES_MAX, Codec, Coding, Header, Headers, Incoming, Layout,
    MessageId, Outgoing, Plan, checksum, checksum_of, decode_into,
};
use crate::hybrid::entry::{KIND_INLINE, Reader, damaged};

/// Bytes of a block before its user headers.
const BLOCK_BYTES: usize = 8;
/// Bytes before the first block.
const PREFIX_BYTES: usize = 8;
/// Raw bytes of one coded frame: what is decoded in one go.
const CODED_CHUNK_BYTES_MAX: u32 = 1 << 20;
/// What a message takes beside its payload and headers, about; the writer grows where it is more.
const OVERHEAD_BYTES: usize = 256;
/// Messages of a run, at most: as many as packed rows.
const RUN_MESSAGES_MAX: u32 = 1_000_000;
/// Raw bodies of this size and more are not copied into the entry.
const BORROWED_BYTES_MIN: usize = 32 << 10;

/// A message as it lies in an entry.
pub(super) struct InlineMessage {
    pub(super) incoming: Incoming,
    pub(super) headers: Headers,
}

/// Collects the messages of one entry.
pub(super) struct InlineEntry {
    writer: AlignedWriter,
    /// The body of the last frame, where it was not copied. It ends the entry.
    borrowed: Option<Bytes>,
    /// Raw bodies of this size and more are borrowed.
    borrowed_bytes_min: usize,
    blocks: u32,
}

/// Messages of equal size, headers, dtype and shape, one behind the other.
pub(super) struct Run<'a> {
    /// The first one's.
    pub(super) id: MessageId,
    /// Of each of them.
    pub(super) layout: Option<&'a Layout>,
    pub(super) headers: &'a Headers,
    pub(super) payloads: &'a [&'a [u8]],
    /// Somebody may change a payload while it is copied.
    pub(super) writable: bool,
}

/// What a message came to in its entry.
#[derive(Clone, Copy, Default)]
pub(super) struct Encoded {
    pub(super) frames_count: u32,
    /// Frames whose bodies are coded.
    pub(super) coded_count: u32,
    pub(super) wire_bytes: u64,
}

/// A payload that the caller may change while the entry borrows it, and what it has to be.
pub(super) struct Borrowed {
    payload: Bytes,
    checksum: u32,
}

impl Borrowed {
    /// # Errors
    /// [`ErrorKind::BufferMutated`] when it is not what it was.
    pub(super) fn verify(&self) -> Result<()> {
        if checksum(&self.payload) == self.checksum { Ok(()) } else { Err(mutated()) }
    }
}

impl InlineEntry {
    /// An entry as `with_room`, all in one piece: nothing is borrowed.
    pub(super) fn in_one_piece(payload_bytes: usize, messages: usize) -> Result<Self> {
        let entry = Self::with_room(payload_bytes, messages)?;
        Ok(Self { borrowed_bytes_min: usize::MAX, ..entry })
    }

    /// An entry with room for payloads of `payload_bytes` in `messages`.
    pub(super) fn with_room(payload_bytes: usize, messages: usize) -> Result<Self> {
        let capacity = PREFIX_BYTES + payload_bytes + messages * OVERHEAD_BYTES;
        let mut writer = AlignedWriter::with_capacity(capacity)?;
        writer.extend(&[KIND_INLINE, 0, 0, 0, 0, 0, 0, 0])?;
        Ok(Self { writer, borrowed: None, borrowed_bytes_min: BORROWED_BYTES_MIN, blocks: 0 })
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.writer.len() + self.borrowed.as_ref().map_or(0, Bytes::len)
    }

    /// Nothing may follow a borrowed body.
    pub(super) fn is_full(&self) -> bool {
        self.borrowed.is_some()
    }

    /// Adds a message. A raw payload of 32 KiB or more is not copied; the caller has to verify what
    /// comes back in `borrowed` once it is written. A small one is copied, and the copy verified.
    pub(super) fn push(
        &mut self,
        message: &Outgoing,
        headers: &Headers,
        coding: Coding,
        writable: bool,
        borrowed: &mut Vec<Borrowed>,
    ) -> Result<Encoded> {
        let before = self.len();
        self.block(1, headers)?;
        let itemsize = message.layout.as_ref().map_or(1, Layout::itemsize);
        let chunk_bytes_max =
            if coding == Codec::Raw { CHUNK_BYTES_MAX } else { CODED_CHUNK_BYTES_MAX };
        let plan = Plan::new(message.payload.len() as u64, itemsize, chunk_bytes_max)?;
        let mut head = Vec::with_capacity(OVERHEAD_BYTES);
        let mut coded_count = 0;
        for index in 0..plan.count {
            let frame = message.frame(&plan, index, coding)?;
            head.clear();
            let body_bytes = u32::try_from(frame.body.len())
                .map_err(|_| Error::new(ErrorKind::TooLarge, "frame body exceeds 4 GiB"))?;
            head.extend_from_slice(&body_bytes.to_le_bytes());
            frame.header.encode(&mut head);
            self.writer.extend(&head)?;
            self.writer.pad(body_alignment(frame.body.len()))?;
            let raw = frame.header.codec == Codec::Raw;
            coded_count += u32::from(!raw);
            if raw && plan.count == 1 && frame.body.len() >= self.borrowed_bytes_min {
                if writable {
                    let (payload, checksum) = (frame.body.clone(), frame.header.checksum);
                    borrowed.push(Borrowed { payload, checksum });
                }
                self.borrowed = Some(frame.body);
            } else {
                let start = self.writer.len();
                self.writer.extend(&frame.body)?;
                if writable {
                    let copy = self.writer.written().get(start..).unwrap_or_default();
                    verify_copy(&frame.header, itemsize, copy)?;
                }
            }
        }
        let wire_bytes = (self.len() - before) as u64;
        Ok(Encoded { frames_count: plan.count, coded_count, wire_bytes })
    }

    /// Adds a run of raw messages, two or more, whose sizes are a multiple of 64: each of them lies
    /// aligned. All are copied; where they are writable the copy is verified.
    pub(super) fn push_run(&mut self, run: &Run<'_>) -> Result<Encoded> {
        let before = self.len();
        let too_large = |_| Error::new(ErrorKind::TooLarge, "a run of 4 GiB or more");
        let count = u32::try_from(run.payloads.len()).map_err(too_large)?;
        let bytes = run.payloads.iter().map(|payload| payload.len()).sum::<usize>();
        let chunk_bytes = u32::try_from(bytes).map_err(too_large)?;
        let layout = run.layout.map(|layout| layout.rows(count)).transpose()?;
        let header = Header {
            id: run.id,
            rows: if layout.is_some() { count } else { 1 },
            index: 0,
            count: 1,
            total_bytes: u64::from(chunk_bytes),
            offset: 0,
            chunk_bytes,
            codec: Codec::Raw,
            layout,
            checksum: checksum_of(run.payloads.iter().copied()),
        };
        header.validate()?;
        self.block(if header.layout.is_some() { 1 } else { count }, run.headers)?;
        let mut head = Vec::with_capacity(OVERHEAD_BYTES);
        head.extend_from_slice(&chunk_bytes.to_le_bytes());
        header.encode(&mut head);
        self.writer.extend(&head)?;
        self.writer.pad(body_alignment(bytes))?;
        let start = self.writer.len();
        for payload in run.payloads {
            self.writer.extend(payload)?;
        }
        if run.writable {
            let copy = self.writer.written().get(start..).unwrap_or_default();
            verify_copy(&header, 1, copy)?;
        }
        let wire_bytes = (self.len() - before) as u64;
        Ok(Encoded { frames_count: 1, coded_count: 0, wire_bytes })
    }

    /// The entry, in slices: what was written, and the borrowed body where there is one.
    pub(super) fn finish(mut self) -> Vec<Bytes> {
        self.writer.overwrite(4, &self.blocks.to_le_bytes());
        let mut slices = vec![self.writer.finish()];
        slices.extend(self.borrowed);
        slices
    }

    /// Begins a block.
    fn block(&mut self, run: u32, headers: &Headers) -> Result<()> {
        self.blocks += 1;
        let mut encoded = Vec::with_capacity(BLOCK_BYTES);
        encoded.extend_from_slice(&run.to_le_bytes());
        encoded.extend_from_slice(&[0; 4]);
        encode_headers(&mut encoded, headers)?;
        let length = u32::try_from(encoded.len() - BLOCK_BYTES)
            .map_err(|_| Error::new(ErrorKind::InvalidHeaders, "message headers exceed 4 GiB"))?;
        if let Some(room) = encoded.get_mut(4..BLOCK_BYTES) {
            room.copy_from_slice(&length.to_le_bytes());
        }
        self.writer.extend(&encoded)?;
        self.writer.extend(&checksum(&encoded).to_le_bytes())
    }
}

/// Whether a message of that size can be one of a run.
pub(super) fn fits_run(payload_bytes: usize, coding: Coding) -> bool {
    coding == Codec::Raw
        && (1..BORROWED_BYTES_MIN).contains(&payload_bytes)
        && payload_bytes.is_multiple_of(64)
}

/// Bytes of a payload that an entry takes a copy of, at most.
pub(super) fn copied_bytes(payload_bytes: usize, coding: Coding) -> usize {
    let borrowed = coding == Codec::Raw && payload_bytes >= BORROWED_BYTES_MIN;
    if borrowed { 0 } else { payload_bytes }
}

fn body_alignment(body_bytes: usize) -> usize {
    if body_bytes < 64 { 16 } else { 64 }
}

fn mutated() -> Error {
    Error::new(
        ErrorKind::BufferMutated,
        "the payload changed while it was being published; nothing was written",
    )
}

/// Makes sure that the copy is what was checksummed: somebody may have changed the payload in
/// between.
fn verify_copy(header: &Header, itemsize: u16, body: &[u8]) -> Result<()> {
    let found = if header.codec == Codec::Raw {
        checksum(body)
    } else {
        let mut raw = vec![0; header.chunk_bytes as usize];
        decode_into(header.codec, itemsize, body, &mut raw)?;
        checksum(&raw)
    };
    if found == header.checksum { Ok(()) } else { Err(mutated()) }
}

/// The messages of an entry, verified. A raw payload of one frame is a slice of `value`; others
/// are decoded into an allocation of their own.
pub(super) fn decode(value: &Bytes, decode_limit_bytes: u64) -> Result<Vec<InlineMessage>> {
    let mut reader = Reader { rest: value };
    let [_, zeros @ ..]: [u8; 4] = reader.array()?;
    let count = u32::from_le_bytes(reader.array()?) as usize;
    if zeros != [0; 3] || count == 0 || count > value.len() {
        return Err(damaged("inline entry: bad prefix"));
    }
    let mut messages = Vec::new();
    for _ in 0..count {
        messages.push(decode_block(value, &mut reader, decode_limit_bytes)?);
    }
    if !reader.rest.is_empty() {
        return Err(damaged("inline entry: bytes after its last block"));
    }
    Ok(messages)
}

fn decode_block(
    value: &Bytes,
    reader: &mut Reader<'_>,
    decode_limit_bytes: u64,
) -> Result<InlineMessage> {
    let block = reader.rest;
    let run = u32::from_le_bytes(reader.array()?);
    let headers_bytes = u32::from_le_bytes(reader.array()?) as usize;
    let headers = reader.take(headers_bytes)?;
    let covered = block.get(..BLOCK_BYTES + headers_bytes).unwrap_or_default();
    if u32::from_le_bytes(reader.array()?) != checksum(covered) {
        return Err(damaged("inline entry: checksum of a block's front does not match"));
    }
    let headers = decode_headers(headers)?;
    let (header, body) = frame(value, reader)?;
    let messages = u64::from(run.max(header.rows));
    let message_bytes = (body.len() as u64).checked_div(messages).unwrap_or(u64::MAX);
    if header.count == 1 && header.codec == Codec::Raw && message_bytes <= decode_limit_bytes {
        let incoming = in_place(value, header, body, run)?;
        return Ok(InlineMessage { incoming, headers });
    }
    if run != 1 {
        return Err(damaged("inline entry: a run that is coded or in several frames"));
    }
    let mut group = Assembly::new(&header, decode_limit_bytes)?;
    let mut complete = group.accept(&header, body)?;
    while !complete {
        let (header, body) = frame(value, reader)?;
        complete = group.accept(&header, body)?;
    }
    Ok(InlineMessage { incoming: group.finish()?, headers })
}

/// The next frame: its header, and where its body lies.
fn frame<'a>(value: &Bytes, reader: &mut Reader<'a>) -> Result<(Header, &'a [u8])> {
    let body_bytes = u32::from_le_bytes(reader.array()?) as usize;
    let (header, consumed) = Header::decode(reader.rest)?;
    reader.take(consumed)?;
    let at = value.len() - reader.rest.len();
    let zeros = reader.take(at.next_multiple_of(body_alignment(body_bytes)) - at)?;
    if zeros.iter().any(|byte| *byte != 0) {
        return Err(damaged("inline entry: bytes between a frame's header and its body"));
    }
    Ok((header, reader.take(body_bytes)?))
}

/// A block whose payload stays where it lies.
fn in_place(value: &Bytes, header: Header, body: &[u8], run: u32) -> Result<Incoming> {
    let fits = header.rows == 1 && header.layout.is_none() && (1..=RUN_MESSAGES_MAX).contains(&run);
    if run != 1 && !(fits && body.len().is_multiple_of(run as usize)) {
        return Err(damaged("inline entry: bad messages of a run"));
    }
    if body.len() as u64 != header.total_bytes || checksum(body) != header.checksum {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("checksum or length of message {} does not match", header.id),
        ));
    }
    Ok(Incoming {
        id: header.id,
        rows: header.rows.max(run),
        payload: value.slice_ref(body),
        layout: header.layout,
        frames_count: 1,
    })
}

fn encode_headers(out: &mut Vec<u8>, headers: &Headers) -> Result<()> {
    if headers.is_empty() {
        return Ok(());
    }
    let too_many = |_| Error::new(ErrorKind::InvalidHeaders, "more than 65,535 message headers");
    let too_long = |_| Error::new(ErrorKind::InvalidHeaders, "message header exceeds its limit");
    let count = u16::try_from(headers.iter().count()).map_err(too_many)?;
    out.extend_from_slice(&count.to_le_bytes());
    for (key, value) in headers.iter() {
        out.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_le_bytes());
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(&u32::try_from(value.len()).map_err(too_long)?.to_le_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    Ok(())
}

fn decode_headers(bytes: &[u8]) -> Result<Headers> {
    if bytes.is_empty() {
        return Ok(Headers::empty());
    }
    let mut reader = Reader { rest: bytes };
    let count = u16::from_le_bytes(reader.array()?);
    let mut pairs = Vec::new();
    for _ in 0..count {
        let key_bytes = u16::from_le_bytes(reader.array()?);
        let key = reader.text(usize::from(key_bytes))?;
        let value_bytes = u32::from_le_bytes(reader.array()?);
        let value = reader.text(value_bytes as usize)?;
        pairs.push((key, value));
    }
    Ok(Headers::received(pairs))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use crate::frame::ProducerId;

    const LIMIT: u64 = 1 << 20;

    fn id(seq: u64) -> MessageId {
        MessageId { producer: ProducerId([7; 16]), epoch: 3, seq }
    }

    /// A run of `payloads`, then a message of its own.
    fn entry(payloads: &[&[u8]], layout: Option<&Layout>, headers: &Headers) -> Bytes {
        let mut entry = InlineEntry::with_room(4096, 2).unwrap();
        let run = Run { id: id(1), layout, headers, payloads, writable: true };
        assert_eq!(entry.push_run(&run).unwrap().frames_count, 1);
        let payload = Bytes::from_static(b"alone");
        let lone = Outgoing { id: id(9), rows: 1, layout: None, payload };
        entry.push(&lone, &Headers::empty(), Codec::Raw.into(), false, &mut Vec::new()).unwrap();
        let mut aligned = AlignedWriter::with_capacity(4096).unwrap();
        entry.finish().iter().for_each(|slice| aligned.extend(slice).unwrap());
        aligned.finish()
    }

    fn payloads() -> Vec<Vec<u8>> {
        (0..5_u8).map(|number| (0..128).map(|at| number.wrapping_mul(31) ^ at).collect()).collect()
    }

    #[test]
    fn a_run_is_read_as_rows() {
        let owned = payloads();
        let slices: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        let headers = Headers::new(vec![("a".to_owned(), "b".to_owned())]).unwrap();
        for layout in [None, Some(Layout::new("float32", 4, vec![32]).unwrap())] {
            let read = decode(&entry(&slices, layout.as_ref(), &headers), 128).unwrap();
            let [run, lone] = read.as_slice() else { panic!("{} blocks", read.len()) };
            assert_eq!((run.incoming.id, run.incoming.rows), (id(1), 5));
            assert_eq!((&run.headers, run.incoming.payload.as_ref()), (&headers, &*owned.concat()));
            assert_eq!(run.incoming.payload.as_ptr().align_offset(64), 0);
            let shape = run.incoming.layout.as_ref().map(|layout| layout.shape().to_vec());
            assert_eq!(shape, layout.map(|_| vec![5, 32]));
            assert_eq!((lone.incoming.id, lone.incoming.rows), (id(9), 1));
        }
    }

    #[test]
    fn a_message_of_a_run_has_a_limit() {
        let owned = payloads();
        let slices: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        assert!(decode(&entry(&slices, None, &Headers::empty()), 127).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let owned = payloads();
        let slices: Vec<&[u8]> = owned.iter().map(Vec::as_slice).collect();
        for layout in [None, Some(Layout::new("uint8", 1, vec![128]).unwrap())] {
            let whole = entry(&slices, layout.as_ref(), &Headers::empty());
            // The first byte is the kind, which its reader has looked at.
            for bit in 8..8 * whole.len() {
                let mut flipped = AlignedWriter::with_capacity(whole.len()).unwrap();
                flipped.extend(&whole).unwrap();
                let byte = whole.get(bit / 8).unwrap() ^ (1 << (bit % 8));
                flipped.overwrite(bit / 8, &[byte]);
                assert!(decode(&flipped.finish(), LIMIT).is_err(), "bit {bit}");
            }
            for length in 1..whole.len() {
                assert!(decode(&whole.slice(..length), LIMIT).is_err(), "{length} bytes");
            }
        }
    }
}
