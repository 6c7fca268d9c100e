"""The pure-Python reader against golden frames, and as the oracle of the core's encoder."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmq import _native
from vecmq._payload import normalise, to_array
from vecmq.errors import CorruptError, FrameError, IncompleteError, TooLargeError, UnsupportedError
from vecmq.reader import Reader, crc32c, decode_body, read_fields, read_header

VECTORS = Path(__file__).parent / "vectors"
GOLDEN = [
    case
    for name in ("frames-v1.json", "frames-v1-codecs.json")
    for case in json.loads((VECTORS / name).read_text())
]
CODECS = ("raw", "zstd", "planes", "pk3", "lz4")
DTYPES: list[Any] = [
    *("float64", "float32", "float16", "int8", "int16", "int32", "int64", "uint8", "bool"),
    ml_dtypes.bfloat16,
]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_frames(case: dict[str, Any]) -> None:
    by_fields, by_header = Reader(), Reader()
    for frame in case["frames"]:
        body, binary = bytes.fromhex(frame["body"]), bytes.fromhex(frame["header"])
        header, taken = read_header(binary + b"body")
        assert taken == len(binary)
        assert header == read_fields(frame["fields"])
        assert header.encode() == binary
        one, other = by_fields.accept(frame["fields"], body), by_header.accept_frame(header, body)
    assert one is not None
    assert one == other
    assert bytes(one.payload) == bytes.fromhex(case["payload"])
    shape = None if case["shape"] is None else tuple(case["shape"])
    assert (one.id, one.rows, one.dtype, one.shape) == (
        *(case["id"], case["rows"], case["dtype"]),
        shape,
    )


def frames_of(payload: object, codec: str, chunk_bytes: int) -> list[tuple[dict[str, str], bytes]]:
    view, dtype, itemsize, shape, _ = normalise(payload)
    made = _native.make_frames(
        view, dtype, itemsize, shape, bytes(range(16)), 1, 2, chunk_bytes, codec
    )
    return [(dict(fields), bytes(body)) for fields, body in made]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of every dtype, of 0 to 5 dimensions, C-contiguous or not."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=5)))
    seed = draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape, dtype=int))
    if dtype == np.bool_ or draw(st.booleans()):
        array = rng.integers(0, 2, count).astype(dtype)
    else:
        array = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()
    array = array.reshape(shape)
    order = draw(st.sampled_from(["C", "F", "reversed", "strided"]))
    if order == "F":
        return np.asfortranarray(array) if array.ndim else array
    if order == "reversed":
        return array.T
    if order == "strided" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    return array


@given(
    array=arrays(),
    codec=st.sampled_from(CODECS),
    chunk_bytes=st.integers(64, 4000),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_reader_decodes_what_the_core_encodes(
    array: np.ndarray[Any, Any], codec: str, chunk_bytes: int, shuffle: random.Random
) -> None:
    frames = frames_of(array, codec, chunk_bytes)
    repeated = [*frames, *frames[:2]]
    shuffle.shuffle(repeated)
    reader, assembler = Reader(), _native.GroupAssembler(1 << 30)
    messages, groups = [], []
    for fields, body in repeated:
        messages.append(reader.accept(fields, body))
        groups.append(assembler.accept(fields, body))
    message = next(message for message in messages if message is not None)
    group = next(group for group in groups if group is not None)
    got = to_array(message.payload, message.dtype or "uint8", message.shape or ())
    assert (got.dtype, got.shape) == (array.dtype, array.shape)
    assert got.tobytes() == array.tobytes()
    assert bytes(group[0]) == array.tobytes()
    assert group[1:] == (message.dtype, message.shape)


@given(data=st.binary(max_size=5000), codec=st.sampled_from(CODECS))
def test_plain_bytes(data: bytes, codec: str) -> None:
    reader = Reader()
    for payload in (data, bytearray(data), memoryview(data)):
        results = [reader.accept(*frame) for frame in frames_of(payload, codec, 700)]
        message = results[-1]
        assert message is not None
        assert (bytes(message.payload), message.dtype, message.shape) == (data, None, None)


@given(data=st.binary(max_size=9000))
def test_checksums_agree(data: bytes) -> None:
    ((fields, _),) = frames_of(data, "raw", 1 << 20)
    assert read_fields(fields).checksum == crc32c(data)


def test_a_large_array() -> None:
    values = np.random.default_rng(3).standard_normal((1024, 300), dtype=np.float32)
    for array in (values, values.astype(ml_dtypes.bfloat16), np.repeat(values, 3, axis=0)):
        for codec in CODECS:
            reader = Reader()
            frames = frames_of(array, codec, 1 << 20)
            results = [reader.accept(*frame) for frame in frames]
            assert results[-1] is not None
            assert bytes(results[-1].payload) == array.tobytes()


def test_every_codec_is_really_used() -> None:
    values = np.random.default_rng(3).standard_normal((100, 300), dtype=np.float32)
    for codec in CODECS:
        # Eight rows that are alike: what LZ4 and zstd find.
        array = values if codec in ("planes", "pk3") else np.repeat(values, 8, axis=0)
        for fields, _ in frames_of(array, codec, 1 << 20):
            assert read_fields(fields).codec == ("zstd1" if codec == "zstd" else codec)


@pytest.mark.parametrize("name", ["planes", "pk3", "pk3, 100 elements", "lz4 text"])
def test_damage_is_refused(name: str) -> None:
    case = next(case for case in GOLDEN if case["name"] == name)
    (frame,) = case["frames"]
    binary, body = bytes.fromhex(frame["header"]), bytes.fromhex(frame["body"])
    for bit in range(8 * len(binary)):
        damaged = bytearray(binary)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            read_header(damaged)
    for length in range(len(binary)):
        with pytest.raises(CorruptError):
            read_header(binary[:length])
    header, _ = read_header(binary)
    for length in range(len(body)):
        with pytest.raises(CorruptError):
            decode_body(header, body[:length])
    for name, value in frame["fields"].items():
        for changed in ("", value + "1", value[:-1] or "9", "x" * 2000):
            if changed != value:
                with pytest.raises(FrameError):
                    read_fields({**frame["fields"], name: changed})


def test_headers_that_lie() -> None:
    case = next(case for case in GOLDEN if case["name"] == "group of 3")
    header, _ = read_header(bytes.fromhex(case["frames"][0]["header"]))
    lies: list[dict[str, Any]] = [
        *({"index": 2**32 - 1}, {"index": 3}, {"count": 2}, {"count": 65_536}, {"offset": 1}),
        *({"chunk_bytes": 0}, {"chunk_bytes": 126}, {"total_bytes": 2**62}, {"rows": 9}),
        *({"shape": (2**62, 2**62, 0), "total_bytes": 0}, {"itemsize": 3}, {"itemsize": 0}),
        {"index": 2, "offset": 60, "chunk_bytes": 260},
    ]
    for lie in lies:
        with pytest.raises(CorruptError):
            read_header(replace(header, **lie).encode())


def test_a_body_is_one_zstd_frame() -> None:
    (frame,) = next(case for case in GOLDEN if case["name"] == "zstd1")["frames"]
    header, _ = read_header(bytes.fromhex(frame["header"]))
    body = bytes.fromhex(frame["body"])
    skippable = bytes.fromhex("502a4d180100000000")
    for more in (b"x", body, skippable):
        with pytest.raises(CorruptError):
            decode_body(header, body + more)


def test_groups_that_do_not_fit() -> None:
    case = next(case for case in GOLDEN if case["name"] == "group of 3")
    frames = [(frame["fields"], bytes.fromhex(frame["body"])) for frame in case["frames"]]
    reader = Reader()
    with pytest.raises(CorruptError):
        reader.accept(frames[0][0], b"short")
    reader.finish()  # a damaged frame begins no group
    assert reader.accept(*frames[0]) is None
    assert reader.accept(*frames[0]) is None
    with pytest.raises(IncompleteError, match=r"1 of 3 frames"):
        reader.finish()
    with pytest.raises(TooLargeError):
        Reader(limit_bytes=10).accept(*frames[0])
    fields = {**frames[0][0]}
    fields["Vecmq-Frame"] = fields["Vecmq-Frame"].replace("1;", "9;", 1)
    with pytest.raises(UnsupportedError):
        reader.accept(fields, frames[0][1])
