"""NATS peers: one process publishes, a child receives, as in an application.

In one process the two would share one interpreter lock, which would show the client worse than it
is. Each process has an event loop that goes on in between operations, so that the server's pings
are answered.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import selectors
import threading
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from peer import (
    EXTRA_S,
    STALL_S,
    WINDOW_BYTES,
    Checker,
    Meter,
    PeerError,
    Spec,
    make_payloads,
    make_sample,
    receive_window,
)

# The server's limit for what may be unacknowledged; far above every window.
ACK_PENDING_MSGS = 65536
CONSUMER = "bench"
READY_TIMEOUT_S = 30.0
PREPARE_TIMEOUT_S = 300.0
# Below this a sleep oversleeps; the wait for the next due message turns into a loop.
SPIN_S = 0.0002

T = TypeVar("T")
WaitDue = Callable[[int], Awaitable[None]]


class Client(ABC):
    """One connection of a client library; either publishes or receives.

    Attributes:
        versions: Of the library.
        window_msgs: Publishes in flight that are best for small messages.
        fetch_msgs: Messages of a pull that are best for small messages.
        publish_bytes: Bytes in flight that are best for large messages.
        is_paced: Messages are sent at a rate, each is to leave at once.
        is_on_uvloop: The client is faster on uvloop's event loop than on asyncio's own.
    """

    versions: dict[str, str]
    window_msgs = 512
    fetch_msgs = 512
    publish_bytes = WINDOW_BYTES
    is_paced = False
    is_on_uvloop = False

    @abstractmethod
    async def connect(self, url: str, token: str | None, window: int) -> None:
        """Connects; window is the number of publishes in flight."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnects."""

    @abstractmethod
    async def make_stream(self, name: str) -> None:
        """Makes a stream of that name and subject in files."""

    @abstractmethod
    async def delete_stream(self, name: str) -> None:
        """Deletes a stream."""

    @abstractmethod
    async def publish(self, name: str, payload: bytes) -> Awaitable[Any]:
        """Hands a message over.

        Args:
            name: Subject.
            payload: Message.

        Returns:
            Its acknowledgement, to be awaited.
        """

    async def publish_one(self, name: str, payload: bytes) -> None:
        """Publishes one message and waits for its acknowledgement."""
        await (await self.publish(name, payload))

    async def publish_all(
        self, name: str, payloads: Sequence[bytes], window: int, wait_due: WaitDue | None
    ) -> None:
        """Publishes messages in their order and waits for all acknowledgements.

        Args:
            name: Subject.
            payloads: Messages.
            window: How many may be in flight.
            wait_due: Returns when the message of that number is due; None: all are due at once.
        """
        in_flight = _Window(self, name, window)
        for number, payload in enumerate(payloads):
            if wait_due is not None:
                await wait_due(number)
            await in_flight.publish(payload)
        await in_flight.drain()

    @abstractmethod
    async def subscribe(self, name: str, batch: int) -> None:
        """Makes a durable pull consumer, where one acknowledgement stands for all before it."""

    @abstractmethod
    async def receive(self, batch: int, timeout_s: float) -> list[bytes]:
        """Receives what there is, at least one message.

        Args:
            batch: Messages at most.
            timeout_s: How long to wait for the first one.

        Returns:
            Payloads; empty when none came.
        """

    @abstractmethod
    async def acknowledge(self) -> None:
        """Acknowledges all that was received, and waits until that is on its way."""

    async def core_publish(self, name: str, payload: bytes) -> None:
        """Publishes a message that is not stored."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Waits until the server has all that was handed over."""
        raise NotImplementedError

    async def core_subscribe(self, name: str) -> None:
        """Subscribes, without a stream; the server knows of it when this ends."""
        raise NotImplementedError

    async def core_receive(self, timeout_s: float) -> list[bytes]:
        """Receives from that subscription what there is, at least one message.

        Args:
            timeout_s: How long to wait for the first one.

        Returns:
            Payloads; empty when none came.
        """
        raise NotImplementedError

    async def unsubscribe(self) -> None:  # noqa: B027, most have nothing to stop
        """Ends what `subscribe` and `receive` have left running."""


