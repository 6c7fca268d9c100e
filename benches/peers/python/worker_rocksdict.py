"""rocksdict: a WriteBatch a call, a thread that iterates from where it was.

It is a dictionary, not a queue: nothing keeps how far a reader is.
"""

from __future__ import annotations

import importlib.metadata
import sys
from itertools import islice
from pathlib import Path

from embedded import Embedded, Store
from peer import main
from rocksdict import DBCompressionType, Options, Rdict, WriteBatch

KEY_BYTES = 8
WRITE_BUFFER_BYTES = 64 << 20


class Rocksdict(Store):
    """An Rdict; keys are the numbers of the messages."""

    def __init__(self) -> None:
        self.versions = {"rocksdict": importlib.metadata.version("rocksdict")}

    def open(self, path: Path) -> None:
        """Makes a store."""
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        # Random bytes; it would be time for nothing.
        options.set_compression_type(DBCompressionType.none())
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_max_write_buffer_number(3)
        options.set_max_background_jobs(2)
        # Written in order and never overwritten: compaction would copy for nothing.
        options.set_disable_auto_compactions(True)
        options.set_level_zero_slowdown_writes_trigger(1 << 30)
        options.set_level_zero_stop_writes_trigger(1 << 30)
        # The WAL is on and not synced: RocksDB's default.
        self._db = Rdict(str(path), options)
        self._written = self._read = 0

    def close(self) -> None:
        """Closes it."""
        self._db.close()

    def write(self, payloads: list[bytes]) -> None:
        """Writes messages."""
        first = self._written
        self._written += len(payloads)
        if len(payloads) == 1:
            self._db.put(first.to_bytes(KEY_BYTES, "big"), payloads[0])
            return
        batch = WriteBatch(raw_mode=True)
        for number, payload in enumerate(payloads, first):
            batch.put(number.to_bytes(KEY_BYTES, "big"), payload)
        self._db.write(batch)

    def read(self, count: int) -> list[bytes]:
        """Takes the next messages."""
        values = self._db.values(from_key=self._read.to_bytes(KEY_BYTES, "big"))
        payloads = list(islice(values, count))
        self._read += len(payloads)
        return payloads


if __name__ == "__main__":
    sys.exit(main(lambda spec: Embedded(spec, Rocksdict())))
