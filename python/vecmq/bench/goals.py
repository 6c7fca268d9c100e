"""What the routes are to reach against their peers, and whether results say that they do.

A goal is a limit of our seconds over a peer's in the same rounds (or of CPU, or memory). It is
looked up in results that ``--json`` wrote, so that a goal is met or missed by a run that anybody
can repeat. A goal that no result answers is shown as such, never left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from rich import box
from rich.table import Table

from vecmq.bench.report import add_table
from vecmq.bench.runner import KIB, MIB

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BEYOND", "GOALS", "Goal", "Outcome", "outcomes", "show", "to_values"]

Quantity = Literal["seconds", "client_cpu_s", "client_peak_bytes", "client_growth_bytes"]
NOT_MEASURED: Final = "not measured"
BEYOND_NOTE: Final = "not by vecmq bench yet"
QUEUE_NOTE: Final = "by make bench-queue, in a clone"


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit.

    Attributes:
        route: Which of ours.
        peers: Against the best of these; none: the limit is absolute.
        workload: Of both.
        size_bytes: Of a message.
        count: Messages of a full operation.
        limit: Greatest ratio, or bytes.
        batch: Messages a call of ours; None: what is best.
        peer_batch: The same of the peers.
        quantity: What is compared.
    """

    route: str
    peers: tuple[str, ...]
    workload: str
    size_bytes: int
    count: int
    limit: float
    batch: int | None = None
    peer_batch: int | None = None
    quantity: Quantity = "seconds"

    @property
    def name(self) -> str:
        """Say what is compared."""
        from vecmq.bench.sweep import size_name

        work = {"pubsub": "publish and receive", "publish": "publish"}[self.workload]
        what = {
            "seconds": "",
            "client_cpu_s": ", CPU of the client",
            "client_peak_bytes": ", memory of the client",
            "client_growth_bytes": ", growth of the client's memory",
        }[self.quantity]
        batch = "" if self.batch is None else f", {self.batch} a call"
        return f"{self.route}: {work} {size_name(self.size_bytes)} x {self.count:,}{batch}{what}"

    @property
    def against(self) -> str:
        """Name the peers and how they are called."""
        names = " or ".join(self.peers) or "a fixed limit"
        same = self.batch == self.peer_batch
        return names if same else f"{names}, {self.peer_batch or 'best'} a call"


_ROCKSMQ: Final = ("milvus-rocksmq",)
_NATSMQ: Final = ("milvus-natsmq",)
_WINDOWED: Final = ("nats-py", "natsio", "natsrpy")
_SMALL: Final = ("pubsub", KIB, 50_000)
_MIDDLE: Final = ("pubsub", 64 * KIB, 10_000)
_LARGE: Final = ("pubsub", MIB, 500)
_HUGE: Final = ("pubsub", 5 * MIB, 100)
_MIDDLE_OUT: Final = ("publish", 64 * KIB, 10_000)
_LARGE_OUT: Final = ("publish", MIB, 500)
_HUGE_OUT: Final = ("publish", 5 * MIB, 100)

GOALS: Final = (
    Goal("queue", _ROCKSMQ, *_SMALL, 0.2, batch=1, peer_batch=1),
    Goal("queue", _ROCKSMQ, *_SMALL, 0.3, batch=64, peer_batch=64),
    Goal("queue", _ROCKSMQ, *_MIDDLE, 0.2),
    Goal("queue", _ROCKSMQ, *_LARGE, 0.3),
    Goal("queue", _ROCKSMQ, *_HUGE, 0.25),
    Goal("queue", ("rocksdict",), *_SMALL, 0.5),
    Goal("queue", ("rocksq",), *_SMALL, 0.5),
    Goal("queue", ("rocksq",), *_SMALL, 0.5, batch=1, peer_batch=1),
    Goal("queue", (), *_SMALL, 100 * MIB, quantity="client_peak_bytes"),
    Goal("nats", _NATSMQ, *_HUGE, 0.35),
    Goal("nats", _NATSMQ, *_LARGE, 0.6),
    Goal("nats", _NATSMQ, *_MIDDLE, 0.4),
    Goal("nats", ("async-nats",), *_SMALL, 0.25),
    Goal("nats", ("nats-py",), *_SMALL, 0.08),
    Goal("nats", ("nats-py",), *_HUGE_OUT, 0.4, peer_batch=1),
    Goal("nats", ("nats-py",), *_LARGE_OUT, 0.4, peer_batch=1),
    Goal("nats", ("nats-py",), *_MIDDLE_OUT, 0.4, peer_batch=1),
    Goal("nats", _WINDOWED, *_HUGE_OUT, 0.65),
    Goal("nats", _WINDOWED, *_LARGE_OUT, 0.7),
    Goal("nats", _WINDOWED, *_MIDDLE_OUT, 0.65),
    Goal("nats", ("async-nats",), *_HUGE_OUT, 1.2, quantity="client_cpu_s"),
    Goal("nats", (), *_HUGE, 48 * MIB, quantity="client_growth_bytes"),
    *(
        Goal("hybrid", (better,), *work, 1.05)
        for work in (_HUGE, _LARGE, _MIDDLE, _SMALL)
        for better in ("queue", "nats")
    ),
)

