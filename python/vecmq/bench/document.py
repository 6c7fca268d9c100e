"""A result as JSON, which pytest-benchmark's compare reads too, and as CSV.

docs/bench-results.md has the schema.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import vecmq
from vecmq.bench.runner import FAULTS, Result, Row
from vecmq.errors import ConfigError

__all__ = ["SCHEMA", "document", "load", "to_csv"]

SCHEMA: Final = "vecmq-bench-1"
CSV_FIELDS: Final = (
    *("case", "contender", "round", "seconds", "published_s", "msgs", "payload_bytes"),
    *("msgs_per_s", "bytes_per_s", "client_cpu_s", "server_cpu_s", "client_peak_bytes"),
    *("server_peak_bytes", "allocated_bytes", *FAULTS),
)


def document(result: Result) -> dict[str, Any]:
    """Give everything that was measured.

    Args:
        result: What came of a run.

    Returns:
        JSON values of schema "vecmq-bench-1".
    """
    plan = result.plan
    return {
        "schema": SCHEMA,
        "command": plan.command,
        "title": plan.title,
        "options": {
            "ops": plan.ops,
            "warmup": plan.warmup,
            "codec": plan.codec,
            "server": plan.server.url if plan.server else None,
            **plan.options,
        },
        "baseline": plan.baseline,
        "machine": result.machine,
        "limits": asdict(result.limits),
        "is_interrupted": result.is_interrupted,
        "is_good": result.is_good,
        "rows": [_row(result, row) for row in result.rows],
        # What follows is for pytest-benchmark.
        "machine_info": _machine_info(result.machine),
        "commit_info": {},
        "benchmarks": [_benchmark(result, row) for row in result.finished],
        "datetime": result.machine["time_utc"],
        "version": vecmq.__version__,
    }


def load(path: Path) -> dict[str, Any]:
    """Read a document.

    Args:
        path: File that ``--json`` wrote.

    Returns:
        JSON values.

    Raises:
        ConfigError: The file cannot be read, or is no such document.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    found = values.get("schema") if isinstance(values, dict) else None
    if found != SCHEMA:
        raise ConfigError(f"{path}: expected a result of schema {SCHEMA}, got {found!r}")
    return dict(values)


def to_csv(result: Result) -> str:
    """Give a line for each counted operation.

    Args:
        result: What came of a run.

    Returns:
        CSV with a head line.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in result.finished:
        for number, sample in enumerate(row.samples, start=1):
            seconds = sample["seconds"]
            own = {
                "case": row.case.name,
                "contender": row.contender.name,
                "round": number,
                "msgs": row.case.count,
                "payload_bytes": row.case.payload_bytes,
                "msgs_per_s": round(row.case.count / seconds, 1),
                "bytes_per_s": round(row.case.payload_bytes / seconds),
            }
            writer.writerow(sample | own)
    return text.getvalue()


def _row(result: Result, row: Row) -> dict[str, Any]:
    baseline = result.baseline(row)
    ratio = row.ratio(baseline) if baseline else None
    return {
        "case": asdict(row.case) | {"payload_bytes": row.case.payload_bytes},
        "contender": row.contender.name,
        "is_route": row.contender.is_route,
        "is_verified": row.contender.is_verified,
        "note": row.contender.note,
        "versions": row.versions,
        "batch": row.batch,
        "why_not": row.why_not,
        "is_good": row.is_good,
        "ratio": asdict(ratio) if ratio else None,
        "latency": _latency(row),
        "warmups": [_without_latencies(sample) for sample in row.warmups],
        "samples": [_without_latencies(sample) for sample in row.samples],
    }


def _latency(row: Row) -> dict[str, Any] | None:
    """All counted operations as one histogram."""
    if row.case.workload != "latency" or not row.samples:
        return None
    from vecmq.bench import latency

    return latency.summarize(sample["latencies_ns"] for sample in row.samples).document()


def _without_latencies(sample: dict[str, Any]) -> dict[str, Any]:
    """The histogram has them; one by one they would be most of the file."""
    return {key: value for key, value in sample.items() if key != "latencies_ns"}


def _machine_info(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "node": "",
        "processor": facts["machine"],
        "machine": facts["machine"],
        "python_version": facts["python"],
        "system": facts["system"],
        "release": facts["kernel"],
        "cpu": {"brand_raw": facts["cpu_model"], "count": facts["cpu_count"]},
    }


def _benchmark(result: Result, row: Row) -> dict[str, Any]:
    name = f"{row.case.name.replace(' ', '')}[{row.contender.name}]"
    return {
        "group": row.case.name,
        "name": name,
        "fullname": f"{result.plan.command}::{name}",
        "params": {"contender": row.contender.name},
        "param": row.contender.name,
        "extra_info": {
            "size_bytes": row.case.size_bytes,
            "count": row.case.count,
            "levels": sorted(row.levels()),
        },
        "options": {},
        "stats": _statistics(row.values("seconds")),
    }


def _statistics(data: list[float]) -> dict[str, Any]:
    """Give what pytest-benchmark keeps of a series, by its own definitions."""
    mean = statistics.fmean(data)
    deviation = statistics.stdev(data) if len(data) > 1 else 0.0
    q1, median, q3 = statistics.quantiles(data, n=4) if len(data) > 1 else [mean] * 3
    spread = q3 - q1
    usual = [value for value in data if q1 - 1.5 * spread <= value <= q3 + 1.5 * spread]
    iqr_outliers = len(data) - len(usual)
    far = sum(abs(value - mean) > deviation for value in data)
    return {
        "min": min(data),
        "max": max(data),
        "mean": mean,
        "stddev": deviation,
        "rounds": len(data),
        "median": median,
        "iqr": spread,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": iqr_outliers,
        "stddev_outliers": far,
        "outliers": f"{far};{iqr_outliers}",
        "ld15iqr": min(usual, default=median),
        "hd15iqr": max(usual, default=median),
        "ops": 1 / mean,
        "total": sum(data),
        "data": data,
        "iterations": 1,
    }
