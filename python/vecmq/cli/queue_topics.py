"""``vecmq queue topics`` and its neighbours: what an operator does with topics and groups."""

from __future__ import annotations

import dataclasses
import json as json_text
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

import vecmq
import vecmq.sync
from vecmq.cli.base import NO_SERVER, Server, UsageError, examples, print_line
from vecmq.cli.queue import queue
from vecmq.errors import ConfigError

__all__ = ["create", "delete", "groups", "purge", "retention", "seek", "topics"]

_TOPICS_HEAD: Final = (
    f"{'messages':>12}{'bytes':>16}{'file bytes':>14}{'first seq':>12}{'next seq':>12}"
    f"{'open':>6}{'groups':>8}  {'last published':<20}{'retention':<28}topic"
)
_GROUPS_HEAD: Final = f"{'lag':>12}{'next seq':>16}{'done above':>12}  group"


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """How a directory is opened.

    Attributes:
        server: The NATS server of a hybrid directory; default: its own embedded one.
        mode: Default: hybrid where the directory has an embedded server's store, or with a server;
            else queue.
    """

    server: Server = NO_SERVER
    mode: Literal["hybrid", "queue"] | None = None

    def open(self, path: Path) -> vecmq.sync.Handle:
        """Open an existing directory.

        Raises:
            UsageError: There is no queue in it.
            Error: As `vecmq.sync.open`.
        """
        if not (path / "queue").is_dir():
            raise UsageError(f"{path} is no directory of vecmq: it has no folder 'queue'")
        nats = self.server.options()
        has_stream = nats is not None or (path / "nats").is_dir()
        mode = self.mode or ("hybrid" if has_stream else "queue")
        return vecmq.sync.open(path, mode=mode, nats=nats)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a topic keeps.

    Attributes:
        age_ms_max: Milliseconds that a message is kept.
        bytes_max: Bytes that the topic keeps.
        msgs_max: Messages that the topic keeps.
        unacked: Delete also what a subscription group has not acknowledged.
    """

    age_ms_max: int | None = None
    bytes_max: int | None = None
    msgs_max: int | None = None
    unacked: bool = False

    def retention(self) -> vecmq.Retention | None:
        """Make a Retention; None where no limit was given.

        Raises:
            ConfigError: A limit is out of its range, or --unacked without one.
        """
        made = vecmq.Retention(self.age_ms_max, self.bytes_max, self.msgs_max, self.unacked)
        limits = (self.age_ms_max, self.bytes_max, self.msgs_max)
        if any(limit is not None for limit in limits):
            return made
        if self.unacked:
            raise ConfigError("--unacked: goes with a limit of age, bytes or messages")
        return None


STORE: Final = Store()
LIMITS: Final = Limits()
Sure = Annotated[bool, Parameter(name="--yes")]


@queue.command(help_epilogue=examples("vecmq queue topics data", "vecmq queue topics data --json"))
def topics(path: Path, *, store: Store = STORE, json: bool = False) -> int:
    """List the topics of a directory, with what they hold.

    Args:
        path: Directory of the queue.
        store: How it is opened.
        json: Print one JSON object a topic.
    """
    with store.open(path) as mq:
        infos = [mq.topic_info(name) for name in mq.topics()]
    print_topics(infos, json=json)
    return 0


@queue.command(help_epilogue=examples("vecmq queue groups data vectors"))
def groups(path: Path, topic: str, *, store: Store = STORE, json: bool = False) -> int:
    """List the subscription groups of a topic, and how far they are.

    Args:
        path: Directory of the queue.
        topic: An existing topic.
        store: How it is opened.
        json: Print one JSON object a group.
    """
    with store.open(path) as mq:
        found = mq.groups(topic)
    print_groups(found, json=json)
    return 0


@queue.command(
    help_epilogue=examples(
        "vecmq queue create data vectors",
        "vecmq queue create data vectors --bytes-max 1000000000 --age-ms-max 86400000",
    )
)
def create(path: Path, topic: str, *, limits: Limits = LIMITS, store: Store = STORE) -> int:
    """Make a topic, with a retention of its own where limits are given.

    Args:
        path: Directory of the queue.
        topic: Name; 1 to 190 printable characters without whitespace and . * > / \\.
        limits: What it keeps.
        store: How the directory is opened.
    """
    with store.open(path) as mq:
        mq.create_topic(topic, limits.retention())
    return 0


@queue.command(
    help_epilogue=examples(
        "vecmq queue retention data vectors --msgs-max 1000000",
        "vecmq queue retention data vectors",
    )
)
def retention(path: Path, topic: str, *, limits: Limits = LIMITS, store: Store = STORE) -> int:
    """Give a topic limits of its own, and delete at once what is beyond; without limits: none.

    Args:
        path: Directory of the queue.
        topic: An existing topic.
        limits: What it keeps.
        store: How the directory is opened.
    """
    with store.open(path) as mq:
        mq.set_retention(topic, limits.retention())
        deleted = mq.retain()
    print_line(f"deleted {deleted.messages} messages, {deleted.size_bytes} bytes")
    return 0


@queue.command(help_epilogue=examples("vecmq queue purge data vectors --yes"))
def purge(path: Path, topic: str, *, sure: Sure = False, store: Store = STORE) -> int:
    """Delete all messages of a topic, acknowledged or not. Seqs go on where they were.

    Args:
        path: Directory of the queue.
        topic: An existing topic.
        sure: Needed: nothing brings them back.
        store: How the directory is opened.
    """
    be_sure("purge", topic, sure=sure)
    with store.open(path) as mq:
        deleted = mq.purge_topic(topic)
    print_line(f"deleted {deleted.messages} messages, {deleted.size_bytes} bytes")
    return 0


@queue.command(
    help_epilogue=examples(
        "vecmq queue delete data vectors --yes",
        "vecmq queue delete data vectors --group indexer --yes",
    )
)
def delete(
    path: Path, topic: str, *, group: str | None = None, sure: Sure = False, store: Store = STORE
) -> int:
    """Delete a topic with its messages and groups, or one of its groups.

    Args:
        path: Directory of the queue.
        topic: An existing topic.
        group: Delete this subscription group alone; retention waits for it no longer.
        sure: Needed: nothing brings them back.
        store: How the directory is opened.
    """
    be_sure("delete", topic, sure=sure)
    with store.open(path) as mq:
        if group is None:
            mq.delete_topic(topic)
        else:
            mq.delete_group(topic, group)
    return 0


@queue.command(
    help_epilogue=examples(
        "vecmq queue seek data vectors indexer first",
        "vecmq queue seek data vectors indexer 1000",
        "vecmq queue seek data vectors indexer 2026-01-31T12:00:00+00:00",
    )
)
def seek(
    path: Path, topic: str, group: str, to: str, *, exclusive: bool = False, store: Store = STORE
) -> int:
    """Move a subscription group: what it had acknowledged after that comes again.

    Args:
        path: Directory of the queue.
        topic: An existing topic.
        group: An existing group.
        to: A seq, "first", "new", or a time as ISO 8601; without a zone it is UTC.
        exclusive: After that seq or time instead of at it.
        store: How the directory is opened.
    """
    target = _target(to)
    with store.open(path) as mq:
        if group not in {one.name for one in mq.groups(topic)}:
            raise vecmq.GroupNotFoundError(f"topic {topic!r} has no subscription group {group!r}")
        with mq.subscribe(topic, group) as subscriber:
            subscriber.seek(target, inclusive=not exclusive)
        (moved,) = (one for one in mq.groups(topic) if one.name == group)
    print_line(f"next seq {moved.next_seq}, lag {moved.lag}")
    return 0


def _target(to: str) -> Any:
    if to in ("first", "new"):
        return to
    if to.isdecimal():
        return int(to)
    try:
        time = datetime.fromisoformat(to)
    except ValueError:
        raise UsageError(f"TO: expected a seq, a time, first or new, got {to!r}") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def be_sure(what: str, topic: str, *, sure: bool) -> None:
    """Refuse what was not meant.

    Raises:
        UsageError: Not sure.
    """
    if not sure:
        raise UsageError(f"{what} {topic!r}: nothing brings it back; say --yes")


def print_topics(infos: list[vecmq.TopicInfo], *, json: bool) -> None:
    """Print a line a topic, as a table or in JSON."""
    if not json:
        print_line(_TOPICS_HEAD)
    for info in infos:
        print_line(json_text.dumps(dataclasses.asdict(info)) if json else _topic_line(info))


def print_groups(found: list[vecmq.GroupInfo], *, json: bool) -> None:
    """Print a line a subscription group, as a table or in JSON."""
    if not json:
        print_line(_GROUPS_HEAD)
    for group in found:
        print_line(json_text.dumps(dataclasses.asdict(group)) if json else _group_line(group))


def _group_line(group: vecmq.GroupInfo) -> str:
    above = "-" if group.done_above is None else group.done_above
    return f"{group.lag:>12}{group.next_seq:>16}{above:>12}  {group.name}"


def _topic_line(info: vecmq.TopicInfo) -> str:
    last = info.last_time_ms
    when = "-" if last is None else f"{datetime.fromtimestamp(last / 1000).astimezone():%F %T}"
    return (
        f"{info.messages:>12}{info.size_bytes:>16}{info.file_bytes:>14}{info.first_seq:>12}"
        f"{info.next_seq:>12}{info.open:>6}{len(info.groups):>8}  {when:<20}"
        f"{_limits(info.retention):<28}{info.name}"
    )


def _limits(own: vecmq.Retention | None) -> str:
    if own is None:
        return "-"
    parts = [
        f"{limit}{unit}"
        for limit, unit in ((own.age_ms_max, "ms"), (own.bytes_max, "B"), (own.msgs_max, "msgs"))
        if limit is not None
    ]
    return ",".join([*parts, *(["unacked"] if own.unacked else [])])
