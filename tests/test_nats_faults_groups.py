"""What may happen to the frames of a group, at random, against a model: whole, or never there.

The reader is the real one, of mode `nats`, on a real server. The frames are real ones too: what a
publisher stored on one topic is stored on another, in another order, twice, partly or not at all.
2,000 frames; `make test-nats-faults` comes to 120,000.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster_tools import Node
from fault_tools import times
from nats_fault_tools import LONG_S, delete_stream, insist, make_stream, opened, plain, read_stored

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

    from vecmq import aio

GROUPS_A_ROUND = 24
PRODUCERS = 3
FAULTS = times(1)
FRAMES = 2_000 if FAULTS == 1 else 6_000 * FAULTS
MSG_ID = "Nats-Msg-Id"
END = b"end"


@dataclass
class Stored:
    """A message of the source stream."""

    subject: str
    headers: dict[str, str]
    data: bytes

    @property
    def is_manifest(self) -> bool:
        return self.subject == "source"

    @property
    def group(self) -> str:
        """The id of its message."""
        fields = self.headers[MSG_ID].split("-")
        return "-".join(fields[:3])


async def make_groups(url: str, path: Path, seed: int) -> tuple[list[Stored], dict[str, bytes]]:
    """Groups of 1 to 12 frames by several producers, and the payload of each."""
    payloads: dict[str, bytes] = {}
    rng = np.random.default_rng(seed)
    for producer in range(PRODUCERS):
        async with opened(path, "nats", url) as handle:
            publisher = handle.publisher("source")
            for number in range(GROUPS_A_ROUND // PRODUCERS):
                payload = rng.bytes(1 + 3500 * ((number * 5 + producer) % 12))
                payloads[(await publisher.publish(payload)).id] = payload

    found = await insist(url, lambda _, js: read_stored(js, "source", headers_only=False))
    await insist(url, lambda _, js: js.purge_stream("source"))
    stored = [Stored(one.subject, dict(one.headers or {}), one.data) for one in found]
    return stored, payloads


def spoil(frames: list[Stored], dice: random.Random) -> list[Stored]:
    """Let something happen to the frames of one group; the manifest is the last one."""
    manifest, others = frames[-1], frames[:-1]
    what = dice.choice(["nothing", "miss", "repeat", "mix", "resend", "late", "last", "none"])
    if what == "miss" and others:
        others.pop(dice.randrange(len(others)))
    elif what == "repeat" and others:
        others += dice.choices(others, k=1 + dice.randrange(2 * len(others)))
    elif what == "mix":
        dice.shuffle(others)
    elif what == "resend":
        others = others[: len(others) // 2] + frames[:-1]
    elif what == "late" and others:
        late = others.pop(dice.randrange(len(others)))
        return [*others, manifest, late]
    elif what == "last":
        others = []
    elif what == "none":
        return others
    return [*others, manifest]


def interleave(groups: list[list[Stored]], dice: random.Random) -> Iterator[Stored]:
    """All frames, each group's in its order."""
    left = [iter(group) for group in groups]
    while left:
        source = dice.choice(left)
        frame = next(source, None)
        if frame is None:
            left.remove(source)
        else:
            yield frame


def expected(groups: list[list[Stored]], counts: dict[str, int]) -> set[str]:
    """The model: a group is there when its manifest and every other frame are."""
    whole = set()
    for frames in groups:
        ids = {frame.headers[MSG_ID] for frame in frames}
        if any(frame.is_manifest for frame in frames) and len(ids) == counts[frames[0].group]:
            whole.add(frames[0].group)
    return whole


async def store(url: str, topic: str, frames: list[Stored]) -> None:
    """Store frames on another topic; without their ids, so that repeats are stored again."""

    async def write(client: Client, js: JetStreamContext) -> None:
        for frame in frames:
            subject = topic + frame.subject.removeprefix("source")
            headers = {key: value for key, value in frame.headers.items() if key != MSG_ID}
            await client.publish(subject, frame.data, headers=headers)
        await js.publish(topic, END)

    await plain(url, write)


async def read_groups(
    handle: aio.Handle, topic: str, wanted: set[str], quiet_s: float
) -> list[tuple[str, bytes]]:
    """Receive until all that is whole came, and then whatever comes within a while."""
    out: list[tuple[str, bytes]] = []
    async with asyncio.timeout(LONG_S), handle.subscribe(topic, "g") as subscriber:
        while True:
            is_done = wanted <= {id_ for id_, _ in out}
            batch = await subscriber.fetch(timeout_s=quiet_s if is_done else 1)
            if is_done and not batch:
                return out
            out += [(one.id, bytes(one.payload)) for one in batch if bytes(one.payload) != END]
            batch.ack()


async def test_a_group_is_whole_or_never_delivered(tmp_path: Path) -> None:
    """Every round has a topic of its own: after a minute, what is not whole is an error there."""
    frames_min, steps, round_, dice = FRAMES, 0, 0, random.Random(20)
    whole = delivered = repeated = torn = partial = groups_count = lost = 0
    with Node(tmp_path / "server", "max_payload: 4096") as node:
        await make_stream(node.url, "source")
        async with opened(tmp_path, "nats", node.url) as handle:
            while steps < frames_min:
                topic = f"target{round_}"
                await make_stream(node.url, topic)
                stored, payloads = await make_groups(node.url, tmp_path, round_)
                groups: dict[str, list[Stored]] = {}
                for frame in stored:
                    groups.setdefault(frame.group, []).append(frame)
                counts = {id_: len(frames) for id_, frames in groups.items()}
                spoilt = [one for frames in groups.values() if (one := spoil(frames, dice))]
                wanted = expected(spoilt, counts)
                sequence = list(interleave(spoilt, dice))
                steps += len(sequence)
                await store(node.url, topic, sequence)
                # What is not whole is offered again and again; it is never handed out.
                quiet_s = 2.5 if steps >= frames_min or round_ % 50 == 0 else 0.05
                received = await read_groups(handle, topic, wanted, quiet_s)
                came = Counter(id_ for id_, _ in received)
                whole, delivered = whole + len(wanted), delivered + len(came)
                repeated += sum(came.values()) - len(came)
                torn += sum(payload != payloads.get(id_) for id_, payload in received)
                partial += len(set(came) - wanted)
                lost += len(wanted - set(came))
                groups_count += len(payloads)
                await delete_stream(node.url, topic)
                round_ += 1
    print(
        f"frames {steps}, groups {groups_count}, whole {whole}, delivered {delivered}, "
        f"lost {lost}, duplicated {repeated}, torn {torn}, partial groups delivered {partial}"
    )
    assert whole > 10
    assert groups_count - whole > 10
    assert (lost, partial, repeated, torn) == (0, 0, 0, 0)
