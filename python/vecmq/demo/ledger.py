"""The demo's own note of what was acknowledged: one JSON line a receipt, written after it came.

The first line of a run names the plan; a receipt line follows for each publish. A line is one
append to the file, so it is in the operating system before the next message is published, and a
kill -9 can at most leave the last line out.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from vecmq.errors import ConfigError, CorruptError

if TYPE_CHECKING:
    from types import TracebackType

    from vecmq import Receipt

__all__ = ["FILE_NAME", "Entry", "Ledger", "Start"]

FILE_NAME: Final = "demo-ledger.jsonl"
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Start:
    """What a plan is made from.

    Attributes:
        seed: Seed of the plan.
        limit: Items of the plan; None is all.
        digest: Fingerprint of plan and payloads.
    """

    seed: int
    limit: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One receipt.

    Attributes:
        plan_index: Item of the plan.
        seq: Position in the topic; of a block the first row's.
        rows_count: Messages acknowledged.
        route: The route that took it.
        id: Message id.
    """

    plan_index: int
    seq: int
    rows_count: int
    route: str
    id: str


class Ledger:
    """The ledger of one directory, read at construction. Close it, or use it in ``with``.

    Args:
        directory: Where the file lies; made where it does not exist.

    Attributes:
        start: The plan that the directory holds, None for a new one.
        runs_count: Runs so far, this one not included.
        entries: Receipts so far, in the order in which they came.

    Raises:
        ConfigError: The directory cannot be used.
        CorruptError: The file is not a ledger.
    """

    def __init__(self, directory: Path) -> None:
        self.path: Final = directory / FILE_NAME
        self.start: Start | None = None
        self.runs_count = 0
        self.entries: list[Entry] = []
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigError(f"path: cannot use {directory}: {error}") from error
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        # What a kill left of a line was never followed by another publish.
        os.ftruncate(self._fd, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptError(f"{self.path} line {number}: no ledger line: {error}") from None

    def _take(self, line: dict[str, Any]) -> None:
        if "ledger" in line:
            if line["ledger"] != VERSION:
                raise ValueError(f"expected version {VERSION}, got {line['ledger']}")
            self.start = Start(line["seed"], line["limit"], line["digest"])
            self.runs_count += 1
        else:
            self.entries.append(
                Entry(line["plan"], line["seq"], line["rows"], line["route"], line["id"])
            )

    def begin(self, start: Start) -> None:
        """Note that a run begins.

        Args:
            start: The plan; that of the earlier runs, if there were any.

        Raises:
            OSError: The file cannot be written.
        """
        assert self.start in (None, start)
        self._append(
            {
                "ledger": VERSION,
                "seed": start.seed,
                "limit": start.limit,
                "digest": start.digest,
            }
        )
        self.start = start

    def add(self, plan_index: int, receipt: Receipt) -> Entry:
        """Note a receipt.

        Args:
            plan_index: Item of the plan.
            receipt: What publish returned for it.

        Returns:
            The entry; it survives a kill -9 of this process.

        Raises:
            OSError: The file cannot be written.
        """
        entry = Entry(plan_index, receipt.seq, receipt.rows_count, receipt.route, receipt.id)
        self._append(
            {
                "plan": entry.plan_index,
                "seq": entry.seq,
                "rows": entry.rows_count,
                "route": entry.route,
                "id": entry.id,
            }
        )
        self.entries.append(entry)
        return entry

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        written = os.write(self._fd, data)
        if written != len(data):
            raise OSError(f"{self.path}: wrote {written} of {len(data)} bytes; is the disk full?")

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
