"""Reads the directories of Milvus' RocksMQ, and copies their messages into a vecmq queue.

    >>> from vecmq import migrate
    >>> migrate.import_rocksmq("rdb_data", "data")       # doctest: +SKIP
    [ImportedTopic(source='by-dev-rootcoord-dml_0', topic='by-dev-rootcoord-dml_0', ...)]

Milvus up to 2.5 keeps a topic's messages in `rocksmq.path` and what it knows of them in a second
directory beside it, with "_meta_kv" appended. Both are opened read-only, and nothing in them is
changed. docs/rocksmq-import.md says what is read, and what is not.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

import vecmq.sync
from vecmq._messages import Prepared
from vecmq._native import RocksMq, RocksScan, check_topic_name, peek, topic_bounds
from vecmq._options import MESSAGE_BYTES_MAX, Level
from vecmq.errors import (
    ConfigError,
    ConflictError,
    CorruptError,
    Error,
    InvalidNameError,
    TooLargeError,
)

if TYPE_CHECKING:
    from vecmq._native import Hub, Payload

__all__ = [
    "ID_HEADER",
    "TOPIC_HEADER",
    "ImportedTopic",
    "RocksPage",
    "RocksTopic",
    "import_rocksmq",
    "list_rocksmq",
    "read_rocksmq",
]

ID_HEADER: Final = "rocksmq-id"
TOPIC_HEADER: Final = "rocksmq-topic"

META_SUFFIX: Final = "_meta_kv"
# One read of the source, one write of the destination.
WINDOW_MSGS: Final = 512
WINDOW_BYTES: Final = 4 << 20

# What is being done ("scan", "compare", "copy", "verify"), topic, messages done, messages in all
# (0: not known yet).
Progress = Callable[[str, str, int, int], object]

log = logging.getLogger("vecmq.migrate")


@dataclass(frozen=True, slots=True)
class RocksPage:
    """A closed page of a RocksMQ topic: what Milvus deletes at a time.

    Attributes:
        end_id: Id of its last message.
        size_bytes: Bytes of its messages, by the metadata.
        closed_s: When it was closed, in seconds since the Unix epoch.
        acked_s: When every group had read it; None: not yet.
    """

    end_id: int
    size_bytes: int
    closed_s: int | None
    acked_s: int | None


@dataclass(frozen=True, slots=True)
class RocksTopic:
    """A topic of a RocksMQ directory, counted message by message.

    Attributes:
        name: Its name in Milvus.
        orphaned: It was destroyed; Milvus leaves the messages of destroyed topics where they are.
        created_s: When it was made, in seconds since the Unix epoch, where that is known.
        messages_count: Messages that are there.
        payload_bytes: Bytes of their payloads.
        first_id: Id of the first one; None: there is none.
        last_id: Id of the last one.
        pages: Closed pages, in order.
        open_page_bytes: Bytes in the page that is still open, by the metadata.
        missing_bytes: Bytes that the metadata counts in pages not yet acknowledged, and that are
            not there: messages that a power cut or a lost file took.
    """

    name: str
    orphaned: bool
    created_s: int | None
    messages_count: int
    payload_bytes: int
    first_id: int | None
    last_id: int | None
    pages: tuple[RocksPage, ...]
    open_page_bytes: int
    missing_bytes: int


@dataclass(frozen=True, slots=True)
class ImportedTopic:
    """What an import came to for one topic.

    Attributes:
        source: Its name in Milvus.
        topic: Its name in vecmq.
        messages_count: Messages in the source.
        payload_bytes: Bytes of their payloads.
        present_count: Messages that an earlier import had copied already.
        copied_count: Messages that this one copied.
        verified_count: Messages compared byte by byte, after the last one was copied.
        deleted_there_count: Messages of earlier imports that the source has not any more.
        deleted_here_count: Messages of earlier imports that retention has deleted since.
    """

    source: str
    topic: str
    messages_count: int
    payload_bytes: int
    present_count: int
    copied_count: int
    verified_count: int
    deleted_there_count: int
    deleted_here_count: int


def list_rocksmq(
    path: str | os.PathLike[str], *, progress: Progress | None = None
) -> list[RocksTopic]:
    """List the topics of a RocksMQ directory. Reads every message once.

    Args:
        path: `rocksmq.path` of milvus.yaml; the metadata is beside it.
        progress: Called now and then, see `Progress`.

    Returns:
        All topics by name, destroyed ones that left messages included.

    Raises:
        ConfigError: `path` or the directory with the metadata beside it is no database.
        LockedError: A running Milvus holds them.
        CorruptError: Something in them is damaged.
        StorageError: They cannot be read.
    """
    with _Source(path, progress) as source:
        return [_topic(source.scan(name)) for name in source.names()]


def read_rocksmq(
    path: str | os.PathLike[str], topic: str, *, after: int | None = None
) -> Iterator[tuple[int, memoryview]]:
    """Read the messages of one topic, in the order of their ids.

    Args:
        path: As for `list_rocksmq`.
        topic: Its name in Milvus; it may be a destroyed one.
        after: Begin behind this id; None: at the first message.

    Yields:
        Id and payload. The payload is what Milvus stored, nothing of it decoded.

    Raises:
        TopicNotFoundError: There is no such topic.
        CorruptError: A message is damaged; never a short read instead.
        Error: As `list_rocksmq`.
    """
    with _Source(path, None) as source:
        for messages in source.windows(source.scan(topic), after):
            for message_id, payload in messages:
                yield message_id, memoryview(payload)


def import_rocksmq(
    path: str | os.PathLike[str],
    into: str | os.PathLike[str],
    topics: Iterable[str] | Mapping[str, str] | None = None,
    *,
    level: Level = "stored",
    progress: Progress | None = None,
    finished: Callable[[ImportedTopic], object] | None = None,
) -> list[ImportedTopic]:
    """Copy topics of a RocksMQ directory into a vecmq queue, and compare every byte of them.

    Called again after it was stopped or killed, it goes on behind the last message that the
    destination has: every message is there once, in order. Each carries its id and topic in Milvus
    as the headers "rocksmq-id" and "rocksmq-topic"; there is no other record of the import.

    Args:
        path: As for `list_rocksmq`.
        into: Directory of the vecmq queue; it is made where it does not exist.
        topics: Names in Milvus, or a mapping from those to names in vecmq. None: all topics that
            were not destroyed.
        level: What has to be true of a message before the next ones are copied: "stored" or
            "durable".
        progress: Called now and then, see `Progress`.
        finished: Called with each topic when it is copied and compared.

    Returns:
        What came of each topic, in order.

    Raises:
        ConflictError: The destination has messages that no import of this topic wrote, or other
            bytes; nothing was written.
        InvalidNameError: A name that vecmq does not allow; name another with a mapping.
        TooLargeError: A message exceeds 1 GiB.
        TopicNotFoundError: There is no such topic.
        CorruptError: The source is damaged, or what was copied differs from it.
        Error: As `list_rocksmq` and `vecmq.sync.open`.
    """
    _check_apart(Path(path), Path(into))
    with _Source(path, progress) as source:
        names = _plan(source, topics)
        scans = {name: source.scan(name) for name in names}
        for name, scan in scans.items():
            _check_source(name, scan)
        with vecmq.sync.open(into, mode="queue", level=level) as mq:
            hub = mq._stores.hub  # noqa: SLF001 - the core's own calls, without a group
            copies = [_Copy(source, scans[name], hub, topic) for name, topic in names.items()]
            # All of them before the first write.
            for copy in copies:
                copy.compare("compare", ConflictError)
            done = []
            for copy in copies:
                copy.finish()
                done.append(copy.result())
                if finished is not None:
                    finished(done[-1])
            return done


def _plan(source: _Source, topics: Iterable[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Names in Milvus and names in vecmq, checked."""
    if topics is None:
        names = {name: name for name in source.names(with_orphans=False)}
    elif isinstance(topics, Mapping):
        names = dict(topics)
    elif isinstance(topics, str):
        raise ConfigError(f"topics: expected several names, got the string {topics!r}")
    else:
        names = {name: name for name in topics}
    for name, topic in names.items():
        try:
            check_topic_name(topic)
        except InvalidNameError as error:
            raise InvalidNameError(f"{error}; give RocksMQ topic {name!r} another one") from None
    twice = {topic for topic in names.values() if list(names.values()).count(topic) > 1}
    if twice:
        raise ConfigError(f"topics: two of them would become {min(twice)!r}")
    return names


