"""Frames that a JetStream consumer delivers: acknowledging them, asking for more, fetching others.

Workers of one durable compete for manifests, not for frames: whoever gets the manifest fetches the
frames that others got, by the sequences in its `Vecmq-Seqs`. What becomes of the others:

| stream's retention | frames before the manifest |
|---|---|
| limits | acknowledged at once: they stay in the stream, and count in no max_ack_pending |
| workqueue, interest | acknowledged after the manifest, by the worker that has that |

The worker that has the manifest answers for every frame of the group, whoever got it: the server
goes by the stream's sequence. Frames of unfinished groups are kept from coming again by in-progress
signals. With ack policy "all" or "none" only the caller's own acknowledgement counts.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import nats.errors
from nats.js.api import AckPolicy, RetentionPolicy
from nats.js.errors import APIError, NotFoundError

from vecmq._native import read_frame
from vecmq.bridge._frames import SEQS
from vecmq.bridge._message import Msg
from vecmq.errors import FrameError, IncompleteError

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext

    from vecmq._native import Frame
    from vecmq.bridge._assembly import Groups, OpenGroup

# Frames that a fetch asks for in advance; each may be 2 MiB, and the server gives up on readers
# that do not keep up.
_AHEAD_MAX = 16
# Sequences that are looked at for one group when its manifest names a range with others in it.
_SCAN_MAX = 10_000
_FETCHES = 4
_RANGES = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?(,[0-9]{1,19}(-[0-9]{1,19})?)*")
_ACK_WAIT_S = 30.0


class Consumer(NamedTuple):
    """What has to be known of a stream and its consumer."""

    acks_each: bool
    is_limits: bool
    ack_wait_s: float
    direct: bool


def is_stream_reply(reply: str) -> bool:
    """Tell a JetStream delivery by its reply subject."""
    return reply.startswith("$JS.ACK.")


def _tokens(reply: str) -> tuple[list[str], int]:
    """The tokens of a reply subject, and where in them the stream's name is."""
    tokens = reply.split(".")
    return tokens, 2 if len(tokens) == 9 else 4


def stream_seq(reply: str) -> int:
    """The stream sequence of a delivery."""
    tokens, at = _tokens(reply)
    return int(tokens[at + 3])


async def in_order(jsi: Any, reply: str) -> bool:
    """Tell nats-py's push consumer of a frame, as it notes messages; False: it starts anew."""
    jsi._active = True
    if jsi._ordered:
        tokens = reply.split(".")
        if int(tokens[6]) != jsi._dseq:
            await jsi.reset_ordered_consumer(jsi._sseq + 1)
            return False
        jsi._dseq, jsi._sseq = int(tokens[6]) + 1, int(tokens[5])
    jsi._cmeta = reply
    return True


