"""The rows of `make bench-queue`: what is compared with what, and how far it is to reach."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

from compare import (
    Context,
    Figure,
    Goal,
    Group,
    Member,
    digits,
    interleave,
    peer,
    progress,
    ratio,
)
from vecmq.bench.contender import Contender, find_routes
from vecmq.bench.process import BenchError
from vecmq.bench.runner import KIB, MIB

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
# Name in the rows, bytes of a message, messages of an operation.
LARGE: Final = (("64KB", 64 * KIB, 10_000), ("1MB", MIB, 500), ("5MB", 5 * MIB, 100))
SMALL_MSGS: Final = 50_000
PUTS: Final = 20_000
DURABLE_MSGS: Final = 12_800
DURABLE_PUBLISHERS: Final = 64
GROWN_APPENDS: Final = 20_000
GROWN_MSGS: Final = (10_000, 10_000_000)
# These take long, and each looks at many moments.
FEW_ROUNDS: Final = 3

GOALS: Final = {
    "rows-rocksdict": Goal(0.5),
    "list-rocksq": Goal(0.5),
    "one-rocksq": Goal(0.5),
    "rust-file": Goal(4),
    "rust-rows-file": Goal(4),
    "one-rocksmq": Goal(0.2),
    "64-rocksmq": Goal(0.3),
    "64KB-rocksmq": Goal(0.2),
    "1MB-rocksmq": Goal(0.3),
    "5MB-rocksmq": Goal(0.25),
    **{f"{size}-ten-times": Goal(1.3) for size, _, _ in LARGE},
    **{f"{size}-worst-stall": Goal(100, unit=" ms", digits=0) for size, _, _ in LARGE},
    "put-p50-rocksdict": Goal(1.2),
    "put-p99-rocksdict": Goal(1),
    "durable-rocksdict": Goal(20, ">=", digits=1),
    "memory": Goal(100, unit=" MB", digits=0),
    "rate-10M": Goal(1.2),
    "memory-10M": Goal(1.2),
}

Figures = dict[str, Figure]


def queue() -> Contender:
    """Gives vecmq's own worker of docs/bench-workers.md.

    Returns:
        The route "queue".
    """
    return find_routes(["queue"])[0]


def own(kind: str) -> Contender:
    """Gives a worker of `ours.py`.

    Args:
        kind: What an operation is.

    Returns:
        A contender.
    """
    return Contender(kind, (sys.executable, str(HERE / "ours.py")))


def rocksdict(kind: str) -> Contender:
    """Gives a worker of `peer_put.py`, in the environment of the peer rocksdict.

    Args:
        kind: "put" or "durable".

    Returns:
        A contender.

    Raises:
        Missing: The peer is not built.
    """
    python, worker = peer("rocksdict").command
    # The script's own modules are those of `make peers`.
    code = f"import runpy, sys; sys.path.insert(0, {str(Path(worker).parent)!r}); "
    code += f"runpy.run_path({str(HERE / 'peer_put.py')!r}, run_name='__main__')"
    return Contender(kind, (python, "-c", code))


def rows(context: Context) -> Figures:
    """Measures rows against a WriteBatch and an iterator, 512 a call."""
    count = context.count(SMALL_MSGS)
    mine = Member("rows", own("rows"), KIB, count)
    theirs = Member("rocksdict", peer("rocksdict"), KIB, count, batch=512)
    interleave(context, [mine, theirs])
    return {"rows-rocksdict": ratio(mine, theirs)}


def lists(context: Context) -> Figures:
    """Measures lists of 512 against push and pop of 512."""
    count = context.count(SMALL_MSGS)
    mine = Member("list", queue(), KIB, count, batch=512)
    theirs = Member("rocksq", peer("rocksq"), KIB, count, batch=512)
    interleave(context, [mine, theirs])
    return {"list-rocksq": ratio(mine, theirs)}


def ones(context: Context) -> Figures:
    """Measures one message a call against one a push."""
    count = context.count(SMALL_MSGS)
    mine = Member("one", queue(), KIB, count, batch=1)
    theirs = Member("rocksq-one", peer("rocksq"), KIB, count, batch=1)
    interleave(context, [mine, theirs])
    return {"one-rocksq": ratio(mine, theirs)}


def rocksmq(name: str, size_bytes: int, full: int, batch: int | None) -> Group:
    """Makes the row of a workload against Milvus' RocksMQ.

    Args:
        name: Of the row, in front of "-rocksmq".
        size_bytes: Of a message.
        full: Messages at scale 1.
        batch: Messages a call of both.

    Returns:
        The group.
    """

    def measure(context: Context) -> Figures:
        count = context.count(full)
        mine = Member(name, queue(), size_bytes, count, batch)
        theirs = Member(f"rocksmq-{name}", peer("milvus-rocksmq"), size_bytes, count, batch)
        interleave(context, [mine, theirs])
        return {f"{name}-rocksmq": ratio(mine, theirs)}

    return Group((f"{name}-rocksmq",), measure)


def rust(context: Context) -> Figures:
    """Measures the crate against an append-only file, both in one process."""
    count = context.count(SMALL_MSGS, 512)
    command = ["cargo", "bench", "--locked", "--quiet", "--bench", "queue_floor", "--"]
    done = subprocess.run(
        [*command, str(count), str(context.rounds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"queue_floor ended with exit code {done.returncode}")
    taken: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    progress(f"queue_floor: {taken}")

    def figure(key: str) -> Figure:
        value = statistics.median(a / b for a, b in zip(taken[key], taken["file_s"], strict=True))
        both = [digits(statistics.median(taken[side])) for side in (key, "file_s")]
        return Figure(value, f"{both[0]} against {both[1]} s")

    return {"rust-file": figure("messages_s"), "rust-rows-file": figure("rows_s")}


def sustained(name: str, size_bytes: int, full: int) -> Group:
    """Makes the rows of a workload ten times over.

    Args:
        name: Of the size.
        size_bytes: Of a message.
        full: Messages of one pass at scale 1.

    Returns:
        The group.
    """

    def measure(context: Context) -> Figures:
        mine = Member(f"sustained-{name}", own("sustained"), size_bytes, context.count(full, 16))
        interleave(context, [mine], min(context.rounds, FEW_ROUNDS))
        calls, gaps = mine.median("stall_publish_s"), mine.median("stall_receive_s")
        worst = max(max(one["stall_publish_s"], one["stall_receive_s"]) for one in mine.samples)
        took = f"{digits(mine.median('seconds'))} s in all"
        kept = f"{mine.median('kept_bytes') / MIB:.0f} MB on disk at the end"
        note = f"medians: publish {calls * 1e3:.0f}, receive {gaps * 1e3:.0f} ms"
        return {
            f"{name}-ten-times": Figure(mine.median("rest_ratio"), f"{took}, {kept}"),
            f"{name}-worst-stall": Figure(worst * 1e3, note),
        }

    return Group((f"{name}-ten-times", f"{name}-worst-stall"), measure)


def puts(context: Context) -> Figures:
    """Measures the latency of one message, stored, against a put."""
    count = context.count(PUTS, 1000)
    mine = Member("put", own("put"), KIB, count)
    theirs = Member("rocksdict-put", rocksdict("put"), KIB, count)
    interleave(context, [mine, theirs])
    return {
        f"put-{share}-rocksdict": ratio(mine, theirs, f"{share}_ns") for share in ("p50", "p99")
    }


def durable(context: Context) -> Figures:
    """Measures synced messages of 64 publishers against synced puts; the better of two ways."""
    count = context.count(DURABLE_MSGS, 640)
    mine = Member("durable", own("durable"), KIB, count, publishers=DURABLE_PUBLISHERS)
    # A sync each takes long, and their number decides nothing.
    few = context.count(DURABLE_MSGS // 4, 640)
    theirs = [
        Member(f"rocksdict-{threads}", rocksdict("durable"), KIB, few, publishers=threads)
        for threads in (1, DURABLE_PUBLISHERS)
    ]
    interleave(context, [mine, *theirs])
    best = min(theirs, key=lambda one: one.median("seconds"))
    both = zip(mine.samples, best.samples, strict=True)
    value = statistics.median((count / a["seconds"]) / (few / b["seconds"]) for a, b in both)
    rates = [round(count / mine.median("seconds")), round(few / best.median("seconds"))]
    note = f"{rates[0]:,} against {rates[1]:,} a second ({best.publishers} threads)"
    return {"durable-rocksdict": Figure(value, note)}


def memory(context: Context) -> Figures:
    """Measures resident memory, of the whole process, while messages pass."""
    mine = Member("memory", own("memory"), KIB, context.count(SMALL_MSGS))
    interleave(context, [mine])
    start = mine.median("client_start_bytes") / MIB
    peak = mine.median("client_peak_bytes") / MIB
    return {"memory": Figure(peak, f"{start:.0f} MB before the first message")}


def grown(context: Context) -> Figures:
    """Measures appends to a topic with many messages against one with few."""
    count = context.count(GROWN_APPENDS, 1000)
    few, many = (
        Member(f"grown-{full}", own("grown"), KIB, count, publishers=context.count(full))
        for full in GROWN_MSGS
    )
    interleave(context, [many, few])
    sizes = [f"{one.median('client_peak_bytes') / MIB:.0f}" for one in (many, few)]
    value = ratio(many, few, "client_peak_bytes").value
    return {
        "rate-10M": ratio(many, few),
        "memory-10M": Figure(value, f"{sizes[0]} against {sizes[1]} MB"),
    }


GROUPS: Final = (
    Group(("rows-rocksdict",), rows),
    Group(("list-rocksq",), lists),
    Group(("one-rocksq",), ones),
    Group(("rust-file", "rust-rows-file"), rust),
    rocksmq("one", KIB, SMALL_MSGS, 1),
    rocksmq("64", KIB, SMALL_MSGS, 64),
    *(rocksmq(name, size, full, None) for name, size, full in LARGE),
    *(sustained(name, size, full) for name, size, full in LARGE),
    Group(("put-p50-rocksdict", "put-p99-rocksdict"), puts),
    Group(("durable-rocksdict",), durable),
    Group(("memory",), memory),
    Group(("rate-10M", "memory-10M"), grown),
)
