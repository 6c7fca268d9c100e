"""A result as one HTML file with charts, which needs no network: altair draws, Vega is inside."""

from __future__ import annotations

import html
import importlib.util
import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from vecmq.bench.runner import FAULTS, KIB, MIB
from vecmq.errors import ConfigError

if TYPE_CHECKING:
    import altair as alt

    Chart = alt.LayerChart | alt.FacetChart | alt.Chart | alt.ConcatChart | alt.VConcatChart

__all__ = ["charts", "check_installed", "to_html"]

WIDTH: Final = 800
THIRD_WIDTH: Final = 260
STEP: Final = 18
# vecmq's own routes in strong colours, peers in pale ones.
ROUTE_COLORS: Final = ("#d1495b", "#00798c", "#30363c")
PEER_COLORS: Final = (
    *("#edae49", "#8ab17d", "#9d8cc7", "#e08e79", "#7fb2d9", "#b5a642"),
    *("#c98bb9", "#85c7b8", "#b08968", "#a3a8b0"),
)
# Heading, key, unit, digits.
INGEST_COLUMNS: Final = (
    *(("least", "seconds_min", 1, 3), ("median", "seconds", 1, 3)),
    *(("greatest", "seconds_max", 1, 3), ("over none", "time_over_none", 1, 2)),
    *(("vectors/s", "vectors_per_s", 1, 0), ("recall", "recall", 1, 3)),
    *(("search p50 ms", "search_p50_ms", 1, 3), ("search p99 ms", "search_p99_ms", 1, 3)),
    *(("query p50 ms", "query_p50_ms", 1, 3), ("query p99 ms", "query_p99_ms", 1, 3)),
    *(("MB client", "client_peak_bytes", MIB, 0), ("MB server", "server_peak_bytes", MIB, 0)),
)
LATENCY_COLUMNS: Final = ("50", "90", "99", "99.9")
# More than a chart has pixels for would only be a larger file.
POINTS_MAX: Final = 501
STYLE: Final = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2126; background: #fff; margin: 2rem auto;
       max-width: 92rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .87rem; }