def _check_apart(path: Path, into: Path) -> None:
    """The source is never written to, not even beside its files."""
    place = into.resolve()
    for taken in (path.resolve(), path.resolve().with_name(path.resolve().name + META_SUFFIX)):
        if place == taken or taken in place.parents:
            raise ConfigError(f"into: expected a directory outside of {taken}, got {into}")


def _check_source(name: str, scan: RocksScan) -> None:
    if scan.payload_bytes_max > MESSAGE_BYTES_MAX:
        raise TooLargeError(
            f"topic {name!r}: a message of {scan.payload_bytes_max} bytes exceeds the limit of "
            f"{MESSAGE_BYTES_MAX} bytes"
        )
    if scan.missing_bytes:
        log.warning(
            "topic %r: the metadata counts %d bytes more than there are: messages that a power "
            "cut or a lost file took; what is there is read",
            name,
            scan.missing_bytes,
        )


def _topic(scan: RocksScan) -> RocksTopic:
    name, orphaned, created_s, open_page_bytes, pages = scan.topic
    return RocksTopic(
        name=name,
        orphaned=orphaned,
        created_s=created_s,
        messages_count=scan.messages_count,
        payload_bytes=scan.payload_bytes,
        first_id=scan.first_id,
        last_id=scan.last_id,
        pages=tuple(RocksPage(*page) for page in pages),
        open_page_bytes=open_page_bytes,
        missing_bytes=scan.missing_bytes,
    )


