"""The frames that one subscription receives -> whole messages."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import nats.errors

from vecmq._native import join_frames, read_frame
from vecmq.bridge._frames import MSG_ID
from vecmq.bridge._message import Msg
from vecmq.bridge._queue_group import QueueSide
from vecmq.bridge._stream import StreamSide, is_stream_reply
from vecmq.errors import CorruptError, FrameError, IncompleteError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nats.aio.subscription import Subscription

    from vecmq._native import Frame, Payload
    from vecmq.bridge._client import Client
    from vecmq.bridge._frames import Fields

# A group that got no frame for so long has lost its publisher, or another worker has the rest.
IDLE_S = 60.0
# Ids of groups that are over, for frames that come late or again.
_OVER_MAX = 1024


class OpenGroup:
    """A group of which not all frames came yet."""

    def __init__(self, frame: Frame) -> None:
        self.id = frame.id
        self.frames: list[Frame | None] = [None] * frame.count
        self.missing = frame.count
        self.held_bytes = 0
        self.touched = 0.0
        self.first_fields: Fields = {}
        # Of the frames that came from a stream: index -> stream seq, and the replies not yet sent.
        self.seqs: dict[int, int] = {}
        self.unacked: dict[int, str] = {}
        # As they came, of a queue group's member: it may have to send them on.
        self.wire: dict[int, tuple[Fields, bytes | Payload]] = {}
        # Subject, reply and fields of the last frame, once it came.
        self.manifest: tuple[str, str, Fields] | None = None
        self.completing = False

    @property
    def is_whole(self) -> bool:
        return self.manifest is not None and not self.missing

    def put(self, frame: Frame, fields: Fields) -> bool:
        """Put a frame into its slot; False: it is there already.

        Raises:
            CorruptError: Another one is there.
        """
        if len(self.frames) != frame.count:
            raise CorruptError(f"frame {frame.index} of message {frame.id} contradicts its group")
        known = self.frames[frame.index]
        if known is not None:
            if not known.same(frame):
                raise CorruptError(
                    f"frame {frame.index} of message {frame.id} came with two contents"
                )
            return False
        self.frames[frame.index] = frame
        self.missing -= 1
        self.held_bytes += frame.body_bytes
        if frame.index == 0:
            self.first_fields = fields
        return True


class Groups:
    """Puts the groups of one subscription together, within its `pending_bytes_limit`."""

    def __init__(self, client: Client, sub: Subscription) -> None:
        self.client = client
        self.sub = sub
        self.stream = StreamSide(self)
        self.queue = QueueSide(self)
        self.open: dict[str, OpenGroup] = {}
        self._over: dict[str, None] = {}
        self._held_bytes = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(
        self, frame: Frame, subject: str, reply: str, fields: Fields, body: bytes | Payload
    ) -> None:
        """Take one frame as it came; deliver the message when it was the last one missing."""
        if await self.queue.forward(frame, fields, body):
            return
        from_stream = is_stream_reply(reply)
        is_manifest = frame.index + 1 == frame.count
        if frame.id in self._over and not (from_stream and is_manifest):
            if from_stream:
                await self.stream.frame_came(None, frame, reply)
            return
        group = self.open.get(frame.id) or OpenGroup(frame)
        group.touched = asyncio.get_running_loop().time()
        try:
            self.keep(group, frame, fields, needed=is_manifest or not from_stream)
        except FrameError as error:
            await self.drop(group, error, reply if from_stream else None)
            return
        self.open[frame.id] = group
        self._watch()
        if is_manifest:
            group.manifest = (subject, reply, fields)
        if from_stream:
            await self.stream.frame_came(group, frame, reply)
        if group.is_whole:
            await self.deliver(group)
        elif not from_stream and self.sub.queue:
            await self.queue.frame_came(group, frame, fields, body)
        elif from_stream and is_manifest and not group.completing:
            group.completing = True
            self.run(self.stream.complete(group))

    async def lose(self, fields: Fields, reply: str, error: Exception) -> None:
        """Say that a frame was dropped; without JetStream its message is gone with it."""
        with contextlib.suppress(FrameError):
            frame = read_frame(fields, b"")
            if frame is not None and not is_stream_reply(reply):
                if frame.id not in self._over:
                    await self.drop(self.open.get(frame.id) or OpenGroup(frame), error, None)
                return
        await self.client._error_cb(error)

    async def deliver(self, group: OpenGroup) -> None:
        """Hand a whole group to the subscription, as one message."""
        assert group.manifest is not None
        subject, reply, fields = group.manifest
        self.forget(group)
        try:
            data, dtype, shape = join_frames([f for f in group.frames if f is not None])
        except FrameError as error:
            await self.drop(group, error, reply if is_stream_reply(reply) else None)
            return
        msg = Msg(self.client, subject, reply, data, _visible(group, fields))
        msg.dtype, msg.shape, msg._sid = dtype, shape, self.sub._id
        if is_stream_reply(reply):
            seqs = [seq for index, seq in group.seqs.items() if index + 1 < len(group.frames)]
            msg._frame_replies = functools.partial(self.stream.settled_with, seqs, reply)
        await self.client.deliver(self.sub, msg)

    async def drop(self, group: OpenGroup, error: Exception, reply: str | None) -> None:
        """Give a group up: its error goes to the error callback, and it is counted.

        Args:
            group: It need not have been begun.
            error: Why.
            reply: The stream's reply subject, when sending it again would not help.
        """
        self.forget(group)
        self.client.shared.groups_dropped += 1
        if reply is not None:
            await self.client.publish(reply, Msg.Ack.Term)
        await self.client._error_cb(error)

    def keep(self, group: OpenGroup, frame: Frame, fields: Fields, *, needed: bool) -> None:
        """Put a frame into its group, where there is room.

        Raises:
            FrameError: It does not belong there, or there is no room and it is needed.
        """
        if self._has_room(frame, needed=needed) and group.put(frame, fields):
            self._held_bytes += frame.body_bytes

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the connection's reading task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Let go of everything; the subscription is over, or begins anew."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for task in self._tasks:
            task.cancel()
        self.open.clear()
        self._held_bytes = 0
        helpers = [*self.queue.helpers(), *self.stream.helpers()]
        if helpers and not self.client.is_closed:
            self.run(_unsubscribe(helpers))

    def _has_room(self, frame: Frame, *, needed: bool) -> bool:
        """Say whether a frame may be kept; what a stream has can be fetched from there later.

        Raises:
            TooLargeError: It may not, and it is needed.
        """
        largest = self.client._vecmq_options.message_bytes_max
        limit = self.sub._pending_bytes_limit
        held_bytes = self._held_bytes + self.sub._pending_size
        if frame.total_bytes <= largest and (
            limit <= 0 or max(frame.total_bytes, held_bytes + frame.body_bytes) <= limit
        ):
            return True
        if needed:
            raise TooLargeError(
                f"message {frame.id} of {frame.total_bytes} bytes beside {held_bytes} of others: "
                f"message_bytes_max is {largest} bytes, the subscription's "
                f"pending_bytes_limit {limit} bytes"
            )
        return False

    def forget(self, group: OpenGroup) -> None:
        """Let go of a group; what still comes of it is nobody's."""
        if self.open.pop(group.id, None) is not None:
            self._held_bytes -= group.held_bytes
        self._over[group.id] = None
        if len(self._over) > _OVER_MAX:
            del self._over[next(iter(self._over))]

    def _watch(self) -> None:
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(IDLE_S / 2, self._sweep)

    def _sweep(self) -> None:
        """Give up what is dead: no frame came for long, and nobody works on it."""
        self._sweeper = None
        now = asyncio.get_running_loop().time()
        idle = [g for g in self.open.values() if now - g.touched > IDLE_S and not g.completing]
        for group in idle:
            if (
                group.seqs
            ):  # the stream has it, and its manifest went to another worker or is not there
                self.forget(group)
                self.client.shared.groups_swept += 1
            else:
                missing = f"{group.missing} of {len(group.frames)} frames did not come"
                error = IncompleteError(f"message {group.id}: {missing}")
                self.run(self.drop(group, error, None))
        if self.open:
            self._watch()


async def _unsubscribe(subs: list[Subscription]) -> None:
    for sub in subs:
        with contextlib.suppress(nats.errors.Error):
            await sub.unsubscribe()


def _visible(group: OpenGroup, fields: Fields) -> Fields | None:
    """Give the caller's headers, without those that only frames have."""
    out: Fields = {}
    for index, some in ((0, group.first_fields), (len(group.frames) - 1, fields)):
        for key, value in some.items():
            own = key == MSG_ID and value == f"{group.id}-{index}"
            if not own and not key.startswith("Vecmq-"):
                out[key] = value
    return out or None
