"""The report and the plots: every contender is there, hostile names are harmless, no network."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vecmq
from bench_tools import SAMPLE, result_of, row_of
from cli_tools import Command
from vecmq.bench import contender, document, html, ingest, latency, plot, runner
from vecmq.errors import ConfigError

BENCHES = Path(__file__).parent.parent / "benches"

POINT = {
    "at_s": 0.05,
    "client_cpu_s": 0.01,
    "server_cpu_s": 0.0,
    "client_bytes": 1 << 20,
    "server_bytes": 0,
}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture
def checker() -> Iterator[ModuleType]:
    """benches/check_report.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("check_report", BENCHES / "check_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules["check_report"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_report"]


def document_of(command: str, rows: list[runner.Row], **options: Any) -> dict[str, Any]:
    values = document.document(result_of(rows))
    values["options"].update(options)
    return values | {"command": command}


def routes(case: runner.Case | None = None) -> list[runner.Row]:
    case = case or runner.Case("1 KB", 1024, 100)
    points = [POINT, POINT | {"at_s": 0.1}]
    return [
        row_of([0.1, 0.2, 0.3], name, case=case, points=points, server_peak_bytes=server)
        for name, server in (("queue", 0), ("nats", 1 << 20), ("hybrid", 1 << 20))
    ]


def sweep_document() -> dict[str, Any]:
    sizes = (1 << 10, 1 << 15, 1 << 20)
    rows = [row for size in sizes for row in routes(runner.Case(f"{size}", size, 10))]
    return document_of("sweep", rows, crossovers_bytes=[40_000])


def latency_document() -> dict[str, Any]:
    case = runner.Case("1 KB", 1024, 3, workload="latency", rate_per_s=10.0)
    found = [10_000, 200_000, 3_000_000]
    rows = [row_of([0.3], name, case=case, latencies_ns=found) for name in ("queue", "nats")]
    return document_of("latency", rows)


def ingest_document() -> dict[str, Any]:
    sample = {
        **(SAMPLE | {"seconds": 0.2, "vectors_per_s": 5000.0, "recall": 0.9}),
        "recall_of_all_lists": 1.0,
        "search_rps": 10.0,
        "query_rps": 10.0,
        **dict.fromkeys(("queue_batches_count", "nats_batches_count", "wrong_queries_count"), 0),
        "versions": {"faiss": "1.12"},
    }
    rows = [
        ingest.IngestRow(route, [sample], [[1000, 2000]], [[1000, 2000]])
        for route in ("none", "queue")
    ]
    options = ingest.IngestOptions(("none", "queue"), vectors=1000, ops=1)
    result = result_of([])
    return ingest.IngestResult(options, result.machine, result.limits, rows).document()


def charts_of(text: str) -> int:
    return len(re.findall(r'<div id="chart-\d+">', text))


@pytest.mark.parametrize(
    ("values", "charts_count"),
    [
        (document_of("table1", routes()), 3),
        (document_of("mix", routes()), 3),
        (document_of("soak", routes()), 4),
        (sweep_document(), 4),
        (latency_document(), 3),
        (document_of("publish", routes()), 3),
    ],
    ids=["table1", "mix", "soak", "sweep", "latency", "publish"],
)
def test_every_command_has_its_charts(values: dict[str, Any], charts_count: int) -> None:
    text = html.to_html(values)
    assert charts_of(text) == charts_count
    assert text.count("vegaEmbed('#chart-") == charts_count
    assert all(name in text for name in ("queue", "nats", "stored", "fdatasync", "release"))
    # Vega is inside, once: nothing is loaded.
    page = re.sub(r'(<script type="module">).*</script>', r"\1", text, flags=re.DOTALL)
    assert page.count("<script") == text.count("</script>") == 1
    assert not re.search(r"src=|href=|https?:", page)


def test_what_is_missing_is_in_the_report() -> None:
    missing = contender.Contender("natsio", missing="needs Python >= 3.13")
    case = runner.Case("1 KB", 1024, 100)
    row = runner.Row(case, missing, why_not="missing: needs Python >= 3.13")
    text = html.to_html(document_of("table1", [*routes(case), row]))
    assert "missing: needs Python &gt;= 3.13" in text
    assert "Without all figures, for the reasons below: natsio." in text


def test_a_peer_that_fails_after_some_rounds_keeps_its_figures_and_says_why() -> None:
    rows = routes()
    rows[1].why_not = "failed: it ended with exit code 9"
    text = html.to_html(document_of("table1", rows))
    assert text.count(">0.200<") == len(rows)
    assert "failed: it ended with exit code 9" in text


def test_an_ingest_has_its_own_table() -> None:
    text = html.to_html(ingest_document())
    assert charts_of(text) == 1
    assert all(name in text for name in ("over none", "query p99 ms", "faiss 1.12", "0.900"))
    assert plot.bars(ingest_document(), is_colored=False) == ""


def test_a_sweep_without_both_routes_says_nothing_of_their_crossover() -> None:
    values = sweep_document()
    values["rows"] = [row for row in values["rows"] if row["contender"] == "queue"]
    values["options"]["crossovers_bytes"] = []
    text = html.to_html(values)
    assert "do not cross" not in text
    assert "needs both" in text


def test_ratios_of_all_cases_share_one_scale() -> None:
    rows = [row for size in (1024, 2048) for row in routes(runner.Case(f"{size}", size, 10))]
    rows[0].samples[0]["seconds"] = 9.0
    drawn = {heading: chart for heading, _, chart in html.charts(document_of("table1", rows))}
    found = re.findall(r"'domain': (\[[^\]]*\])", str(drawn["Compared with queue"].to_dict()))
    assert found
    assert len(set(found)) == 1


