"""``vecmq bench``: measures, verifies what it measures, and states the conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter
from rich.console import Console
from rich.text import Text

import vecmq
from vecmq.cli.base import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Codec,
    JsonFile,
    Server,
    UsageError,
    app,
    data_console,
    examples,
    save,
    save_text,
)

if TYPE_CHECKING:
    from vecmq.bench.runner import Case, Result
    from vecmq.bench.worker import ServerSpec

__all__ = ["bench"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20

bench = App(
    name="bench",
    help="Measure. Every received message is verified; runs are interleaved; conditions are shown.",
    help_epilogue=examples(
        "vecmq bench table1 --scale 0.1",
        "vecmq bench table1 --peers all --html report.html",
        "vecmq bench sweep --plot",
        "vecmq bench compare before.json after.json",
    ),
)
app.command(bench)

# A path, or "-".
TextFile = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Run:
    """What the measuring commands share.

    Attributes:
        routes: Some of queue, nats, hybrid, with commas between; none: peers alone.
        peers: Peers to run beside them, with commas between, or all. `make peers` builds them; one
            that is missing is shown as missing.
        ops: Operations that count, each.
        warmup: Operations before those.
        batch: Messages a call; 1: each is acknowledged before the next. Default: what is best in
            each client.
        codec: Codec of vecmq's frames.
        server: URL of a NATS server to use instead of one started for each contender. What is
            made there is deleted at the end.
        context: The same, by the name of a context of the nats CLI.
        path: Directory for the stores, which are deleted at the end. Default: the temporary
            directory.
        json: Write everything with raw samples as JSON to this file, or - for stdout (then without
            tables). pytest-benchmark compare reads it too.
        csv: Write a line for each operation to this file, or - for stdout.
        html: Write a report with charts to this file; it needs no network.
        plot: Draw the result in the terminal too.
    """

    routes: str = "queue,nats,hybrid"
    peers: str = "none"
    ops: int = 5
    warmup: int = 1
    batch: int | None = None
    codec: Codec = "raw"
    server: str | None = None
    context: str | None = None
    path: Path | None = None
    json: JsonFile = None
    csv: TextFile = None
    html: Path | None = None
    plot: bool = False


RUN: Final = Run()


@bench.command(
    help_epilogue=examples(
        "vecmq bench table1",
        "vecmq bench table1 --scale 0.1 --ops 3",
        "vecmq bench table1 --peers all --html report.html",
        "vecmq bench table1 --routes queue,hybrid --json result.json --path bench-dir",
    )
)
def table1(*, scale: float = 1.0, run: Run = RUN) -> int:
    """Publish and subscribe one topic until the last is received: 5 MB x 100 to 1 KB x 50,000.

    The four workloads of the Milvus blog's Table 1, on each route in turn, a process for each
    route. A full run takes some minutes, and disk for (ops + warmup) x contenders x 625 MiB x 1.5.
    Refuses to run on a debug build (exit code 2). Exit code 1 when anything was lost, doubled,
    changed or out of order.

    Args:
        scale: Share of the message counts; 0.1 is a quick look.
        run: What the measuring commands share.
    """
    from vecmq.bench import table1 as workloads

    part = "" if scale == 1 else f", {scale:g} of the message counts"
    title = f"Table 1: publish and subscribe one topic until the last is received{part}"
    cases = workloads.cases(scale, run.batch)
    return _measure(run, "table1", title, cases, {"scale": scale}, [workloads.REFERENCE])


@bench.command(
    help_epilogue=examples(
        "vecmq bench sweep --plot",
        "vecmq bench sweep --sizes 1KB,16KB,64KB,256KB --volume 256MB --peers milvus-natsmq",
    )
)
def sweep(*, sizes: str | None = None, volume: str = "64MB", run: Run = RUN) -> int:
    """Publish and subscribe messages of many sizes, and find where the routes cross.

    Args:
        sizes: Sizes with commas between. Default: 256 B to almost 8 MB.
        volume: Bytes of an operation of each size (at most 50,000 messages).
        run: What the measuring commands share.
    """
    from vecmq.bench import sweep as sizes_module

    chosen: Sequence[int] = sizes_module.SIZES_BYTES
    if sizes is not None:
        chosen = [sizes_module.parse_size(text) for text in sizes.split(",")]
    cases = sizes_module.cases(chosen, sizes_module.parse_size(volume), run.batch)
    title = f"Sizes: {volume} of each, published and received"
    return _measure(run, "sweep", title, cases, {"volume": volume}, plot="crossover_plot")


@bench.command(
    help_epilogue=examples(
        "vecmq bench latency --rate 5000",
        "vecmq bench latency --rate 200 --size 1MB --msgs 2000 --plot --peers nats-py",
    )
)
def latency(*, rate: float = 1000.0, size: str = "1KB", msgs: int = 10_000, run: Run = RUN) -> int:
    """Publish at a fixed rate, and show how long after it was due each message was received.

    The loop is open: the next message is due whether the last one is done or not, and waiting
    counts (no coordinated omission). A rate beyond what a contender can do shows as latencies that
    grow to the length of the run.

    Args:
        rate: Messages due in a second.
        size: Bytes of a message.
        msgs: Messages of an operation.
        run: What the measuring commands share.
    """
    if not 0 < rate <= 10e6:  # NaN fails this too
        raise UsageError(f"--rate: expected > 0 and <= 10,000,000 messages a second, got {rate}")
    case = _case(size, msgs, run.batch)
    case = replace(case, workload="latency", rate_per_s=rate, name=f"{case.name} at {rate:g}/s")
    title = f"Open loop: {case.name}"
    return _measure(run, "latency", title, (case,), {"rate": rate}, plot="latency_plot")


@bench.command(help_epilogue=examples("vecmq bench mix", "vecmq bench mix --msgs 5000 --max 16MB"))
def mix(*, msgs: int = 2000, least: str = "256", greatest: str = "4MB", run: Run = RUN) -> int:
    """Publish and subscribe messages of log-uniform sizes, as real pipelines have them.

    Args:
        msgs: Messages of an operation.
        least: Smallest size.
        greatest: Largest size.
        run: What the measuring commands share.
    """
    from vecmq.bench import mix as mixed
    from vecmq.bench.sweep import parse_size

    case = mixed.case(msgs, parse_size(least), parse_size(greatest), run.batch)
    return _measure(run, "mix", f"Mixed sizes: {case.name}, log-uniform", (case,), {})


@bench.command(
    help_epilogue=examples(
        "vecmq bench publish --msgs 50000 --size 1KB",
        "vecmq bench publish --size 1MB --msgs 500 --pub 4 --sub 2",
    )
)
def publish(
    *, msgs: int = 50_000, size: str = "1KB", pub: int = 1, sub: int = 0, run: Run = RUN
) -> int:
    """Publish until the last acknowledgement, without a subscriber or with some.

    Without a subscriber what was published is read back and verified after the clock has stopped.

    Args:
        msgs: Messages of an operation, of all publishers together.
        size: Bytes of a message.
        pub: Publishers, a thread each.
        sub: Subscribers, a thread each; each receives everything.
        run: What the measuring commands share.
    """
    for name, value, least in (("--pub", pub, 1), ("--sub", sub, 0)):
        if not least <= value <= 64:
            raise UsageError(f"{name}: expected {least} to 64, got {value}")
    case = _case(size, msgs, run.batch)
    kind: Any = "pubsub" if sub else "publish"
    case = replace(case, workload=kind, publishers=pub, subscribers=max(sub, 1))
    until = f"{sub} received the last" if sub else "the last is acknowledged"
    title = f"{pub} publishing until {until}"
    return _measure(run, "publish", title, (case,), {"pub": pub, "sub": sub})


@bench.command(
    help_epilogue=examples(
        "vecmq bench soak --minutes 60 --json soak.json",
        "vecmq bench soak --minutes 1 --size 64KB --msgs 2000 --routes queue",
    )
)
def soak(
    *,
    minutes: float = 10.0,
    msgs: int = 10_000,
    size: str = "4KB",
    keep_s: float = 5.0,
    run: Run = RUN,
) -> int:
    """Repeat the same work, and show whether time, memory or disk grow.

    Ctrl-C ends it early and shows what was finished. Peers take no part: they keep everything.

    Args:
        minutes: How long.
        msgs: Messages of an operation.
        size: Bytes of a message.
        keep_s: Seconds that a topic keeps messages.
        run: What the measuring commands share; --ops is ignored.
    """
    from vecmq.bench import soak as over_time
    from vecmq.bench.runner import OPS_MAX

    if not 0 < minutes <= 100_000:  # NaN fails this too
        raise UsageError(f"--minutes: expected > 0 and <= 100,000, got {minutes}")
    if not 0 < keep_s <= 1e6:
        raise UsageError(f"--keep-s: expected > 0 and <= 1,000,000 s, got {keep_s}")
    if run.peers != "none":
        raise UsageError("--peers: soak measures vecmq alone")
    case = _case(size, msgs, run.batch)
    return _measure(
        replace(run, ops=OPS_MAX),
        "soak",
        f"Soak: {minutes:g} minutes",
        (case,),
        {"minutes": minutes, "keep_s": keep_s},
        more=over_time.show,
        plan_values={"duration_s": minutes * 60, "retention_s": keep_s},
    )


@bench.command(
    help_epilogue=examples(
        "vecmq bench ingest",
        "vecmq bench ingest --vectors 50000 --routes none,hybrid --json ingest.json",
    )
)
def ingest(
    *,
    vectors: int = 500_000,
    dimensions: int = 128,
    ops: int = 3,
    routes: str = "none,queue,nats,hybrid",
    path: Path | None = None,
    json: JsonFile = None,
) -> int:
    """Ingest vectors into an index that is searched meanwhile: the blog's Table 2, smaller.

    Half of the vectors come in small batches, half in large ones; a faiss index (IVF-flat) takes
    them while one thread searches it and another one asks for vectors by id. Everything is
    verified, the index too.

    Args:
        vectors: Vectors of an operation; memory is the limit.
        dimensions: Of a vector, float32.
        ops: Operations a route, interleaved.
        routes: Some of none, queue, nats, hybrid, with commas between; none: without a queue.
        path: Directory for the stores, which are deleted. Default: the temporary directory.
        json: Write everything as JSON to this file, or - for stdout (then without tables).
    """
    _refuse_debug()
    from vecmq.bench import ingest as into_index
    from vecmq.bench import report

    names = tuple(name.strip() for name in routes.split(","))
    options = into_index.IngestOptions(names, vectors, dimensions, ops, path=path)
    with report.steps(Console(stderr=True), ops * len(names)) as step:

        def progress(route: str, number: int, sample: dict[str, Any] | None) -> None:
            step(f"{route}, round {number + 1} of {ops}", sample)

        result = into_index.run(options, progress)
    if json != "-":
        into_index.show(data_console(), result)
    if json is not None:
        save(json, result.document())
    if not result.is_good:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if result.is_interrupted else 0


@bench.command(
    help_epilogue=examples(
        "vecmq bench codec embeddings.npy", "vecmq bench codec arrays/ --json codecs.json"
    )
)
def codec(path: Path, *, json: JsonFile = None) -> int:
    """Encode and decode your own arrays with every codec: bytes on the wire, MB/s.

    Args:
        path: A .npy file, or a directory of them.
        json: Write the rows as JSON to this file, or - for stdout (then without a table).
    """
    _refuse_debug()
    from vecmq.bench import codec as codecs
    from vecmq.bench import machine

    arrays = codecs.read_arrays(path)
    with Console(stderr=True).status("reading") as status:
        rows = codecs.measure(arrays, status.update)
    if json != "-":
        codecs.show(data_console(), rows)
    if json is not None:
        facts = machine.facts(Path.cwd())
        values = {"schema": "vecmq-bench-1", "command": "codec", "machine": facts}
        save(json, values | {"codecs": codecs.to_values(rows)})
    return 0


@bench.command(help_epilogue=examples("vecmq bench compare before.json after.json"))
def compare(before: Path, after: Path) -> int:
    """Show what became faster or slower between two results.

    Results of other levels or other work are not compared; other conditions are named.

    Args:
        before: A result that --json wrote.
        after: Another one of the same command.
    """
    from vecmq.bench import compare as two
    from vecmq.bench.document import load

    old, new = load(before), load(after)
    if old["command"] != new["command"] or "rows" not in old or "rows" not in new:
        raise UsageError(
            f"expected two results of one measuring command, "
            f"got {old['command']} and {new['command']}"
        )
    two.show(data_console(), old, new)
    return 0


@bench.command(
    help_epilogue=examples(
        "vecmq bench table1 --peers all --json table1.json && vecmq bench goals table1.json"
    )
)
def goals(first: Path, /, *others: Path, json: JsonFile = None) -> int:
    """Show which of the goals against the peers the results meet.

    A goal that none of the results answers is shown as not measured.

    Args:
        first: A result that --json wrote.
        others: More of them; of two that answer the same goal the later one counts.
        json: Write the rows as JSON to this file, or - for stdout (then without a table).
    """
    from vecmq.bench import goals as aims
    from vecmq.bench.document import load

    found = aims.outcomes([load(path) for path in (first, *others)])
    if json != "-":
        aims.show(data_console(), found)
    if json is not None:
        save(json, {"schema": "vecmq-goals-1", "goals": aims.to_values(found)})
    return 0


def _case(size: str, msgs: int, batch: int | None) -> Case:
    from vecmq.bench.runner import Case
    from vecmq.bench.sweep import parse_size, size_name

    if not 1 <= msgs <= 10_000_000:
        raise UsageError(f"--msgs: expected 1 to 10,000,000, got {msgs:,}")
    size_bytes = parse_size(size)
    return Case(size_name(size_bytes), size_bytes, msgs, batch=batch)


def _measure(
    run: Run,
    command: str,
    title: str,
    cases: tuple[Case, ...],
    options: dict[str, Any],
    notes: Sequence[str] = (),
    *,
    plot: str = "bars",
    more: Callable[[Console, Result], None] | None = None,
    plan_values: dict[str, Any] | None = None,
) -> int:
    """Run a plan, show what came of it, and write the files that were asked for."""
    _refuse_debug()
    if run.batch is not None and not 1 <= run.batch <= 1_000_000:
        raise UsageError(f"--batch: expected 1 to 1,000,000 messages, got {run.batch:,}")
    from vecmq.bench import report, runner
    from vecmq.bench.contender import find_peers, find_routes
    from vecmq.bench.document import document, to_csv
    from vecmq.bench.sweep import crossovers

    contenders = (*find_routes(_names(run.routes)), *find_peers(_names(run.peers)))
    names = [contender.name for contender in contenders if contender.missing is None]
    plan = runner.Plan(
        command=command,
        title=title,
        cases=cases,
        contenders=contenders,
        ops=run.ops,
        warmup=run.warmup,
        codec=run.codec,
        path=run.path,
        server=_server(run),
        baseline="hybrid" if "hybrid" in names else next(iter(names), None),
        options=options,
        **(plan_values or {}),
    )
    _check_files(run)
    with report.progress(Console(stderr=True), plan) as progress:
        result = runner.run(plan, progress)
    values = document(result)
    lines = list(notes)
    if command == "sweep":
        found = [round(size_bytes) for size_bytes in crossovers(result)]
        values["options"]["crossovers_bytes"] = found
        lines.insert(0, _crossing(found, result))
    if "-" not in (run.json, run.csv):
        console = data_console()
        report.show(console, result, lines)
        if more is not None and result.finished:
            more(console, result)
        if run.plot and result.finished:
            from vecmq.bench import plot as plots

            draw = getattr(plots, plot)
            console.print(Text.from_ansi(draw(values, is_colored=console.is_terminal)))
    if run.json is not None:
        save(run.json, values)
    if run.csv is not None:
        save_text(run.csv, to_csv(result))
    if run.html is not None:
        from vecmq.bench.html import to_html

        run.html.write_text(to_html(values))
    if not result.is_good:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if result.is_interrupted else 0


def _crossing(found: Sequence[int], result: Result) -> str:
    from vecmq.bench.sweep import size_name

    ran = {row.contender.name for row in result.finished}
    if not {"queue", "nats"} <= ran:
        return "crossover: needs the routes queue and nats"
    if not found:
        return "crossover of queue and nats: none, one of them wins at every size"
    sizes = ", ".join(size_name(size_bytes) for size_bytes in found)
    return f"crossover of queue and nats: {sizes} (publish and receive, whole operations)"


def _refuse_debug() -> None:
    if vecmq.build_info()["profile"] != "release":
        raise UsageError("this is a debug build, its speed says nothing; `make build-prod` first")


def _names(text: str) -> list[str]:
    return [] if text.strip() == "none" else [name.strip() for name in text.split(",")]


def _server(run: Run) -> ServerSpec | None:
    from vecmq._nats_options import check_nats
    from vecmq.bench.worker import ServerSpec

    if run.server is not None and run.context is not None:
        raise UsageError("--server, --context: expected one of them, got both")
    options = Server(nats=run.server, context=run.context).options()
    if options is None:
        return None
    options = check_nats(options)
    if options.nkey_path is not None:
        seed = Path(options.nkey_path).read_text().strip()
        options = replace(options, nkey_path=None, nkey_seed=seed)
    keys = ("token", "user", "password", "nkey_seed")
    creds = str(options.creds_path) if options.creds_path else None
    spec = ServerSpec(
        ",".join(options.url), **{key: getattr(options, key) for key in keys}, creds_path=creds
    )
    # The peers' clients are given these alone.
    carried: dict[str, Any] = dict.fromkeys((*keys, "creds_path"))
    rest = replace(options, url="", connect_timeout_s=5.0, **carried)
    if rest != vecmq.NatsOptions(url=""):
        raise UsageError("a benchmark's server: expected token, user or .creds, and no TLS files")
    return spec


def _check_files(run: Run) -> None:
    """Nobody wants to learn after an hour that the report cannot be written."""
    if run.json == run.csv == "-":
        raise UsageError("--json, --csv: only one of them can be written to stdout")
    for file in (run.json, run.csv, run.html):
        if file not in (None, "-") and not Path(str(file)).absolute().parent.is_dir():
            raise UsageError(f"expected a file in an existing directory, got {file}")
    if run.html is not None:
        from vecmq.bench import html

        html.check_installed()
    if run.plot:
        from vecmq.bench import plot as plots

        plots.check_installed()