th, td { padding: .2rem .45rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e4e7ea; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th.name, td.name { text-align: left; } td.why { text-align: left; color: #68707a; }
tr.first td { border-top: 2px solid #b9c0c7; } tr.route td.name { font-weight: 600; }
.bad { color: #b00020; font-weight: 700; } .wide { overflow-x: auto; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; }
p, dd { max-width: 62rem; } p.note { color: #4a525a; }
"""


def check_installed() -> None:
    """Say what is missing before anything runs.

    Raises:
        ConfigError: altair or vl-convert is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("altair", "vl_convert")):
        raise ConfigError("--html: needs the extra: pip install 'vecmq[report]'")


def to_html(document: dict[str, Any]) -> str:
    """Make the report.

    Args:
        document: A result of schema "vecmq-bench-1"; what it does not have is left out.

    Returns:
        A whole HTML file.

    Raises:
        ConfigError: altair or vl-convert is not installed.
    """
    check_installed()
    drawn = charts(document)
    is_ingest = "ingest" in document
    figures = _ingest_figures(document) if is_ingest else _figures(document)
    note = INGEST_NOTE if is_ingest else FIGURES_NOTE
    pieces = [
        f"<h1>{_escape(document['title'])}</h1>",
        _verdict(document),
        *(
            _section(name, text, f'<div id="chart-{index}"></div>')
            for index, (name, text, _) in enumerate(drawn)
        ),
        _section("Figures", note, f'<div class="wide">{figures}</div>'),
        _section("Conditions", "", _conditions(document)),
    ]
    title = _escape(f"vecmq bench {document['command']}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(pieces)
        + f"\n{_scripts([chart for _, _, chart in drawn])}\n</body></html>\n"
    )


FIGURES_NOTE: Final = (
    "Seconds an operation; rounds are interleaved. Ratio: its seconds over the baseline's, median "
    "of the rounds, shown only where both promise the same. MB = 2^20 bytes; memory: the highest "
    "resident one, the client's without the payloads."
)
INGEST_NOTE: Final = (
    "Seconds an operation; none: without a queue. Requests to the index went on during the ingest. "
    "Recall: the least of all operations. MB = 2^20 bytes."
)


def _verdict(document: dict[str, Any]) -> str:
    lines = []
    if not document["is_good"]:
        text = "FAILED: messages were lost, doubled, changed or out of order, or a route failed."
        lines.append(f'<p class="bad">{text}</p>')
    if document["is_interrupted"]:
        lines.append("<p>Interrupted: this is what was finished.</p>")
    rows = document.get("rows", [])
    missing = sorted({row["contender"] for row in rows if row["why_not"]})
    if missing:
        lines.append(
            f"<p>Without all figures, for the reasons below: {_escape(', '.join(missing))}.</p>"
        )
    return "\n".join(lines)


def _section(name: str, text: str, content: str) -> str:
    note = f'<p class="note">{_escape(text)}</p>' if text else ""
    return f"<section><h2>{_escape(name)}</h2>{note}{content}</section>"


# ---- tables


def _figures(document: dict[str, Any]) -> str:
    rows = document.get("rows", [])
    if not rows:
        return "<p>None.</p>"
    heads = [
        *("least", "median", "greatest", "MB/s", "messages/s", f"over {document['baseline']}"),
        *("CPU client", "CPU server", "MB client", "MB server", "level", "faults"),
    ]
    is_latency = any(row["latency"] for row in rows)
    if is_latency:
        heads = [*(f"p{key} ms" for key in LATENCY_COLUMNS), "max ms", *heads]
    head = "".join(f"<th>{_escape(name)}</th>" for name in heads)
    lines = [f'<tr><th class="name">workload</th><th class="name">contender</th>{head}</tr>']
    before = None
    for row in rows:
        name = row["case"]["name"]
        cells = _cells(row, is_latency) if row["samples"] else _why_not(row, len(heads))
        kind = " ".join(["first"] * (name != before) + ["route"] * bool(row["is_route"]))
        shown = _escape(name) if name != before else ""
        lines.append(
            f'<tr class="{kind}"><td class="name">{shown}</td>'
            f'<td class="name">{_escape(row["contender"])}</td>{cells}</tr>'
        )
        if row["samples"] and row["why_not"]:
            # It failed after some rounds: their figures stand, and so does the reason.
            lines.append(f'<tr><td colspan="2"></td>{_why_not(row, len(heads))}</tr>')
        before = name
    return f"<table>{''.join(lines)}</table>"


def _ingest_figures(document: dict[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name, *_ in INGEST_COLUMNS)
    lines = [f'<tr><th class="name">route</th>{head}<th>faults</th></tr>']
    for row in document["ingest"]:
        found = [(row[key], unit, digits) for _, key, unit, digits in INGEST_COLUMNS]
        cells = ["" if one is None else f"{one / unit:,.{digits}f}" for one, unit, digits in found]
        cells.append(f"{sum(row[key] for key in (*FAULTS, 'wrong_queries_count')):,}")
        bad = "" if row["is_good"] else ' class="bad"'
        shown = "".join(f"<td{bad}>{cell}</td>" for cell in cells)
        lines.append(f'<tr><td class="name">{_escape(row["route"])}</td>{shown}</tr>')
    return f"<table>{''.join(lines)}</table>"


def _why_not(row: dict[str, Any], columns: int) -> str:
    return f'<td class="why" colspan="{columns}">{_escape(row["why_not"] or "not finished")}</td>'


def _cells(row: dict[str, Any], is_latency: bool) -> str:
    seconds = _values(row, "seconds")
    middle = median(seconds)
    case, ratio = row["case"], row["ratio"]
    faults = sum(sample[key] or 0 for sample in row["warmups"] + row["samples"] for key in FAULTS)
    client = max(median(_values(row, "client_peak_bytes")) - case["payload_bytes"], 0)
    server = median(_values(row, "server_peak_bytes"))
    cells = [
        *(f"{value:.3f}" for value in (min(seconds), middle, max(seconds))),
        f"{case['payload_bytes'] / middle / MIB:,.0f}",
        f"{case['count'] / middle:,.0f}",
        f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "",
        f"{median(_values(row, 'client_cpu_s')):.2f}",
        f"{median(_values(row, 'server_cpu_s')):.2f}" if server else "-",
        f"{client / MIB:,.0f}",
        f"{server / MIB:,.0f}" if server else "-",
        ", ".join(sorted({level for sample in row["samples"] for level in sample["levels"]})),
        f"{faults:,}" if row["is_verified"] else "not verified",
    ]
    if is_latency and row["latency"]:
        found = row["latency"]
        values = [*(found["percentiles_ns"][key] for key in LATENCY_COLUMNS), found["max_ns"]]
        cells = [*(f"{value / 1e6:.3f}" for value in values), *cells]
    bad = ' class="bad"' if faults else ""
    return "".join(f"<td{bad}>{_escape(cell)}</td>" for cell in cells)


def _conditions(document: dict[str, Any]) -> str:
    facts = document["machine"]
    build = facts["vecmq"]
    options = ", ".join(
        f"{key} {_flat(value)}" for key, value in document["options"].items() if value is not None
    )
    rows = document.get("rows", [])
    # An ingest's samples say it themselves.
    found = [part["versions"] for part in rows or document.get("samples", [])]
    versions = {name: version for one in found for name, version in one.items() if name != "vecmq"}
    notes = {row["contender"]: row["note"] for row in rows if row["note"]}
    items = [
        ("Options", options),
        ("vecmq", ", ".join(f"{key} {_flat(value)}" for key, value in build.items())),
        ("nats-server, Python", f"{facts['nats_server']}, {facts['python']}"),
        ("Peers" if rows else "Index", ", ".join(map(" ".join, versions.items()))),
        *((f"How {name} is run", note) for name, note in notes.items()),
        ("Machine", _machine(document["machine"])),
        ("What the machine itself does, measured before the run", _limits(document["limits"])),
        ("How it is measured", METHOD if rows else ""),
    ]
    return (
        "<dl>"
        + "".join(
            f"<dt>{_escape(name)}</dt><dd>{_escape(text)}</dd>" for name, text in items if text
        )
        + "</dl>"
    )


def _machine(facts: dict[str, Any]) -> str:
    return (
        f"{facts['cpu_model']} x {facts['cpu_count']}, {facts['system']} {facts['kernel']}, "
        f"{facts['file_system']}, load {facts['load_average'][0]:.1f} at the start, "
        f"{facts['time_utc']}"
    )


def _limits(limits: dict[str, float]) -> str:
    return (
        f"memcpy {limits['memcpy_bytes_per_s'] / 1024**3:.1f} GB/s, loopback "
        f"{limits['loopback_bytes_per_s'] / 1024**3:.1f} GB/s, sequential write "
        f"{limits['write_bytes_per_s'] / MIB:,.0f} MB/s, fdatasync "
        f"{limits['fdatasync_s'] * 1e6:,.0f} us"
    )


METHOD: Final = (
    "Payloads are random, unique and made before the clock; every byte of every message is "
    "compared as it arrives, inside the clock. A process for each contender and workload; rounds "
    "go over the contenders in turn, each operation with memory that was touched just before. The "
    "levels say what an acknowledgement promised: stored survives kill -9 of any process, durable "
    "a power cut."
)


# ---- charts


def charts(document: dict[str, Any]) -> list[tuple[str, str, Chart]]:
    """Draw a result.

    Args:
        document: A result.

    Returns:
        Heading, a sentence, and the chart, for each; none without a finished row.
    """
    rows = _ingest_rows(document) if "ingest" in document else _finished(document)
    if not rows:
        return []
    colors = _colors(rows)
    command = document["command"]
    drawn: list[tuple[str, str, Chart]] = []
    if command == "sweep":
        drawn.append(("Crossover", *_crossover(document, rows, colors)))
    if any(row["latency"] for row in rows):
        drawn.append(("Latency", *_latency(rows, colors)))
    drawn.append(("Time", *_time(rows, colors)))
    if command == "soak":
        drawn.append(("Over the operations", *_over_operations(rows, colors)))
    if any(row["ratio"] for row in rows):
        text = "Seconds over the baseline's, round by round: median, least and greatest."
        drawn.append((f"Compared with {document['baseline']}", text, _ratios(rows)))
    if any(sample.get("points") for row in rows for sample in row["samples"]):
        drawn.append(("Memory and CPU", *_usage(rows, colors)))
    return drawn


def _ingest_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What the chart of seconds needs of rows; "none" is no route."""
    name = f"{document['options']['vectors']:,} vectors"
    shared = {"case": {"name": name}, "latency": None, "ratio": None}
    seconds: dict[str, list[dict[str, Any]]] = {}
    for sample in document["samples"]:
        seconds.setdefault(sample["route"], []).append({"seconds": sample["seconds"]})
    return [
        shared | {"contender": route, "is_route": route != "none", "samples": samples}
        for route, samples in seconds.items()
    ]


def _colors(rows: Sequence[dict[str, Any]]) -> Any:
    import altair as alt

    names = list(dict.fromkeys((row["contender"], bool(row["is_route"])) for row in rows))
    routes, peers = iter(ROUTE_COLORS), iter(PEER_COLORS)
    chosen = [next(routes if is_route else peers, "#888") for _, is_route in names]
    scale = alt.Scale(domain=[name for name, _ in names], range=chosen)
    return alt.Color("contender:N", scale=scale, title=None)


def _time(rows: Sequence[dict[str, Any]], colors: Any) -> tuple[str, Chart]:
    import altair as alt

    values = [
        {"case": row["case"]["name"], "contender": row["contender"], "seconds": seconds}
        for row in rows
        for seconds in _spread(_values(row, "seconds"))
    ]
    order = list(dict.fromkeys(row["contender"] for row in rows))
    y = alt.Y("contender:N", sort=order, title=None)
    x = alt.X("median(seconds):Q", title="seconds an operation")
    tooltip = ["contender:N", "seconds:Q"]

    def draw(data: Any) -> Any:
        base = alt.Chart(data).encode(y=y)
        bars = base.mark_bar(height=STEP - 6).encode(x=x, color=colors.legend(None))
        dots = base.mark_point(filled=True, size=26, color="#111", opacity=0.65)
        return alt.layer(bars, dots.encode(x="seconds:Q", tooltip=tooltip))

    chart = _by_case(draw, values, rows)
    is_part = any(len(row["samples"]) > POINTS_MAX for row in rows)
    dots = f"{POINTS_MAX} of them, evenly from least to greatest" if is_part else "every one"
    return f"Bars: medians of the counted operations. Dots: {dots}.", chart


def _spread(values: Sequence[float]) -> list[float]:
    """At most so many values as a chart can show; least, middle and greatest stay."""
    if len(values) <= POINTS_MAX:
        return list(values)
    ordered, last = sorted(values), POINTS_MAX - 1
    return [ordered[index * (len(ordered) - 1) // last] for index in range(POINTS_MAX)]


def _ratios(rows: Sequence[dict[str, Any]]) -> Chart:
    import altair as alt

    values = [
        {"case": row["case"]["name"], "contender": row["contender"], **row["ratio"]}
        for row in rows
        if row["ratio"]
    ]
    order = list(dict.fromkeys(row["contender"] for row in rows))
    y = alt.Y("contender:N", sort=order, title=None)
    # One scale for all cases: the same place is the same ratio.
    ends = (min(0.5, *(one["low"] for one in values)), max(2, *(one["high"] for one in values)))
    scale = alt.Scale(type="log", domain=ends)
    title = "times the baseline's seconds (logarithmic)"
    span = alt.X("low:Q", scale=scale, title=title)
    tooltip = ["contender:N", "median:Q", "low:Q", "high:Q"]

    def draw(data: Any) -> Any:
        base = alt.Chart(data).encode(y=y)
        spans = base.mark_rule(size=2, color="#5b6570").encode(x=span, x2="high:Q")
        dots = base.mark_point(filled=True, size=60, color="#30363c")
        one = alt.Chart(data).mark_rule(strokeDash=[4, 4], color="#d1495b").encode(x=alt.datum(1))
        return alt.layer(one, spans, dots.encode(x="median:Q", tooltip=tooltip))

    return _by_case(draw, values, rows)


def _latency(rows: Sequence[dict[str, Any]], colors: Any) -> tuple[str, Chart]:
    import altair as alt

    values = [
        # A log axis needs numbers above 0: 1 - percentile, drawn from large to small.
        {"contender": row["contender"], "beyond": 1 - percentile / 100, "ms": ns / 1e6}
        for row in rows
        if row["latency"]
        for percentile, ns in row["latency"]["curve_ns"]
        if percentile < 100
    ]
    names = "{'0.5': 'p50', '0.1': 'p90', '0.01': 'p99', '0.001': 'p99.9', '0.0001': 'p99.99'}"
    beyond = alt.X(
        "beyond:Q",
        scale=alt.Scale(type="log", reverse=True),
        axis=alt.Axis(
            values=[0.5, 0.1, 0.01, 0.001, 0.0001],
            labelExpr=f"{names}[format(datum.value, '~r')] || ''",
        ),
        title="percentile of the messages",
    )
    chart = (
        alt.Chart(_data(values))
        .mark_line(interpolate="step-after")
        .encode(
            x=beyond,
            y=alt.Y("ms:Q", scale=alt.Scale(type="log"), title="ms from due to received"),
            color=colors,
        )
        .properties(width=WIDTH, height=320)
    )
    text = "From the moment each message was due, the one before done or not, to its receipt."
    return text, chart


def _crossover(
    document: dict[str, Any], rows: Sequence[dict[str, Any]], colors: Any
) -> tuple[str, Chart]:
    import altair as alt

    values = [
        {
            "contender": row["contender"],
            "bytes": row["case"]["size_bytes"],
            "us": median(_values(row, "seconds")) / row["case"]["count"] * 1e6,
        }
        for row in rows
    ]
    sizes = sorted({row["case"]["size_bytes"] for row in rows})
    label = (
        "datum.value < 1024 ? datum.value + ' B' : datum.value < 1048576 ? "
        "format(datum.value / 1024, '.3~r') + ' KB' : format(datum.value / 1048576, '.3~r') + ' MB'"
    )
    x = alt.X(
        "bytes:Q",
        scale=alt.Scale(type="log", base=2),
        axis=alt.Axis(values=sizes, labelExpr=label, labelAngle=-45),
        title="bytes of a message",
    )
    y = alt.Y("us:Q", scale=alt.Scale(type="log"), title="us a message, published and received")
    lines = alt.Chart(_data(values)).mark_line(point=True).encode(x=x, y=y, color=colors)
    found = document["options"].get("crossovers_bytes") or []
    marks = (
        alt.Chart(_data([{"bytes": size_bytes} for size_bytes in found]))
        .mark_rule(strokeDash=[4, 4])
        .encode(x="bytes:Q")
    )
    at = ", ".join(f"{size_bytes / KIB:,.0f} KB" for size_bytes in found)
    text = f"queue and nats cross at {at}." if found else "queue and nats do not cross."
    if not {"queue", "nats"} <= {row["contender"] for row in rows}:
        text = "Where queue and nats cross needs both of them."
    return text, alt.layer(lines, marks).properties(width=WIDTH, height=360)


def _over_operations(rows: Sequence[dict[str, Any]], colors: Any) -> tuple[str, Chart]:
    step = -(-max(len(row["samples"]) for row in rows) // POINTS_MAX)
    keys = {"client MB": "client_peak_bytes", "server MB": "server_peak_bytes"}
    keys |= {"disk MB": "allocated_bytes"}
    values = []
    for row in rows:
        for first in range(0, len(row["samples"]), step):
            some = row["samples"][first : first + step]
            point = {name: max(one[key] for one in some) / MIB for name, key in keys.items()}
            point["seconds"] = max(one["seconds"] for one in some)
            values.append(point | {"contender": row["contender"], "operation": first + len(some)})
    text = f" Each point: the greatest of {step} operations." if step > 1 else ""
    names = ("seconds", *keys)
    return f"Nothing here should go on growing.{text}", _panels(values, "operation", names, colors)


def _usage(rows: Sequence[dict[str, Any]], colors: Any) -> tuple[str, Chart]:
    import altair as alt

    values = [
        {
            "case": row["case"]["name"],
            "contender": row["contender"],
            "s": point["at_s"],
            "client MB": (point["client_bytes"]) / MIB,
            "server MB": point["server_bytes"] / MIB,
            "CPU s": point["client_cpu_s"] + point["server_cpu_s"],
        }
        for row in rows
        for point in row["samples"][-1].get("points", [])
    ]
    cases = list(dict.fromkeys(row["case"]["name"] for row in rows))
    lines = [
        _panels(
            [value for value in values if value["case"] == case],
            "s",
            ("client MB", "server MB", "CPU s"),
            colors,
            title=case,
        )
        for case in cases
    ]
    text = (
        "The last operation: resident memory (the client's with the payloads) and CPU time so far, "
        "client and server together, over seconds."
    )
    return text, alt.vconcat(*lines)


def _panels(
    values: Sequence[dict[str, Any]],
    x: str,
    names: Sequence[str],
    colors: Any,
    title: str = "",
) -> Chart:
    import altair as alt

    data = _data(values)
    panels = [
        alt.Chart(data)
        # A line of one point would be nothing to see.
        .mark_line(point=alt.OverlayMarkDef(size=12) if len(values) < POINTS_MAX else False)
        .encode(
            x=alt.X(f"{x}:Q", title=x, scale=alt.Scale(zero=True)),
            y=alt.Y(f"{name}:Q", title=name),
            color=colors,
        )
        .properties(width=THIRD_WIDTH, height=150)
        for name in names
    ]
    chart: Chart = alt.concat(*panels, columns=3).properties(title=title)
    return chart


def _by_case(
    draw: Callable[[Any], Any], values: list[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> Chart:
    """A chart for each case, one below the other."""
    import altair as alt

    cases = dict.fromkeys(row["case"]["name"] for row in rows)
    charts = [
        draw(_data([value for value in values if value["case"] == case])).properties(
            title=case, width=WIDTH, height=alt.Step(STEP)
        )
        for case in cases
    ]
    chart: Chart = alt.vconcat(*charts)
    return chart


def _data(values: Sequence[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.InlineData(values=list(values))


# ---- scripts


def _scripts(charts: Sequence[Chart]) -> str:
    """Vega once, then a call for each chart."""
    if not charts:
        return ""
    import altair as alt
    import vl_convert

    version = "_".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2]).replace("_", ".")
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    options = json.dumps({"renderer": "svg", "actions": False})
    calls = "\n".join(
        f"vegaEmbed('#chart-{index}', {_json(chart.to_dict())}, {options})"
        ".catch(error => console.error(error));"
        for index, chart in enumerate(charts)
    )
    safe = bundle.replace("</script", "<\\/script")
    return f'<script type="module">{safe}\n{calls}</script>'


def _json(value: Any) -> str:
    """JSON that cannot end the script it stands in."""
    return json.dumps(value).replace("<", "\\u003c")


def _finished(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document.get("rows", ()) if row["samples"]]


def _values(row: dict[str, Any], key: str) -> list[float]:
    return [float(sample[key]) for sample in row["samples"]]


def _flat(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def _escape(value: Any) -> str:
    return html.escape(str(value))
