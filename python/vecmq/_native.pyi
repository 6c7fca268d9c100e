"""The Rust core of vecmq. The documented public classes are in `vecmq` and `vecmq.sync`."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeAlias, final

from numpy.typing import NDArray

__all__ = [
    "Attached",
    "Completions",
    "Explanation",
    "Frame",
    "GroupAssembler",
    "Hub",
    "InboundParser",
    "InboundSocket",
    "Message",
    "Payload",
    "Pending",
    "PlainConnection",
    "PlainPublish",
    "Publisher",
    "Receipt",
    "RocksMq",
    "RocksScan",
    "SocketDoor",
    "Subscriber",
    "ack_all",
    "build_info",
    "check_queue",
    "check_topic_name",
    "join_frames",
    "join_rows",
    "make_frames",
    "peek",
    "read_frame",
    "seq_ranges",
    "topic_bounds",
]

_Limits: TypeAlias = tuple[int | None, int | None, int | None, bool]

def build_info() -> dict[str, Any]:
    """What this build is: version, profile, and the versions of what it links."""

def ack_all(messages: Sequence[Message]) -> None:
    """Marks several messages done; the cursor of their subscription group is saved once."""

def check_queue(path: str, message_bytes_max: int) -> dict[str, Any]:
    """Verifies a queue that nobody has open; changes nothing. Blocks."""

def join_frames(frames: Sequence[Frame]) -> tuple[bytes, str | None, tuple[int, ...] | None]:
    """Puts all frames of a group together, in order; every body is copied once."""

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
    codec_level: int | None = None,
) -> list[tuple[list[tuple[str, str]], Payload]]:
    """Cuts one payload into frames. A raw body is a view of the payload, not a copy."""

def read_frame(fields: dict[str, str], body: object) -> Frame | None:
    """Reads a frame; the body is borrowed. None: the fields are those of a plain message."""

def seq_ranges(seqs: Sequence[int]) -> str:
    """Stream sequences as ranges, "17-20,23", of at most 160 bytes."""

@final
class Attached:
    """A directory that another process owns, open for subscribers of this one."""

    def __new__(cls, queue_path: str | PathLike[str], message_bytes_max: int) -> Attached: ...
    def subscribe(
        self,
        topic: str,
        group: str,
        start: str,
        ack_wait_s: float | None,
        max_deliver: int | None,
        dead_letter_topic: str | None,
    ) -> Subscriber:
        """A subscriber of the topic for a subscription group, as Hub.subscribe."""
    def topics(self) -> list[str]:
        """The names of all topics."""
    def topic_info(self, topic: str) -> dict[str, Any]:
        """What a topic holds, and its own retention."""
    def groups(self, topic: str) -> list[dict[str, Any]]:
        """How far the groups of a topic are."""
    def close(self) -> None:
        """Ends the connection. A second call does nothing."""

@final
class Frame:
    """One frame as it came over somebody's connection."""

    @property
    def id(self) -> str:
        """The message that it belongs to."""
    @property
    def index(self) -> int:
        """Its place in the group."""
    @property
    def count(self) -> int:
        """Frames of the group."""
    @property
    def total_bytes(self) -> int:
        """Payload bytes of the whole message."""
    @property
    def body_bytes(self) -> int:
        """Bytes of the body, as it came."""
    def same(self, other: Frame) -> bool:
        """The two frames have one header and hold the same chunk."""

_Normalised: TypeAlias = tuple[Any, str | None, int, Sequence[int] | None, bool]
_Cut: TypeAlias = tuple[bytes, int, int, int, str]
_Pairs: TypeAlias = Sequence[tuple[str, str]]

_Came: TypeAlias = tuple[str, int, bytes, bytes, bytes | Payload, bytes]

@final
class InboundParser:
    """Takes apart what Python reads from a connection."""

    def __new__(cls) -> InboundParser: ...
    def feed(self, data: bytes) -> list[_Came]:
        """Takes what was read; gives what it says."""

@final
class InboundSocket:
    """A connection that is read; its messages wait here."""

    def take(self, bytes_max: int) -> list[_Came]:
        """Takes what came, in order, until it has `bytes_max` of it; "end" is the last of all."""
    def wait(self, completions: Completions, token: int) -> bool:
        """Has the token finish when something comes; False: something did."""
    def limit(self, sid: int, msgs_max: int, bytes_max: int) -> None:
        """Sets what may wait for a subscription: messages and bytes; 0: any number."""
    def forget(self, sid: int) -> None:
        """Forgets a subscription."""
    def close(self) -> None:
        """Lets the socket go."""

