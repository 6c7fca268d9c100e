"""What every Python peer shares: the spec, the payloads, the check, the loop over stdin.

docs/bench-workers.md is the contract. Standard library only: what is measured is the client.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

NUMBER_BYTES = 8
WORKLOADS = ("pubsub", "publish", "latency", "core")
# With more bytes than this in flight large messages get slower, not faster.
WINDOW_BYTES = 16 << 20
# A receiver that gets nothing for this long has lost the rest.
STALL_S = 30.0
# How long to look for messages beyond the last one.
EXTRA_S = 0.1
EXIT_TERMINATED = 143


class PeerError(Exception):
    """The operation cannot be done; the message says why."""


@dataclass(frozen=True)
class Spec:
    """The first line of stdin, without what is for vecmq's routes alone.

    Attributes:
        contender: Name in the table.
        workload: "pubsub", "publish", "latency" or "core" (publish and receive, nothing stored).
        count: Messages of an operation.
        sizes_bytes: A size for each message.
        batch: Messages a call or in flight; None: what is best.
        rate_per_s: Messages due in a second; None: all at once.
        path: Directory of this worker's own.
        url: Address of the nats-server; None: there is none.
        token: Token of the nats-server.
        window_bytes: Bytes in flight, at most.
    """

    contender: str
    workload: str
    count: int
    sizes_bytes: Sequence[int]
    batch: int | None
    rate_per_s: float | None
    path: Path
    url: str | None
    token: str | None
    window_bytes: int = WINDOW_BYTES

    @classmethod
    def parse(cls, line: str) -> Spec:
        """Reads the first line.

        Args:
            line: JSON.

        Returns:
            The spec.

        Raises:
            PeerError: A value is not one that a peer can do.
        """
        values = json.loads(line)
        if values["workload"] not in WORKLOADS:
            raise PeerError(f"expected workload {', '.join(WORKLOADS)}, got {values['workload']}")
        server = values["server"] or {}
        return cls(
            contender=values["contender"],
            workload=values["workload"],
            count=values["count"],
            sizes_bytes=values["sizes_bytes"] or [values["size_bytes"]] * values["count"],
            batch=values["batch"],
            rate_per_s=values["rate_per_s"] if values["workload"] == "latency" else None,
            path=Path(values["path"]),
            url=server.get("url"),
            token=server.get("token"),
            window_bytes=values.get("window_bytes") or WINDOW_BYTES,
        )

    def window(self, best: int) -> int:
        """Gives how many messages go into a call, or are in flight.

        Args:
            best: What is best in the client for small messages.

        Returns:
            At least 1; on average with no more than window_bytes.
        """
        room = max(1, self.window_bytes * self.count // sum(self.sizes_bytes))
        return max(1, min(self.batch or best, room, self.count))


def receive_window(spec: Spec, best: int) -> int:
    """Gives how many messages a receiver asks for, whatever a publisher has in flight.

    Args:
        spec: The workload.
        best: What is best in the client for small messages.

    Returns:
        At least 1; with no more than WINDOW_BYTES even of the largest messages.
    """
    return max(1, min(best, WINDOW_BYTES // max(spec.sizes_bytes)))


def make_payloads(spec: Spec, number: int) -> list[bytes]:
    """Makes the messages of an operation; the same in every process.

    Args:
        spec: The workload.
        number: Number of the operation, which is the seed.

    Returns:
        Random bytes; the first 8 of each are its number.
    """
    source = random.Random(number)  # noqa: S311
    return [
        index.to_bytes(NUMBER_BYTES, "little") + source.randbytes(size - NUMBER_BYTES)
        for index, size in enumerate(spec.sizes_bytes)
    ]


def cut(payloads: Sequence[bytes], msgs_max: int) -> list[list[bytes]]:
    """Cuts messages into calls.

    Args:
        payloads: Messages.
        msgs_max: Messages of a call, at most.

    Returns:
        Lists of at most msgs_max messages and WINDOW_BYTES bytes (but one message at least).
    """
    windows: list[list[bytes]] = []
    room = 0
    for payload in payloads:
        if not windows or len(windows[-1]) == msgs_max or len(payload) > room:
            windows.append([])
            room = WINDOW_BYTES
        windows[-1].append(payload)
        room -= len(payload)
    return windows


class Checker:
    """Compares every byte that arrives with what was sent.

    Args:
        payloads: What is sent.

    Attributes:
        received_at_ns: When each message came, on the monotonic clock; 0: not yet.
        missing_count: Messages that have not come.
        verify_s: CPU seconds spent here.
    """

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._payloads = payloads
        self._next = 0
        self._counts = {"received": 0, "duplicate": 0, "unordered": 0, "wrong": 0}
        self.received_at_ns = array("q", bytes(8 * len(payloads)))
        self.missing_count = len(payloads)
        self.verify_s = 0.0

    def take(self, batch: Sequence[bytes]) -> None:
        """Compares messages.

        Args:
            batch: Payloads in the order of delivery.
        """
        now_ns = time.monotonic_ns()
        started = time.thread_time()
        self._counts["received"] += len(batch)
        first = self._next
        # The usual case, in C: one memcmp for each message.
        if list(batch) == self._payloads[first : first + len(batch)]:
            self._next += len(batch)
            self.missing_count -= len(batch)
            self.received_at_ns[first : self._next] = array("q", [now_ns]) * len(batch)
        else:
            for payload in batch:
                self._take_one(payload, now_ns)
        self.verify_s += time.thread_time() - started

    def sample(self) -> dict[str, Any]:
        """Gives what a sample tells of the messages.

        Returns:
            Counts by their names in the contract.
        """
        counts = {f"{name}_count": count for name, count in self._counts.items()}
        return counts | {"lost_count": self.missing_count, "verify_s": self.verify_s}

    def _take_one(self, payload: bytes, now_ns: int) -> None:
        number = int.from_bytes(payload[:NUMBER_BYTES], "little")
        if number >= len(self._payloads) or payload != self._payloads[number]:
            self._counts["wrong"] += 1
            return
        if self.received_at_ns[number]:
            self._counts["duplicate"] += 1
            return
        self._counts["unordered"] += number < self._next
        self._next = max(self._next, number + 1)
        self.received_at_ns[number] = now_ns
        self.missing_count -= 1


def make_sample(
    spec: Spec, times_ns: tuple[int, int, int], received: dict[str, Any], arrivals_ns: Sequence[int]
) -> dict[str, Any]:
    """Makes the answer to `go`.

    Args:
        spec: The workload.
        times_ns: When it started, when the last publish and when the last receipt was acknowledged.
        received: What Checker.sample gave.
        arrivals_ns: When each message came.

    Returns:
        The sample of the contract.
    """
    started, published, ended = times_ns
    is_publish = spec.workload == "publish"
    latencies = None
    if spec.rate_per_s is not None:
        step_ns = 1e9 / spec.rate_per_s
        latencies = [
            round(at - started - number * step_ns) for number, at in enumerate(arrivals_ns) if at
        ]
    return received | {
        "seconds": ((published if is_publish else max(published, ended)) - started) / 1e9,
        "published_s": (published - started) / 1e9,
        "verify_s": 0.0 if is_publish else received["verify_s"],
        "verify_cpu_s": received["verify_s"],
        "levels": ["none" if spec.workload == "core" else "stored"],
        "wire_bytes": None,
        "latencies_ns": latencies,
    }


class Meter:
    """What this process takes from now on; Linux.

    Memory counts from the first of them: what an operation has left behind is the client's.
    """

    _first_bytes: int | None = None

    def __init__(self) -> None:
        # The kernel's high-water mark of resident memory becomes what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        if Meter._first_bytes is None:
            Meter._first_bytes = _peak_bytes()
        self._started = time.process_time()

    def stop(self) -> dict[str, float]:
        """Gives what was taken.

        Returns:
            Seconds of CPU, and bytes by which memory grew at most.
        """
        cpu_s = time.process_time() - self._started
        assert Meter._first_bytes is not None
        return {"cpu_s": cpu_s, "growth_bytes": _peak_bytes() - Meter._first_bytes}


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise PeerError("expected VmHWM in /proc/self/status")


class Session(Protocol):
    """A peer that is ready for operations."""

    def ready(self) -> dict[str, Any]:
        """Gives the first answer's "versions" and "batch"."""

    def prepare(self, number: int) -> None:
        """Makes all that an operation needs, off the clock."""

    def run(self) -> dict[str, Any]:
        """Publishes and receives.

        Returns:
            The sample.
        """

    def close(self) -> None:
        """Stops whatever was started."""


