"""A result as a plot in the terminal, by plotext."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, Final

from vecmq.errors import ConfigError

__all__ = ["bars", "check_installed", "crossover_plot", "latency_plot"]

COLUMNS: Final = 96
LINES: Final = 24
BAR_LINES: Final = 2
# Of 100 messages 10 waited longer than p90, of 1,000 one longer than p99.9.
PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 99.99)
# Lines that no colour tells apart.
MARKERS: Final = "ox+*#%@&=~^$abcdefghi"


def check_installed() -> None:
    """Say what is missing before anything runs.

    Raises:
        ConfigError: plotext is not installed.
    """
    if importlib.util.find_spec("plotext") is None:
        raise ConfigError("--plot: needs the extra: pip install 'vecmq[report]'")


def bars(document: dict[str, Any], *, is_colored: bool) -> str:
    """Draw the median seconds of every contender, a plot for each case.

    Args:
        document: A result.
        is_colored: Whether terminal colours may be used.

    Returns:
        Lines.
    """
    rows = _finished(document)
    names = dict.fromkeys(row["case"]["name"] for row in rows)
    plots = []
    for name in names:
        of_case = [row for row in rows if row["case"]["name"] == name]
        # The first row comes last: plotext draws upwards.
        seconds = [_median_s(row) for row in reversed(of_case)]
        labels = [row["contender"] for row in reversed(of_case)]
        figure = _figure(f"{name}: seconds, median", len(of_case) * BAR_LINES + 4)
        figure.draw(figure.bar(labels, seconds, orientation="h", width=0.5))
        # Lengths are to be compared: from 0.
        figure.ruler(0).lim(0, max(seconds) * 1.05)
        plots.append(_text(figure, is_colored))
    return "\n\n".join(plots)


def crossover_plot(document: dict[str, Any], *, is_colored: bool) -> str:
    """Draw seconds a message over its size, both logarithmic, a line for each contender.

    Args:
        document: A result of ``sweep``.
        is_colored: Whether terminal colours may be used.

    Returns:
        Lines.
    """
    from vecmq.bench.sweep import size_name

    lines: dict[str, list[tuple[float, float]]] = {}
    for row in _finished(document):
        us_per_message = _median_s(row) / row["case"]["count"] * 1e6
        points = lines.setdefault(row["contender"], [])
        points.append((math.log10(row["case"]["size_bytes"]), math.log10(us_per_message)))
    if not lines:
        return ""
    sizes = sorted({row["case"]["size_bytes"] for row in _finished(document)})
    figure = _figure("microseconds a message, published and received", LINES)
    _draw(figure, lines, is_colored)
    # Every second size: more names than that do not fit side by side.
    named = sizes[::2] if len(sizes) > 6 else sizes
    figure.ruler(0).ticks([math.log10(size) for size in named], [size_name(n) for n in named])
    _decades(figure, (y for points in lines.values() for _, y in points))
    found = document["options"].get("crossovers_bytes", [])
    for size_bytes in found:
        figure.line(math.log10(size_bytes), "v")
    marked = "".join(f"\nthe routes cross at {size_name(size_bytes)}" for size_bytes in found)
    return _text(figure, is_colored) + marked


def latency_plot(document: dict[str, Any], *, is_colored: bool) -> str:
    """Draw latencies over percentiles, both logarithmic, a line for each contender.

    Args:
        document: A result of ``latency``.
        is_colored: Whether terminal colours may be used.

    Returns:
        Lines.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in _finished(document):
        if row["latency"] is not None:
            lines[row["contender"]] = [
                (_nines(percentile), math.log10(max(ns, 1) / 1e6))
                for percentile, ns in row["latency"]["curve_ns"]
                if percentile < 100
            ]
    if not lines:
        return ""
    figure = _figure("milliseconds from when a message was due to its receipt", LINES)
    _draw(figure, lines, is_colored)
    figure.ruler(0).ticks(
        [_nines(one) for one in PERCENTILES], [f"p{one:g}" for one in PERCENTILES]
    )
    _decades(figure, (y for points in lines.values() for _, y in points))
    return _text(figure, is_colored)


def _nines(percentile: float) -> float:
    return -math.log10(1 - percentile / 100)


def _finished(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document.get("rows", ()) if row["samples"]]


def _median_s(row: dict[str, Any]) -> float:
    return float(median(sample["seconds"] for sample in row["samples"]))


def _figure(title: str, lines: int) -> Any:
    import plotext

    # plotext has one figure for all.
    figure = plotext.figure
    figure.clear()
    figure.plot_size(COLUMNS, lines)
    figure.title(title)
    return figure


def _draw(figure: Any, lines: dict[str, list[tuple[float, float]]], is_colored: bool) -> None:
    # Dots are finer, but without colours they are all the same.
    for (name, points), letter in zip(lines.items(), itertools.cycle(MARKERS), strict=False):
        xs, ys = zip(*points, strict=True)
        signal = figure.signal(list(xs), list(ys), marker="braille" if is_colored else letter)
        signal.lines()
        signal.label(name)
        figure.draw(signal)


def _decades(figure: Any, values: Iterable[float]) -> None:
    """Name the powers of ten on the y axis."""
    found: Sequence[float] = list(values)
    powers = range(math.floor(min(found)), math.ceil(max(found)) + 1)
    figure.ruler(1).ticks(list(powers), [f"{10.0**power:g}" for power in powers])


def _text(figure: Any, is_colored: bool) -> str:
    import plotext

    text = str(figure.build())
    return text if is_colored else str(plotext.uncolorize(text))
