"""What the tests of the benchmark share: a sample, a plan, rows and results of made-up figures."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import nats
import psutil
from rich.console import Console

from vecmq.bench import (
    contender,
    limits,
    machine,
    report,
    runner,
    table1,
)
from vecmq.server import EmbeddedServer

SAMPLE: dict[str, Any] = {
    "seconds": 0.5,
    "published_s": 0.4,
    "verify_s": 0.01,
    "levels": ["stored"],
    "wire_bytes": 1100,
    "latencies_ns": None,
    "received_count": 1,
    "lost_count": 0,
    "duplicate_count": 0,
    "unordered_count": 0,
    "wrong_count": 0,
    "stats": {},
    "client_cpu_s": 0.1,
    "server_cpu_s": 0.0,
    "client_start_bytes": 1,
    "client_peak_bytes": 1 << 21,
    "server_peak_bytes": 0,
    "is_peak_exact": True,
    "points": [],
    "apparent_bytes": 1100,
    "allocated_bytes": 4096,
}
MEASURED_FROM_OUTSIDE = {
    *("client_cpu_s", "server_cpu_s", "client_start_bytes", "client_peak_bytes"),
    *("server_peak_bytes", "is_peak_exact", "points", "apparent_bytes", "allocated_bytes"),
}
LIMITS = limits.Limits(1e9, 1e9, 1e9, 1e-4)
SMALL = runner.Case("1 KB", 1024, 50_000)
TOOLS = Path(__file__).parent


def no_progress(*_: object) -> None:
    pass


def plan_of(
    tmp_path: Path,
    cases: tuple[runner.Case, ...] = (runner.Case("1 KB", 1024, 100),),
    routes: tuple[str, ...] = ("queue",),
    **values: Any,
) -> runner.Plan:
    contenders = values.pop("contenders", None) or tuple(contender.find_routes(routes))
    values = {"ops": 1, "path": tmp_path, "baseline": contenders[0].name, **values}
    return runner.Plan("table1", "Table 1", cases, contenders, **values)


def shown(result: runner.Result, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    report.show(console, result)
    return console.export_text()


def row_of(
    seconds: list[float],
    name: str = "queue",
    case: runner.Case = SMALL,
    **changes: Any,
) -> runner.Row:
    samples = [SAMPLE | {"seconds": value} | changes for value in seconds]
    who = contender.Contender(name, is_route=name in contender.ROUTES)
    return runner.Row(case, who, samples=samples, warmups=[SAMPLE])


def result_of(rows: list[runner.Row], **values: Any) -> runner.Result:
    plan = plan_of(Path(), table1.cases(), contender.ROUTES, **values)
    return runner.Result(plan, machine.facts(Path.cwd()), LIMITS, rows)


def is_running(process: psutil.Process) -> bool:
    """A process that has ended may stay as a zombie until somebody asks for its exit code."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def running_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if is_running(child)]


def streams(server: EmbeddedServer) -> list[str]:
    async def names() -> list[str]:
        client = await nats.connect(server.url, token=server.token)
        async with client:
            found = await client.jetstream().streams_info()
            return [str(info.config.name) for info in found]

    return asyncio.run(names())
