"""What each codec makes of your own arrays: ratio and speed, one thread, bit-equal or an error."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich import box
from rich.table import Table

from vecmq._native import GroupAssembler, make_frames
from vecmq._options import FIXED_CODECS
from vecmq._payload import Normalised, normalise
from vecmq.bench.report import add_table
from vecmq.errors import ConfigError, CorruptError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

__all__ = ["CODECS", "CodecRow", "measure", "read_arrays", "show", "to_values"]

CODECS: Final = FIXED_CODECS
MIB: Final = 1 << 20
# What JetStream's frames carry at most by default.
CHUNK_BYTES: Final = MIB
REPEATS: Final = 5
# Less is over before a clock could tell.
BYTES_MIN: Final = MIB


@dataclass(frozen=True, slots=True)
class CodecRow:
    """One codec on one array.

    Attributes:
        name: Of the array.
        dtype: Its dtype.
        payload_bytes: Bytes of the array.
        codec: The codec.
        wire_bytes: Bytes of all frames with their headers; without headers for foreign codecs.
        encode_bytes_per_s: Payload bytes a second into frames (median of 5).
        decode_bytes_per_s: The same out of frames.
    """

    name: str
    dtype: str
    payload_bytes: int
    codec: str
    wire_bytes: int
    encode_bytes_per_s: float
    decode_bytes_per_s: float

    @property
    def ratio(self) -> float:
        """Bytes on the wire a byte of payload."""
        return self.wire_bytes / self.payload_bytes


def read_arrays(path: Path) -> list[tuple[str, NDArray[Any]]]:
    """Read one .npy file, or all of a directory.

    Args:
        path: File or directory.

    Returns:
        (name, array), by name.

    Raises:
        ConfigError: There is none, one cannot be read, or one is empty.
    """
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"path: expected .npy files in {path}, got none")
    arrays = []
    for file in files:
        try:
            array = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"path: cannot read {file} as .npy: {error}") from error
        if array.nbytes == 0:
            raise ConfigError(f"path: expected at least one element in {file}, got none")
        arrays.append((file.name, np.ascontiguousarray(array)))
    return arrays


def measure(
    arrays: Sequence[tuple[str, NDArray[Any]]], progress: Callable[[str], None]
) -> list[CodecRow]:
    """Encode and decode every array with every codec, and with python-zstandard.

    Args:
        arrays: (name, array).
        progress: Called with a text before each step.

    Returns:
        Rows, by array, then codec.

    Raises:
        CorruptError: What came back is not what was given.
        UnsupportedDTypeError: An array cannot be published at all.
    """
    rows = []
    for name, array in arrays:
        normal = normalise(array)
        for codec in CODECS:
            progress(f"{name}, {codec}")
            rows.append(_row(name, array, codec, _ours(normal, codec)))
        for level in (1, 3):
            codec = f"python-zstandard level {level}"
            progress(f"{name}, {codec}")
            rows.append(_row(name, array, codec, _theirs(array, level)))
    return rows


def show(console: Console, rows: Sequence[CodecRow]) -> None:
    """Print the table.

    Args:
        console: Where data goes.
        rows: Rows.
    """
    table = Table(
        title="Codecs, one thread, every bit compared",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("array", no_wrap=True)
    table.add_column("codec", no_wrap=True)
    for column in ("wire /\npayload", "encode\nMB/s", "decode\nMB/s"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = ""
    for row in rows:
        is_first = row.name != shown
        if is_first and shown:
            table.add_section()
        shown = row.name
        table.add_row(
            f"{row.name} {row.dtype} {row.payload_bytes / MIB:.1f} MB" if is_first else "",
            row.codec,
            f"{row.ratio:.3f}",
            f"{row.encode_bytes_per_s / MIB:,.0f}",
            f"{row.decode_bytes_per_s / MIB:,.0f}",
        )
    add_table(console, table)
    console.print(
        f"frames of at most {CHUNK_BYTES // MIB} MiB; wire: with headers and checksums; the "
        "median of 5; an array below 1 MiB is encoded again until 1 MiB is done",
        highlight=False,
    )


def to_values(rows: Sequence[CodecRow]) -> list[dict[str, Any]]:
    """Give rows as JSON values.

    Args:
        rows: Rows.

    Returns:
        A dict each.
    """
    return [asdict(row) | {"ratio": row.ratio} for row in rows]


# Encodes once and gives the wire bytes; decodes once what was encoded and gives the payload.
_Codec = tuple[Callable[[], int], Callable[[], bytes | memoryview]]


def _row(name: str, array: NDArray[Any], codec: str, work: _Codec) -> CodecRow:
    encode, decode = work
    wire_bytes = encode()
    if bytes(decode()) != array.tobytes():
        raise CorruptError(f"{name}, {codec}: what was decoded is not what was encoded")
    return CodecRow(
        name=name,
        dtype=str(array.dtype),
        payload_bytes=array.nbytes,
        codec=codec,
        wire_bytes=wire_bytes,
        encode_bytes_per_s=_speed(encode, array.nbytes),
        decode_bytes_per_s=_speed(decode, array.nbytes),
    )


def _speed(work: Callable[[], object], size_bytes: int) -> float:
    times = -(-BYTES_MIN // size_bytes)
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(times):
            work()
        taken.append((time.perf_counter() - started) / times)
    return size_bytes / statistics.median(taken)


def _ours(normal: Normalised, codec: str) -> _Codec:
    producer = uuid.uuid4().bytes
    frames: list[tuple[dict[str, str], Any]] = []

    def encode() -> int:
        cut = make_frames(
            normal.view, normal.dtype, normal.itemsize, normal.shape, producer, 1, 1,
            CHUNK_BYTES, codec,
        )  # fmt: skip
        frames[:] = [(dict(pairs), body) for pairs, body in cut]
        return sum(
            len(body) + sum(len(key) + len(value) + 4 for key, value in fields.items()) + 12
            for fields, body in frames
        )

    def decode() -> memoryview:
        assembler = GroupAssembler(normal.view.nbytes)
        for fields, body in frames:
            group = assembler.accept(fields, body)
            if group is not None:
                return memoryview(group[0])
        raise CorruptError("the frames make no whole group")

    return encode, decode


def _theirs(array: NDArray[Any], level: int) -> _Codec:
    import zstandard

    compressor, decompressor = zstandard.ZstdCompressor(level), zstandard.ZstdDecompressor()
    data = array.tobytes()
    done = [b""]

    def encode() -> int:
        done[0] = compressor.compress(data)
        return len(done[0])

    return encode, lambda: decompressor.decompress(done[0])
