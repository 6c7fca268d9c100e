"""Decodes frames without the Rust core: the reference for other languages, and the tests' oracle.

Needs numpy and `zstandard`. Slow and plain on purpose; every rule of the wire format stands here
once, in the order in which a decoder meets it. Byte tables: `src/frame/header.rs` (binary form),
`src/frame/text.rs` (NATS header fields), `src/frame/planes.rs` and `src/frame/pk3.rs`; LZ4's block
format is its own, and its CRC-32C follows it.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from vecmq.errors import CorruptError, IncompleteError, TooLargeError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Header", "ReadMessage", "Reader", "crc32c", "decode_body", "read_fields", "read_header"]

WIRE_VERSION = 1
CODECS = ("raw", "zstd1", "planes", "pk3", "lz4")
FRAMES_MAX = 65_536
ROWS_MAX = 1_000_000
CHUNK_BYTES_MAX = 64 << 20
DIMS_MAX = 32
BLOCK_BYTES = 256 << 10
PACKED_ELEMENTS = 1 << 16
GROUP_ELEMENTS = 256
LIMIT_BYTES = 1 << 30
_FIXED = struct.Struct("<2sBB16sIQIIIQQIIHBB")
_DTYPE = re.compile(r"[a-z0-9_]{1,32}")
_NUMBER = re.compile(r"0|[1-9][0-9]*")
_HEX = re.compile(r"[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Header:
    """A frame header; the fields are those of the byte table in `src/frame/header.rs`."""

    codec: str
    producer: bytes
    epoch: int
    seq: int
    rows: int
    index: int
    count: int
    total_bytes: int
    offset: int
    chunk_bytes: int
    checksum: int
    itemsize: int
    dtype: str | None
    shape: tuple[int, ...] | None

    @property
    def is_manifest(self) -> bool:
        """True for the frame that ends its group."""
        return self.index + 1 == self.count

    @property
    def tile_bytes(self) -> int | None:
        """Raw bytes of every chunk of the group but the last; None: there is only one."""
        if not self.is_manifest:
            return self.chunk_bytes
        return self.offset // self.index if self.index else None

    @property
    def id(self) -> str:
        """The message id: producer, epoch and seq."""
        return f"{self.producer.hex()}-{self.epoch}-{self.seq}"

    def encode(self) -> bytes:
        """Return the binary form.

        Returns:
            The header's bytes, with its own checksum at the end.
        """
        name = (self.dtype or "").encode()
        shape = self.shape or ()
        fixed = _FIXED.pack(
            *(b"VQ", WIRE_VERSION, CODECS.index(self.codec), self.producer, self.epoch, self.seq),
            *(self.rows, self.index, self.count, self.total_bytes, self.offset),
            *(self.chunk_bytes, self.checksum, self.itemsize, len(name), len(shape)),
        )
        body = fixed + name + struct.pack(f"<{len(shape)}Q", *shape)
        return body + struct.pack("<I", crc32c(body))

    def validate(self) -> None:
        """Check everything that can be checked without the other frames.

        Raises:
            CorruptError: A field is outside its limits or contradicts another.
        """
        size = largest = self.total_bytes
        if self.dtype is not None and self.shape is not None:
            size = self.itemsize * math.prod(self.shape)
            largest = self.itemsize * math.prod(max(dim, 1) for dim in self.shape)
        rules = {
            "count": 1 <= self.count <= FRAMES_MAX,
            "index": self.index < self.count,
            "rows": 1 <= self.rows <= ROWS_MAX,
            "chunk bytes": self.chunk_bytes <= CHUNK_BYTES_MAX,
            "payload bytes": self.total_bytes < 1 << 63,
            "offset or chunk bytes": self._tiles(),
            "itemsize": (self.itemsize == 0) == (self.dtype is None) and self.itemsize <= 256,
            "dtype": self.dtype is None or _DTYPE.fullmatch(self.dtype) is not None,
            "dimensions": len(self.shape or ()) <= DIMS_MAX,
            "shape": size == self.total_bytes and largest < 1 << 63,
            # Without a dtype it is a pack of small messages: see `vecmq.pack_reader`.
            "packed rows": self.rows == 1 or (self.shape or (self.rows,))[0] == self.rows,
        }
        for name, holds in rules.items():
            if not holds:
                raise CorruptError(
                    f"frame header: bad {name} in frame {self.index} of {self.count}"
                )

    def _tiles(self) -> bool:
        """Chunks of one size tile the payload; the last may be shorter, none cuts an element."""
        tile = self.tile_bytes
        if tile is None:
            return self.offset == 0 and self.chunk_bytes == self.total_bytes
        last = self.total_bytes - (self.count - 1) * tile
        return (
            0 < tile <= CHUNK_BYTES_MAX
            and tile % (self.itemsize or 1) == 0
            and self.offset == self.index * tile
            and 0 < last <= tile
            and (not self.is_manifest or self.chunk_bytes == last)
        )


@dataclass(frozen=True, slots=True)
class ReadMessage:
    """A whole message.

    Attributes:
        id: Message id: producer, epoch and seq.
        payload: The bytes, read-only.
        dtype: dtype name; None for plain bytes.
        shape: Shape; None for plain bytes.
        rows: Messages in the payload: 1, the rows of a packed matrix, or without a dtype those of
            a pack, which `vecmq.pack_reader.unpack` takes apart.
    """

    id: str
    payload: memoryview
    dtype: str | None
    shape: tuple[int, ...] | None
    rows: int


def read_header(data: Buffer) -> tuple[Header, int]:
    """Read the binary form of a header from the front of `data`.

    Args:
        data: A frame as the queue stores it, or more.

    Returns:
        The header, and the number of bytes it took; the body begins there.

    Raises:
        CorruptError: No valid header stands there.
        UnsupportedError: A wire version or codec that this reader does not know.
    """
    view = memoryview(data).cast("B")
    if len(view) < _FIXED.size:
        raise CorruptError(f"frame header: {len(view)} bytes, expected at least {_FIXED.size}")
    magic, version, codec, *numbers, name_bytes, dims = _FIXED.unpack_from(view)
    if magic != b"VQ":
        raise CorruptError(f"frame header: magic {magic!r}, expected b'VQ'")
    _check_version(version)
    end = _FIXED.size + name_bytes + 8 * dims
    if len(view) < end + 4:
        raise CorruptError(f"frame header: {len(view)} bytes, expected {end + 4}")
    (stored,) = struct.unpack_from("<I", view, end)
    if crc32c(view[:end]) != stored:
        raise CorruptError("frame header: its checksum does not match")
    if codec >= len(CODECS):
        raise UnsupportedError(f"codec {codec}: this reader has {', '.join(CODECS)}")
    itemsize = numbers[-1]
    dtype = bytes(view[_FIXED.size : _FIXED.size + name_bytes]).decode("ascii", "replace")
    shape = struct.unpack_from(f"<{dims}Q", view, _FIXED.size + name_bytes)
    if itemsize == 0 and (dtype or shape):
        raise CorruptError("frame header: plain bytes have neither dtype nor shape")
    array = (dtype, shape) if itemsize else (None, None)
    header = Header(*(CODECS[codec], *numbers, *array))
    header.validate()
    return header, end + 4


def read_fields(fields: Mapping[str, str]) -> Header:
    """Read a header from NATS header fields.

    Args:
        fields: At least "Vecmq-Frame"; "Vecmq-Dtype" and "Vecmq-Shape" for an array.

    Returns:
        The header.

    Raises:
        CorruptError: The fields are no valid header.
        UnsupportedError: A wire version or codec that this reader does not know.
    """
    parts = fields.get("Vecmq-Frame", "").split(";")
    if len(parts) != 14:
        raise CorruptError(f"frame fields: {len(parts)} parts in Vecmq-Frame, expected 14")
    version, codec, producer, *texts, checksum, itemsize, own = parts
    _check_version(_number(version))
    if codec not in CODECS:
        raise UnsupportedError(f"codec {codec!r}: this reader has {', '.join(CODECS)}")
    if not re.fullmatch("[0-9a-f]{32}", producer):
        raise CorruptError(f"frame fields: producer {producer!r}")
    if not _HEX.fullmatch(checksum) or not _HEX.fullmatch(own):
        raise CorruptError("frame fields: a checksum is not 8 hexadecimal digits")
    dtype, shape = fields.get("Vecmq-Dtype"), fields.get("Vecmq-Shape")
    dims = None
    if shape is not None:
        dims = () if shape == "()" else tuple(_number(dim) for dim in shape.split(","))
    if (dtype is None) != (dims is None):
        raise CorruptError("frame fields: dtype and shape come together")
    numbers: list[Any] = [_number(text) for text in texts]
    array = (int(checksum, 16), _number(itemsize), dtype, dims)
    header = Header(*(codec, bytes.fromhex(producer), *numbers, *array))
    try:
        encoded = header.encode()
    except (struct.error, UnicodeEncodeError) as error:
        raise CorruptError(f"frame fields: a number is too large: {error}") from error
    if struct.unpack("<I", encoded[-4:])[0] != int(own, 16):
        raise CorruptError("frame fields: the header's checksum does not match")
    header.validate()
    return header


def decode_body(header: Header, body: Buffer) -> bytes:
    """Decode one frame's body to its raw chunk, and check it.

    Args:
        header: The frame's header.
        body: The frame's body.

    Returns:
        The chunk's raw bytes.

    Raises:
        CorruptError: The body does not decode to what the header says.
    """
    view = memoryview(body).cast("B")
    if header.codec == "raw":
        chunk = bytes(view)
    elif header.codec == "zstd1":
        chunk = _unzstd(view, header.chunk_bytes)
    elif header.codec == "planes":
        chunk = _join_planes(view, max(header.itemsize, 1), header.chunk_bytes)
    elif header.codec == "pk3":
        chunk = _unpack_exponents(view, header.itemsize, header.chunk_bytes)
    else:
        chunk = _unlz4(view, header.chunk_bytes)
    if len(chunk) != header.chunk_bytes or crc32c(chunk) != header.checksum:
        raise CorruptError(f"frame {header.index} of {header.id}: its checksum does not match")
    return chunk


@dataclass(slots=True)
class _Group:
    first: Header
    chunks: dict[int, tuple[Header, bytes]] = field(default_factory=dict)

    def check(self, header: Header) -> None:
        """Refuse a frame that contradicts the ones before it."""
        own = ("index", "offset", "chunk_bytes", "checksum", "codec")
        common = {name: getattr(self.first, name) for name in own}
        same_tiles = header.tile_bytes == self.first.tile_bytes
        if not same_tiles or replace(header, **common) != self.first:
            raise CorruptError(f"frame {header.index} of {header.id} contradicts its group")
        known = self.chunks.get(header.index)
        if known is not None and (known[0].checksum, known[0].chunk_bytes) != (
            header.checksum,
            header.chunk_bytes,
        ):
            raise CorruptError(f"frame {header.index} of {header.id} came twice, with two contents")

    def join(self) -> bytes:
        """The payload; of one tile size, the chunks lie end to end."""
        return b"".join(self.chunks[index][1] for index in range(self.first.count))


class Reader:
    """Puts the frames of many groups together.

    Args:
        limit_bytes: Largest message, in bytes.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._groups: dict[str, _Group] = {}

    def accept(self, fields: Mapping[str, str], body: Buffer) -> ReadMessage | None:
        """Take one frame as it came over NATS.

        Args:
            fields: The message's NATS headers.
            body: The message's payload.

        Returns:
            The message, when this was the last frame missing; else None.

        Raises:
            CorruptError: The frame is damaged or contradicts its group.
            UnsupportedError: A wire version or codec that this reader does not know.
            TooLargeError: The message is over the limit.
        """
        return self.accept_frame(read_fields(fields), body)

    def accept_frame(self, header: Header, body: Buffer) -> ReadMessage | None:
        """Take one frame whose header was read already; as `accept`.

        Args:
            header: The frame's header.
            body: The frame's body.

        Returns:
            The message, when this was the last frame missing; else None.

        Raises:
            CorruptError: The frame is damaged or contradicts its group.
            TooLargeError: The message is over the limit.
        """
        if header.total_bytes > self.limit_bytes:
            raise TooLargeError(
                f"a message of {header.total_bytes} bytes exceeds the limit of "
                f"{self.limit_bytes} bytes"
            )
        group = self._groups.get(header.id) or _Group(header)
        group.check(header)
        group.chunks[header.index] = (header, decode_body(header, body))
        self._groups[header.id] = group
        if len(group.chunks) < header.count:
            return None
        del self._groups[header.id]
        payload = memoryview(group.join())
        return ReadMessage(header.id, payload, header.dtype, header.shape, header.rows)

    def finish(self) -> None:
        """Say that no more frames come.

        Raises:
            IncompleteError: Groups are not whole.
        """
        if self._groups:
            names = ", ".join(
                f"{name} ({len(group.chunks)} of {group.first.count} frames)"
                for name, group in self._groups.items()
            )
            raise IncompleteError(f"groups are not whole: {names}")


