"""What an open found and repaired, and verifying a directory that nobody has open."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecmq._native import check_queue

__all__ = ["CheckReport", "Fault", "Recovery", "TopicCheck", "TopicRecovery", "check"]

# The directory of the queue in that of a handle.
_QUEUE = "queue"
# A message of any size is decoded: the check believes the log, not an option.
_MESSAGE_BYTES_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class TopicRecovery:
    """What an open found in a topic.

    Attributes:
        name: The topic.
        messages: Messages there.
        dropped_bytes: Bytes of value files that no record pointed to, and that were removed:
            publishes that a kill cut off before they were acknowledged.
        finished_files: Value files of deleted messages that were still there, and were removed.
        open: Messages whose way to the NATS stream is not settled yet.
    """

    name: str
    messages: int
    dropped_bytes: int
    finished_files: int
    open: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What an open replayed, dropped and repaired.

    Attributes:
        created: The directory held no log before.
        closed: The last process closed it; None where nothing says so.
        wal_files: Files of the write-ahead log that were replayed.
        wal_bytes: Their bytes, up to the last whole write.
        wal_writes: Whole writes in them; one group of publishes is one write.
        wal_dropped_bytes: Bytes of a write that was cut off, and dropped.
        missing_operations: Acknowledged operations that are gone. Only a power cut may do that, at
            level "stored"; anything else is a CorruptError. Publishes of the last 10 ms before the
            process ended are not counted.
        mark_damaged: The file that says how far the log had come could not be read, so nothing
            missing was looked for.
        stray_bytes: Bytes of value files of deleted topics that were removed.
        topics: What each topic holds.
        repaired: Something was dropped or repaired.
    """

    created: bool
    closed: bool | None
    wal_files: int
    wal_bytes: int
    wal_writes: int
    wal_dropped_bytes: int
    missing_operations: int
    mark_damaged: bool
    stray_bytes: int
    topics: tuple[TopicRecovery, ...]
    repaired: bool

    @classmethod
    def from_native(cls, found: dict[str, Any] | None) -> Recovery | None:
        """Take what the core reports.

        Args:
            found: The core's dict; None without a queue.

        Returns:
            The same, typed.
        """
        if found is None:
            return None
        topics = tuple(TopicRecovery(**topic) for topic in found["topics"])
        return cls(**{**found, "topics": topics})


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was written.

    Attributes:
        topic: The topic, where it belongs to one.
        seq: The message, or the first one of its record.
        file: Path of the file.
        position: Where in the file, in bytes.
        what: What is wrong, in one sentence.
    """

    topic: str | None
    seq: int | None
    file: str | None
    position: int | None
    what: str

    def __str__(self) -> str:
        places = {"topic": self.topic, "seq": self.seq, "file": self.file, "at": self.position}
        place = ", ".join(f"{name} {value}" for name, value in places.items() if value is not None)
        return f"{place}: {self.what}" if place else self.what


@dataclass(frozen=True, slots=True)
class TopicCheck:
    """What a topic holds.

    Attributes:
        name: The topic.
        messages: Messages that are there.
        bytes: Log bytes of them, 13 a record included.
        first_seq: The oldest seq that retention left.
        next_seq: The seq that the next message gets.
        open: Messages whose way to the NATS stream is not settled yet.
        groups: Subscription group -> the next seq that it has to read.
    """

    name: str
    messages: int
    bytes: int
    first_seq: int
    next_seq: int
    open: int
    groups: dict[str, int]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        path: The queue's directory.
        topics: The topics.
        faults: Damage; none in a sound directory.
        leftovers: What a killed process left and the next open removes: it was never acknowledged,
            or it was deleted.
    """

    path: Path
    topics: tuple[TopicCheck, ...]
    faults: tuple[Fault, ...]
    leftovers: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """No damage."""
        return not self.faults


def check(path: str | os.PathLike[str]) -> CheckReport:
    """Verify a directory that nobody has open; nothing in it is changed.

    Every record of every topic is read and every checksum verified, every pointer to a value file
    followed, seqs, page borders, counts and cursors compared with what is there. Frames that lie
    in a NATS stream are not read. Blocks; reads all of the directory.

    Args:
        path: Directory of a handle, or the one named "queue" in it.

    Returns:
        A CheckReport. Damage is in it, and raises nothing.

    Raises:
        LockedError: A process owns the directory; the message names its process id.
        StorageError: There is no queue, or it cannot be read.
        CorruptError: So much is damaged that the log cannot be opened.
    """
    directory = Path(path)
    if (directory / _QUEUE).is_dir():
        directory /= _QUEUE
    found = check_queue(str(directory), _MESSAGE_BYTES_MAX)
    return CheckReport(
        path=directory,
        topics=tuple(TopicCheck(**topic) for topic in found["topics"]),
        faults=tuple(Fault(**fault) for fault in found["faults"]),
        leftovers=tuple(Fault(**fault) for fault in found["leftovers"]),
    )
