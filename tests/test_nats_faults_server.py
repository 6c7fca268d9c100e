"""kill -9 of nats-server while messages are in flight, and right after acknowledgements.

`VECMQ_NATS_KILLS` is the number of kills (default 8; `make test-nats-faults` sets 1,000).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster_tools import Node
from fault_tools import times
from nats_fault_tools import (
    KIB,
    LONG_S,
    MODES,
    Arrival,
    Counts,
    Ledger,
    Mode,
    arrival,
    delete_stream,
    opened,
    publish_windowed,
    read_all,
    repeats,
    stored_ids,
)

if TYPE_CHECKING:
    from vecmq import aio

KILLS = int(os.environ.get("VECMQ_NATS_KILLS", "8"))
# Long runs acknowledge more than 2,000 messages a kill; short ones spare the time.
MESSAGES_A_KILL = 2050 if KILLS >= 100 else 500
# Kills until a new topic is begun: a killed server reads its whole store.
KILLS_A_TOPIC = 4
# Servers that are killed side by side.
LANES = 4


async def publish_over_kill(
    publisher: aio.Publisher, numbers: range, ledger: Ledger, node: Node, kill_at: int
) -> None:
    """Publish; kill the server and start it again at so many acknowledgements."""
    killed: list[asyncio.Task[None]] = []

    def on_ack(count: int) -> None:
        if count == kill_at:
            killed.append(asyncio.create_task(asyncio.to_thread(node.kill_and_restart)))

    assert await publish_windowed(publisher, numbers, ledger, on_ack=on_ack) == []
    await killed[0]


async def kill_lane(node: Node, mode: Mode, path: Path, kills: int, seed: int) -> Counts:
    """Kill one server again and again; read everything back after every few kills."""
    dice, counts, number = random.Random(seed), Counts(), 0
    async with opened(path, mode, node.url) as handle:
        for first in range(0, kills, KILLS_A_TOPIC):
            topic, ledger = f"t{first}", Ledger()
            for _ in range(min(KILLS_A_TOPIC, kills - first)):
                numbers = range(number, number + MESSAGES_A_KILL)
                kill_at = dice.randrange(1, MESSAGES_A_KILL - 64)
                await publish_over_kill(handle.publisher(topic), numbers, ledger, node, kill_at)
                number += MESSAGES_A_KILL
                counts.kills += 1
            received = await read_all(handle.subscribe(topic, "g"), len(ledger.ids))
            counts += ledger.compare(received)
            counts.duplicated += repeats(await stored_ids(node.url, topic))
            await delete_stream(node.url, topic)
    # The journal's order, or the stream's: that of the calls.
    assert counts.inversions == 0
    return counts


async def test_a_killed_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    began, counts = time.monotonic(), Counts()
    with contextlib.ExitStack() as nodes:
        lanes = [
            kill_lane(
                nodes.enter_context(Node(tmp_path / f"server{lane}")),
                MODES[lane % 2],
                tmp_path / f"queue{lane}",
                KILLS // LANES,
                seed=lane,
            )
            for lane in range(LANES)
        ]
        for lane_counts in await asyncio.gather(*lanes):
            counts += lane_counts
    counts.say("server killed", seconds=round(time.monotonic() - began))
    assert counts.acked == counts.kills * MESSAGES_A_KILL
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
async def test_repeats_after_a_kill_right_after_acks_are_not_seen(
    tmp_path: Path, mode: Mode
) -> None:
    """The server saves acknowledgements late: it delivers again what was done before the kill."""
    messages, rounds = 400, times(3)
    dice, ledger = random.Random(5), Ledger(lambda number: 70 * KIB if number % 40 == 7 else KIB)
    received: list[Arrival] = []
    with Node(tmp_path / "server") as node:
        async with opened(tmp_path / "queue", mode, node.url) as handle:
            publisher, subscriber = handle.publisher("t"), handle.subscribe("t", "g")
            for round_ in range(rounds):
                numbers = range(round_ * messages, (round_ + 1) * messages)
                assert await publish_windowed(publisher, numbers, ledger) == []
                kill_at, before = dice.randrange(1, messages), len(received)
                killing = None
                while len(received) < (round_ + 1) * messages:
                    batch = await subscriber.fetch(50, timeout_s=LONG_S)
                    assert batch, f"{len(received)} of {len(ledger.ids)} came"
                    for message in batch:
                        received.append(arrival(message))
                        message.ack()
                    if killing is None and len(received) - before >= kill_at:
                        killing = asyncio.create_task(asyncio.to_thread(node.kill_and_restart))
                if killing is not None:
                    await killing
            received += await read_all(subscriber, 0, quiet_s=3)
            counts = ledger.compare(received)
    counts.kills = rounds
    counts.say(f"mode {mode}, server killed right after acks")
    assert counts.acked == rounds * messages
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)
