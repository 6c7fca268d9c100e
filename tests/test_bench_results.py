"""Figures of the benchmark: ratios, crossovers, histograms, and the files that keep them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench_tools import (
    result_of,
    row_of,
)
from vecmq.bench import (
    compare,
    document,
    goals,
    latency,
    mix,
    runner,
    sweep,
)
from vecmq.errors import ConfigError


def test_ratios_are_those_of_the_rounds() -> None:
    ratio = row_of([2.0, 4.0, 9.0]).ratio(row_of([1.0, 4.0, 3.0], "nats"))
    assert ratio == runner.Ratio(2.0, 1.0, 3.0)
    assert not ratio.is_clear
    assert runner.Ratio(2.0, 1.1, 3.0).is_clear


def test_other_levels_are_not_compared() -> None:
    durable = row_of([1.0], levels=["durable"])
    assert durable.ratio(row_of([1.0], "nats")) is None


def test_crossover_lies_where_the_medians_meet() -> None:
    result = result_of([])
    for size, (queue_s, nats_s) in {1024: (1.0, 4.0), 65536: (2.0, 2.0), 1 << 20: (4, 1)}.items():
        case = runner.Case(sweep.size_name(size), size, 10)
        for name, seconds in (("queue", queue_s), ("nats", nats_s)):
            row = row_of([float(seconds)], name)
            result.rows.append(runner.Row(case, row.contender, samples=row.samples))
    assert [round(size) for size in sweep.crossovers(result)] == [65536]


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("64KB", 65536), ("1.5 MiB", 1572864), ("256", 256), ("8b", 8)]
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert sweep.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "KB", "7", "-8", "nan", "inf", "2GB", "8 parsecs", "1e30"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError):
        sweep.parse_size(text)


def test_mixed_sizes_are_log_uniform() -> None:
    case = mix.case(10_000, 256, 4 << 20)
    assert case.sizes_bytes is not None
    assert min(case.sizes_bytes) >= 256
    assert max(case.sizes_bytes) == case.size_bytes <= 4 << 20
    assert all(size % 8 == 0 for size in case.sizes_bytes)
    below_32_kb = sum(size < 32 << 10 for size in case.sizes_bytes)
    assert 0.48 < below_32_kb / 10_000 < 0.52


def test_latencies_of_all_operations_make_one_histogram() -> None:
    found = latency.summarize([range(1, 1001), range(1001, 2001)])
    assert found.count == 2000
    assert found.percentiles[50.0] == pytest.approx(1000, rel=0.002)
    assert found.percentiles[99.9] == pytest.approx(1998, rel=0.002)
    assert found.max_ns == pytest.approx(2000, rel=0.002)
    assert found.curve[-1][0] == 100.0


def test_pytest_benchmark_compares_results(tmp_path: Path) -> None:
    for name, seconds in (("a", [1.0, 2.0, 3.0]), ("b", [2.0])):
        values = document.document(result_of([row_of(seconds)]))
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    command = ["-m", "pytest_benchmark", "compare", "a.json", "b.json", "--columns=median"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("1KB[queue]") == 2
    assert "2.0000 (1.0)" in done.stdout


def test_csv_has_a_line_for_each_operation() -> None:
    lines = document.to_csv(result_of([row_of([0.5, 0.25])])).splitlines()
    assert len(lines) == 3
    first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
    assert (first["case"], first["contender"], first["round"]) == ("1 KB", "queue", "1")
    assert float(first["msgs_per_s"]) == 100_000


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (row_of([0.1, 0.2]), "faster"),
        (row_of([5.0, 6.0]), "slower"),
        (row_of([0.5, 1.0]), "the same within noise"),
        (row_of([0.1], levels=["durable"]), "not comparable: stored against durable"),
        (row_of([0.1], "nats"), "only in one of them"),
    ],
)
def test_compare_says_what_changed(after: runner.Row, verdict: str) -> None:
    before = document.document(result_of([row_of([0.7, 0.8])]))
    found = compare.changes(before, document.document(result_of([after])))
    assert verdict in [change.verdict for change in found]


def test_compare_names_other_conditions() -> None:
    before = document.document(result_of([row_of([1.0])]))
    after = document.document(result_of([row_of([1.0])], codec="planes"))
    after["machine"]["kernel"] = "1.0"
    lines = compare.warnings(before, after)
    assert [line.split(" differs")[0] for line in lines] == ["kernel", "option codec"]


def goal_document(*rows: runner.Row) -> dict[str, Any]:
    return document.document(result_of(list(rows)))


def goal_of(*documents: dict[str, Any], name: str, against: str) -> goals.Outcome:
    found = goals.outcomes(documents)
    assert [one.goal for one in found] == list(goals.GOALS)
    [outcome] = [
        one for one in found if one.goal.name == name and one.goal.against.startswith(against)
    ]
    return outcome


def test_a_goal_is_met_missed_or_not_measured() -> None:
    case = runner.Case("64 KB", 64 << 10, 10_000)
    mine = row_of([1.0, 1.1, 1.2], "queue", case=case)
    wanted = {"name": "queue: publish and receive 64 KB x 10,000", "against": "milvus-rocksmq"}
    assert goal_of(goal_document(mine), **wanted).verdict == "not measured"
    for seconds, verdict in ((10.0, "met"), (2.0, "missed")):
        theirs = row_of([seconds] * 3, "milvus-rocksmq", case=case)
        outcome = goal_of(goal_document(mine, theirs), **wanted)
        assert (outcome.verdict, outcome.peer) == (verdict, "milvus-rocksmq")
        assert outcome.value == pytest.approx(1.1 / seconds)
        assert not outcome.note
        apart = goal_of(goal_document(mine), goal_document(theirs), **wanted)
        assert (apart.verdict, apart.note) == (verdict, "of two runs")


def test_a_part_of_the_work_or_another_level_answers_no_goal() -> None:
    wanted = {"name": "queue: publish and receive 64 KB x 10,000", "against": "milvus-rocksmq"}
    short = runner.Case("64 KB", 64 << 10, 1_000)
    rows = [row_of([1.0], name, case=short) for name in ("queue", "milvus-rocksmq")]
    assert goal_of(goal_document(*rows), **wanted).verdict == "not measured"
    whole = runner.Case("64 KB", 64 << 10, 10_000)
    mine = row_of([1.0], "queue", case=whole)
    theirs = row_of([1.0], "milvus-rocksmq", case=whole, levels=["none"])
    outcome = goal_of(goal_document(mine, theirs), **wanted)
    assert (outcome.verdict, outcome.note) == (
        "not measured",
        "stored against none: not comparable",
    )


def test_goals_of_memory_are_bytes_without_the_payloads() -> None:
    case = runner.Case("1 KB", 1024, 50_000)
    row = row_of([0.1], "queue", case=case, client_peak_bytes=150 << 20)
    wanted = {"name": "queue: publish and receive 1 KB x 50,000, memory of the client"}
    outcome = goal_of(goal_document(row), **wanted, against="a fixed limit")
    assert (outcome.verdict, outcome.value) == ("missed", (150 << 20) - 50_000 * 1024)
    console = Console(file=io.StringIO(), width=160)
    goals.show(console, goals.outcomes([goal_document(row)]))
    values = goals.to_values(goals.outcomes([goal_document(row)]))
    assert len(values) == len(goals.GOALS) + len(goals.BEYOND)
    assert values[-1]["verdict"] == "not measured"
    assert goals.BEYOND[-1][0] in console.file.getvalue()  # type: ignore[attr-defined]
    assert "101 MB" in console.file.getvalue()  # type: ignore[attr-defined]
