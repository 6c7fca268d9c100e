"""``vecmq queue``: what is done to a queue's directory while nobody serves it."""

from __future__ import annotations

import dataclasses
import json as json_text
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vecmq import migrate
from vecmq.cli.base import UsageError, app, examples, print_line

__all__ = ["import_", "queue"]

queue = App(
    name="queue",
    help="Look after queue directories.",
    help_epilogue=examples(
        "vecmq queue import rdb_data --list",
        "vecmq queue import rdb_data --into data",
        "vecmq queue import --help",
    ),
)
app.command(queue)

LIST_HEAD: Final = (
    f"{'messages':>12}{'bytes':>16}{'pages':>8}{'missing bytes':>15}  "
    f"{'made':<20}{'state':<11}topic"
)
IMPORT_HEAD: Final = (
    f"{'messages':>12}{'bytes':>16}{'present':>12}{'copied':>12}{'verified':>12}  topic"
)


@queue.command(
    name="import",
    help_epilogue=examples(
        "vecmq queue import /var/lib/milvus/rdb_data --list",
        "vecmq queue import /var/lib/milvus/rdb_data --into data",
        "vecmq queue import rdb_data --into data --topic dml_0 --topic old.name=new-name --json",
    ),
)
def import_(
    path: Path,
    *,
    into: Path | None = None,
    topic: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    list: bool = False,  # noqa: A002 - the option's name
    json: bool = False,
) -> int:
    """Copy the messages of a Milvus RocksMQ directory (Milvus 2.5 and before) into a queue.

    The directory is read only; Milvus has to be stopped. Every message is compared byte by byte
    after it was copied. The same command again goes on where the last one was stopped or killed.

    Args:
        path: rocksmq.path of milvus.yaml; the directory PATH_meta_kv has to be beside it.
        into: Directory of the queue to copy into.
        topic: Copy this topic, as NAME or NAME=NAME-IN-VECMQ; may be given several times. Default:
            all, but destroyed ones, whose messages Milvus leaves behind, only by their name.
        list: Print the topics instead; every message is read once to count them.
        json: Print one JSON object a topic.
    """
    if list:
        if into is not None or topic:
            raise UsageError("--list: goes neither with --into nor with --topic")
        with _progress() as progress:
            found = migrate.list_rocksmq(path, progress=progress)
        _print_list(found, as_json=json)
        return 0
    if into is None:
        raise UsageError("say where to: --into DIR, or --list to look only")
    if not json:
        print_line(IMPORT_HEAD)
    with _progress() as progress:
        migrate.import_rocksmq(
            path,
            into,
            _topics(topic),
            progress=progress,
            finished=lambda done: _print_imported(done, as_json=json),
        )
    return 0


def _topics(texts: Sequence[str]) -> dict[str, str] | None:
    if not texts:
        return None
    names = {}
    for text in texts:
        source, sign, name = text.rpartition("=")
        if not sign:
            source = name
        if not source or not name:
            raise UsageError(f"--topic: expected NAME or NAME=NAME-IN-VECMQ, got {text!r}")
        if source in names:
            raise UsageError(f"--topic: {source!r} is named twice")
        names[source] = name
    return names


@contextmanager
def _progress() -> Iterator[migrate.Progress]:
    """Show a bar on stderr; nothing where that is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown as bar:
        task = bar.add_task("", total=None)

        def update(what: str, topic: str, done: int, count: int) -> None:
            bar.update(task, description=f"{what} {topic}", completed=done, total=count or None)

        yield update


def _print_list(topics: Sequence[migrate.RocksTopic], *, as_json: bool) -> None:
    if as_json:
        for topic in topics:
            print_line(json_text.dumps(dataclasses.asdict(topic)))
        return
    print_line(LIST_HEAD)
    for topic in topics:
        made = topic.created_s
        when = "-" if made is None else f"{datetime.fromtimestamp(made).astimezone():%F %T}"
        print_line(
            f"{topic.messages_count:>12}{topic.payload_bytes:>16}{len(topic.pages):>8}"
            f"{topic.missing_bytes:>15}  {when:<20}"
            f"{'destroyed' if topic.orphaned else 'topic':<11}{topic.name}"
        )


def _print_imported(done: migrate.ImportedTopic, *, as_json: bool) -> None:
    if as_json:
        print_line(json_text.dumps(dataclasses.asdict(done)))
        return
    name = done.topic if done.topic == done.source else f"{done.topic} (from {done.source})"
    print_line(
        f"{done.messages_count:>12}{done.payload_bytes:>16}{done.present_count:>12}"
        f"{done.copied_count:>12}{done.verified_count:>12}  {name}"
    )