def test_a_long_soak_makes_a_short_report() -> None:
    seconds = [0.1 + number * 1e-6 for number in range(5000)]
    text = html.to_html(document_of("soak", [row_of(seconds)]))
    assert len(text) < 2 << 20
    assert "the greatest of 10 operations" in text
    # The ends and the middle of the dots are those of all operations.
    spread = html._spread(seconds)
    assert len(spread) == html.POINTS_MAX
    assert (spread[0], spread[-1]) == (min(seconds), max(seconds))
    assert spread[len(spread) // 2] == seconds[len(seconds) // 2 - 1]


def test_a_report_without_figures_has_no_charts() -> None:
    text = html.to_html(document_of("table1", []))
    assert charts_of(text) == 0
    assert "<script" not in text


def test_faults_are_shown_in_red() -> None:
    text = html.to_html(document_of("table1", [row_of([0.1], lost_count=3)]))
    assert '<td class="bad">3</td>' in text
    assert "FAILED" in text


def test_names_cannot_leave_their_place() -> None:
    hostile = "</script><script>alert(1)</script>"
    rows = routes(runner.Case(hostile, 1024, 100))
    text = html.to_html(document_of("table1", rows) | {"title": hostile})
    assert "<script>alert" not in text
    assert text.count("</script>") == 1


def test_plots_name_every_contender() -> None:
    text = plot.bars(document_of("table1", routes()), is_colored=False)
    assert all(name in text for name in ("1 KB", "queue", "nats", "hybrid"))
    crossover = plot.crossover_plot(sweep_document(), is_colored=False)
    assert "the routes cross at 39.06 KB" in crossover
    assert all(name in crossover for name in ("queue", "nats", "hybrid", "1 KB", "1 MB"))
    latencies = plot.latency_plot(latency_document(), is_colored=False)
    assert all(name in latencies for name in ("queue", "nats", "p50", "p99.9"))
    for drawn in (text, crossover, latencies):
        assert "\x1b" not in drawn
        assert max(map(len, drawn.splitlines())) <= plot.COLUMNS
    assert "\x1b" in plot.bars(document_of("table1", routes()), is_colored=True)


def test_lines_without_colours_differ_in_what_they_are_drawn_with() -> None:
    for drawn in (
        plot.crossover_plot(sweep_document(), is_colored=False),
        plot.latency_plot(latency_document(), is_colored=False),
    ):
        legend = {name: re.search(rf"(\S) {name}\b", drawn) for name in ("queue", "nats")}
        letters = {match.group(1) for match in legend.values() if match}
        assert letters == set(plot.MARKERS[:2])


def test_plots_of_nothing_are_empty() -> None:
    for draw in (plot.bars, plot.crossover_plot, plot.latency_plot):
        assert draw(document_of("sweep", []), is_colored=False) == ""


MARK = '<g class="mark-rect role-mark marks"><path d="M0,0h1"></path></g>'
AXIS = '<g class="mark-rule role-axis-grid"><path d="M0,0h1"></path><line></line></g>'


@pytest.mark.parametrize(
    ("places", "log", "faults_count"),
    [
        ([MARK, MARK], "", 0),
        # A drawing that comes later is not this chart's.
        ([None, MARK], "", 1),
        ([MARK, None], "", 1),
        ([AXIS, MARK], "", 1),
        ([MARK.replace("h1", "hNaN")], "", 1),
        ([MARK], '[1:1:INFO:CONSOLE:1] "Error: no"', 1),
        ([], "", 1),
    ],
    ids=["drawn", "first empty", "last empty", "axes alone", "NaN", "logged", "no charts"],
)
def test_the_checker_sees_a_chart_that_shows_nothing(
    checker: ModuleType, places: list[str | None], log: str, faults_count: int
) -> None:
    text = "".join(
        f'<div id="chart-{number}"><br>{f"<svg height=9>{inner}</svg>" if inner else ""}</div>'
        for number, inner in enumerate(places)
    )
    page = checker.Page(f"<section>{text}</section><table><tr><td>1</td></tr></table>")
    assert len(page.charts) == len(places)
    assert len(checker.find_faults(page, log)) == faults_count


def test_a_curve_has_all_latencies() -> None:
    summary = latency.summarize([SAMPLE["latencies_ns"] or [1000, 2000]])
    assert summary.count == 2


@pytest.mark.parametrize(("option", "package"), [("--html", "altair"), ("--plot", "plotext")])
def test_what_is_not_installed_is_said_before_anything_runs(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, package: str
) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, *more: Any) -> Any:
        return None if name == package else found(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(vecmq, "build_info", lambda: {"version": "0", "profile": "release"})
    value = [str(tmp_path / "report.html")] if option == "--html" else []
    outcome = command("bench", "table1", option, *value)
    assert outcome.code == 2
    assert f"{option}: needs the extra: pip install 'vecmq[report]'" in outcome.err
    with pytest.raises(ConfigError, match="report"):
        (html if option == "--html" else plot).check_installed()


def test_a_run_writes_a_report_and_draws(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vecmq, "build_info", lambda: {"version": "0", "profile": "release"})
    report = tmp_path / "report.html"
    tokens = ["--msgs", "50", "--ops", "2", "--routes", "queue", "--plot", "--html", str(report)]
    outcome = command("bench", "publish", *tokens)
    assert outcome.code == 0, outcome.err
    assert "1 KB: seconds, median" in outcome.out
    assert charts_of(report.read_text()) == 2
