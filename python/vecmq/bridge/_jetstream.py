"""`JetStream`: nats-py's context, with payloads of any kind and size."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from vecmq._native import seq_ranges
from vecmq.bridge._frames import SEQS, checksums, header_bytes, merge
from vecmq.errors import BufferMutatedError

if TYPE_CHECKING:
    from nats.js.api import PubAck

    from vecmq._payload import Normalised
    from vecmq.bridge._assembly import Groups
    from vecmq.bridge._client import Client
    from vecmq.bridge._frames import Fields, Frame, Group

_FRAMES_IN_FLIGHT_MAX = 8


class JetStream(JetStreamContext):
    """nats-py's JetStream context with wider payloads; everything else is inherited."""

    _nc: Client

    def __init__(self, conn: Client, **opts: Any) -> None:
        super().__init__(conn, **opts)
        self._vecmq_tasks: set[asyncio.Task[PubAck]] = set()
        # Set when the manifest of the last group has left, or never will.
        self._vecmq_turn = asyncio.Event()
        self._vecmq_turn.set()

    async def publish(
        self,
        subject: str,
        payload: Any = b"",
        timeout: float | None = None,  # noqa: ASYNC109 - nats-py's signature
        stream: str | None = None,
        headers: dict[str, Any] | None = None,
        msg_ttl: float | None = None,
    ) -> PubAck:
        """Publish one message and wait until the stream has it.

        Copies besides nats-py's own: 0 (raw), 1 (coded). A writable array may be changed
        again once this returns.

        Args:
            subject: Subject that a stream listens on. Subjects that begin with "$" are the
                server's and take plain bytes that fit only.
            payload: bytes, buffer or array, as `vecmq.Publisher.publish` takes it.
            timeout: Seconds until the server has to acknowledge a frame, for each frame before it
                that is still on its way; None: the context's default.
            stream: Name of the stream that is expected to take it.
            headers: Headers of the message; never changed. `Nats-Msg-Id` names the whole message:
                a repeat within the stream's duplicate window is stored once.
            msg_ttl: Seconds until the stream deletes it (server >= 2.11).

        Returns:
            PubAck(stream, seq, ..., duplicate); of a group that of its last frame.

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload is over the limit given to `connect` or `wrap`.
            InvalidHeadersError: A `Vecmq-*` header, one that no group of frames can carry, or more
                than 60 KiB of them on a group.
            BufferMutatedError: The array was changed meanwhile; readers never see the message.
            nats.errors.Error: Whatever nats-py raises, unchanged. `MaxPayloadError` when headers
                and payload cannot fit, before anything is sent: the server would close the
                connection.
        """
        fields = merge(headers, stream, msg_ttl)
        normal = self._nc.as_frames(subject, payload, fields)
        if normal is None:
            return await super().publish(subject, payload, timeout=timeout, headers=fields)
        if normal.dtype is None and self._nc.fits(normal.view, fields):
            body: Any = normal.view
            return await super().publish(subject, body, timeout=timeout, headers=fields)
        return await self._publish_group(subject, normal, timeout, fields or {})

    async def publish_async(
        self,
        subject: str,
        payload: Any = b"",
        wait_stall: float | None = None,
        stream: str | None = None,
        headers: dict[str, Any] | None = None,
        msg_ttl: float | None = None,
    ) -> asyncio.Future[PubAck]:
        """Publish one message; its acknowledgement can be awaited.

        A message takes one place of `publish_async_max_pending`, whatever number of frames it is.
        A group may be overtaken by messages that are published while it is on its way: await it
        where the order matters.

        Args:
            subject: As `publish`.
            payload: As `publish`.
            wait_stall: Seconds to wait for a place; None waits.
            stream: As `publish`.
            headers: As `publish`.
            msg_ttl: As `publish`.

        Returns:
            Future of the PubAck. Cancelled, a group ends without its last frame.

        Raises:
            nats.js.errors.TooManyStalledMsgsError: No place came free in time.
            Error: As `publish`, what can be said before anything is sent.
        """
        fields = merge(headers, stream, msg_ttl)
        normal = self._nc.as_frames(subject, payload, fields)
        if normal is None or (normal.dtype is None and self._nc.fits(normal.view, fields)):
            body: Any = payload if normal is None else normal.view
            return await super().publish_async(subject, body, wait_stall, headers=fields)
        group = self._planned(subject, normal, fields or {})
        places = self._publish_async_pending_semaphore
        try:
            await asyncio.wait_for(places.acquire(), timeout=wait_stall)
        except (TimeoutError, asyncio.CancelledError):
            raise nats.js.errors.TooManyStalledMsgsError from None
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        name = f"{group.producer.hex()}-{group.seq}"
        self._publish_async_futures[name] = future
        self._publish_async_completed_event.clear()
        task = asyncio.create_task(self._publish_planned(subject, group, self._timeout))
        self._vecmq_tasks.add(task)

        def over(_: object) -> None:
            task.cancel()
            self._publish_async_futures.pop(name, None)
            if not self._publish_async_futures:
                self._publish_async_completed_event.set()
            places.release()

        def published(task: asyncio.Task[PubAck]) -> None:
            self._vecmq_tasks.discard(task)
            if task.cancelled():
                future.cancel()
            elif (error := task.exception()) is not None:
                if not future.done():
                    future.set_exception(error)
            elif not future.done():
                future.set_result(task.result())

        future.add_done_callback(over)
        task.add_done_callback(published)
        await asyncio.sleep(0)  # let it begin: nats-py has sent its message when it returns
        return future

    async def subscribe_bind(
        self,
        stream: str,
        config: api.ConsumerConfig,
        consumer: str,
        cb: Any = None,
        manual_ack: bool = False,
        ordered_consumer: bool = False,
        pending_msgs_limit: int = 512 * 1024,
        pending_bytes_limit: int = 256 * 1024 * 1024,
    ) -> JetStreamContext.PushSubscription:
        """Push-subscribe to an existing consumer, as nats-py does.

        Args:
            stream: The stream's name.
            config: The consumer's.
            consumer: The consumer's name.
            cb: Coroutine function that gets every message.
            manual_ack: Leave acknowledging to `cb`.
            ordered_consumer: The consumer is an ordered one.
            pending_msgs_limit: Messages that may wait for `cb` or `next_msg`.
            pending_bytes_limit: Their bytes, with those of messages of which not all frames came.

        Returns:
            The subscription.
        """
        found = await super().subscribe_bind(
            stream,
            config,
            consumer,
            cb,
            manual_ack,
            ordered_consumer,
            pending_msgs_limit,
            pending_bytes_limit,
        )
        groups: Groups = found._sub._vecmq_groups  # type: ignore[attr-defined]
        groups.stream.js = self
        return found

    async def pull_subscribe_bind(
        self,
        consumer: str | None = None,
        stream: str | None = None,
        inbox_prefix: bytes | None = None,
        pending_msgs_limit: int = 512 * 1024,
        pending_bytes_limit: int = 256 * 1024 * 1024,
        name: str | None = None,
        durable: str | None = None,
    ) -> PullSubscription:
        """Subscribe to an existing pull consumer, as nats-py does.

        Args:
            consumer: The consumer's name.
            stream: The stream's name.
            inbox_prefix: Of the subject that messages arrive on.
            pending_msgs_limit: Messages that may wait for `fetch`.
            pending_bytes_limit: Their bytes, with those of messages of which not all frames came.
            name: The consumer's name, the old way.
            durable: The consumer's name, the old way.

        Returns:
            The subscription.
        """
        found = await super().pull_subscribe_bind(
            consumer,
            stream,
            inbox_prefix,
            pending_msgs_limit,
            pending_bytes_limit,
            name,
            durable,
        )
        deliver = found._deliver.encode()
        return PullSubscription(self, found._sub, found._stream, found._consumer, deliver)

    def _planned(self, subject: str, normal: Normalised, fields: Fields) -> Group:
        group = self._nc.plan(normal, fields)
        self._nc.check_publish(subject, group.size_bytes)
        return group

    async def _publish_group(
        self,
        subject: str,
        normal: Normalised,
        timeout: float | None,  # noqa: ASYNC109
        fields: Fields,
    ) -> PubAck:
        if timeout is None:
            timeout = self._timeout
        if not timeout > 0:  # NaN as well
            raise nats.errors.BadTimeoutError
        return await self._publish_planned(subject, self._planned(subject, normal, fields), timeout)

    async def _publish_planned(
        self,
        subject: str,
        group: Group,
        timeout: float,  # noqa: ASYNC109
    ) -> PubAck:
        connection = await self._nc.native(group)
        if connection is None:
            before, self._vecmq_turn = self._vecmq_turn, asyncio.Event()
            turn = self._vecmq_turn
            try:
                return await self._publish_frames(subject, group, timeout, before, turn)
            finally:
                turn.set()
        link = self._nc.shared.link
        answer = json.loads(await link.store(connection, subject, group, timeout))
        if "error" in answer:
            raise nats.js.errors.APIError.from_error(answer["error"])
        return api.PubAck.from_response(answer)

    async def _publish_frames(
        self,
        subject: str,
        group: Group,
        timeout: float,  # noqa: ASYNC109
        before: asyncio.Event,
        turn: asyncio.Event,
    ) -> PubAck:
        frames = group.frames()
        if len(frames) > 1:
            seqs = await self._store(subject, frames[:1], timeout)
            seqs += await self._store(subject, frames[1:-1], timeout)
            if group.normal.writable and checksums(group.frames()) != checksums(frames):
                raise BufferMutatedError(
                    f"the payload of {group.size_bytes} bytes was changed while it was published"
                )
            frames[-1][0][SEQS] = seq_ranges(seqs)
        await before.wait()
        manifest = asyncio.create_task(self._publish_frame(subject, frames[-1], timeout))
        try:
            await asyncio.sleep(0)  # it is handed to nats-py
            turn.set()
            return await manifest
        finally:
            manifest.cancel()

    async def _store(self, subject: str, frames: list[Frame], timeout_s: float) -> list[int]:
        """Send frames in order, a window of them in flight, and wait for every ack."""
        in_flight: deque[asyncio.Task[PubAck]] = deque()
        seqs = []
        try:
            for frame in frames:
                if len(in_flight) == _FRAMES_IN_FLIGHT_MAX:
                    seqs.append((await in_flight.popleft()).seq)
                publish = self._publish_frame(subject, frame, timeout_s * (1 + len(in_flight)))
                in_flight.append(asyncio.create_task(publish))
            while in_flight:
                seqs.append((await in_flight.popleft()).seq)
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
        return seqs

    async def _publish_frame(self, subject: str, frame: Frame, timeout_s: float) -> PubAck:
        fields, body = frame
        # Looked up for every frame: a reconnect can lower it, and nats-py forgets to count headers.
        if header_bytes(fields) + len(body) > self._nc.max_payload:
            raise nats.errors.MaxPayloadError
        data: Any = body  # nats-py says bytes, and takes any flat view of bytes
        return await super().publish(subject, data, timeout=timeout_s, headers=fields)


class PullSubscription(JetStreamContext.PullSubscription):
    """nats-py's pull subscription, whose `fetch` counts whole messages."""

    def __init__(self, js: JetStream, sub: Any, stream: str, consumer: Any, deliver: bytes) -> None:
        super().__init__(js, sub, stream, consumer, deliver)
        groups: Groups = sub._vecmq_groups
        self._vecmq_stream = groups.stream
        self._vecmq_stream.js, self._vecmq_stream.pull = js, self._nms

    async def fetch(
        self,
        batch: int = 1,
        timeout: float | None = 5,  # noqa: ASYNC109 - nats-py's signature
        heartbeat: float | None = None,
    ) -> list[Any]:
        """Fetch messages, each of them whole.

        Args:
            batch: How many at most.
            timeout: Seconds until the first has to be there.
            heartbeat: Seconds between the server's signs of life.

        Returns:
            Messages, one or more.

        Raises:
            nats.errors.TimeoutError: None came in time.
            nats.errors.Error: Whatever nats-py raises.
        """
        waiting = self._vecmq_stream.pull_begins(timeout)
        try:
            return await super().fetch(batch, timeout, heartbeat)
        finally:
            self._vecmq_stream.pull_ends(waiting)
