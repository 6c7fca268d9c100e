"""Codecs through both routes: what is used, what the receipt says, every bit compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest

import vecmq.sync
from vecmq._options import CODECS, FIXED_CODECS, Codec

RNG = np.random.default_rng(7)
DENSE = RNG.standard_normal((512, 300), dtype=np.float32)
REPEATED = np.repeat(DENSE[:8], 64, axis=0)
NOISE = np.frombuffer(RNG.bytes(1 << 20), np.float32)
# What each codec makes smaller.
SUITED: dict[str, np.ndarray[Any, Any]] = {
    "raw": DENSE,
    "zstd": REPEATED,
    "planes": DENSE,
    "pk3": DENSE.astype(ml_dtypes.bfloat16),
    "lz4": REPEATED,
}


def remote(mq: vecmq.sync.Handle, link_bytes_per_s: int) -> vecmq.NatsOptions:
    """The server of a handle, said to be behind a link of that speed."""
    server = mq.server
    assert server is not None
    return vecmq.NatsOptions(server.url, token=server.token, link_bytes_per_s=link_bytes_per_s)


def received(mq: vecmq.sync.Handle, topic: str, count: int) -> list[np.ndarray[Any, Any]]:
    with mq.subscribe(topic, "g") as subscriber:
        arrays: list[np.ndarray[Any, Any]] = []
        while len(arrays) < count:
            batch = subscriber.fetch(count, timeout_s=20)
            assert batch, f"{len(arrays)} of {count} came"
            arrays += [message.array() for message in batch]
            for message in batch:
                message.ack()
        return arrays


def equal(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def test_names_are_known_everywhere() -> None:
    assert get_args(Codec) == CODECS
    assert tuple(vecmq.build_info()["codecs"]) == FIXED_CODECS


@pytest.mark.parametrize("route", ["queue", "nats"])
@pytest.mark.parametrize("codec", FIXED_CODECS)
def test_every_codec_on_both_routes(tmp_path: Path, codec: Any, route: Any) -> None:
    small = SUITED[codec][:16]
    with vecmq.sync.open(tmp_path, codec=codec) as mq:
        publisher = mq.publisher("t")
        payloads = [SUITED[codec], small, NOISE]
        receipts = publisher.publish_many(payloads, route=route)
        packed = publisher.publish_rows(small, route=route)
        assert [receipt.codec for receipt in receipts[:2]] == [codec, codec]
        assert {receipt.codec_why for receipt in receipts[:2]} == {"asked for"}
        assert packed.codec == codec
        if codec != "raw":
            assert receipts[0].wire_bytes < 0.9 * receipts[0].payload_bytes
            assert receipts[2].codec == "raw"
            assert receipts[2].codec_why == "did not shrink"
        got = received(mq, "t", 3 + len(small))
        assert all(map(equal, got, [*payloads, *small]))


def test_a_publisher_has_a_codec_of_its_own(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, mode="queue", codec="planes") as mq:
        kinds: list[tuple[Any, Any]] = [(None, None), ("raw", None), ("zstd", None), ("zstd", 19)]
        text = b"a frame is a header and a coded chunk; " * 1000 + RNG.bytes(100)
        sizes = []
        for codec, codec_level in kinds:
            publisher = mq.publisher("t", codec=codec, codec_level=codec_level)
            receipt = publisher.publish(text if codec == "zstd" else DENSE)
            assert receipt.codec == (codec or "planes")
            sizes.append(receipt.wire_bytes)
        assert sizes[2] < 1000
        assert sizes[0] < sizes[1]


async def test_the_same_for_asyncio(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path, mode="queue", codec="zstd", codec_level=5) as mq:
        receipt = await mq.publisher("t").publish(REPEATED)
        other = await mq.publisher("t", codec="planes").publish(DENSE)
        assert (receipt.codec, other.codec) == ("zstd", "planes")
        assert "codec='planes'" in repr(other)


@pytest.mark.parametrize("mode", ["queue", "nats"])
def test_a_publish_has_a_codec_of_its_own(tmp_path: Path, mode: Any) -> None:
    with vecmq.sync.open(tmp_path, mode=mode, codec="planes") as mq:
        publisher = mq.publisher("t", codec="lz4")
        receipts = [
            publisher.publish(DENSE, codec="pk3"),
            publisher.publish(DENSE[0], codec="pk3"),
            publisher.publish_async(REPEATED, codec="zstd", codec_level=19).result(),
            *publisher.publish_many([DENSE, DENSE], codec="planes"),
            publisher.publish_rows(DENSE[:16], codec="raw"),
            publisher.publish(DENSE, codec="auto"),
            publisher.publish(REPEATED),
        ]
        used = [(receipt.codec, receipt.codec_why) for receipt in receipts]
        codecs = ("pk3", "pk3", "zstd", "planes", "planes", "raw")
        assert used[:6] == [(codec, "asked for") for codec in codecs]
        assert used[6:] == [("raw", "same host"), ("lz4", "asked for")]
        sent = [DENSE, DENSE[0], REPEATED, DENSE, DENSE, *DENSE[:16], DENSE, REPEATED]
        assert all(map(equal, received(mq, "t", len(sent)), sent))


def test_a_level_is_of_one_publish(tmp_path: Path) -> None:
    text = b"".join(f"{n * n} is the square of {n}; ".encode() for n in range(5000))
    with vecmq.sync.open(tmp_path, mode="queue") as mq:
        publisher = mq.publisher("t", codec="zstd", codec_level=19)
        hard, easy = publisher.publish(text), publisher.publish(text, codec="zstd")
        assert hard.wire_bytes < easy.wire_bytes < len(text)


async def test_a_publish_has_a_codec_of_its_own_in_asyncio(tmp_path: Path) -> None:
    async with vecmq.open(tmp_path, mode="queue") as mq:
        publisher = mq.publisher("t")
        receipts = [
            await publisher.publish(DENSE, codec="pk3"),
            await publisher.publish(DENSE, codec="planes", expected_last_seq=1),
            await (await publisher.publish_async(REPEATED, codec="zstd", codec_level=2)),
            *await publisher.publish_many([DENSE], codec="planes"),
            await publisher.publish_rows(DENSE[:16], codec="pk3"),
            await publisher.publish(DENSE),
        ]
        codecs = [receipt.codec for receipt in receipts]
        assert codecs == ["pk3", "planes", "zstd", "planes", "pk3", "raw"]


BAD: list[tuple[Any, Any]] = [
    ("gzip", None), ("", None), (3, None), ("planes", 1), (None, 1), ("auto", 1),
    ("zstd", 0), ("zstd", 20), ("zstd", 1.0), ("zstd", True),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "codec_level"), BAD)
async def test_a_bad_codec_of_a_publish_is_refused(
    tmp_path: Path, codec: Any, codec_level: Any
) -> None:
    bad = {"codec": codec, "codec_level": codec_level}
    with vecmq.sync.open(tmp_path / "sync", mode="queue") as mq:
        blocking = mq.publisher("t")
        for call in (blocking.publish, blocking.publish_async, blocking.publish_rows):
            with pytest.raises(vecmq.ConfigError):
                call(DENSE, **bad)
        for payloads in ([DENSE, DENSE], []):
            with pytest.raises(vecmq.ConfigError):
                blocking.publish_many(payloads, **bad)
        assert blocking.publish(b"first").seq == 1
    async with vecmq.open(tmp_path / "aio", mode="queue") as awaited:
        publisher = awaited.publisher("t")
        for send in (publisher.publish, publisher.publish_async, publisher.publish_rows):
            with pytest.raises(vecmq.ConfigError):
                await send(DENSE, **bad)
        with pytest.raises(vecmq.ConfigError):
            await publisher.publish_many([DENSE, DENSE], **bad)
        assert (await publisher.publish(b"first")).seq == 1


def test_auto_is_raw_where_nothing_is_gained(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path, codec="auto") as mq:
        publisher = mq.publisher("t")
        for route in ("queue", "nats"):
            receipt = publisher.publish(DENSE, route=route)
            assert (receipt.codec, receipt.codec_why) == ("raw", "same host")


def test_auto_behind_a_slow_link_and_a_fast_one(tmp_path: Path) -> None:
    bfloats = DENSE.astype(ml_dtypes.bfloat16)
    with vecmq.sync.open(tmp_path) as owner:
        with vecmq.sync.open(mode="nats", nats=remote(owner, 25_000_000), codec="auto") as mq:
            publisher = mq.publisher("t")
            payloads = [DENSE, bfloats, REPEATED, NOISE, DENSE[0], b"x" * 100]
            receipts = [publisher.publish(payload) for payload in payloads]
            codecs = [receipt.codec for receipt in receipts]
            assert codecs[:2] == ["planes", "planes"]
            assert codecs[3:] == ["raw", "pk3", "raw"]
            whys = [receipt.codec_why for receipt in receipts]
            assert whys[:2] == ["best in a probe"] * 2
            assert whys[4:] == ["small payload"] * 2
            got = received(mq, "t", len(payloads))
            assert all(map(equal, got[:5], payloads[:5]))
        with vecmq.sync.open(mode="nats", nats=remote(owner, 10**11), codec="auto") as mq:
            receipt = mq.publisher("t").publish(DENSE)
            assert (receipt.codec, receipt.codec_why) == ("raw", "no codec gains 3 % on this link")


def test_auto_looks_again_when_a_message_does_not_shrink(tmp_path: Path) -> None:
    noise = NOISE[: DENSE.size].reshape(DENSE.shape)
    with vecmq.sync.open(tmp_path) as owner:
        options = remote(owner, 25_000_000)
        with vecmq.sync.open(mode="nats", nats=options, codec="auto") as mq:
            publisher = mq.publisher("t")
            receipts = [publisher.publish(one) for one in (DENSE, noise, noise, DENSE)]
            assert [(receipt.codec, receipt.codec_why) for receipt in receipts] == [
                ("planes", "best in a probe"),
                ("raw", "did not shrink"),
                ("raw", "no codec gains 3 % on this link"),
                ("raw", "no codec gains 3 % on this link"),
            ]
