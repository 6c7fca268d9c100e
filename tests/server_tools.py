"""Helpers of the tests that run embedded servers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nats
import psutil

from vecmq.server import EmbeddedServer

WAIT_S = 20.0

OWNER = """
import os, signal, sys, threading, time
from vecmq.server import EmbeddedServer
server = EmbeddedServer(sys.argv[1])
"""
SAY = "print(server.pid, server.port, server.token, flush=True)\n"


def wait_until(condition: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(pid: int, timeout_s: float = WAIT_S) -> None:
    wait_until(lambda: not is_running(pid), timeout_s)


def pause(pid: int) -> None:
    """SIGSTOP, until it holds: threads on other cores run on after the signal was sent."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    wait_until(
        lambda: all(
            thread.joinpath("stat").read_text().rpartition(") ")[2].startswith("T")
            for thread in threads.iterdir()
        )
    )


def watchdog_of(pid: int) -> psutil.Process:
    parent = psutil.Process(pid).parent()
    assert parent is not None
    return parent


async def with_stream(server: EmbeddedServer, payloads: list[bytes], max_bytes: int = -1) -> int:
    """Publish to a stream and give its message count."""
    client = await nats.connect(server.url, token=server.token)
    try:
        context = client.jetstream()
        await context.add_stream(name="t", subjects=["t"], max_bytes=max_bytes)
        for payload in payloads:
            await context.publish("t", payload)
        return (await context.stream_info("t")).state.messages
    finally:
        await client.close()


def publish(server: EmbeddedServer, payloads: list[bytes], max_bytes: int = -1) -> int:
    return asyncio.run(with_stream(server, payloads, max_bytes))


def read_info(port: int) -> dict[str, object]:
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
        line = client.makefile("rb").readline()
    info: dict[str, object] = json.loads(line.removeprefix(b"INFO "))
    return info


class Owner:
    """Another Python process that owns a server."""

    def __init__(
        self, store: Path, after_start: str = "time.sleep(600)", **options: object
    ) -> None:
        code = OWNER + "server.start()\n" + SAY + after_start
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(store)],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,  # type: ignore[call-overload]
        )
        pid, port, self.token = self.read().split()
        self.server_pid, self.port = int(pid), int(port)

    def read(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
