"""`nats bench` as a worker of `vecmq bench`: one process publishes, another one consumes.

    python worker.py NATS_BINARY < commands      the contract is docs/bench-workers.md

What natscli makes different from other workers: all messages of an operation are the same random
bytes, nothing is verified (those counts are null), a message has no latency of its own, and all
messages have one size. Its clock is kept by the lines that it prints: the publisher says when it
starts, the consumer when it has the last message. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

# natscli's default for messages in flight and for those that a consumer has asked for.
BATCH_MSGS = 500
# With more bytes than this in flight large messages get slower, not faster.
WINDOW_BYTES = 16 << 20
READY_TIMEOUT_S = 10.0
# natscli gives up when one answer takes longer.
ANSWER_TIMEOUT = "60s"
PUBLISH_TIMEOUT_S = 600.0
# For what the consumer still has to get when the publisher has ended.
CONSUME_TIMEOUT_S = 60.0
# Between a consumer's first line and its first request for messages.
SUBSCRIBE_S = 0.2
EXIT_TERMINATED = 143


class WorkerError(Exception):
    """The operation cannot be done; the message says why."""


class Bench:
    """One `nats bench` process, which stays after its report until it is killed.

    A process that has ended has no memory that could be read from outside. So natscli writes its
    CSV into a pipe that nobody reads, and waits there.

    Args:
        command: Its arguments.
        variables: Its environment.
        pipe: Path for the pipe.
        is_held: Starts only at `release`; its process id exists before.
    """

    def __init__(
        self, command: list[str], variables: dict[str, str], pipe: Path, is_held: bool
    ) -> None:
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        command = [*command, "--no-progress", "--csv", str(pipe)]
        if is_held:
            command = ["/bin/sh", "-c", 'read -r _ && exec "$@"', "sh", *command]
        self._process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said: list[str] = []
        self._lines: queue.Queue[tuple[float, str]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def release(self) -> None:
        """Lets a held process begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait_for(self, text: str, timeout_s: float) -> float:
        """Waits for a line of natscli.

        Args:
            text: Part of the line.
            timeout_s: How long it may take.

        Returns:
            When the line came, on the monotonic clock.

        Raises:
            WorkerError: It did not come.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                at, line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                raise WorkerError(
                    f"nats: no {text!r} within {timeout_s} s; {self._tail()}"
                ) from None
            if text in line:
                return at
            if not line:
                raise WorkerError(f"nats ended without {text!r}; {self._tail()}")
            self._said.append(line.strip())

    def kill(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.monotonic(), line))
        self._lines.put((time.monotonic(), ""))

    def _tail(self) -> str:
        return "it said: " + " / ".join(self._said[-3:])


class Operation:
    """One operation over a stream of its own.

    Args:
        worker: What the operations share.
        number: Number of the operation.
    """

    def __init__(self, worker: Worker, number: int) -> None:
        self._worker = worker
        self._stream = f"bench-{number}"
        worker.make_stream(self._stream)
        payload = worker.path / "payload"
        payload.write_bytes(random.Random(number).randbytes(worker.size_bytes))  # noqa: S311
        flags = [] if worker.mode == "sync" else ["--batch", str(worker.batch)]
        self._publisher = self._start(
            "publisher", ["pub", worker.mode, self._stream, "--payload", str(payload), *flags], True
        )
        self._consumer: Bench | None = None
        if worker.workload == "pubsub":
            self._consumer = self._consume()
            time.sleep(SUBSCRIBE_S)

    def run(self) -> dict[str, Any]:
        """Publishes and consumes everything.

        Returns:
            The sample.
        """
        self._publisher.release()
        started = self._publisher.wait_for("Starting JetStream", READY_TIMEOUT_S)
        published = self._publisher.wait_for("stats:", PUBLISH_TIMEOUT_S)
        ended = published
        if self._consumer is not None:
            ended = max(ended, self._consumer.wait_for("stats:", CONSUME_TIMEOUT_S))
        else:
            self._consume().wait_for("stats:", CONSUME_TIMEOUT_S)
        return {
            "seconds": ended - started,
            "published_s": published - started,
            "verify_s": 0.0,
            "levels": ["stored"],
            "wire_bytes": None,
            # natscli reports only when it has received this many.
            "received_count": self._worker.count,
            "lost_count": None,
            "duplicate_count": None,
            "unordered_count": None,
            "wrong_count": None,
            "latencies_ns": None,
        }

    def _consume(self) -> Bench:
        batch = str(self._worker.window)
        consumer = self._start("consumer", ["consume", "--batch", batch], False)
        consumer.wait_for("Starting JetStream", READY_TIMEOUT_S)
        return consumer

    def _start(self, name: str, action: list[str], is_held: bool) -> Bench:
        worker = self._worker
        command = [*worker.nats, "bench", "js", *action, "--stream", self._stream]
        command += ["--msgs", str(worker.count), "--size", f"{worker.size_bytes}B"]
        bench = Bench(command, worker.variables, worker.path / name, is_held)
        worker.running.append(bench)
        return bench


class Worker:
    """What the operations share.

    Args:
        binary: The natscli.
        spec: The first line of stdin.

    Attributes:
        nats: natscli's command.
        variables: Environment of natscli.
        path: Directory of this worker's own.
        workload: Of the spec.
        count: Of the spec.
        size_bytes: Of the spec.
        window: Messages in flight that WINDOW_BYTES allow.
        mode: How natscli publishes.
        batch: Messages that it has in flight.
        running: Processes to be killed before the next operation, and at the end.
    """

    def __init__(self, binary: str, spec: dict[str, Any]) -> None:
        self.workload: str = spec["workload"]
        self.count: int = spec["count"]
        self.size_bytes: int = spec["size_bytes"]
        if self.workload not in ("pubsub", "publish"):
            raise WorkerError(f"expected workload pubsub or publish, got {self.workload}")
        if len(set(spec["sizes_bytes"] or [self.size_bytes])) != 1:
            raise WorkerError("natscli sends messages of one size only, got several")
        if spec["server"] is None:
            raise WorkerError("expected a server in the spec, got null")
        self.nats = [binary, "--no-context", "--timeout", ANSWER_TIMEOUT]
        self.path = Path(spec["path"])
        self.path.mkdir(parents=True)
        self.running: list[Bench] = []
        self.variables = os.environ | {"NATS_URL": spec["server"]["url"]}
        for name in ("token", "user", "password"):
            if spec["server"].get(name):
                # Not as an argument, which everybody on the machine could read.
                self.variables[f"NATS_{name.upper()}"] = spec["server"][name]
        self.window = max(1, min(BATCH_MSGS, WINDOW_BYTES // self.size_bytes))
        self._fast_flags: list[str] = []
        if spec["batch"] is None:
            self.mode, self.batch = self._best_mode(), self.window
        elif spec["batch"] == 1:
            self.mode, self.batch = "sync", 1
        else:
            self.mode, self.batch = "async", max(1, min(spec["batch"], self.count))

    def ready(self) -> dict[str, Any]:
        """Gives the first answer."""
        version = self._call("--version").strip().removeprefix("v")
        return {
            "ready": True,
            "versions": {"natscli": version},
            "server_pids": [],
            "batch": self.batch,
        }

    def make_stream(self, name: str) -> None:
        """Creates a stream as `nats bench --create` does, but without its limit of 1 GB."""
        flags = ["--storage", "file", "--replicas", "1", "--retention", "limits"]
        flags += ["--discard", "new", "--allow-direct", *self._fast_flags]
        self._call("stream", "add", name, "--subjects", name, "--defaults", *flags)

    def stop_running(self) -> None:
        """Ends what an operation has left."""
        for bench in self.running:
            bench.kill()
        self.running.clear()

    def _best_mode(self) -> str:
        """Fast batch publishing where the server has it (2.14), else asynchronous publishing."""
        self._fast_flags = ["--allow-fast"]
        try:
            self.make_stream("bench-fast")
            self._call("stream", "rm", "-f", "bench-fast")
        except WorkerError:
            self._fast_flags = []
            return "async"
        return "fast"

    def _call(self, *arguments: str) -> str:
        command = [*self.nats, *arguments]
        done = subprocess.run(
            command,
            check=False,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise WorkerError(f"nats {' '.join(arguments[:2])}: {done.stdout.strip()[-500:]}")
        return done.stdout


def main() -> int:
    """Takes commands from stdin until its end.

    Returns:
        Exit code.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    spec = json.loads(sys.stdin.readline())
    worker: Worker | None = None
    try:
        worker = Worker(sys.argv[1], spec)
        serve(worker, sys.stdout)
    except (WorkerError, OSError) as error:
        with contextlib.suppress(BrokenPipeError):
            answer(sys.stdout, {"error": type(error).__name__, "message": str(error)})
        return 1
    finally:
        if worker is not None:
            worker.stop_running()
        shutil.rmtree(spec["path"], ignore_errors=True)
    return 0


def serve(worker: Worker, answers: TextIO) -> None:
    """Answers each line of stdin."""
    answer(answers, worker.ready())
    operation: Operation | None = None
    for line in sys.stdin:
        match line.split():
            case ["prepare", number]:
                worker.stop_running()
                operation = Operation(worker, int(number))
                answer(answers, {"prepared": True})
            case ["go"] if operation is not None:
                answer(answers, operation.run())
                operation = None
            case _:
                raise WorkerError(f"expected 'prepare N', then 'go', got {line!r}")


def answer(answers: TextIO, values: dict[str, Any]) -> None:
    """Writes one line of JSON."""
    answers.write(json.dumps(values) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
