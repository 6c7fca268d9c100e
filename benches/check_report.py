"""Opens a report of `vecmq bench --html` in headless Chromium and checks that every chart is drawn.

    python benches/check_report.py report.html [--screenshot report.png]

Exit code 1 when a chart is missing or the page logged an error. Needs Chromium (Debian: the package
chromium); standard library only.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=20000"),
)
WINDOW = "1150,4200"
TIMEOUT_S = 180


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
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", f"--window-size={WINDOW}"]
        page = run([*command, "--dump-dom", address])
        if options.screenshot is not None:
            picture = options.screenshot.resolve()
            run([*command, f"--screenshot={picture}", address])
    faults = find_faults(page.stdout, page.stderr)
    for fault in faults:
        print(f"check_report: {fault}", file=sys.stderr)
    if not faults:
        print(f"{len(chart_names(page.stdout))} charts drawn, no error logged")
    return 1 if faults else 0


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs Chromium; its exit code says nothing of the page."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)


def find_faults(page: str, log: str) -> list[str]:
    """Says what is wrong.

    Args:
        page: The document after its scripts have run.
        log: What Chromium wrote to stderr.

    Returns:
        A sentence for each fault.
    """
    faults = [line.strip() for line in log.splitlines() if "CONSOLE" in line]
    names = chart_names(page)
    if not names:
        faults.append("expected charts, found none")
    for name in names:
        drawn = re.search(rf'<div id="{name}"[^>]*>.*?<svg [^>]*>(.*?)</svg>', page, re.DOTALL)
        marks = len(re.findall(r"<(?:path|rect|line)\b", drawn.group(1))) if drawn else 0
        if marks == 0:
            faults.append(f"{name}: expected a drawing, found none")
    return faults


def chart_names(page: str) -> list[str]:
    """Finds the places of the charts."""
    return re.findall(r'<div id="(chart-\d+)"', page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