class StreamSide:
    """What one subscription's groups need to know of the stream that they come from."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self.js: JetStreamContext | None = None
        self._consumer: Consumer | None = None
        self._asking = False
        self._waiting: list[tuple[OpenGroup | None, Frame, str]] = []
        self._beating = False
        self.pull: str | None = None  # where a pull consumer is asked for messages
        self.more: Subscription | None = None  # where the additional ones arrive
        # Of the fetches that wait, by what tells them apart.
        self._deadlines: dict[object, float] = {}
        self._ahead: dict[str, int] = {}

    async def frame_came(self, group: OpenGroup | None, frame: Frame, reply: str) -> None:
        """Settle a delivery; group None: its group is over."""
        if group is not None:
            group.seqs[frame.index] = stream_seq(reply)
        is_manifest = frame.index + 1 == frame.count
        if self._consumer is None and not is_manifest:
            self._waiting.append((group, frame, reply))
            self._ask(reply)
        elif not is_manifest:
            await self._settle(group, frame, reply)
        if self.pull and self._deadlines and not (is_manifest and group and not group.missing):
            await self._ask_for_more(frame)

    def helpers(self) -> list[Subscription]:
        """Give up the subscription on which additional messages arrive."""
        helpers, self.more = [] if self.more is None else [self.more], None
        return helpers

    async def settled_with(self, seqs: list[int], reply: str) -> list[str]:
        """The replies of the frames at `seqs`, which are settled with their manifest.

        Asked when the message is settled: a whole backlog can be here before the server has said
        what kind of stream it comes from.
        """
        await self._look_up(reply)
        consumer = self._consumer
        if consumer is None or consumer.is_limits or not consumer.acks_each:
            return []
        # The server goes by the stream's sequence: any worker may answer for any delivery.
        tokens, at = _tokens(reply)
        return [".".join([*tokens[: at + 3], str(seq), *tokens[at + 4 :]]) for seq in seqs]

    async def complete(self, group: OpenGroup) -> None:
        """Fetch the frames that others got, then deliver the group."""
        assert group.manifest is not None
        _, reply, fields = group.manifest
        beat = asyncio.create_task(self._beat_one(reply))
        try:
            await self._look_up(reply)
            await self._fetch(group, reply, fields)
        except FrameError as error:
            group.completing = False
            await self._groups.drop(group, error, reply)
            return
        except (TimeoutError, nats.errors.Error) as error:
            # Not acknowledged: it comes again.
            group.completing = False
            await self._groups.drop(group, error, None)
            return
        finally:
            beat.cancel()
        if group.id in self._groups.open:
            await self._groups.deliver(group)

    async def _fetch(self, group: OpenGroup, reply: str, fields: dict[str, str]) -> None:
        tokens, at = _tokens(reply)
        wanted = _sequences(fields.get(SEQS), stream_seq(reply), len(group.frames))
        known = (
            set(group.seqs.values())
            if not group.missing
            else {seq for index, seq in group.seqs.items() if group.frames[index] is not None}
        )
        seqs = [seq for seq in wanted if seq not in known]
        for start in range(0, len(seqs), _FETCHES):
            if not group.missing:
                break
            some = seqs[start : start + _FETCHES]
            await asyncio.gather(*(self._fetch_one(group, tokens[at], seq) for seq in some))
        if group.missing:
            raise IncompleteError(
                f"message {group.id}: {group.missing} of {len(group.frames)} frames are not in "
                f"stream {tokens[at]!r} any more"
            )

    async def _fetch_one(self, group: OpenGroup, stream: str, seq: int) -> None:
        direct = self._consumer is not None and self._consumer.direct
        try:
            raw = await self._context().get_msg(stream, seq=seq, direct=direct)
        except NotFoundError:
            return
        fields = raw.headers or {}
        frame = read_frame(fields, raw.data or b"") if "Vecmq-Frame" in fields else None
        # It may have been given up meanwhile.
        is_open = self._groups.open.get(group.id) is group
        if frame is not None and frame.id == group.id and is_open:
            self._groups.keep(group, frame, fields, needed=True)
            group.seqs[frame.index] = seq

    def _ask(self, reply: str) -> None:
        if not self._asking:
            self._asking = True
            self._groups.run(self._settle_waiting(reply))

    async def _settle_waiting(self, reply: str) -> None:
        await self._look_up(reply)
        while self._waiting:
            await self._settle(*self._waiting.pop(0))

    async def _look_up(self, reply: str) -> None:
        """Ask the server once what kind of stream and consumer this is."""
        if self._consumer is not None:
            return
        tokens, at = _tokens(reply)
        js = self._context()
        try:
            stream = (await js.stream_info(tokens[at])).config
            consumer = (await js.consumer_info(tokens[at], tokens[at + 1])).config
        except (TimeoutError, nats.errors.Error, APIError) as error:
            await self._groups.client._error_cb(error)
            self._consumer = Consumer(True, False, _ACK_WAIT_S, False)  # loses nothing
            return
        self._consumer = Consumer(
            acks_each=consumer.ack_policy in (None, AckPolicy.EXPLICIT),
            is_limits=stream.retention in (None, RetentionPolicy.LIMITS),
            ack_wait_s=consumer.ack_wait or _ACK_WAIT_S,
            direct=bool(stream.allow_direct),
        )

    def _context(self) -> JetStreamContext:
        if self.js is None:
            self.js = self._groups.client.jetstream()
        return self.js

    async def _settle(self, group: OpenGroup | None, frame: Frame, reply: str) -> None:
        consumer = self._consumer
        if consumer is None or not consumer.acks_each:
            return
        if consumer.is_limits:
            await self._groups.client.publish(reply)
        elif group is not None and group.id in self._groups.open:
            group.unacked[frame.index] = reply
            if not self._beating:
                self._beating = True
                self._groups.run(self._beat(consumer.ack_wait_s / 3))

    async def _beat(self, pause_s: float) -> None:
        """Keep the unacknowledged frames of open groups from being sent again."""
        groups = self._groups.open
        try:
            while any(group.unacked for group in groups.values()):
                await asyncio.sleep(pause_s)
                for reply in [r for group in groups.values() for r in group.unacked.values()]:
                    await self._groups.client.publish(reply, Msg.Ack.Progress)
        finally:
            self._beating = False

    async def _beat_one(self, reply: str) -> None:
        while True:
            consumer = self._consumer
            await asyncio.sleep(1.0 if consumer is None else consumer.ack_wait_s / 3)
            await self._groups.client.publish(reply, Msg.Ack.Progress)

    def pull_begins(self, timeout_s: float | None) -> object:
        """A fetch waits for messages; give what ends it."""
        fetch, now_s = object(), asyncio.get_running_loop().time()
        self._deadlines[fetch] = now_s + (3600.0 if timeout_s is None else timeout_s)
        self._ahead.clear()
        return fetch

    def pull_ends(self, fetch: object) -> None:
        """That fetch is over."""
        del self._deadlines[fetch]

    async def _ask_for_more(self, frame: Frame) -> None:
        """A frame took the place of a message that a fetch asked for: ask for the rest of it."""
        ahead = self._ahead.get(frame.id, 0)
        if ahead > 0:
            self._ahead[frame.id] = ahead - 1
            return
        wanted = min(max(frame.count - frame.index - 1, 1), _AHEAD_MAX)
        self._ahead[frame.id] = wanted - 1
        left_s = max(self._deadlines.values()) - asyncio.get_running_loop().time()
        if left_s <= 0:
            return
        client = self._groups.client
        if self.more is None:
            self.more = await client.subscribe(client.new_inbox())
            self.more._vecmq_groups = self._groups  # type: ignore[attr-defined]
        request: dict[str, Any] = {"batch": wanted, "expires": int(left_s * 1e9)}
        assert self.pull is not None
        await client.publish(self.pull, json.dumps(request).encode(), self.more.subject)


def _sequences(ranges: str | None, manifest: int, count: int) -> list[int]:
    """The stream sequences where a group's frames may be, oldest first."""
    if ranges is None or not _RANGES.fullmatch(ranges):
        # Published without acknowledgements: close before the manifest, most likely.
        return list(range(max(manifest - 4 * count, 1), manifest))
    out: list[int] = []
    for piece in ranges.split(","):
        start, _, end = piece.partition("-")
        last = min(int(end or start), manifest - 1)
        out.extend(range(max(int(start), last - _SCAN_MAX, 1), last + 1))
        if len(out) > _SCAN_MAX:
            break
    return out[:_SCAN_MAX]