@final
class SocketDoor:
    """Where a socket is handed over: its descriptor is sent to `fileno`."""

    def __new__(cls) -> SocketDoor: ...
    def fileno(self) -> int:
        """Descriptor of the end that a socket is sent to."""
    def read(self, before: bytes) -> InboundSocket:
        """Reads the socket that was sent from now on, and `before` before it."""

@final
class PlainConnection:
    """A connection of the core that stores and sends groups on any subject."""

    def __new__(cls, options: dict[str, Any]) -> PlainConnection: ...
    def store(
        self,
        subject: str,
        payload: _Normalised,
        cut: _Cut,
        fields: tuple[_Pairs, _Pairs, _Pairs],
        timeout_s: float,
        completions: Completions,
        token: int,
    ) -> PlainPublish:
        """Stores a group in a stream; the token finishes with the server's answer."""
    def send(
        self,
        subject: str,
        payload: _Normalised,
        cut: _Cut,
        fields: tuple[_Pairs, _Pairs, _Pairs],
        completions: Completions,
        token: int,
    ) -> PlainPublish:
        """Sends a group to whoever listens; the token finishes when its memory is free."""
    def settle(self, timeout_s: float, completions: Completions, token: int) -> PlainPublish:
        """Waits for the server; the token finishes when it has read all that was sent before."""
    def close(self) -> None:
        """Ends the connection, flushed. Blocks."""

@final
class PlainPublish:
    """A group that is on its way."""

    def cancel(self) -> None:
        """Ends it where it is; without its manifest no reader sees the group."""

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
    @property
    def codec(self) -> str:
        """How the message is coded: "raw", "zstd", "planes", "pk3" or "lz4"."""
    @property
    def codec_why(self) -> str:
        """Why it is coded like that, in a few words."""

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
    def deliveries(self) -> int:
        """How often it was delivered to the group, this time included."""
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
    def nak(self, delay_s: float = 0.0) -> None:
        """Gives the message back: it is delivered to the group again after delay_s seconds."""
    def in_progress(self) -> None:
        """Begins the wait anew after which the message is delivered again."""
    def term(self) -> None:
        """Marks the message as one that nobody will be done with: it is not delivered again."""
    def copy_into(self, out: object) -> None:
        """Writes the bytes to a writable C-contiguous buffer of exactly as many."""

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
    def drain(
        self,
    ) -> tuple[list[int], list[Receipt | None], list[tuple[int, BaseException]]]:
        """Takes everything that finished: tokens, of each its result, and what failed."""

@final
class Hub:
    """One open directory, one open connection, or both."""

    def __new__(cls, options: dict[str, Any]) -> Hub: ...
    def publisher(
        self, topic: str, codec: str | None = None, codec_level: int | None = None
    ) -> Publisher:
        """A publisher of the topic; the topic is made where it does not exist yet."""
    def subscribe(
        self,
        topic: str,
        group: str,
        start: str,
        ack_wait_s: float | None,
        max_deliver: int | None,
        dead_letter_topic: str | None,
    ) -> Subscriber:
        """A subscriber of the topic for a subscription group."""
    def topics(self) -> list[str]:
        """The names of all topics."""
    def topic_info(self, topic: str) -> dict[str, Any]:
        """What a topic holds, and its own retention."""
    def groups(self, topic: str) -> list[dict[str, Any]]:
        """How far the groups of a topic are."""
    def delete_group(self, topic: str, group: str) -> None:
        """Deletes a group and its cursor."""
    def set_retention(self, topic: str, retention: _Limits | None) -> None:
        """Gives a topic a retention of its own; None: it has the handle's again."""
    def retain(self) -> tuple[int, int]:
        """Deletes what retention allows, now; returns messages and bytes."""
    def sweep_topic(self, topic: str, age_s: float) -> int:
        """Purges the frames of groups that were never whole and are that old."""
    def purge_topic(self, topic: str) -> tuple[int, int]:
        """Deletes all messages of a topic; returns messages and bytes."""
    def delete_topic(self, topic: str) -> None:
        """Deletes a topic, its groups and its stream."""
    def explain(self, size_bytes: int) -> Explanation:
        """Which route a message of that size takes now, and why."""
    def stats(self) -> dict[str, int]:
        """Counts since the handle was opened."""
    def recovery(self) -> dict[str, Any] | None:
        """What was replayed, dropped and repaired at the open; None without a queue."""
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
        codec: tuple[str, int | None] | None,
        completions: Completions,
        first_token: int,
    ) -> list[Receipt | None]:
        """Publishes for an asyncio loop."""
    def publish_one(
        self,
        item: object,
        route: str | None,
        timeout_s: float | None,
        codec: tuple[str, int | None] | None,
        completions: Completions,
        token: int,
        expected_last_seq: int | None,
    ) -> Receipt | None:
        """Publishes one message for an asyncio loop."""
    def publish_async(
        self,
        item: object,
        route: str | None,
        timeout_s: float | None,
        codec: tuple[str, int | None] | None,
        expected_last_seq: int | None,
    ) -> Pending:
        """Publishes one message; blocks only while 4,096 are without a receipt."""
    def publish_wait(
        self,
        items: list[object],
        route: str | None,
        timeout_s: float | None,
        codec: tuple[str, int | None] | None,
    ) -> list[Receipt]:
        """Publishes and blocks until every receipt is there."""

