"""A peer for the benchmark's tests: answers by the contract, or breaks it as BENCH_PEER says."""

from __future__ import annotations

import json
import os
import sys


def main() -> int:
    """Answer lines until stdin ends."""
    how = os.environ["BENCH_PEER"]
    spec = json.loads(sys.stdin.readline())
    answer({"ready": True, "versions": {"peer": "1"}, "server_pids": [], "batch": 7})
    for line in sys.stdin:
        if line.startswith("prepare"):
            answer({"prepared": True})
        elif how == "fails":
            answer({"error": "OSError", "message": "no room"})
            return 1
        elif how == "ends":
            return 7
        elif how == "babbles":
            print("hello", flush=True)
        else:
            answer(sample(spec))
    return 0


def sample(spec: dict[str, int]) -> dict[str, object]:
    """Claim that all went well."""
    counts = dict.fromkeys(("lost_count", "duplicate_count", "unordered_count", "wrong_count"), 0)
    return {
        "seconds": 0.25,
        "published_s": 0.2,
        "verify_s": 0.01,
        "levels": ["stored"],
        "wire_bytes": None,
        "latencies_ns": None,
        "received_count": spec["count"],
        **counts,
    }


def answer(values: dict[str, object]) -> None:
    """Print a line."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    sys.exit(main())
