"""One warm nats-server for every side of every row, and how the sides are started."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import nats

from compare import Context, Member, Missing, interleave, peer, progress
from vecmq.bench.contender import Contender
from vecmq.bench.runner import KIB, MIB
from vecmq.bench.worker import ServerSpec, Spec
from vecmq.server import EmbeddedServer

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
# Name in the rows, bytes of a message, messages of an operation.
LARGE: Final = (("5MB", 5 * MIB, 100), ("1MB", MIB, 500), ("64KB", 64 * KIB, 10_000))
SMALL_MSGS: Final = 50_000
PYTHON_PEERS: Final = ("nats-py", "natsio", "natsrpy")
# Messages in flight that every Python peer is tried with; the best of its own is compared.
WINDOWS: Final = (4, 16, 64, 256)
# Core NATS drops a subscriber that is this far behind; here nobody is to be dropped.
PENDING_BYTES_MAX: Final = 1 << 30
# Operations that a window is tried with.
TRIALS: Final = 1
# What the first operations on a fresh server pay for, and its memory.
WARM_MSGS: Final = 100


@dataclass(frozen=True, slots=True)
class NatsContext(Context):
    """How this run measures.

    Attributes:
        server: The server of all sides.
        windows: The best window of a Python peer, by peer, size and messages.
    """

    server: ServerSpec = field(kw_only=True)
    windows: dict[tuple[str, int, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NatsSpec(Spec):
    """The first line of a worker here.

    Attributes:
        window_bytes: Bytes in flight; None: 16 MiB.
        data: Which arrays are published (`coded.py`).
        publish_url: Where the publisher connects; None: to the server.
        link_bytes_per_s: Speed of the link there; None: as fast as this host.
    """

    window_bytes: int | None = None
    data: str | None = None
    publish_url: str | None = None
    link_bytes_per_s: int | None = None


@dataclass(slots=True)
class Side(Member):
    """A side of a comparison on the shared server.

    Attributes:
        context: Of this run.
        kind: "core" is what `workload` does not know.
        window_bytes: See NatsSpec.
        data: See NatsSpec.
        publish_url: See NatsSpec.
        link_bytes_per_s: See NatsSpec.
        codec: Of the frames.
    """

    context: NatsContext = field(kw_only=True)
    kind: str = "pubsub"
    window_bytes: int | None = None
    data: str | None = None
    publish_url: str | None = None
    link_bytes_per_s: int | None = None
    codec: str = "raw"

    def spec(self, directory: Path) -> Spec:
        """See Member."""
        values = asdict(Member.spec(self, directory)) | {
            "workload": self.kind,
            "server": self.context.server,
            "window_bytes": self.window_bytes,
            "data": self.data,
            "publish_url": self.publish_url,
            "link_bytes_per_s": self.link_bytes_per_s,
            "codec": self.codec,
        }
        return NatsSpec(**values)


@contextmanager
def open_context(directory: Path, scale: float, rounds: int) -> Iterator[NatsContext]:
    """Starts the server and warms it.

    Args:
        directory: For stores.
        scale: Share of the messages.
        rounds: Counted rounds.

    Yields:
        What the rows need.
    """
    with EmbeddedServer(
        directory / "server",
        max_pending_bytes=PENDING_BYTES_MAX,
        initialize_timeout_s=30.0,
    ) as server:
        spec = ServerSpec(server.url, token=server.token, pid=server.pid)
        asyncio.run(_warm(spec, max(4, round(WARM_MSGS * scale))))
        yield NatsContext(directory, scale, rounds, server=spec)


async def _warm(server: ServerSpec, msgs: int) -> None:
    client = await nats.connect(server.url, token=server.token)
    stream = client.jetstream(timeout=60)
    await stream.add_stream(name="warm", subjects=["warm"])
    payload = bytes(5 * MIB)
    for _ in range(msgs):
        await stream.publish("warm", payload)
    await stream.delete_stream("warm")
    await client.close()


async def _delete_streams(server: ServerSpec) -> None:
    client = await nats.connect(server.url, token=server.token)
    stream = client.jetstream(timeout=60)
    for info in await stream.streams_info():
        await stream.delete_stream(info.config.name or "")
    await client.close()


def contest(context: NatsContext, sides: Sequence[Member], rounds: int | None = None) -> None:
    """Runs the sides in turns, then deletes what they have left on the server.

    Args:
        context: Of this run.
        sides: Get their samples.
        rounds: Other than the context's.

    Raises:
        BenchError: A worker failed, or did not receive what was sent.
    """
    try:
        interleave(context, sides, rounds)
    finally:
        asyncio.run(_delete_streams(context.server))


def own(name: str) -> Contender:
    """Gives a worker of vecmq's: `ours_nats.py`, in a process for each side as the peers.

    Args:
        name: Which of its clients.

    Returns:
        A contender.
    """
    warning = "ignore:vecmq was built without optimisation"
    return Contender(name, (sys.executable, "-W", warning, str(HERE / "ours_nats.py")))


def window(context: NatsContext, name: str, size_bytes: int, full: int) -> int:
    """Finds the window that is best for a Python peer.

    Args:
        context: Keeps what was found.
        name: The peer.
        size_bytes: Of a message.
        full: Messages at scale 1.

    Returns:
        Messages in flight.

    Raises:
        Missing: The peer is not built.
    """
    key = (name, size_bytes, full)
    if key not in context.windows:
        taken = {}
        # A single round is a trial of the code, not of the peers.
        for msgs in WINDOWS if context.rounds > 1 else WINDOWS[-1:]:
            side = in_window(context, name, size_bytes, full, msgs)
            contest(context, [side], min(TRIALS, context.rounds))
            taken[msgs] = side.median("seconds")
        context.windows[key] = min(taken, key=lambda msgs: taken[msgs])
        progress(f"{name}: best with {context.windows[key]} in flight")
    return context.windows[key]


def in_window(context: NatsContext, name: str, size_bytes: int, full: int, msgs: int) -> Side:
    """Makes a Python peer that publishes with a window.

    Args:
        context: Of this run.
        name: The peer.
        size_bytes: Of a message.
        full: Messages at scale 1.
        msgs: In flight.

    Returns:
        The side.

    Raises:
        Missing: The peer is not built.
    """
    count = context.count(full, 4)
    return Side(
        f"{name}-window-{msgs}-of-{size_bytes}",
        peer(name),
        size_bytes,
        count,
        batch=msgs,
        kind="publish",
        window_bytes=max(1, msgs) * size_bytes,
        context=context,
    )


def best(sides: Sequence[Member], key: str = "seconds") -> Member:
    """Picks the side that took least.

    Args:
        sides: After their contest.
        key: What is compared.

    Returns:
        One of them.
    """
    return min(sides, key=lambda side: side.median(key))


def built(names: Sequence[str]) -> list[Contender]:
    """Finds the peers of these that are built.

    Args:
        names: As `make peers` calls them.

    Returns:
        At least one.

    Raises:
        Missing: None of them is built.
    """
    found = []
    for name in names:
        try:
            found.append(peer(name))
        except Missing as missing:
            progress(f"{name}: {missing}")
    if not found:
        raise Missing("not measured: run make peers")
    return found
