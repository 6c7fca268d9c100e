"""rocksq: `push` and `pop` of its blocking queue, a batch a call."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from embedded import Embedded, Store
from peer import main
from rocksq.blocking import PersistentQueueWithCapacity


class Rocksq(Store):
    """A queue of rocksq; what is popped is gone, so there is nothing to acknowledge."""

    def __init__(self) -> None:
        self.versions = {"rocksq": importlib.metadata.version("rocksq")}

    def open(self, path: Path) -> None:
        """Makes a queue."""
        self._queue: PersistentQueueWithCapacity | None = PersistentQueueWithCapacity(str(path))

    def close(self) -> None:
        """Closes it, which it has no call for."""
        self._queue = None

    def write(self, payloads: list[bytes]) -> None:
        """Writes messages."""
        assert self._queue is not None
        self._queue.push(payloads)

    def read(self, count: int) -> list[bytes]:
        """Takes the next messages."""
        assert self._queue is not None
        payloads: list[bytes] = self._queue.pop(count)
        return payloads


if __name__ == "__main__":
    sys.exit(main(lambda spec: Embedded(spec, Rocksq())))
