"""nats-servers without a watchdog, to be killed by the thousand: alone or three as a cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vecmq.server import find_binary

HOST = "127.0.0.1"
READY_S = 60.0
MIB = 1 << 20
# It keeps what it reads for ten seconds: 10 GB that are read at once took 24 GB.
MEMORY_MAX = "4GiB"

# Processes that several tests use, and that live on after the one that started them.
shared_pids: set[int] = set()

_given = threading.Lock()
_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on and that this process was not given before."""
    with _given:
        while True:
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port = int(probe.getsockname()[1])
            if port not in _ports:
                _ports.add(port)
                return port


@dataclass
class Node:
    """One nats-server on a port and a store of its own, which it keeps over kills."""

    directory: Path
    settings: str = ""
    jetstream: str = ""
    name: str = "node"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    is_shared: bool = False

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{HOST}:{self.port}"

    @property
    def log(self) -> str:
        """What the server has logged, over all its starts."""
        return (self.directory / "log").read_text()

    @property
    def store(self) -> Path:
        """Where JetStream keeps its streams."""
        return self.directory / "store"

    def launch(self) -> None:
        """Start the process and do not wait for it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "server.conf"
        config.write_text(
            f'listen: "{HOST}:{self.port}"\nserver_name: {self.name}\n'
            f"jetstream {{ store_dir: {json.dumps(str(self.store))}, {self.jetstream} }}\n"
            f"{self.settings}\n"
        )
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [find_binary(), "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                stdout=log,
                env=os.environ | {"GOMEMLIMIT": MEMORY_MAX},
            )
        if self.is_shared:
            shared_pids.add(self.process.pid)

    def start(self) -> Self:
        """Start and wait until clients can connect."""
        self.launch()
        wait_for(self.answers)
        return self

    def answers(self) -> bool:
        """Say whether it greets clients."""
        assert self.process is not None
        assert self.process.poll() is None, self.log[-2000:]
        try:
            with socket.create_connection((HOST, self.port), 1) as client:
                client.settimeout(1)
                return client.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9; nothing is left of the process after it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def kill_and_restart(self) -> None:
        """kill -9, then another process on the same port and store."""
        self.kill()
        self.start()

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Kill."""
        self.kill()


def wait_for(condition: Callable[[], object], timeout_s: float = READY_S) -> None:
    """Wait until something is so, or fail."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@contextmanager
def cluster(directory: Path, size: int = 3) -> Iterator[list[Node]]:
    """Servers that know each other; JetStream needs a majority of them."""
    routes = [free_port() for _ in range(size)]
    nodes = []
    for index, route in enumerate(routes):
        others = ", ".join(f'"nats://{HOST}:{port}"' for port in routes if port != route)
        settings = f'cluster {{ name: test, listen: "{HOST}:{route}", routes: [{others}] }}'
        name = f"n{index}"
        nodes.append(Node(directory / name, settings, name=name, is_shared=True))
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            wait_for(node.answers)
        yield nodes
    finally:
        for node in nodes:
            node.kill()
