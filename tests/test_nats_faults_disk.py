"""The disk under nats-server: full, over its quotas, damaged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vecmq
from cluster_tools import Node
from fault_tools import times
from nats_fault_tools import (
    KIB,
    LONG_S,
    MIB,
    MODES,
    Ledger,
    Mode,
    body,
    make_stream,
    opened,
    publish_windowed,
    read_all,
)

if TYPE_CHECKING:
    from vecmq import aio


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB. Without the right to mount one this fails: nothing is skipped."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def grow(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", str(path)], check=True)


@pytest.mark.parametrize("mode", MODES)
async def test_a_full_disk_is_named_and_loses_nothing(
    small_disk: Path, tmp_path: Path, mode: Mode
) -> None:
    """A server does not answer what it cannot store; that it is the disk has to be asked for."""
    ledger = Ledger(lambda _: 500 * KIB)
    node = Node(small_disk / "server", jetstream="max_file_store: 1GB")
    with node:
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            publisher = handle.publisher("t")
            errors = await publish_windowed(publisher, range(60), ledger, window=4, timeout_s=3)
            assert errors
            assert {type(error) for error in errors} == {vecmq.StorageError}
            grow(small_disk)
            # The stream stays broken until a restart (FAULTS.md, measured).
            await asyncio.to_thread(node.kill_and_restart)
            assert await publish_windowed(publisher, range(100, 110), ledger) == []
            received = await read_all(handle.subscribe("t", "g"), len(ledger.ids))
        counts = ledger.compare(received)
    counts.say(f"mode {mode}, disk full", refused=len(errors), received=len(received))
    assert counts.acked > 10
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
async def test_the_embedded_server_takes_messages_again_when_its_disk_has_room(
    small_disk: Path, mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program fills the disk, and frees it again; nobody does anything about the server."""
    grow(small_disk)
    ledger, other = Ledger(lambda _: 500 * KIB), small_disk / "other"
    async with vecmq.open(small_disk / "mq", mode) as handle:
        publisher = handle.publisher("t")
        assert await publish_windowed(publisher, range(10), ledger) == []
        with contextlib.suppress(OSError), other.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 * KIB))
        errors = await publish_windowed(publisher, range(10, 20), ledger, window=4, timeout_s=4)
        assert {type(error) for error in errors} <= {vecmq.StorageError, vecmq.RejectedError}
        refused, number = len(errors), 100
        async with asyncio.timeout(LONG_S):
            # Every half second it is looked at the disk: one that is full for less is not seen.
            while "bytes left" not in caplog.text:  # noqa: ASYNC110 - a thread's log line
                await asyncio.sleep(0.05)
            other.unlink()
            while errors:
                numbers = range(number, number + 4)
                errors = await publish_windowed(publisher, numbers, ledger, timeout_s=10)
                number += 4
        received = await read_all(handle.subscribe("t", "g"), len(ledger.ids), quiet_s=2)
        counts = ledger.compare(received)
        assert handle.server is not None
        restarts = handle.server.restarts_count
    counts.say(f"mode {mode}, embedded, disk full", refused=refused, restarts=restarts)
    assert refused > 0
    assert restarts >= 1
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_full_stream_refuses_and_keeps_what_it_acknowledged(
    tmp_path: Path, mode: Mode
) -> None:
    ledger = Ledger(lambda _: 100 * KIB)
    with Node(tmp_path / "server") as node:
        await make_stream(node.url, "t", max_bytes=3 * MIB, discard="new")
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            errors = await publish_windowed(handle.publisher("t"), range(60), ledger)
            codes = {error.code for error in errors if isinstance(error, vecmq.RejectedError)}
            received = await read_all(handle.subscribe("t", "g"), len(ledger.ids))
        counts = ledger.compare(received)
    counts.say(f"mode {mode}, stream full", refused=len(errors), acked_then_deleted=counts.lost)
    assert codes == {10077}
    assert counts.acked + len(errors) == 60
    assert counts.acked > 10
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
async def test_the_quota_of_a_server_is_a_refusal_with_its_code(tmp_path: Path, mode: Mode) -> None:
    ledger = Ledger(lambda _: 100 * KIB)
    with Node(tmp_path / "server", jetstream="max_file_store: 3MB") as node:
        too_much = vecmq.Retention(bytes_max=64 * MIB)
        async with opened(tmp_path / "large", mode, node.url, retention=too_much) as handle:
            with pytest.raises(vecmq.RejectedError) as refused:
                await handle.publisher("large").publish(bytes(MIB), route="nats", timeout_s=LONG_S)
            assert refused.value.code == 10047
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            errors = await publish_windowed(handle.publisher("t"), range(60), ledger)
            codes = {error.code for error in errors if isinstance(error, vecmq.RejectedError)}
            received = await read_all(handle.subscribe("t", "g"), len(ledger.ids))
        counts = ledger.compare(received)
    counts.say(f"mode {mode}, server full", refused=len(errors), acked_then_deleted=counts.lost)
    assert codes == {10023}
    assert counts.acked + len(errors) == 60
    assert counts.acked > 10
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize(
    "limits", [{"max_bytes": 3 * MIB}, {"max_msgs": 5}, {"max_msgs_per_subject": 1}], ids=str
)
@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_that_deletes_what_was_acknowledged_is_refused(
    tmp_path: Path, mode: Mode, limits: dict[str, int]
) -> None:
    """With `discard: old` a stream makes room by deleting messages that nobody has read."""
    with Node(tmp_path / "server") as node:
        await make_stream(node.url, "t", discard="old", **limits)
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            with pytest.raises(vecmq.ConfigError):
                await handle.publisher("t").publish(b"x", route="nats")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 0x10
    file.write_bytes(data)