class Loop:
    """An event loop in a thread of its own.

    Args:
        name: Name of the thread.
        client: Runs on it.
    """

    def __init__(self, name: str, client: Client) -> None:
        self._loop: asyncio.AbstractEventLoop
        if client.is_paced:
            # Its timeouts are exact to a microsecond; those of epoll, which is faster, and of
            # uvloop to a millisecond.
            self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        elif client.is_on_uvloop:
            import uvloop

            self._loop = uvloop.new_event_loop()
        else:
            self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine to its end.

        Args:
            work: The coroutine.

        Returns:
            Its result.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        """Ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class JetStream:
    """Publishes here, receives in a child.

    Args:
        spec: The workload.
        make_client: Gives the client; called in each process.
    """

    def __init__(self, spec: Spec, make_client: type[Client]) -> None:
        if spec.url is None:
            raise PeerError("expected a server in the spec, got null")
        self._spec = spec
        self._window = spec.window(make_client.window_msgs)
        self._stream = ""
        self._payloads: list[bytes] = []
        # Forked before this process has a thread.
        forking = multiprocessing.get_context("fork")
        self._child, theirs = forking.Pipe()
        self._process = forking.Process(
            target=_receiver, args=(spec, make_client, self._child, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._client = make_client()
        self._client.is_paced = spec.rate_per_s is not None
        self._client.publish_bytes = spec.window_bytes
        self._loop = Loop("publisher", self._client)
        self._loop.run(self._client.connect(spec.url, spec.token, self._window))
        self._ask(None, READY_TIMEOUT_S)

    def ready(self) -> dict[str, Any]:
        """Gives the first answer's "versions" and "batch"."""
        return {"versions": self._client.versions, "batch": self._window}

    def prepare(self, number: int) -> None:
        """Makes stream, consumer and payloads, and drops those of the operation before."""
        is_stored = self._spec.workload != "core"
        if self._stream and is_stored:
            self._loop.run(self._client.delete_stream(self._stream))
        self._stream = f"bench-{number}"
        if is_stored:
            self._loop.run(self._client.make_stream(self._stream))
        self._child.send(("prepare", number))
        self._payloads = []
        self._payloads = make_payloads(self._spec, number)
        settle()
        self._ask(None, PREPARE_TIMEOUT_S)

    def run(self) -> dict[str, Any]:
        """Publishes and receives.

        Returns:
            The sample.
        """
        is_concurrent = self._spec.workload != "publish"
        if is_concurrent:
            self._child.send(("go", 0))
        meter = Meter()
        started, published = self._loop.run(self._publish())
        taken = {f"publish_{key}": value for key, value in meter.stop().items()}
        if not is_concurrent:
            self._child.send(("go", 0))
        ended, received, arrivals = self._ask(None, None)
        return make_sample(self._spec, (started, published, ended), received, arrivals) | taken

    def close(self) -> None:
        """Ends the child and disconnects."""
        self._child.close()
        self._loop.run(self._client.close())
        self._loop.stop()
        self._process.join(STALL_S)

    def _ask(self, request: Any, timeout_s: float | None) -> Any:
        if request is not None:
            self._child.send(request)
        if not self._child.poll(timeout_s):
            raise PeerError(f"the receiver did not answer within {timeout_s} s")
        try:
            answer = self._child.recv()
        except EOFError:
            raise PeerError("the receiver has ended") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _publish(self) -> tuple[int, int]:
        # The receiver, too, is to find its loop running.
        await asyncio.sleep(0)
        started = time.monotonic_ns()
        if self._spec.workload == "core":
            for payload in self._payloads:
                await self._client.core_publish(self._stream, payload)
            await self._client.flush()
        elif self._spec.batch == 1 and self._spec.rate_per_s is None:
            for payload in self._payloads:
                await self._client.publish_one(self._stream, payload)
        else:
            wait_due = self._clock(started)
            await self._client.publish_all(self._stream, self._payloads, self._window, wait_due)
        return started, time.monotonic_ns()

    def _clock(self, started_ns: int) -> WaitDue | None:
        if self._spec.rate_per_s is None:
            return None
        step_ns = 1e9 / self._spec.rate_per_s

        async def wait_due(number: int) -> None:
            due_ns = started_ns + number * step_ns
            # No event comes; it is time that is waited for.
            while (wait_s := (due_ns - time.monotonic_ns()) / 1e9) > 0:  # noqa: ASYNC110
                await asyncio.sleep(max(wait_s - SPIN_S, 0.0))

        return wait_due


