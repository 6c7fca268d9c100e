"""A message that came as a group of frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import nats.aio.msg

from vecmq._payload import to_array

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vecmq._payload import Array


@dataclass
class Msg(nats.aio.msg.Msg):
    """A nats-py message whose payload came in frames: `data` is all of it.

    Everything that nats-py's has, it has: `ack`, `nak`, `term`, `in_progress` and `ack_sync` act on
    the whole message, `metadata` is that of its last frame.

    Attributes:
        dtype: dtype name of a published array ("float32"); None for plain bytes.
        shape: Its shape; None for plain bytes.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    # Where the frames before the manifest are settled, asked for when they are.
    _frame_replies: Callable[[], Awaitable[list[str]]] | None = field(
        default=None, repr=False, compare=False
    )

    def array(self) -> Array:
        """Give the payload as a read-only ndarray over the memory of `data`. Copies: 0.

        Returns:
            ndarray with the dtype and shape that were published; of plain bytes uint8.

        Raises:
            UnsupportedError: The dtype needs the package ml_dtypes, which is not installed.
        """
        if self.dtype is None or self.shape is None:
            return to_array(self.data, "uint8", (len(self.data),))
        return to_array(self.data, self.dtype, self.shape)

    numpy = array

    async def ack(self) -> None:
        """Acknowledge the message."""
        await super().ack()
        await self._settle_frames(self.Ack.Ack)

    async def ack_sync(self, timeout: float = 1.0) -> nats.aio.msg.Msg:  # noqa: ASYNC109
        """Acknowledge the message and wait until the server knows.

        Args:
            timeout: Seconds.

        Returns:
            The server's answer.
        """
        answer = await super().ack_sync(timeout)
        await self._settle_frames(self.Ack.Ack)
        return answer

    async def term(self) -> None:
        """End the message's deliveries, done or not."""
        await super().term()
        await self._settle_frames(self.Ack.Term)

    async def in_progress(self) -> None:
        """Ask for more time for the message."""
        await super().in_progress()
        await self._settle_frames(self.Ack.Progress)

    async def _settle_frames(self, ack: bytes) -> None:
        # After the manifest: should this be cut off, frames come again, which nobody sees. The
        # other way round the message would come again without its frames.
        for reply in [] if self._frame_replies is None else await self._frame_replies():
            await self._client.publish(reply, ack)
