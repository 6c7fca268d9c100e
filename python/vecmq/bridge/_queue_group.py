"""Groups that are published without JetStream to a queue group of subscribers.

The server gives every frame to any member. Whoever gets the manifest claims the others: it asks on
a subject that all members of the queue group know, and they send it what they have, and what they
get later. That subject begins with the client's inbox prefix, which has to be the same for all.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.aio.msg import Msg as NatsMsg
    from nats.aio.subscription import Subscription

    from vecmq._native import Frame, Payload
    from vecmq.bridge._assembly import Groups, OpenGroup
    from vecmq.bridge._frames import Fields

# A member may learn of the subject after the first claim, and frames may come later: asked again.
_CLAIM_PAUSES_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
_CLAIMS_MAX = 1024


class QueueSide:
    """One member's part in putting groups together."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._claims: Subscription | None = None
        self._inbox: Subscription | None = None
        self._claimed: dict[str, str] = {}  # message id -> where its frames go

    async def frame_came(
        self, group: OpenGroup, frame: Frame, fields: Fields, body: bytes | Payload
    ) -> None:
        """Keep a frame for whoever claims it, or claim the others."""
        if group.manifest is None:
            group.wire[frame.index] = (fields, body)
            if self._claims is None:
                client = self._groups.client
                self._claims = await client.subscribe(self._subject(), cb=self._claim_came)
        elif frame.index + 1 == frame.count and not group.is_whole:
            self._groups.run(self._claim(group))

    async def forward(self, frame: Frame, fields: Fields, body: bytes | Payload) -> bool:
        """Send a frame to the member that claimed it; False: nobody did."""
        inbox = self._claimed.get(frame.id)
        if inbox is None or frame.index + 1 == frame.count:
            return False
        await self._groups.client.send_frame(inbox, body, "", fields)
        return True

    def helpers(self) -> list[Subscription]:
        """Give up the subscriptions that the other members send to."""
        helpers = [sub for sub in (self._claims, self._inbox) if sub is not None]
        self._claims = self._inbox = None
        return helpers

    async def _claim(self, group: OpenGroup) -> None:
        client = self._groups.client
        if self._inbox is None:
            self._inbox = await client.subscribe(client.new_inbox())
            self._inbox._vecmq_groups = self._groups  # type: ignore[attr-defined]
        for pause_s in _CLAIM_PAUSES_S:
            if group.id not in self._groups.open:
                return
            await client.publish(self._subject(), group.id.encode(), self._inbox.subject)
            await asyncio.sleep(pause_s)

    async def _claim_came(self, msg: NatsMsg) -> None:
        name = msg.data.decode("ascii", "replace")
        group = self._groups.open.get(name)
        if group is not None and group.manifest is not None:
            return  # our own claim
        self._claimed[name] = msg.reply
        if len(self._claimed) > _CLAIMS_MAX:
            del self._claimed[next(iter(self._claimed))]
        if group is not None:
            self._groups.forget(group)
            for fields, body in group.wire.values():
                await self._groups.client.send_frame(msg.reply, body, "", fields)

    def _subject(self) -> str:
        sub = self._groups.sub
        name = hashlib.blake2b(f"{sub.subject} {sub.queue}".encode(), digest_size=16).hexdigest()
        return f"{self._groups.client._inbox_prefix.decode()}.vecmq.{name}"
