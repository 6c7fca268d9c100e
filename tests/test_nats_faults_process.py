"""kill -9 of a process that publishes groups, and of one between fetch and acknowledgement."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from cluster_tools import Node
from fault_tools import Child, start, times
from nats_fault_tools import (
    KIB,
    MIB,
    MODES,
    Counts,
    Ledger,
    Mode,
    opened,
    publish_windowed,
    read_all,
    stored_ids,
)

TESTS = Path(__file__).parent

PUBLISH = """
import asyncio, itertools, os, sys
tests, path, mode, url, ledger, first = sys.argv[1:]
sys.path.insert(0, tests)
import test_nats_faults_process as own
from nats_fault_tools import Ledger, opened, publish_windowed

fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Told(Ledger):
    def add(self, number, receipt):
        os.write(fd, f"{number} {receipt.id}\\n".encode())

async def main():
    async with opened(path, mode, url) as handle:
        told = Told(own.size_of)
        await publish_windowed(handle.publisher("t"), itertools.count(int(first)), told, window=16)

asyncio.run(main())
"""


def size_of(number: int) -> int:
    """Groups of 1 to 6 frames, one after the other."""
    return (KIB, 5 * MIB + 3, 200 * KIB, 3 * MIB, 8, 1 * MIB)[number % 6]


def leftovers(stored: list[tuple[str, str]]) -> int:
    """Frames whose manifest is not in the stream."""
    groups = [(subject == "t", tuple(id_.split("-")[:3])) for subject, id_ in stored]
    whole = {group for is_manifest, group in groups if is_manifest}
    return sum(not is_manifest and group not in whole for is_manifest, group in groups)


def kill_after_acks(child: Child, ledger: Path, more_s: float) -> None:
    """kill -9, a while after the first acknowledgement."""
    before = ledger.stat().st_size if ledger.exists() else 0
    while not ledger.exists() or ledger.stat().st_size == before:
        assert child.process.poll() is None, child.finish()
        time.sleep(0.005)
    time.sleep(more_s)
    child.process.kill()
    child.finish()


@pytest.mark.parametrize("mode", MODES)
async def test_a_killed_publisher_leaves_whole_groups_or_none(tmp_path: Path, mode: Mode) -> None:
    kills, dice, counts = times(5), random.Random(3), Counts()
    ledger, file = Ledger(size_of), tmp_path / "ledger"
    with Node(tmp_path / "server") as node:
        for kill in range(kills):
            arguments = (TESTS, tmp_path / "mq", mode, node.url, file, str(100_000 * kill))
            kill_after_acks(start(PUBLISH, *arguments), file, dice.random() * 0.3)
        for line in file.read_text().splitlines():
            number, id_ = line.split()
            ledger.ids[id_] = int(number)
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            subscriber = handle.subscribe("t", "g")
            received = await read_all(subscriber, len(ledger.ids), quiet_s=2)
        counts += ledger.compare(received)
        counts.kills = kills
        counts.leftover_frames = leftovers(await stored_ids(node.url, "t"))
    counts.partial_groups_delivered = counts.torn
    counts.say(f"mode {mode}, publisher killed", received=len(received))
    assert counts.acked >= kills
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)
    # Of what was never acknowledged, whole groups may be there; each producer's are in order.
    if mode == "hybrid":
        assert counts.inversions == 0


CONSUME = """
import asyncio, os, signal, sys
tests, path, mode, url, ledger, acks = sys.argv[1:]
sys.path.insert(0, tests)
from nats_fault_tools import body, opened

fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

async def main():
    async with opened(path, mode, url) as handle:
        subscriber, left = handle.subscribe("t", "g", ack_wait_s=1.0), int(acks)
        while True:
            for message in await subscriber.fetch(8):
                payload = bytes(message.payload)
                number = int.from_bytes(payload[:8], "little")
                whole = payload == body(number, len(payload))
                os.write(fd, f"{number} {message.id} {whole} {message.deliveries}\\n".encode())
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                message.ack()
                left -= 1

asyncio.run(main())
"""


def chunks_of(number: int) -> int:
    """Groups of 1 to 64 frames on a server that takes 64 KiB a message."""
    return (number % 8 + 1) ** 2 * 60 * KIB


@pytest.mark.parametrize("mode", MODES)
async def test_a_consumer_killed_between_fetch_and_ack_costs_no_group(
    tmp_path: Path, mode: Mode
) -> None:
    kills, dice, counts = times(4), random.Random(4), Counts()
    ledger, file, messages = Ledger(chunks_of), tmp_path / "ledger", 12 * times(4)
    with Node(tmp_path / "server", "max_payload: 65536") as node:
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            publisher = handle.publisher("t")
            assert await publish_windowed(publisher, range(messages), ledger) == []
        for _ in range(kills):
            arguments = (TESTS, tmp_path / "mq", mode, node.url, file, str(dice.randrange(10)))
            code, _, err = start(CONSUME, *arguments).finish()
            assert code == -signal.SIGKILL, err
        began = time.monotonic()
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            subscriber = handle.subscribe("t", "g", ack_wait_s=1.0)
            received = await read_all(subscriber, 0, quiet_s=3)
        longest = time.monotonic() - began
    told = [line.split() for line in file.read_text().splitlines()]
    counts += ledger.compare(received)
    delivered = {one.id for one in received} | {id_ for _, id_, _, _ in told}
    counts.lost = sum(id_ not in delivered for id_ in ledger.ids)
    counts.kills = kills
    counts.redelivered += sum(int(deliveries) > 1 for *_, deliveries in told)
    counts.partial_groups_delivered = counts.torn + sum(whole != "True" for _, _, whole, _ in told)
    counts.say(f"mode {mode}, consumer killed", longest_s=round(longest, 1))
    assert counts.acked == messages
    assert len(told) >= kills
    # Whoever died had one message in hand at least: it came again.
    in_hand = {told[-1][1]}
    assert in_hand <= {one.id for one in received}
    assert (counts.lost, counts.duplicated, counts.partial_groups_delivered) == (0, 0, 0)
