"""Counts the instructions of the hot paths and compares them with benches/callgrind.json.

    python benches/callgrind.py             fails when a count changed by more than 2 %
    python benches/callgrind.py --update    writes the counts

A count does not depend on the load of the machine, so it finds what a clock on a shared machine
cannot. It is no time: it knows no cache misses, and a slower instruction counts like a fast one.

What a count does depend on:

- rustc: with another version than the file names, this fails and says so; `--update` with it.
- The instruction set. crc-fast, zstd and libc choose their code by what the CPU says, and valgrind
  shows one fixed CPU (AVX2, no AVX-512) on every machine that has AVX2. So the portable choice of
  crc-fast there is SSE with PCLMULQDQ, which .cargo/config.toml asks for anyway. Other machines
  are refused.
- The C compiler (zstd) and libc (memcpy, malloc): they are named when a count does not match.

Standard library only. Needs valgrind (Debian: the package valgrind).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = ROOT / "benches" / "callgrind.json"
TOLERANCE = 0.02
BUILD = [
    *("cargo", "bench", "--locked", "--no-default-features", "--bench", "instructions"),
    *("--no-run", "--message-format=json-render-diagnostics"),
]


class CallgrindError(Exception):
    """Nothing can be counted or compared here; the message says why and what to do."""


class Document(TypedDict):
    """What the file holds.

    Attributes:
        tools: Versions that the counts depend on.
        instructions: Count of each case, over all repeats.
    """

    tools: dict[str, str]
    instructions: dict[str, int]


class Case(NamedTuple):
    """A hot path.

    Attributes:
        name: Its name in the benchmark's binary.
        repeats: How often it runs inside the counted function.
    """

    name: str
    repeats: int


def require_machine() -> None:
    """Check that counts of this machine can be compared with others.

    Raises:
        CallgrindError: valgrind or AVX2 is missing, or it is another architecture.
    """
    _valgrind()
    if platform.machine() != "x86_64":
        raise CallgrindError(f"counts are kept for x86_64, this is {platform.machine()}")
    if not re.search(r"^flags\b.*\bavx2\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        raise CallgrindError("this CPU has no AVX2: crc-fast, zstd and libc take other code here")


def tools() -> dict[str, str]:
    """Name the versions that counts depend on; rustc first."""
    return {
        "rustc": _first_line("rustc", "--version"),
        "cc": _first_line(*os.environ.get("CC", "cc").split(), "--version"),
        "libc": " ".join(platform.libc_ver()),
        "valgrind": _first_line("valgrind", "--version"),
    }


def build() -> Path:
    """Build the binary of the cases.

    Returns:
        Its path.

    Raises:
        CallgrindError: cargo failed; its errors are on stderr.
    """
    environment = [sys.executable, str(ROOT / "_build" / "environment.py"), "run", "--core", "--"]
    done = subprocess.run([*environment, *BUILD], cwd=ROOT, check=False, stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise CallgrindError("the benchmark does not build; see above")
    for line in done.stdout.splitlines():
        message: dict[str, Any] = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "instructions":
            return Path(message["executable"])
    raise CallgrindError("cargo named no executable for the benchmark `instructions`")


def cases(binary: Path) -> list[Case]:
    """Ask the binary for its cases."""
    listed = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout
    return [Case(name, int(repeats)) for name, repeats in map(str.split, listed.splitlines())]


def count(binary: Path, case: Case) -> int:
    """Count the instructions of one case.

    Returns:
        Instructions read inside `counted`, over all repeats.

    Raises:
        CallgrindError: The case failed, or nothing was counted.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "callgrind.out")
        command = [_valgrind(), "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
        # Toggling implies that nothing is collected before the function is entered.
        command += ["--toggle-collect=instructions::counted*", str(binary), case.name]
        # No environment: it lies on the stack, and its size would move what is aligned to what.
        done = subprocess.run(command, check=False, env={}, stderr=subprocess.PIPE)
        if done.returncode != 0 or not out.exists():
            raise CallgrindError(f"{case.name} failed:\n{done.stderr.decode(errors='replace')}")
        found = re.search(r"^totals: (\d+)", out.read_text(), re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise CallgrindError(f"{case.name}: the function `counted` was not found in {binary}")
    return int(found[1])


def read_expected() -> Document:
    """Read the counts to compare with.

    Raises:
        CallgrindError: There are none, or they are another rustc's.
    """
    if not EXPECTED.exists():
        raise CallgrindError(f"{EXPECTED.name} does not exist: run with --update")
    expected: Document = json.loads(EXPECTED.read_text())
    was, this = expected["tools"]["rustc"], tools()["rustc"]
    if was != this:
        raise CallgrindError(
            f"{EXPECTED.name} has the counts of {was}, this is {this}: counts of two compilers "
            "cannot be compared. Use that one, or run with --update on the commit before yours"
        )
    return expected


def write(counted: dict[Case, int]) -> None:
    """Write the counts to compare with."""
    document: Document = {
        "tools": tools(),
        "instructions": {case.name: found for case, found in counted.items()},
    }
    EXPECTED.write_text(json.dumps(document, indent=2) + "\n")


def compare(counted: dict[Case, int], expected: dict[str, int]) -> list[str]:
    """Print the table.

    Returns:
        What is out of tolerance, a sentence each.
    """
    wrong = [f"{name} is counted no more" for name in expected.keys() - {c.name for c in counted}]
    print(f"{'name':<24}{'counted':>14}{'per call':>14}{'expected':>14}{'change':>10}")
    for case, found in counted.items():
        per_call = found / case.repeats
        known = expected.get(case.name)
        row = f"{case.name:<24}{found:>14,}{per_call:>14,.0f}"
        if known is None:
            print(f"{row}{'-':>14}{'new':>10}")
            wrong.append(f"{case.name} is new")
            continue
        change = found / known - 1
        print(f"{row}{known:>14,}{change:>+10.2%}")
        if abs(change) > TOLERANCE:
            wrong.append(f"{case.name} changed by {change:+.2%}, allowed {TOLERANCE:.0%}")
    return sorted(wrong)


def main() -> int:
    """Count, then compare or write; returns the exit code."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--update", action="store_true", help=f"write {EXPECTED.name}")
    update = parser.parse_args().update
    require_machine()
    nothing: Document = {"tools": tools(), "instructions": {}}
    before = nothing if update else read_expected()
    binary = build()
    counted = {case: count(binary, case) for case in cases(binary)}
    wrong = compare(counted, before["instructions"])
    if update:
        write(counted)
        print(f"callgrind: wrote {EXPECTED.name}")
        return 0
    for sentence in wrong:
        print(f"callgrind: {sentence}")
    if wrong:
        for name, version in tools().items():
            known = before["tools"].get(name)
            if known != version:
                print(f"callgrind: the file's counts were made with {known}, this is {version}")
        print("callgrind: if that is meant, run benches/callgrind.py --update and say why")
    return min(len(wrong), 1)


def _valgrind() -> str:
    found = shutil.which("valgrind")
    if found is None:
        raise CallgrindError(
            "valgrind is not on the PATH: install the package valgrind (apt-get install valgrind)"
        )
    return found


def _first_line(*command: str) -> str:
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return printed.partition("\n")[0]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CallgrindError as error:
        sys.exit(f"callgrind: {error}")
