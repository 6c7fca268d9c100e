"""Several messages as one list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmq._native import Message, ack_all, join_rows
from vecmq.errors import PayloadError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray


def fill(message: Message, room: Any) -> None:
    """Write a message to the caller's memory, where there is some.

    Raises:
        PayloadError: The sizes differ.
        CorruptError: The message cannot be read.
    """
    if room is None:
        return
    if room.nbytes != message.size_bytes:
        raise PayloadError(
            f"out: {room.nbytes} bytes, the message at seq {message.seq} has "
            f"{message.size_bytes} bytes"
        )
    if room.nbytes:
        message.copy_into(room)


def readable(message: Message) -> None:
    """Put a message together whose frames were kept for a caller's memory, and verify it.

    Raises:
        CorruptError: It cannot be read.
    """
    _ = message.payload


class Batch(list[Message]):
    """Messages that were received together, in order.

    A list, with two operations on the whole. Empty when the time was over before a message came.
    """

    def array(self) -> NDArray[Any]:
        """Join the messages into one read-only array with a first axis over the messages.

        Rows that were published together and received together lie side by side: copies 0.
        Others: 1.

        Returns:
            ndarray of shape (len(self), *shape of one message).

        Raises:
            PayloadError: The batch is empty, a message is plain bytes, or dtypes or shapes differ.
        """
        joined = join_rows(self)
        if joined is None:
            kinds = sorted({f"{m.dtype or 'bytes'}{m.shape or ''}" for m in self})
            raise PayloadError(
                "a batch becomes one array only when its messages are arrays of one dtype and "
                f"shape; this one has {len(self)} messages of {kinds}"
            )
        return joined

    def ack(self) -> None:
        """Mark every message of the batch done; the cursor is saved once.

        Raises:
            StorageError: The cursor could not be saved.
            ClosedError: The handle was closed.
        """
        ack_all(self)

    def nak(self, delay_s: float = 0.0) -> None:
        """Give every message of the batch back: delivered to the group again after a while.

        Args:
            delay_s: Seconds >= 0.

        Raises:
            ConfigError: A negative delay.
            ClosedError: The handle was closed.
        """
        for message in self:
            message.nak(delay_s)