# Goals that need more than `vecmq bench` measures: what, against, greatest ratio. They are shown
# with the others, as not measured; `make bench-queue` measures those of the queue.
BEYOND: Final = (
    ("queue: rows of 1 KB x 50,000, publish_rows", "rocksdict, WriteBatch", 0.5),
    ("queue: 1 KB x 50,000 in Rust", "a bare file, a write for 512 messages", 4.0),
    ("queue: 5 GB without a pause, time a byte", "its own first 500 MB", 1.3),
    ("queue: publish latency of 1 KB, p50", "rocksdict, put", 1.2),
    ("queue: publish latency of 1 KB, p99", "rocksdict, put", 1.0),
    ("queue: seconds a durable 1 KB, 64 publishers", "rocksdict, put with sync", 0.05),
    ("queue: append at 10 M messages on disk", "itself at 10 thousand", 1.2),
    ("nats: 1 KB x 50,000 in Rust, equal frames", "a bare vectored publisher", 1.1),
    ("nats: core publish and subscribe 5 MB x 100", "nats-py or natsio or natsrpy", 0.7),
    ("nats: core publish and subscribe 5 MB x 100", "a bare vectored client", 1.1),
    ("nats: random float32, codec auto", "codec raw", 1.03),
    ("nats: planes of float32 embeddings, bytes a byte", "zstd 3 of the raw bytes, 0.92", 0.85),
    ("nats: codec auto through a link of 1 Gb/s", "the best fixed codec", 1.05),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the results say of a goal.

    Attributes:
        goal: The goal.
        verdict: "met", "missed" or "not measured".
        value: The ratio, or bytes; None: not measured.
        peer: The best of the peers; None: an absolute limit, or not measured.
        note: What to know: why there is no value, that rounds were not interleaved.
    """

    goal: Goal
    verdict: str
    value: float | None = None
    peer: str | None = None
    note: str = ""


def outcomes(documents: Sequence[dict[str, Any]]) -> list[Outcome]:
    """Look every goal up.

    Args:
        documents: Results; of two that answer the same goal the later one counts.

    Returns:
        One for each of GOALS, in their order.
    """
    return [_outcome(goal, documents) for goal in GOALS]


def to_values(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Give outcomes as JSON values.

    Args:
        found: What ``outcomes`` said.

    Returns:
        One for each.
    """
    return [
        {
            "goal": one.goal.name,
            "against": one.goal.against,
            "limit": one.goal.limit,
            "value": one.value,
            "peer": one.peer,
            "verdict": one.verdict,
            "note": one.note,
        }
        for one in found
    ] + [
        {
            "goal": name,
            "against": against,
            "limit": limit,
            "value": None,
            "peer": None,
            "verdict": NOT_MEASURED,
            "note": _beyond_note(name),
        }
        for name, against, limit in BEYOND
    ]


def show(console: Console, found: Sequence[Outcome]) -> None:
    """Print the table.

    Args:
        console: Where data goes.
        found: What ``outcomes`` said.
    """
    table = Table(title="Goals", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("goal", "against"):
        table.add_column(name)
    for name in ("measured", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    colours = {"met": "green", "missed": "red"}
    for one in found:
        colour = colours.get(one.verdict, "dim")
        against = one.peer or one.goal.against
        note = f" ({one.note})" if one.note else ""
        table.add_row(
            one.goal.name,
            against,
            _text(one.goal, one.value),
            _text(one.goal, one.goal.limit),
            f"[{colour}]{one.verdict}[/]{note}",
        )
    for name, against, limit in BEYOND:
        verdict = f"[dim]{NOT_MEASURED}[/] ({_beyond_note(name)})"
        table.add_row(name, against, "-", f"{limit:.2f}", verdict)
    add_table(console, table)
    met = sum(one.verdict == "met" for one in found)
    missed = sum(one.verdict == "missed" for one in found)
    others = len(found) + len(BEYOND) - met - missed
    console.print(
        f"{met} met, {missed} missed, {others} not measured; ratios: our time over the peer's, "
        "median of the rounds",
        highlight=False,
    )


def _beyond_note(name: str) -> str:
    return QUEUE_NOTE if name.startswith("queue:") else BEYOND_NOTE


def _text(goal: Goal, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / MIB:,.0f} MB" if goal.quantity.endswith("bytes") else f"{value:.2f}"


def _outcome(goal: Goal, documents: Sequence[dict[str, Any]]) -> Outcome:
    mine = _find(documents, goal, goal.route, goal.batch)
    if mine is None:
        return Outcome(goal, NOT_MEASURED)
    if not goal.peers:
        value = statistics.median(_values(mine, goal.quantity))
        return Outcome(goal, _verdict(goal, value), value)
    rows = {name: _find(documents, goal, name, goal.peer_batch) for name in goal.peers}
    running = {name: row for name, row in rows.items() if row is not None}
    if not running:
        return Outcome(goal, NOT_MEASURED, note="no figure of the peer")
    peer, theirs = min(running.items(), key=lambda item: statistics.median(item[1]["_values"]))
    if _levels(mine) != _levels(theirs):
        note = f"{_levels(mine)} against {_levels(theirs)}: not comparable"
        return Outcome(goal, NOT_MEASURED, peer=peer, note=note)
    own, other = _values(mine, goal.quantity), theirs["_values"]
    if mine["_run"] == theirs["_run"]:
        rounds = zip(own, other, strict=False)
        value, note = statistics.median(a / b for a, b in rounds), ""
    else:
        value = statistics.median(own) / statistics.median(other)
        note = "of two runs"
    return Outcome(goal, _verdict(goal, value), value, peer, note)


def _verdict(goal: Goal, value: float) -> str:
    return "met" if value <= goal.limit else "missed"


def _find(
    documents: Sequence[dict[str, Any]], goal: Goal, contender: str, batch: int | None
) -> dict[str, Any] | None:
    """The last row that did the goal's whole work, with its values and a mark of its run."""
    found = None
    for number, document in enumerate(documents):
        for row in document.get("rows", ()):
            case = row["case"]
            work = (case["workload"], case["size_bytes"], case["count"], case["batch"])
            wanted = (goal.workload, goal.size_bytes, goal.count, batch)
            is_plain = case["publishers"] == case["subscribers"] == 1 and not case["sizes_bytes"]
            if row["contender"] == contender and work == wanted and is_plain and row["samples"]:
                values = _values(row, goal.quantity)
                found = row | {"_values": values, "_run": (number, case["name"])}
    return found


def _values(row: dict[str, Any], quantity: Quantity) -> list[float]:
    if quantity == "client_growth_bytes":
        return [
            max(float(sample["client_peak_bytes"] - sample["client_start_bytes"]), 0.0)
            for sample in row["samples"]
        ]
    # The payloads are the benchmark's own, made before the clock.
    payload_bytes = row["case"]["payload_bytes"] if quantity == "client_peak_bytes" else 0
    return [max(float(sample[quantity]) - payload_bytes, 0.0) for sample in row["samples"]]


def _levels(row: dict[str, Any]) -> str:
    return ", ".join(sorted({level for sample in row["samples"] for level in sample["levels"]}))