def _check_version(version: int) -> None:
    if version != WIRE_VERSION:
        raise UnsupportedError(f"wire version {version}, this reader reads {WIRE_VERSION}")


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or len(text) > 20:
        raise CorruptError(f"frame fields: {text!r} is no number")
    return int(text)


def _unzstd(view: memoryview, raw_bytes: int) -> bytes:
    """One zstd frame of exactly `raw_bytes`; the declared size is looked at before it allocates."""
    try:
        declared = zstandard.frame_content_size(view)
        if declared != raw_bytes:
            raise CorruptError(f"a zstd frame of {declared} bytes, expected {raw_bytes}")
        return zstandard.ZstdDecompressor().decompress(
            view, max_output_size=raw_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CorruptError(f"a zstd frame is damaged: {error}") from error


def _join_planes(view: memoryview, itemsize: int, raw_bytes: int) -> bytes:
    elements_bytes = raw_bytes - raw_bytes % itemsize
    block_bytes = BLOCK_BYTES - BLOCK_BYTES % itemsize
    out, place = [], 0
    for start in range(0, elements_bytes, block_bytes):
        count = min(block_bytes, elements_bytes - start) // itemsize
        table_end = place + 5 * itemsize
        if table_end > len(view):
            raise CorruptError("byte planes: cut short")
        table = list(struct.iter_unpack("<BI", view[place:table_end]))
        place = table_end
        planes = np.empty((itemsize, count), np.uint8)
        for plane, (mode, length) in zip(planes, table, strict=True):
            coded = view[place : place + length]
            place += length
            plane[:] = np.frombuffer(_plane(mode, coded, length, count), np.uint8)
        out.append(planes.T.tobytes())
    tail = bytes(view[place:])
    if len(tail) != raw_bytes - elements_bytes:
        raise CorruptError("byte planes: bad length of the tail")
    return b"".join([*out, tail])


def _plane(mode: int, coded: memoryview, length: int, count: int) -> bytes:
    if len(coded) == length:
        if mode == 0 and length == count:
            return bytes(coded)
        if mode == 1 and length == 1:
            return bytes(coded) * count
        if mode == 2:
            return _unzstd(coded, count)
    raise CorruptError("byte planes: bad mode or length of a plane")


def _unpack_exponents(view: memoryview, itemsize: int, raw_bytes: int) -> bytes:
    if itemsize not in (2, 4):
        raise CorruptError(f"packed exponents: elements of {itemsize} bytes, expected 2 or 4")
    elements = raw_bytes // itemsize
    out, place = [], 0
    for start in range(0, elements, PACKED_ELEMENTS):
        count = min(PACKED_ELEMENTS, elements - start)
        lanes = -(-(count % GROUP_ELEMENTS) // 8)
        codes_end = place + 5 + 3 * (count // GROUP_ELEMENTS * GROUP_ELEMENTS // 8 + lanes)
        low_end = codes_end + (itemsize - 1) * count
        if low_end > len(view):
            raise CorruptError("packed exponents: cut short")
        base, escapes_count = struct.unpack_from("<BI", view, place)
        codes = np.frombuffer(view[place + 5 : codes_end], np.uint8)
        escapes = np.frombuffer(view[low_end : low_end + escapes_count], np.uint8)
        exponents = _exponents(codes, lanes, base, escapes)
        if len(escapes) != escapes_count or (exponents[count:] != base).any():
            raise CorruptError("packed exponents: bad codes or escapes")
        place = low_end + escapes_count
        low = np.frombuffer(view[codes_end:low_end], np.uint8)
        words = low[(itemsize - 2) * count :].astype(f"<u{itemsize}")
        if itemsize == 4:
            words = words << 16 | np.frombuffer(low[: 2 * count], "<u2")
        words |= exponents[:count].astype(words.dtype) << (8 * itemsize - 8)
        # The sign back from the lowest bit to the highest.
        words = words >> 1 | words << (8 * itemsize - 1)
        out.append(words.tobytes())
    tail = bytes(view[place:])
    if len(tail) != raw_bytes - elements * itemsize:
        raise CorruptError("packed exponents: bad length of the tail")
    return b"".join([*out, tail])


def _exponents(
    codes: NDArray[np.uint8], lanes: int, base: int, escapes: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Exponents of whole groups, then of a short one whose codes have `lanes` bytes a bit."""
    found = []
    short = codes[len(codes) - 3 * lanes :]
    whole = codes[: len(codes) - 3 * lanes]
    for group in (whole.reshape(-1, 3, GROUP_ELEMENTS // 8), short.reshape(-1, 3, max(lanes, 1))):
        bits = np.unpackbits(group[..., None], axis=-1, bitorder="little")
        values = bits[:, 0] | bits[:, 1] << 1 | bits[:, 2] << 2
        escaped = values == 7
        values = values + np.uint8(base)
        count = int(escaped.sum())
        if count > len(escapes):
            raise CorruptError("packed exponents: fewer escapes than codes of one")
        values[escaped] = escapes[:count]
        escapes = escapes[count:]
        found.append(values.transpose(0, 2, 1).reshape(-1))
    if len(escapes):
        raise CorruptError("packed exponents: more escapes than codes of one")
    return np.concatenate(found)


def _unlz4(view: memoryview, raw_bytes: int) -> bytes:
    """One LZ4 block and its checksum: literals and matches by turns, literals at the end."""
    stored = bytes(view[-4:])
    view = view[:-4]
    if len(stored) < 4 or crc32c(view) != int.from_bytes(stored, "little"):
        raise CorruptError("LZ4 block: its checksum does not match")
    out, place = bytearray(), 0

    def extended(length: int) -> int:
        nonlocal place
        more = 255 if length == 15 else 0
        while more == 255:
            more = view[place]
            place += 1
            length += more
        return length

    try:
        while True:
            token = view[place]
            place += 1
            literals = extended(token >> 4)
            if place + literals > len(view) or len(out) + literals > raw_bytes:
                raise CorruptError("LZ4 block: bad literals")
            out += view[place : place + literals]
            place += literals
            if place == len(view):
                return bytes(out)
            distance = view[place] | view[place + 1] << 8
            place += 2
            length = extended(token & 15) + 4
            if not 0 < distance <= len(out) or len(out) + length > raw_bytes:
                raise CorruptError("LZ4 block: bad match")
            # A match may reach into what it makes.
            match = bytes(out[-distance:]) * (length // distance + 1)
            out += match[:length]
    except IndexError:
        raise CorruptError("LZ4 block: cut short") from None


# CRC-32C (Castagnoli), reflected. Many lanes of one length are run side by side with numpy and then
# joined pairwise: a checksum is linear, and appending zeros to a lane is a matrix.
_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 1024


def crc32c(data: Buffer) -> int:
    """CRC-32C of a buffer.

    Args:
        data: Any C-contiguous buffer.

    Returns:
        The checksum, 0 to 2**32 - 1.
    """
    values = np.frombuffer(data, np.uint8)
    if len(values) <= 2 * _LANE_BYTES:
        register = 0xFFFFFFFF
        table = _table().tolist()
        for byte in values.tolist():
            register = table[(register ^ byte) & 0xFF] ^ (register >> 8)
        return register ^ 0xFFFFFFFF
    lanes_count = 1 << (-(-len(values) // _LANE_BYTES) - 1).bit_length()
    # Zeros in front change nothing in a register that begins with 0.
    padded = np.zeros(lanes_count * _LANE_BYTES, np.uint8)
    padded[-len(values) :] = values
    columns = np.ascontiguousarray(padded.reshape(lanes_count, _LANE_BYTES).T)
    lanes = np.zeros(lanes_count, np.uint32)
    for column in columns:
        lanes = _table()[(lanes ^ column) & 0xFF] ^ (lanes >> 8)
    shift_bits = _LANE_BYTES.bit_length() - 1
    while len(lanes) > 1:
        lanes = _apply(_zeros_matrix(shift_bits), lanes[::2]) ^ lanes[1::2]
        shift_bits += 1
    start = np.array([0xFFFFFFFF], np.uint32)
    for bit in range(len(values).bit_length()):
        if len(values) >> bit & 1:
            start = _apply(_zeros_matrix(bit), start)
    return int(lanes[0] ^ start[0]) ^ 0xFFFFFFFF


@cache
def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


def _apply(matrix: NDArray[np.uint32], values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Multiply registers by a matrix over GF(2), given as what becomes of each bit."""
    out = np.zeros_like(values)
    for bit in range(32):
        out ^= np.where(values >> np.uint32(bit) & np.uint32(1), matrix[bit], np.uint32(0))
    return out


@cache
def _zeros_matrix(bit: int) -> NDArray[np.uint32]:
    """What appending 2**bit zero bytes does to each bit of a register."""
    if bit > 0:
        half = _zeros_matrix(bit - 1)
        return _apply(half, half)
    units: NDArray[Any] = np.uint32(1) << np.arange(32, dtype=np.uint32)
    step: NDArray[np.uint32] = _table()[units & 0xFF] ^ (units >> np.uint32(8))
    return step
