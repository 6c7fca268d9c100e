"""Checks that every crate vecmq links has a licence that may go into an Apache-2.0 wheel.

    python _build/licences.py

Reads `cargo metadata`; standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from environment import ROOT

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


def is_allowed(expression: str) -> bool:
    """Evaluates an SPDX expression: one side of an OR is enough, an AND needs both.

    Raises:
        ValueError: The expression is not well formed.
    """
    # A slash is how old crates wrote OR.
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    accepted, rest = _either(tokens)
    if rest:
        raise ValueError(f"licence {expression!r}: unexpected {rest[0]!r}")
    return accepted


def _either(tokens: list[str]) -> tuple[bool, list[str]]:
    accepted, tokens = _both(tokens)
    while tokens[:1] == ["OR"]:
        right, tokens = _both(tokens[1:])
        accepted = accepted or right
    return accepted, tokens


def _both(tokens: list[str]) -> tuple[bool, list[str]]:
    accepted, tokens = _one(tokens)
    while tokens[:1] == ["AND"]:
        right, tokens = _one(tokens[1:])
        accepted = accepted and right
    return accepted, tokens


def _one(tokens: list[str]) -> tuple[bool, list[str]]:
    match tokens:
        case ["(", *rest]:
            accepted, rest = _either(rest)
            if rest[:1] != [")"]:
                raise ValueError("licence: a parenthesis is not closed")
            return accepted, rest[1:]
        case [name, "WITH", exception, *rest]:
            return f"{name} WITH {exception}" in ALLOWED, rest
        case [name, *rest]:
            return name in ALLOWED, rest
        case _:
            raise ValueError("licence: the expression ends too early")


def main() -> int:
    """Prints the crates whose licence is not allowed; returns how many they are."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features"]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    packages = json.loads(printed)["packages"]
    refused = [found for found in packages if not is_allowed(found["license"] or "none")]
    for found in refused:
        print(f"{found['name']} {found['version']}: licence {found['license']} is not allowed")
    print(f"licences: {len(packages)} crates checked, {len(refused)} refused")
    return min(len(refused), 1)


if __name__ == "__main__":
    sys.exit(main())
