"""Frames from Python: what the bridge does for each payload, and the reader without the core."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vecmq._native import GroupAssembler, Payload, make_frames
from vecmq._payload import normalise
from vecmq.reader import Reader
from vector_tools import KIB, MIB, Vector, note_bytes, sparse, vector

pytestmark = pytest.mark.benchmark(group="frame")

LIMIT_BYTES = 1 << 30
SIZES = pytest.mark.parametrize("size_bytes", [KIB, 64 * KIB, 16 * MIB])
CODED = pytest.mark.parametrize("codec", ["raw", "zstd", "planes", "pk3"])

# zstd is for sparse data; on dense floats it saves nothing.
MAKERS = {"raw": vector, "zstd": sparse, "planes": vector, "pk3": vector}

Frames = list[tuple[list[tuple[str, str]], Payload]]


def frames_of(payload: Vector, codec: str) -> Frames:
    view, dtype, itemsize, shape, _ = normalise(payload)
    return make_frames(view, dtype, itemsize, shape, bytes(16), 1, 1, MIB, codec)


def assembled(frames: Frames) -> Payload:
    assembler = GroupAssembler(LIMIT_BYTES)
    whole = None
    for fields, body in frames:
        whole = assembler.accept(dict(fields), body)
    assert whole is not None
    return whole[0]


@CODED
@SIZES
def test_encode(benchmark: BenchmarkFixture, size_bytes: int, codec: str) -> None:
    payload = MAKERS[codec](size_bytes)
    frames = benchmark(frames_of, payload, codec)
    assert memoryview(assembled(frames)) == payload.view(np.uint8).data
    note_bytes(benchmark, size_bytes)


@CODED
@SIZES
def test_decode(benchmark: BenchmarkFixture, size_bytes: int, codec: str) -> None:
    payload = MAKERS[codec](size_bytes)
    whole = benchmark(assembled, frames_of(payload, codec))
    assert memoryview(whole) == payload.view(np.uint8).data
    note_bytes(benchmark, size_bytes)


def test_decode_without_the_core(benchmark: BenchmarkFixture) -> None:
    """Its price for needing nothing of ours; the checksum alone is a loop in Python."""
    payload = vector(64 * KIB)
    [(fields, body)] = frames_of(payload, "planes")

    def decode() -> bytes:
        message = Reader(LIMIT_BYTES).accept(dict(fields), body)
        assert message is not None
        return bytes(message.payload)

    assert benchmark(decode) == payload.tobytes()
    note_bytes(benchmark, 64 * KIB)
