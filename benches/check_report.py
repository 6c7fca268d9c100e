"""Opens a report of `vecmq bench --html` in headless Chromium and checks that every chart is drawn.

    python benches/check_report.py report.html [--screenshot report.png]

Exit code 1 when a chart shows no data, has a figure that is none, or the page logged something.
Needs Chromium (Debian: the package chromium); standard library only.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=20000"),
)
WIDTH_PX = 1260
# Chromium draws no picture that is higher.
HEIGHT_MAX_PX = 16_000
# What stands around the charts: headings, and the lines of the tables.
TEXT_PX = 1_000
LINE_PX = 30
TIMEOUT_S = 180
# They have no end that a parser could wait for.
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"}


@dataclass(slots=True)
class Chart:
    """What was found in a chart's place.

    Attributes:
        name: Id of the place.
        height_px: Height of the drawing; 0 without one.
        marks_count: Marks of data; axes, grids and legends are none.
        broken_count: Those whose outline has a number that is none.
    """

    name: str
    height_px: float = 0
    marks_count: int = 0
    broken_count: int = 0


class Page(HTMLParser):
    """Finds the charts of a page, each within its own place.

    Attributes:
        charts: In the order of the page.
        lines_count: Lines of the tables.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.charts: list[Chart] = []
        self.lines_count = 0
        # Classes of what is open, from the chart's place inwards.
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Counts an element."""
        values = {name: value or "" for name, value in attrs}
        self.lines_count += tag == "tr"
        if self._open:
            self._count(tag, values)
        elif tag == "div" and values.get("id", "").startswith("chart-"):
            self.charts.append(Chart(values["id"]))
        else:
            return
        if tag not in VOID:
            self._open.append(values.get("class", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Counts an element that ends at once."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Leaves an element."""
        if self._open and tag not in VOID:
            self._open.pop()

    def _count(self, tag: str, values: dict[str, str]) -> None:
        chart = self.charts[-1]
        if tag == "svg":
            chart.height_px += float(values.get("height", "0"))
        outline = values.get("d", "")
        # Vega names what draws data so, and axes and legends otherwise.
        if tag == "path" and outline and any("role-mark" in names.split() for names in self._open):
            chart.marks_count += 1
            chart.broken_count += "NaN" in outline or "NaN" in values.get("transform", "")


def main(arguments: Sequence[str]) -> int:
    """Checks a report.

    Args:
        arguments: Of the command line.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(description="Checks a report of `vecmq bench --html`.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--screenshot", type=Path, help="write a picture of the page to this file")
    options = parser.parse_args(arguments)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        sys.exit("check_report: expected chromium on the PATH (Debian: the package chromium)")
    address = options.report.resolve(strict=True).as_uri()
    with tempfile.TemporaryDirectory() as profile:
        command = [chromium, *FLAGS, f"--user-data-dir={profile}"]
        size = f"--window-size={WIDTH_PX},{TEXT_PX}"
        shown = run([*command, size, "--dump-dom", address])
        page = Page(shown.stdout)
        if options.screenshot is not None:
            picture = options.screenshot.resolve()
            size = f"--window-size={WIDTH_PX},{height_px(page)}"
            run([*command, size, f"--screenshot={picture}", address])
    faults = find_faults(page, shown.stderr)
    for fault in faults:
        print(f"check_report: {fault}", file=sys.stderr)
    if not faults:
        print(f"{len(page.charts)} charts drawn, nothing logged")
    return 1 if faults else 0


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs Chromium; its exit code says nothing of the page."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)


def height_px(page: Page) -> int:
    """Says how high a window has to be that shows the whole page.

    Args:
        page: The page.

    Returns:
        Pixels, rather too many than too few.
    """
    charts_px = sum(chart.height_px + 4 * LINE_PX for chart in page.charts)
    return min(round(TEXT_PX + charts_px + page.lines_count * LINE_PX), HEIGHT_MAX_PX)


def find_faults(page: Page, log: str) -> list[str]:
    """Says what is wrong.

    Args:
        page: The page after its scripts have run.
        log: What Chromium wrote to stderr.

    Returns:
        A sentence for each fault.
    """
    faults = [line.strip() for line in log.splitlines() if "CONSOLE" in line]
    if not page.charts:
        faults.append("expected charts, found none")
    for chart in page.charts:
        if chart.marks_count == 0:
            faults.append(f"{chart.name}: expected drawn data, found none")
        if chart.broken_count:
            count = f"{chart.broken_count} of {chart.marks_count}"
            faults.append(f"{chart.name}: expected numbers in every mark, {count} have NaN")
    return faults


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
