"""What the fault tests of the NATS route share: bodies, what was acknowledged, reading all back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import nats
import nats.errors
import numpy as np
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.errors import NotFoundError

import vecmq

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from vecmq import aio

KIB = 1 << 10
MIB = 1 << 20
LONG_S = 60.0
ANSWER_S = 2.0
Mode = Literal["nats", "hybrid"]
MODES: tuple[Mode, ...] = ("nats", "hybrid")

_NOISE = np.random.default_rng(7).bytes(8 * MIB + 64 * KIB)


def body(number: int, size_bytes: int) -> bytes:
    """Bytes that tell their number and repeat those of no other number nearby."""
    head = number.to_bytes(8, "little")[:size_bytes]
    start = number * 7919 % (64 * KIB)
    return head + _NOISE[start : start + size_bytes - len(head)]


def mixed_bytes(number: int) -> int:
    """Sizes from 1 KB to 8 MB; 13 MB for a thousand messages."""
    if number % 1000 == 500:
        return 8 * MIB
    if number % 100 == 50:
        return 256 * KIB
    return 40 * KIB if number % 20 == 10 else KIB


class Arrival(NamedTuple):
    """What is kept of a message that came: its payload is compared and let go."""

    id: str
    number: int
    size_bytes: int
    is_whole: bool
    deliveries: int


def arrival(message: vecmq.Message) -> Arrival:
    """Compare a message's payload with the one of its number."""
    payload = bytes(message.payload)
    number = int.from_bytes(payload[:8], "little")
    whole = payload == body(number, len(payload))
    return Arrival(message.id, number, len(payload), whole, message.deliveries)


