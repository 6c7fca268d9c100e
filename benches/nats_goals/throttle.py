"""A TCP relay on loopback that lets through so many bytes a second: a slow link.

    python throttle.py RATE_BYTES HOST PORT      prints its own port, ends when stdin does

A token bucket for each direction, shared by all connections. RATE_BYTES 0 does not throttle, which
shows what the relay itself can do.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

CHUNK_BYTES: Final = 256 << 10
# What may leave at once after a pause, in seconds of the rate; sleeps that last too long need it.
BURST_S: Final = 0.02
# So that the sender feels the link, and does not fill megabytes of socket buffers.
SOCKET_BYTES: Final = 256 << 10


class Bucket:
    """Tokens, a byte each.

    Args:
        rate_bytes: A second; 0 is no limit.
        clock: Seconds.
    """

    def __init__(self, rate_bytes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_bytes = rate_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, count_bytes: int) -> float:
        """Takes tokens; the caller waits before he sends.

        Args:
            count_bytes: How many.

        Returns:
            Seconds until they are there.
        """
        if self._rate_bytes == 0:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - BURST_S) + count_bytes / self._rate_bytes
            return max(0.0, self._free_at - now)


def relay(source: socket.socket, target: socket.socket, bucket: Bucket) -> None:
    """Copies one direction until its end.

    Args:
        source: Read from.
        target: Written to.
        bucket: Of the direction.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    try:
        while count := source.recv_into(buffer):
            wait_s = bucket.take(count)
            if wait_s > 0:
                time.sleep(wait_s)
            target.sendall(buffer[:count])
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone: the other one is told.
        source.close()
        target.close()


def serve(rate_bytes: float, host: str, port: int, listener: socket.socket) -> None:
    """Takes connections until the process ends.

    Args:
        rate_bytes: A second, in each direction.
        host: Where to.
        port: Where to.
        listener: Bound.
    """
    there, back = Bucket(rate_bytes), Bucket(rate_bytes)
    while True:
        near, _ = listener.accept()
        far = socket.create_connection((host, port))
        for one in (near, far):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target, bucket in ((near, far, there), (far, near, back)):
            threading.Thread(target=relay, args=(source, target, bucket), daemon=True).start()


def main(rate_bytes: float, host: str, port: int) -> None:
    """Starts, says its port, and ends when stdin does.

    Args:
        rate_bytes: A second, in each direction.
        host: Where to.
        port: Where to.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    arguments = (rate_bytes, host, port, listener)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
