"""Writes the pictures of docs/benchmarks.md from results that `vecmq bench --json` wrote.

    python benches/pictures.py docs table1.json sweep.json latency.json

A picture is named by the command of its result and its chart: docs/table1-time.svg. What a result
has on memory and CPU over time is left to the report (`--html`), which shows every point.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import vl_convert

from vecmq.bench.document import load
from vecmq.bench.html import charts

SHOWN = ("time", "crossover", "latency")


def main(arguments: Sequence[str]) -> int:
    """Writes the pictures.

    Args:
        arguments: Directory and results.

    Returns:
        Exit code.
    """
    if len(arguments) < 2:
        sys.stderr.write(__doc__ or "")
        return 2
    directory, *results = map(Path, arguments)
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    for result in results:
        document = load(result)
        for heading, _, chart in charts(document):
            name = heading.lower()
            if name not in SHOWN or (name == "time" and document["command"] != "table1"):
                continue
            path = directory / f"{document['command']}-{name}.svg"
            picture = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=version)
            path.write_text(picture.rstrip() + "\n")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
