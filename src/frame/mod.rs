//! Frames: plan, header, codec, checksum, assembler. Pure: no IO and no clock.
//!
//! A payload is cut into chunks ([`Plan`]), each chunk is coded ([`Codec`]) and gets a [`Header`];
//! the two are a [`Frame`]. The frames of one message are a group; an [`Assembly`] puts them
//! together again, straight into one aligned allocation. Nothing that comes in is trusted: lengths
//! are checked before they allocate, and the checksum of every chunk is verified.

mod aligned;
mod assembler;
mod auto;
mod codec;
#[cfg(feature = "nats")]
mod gathered;
mod header;
mod headers;
mod id;
mod join;
mod layout;
mod message;
mod pk3;
mod plan;
mod planes;
mod simd;
mod text;

#[cfg(feature = "queue")]
pub(crate) use aligned::{AlignedBuffer, AlignedWriter};
pub use assembler::{Assembler, Assembly, decode_single};
pub use auto::{AutoCodecs, CodecOption, Decision, Link, Why};
#[cfg(feature = "queue")]
pub(crate) use codec::checksum_of;
pub use codec::{Codec, Coding, checksum, decode_into, encode};
#[cfg(feature = "nats")]
pub(crate) use gathered::Keeping;
#[cfg(feature = "nats")]
pub use gathered::{Frames, Gathered};
pub use header::{Frame, Header, WIRE_VERSION};
pub use headers::Headers;
pub use id::{MessageId, ProducerId};
pub use join::{join_into, joined_bytes};
pub use layout::Layout;
pub use message::{ChunkSums, Incoming, Outgoing};
pub use plan::{CHUNK_BYTES_MAX, MAX_FRAMES, Plan};