@final
class Pending:
    """A publish under way."""

    def done(self) -> bool:
        """Says whether `result` returns or raises at once."""
    def result(self, timeout_s: float | None = None) -> Receipt:
        """Blocks until the publish has ended; returns its receipt or raises its error."""

@final
class Subscriber:
    """Reads one topic for one subscription group."""

    def poll(
        self,
        messages_max: int,
        completions: Completions,
        token: int,
        *,
        keep_frames: bool = False,
    ) -> tuple[list[Message], float | None]:
        """Takes what is ready, and says after how many seconds to look again at the latest."""
    def poll_wait(
        self, messages_max: int, timeout_s: float | None, *, keep_frames: bool = False
    ) -> list[Message]:
        """Blocks until something is ready; an empty list means the time was over."""
    def ack_through(self, seq: int) -> None:
        """Marks everything up to and including seq done."""
    def seek(self, kind: str, value: int, inclusive: bool) -> None:
        """Moves the group: to "first", "new", "seq" or "time" (ms since the Unix epoch)."""
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

# end id, bytes, closed and acknowledged in seconds since the Unix epoch
_Page: TypeAlias = tuple[int, int, int | None, int | None]
# name, orphaned, made in seconds since the Unix epoch, bytes in the open page, closed pages
_Topic: TypeAlias = tuple[str, bool, int | None, int, list[_Page]]

def check_topic_name(name: str) -> None:
    """Checks the name of a topic."""

def topic_bounds(hub: Hub, topic: str) -> tuple[int, int]:
    """The oldest seq that is left in a topic, and the next one."""

def peek(
    hub: Hub, topic: str, from_seq: int, records_max: int, bytes_max: int
) -> list[tuple[int, int, tuple[dict[str, str], Payload] | None]]:
    """Reads a topic from a seq on without a subscription group: whole records of the log."""

@final
class RocksMq:
    """A directory pair of Milvus' RocksMQ, open for reading."""

    def __new__(cls, path: str | PathLike[str]) -> RocksMq: ...
    def topics(self) -> list[_Topic]:
        """All topics by name: name, orphaned, made at, bytes in the open page, closed pages."""
    def scan(self, topic: str, progress: Callable[[int, int], object] | None) -> RocksScan:
        """Reads every message of a topic once."""
    def read(
        self, scan: RocksScan, after: int | None, messages_max: int, bytes_max: int
    ) -> list[tuple[int, Payload]]:
        """Messages with ids above after, in order: id and payload."""
    def close(self) -> None:
        """Closes the two databases; a Milvus may start on them again."""

@final
class RocksScan:
    """What one pass over all messages of a topic found."""

    @property
    def topic(self) -> _Topic:
        """What the metadata says: name, orphaned, made at, bytes in the open page, pages."""
    @property
    def messages_count(self) -> int:
        """Messages."""
    @property
    def payload_bytes(self) -> int:
        """Bytes of their payloads."""
    @property
    def payload_bytes_max(self) -> int:
        """The largest payload, in bytes."""
    @property
    def first_id(self) -> int | None:
        """The smallest id."""
    @property
    def last_id(self) -> int | None:
        """The largest id."""
    @property
    def missing_bytes(self) -> int:
        """Bytes in pages not yet acknowledged that the metadata counts and that are not there."""