class Opener(Protocol):
    """Makes a session."""

    def __call__(self, spec: Spec) -> Session:
        """Makes a session of a spec."""


def main(open_session: Opener) -> int:
    """Takes commands from stdin until its end.

    Args:
        open_session: Makes the peer ready.

    Returns:
        Exit code.
    """
    # Only answers go to the pipe, whatever else prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    spec = Spec.parse(sys.stdin.readline())
    try:
        spec.path.mkdir(parents=True)
        _serve(open_session(spec), answers)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001, any failure of a client is an answer
        _answer(answers, {"error": type(error).__name__, "message": str(error)})
        return 1
    finally:
        shutil.rmtree(spec.path, ignore_errors=True)
    return 0


def _serve(session: Session, answers: TextIO) -> None:
    try:
        _answer(answers, {"ready": True, "server_pids": []} | session.ready())
        is_prepared = False
        # Not `for line in stdin`, which reads ahead.
        while line := sys.stdin.readline():
            match line.split():
                case ["prepare", number]:
                    session.prepare(int(number))
                    is_prepared = True
                    _answer(answers, {"prepared": True})
                case ["go"] if is_prepared:
                    is_prepared = False
                    _answer(answers, session.run())
                case _:
                    raise PeerError(f"expected 'prepare N', then 'go', got {line!r}")
    finally:
        session.close()


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