class _Window:
    """Publishes in flight, limited by their number and their bytes."""

    def __init__(self, client: Client, name: str, msgs_max: int) -> None:
        self._client = client
        self._name = name
        self._msgs_max = msgs_max
        self._bytes = 0
        self._acks: deque[tuple[Awaitable[Any], int]] = deque()

    async def publish(self, payload: bytes) -> None:
        size = len(payload)
        while self._acks and (
            len(self._acks) >= self._msgs_max or self._bytes + size > self._client.publish_bytes
        ):
            await self._take_oldest()
        self._acks.append((await self._client.publish(self._name, payload), size))
        self._bytes += size

    async def drain(self) -> None:
        while self._acks:
            await self._take_oldest()

    async def _take_oldest(self) -> None:
        ack, size = self._acks.popleft()
        await ack
        self._bytes -= size


def settle() -> None:
    """Takes what is there out of the garbage collector's sight, so that it does not run for it."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _receiver(spec: Spec, make_client: type[Client], parents: Connection, pipe: Connection) -> None:
    """The child: answers the parent's requests until the parent is gone."""
    parents.close()
    assert spec.url is not None
    client = make_client()
    loop = Loop("receiver", client)
    batch = receive_window(spec, client.fetch_msgs)
    try:
        loop.run(client.connect(spec.url, spec.token, 1))
        pipe.send(None)
        checker = Checker([])
        while True:
            match pipe.recv():
                case ("prepare", number):
                    # Freed first: there is room for one set of payloads.
                    checker = Checker([])
                    loop.run(client.unsubscribe())
                    checker = Checker(make_payloads(spec, number))
                    settle()
                    loop.run(_subscribe(client, spec, f"bench-{number}", batch))
                    pipe.send(None)
                case _ if spec.workload == "core":
                    pipe.send(loop.run(_core_receive(client, checker)))
                case _:
                    pipe.send(loop.run(_receive(client, checker, batch)))
    except (EOFError, BrokenPipeError):
        loop.run(client.close())
    except Exception as error:  # noqa: BLE001, the parent tells it
        pipe.send(PeerError(f"receiver: {type(error).__name__}: {error}"))


async def _subscribe(client: Client, spec: Spec, name: str, batch: int) -> None:
    if spec.workload == "core":
        await client.core_subscribe(name)
    else:
        await client.subscribe(name, batch)


async def _core_receive(client: Client, checker: Checker) -> tuple[int, dict[str, Any], array[int]]:
    """Receives and verifies until the last message or a stall."""
    while checker.missing_count:
        payloads = await client.core_receive(STALL_S)
        if not payloads:
            break
        checker.take(payloads)
    ended = time.monotonic_ns()
    checker.take(await client.core_receive(EXTRA_S))
    return ended, checker.sample(), checker.received_at_ns


async def _receive(
    client: Client, checker: Checker, batch: int
) -> tuple[int, dict[str, Any], array[int]]:
    """Receives, verifies and acknowledges until the last message or a stall."""
    meter = Meter()
    unacknowledged = 0
    while checker.missing_count:
        payloads = await client.receive(min(batch, checker.missing_count), STALL_S)
        if not payloads:
            break
        checker.take(payloads)
        unacknowledged += len(payloads)
        # A half, so that the server never waits for it.
        if unacknowledged * 2 >= batch or not checker.missing_count:
            await client.acknowledge()
            unacknowledged = 0
    ended = time.monotonic_ns()
    taken = {f"receive_{key}": value for key, value in meter.stop().items()}
    checker.take(await client.receive(batch, EXTRA_S))
    return ended, checker.sample() | taken, checker.received_at_ns
