"""The report and the plots: every contender is there, hostile names are harmless, no network."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import vecmq
from bench_tools import SAMPLE, result_of, row_of
from cli_tools import Command
from vecmq.bench import contender, document, html, latency, plot, runner
from vecmq.errors import ConfigError

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
    ],
    ids=["table1", "mix", "soak", "sweep", "latency"],
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
    assert "Without figures, for the reasons below: natsio." in text


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
