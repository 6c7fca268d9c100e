"""What a server says no to while messages are in flight: too fast, too large, not allowed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vecmq
import vecmq.sync
from cluster_tools import Node
from connect_tools import HOST, Server
from nats_fault_tools import (
    KIB,
    LONG_S,
    MIB,
    MODES,
    Ledger,
    Mode,
    body,
    delete_stream,
    make_stream,
    opened,
    plain,
    publish_windowed,
    read_all,
    repeats,
    stored_ids,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext

USERS = """
authorization {{ users: [
  {{ user: all, password: p }}
  {{ user: some, password: p, permissions: {{ publish: {{ deny: [{denied}] }} }} }}
] }}
"""


@pytest.mark.parametrize("mode", MODES)
async def test_a_server_that_is_overloaded_loses_nothing(tmp_path: Path, mode: Mode) -> None:
    """It takes 2 MiB ahead of its store, a quarter of what is sent at first, and refuses the rest.

    Whoever sends without a window is told so (the first part): the limit is one that is met.
    """
    ledger = Ledger(lambda _: 3 * MIB)
    with Node(tmp_path / "server", jetstream="max_buffered_size: 2097152") as node:
        await make_stream(node.url, "flood")

        async def flood(_: object, js: JetStreamContext) -> int:
            await js.purge_stream("flood")
            acks = [js.publish("flood", bytes(MIB - KIB), timeout=LONG_S) for _ in range(100)]
            answers = await asyncio.gather(*acks, return_exceptions=True)
            return sum(getattr(one, "err_code", None) == 10167 for one in answers)

        refused_without = 0
        for _ in range(10):  # a fast disk may keep up with one flood
            refused_without = refused_without or await plain(node.url, flood)
        await delete_stream(node.url, "flood")
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            errors = await publish_windowed(handle.publisher("t"), range(100), ledger)
            received = await read_all(handle.subscribe("t", "g"), len(ledger.ids))
        stored_twice = repeats(await stored_ids(node.url, "t"))
        refusals = node.log.count("Dropping messages")
    counts = ledger.compare(received)
    counts.say(
        f"mode {mode}, overloaded", refused_without_a_window=refused_without, log_lines=refusals
    )
    assert errors == []
    assert refused_without > 0
    assert counts.acked == 100
    assert (counts.lost, counts.duplicated, counts.torn, stored_twice) == (0, 0, 0, 0)


async def stored_count(server: Server, topic: str = "t") -> int:
    """How many messages a stream has."""

    async def ask(_: object, js: JetStreamContext) -> int:
        return int((await js.stream_info(topic)).state.messages)

    found: int = await plain(f"nats://all:p@{HOST}:{server.port}", ask)
    return found


@pytest.mark.parametrize("denied", ['"t"', '"t.frames.>"'])
async def test_a_denial_in_the_middle_of_a_group_leaves_no_part_of_it(
    tmp_path: Path, denied: str
) -> None:
    """The manifest's subject, or the frames': while groups are on their way, without a warning."""
    with Server(tmp_path / "server", USERS.format(denied='"nothing"')) as server:
        nats = vecmq.NatsOptions(
            f"nats://{HOST}:{server.port}", user="some", password="p", reconnect_wait_s=0.1
        )
        async with vecmq.open(mode="nats", nats=nats) as mq:
            publisher = mq.publisher("t")
            receipts = [await publisher.publish(body(n, 3 * MIB)) for n in range(3)]
            before = await stored_count(server)
            assert before == sum(receipt.frames_count for receipt in receipts)
            sending = [
                asyncio.create_task(publisher.publish(body(n, 8 * MIB), timeout_s=LONG_S))
                for n in range(100, 112)
            ]
            async with asyncio.timeout(LONG_S):
                # A server has no event for this.
                while await stored_count(server) <= before:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            await asyncio.to_thread(server.reload, USERS.format(denied=denied))
            outcomes = await asyncio.gather(*sending, return_exceptions=True)
            receipts += [one for one in outcomes if isinstance(one, vecmq.Receipt)]
            errors = [one for one in outcomes if not isinstance(one, vecmq.Receipt)]
            with pytest.raises(vecmq.DeniedError):
                await publisher.publish(bytes(8 * MIB), timeout_s=LONG_S)
        free = vecmq.NatsOptions(f"nats://{HOST}:{server.port}", user="all", password="p")
        async with vecmq.open(mode="nats", nats=free) as mq:
            received = await read_all(mq.subscribe("t", "g"), len(receipts), quiet_s=1)
        partial = [one for one in received if not one.is_whole]
        print(
            f"denied {denied}: {len(receipts)} stored, {len(errors)} refused, "
            f"partial {len(partial)}"
        )
    assert {type(one) for one in errors} <= {vecmq.DeniedError}
    assert {receipt.id for receipt in receipts} == {one.id for one in received}
    assert not partial


@pytest.mark.parametrize("mode", MODES)
async def test_a_stream_that_takes_no_such_size_says_so(tmp_path: Path, mode: Mode) -> None:
    """Its limit was lowered behind our back: 10054, nothing is left, and the queue may take it."""
    with Node(tmp_path / "server") as node:
        async with opened(tmp_path / "mq", mode, node.url) as handle:
            publisher = handle.publisher("t")
            await publisher.publish(bytes(3 * MIB), route="nats")

            async def lower(_: object, js: JetStreamContext) -> None:
                config = (await js.stream_info("t")).config
                config.max_msg_size = 64 * KIB
                await js.update_stream(config)

            await plain(node.url, lower)
            before = len(await stored_ids(node.url, "t"))
            with pytest.raises(vecmq.RejectedError) as refused:
                await publisher.publish(bytes(3 * MIB), route="nats", timeout_s=LONG_S)
            assert refused.value.code == 10054
            if mode == "hybrid":
                receipt = await publisher.publish(bytes(3 * MIB + 1), timeout_s=LONG_S)
                assert receipt.route == "queue"
            assert len(await stored_ids(node.url, "t")) == before


async def test_a_retry_that_may_have_been_stored_is_no_refusal(tmp_path: Path) -> None:
    """A stream that does not end where it should, perhaps since the first attempt was stored."""
    unknown, receipts, messages = 0, [], 40
    with Node(tmp_path / "server") as node:
        async with opened(tmp_path / "mq", "nats", node.url) as handle:
            publisher = handle.publisher("t")
            last = await publisher.publish(b"first")
            for number in range(messages):
                killing = None
                if number % 10 == 5:
                    killing = asyncio.create_task(asyncio.to_thread(node.kill_and_restart))
                try:
                    payload = body(number, MIB)
                    last = await publisher.publish(
                        payload, expected_last_seq=last.seq, timeout_s=LONG_S
                    )
                    receipts.append(number)
                except vecmq.PublishUnknownError:
                    unknown += 1
                    last = await publisher.publish(b"next", timeout_s=LONG_S)
                if killing is not None:
                    await killing
            received = await read_all(handle.subscribe("t", "g"), len(receipts))
    numbers = [one.number for one in received if one.size_bytes == MIB]
    assert all(one.is_whole for one in received if one.size_bytes == MIB)
    print(f"{messages} conditional publishes over kills: {len(receipts)} stored, {unknown} unknown")
    assert len(receipts) + unknown == messages
    assert set(receipts) <= set(numbers)
    assert len(numbers) == len(set(numbers))


def test_a_server_that_has_no_room_for_a_connection_says_so(tmp_path: Path) -> None:
    """Publishing needs one of its own: without it nothing is sent, with it again all goes on."""
    with Server(tmp_path / "server", "max_connections: 1") as server:
        nats = vecmq.NatsOptions(f"nats://{HOST}:{server.port}", reconnect_wait_s=0.1)
        with vecmq.sync.open(mode="nats", nats=nats) as mq:
            publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
            with pytest.raises(vecmq.TimeoutError, match=r"not sent: cannot connect .*maximum"):
                publisher.publish(b"early", timeout_s=3)
            server.reload("max_connections: 10")
            publisher.publish(b"late", timeout_s=LONG_S)
            message = subscriber.receive(LONG_S)
            assert message is not None
            assert bytes(message.payload) == b"late"


@pytest.mark.parametrize("denied", ['"t"', '"t.frames.>"'])
def test_a_denied_publish_fails_no_subscriber(tmp_path: Path, denied: str) -> None:
    """Both are of one topic and one handle."""
    with Server(tmp_path / "server", USERS.format(denied=denied)) as server:
        url = f"nats://{HOST}:{server.port}"
        nats = vecmq.NatsOptions(url, user="some", password="p")
        free = vecmq.NatsOptions(url, user="all", password="p")
        with (
            vecmq.sync.open(mode="nats", nats=nats) as mq,
            vecmq.sync.open(mode="nats", nats=free) as other,
        ):
            subscriber = mq.subscribe("t", "g")
            assert subscriber.receive(0.2) is None
            for _ in range(3):
                with pytest.raises(vecmq.DeniedError):
                    mq.publisher("t").publish(bytes(3 * MIB), timeout_s=LONG_S)
                receipt = other.publisher("t").publish(b"other")
                message = subscriber.receive(LONG_S)
                assert message is not None
                assert message.id == receipt.id
                message.ack()
