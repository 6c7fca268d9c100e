"""``vecmq demo``: the main job, which verifies itself."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

from vecmq.cli.base import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Codec,
    JsonFile,
    UsageError,
    app,
    data_console,
    examples,
    save,
)

__all__ = ["demo"]


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


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