@dataclass
class Counts:
    """What a fault test counts; every count of a loss or a repeat has to end at 0."""

    kills: int = 0
    acked: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    inversions: int = 0
    redelivered: int = 0
    partial_groups_delivered: int = 0
    leftover_frames: int = 0

    def __iadd__(self, other: Counts) -> Self:
        """Add all counts."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        return self

    def say(self, what: str, **more: object) -> None:
        """Print the counts in one line."""
        values = {one.name: getattr(self, one.name) for one in fields(self)} | more
        print(f"{what}:", ", ".join(f"{name} {value}" for name, value in values.items()))


@dataclass
class Ledger:
    """Which message numbers were acknowledged under which id, and how large each is."""

    size_of: Callable[[int], int] = mixed_bytes
    ids: dict[str, int] = field(default_factory=dict)

    def add(self, number: int, receipt: vecmq.Receipt) -> None:
        """Note an acknowledgement."""
        assert receipt.id not in self.ids, receipt.id
        self.ids[receipt.id] = number

    def compare(self, received: Iterable[Arrival]) -> Counts:
        """Hold what came against what was acknowledged."""
        counts, copies, last = Counts(acked=len(self.ids)), Counter[str](), -1
        for one in received:
            counts.redelivered += one.deliveries > 1
            copies[one.id] += 1
            is_torn = not one.is_whole or one.size_bytes != self.size_of(one.number)
            counts.torn += is_torn or self.ids.get(one.id, one.number) != one.number
            counts.inversions += one.number < last
            last = one.number
        counts.lost = sum(id_ not in copies for id_ in self.ids)
        counts.duplicated = sum(number - 1 for number in copies.values())
        return counts


def opened(
    path: Path, mode: Mode, url: str, **options: Any
) -> AbstractAsyncContextManager[aio.Handle]:
    """A handle of either mode; what is published through it names the NATS route."""
    nats_options = vecmq.NatsOptions(url=url, connect_timeout_s=30)
    return vecmq.open(path if mode == "hybrid" else None, mode, nats=nats_options, **options)


async def publish_windowed(
    publisher: aio.Publisher,
    numbers: Iterable[int],
    ledger: Ledger,
    *,
    window: int = 64,
    timeout_s: float | None = LONG_S,
    on_ack: Callable[[int], object] = lambda count: None,
) -> list[vecmq.Error]:
    """Publish with so many in flight; give the errors of what was not acknowledged."""
    free, errors, count = asyncio.Semaphore(window), list[vecmq.Error](), 0

    async def one(number: int) -> None:
        nonlocal count
        try:
            payload = body(number, ledger.size_of(number))
            receipt = await publisher.publish(payload, timeout_s=timeout_s, route="nats")
            ledger.add(number, receipt)
            count += 1
            on_ack(count)
        except vecmq.Error as error:
            errors.append(error)
        finally:
            free.release()

    async with asyncio.TaskGroup() as tasks:
        for number in numbers:
            await free.acquire()
            tasks.create_task(one(number))
    return errors


async def read_all(
    subscriber: aio.Subscriber, wanted: int, *, quiet_s: float = 0.3, patience_s: float = LONG_S
) -> list[Arrival]:
    """Receive and acknowledge until `wanted` came, and then whatever comes within a while."""
    out, ids = list[Arrival](), set[str]()
    while batch := await subscriber.fetch(timeout_s=patience_s if len(ids) < wanted else quiet_s):
        for message in batch:
            out.append(arrival(message))
            ids.add(message.id)
            message.ack()
    return out


async def plain(
    url: str,
    work: Callable[[Client, JetStreamContext], Awaitable[Any]],
    timeout_s: float = 30,
) -> Any:
    """Do something once with a plain nats-py connection."""
    client = await nats.connect(url, allow_reconnect=False)
    try:
        return await work(client, client.jetstream(timeout=timeout_s))
    finally:
        await client.close()


async def insist(
    url: str,
    work: Callable[[Client, JetStreamContext], Awaitable[Any]],
    patience_s: float = LONG_S,
) -> Any:
    """The same until it is answered; `work` may be done twice.

    A cluster does not answer at all what reaches it while nobody leads or a node catches up: a
    request lost like that is asked again, however long its sender waits.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await plain(url, work, timeout_s=ANSWER_S)
        except (nats.errors.Error, OSError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def make_stream(url: str, topic: str, **config: Any) -> None:
    """Make a topic's stream with a configuration of one's own, as soon as a server can."""
    subjects = [topic, f"{topic}.frames.>"]
    wanted = StreamConfig(name=topic, subjects=subjects, allow_direct=True, **config)
    await insist(url, lambda _, js: js.add_stream(wanted))


async def delete_stream(url: str, topic: str) -> None:
    """Delete a topic's stream."""

    async def delete(_: Client, js: JetStreamContext) -> None:
        with contextlib.suppress(NotFoundError):  # it was deleted, and the answer lost
            await js.delete_stream(topic)

    await insist(url, delete)


async def read_stored(js: JetStreamContext, stream: str, *, headers_only: bool) -> list[Msg]:
    """Read everything in a stream, as plain nats-py sees it; a part of it is an error."""
    total = (await js.stream_info(stream)).state.messages
    config = ConsumerConfig(
        ack_policy=AckPolicy.NONE,
        deliver_policy=DeliverPolicy.ALL,
        headers_only=headers_only,
        inactive_threshold=300,
    )
    subscription = await js.pull_subscribe(">", stream=stream, config=config)
    out: list[Msg] = []
    while len(out) < total:
        out += await subscription.fetch(min(2000, total - len(out)), timeout=5)
    return out


async def stored_ids(url: str, topic: str) -> list[tuple[str, str]]:
    """Subject and `Nats-Msg-Id` of everything in a stream."""
    found = await insist(url, lambda _, js: read_stored(js, topic, headers_only=True))
    return [(one.subject, (one.headers or {}).get("Nats-Msg-Id", "")) for one in found]


def repeats(ids: Iterable[tuple[str, str]]) -> int:
    """How many stored messages have the id of another one."""
    return sum(count - 1 for count in Counter(id_ for _, id_ in ids if id_).values())
