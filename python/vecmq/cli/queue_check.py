"""``vecmq queue check``."""

from __future__ import annotations

import dataclasses
import json as json_text
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import vecmq
from vecmq.cli.base import EXIT_CONNECT, EXIT_FAILED, examples, print_line
from vecmq.cli.queue import queue
from vecmq.errors import CorruptError, QueueError

if TYPE_CHECKING:
    from vecmq.integrity import CheckReport

__all__ = ["check"]

HEAD = f"{'topic':<24}{'messages':>12}{'bytes':>16}{'first seq':>12}{'last seq':>12}  groups"


@queue.command(
    help_epilogue=examples("vecmq queue check data", "vecmq queue check data --json | jq .faults")
)
def check(path: Path, *, json: bool = False) -> int:
    """Verify a directory that nobody has open; nothing in it is changed.

    Reads every record, verifies every checksum, follows every pointer to a value file and compares
    what is counted with what is there. Prints a line for each topic, then one for each fault.
    Exit code 0: sound, 1: damaged, 2: wrong usage, 3: it cannot be opened.

    Args:
        path: Directory of a handle, or the one named "queue" in it.
        json: Print one JSON document.
    """
    try:
        report = vecmq.check(path)
    except (QueueError, CorruptError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return EXIT_CONNECT
    if json:
        print_line(json_text.dumps(dataclasses.asdict(report), default=str))
    else:
        _print(report)
    return 0 if report.is_sound else EXIT_FAILED


def _print(report: CheckReport) -> None:
    print_line(HEAD)
    for topic in report.topics:
        groups = " ".join(f"{group}={seq}" for group, seq in topic.groups.items())
        line = f"{topic.name:<24}{topic.messages:>12}{topic.bytes:>16}{topic.first_seq:>12}"
        print_line(f"{line}{topic.next_seq - 1:>12}  {groups}".rstrip())
    for fault in report.faults:
        print_line(f"fault: {fault}")
    for left in report.leftovers:
        print_line(f"left by a killed process, removed at the next open: {left}")
    print_line("sound" if report.is_sound else f"damaged: {len(report.faults)} faults")
