"""rocksdict: a put a message, from one thread or several; runs in the peer's own environment.

The store is opened as in `make peers`' own worker of it.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
import time
from pathlib import Path

# Of `make peers`: next to the command that the list of peers names.
from rocksdict import WriteOptions
from worker_rocksdict import KEY_BYTES, Rocksdict


def main() -> int:
    """Takes commands from stdin until its end; "put" or, synced, "durable".

    Returns:
        Exit code.
    """
    spec = json.loads(sys.stdin.readline())
    path = Path(spec["path"])
    path.mkdir(parents=True)
    answer({"ready": True, "versions": {}, "server_pids": [], "batch": 1})
    store = Rocksdict()
    payloads: list[bytes] = []
    for line in sys.stdin:
        match line.split():
            case ["prepare", number]:
                source = random.Random(int(number))  # noqa: S311
                payloads = [source.randbytes(spec["size_bytes"]) for _ in range(spec["count"])]
                answer({"prepared": True})
            case _:
                store.open(path / "store")
                syncs = spec["contender"] == "durable"
                answer(put_all(store, payloads, spec["publishers"], syncs))
                store.close()
                shutil.rmtree(path / "store")
    shutil.rmtree(path, ignore_errors=True)
    return 0


def put_all(
    store: Rocksdict, payloads: list[bytes], threads_count: int, syncs: bool
) -> dict[str, float]:
    """Puts every message.

    Args:
        store: Where.
        payloads: What.
        threads_count: How many put at once.
        syncs: Whether each put is on the disk when it returns.

    Returns:
        The sample.
    """
    options = WriteOptions()
    options.sync = syncs
    keys = [number.to_bytes(KEY_BYTES, "big") for number in range(len(payloads))]
    taken: list[int] = []

    def work(first: int) -> None:
        clock, put = time.perf_counter_ns, store._db.put
        own: list[int] = []
        items = zip(keys[first::threads_count], payloads[first::threads_count], strict=True)
        for key, payload in items:
            started = clock()
            if syncs:
                put(key, payload, options)
            else:
                put(key, payload)
            own.append(clock() - started)
        taken.extend(own)

    started = time.perf_counter()
    if threads_count == 1:
        work(0)
    else:
        threads = [threading.Thread(target=work, args=(one,)) for one in range(threads_count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = time.perf_counter() - started
    assert len(taken) == len(payloads)
    taken.sort()
    p50, p99 = (float(taken[int(len(taken) * share)]) for share in (0.5, 0.99))
    return {"seconds": seconds, "p50_ns": p50, "p99_ns": p99}


def answer(values: dict[str, object]) -> None:
    """Writes a line of JSON.

    Args:
        values: What it says.
    """
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
