"""What codecs make of real embeddings on one core, against python-zstandard level 3.

    python benches/nats_goals/codec_rows.py [--rounds N]

Messages of 256 KiB, one chunk each. A side of vecmq is whole frames: codec, checksum and headers
on the way in; headers, codec, checksum and assembly on the way out. The other is zstd on the raw
bytes, without a checksum. The two take turns at every chunk, in one thread; times are the thread's
processor time. The best of the rounds counts for each chunk and side, since the others measure what
the neighbours do to the caches; a figure is the ratio of the sums. Every bit is compared.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import zstandard

from vecmq._native import GroupAssembler, make_frames
from vecmq._payload import normalise
from vecmq.demo import vectors

CHUNK_BYTES: Final = 256 << 10
SET_BYTES: Final = 4 << 20
LEVEL: Final = 3
ROUNDS: Final = 50

Side = Literal["<=", ">="]
# Bytes a byte, and how many times as fast as the peer on the way in and out.
LIMITS: Final[dict[str, tuple[float, Side]]] = {
    "planes-f32-bytes": (0.85, "<="),
    "planes-f32-encode": (2.0, ">="),
    "planes-f32-decode": (3.0, ">="),
    "planes-bf16-bytes": (0.685, "<="),
    "planes-bf16-encode": (2.0, ">="),
    "planes-bf16-decode": (3.0, ">="),
    "pk3-f32-bytes": (0.86, "<="),
    "pk3-f32-encode": (5.0, ">="),
    "pk3-f32-decode": (6.0, ">="),
    "pk3-bf16-bytes": (0.71, "<="),
    "pk3-bf16-encode": (5.0, ">="),
    "pk3-bf16-decode": (6.0, ">="),
}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Times one call.

    Args:
        work: The call.

    Returns:
        Seconds of processor time, and what it gave.
    """
    started = time.thread_time()
    outcome = work()
    return time.thread_time() - started, outcome


def embeddings(name: str) -> np.ndarray[Any, Any]:
    """Loads the demo's vectors.

    Args:
        name: "f32" or "bf16".

    Returns:
        4 MiB of them, C-contiguous.
    """
    whole = vectors.load().vectors
    if name == "bf16":
        whole = whole.astype(ml_dtypes.bfloat16)
    return np.ascontiguousarray(whole[: SET_BYTES // (whole.shape[1] * whole.itemsize)])


@dataclass(slots=True)
class Best:
    """Shortest times of one chunk, in seconds."""

    encode: float = math.inf
    decode: float = math.inf

    def take(self, encode: float, decode: float) -> None:
        """Takes one round.

        Args:
            encode: Seconds.
            decode: Seconds.
        """
        self.encode, self.decode = min(self.encode, encode), min(self.decode, decode)


def measure_chunk(chunk: np.ndarray[Any, Any], codec: str, rounds: int) -> tuple[Best, Best, int]:
    """Measures one chunk.

    Args:
        chunk: The message.
        codec: Of vecmq.
        rounds: How often.

    Returns:
        vecmq, the peer, bytes of vecmq's body.

    Raises:
        AssertionError: What came back is not what was given.
    """
    normal, data = normalise(chunk), chunk.tobytes()
    packer, unpacker = zstandard.ZstdCompressor(LEVEL), zstandard.ZstdDecompressor()
    parts = (normal.view, normal.dtype, normal.itemsize, normal.shape, bytes(16), 1, 1, CHUNK_BYTES)
    ours, theirs = Best(), Best()
    body: Any = b""
    for _ in range(rounds):
        encode, ((pairs, body),) = timed(lambda: make_frames(*parts, codec))
        packing, packed = timed(lambda: packer.compress(data))
        fields = dict(pairs)
        decode, group = timed(
            lambda fields=fields, body=body: GroupAssembler(CHUNK_BYTES).accept(fields, body)
        )
        unpacking, unpacked = timed(lambda packed=packed: unpacker.decompress(packed))
        assert bytes(group[0]) == data == unpacked
        ours.take(encode, decode)
        theirs.take(packing, unpacking)
    return ours, theirs, len(body)


def measure_set(name: str, codec: str, rounds: int) -> dict[str, float]:
    """Measures one codec on one set.

    Args:
        name: Of the set.
        codec: Of vecmq.
        rounds: How often.

    Returns:
        Three figures, by the names of `LIMITS`.

    Raises:
        AssertionError: What came back is not what was given.
    """
    array = embeddings(name)
    rows = CHUNK_BYTES // (array.shape[1] * array.itemsize)
    chunks = [array[at : at + rows] for at in range(0, len(array), rows)]
    ours, theirs, sizes = zip(
        *(measure_chunk(chunk, codec, rounds) for chunk in chunks), strict=True
    )
    encode, decode = (
        sum(getattr(one, way) for one in theirs) / sum(getattr(one, way) for one in ours)
        for way in ("encode", "decode")
    )
    return {
        f"{codec}-{name}-bytes": sum(sizes) / array.nbytes,
        f"{codec}-{name}-encode": encode,
        f"{codec}-{name}-decode": decode,
    }


def row(name: str, figure: float) -> str:
    """Writes one row.

    Args:
        name: One of `LIMITS`.
        figure: What was measured.

    Returns:
        "name ratio goal met|missed".
    """
    limit, side = LIMITS[name]
    shown = round(figure, 3)
    is_met = shown <= limit if side == "<=" else shown >= limit
    return f"{name:<22}{shown:>9.3f}  {side} {limit:<6g}  {'met' if is_met else 'missed'}"


if find_spec("compare") is not None:  # called by `make bench-nats`, which has it
    _compare: Any = importlib.import_module("compare")

    def _group(codec: str, name: str) -> Any:
        def measure(context: Any) -> dict[str, Any]:
            figures = measure_set(name, codec, max(ROUNDS, context.rounds))
            return {name: _compare.Figure(value) for name, value in figures.items()}

        return _compare.Group(
            tuple(key for key in LIMITS if key.startswith(f"{codec}-{name}-")), measure
        )

    GROUPS: Any = [_group(codec, name) for codec in ("planes", "pk3") for name in ("f32", "bf16")]
    GOALS: Any = {
        name: _compare.Goal(limit, side, digits=3) for name, (limit, side) in LIMITS.items()
    }


def main() -> int:
    """Measures and prints.

    Returns:
        Exit code: 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted rounds")
    rounds = parser.parse_args().rounds
    for codec in ("planes", "pk3"):
        for name in ("f32", "bf16"):
            for key, figure in measure_set(name, codec, rounds).items():
                sys.stdout.write(row(key, figure) + "\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
