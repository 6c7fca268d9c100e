"""``vecmq demo`` and ``vecmq bench``: runs that verify themselves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import vecmq
from vecmq.cli.base import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Codec,
    JsonFile,
    UsageError,
    app,
    bench,
    data_console,
    examples,
    save,
)

__all__ = ["demo", "table1"]


@app.command(
    help_epilogue=examples(
        "vecmq demo",
        "vecmq demo --path data               # keeps a ledger; kill it, then:",
        "vecmq demo --path data --resume",
        "vecmq demo --codec planes --limit 300 --json -",
    )
)
def demo(
    *,
    path: Path | None = None,
    resume: bool = False,
    codec: Codec = "raw",
    limit: int | None = None,
    json: JsonFile = None,
    seed: int | None = None,
) -> int:
    """Publish real embeddings over both routes of one topic, receive them, and verify every bit.

    The vectors are the docstring sentences of Python's standard library (TF-IDF and SVD, 256
    float32): computed once in some 10 s, then cached. Exit code 1 when anything is lost, doubled,
    changed or out of order.

    Args:
        path: Directory of the stores and of the ledger of what was acknowledged. Default: a
            temporary one, which is deleted.
        resume: Continue on a directory whose run was killed or interrupted, and verify all of it.
        codec: Codec of the frames.
        limit: Publish the first LIMIT of the 1,320 steps only.
        json: Write the result as JSON to this file, or - for stdout (then without tables).
        seed: Chooses sizes, rows and order.
    """
    from vecmq.demo import result as results
    from vecmq.demo import run, show, vectors

    if limit is not None and limit < 1:
        raise UsageError(f"--limit: expected steps > 0, got {limit}")
    if resume and path is None:
        raise UsageError("--resume: say what to continue with --path DIR")
    progress_console = Console(stderr=True)
    options = results.DemoOptions(path, resume, codec, limit, seed)
    started = time.perf_counter()
    with progress_console.status("computing vectors (once; they are cached)"):
        try:
            corpus = vectors.load()
        except vectors.DemoDataError as error:
            raise UsageError(str(error)) from None
    _log(
        f"{len(corpus.sentences):,} sentences as {corpus.vectors.nbytes / (1 << 20):.1f} MiB of "
        f"vectors, {'cached' if corpus.was_cached else 'computed'} in "
        f"{time.perf_counter() - started:.1f} s"
    )
    with show.progress(progress_console) as progress:
        result = run.run(options, corpus, progress)
    if json != "-":
        show.show(data_console(), result)
    if json is not None:
        save(json, results.summary(result, options, corpus))
    if not result.is_good:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if result.is_interrupted else 0


@bench.command(
    help_epilogue=examples(
        "vecmq bench table1",
        "vecmq bench table1 --scale 0.1 --ops 3",
        "vecmq bench table1 --routes queue,hybrid --json result.json --path bench-dir",
    )
)
def table1(
    *,
    scale: float = 1.0,
    ops: int = 5,
    routes: str = "queue,nats,hybrid",
    json: JsonFile = None,
    codec: Codec = "raw",
    path: Path | None = None,
) -> int:
    """Publish and subscribe one topic until the last is received: 5 MB x 100 to 1 KB x 50,000.

    The four workloads of the Milvus blog's Table 1, on each route in turn, a process for each
    route. A full run takes some minutes, and disk for (ops + 1) x 3 routes x 625 MiB x 2. Refuses
    to run on a debug build (exit code 2). Exit code 1 when anything was lost, doubled, changed or
    out of order.

    Args:
        scale: Share of the message counts; 0.1 is a quick look.
        ops: Operations that count, a route and workload; one more warms up.
        routes: Some of queue, nats, hybrid, with commas between.
        json: Write everything with raw samples as JSON to this file, or - for stdout (then without
            tables).
        codec: Codec of the frames.
        path: Directory for the stores, which are deleted at the end. Default: the temporary
            directory.
    """
    if vecmq.build_info()["profile"] != "release":
        raise UsageError("this is a debug build, its speed says nothing; `make build-prod` first")
    from vecmq.bench import report
    from vecmq.bench.table1 import Table1Options, run

    names: Any = tuple(name.strip() for name in routes.split(","))
    options = Table1Options(names, ops, scale, codec, path)
    with report.progress(Console(stderr=True), options) as progress:
        result = run(options, progress)
    if json != "-":
        report.show(data_console(), result)
    if json is not None:
        save(json, result.document())
    if not result.is_good:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if result.is_interrupted else 0


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