class _Source:
    """An open RocksMQ directory."""

    def __init__(self, path: str | os.PathLike[str], progress: Progress | None) -> None:
        self._native = RocksMq(path)
        self.tell: Progress = progress or _say_nothing

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._native.close()

    def names(self, *, with_orphans: bool = True) -> list[str]:
        """Names of the topics; destroyed ones on demand."""
        return [
            name for name, orphaned, *_ in self._native.topics() if with_orphans or not orphaned
        ]

    def scan(self, name: str) -> RocksScan:
        """Read every message once."""
        self.tell("scan", name, 0, 0)
        return self._native.scan(name, lambda messages, _: self.tell("scan", name, messages, 0))

    def windows(self, scan: RocksScan, after: int | None) -> Iterator[list[tuple[int, Payload]]]:
        """Yield messages in order, some at a time."""
        while messages := self._native.read(scan, after, WINDOW_MSGS, WINDOW_BYTES):
            yield messages
            after = messages[-1][0]


def _say_nothing(*_: object) -> None:
    """Progress that nobody asked for."""


class _Copy:
    """One topic on its way."""

    def __init__(self, source: _Source, scan: RocksScan, hub: Hub, topic: str) -> None:
        self._source = source
        self._scan = scan
        self._hub = hub
        self._topic = topic
        self._name = scan.topic[0]
        self._after: int | None = None
        self._present = self._copied = self._verified = 0
        self._deleted_there = self._deleted_here = 0

    def result(self) -> ImportedTopic:
        """What came of it."""
        return ImportedTopic(
            source=self._name,
            topic=self._topic,
            messages_count=self._scan.messages_count,
            payload_bytes=self._scan.payload_bytes,
            present_count=self._present,
            copied_count=self._copied,
            verified_count=self._verified,
            deleted_there_count=self._deleted_there,
            deleted_here_count=self._deleted_here,
        )

    def compare(self, what: str, error: type[Error]) -> None:
        """Walk both sides in step; find where the destination ends in the source.

        Raises:
            Error: Of the given class, at the first difference.
        """
        self._after, self._verified = None, 0
        self._deleted_there = self._deleted_here = 0
        if self._topic not in self._hub.topics():
            return
        first_seq, next_seq = topic_bounds(self._hub, self._topic)
        if first_seq == next_seq > 1:
            raise error(
                f"topic {self._topic!r}: retention has deleted all {next_seq - 1} messages, so "
                f"nothing says how far an import came; import into another topic"
            )
        ours = (one for window in self._source.windows(self._scan, None) for one in window)
        first_id = self._scan.first_id
        for seq, message_id, payload in self._destination(first_seq, next_seq, error):
            if first_id is None or message_id < first_id:
                self._deleted_there += 1
                self._after = message_id
                continue
            there = next(ours, None)
            while self._after is None and first_seq > 1 and there and there[0] < message_id:
                self._deleted_here += 1
                there = next(ours, None)
            if there is None or there[0] != message_id:
                found = "no more messages" if there is None else f"id {there[0]}"
                raise error(
                    f"topic {self._topic!r}, seq {seq}: holds message {message_id} of RocksMQ "
                    f"topic {self._name!r}, which has {found} in this place"
                )
            if bytes(there[1]) != bytes(payload):
                raise error(
                    f"topic {self._topic!r}, seq {seq}: differs from message {message_id} of "
                    f"RocksMQ topic {self._name!r} at byte {_first_difference(there[1], payload)}"
                )
            self._after = message_id
            self._verified += 1
            if self._verified % WINDOW_MSGS == 0:
                self._source.tell(what, self._name, self._verified, self._scan.messages_count)

    def _destination(
        self, first_seq: int, next_seq: int, error: type[Error]
    ) -> Iterator[tuple[int, int, Payload]]:
        """Yield seq, id and payload of what an import of this topic wrote; all else is an error."""
        before = -1
        seq = first_seq
        while seq < next_seq:
            for at, span, found in peek(self._hub, self._topic, seq, WINDOW_MSGS, WINDOW_BYTES):
                headers, payload = found or ({}, None)
                message_id = _id_of(headers, self._name)
                if payload is None or message_id is None or message_id <= before:
                    raise error(
                        f"topic {self._topic!r}, seq {at}: expected a message that an import of "
                        f"RocksMQ topic {self._name!r} wrote, after message {before}; got headers "
                        f"{headers}; import into another topic"
                    )
                yield at, message_id, payload
                before, seq = message_id, at + span

    def finish(self) -> None:
        """Copy what is missing, then compare all of it.

        Raises:
            CorruptError: The copy is not the source.
        """
        self._present = self._verified
        publisher = self._hub.publisher(self._topic)
        topic = quote(self._name, safe="")
        for messages in self._source.windows(self._scan, self._after):
            items: list[object] = [_item(number, topic, payload) for number, payload in messages]
            # One call is one write of the log: after a kill all of them are there, or none.
            publisher.publish_wait(items, None, None, None)
            self._copied += len(items)
            done = self._deleted_here + self._present + self._copied
            self._source.tell("copy", self._name, done, self._scan.messages_count)
        if self._copied:
            self.compare("verify", CorruptError)
        expected = self._scan.messages_count - self._deleted_here
        if self._verified != expected:
            raise CorruptError(
                f"topic {self._topic!r}: expected {expected} messages of RocksMQ topic "
                f"{self._name!r}, got {self._verified}"
            )


def _item(message_id: int, topic: str, payload: Payload) -> Prepared:
    headers = [(ID_HEADER, str(message_id)), (TOPIC_HEADER, topic)]
    return Prepared((payload, False, None, 1, None, 1, headers))


def _id_of(headers: Mapping[str, str], name: str) -> int | None:
    digits = headers.get(ID_HEADER, "")
    if headers.get(TOPIC_HEADER) != quote(name, safe="") or not digits.isdecimal():
        return None
    return int(digits)


def _first_difference(ours: Payload, theirs: Payload) -> int:
    pairs = zip_longest(memoryview(ours), memoryview(theirs))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(ours))
