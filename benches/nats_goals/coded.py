"""Arrays published with a codec, as a worker of `make bench-nats`; docs/bench-workers.md.

The workload is "publish": until the last receipt, then everything is read back, off the clock and
not through the link, and compared bit by bit. `data` names the arrays, `publish_url` the link.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

import nats
import numpy as np

import vecmq
import vecmq.sync
from vecmq.demo import vectors
from vecmq.errors import Error

FETCH_MSGS: Final = 16
STALL_S: Final = 30.0
TIMEOUT_S: Final = 120.0
SPARSE_SHARE: Final = 0.02


def make(data: str, size_bytes: int, count: int, seed: int) -> list[Any]:
    """Makes the arrays.

    Args:
        data: "f32", "bf16" (real embeddings), "gauss", "sparse" or "random" (float32).
        size_bytes: Of each.
        count: How many.
        seed: Chooses where the real ones begin, and the others.

    Returns:
        Arrays that differ.
    """
    source = np.random.default_rng(seed)
    if data in ("f32", "bf16"):
        whole = vectors.load().vectors.ravel()
        words = size_bytes // (4 if data == "f32" else 2)
        starts = source.integers(0, whole.size - 1, count)
        cut = [np.take(whole, np.arange(start, start + words), mode="wrap") for start in starts]
        if data == "f32":
            return cut
        import ml_dtypes

        return [one.astype(ml_dtypes.bfloat16) for one in cut]
    words = size_bytes // 4
    if data == "random":
        bits = source.integers(0, 1 << 32, (count, words), np.uint32)
        return list(bits.view(np.float32))
    normal = source.standard_normal((count, words), np.float32)
    if data == "sparse":
        normal[source.random((count, words), np.float32) >= SPARSE_SHARE] = 0
    return list(normal)


class Operation:
    """A topic, the arrays, and where they go.

    Args:
        spec: The first line.
        number: Of the operation.
    """

    def __init__(self, spec: dict[str, Any], number: int) -> None:
        self.topic = f"bench-{number}"
        server, codec = spec["server"], spec["codec"]
        arrays = make(spec["data"], spec["size_bytes"], spec["count"], number)
        self._arrays = arrays
        # The relay has an address of this host: "auto" has to be told what it stands for.
        url, rate = spec["publish_url"] or server["url"], spec["link_bytes_per_s"]
        self._publishing = connect(url, server["token"], codec, rate)
        self._receiving = connect(server["url"], server["token"], "raw", None)
        self._publisher = self._publishing.publisher(self.topic)

    def run(self) -> dict[str, Any]:
        """Publishes, then reads back.

        Returns:
            The sample.
        """
        started = time.perf_counter()
        receipts = self._publisher.publish_many(self._arrays, timeout_s=TIMEOUT_S)
        seconds = time.perf_counter() - started
        received, wrong = self._read_back()
        return {
            "seconds": seconds,
            "wire_bytes": sum(receipt.wire_bytes for receipt in receipts),
            "levels": sorted({receipt.level for receipt in receipts}),
            "received_count": received,
            "lost_count": len(self._arrays) - received,
            "wrong_count": wrong,
            "duplicate_count": 0,
            "unordered_count": 0,
        }

    def close(self) -> None:
        """Closes both handles."""
        self._publishing.close()
        self._receiving.close()

    def _read_back(self) -> tuple[int, int]:
        """Receives in order: whatever is not the next array is wrong."""
        received = wrong = 0
        with self._receiving.subscribe(self.topic, "bench") as subscriber:
            while received < len(self._arrays):
                batch = subscriber.fetch(FETCH_MSGS, timeout_s=STALL_S)
                if not batch:
                    break
                for message in batch:
                    expected = self._arrays[received].view(np.uint8)
                    got = np.frombuffer(message.payload, np.uint8)
                    wrong += not np.array_equal(got, expected)
                    received += 1
                batch.ack()
        return received, wrong


def connect(url: str, token: str, codec: Any, link_bytes_per_s: int | None) -> vecmq.sync.Handle:
    """Opens a handle.

    Args:
        url: Of the server, or of the link.
        token: Of the server.
        codec: Of the frames.
        link_bytes_per_s: Speed of the link; None: a server of this host.

    Returns:
        The handle.
    """
    options = vecmq.NatsOptions(url, token=token, link_bytes_per_s=link_bytes_per_s)
    return vecmq.sync.open(mode="nats", nats=options, codec=codec)


async def delete(server: dict[str, Any], topic: str) -> None:
    """Deletes a topic; mode "nats" does not.

    Args:
        server: Its address.
        topic: Its name.
    """
    client = await nats.connect(server["url"], token=server["token"])
    await client.jetstream(timeout=TIMEOUT_S).delete_stream(topic)
    await client.close()


def main() -> int:
    """Takes commands from stdin until its end.

    Returns:
        Exit code.
    """
    spec = json.loads(sys.stdin.readline())
    operation: Operation | None = None
    try:
        answer({"ready": True, "versions": {}, "server_pids": [], "batch": None})
        for line in sys.stdin:
            match line.split():
                case ["prepare", number]:
                    if operation is not None:
                        operation.close()
                        asyncio.run(delete(spec["server"], operation.topic))
                    operation = Operation(spec, int(number))
                    answer({"prepared": True})
                case _:
                    assert operation is not None
                    answer(operation.run())
    except (Error, vectors.DemoDataError) as error:
        answer({"error": type(error).__name__, "message": str(error)})
        return 1
    finally:
        if operation is not None:
            operation.close()
    return 0


def answer(values: dict[str, Any]) -> None:
    """Writes a line of JSON.

    Args:
        values: What it says.
    """
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
