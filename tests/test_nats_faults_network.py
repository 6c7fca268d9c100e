"""The network between a handle and nats-server: cut, reset, half-open, away for long, slow."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

import vecmq
from cluster_tools import Node
from nats_fault_tools import (
    KIB,
    LONG_S,
    MIB,
    MODES,
    Arrival,
    Ledger,
    Mode,
    arrival,
    opened,
    publish_windowed,
    read_all,
    repeats,
    stored_ids,
)
from proxy_tools import Proxy

# A long run is the one of `make test-nats-faults`.
IS_LONG = int(os.environ.get("VECMQ_FAULTS", "1")) > 1
OUTAGE_S = 180.0 if IS_LONG else 8.0
RSS_GROWTH_MAX = 256 * MIB


async def storm(proxy: Proxy, stop: asyncio.Event, dice: random.Random) -> dict[str, int]:
    """Cut, reset and freeze connections until told to stop."""
    counts = {"cuts": 0, "resets": 0, "half_open": 0}
    while not stop.is_set():
        await asyncio.sleep(dice.random() * 0.4)
        what = dice.choice(["cuts", "resets", "half_open"])
        if what == "half_open":
            proxy.freeze()
            await asyncio.sleep(dice.random())
            # Whoever was frozen is reset: neither end knows what of it arrived.
            proxy.cut(reset=True)
            proxy.thaw()
            counts[what] += 1
        else:
            counts[what] += proxy.cut(reset=what == "resets")
    return counts


@pytest.mark.parametrize("mode", MODES)
async def test_a_storm_of_disconnects_loses_and_doubles_nothing(tmp_path: Path, mode: Mode) -> None:
    messages = 600 if not IS_LONG else 100_000
    ledger, dice = Ledger(lambda n: 100 * KIB if n % 50 == 7 else KIB), random.Random(31)
    stop = asyncio.Event()
    with Node(tmp_path / "server") as node, Proxy(node.port) as proxy:
        async with opened(tmp_path / "mq", mode, proxy.url) as handle:
            # What was on its way to a subscriber when the connection broke comes after this time.
            subscriber = handle.subscribe("t", "g", ack_wait_s=2)
            storming = asyncio.create_task(storm(proxy, stop, dice))
            reading = asyncio.create_task(
                read_all(subscriber, messages, quiet_s=3, patience_s=2 * LONG_S)
            )
            # Paced, so that the storm meets every stage of a publish.
            publisher = handle.publisher("t")
            step = messages // (100 if IS_LONG else 40)
            for first in range(0, messages, step):
                numbers = range(first, first + step)
                assert await publish_windowed(publisher, numbers, ledger) == []
                await asyncio.sleep(0.1)
            stop.set()
            storms = await storming
            received = await reading
        counts = ledger.compare(received)
        stored_twice = repeats(await stored_ids(node.url, "t"))
    counts.say(
        f"mode {mode}, storm",
        connections=proxy.connections_count,
        stored_twice=stored_twice,
        **storms,
    )
    assert counts.acked == messages
    assert sum(storms.values()) > 3
    assert (counts.lost, counts.torn, stored_twice) == (0, 0, 0)
    assert counts.duplicated == 0


@pytest.mark.parametrize("mode", MODES)
async def test_an_outage_holds_publishers_back_and_memory_within_bounds(
    tmp_path: Path, mode: Mode
) -> None:
    ledger, own = Ledger(lambda _: MIB), psutil.Process()
    rss_max = before = 0
    with Node(tmp_path / "server") as node, Proxy(node.port) as proxy:
        async with opened(tmp_path / "mq", mode, proxy.url) as handle:
            publisher = handle.publisher("t")
            assert await publish_windowed(publisher, range(32), ledger, window=32) == []
            before = own.memory_info().rss
            with proxy.outage():
                numbers = range(32, 32 + 128)
                sending = asyncio.create_task(
                    publish_windowed(publisher, numbers, ledger, window=64, timeout_s=None)
                )
                end = time.monotonic() + OUTAGE_S
                while time.monotonic() < end:
                    await asyncio.sleep(0.05)
                    rss_max = max(rss_max, own.memory_info().rss)
                assert not sending.done()
                acked_meanwhile = len(ledger.ids) - 32
            back = time.monotonic()
            assert await sending == []
            recovery_s = time.monotonic() - back
            received = await read_all(handle.subscribe("t", "g"), len(ledger.ids))
        counts = ledger.compare(received)
    growth_mib = (rss_max - before) // MIB
    counts.say(
        f"mode {mode}, outage of {OUTAGE_S:.0f} s",
        rss_growth_mib=growth_mib,
        recovery_s=round(recovery_s, 1),
    )
    assert acked_meanwhile == 0
    assert counts.acked == 160
    assert growth_mib * MIB < RSS_GROWTH_MAX
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
async def test_an_outage_longer_than_the_callers_time_is_unknown_not_lost(
    tmp_path: Path, mode: Mode
) -> None:
    ledger = Ledger(lambda _: 100 * KIB)
    with Node(tmp_path / "server") as node, Proxy(node.port) as proxy:
        async with opened(tmp_path / "mq", mode, proxy.url) as handle:
            publisher = handle.publisher("t")
            assert await publish_windowed(publisher, range(10), ledger) == []
            with proxy.outage():
                numbers = range(10, 30)
                errors = await publish_windowed(publisher, numbers, ledger, timeout_s=1)
            assert {type(error) for error in errors} <= {
                vecmq.PublishUnknownError,
                vecmq.TimeoutError,
            }
            assert len(errors) == 20
            # What came of them is known before what follows is delivered, and in order.
            assert await publish_windowed(publisher, range(30, 40), ledger) == []
            received = await read_all(handle.subscribe("t", "g"), len(ledger.ids), quiet_s=2)
        counts = ledger.compare(received)
    counts.say(f"mode {mode}, publishes out of time", received=len(received), unknown=len(errors))
    assert counts.acked == 20
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_slow_consumer_is_never_cut_off(tmp_path: Path, mode: Mode) -> None:
    """The server has little patience (8 MiB, 2 s), the subscriber takes its time."""
    messages = 400
    ledger = Ledger(lambda _: 100 * KIB)
    settings = "max_pending: 8388608\nwrite_deadline: 2s\nmax_payload: 1048576"
    with Node(tmp_path / "server", settings) as node:
        async with AsyncExitStack() as stack:
            handle = await stack.enter_async_context(opened(tmp_path / "mq", mode, node.url))
            publisher, subscriber = handle.publisher("t"), handle.subscribe("t", "g")
            assert await publish_windowed(publisher, range(messages), ledger) == []
            received: list[Arrival] = []
            while len(received) < messages:
                batch = await subscriber.fetch(8, timeout_s=LONG_S)
                assert batch
                for message in batch:
                    received.append(arrival(message))
                    message.ack()
                await asyncio.sleep(0.15 if len(received) < 100 or IS_LONG else 0)
        counts = ledger.compare(received)
        cuts = sum(
            node.log.count(what) for what in ("Slow Consumer", "MaxPending", "WriteDeadline")
        )
    counts.say(f"mode {mode}, slow consumer", server_cuts=cuts)
    assert cuts == 0
    assert counts.acked == messages
    assert (counts.lost, counts.duplicated, counts.torn) == (0, 0, 0)