async def read_damaged(subscriber: aio.Subscriber, seqs: list[int]) -> dict[str, bytes]:
    """Read to the end; step over what is an error at its place."""
    out: dict[str, bytes] = {}
    while True:
        try:
            batch = await subscriber.fetch(timeout_s=3)
        except (vecmq.IncompleteError, vecmq.CorruptError):
            subscriber.ack_through(seqs[len(out)])
            out[f"told {len(out)}"] = b""
            continue
        if not batch:
            return out
        for message in batch:
            out[message.id] = bytes(message.payload)
            message.ack()


@pytest.mark.parametrize("mode", MODES)
async def test_a_flipped_bit_in_the_store_is_never_skipped_in_silence(
    tmp_path: Path, mode: Mode
) -> None:
    """The server itself delivers 399 of 400 messages and says nothing."""
    messages, dice, flips, silent, lost = 400, random.Random(15), times(4), 0, 0
    for round_ in range(flips):
        ledger = Ledger(lambda _: 50 * KIB)
        path = tmp_path / str(round_)
        with Node(path / "server") as node:
            async with opened(path / "mq", mode, node.url) as handle:
                publisher = handle.publisher("t")
                # Alone, at the very front, and spared: what is gone there looks like retention.
                assert await publish_windowed(publisher, range(1), ledger) == []
                assert await publish_windowed(publisher, range(1, messages), ledger) == []
                node.kill()
                blocks = sorted(node.store.rglob("streams/t/msgs/*.blk"))
                block = dice.choice(blocks)
                spared = 64 * KIB if block == blocks[0] else 0
                flip(block, dice.randrange(spared, block.stat().st_size))
                await asyncio.to_thread(node.start)
                # What is gone from the end shows when something comes after it.
                numbers = range(messages, messages + 1)
                assert await publish_windowed(publisher, numbers, ledger) == []
                found = await read_damaged(handle.subscribe("t", "g"), list(range(1, 402)))
                told = sum(id_.startswith("told") for id_ in found)
                told += handle.stats()["missing"]
        for id_, number in ledger.ids.items():
            assert found.get(id_, body(number, 50 * KIB)) == body(number, 50 * KIB)
        gone = sum(id_ not in found for id_ in ledger.ids)
        lost += gone
        silent += abs(gone - told)
    print(f"mode {mode}: flips {flips}, messages {messages}, damaged {lost}, undetected {silent}")
    assert lost > 0
    assert silent == 0


@pytest.mark.parametrize("mode", MODES)
async def test_a_damaged_description_of_a_stream_is_an_error(tmp_path: Path, mode: Mode) -> None:
    """The server drops the whole stream for it, and says so in its log only."""
    ledger = Ledger(lambda _: 50 * KIB)
    with Node(tmp_path / "server") as node:
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            publisher = handle.publisher("t")
            assert await publish_windowed(publisher, range(20), ledger) == []
            node.kill()
            (description,) = node.store.rglob("streams/t/meta.inf")
            flip(description, 20)
            await asyncio.to_thread(node.start)
            numbers = range(20, 21)
            errors = await publish_windowed(publisher, numbers, ledger, timeout_s=10)
            assert {type(error) for error in errors} == {vecmq.NoStreamError}
