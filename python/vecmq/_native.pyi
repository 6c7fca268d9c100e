"""The Rust core of vecmq. The documented public classes are in `vecmq` and `vecmq.sync`."""

from collections.abc import Sequence
from typing import Any, TypeAlias, final

from numpy.typing import NDArray

__all__ = [
    "Completions",
    "Explanation",
    "GroupAssembler",
    "Hub",
    "Message",
    "Payload",
    "Publisher",
    "Receipt",
    "Subscriber",
    "ack_all",
    "build_info",
    "join_rows",
    "make_frames",
]


def build_info() -> dict[str, Any]:
    """What this build is: version, profile, and the versions of what it links."""

def ack_all(messages: Sequence[Message]) -> None:
    """Marks several messages done; the cursor of their subscription group is saved once."""

def join_rows(messages: Sequence[Message]) -> NDArray[Any] | None:
    """Messages of equal dtype and shape as one array with a first axis over the messages."""

def make_frames(
    view: object,
    dtype: str | None,
    itemsize: int,
    shape: Sequence[int] | None,
    producer: bytes,
    epoch: int,
    seq: int,
    chunk_bytes_max: int,
    codec: str,
) -> list[tuple[list[tuple[str, str]], Payload]]:
    """Cuts one payload into frames. A raw body is a view of the payload, not a copy."""

@final
class Payload:
    """Received bytes, given out read-only through the buffer protocol without a copy."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...

@final
class Receipt:
    """What a publish came to."""

    @property
    def route(self) -> str:
        """The route that took the message: "queue" or "nats"."""
    @property
    def seq(self) -> int:
        """Position in the topic; of packed rows the first row's."""
    @property
    def id(self) -> str:
        """Message id: producer uuid, epoch and the producer's sequence."""
    @property
    def level(self) -> str:
        """What the acknowledgement promises: "stored" or "durable"."""
    @property
    def duplicate(self) -> bool:
        """The server had this message already; it is stored once."""
    @property
    def frames_count(self) -> int:
        """Frames the message was cut into."""
    @property
    def payload_bytes(self) -> int:
        """Bytes handed in."""
    @property
    def wire_bytes(self) -> int:
        """Bytes stored, headers included."""
    @property
    def rows_count(self) -> int:
        """Messages acknowledged: 1, or the number of packed rows."""

@final
class Message:
    """A message as received. The payload is read-only and shared, never copied on access."""

    @property
    def topic(self) -> str:
        """The topic's name."""
    @property
    def seq(self) -> int:
        """Position in the topic, from 1."""
    @property
    def route(self) -> str:
        """The route it came by: "queue" or "nats"."""
    @property
    def id(self) -> str:
        """Message id: the receipt's; each packed row has its own, and the receipt the first."""
    @property
    def headers(self) -> dict[str, str]:
        """The publisher's headers, as a new dict; of a repeated key the last value."""
    @property
    def dtype(self) -> str | None:
        """dtype name of an array ("float32"), None for plain bytes."""
    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of an array, None for plain bytes."""
    @property
    def size_bytes(self) -> int:
        """Payload bytes."""
    @property
    def frames_count(self) -> int:
        """Frames it came in."""
    @property
    def payload(self) -> memoryview:
        """The bytes: a read-only memoryview, no copy."""
    def array(self) -> NDArray[Any]:
        """The payload as a read-only ndarray, no copy; of plain bytes a 1-d uint8 array."""
    def ack(self) -> None:
        """Marks the message done: it is not delivered to this subscription group again."""

@final
class Explanation:
    """Which route a size takes, and why."""

    @property
    def size_bytes(self) -> int:
        """The size asked about, in bytes."""
    @property
    def route(self) -> str:
        """ "queue" or "nats"."""
    @property
    def reason(self) -> str:
        """Why, in one sentence."""
    @property
    def threshold_bytes(self) -> int:
        """Size at which the cheaper route changes, in bytes."""
    @property
    def queue_cost_s(self) -> float | None:
        """Predicted publish-to-receipt time on the queue route, in seconds."""
    @property
    def nats_cost_s(self) -> float | None:
        """Predicted publish-to-receipt time on the NATS route, in seconds."""
    @property
    def learned(self) -> bool:
        """The threshold comes from measured cost, not from the start value."""

@final
class Completions:
    """Gathers what finished for one asyncio loop."""

    def __new__(cls) -> Completions: ...
    def fileno(self) -> int:
        """File descriptor to watch for reading."""
    def drain(self) -> list[tuple[int, Receipt | None, BaseException | None]]:
        """Takes everything that finished."""

@final
class Hub:
    """One open directory, one open connection, or both."""

    def __new__(cls, options: dict[str, Any]) -> Hub: ...
    def publisher(self, topic: str) -> Publisher:
        """A publisher of the topic; the topic is made where it does not exist yet."""
    def subscribe(self, topic: str, group: str, start: str) -> Subscriber:
        """A subscriber of the topic for a subscription group."""
    def topics(self) -> list[str]:
        """The names of all topics."""
    def explain(self, size_bytes: int) -> Explanation:
        """Which route a message of that size takes now, and why."""
    def stats(self) -> dict[str, int]:
        """Counts since the handle was opened."""
    def close(self) -> None:
        """Releases the directory and the connection."""

@final
class Publisher:
    """Publishes to one topic."""

    def publish(
        self,
        items: list[object],
        route: str | None,
        timeout_s: float | None,
        completions: Completions,
        first_token: int,
    ) -> list[Receipt | None]:
        """Publishes for an asyncio loop."""
    def publish_wait(
        self, items: list[object], route: str | None, timeout_s: float | None
    ) -> list[Receipt]:
        """Publishes and blocks until every receipt is there."""

@final
class Subscriber:
    """Reads one topic for one subscription group."""

    def poll(self, messages_max: int, completions: Completions, token: int) -> list[Message]:
        """Takes what is ready; an empty list: the token finishes when another look is worth it."""
    def poll_wait(self, messages_max: int, timeout_s: float | None) -> list[Message]:
        """Blocks until something is ready; an empty list means the time was over."""
    def ack_through(self, seq: int) -> None:
        """Marks everything up to and including seq done."""
    def close(self) -> None:
        """Ends the subscription; the group and its cursor stay."""

@final
class GroupAssembler:
    """Puts the frames of many groups together."""

    def __new__(cls, limit_bytes: int) -> GroupAssembler: ...
    def accept(
        self, fields: dict[str, str], body: object
    ) -> tuple[Payload, str | None, tuple[int, ...] | None] | None:
        """Takes one frame; returns the group when it was the last missing one."""
