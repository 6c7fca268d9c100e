"""A TCP proxy on loopback that cuts, resets, freezes: what a network does to a connection."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

HOST = "127.0.0.1"
CHUNK_BYTES = 64 << 10
# Sent at close instead of the usual goodbye: a reset, and what was on the way is dropped.
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Carries bytes between clients and one server, for as long as it is let."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        self._closed = False
        self.connections_count = 0
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{HOST}:{self.port}"

    def cut(self, *, reset: bool) -> int:
        """End all connections, with a reset or a goodbye; give how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    if reset:
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    end.shutdown(socket.SHUT_RDWR)
        return len(pairs)

    def freeze(self) -> None:
        """Half-open: both ends stay connected, no byte passes."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let bytes pass again."""
        self._flows.set()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Connections end and new ones are refused, for a while."""
        self._refuses = True
        self.cut(reset=True)
        try:
            yield
        finally:
            self._refuses = False

    def __enter__(self) -> Self:
        """Give itself: it runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._closed = True
        self._flows.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut(reset=False)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
                continue
            try:
                server = socket.create_connection((HOST, self._target_port), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self.connections_count += 1
            with self._lock:
                self._pairs.add((client, server))
            left = [2]
            for source, sink in ((client, server), (server, client)):
                carry = threading.Thread(target=self._carry, args=(source, sink, left), daemon=True)
                self._threads.append(carry)
                carry.start()

    def _carry(self, source: socket.socket, sink: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                self._flows.wait()
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            left[0] -= 1
            if left[0]:
                return
            self._pairs = {pair for pair in self._pairs if source not in pair}
        source.close()
        sink.close()
