"""Frames at the edge of what the server takes: no connection is ever closed for size.

Row 21 of the fault matrix. What the server says of it is in its log: "maximum payload violation".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from connect_tools import HOST, Server
from vecmq import NatsOptions

MAX_PAYLOAD = 64 << 10
VIOLATION = "maximum payload"
TIMEOUT_S = 60.0


def config(max_payload: int) -> str:
    return f"max_payload: {max_payload}"


def closes(server: Server) -> int:
    """How often the server closed a connection for size."""
    return server.log().lower().count(VIOLATION)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server", config(MAX_PAYLOAD)) as server:
        yield server


@pytest.fixture
def mq(server: Server, tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    nats = NatsOptions(f"nats://{HOST}:{server.port}")
    with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats, codec="raw") as mq:
        yield mq


def sizes(overhead: int) -> list[int]:
    """M and what a frame's headers leave of it, +-1 byte; the same for two and three frames."""
    edges = {0, 1, overhead, MAX_PAYLOAD}
    for frames in (1, 2, 3):
        edges |= {frames * MAX_PAYLOAD, frames * (MAX_PAYLOAD - overhead)}
        edges |= {frames * MAX_PAYLOAD - overhead}
    return sorted({max(0, edge + step) for edge in edges for step in (-1, 0, 1)})


def overhead(receipt: vecmq.Receipt) -> int:
    return receipt.wire_bytes - receipt.payload_bytes


HEADERS: list[dict[str, str] | None] = [
    None,
    {"k": "v"},
    {f"key-{number}": "x" * 100 for number in range(20)},
    {"long": "y" * 4000},
]


@pytest.mark.parametrize("headers", HEADERS)
def test_bytes_at_every_boundary(
    server: Server, mq: vecmq.sync.Handle, headers: dict[str, str] | None
) -> None:
    publisher = mq.publisher("t")
    exact = overhead(publisher.publish(bytes(MAX_PAYLOAD // 2), headers))
    # The header's numbers grow with the payload: the edge lies within some bytes of the estimate.
    near = [MAX_PAYLOAD - exact - step for step in range(-40, 41)]
    tried = [*sizes(exact), *near]
    payloads = [bytes([size % 251]) * size for size in tried]
    receipts = [publisher.publish(payload, headers, timeout_s=TIMEOUT_S) for payload in payloads]
    assert {receipt.frames_count for receipt in receipts} >= {1, 2, 3}
    check(mq, [bytes(MAX_PAYLOAD // 2), *payloads], headers or {})
    assert closes(server) == 0
    print(f"{len(tried)} payloads, headers of {exact} bytes: closes by the server: 0")


def check(mq: vecmq.sync.Handle, payloads: list[bytes], headers: dict[str, str]) -> None:
    with mq.subscribe("t", "g") as subscriber:
        for expected in payloads:
            (message,) = subscriber.fetch(1, timeout_s=TIMEOUT_S)
            assert bytes(message.payload) == expected
            assert dict(message.headers) == headers
            message.ack()


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4", "f8", "c16"])
def test_arrays_at_every_boundary(server: Server, mq: vecmq.sync.Handle, dtype: str) -> None:
    publisher = mq.publisher("t")
    itemsize = np.dtype(dtype).itemsize
    probe = np.zeros((MAX_PAYLOAD // 2 // itemsize, 1, 1), dtype)
    exact = overhead(publisher.publish(probe))
    counts = sorted({max(1, size // itemsize + step) for size in sizes(exact) for step in (-1, 0)})
    arrays = [np.full((count, 1, 1), count % 100, dtype) for count in counts]
    for array in arrays:
        publisher.publish(array, timeout_s=TIMEOUT_S)
    with mq.subscribe("t", "g") as subscriber:
        for expected in [probe, *arrays]:
            (message,) = subscriber.fetch(1, timeout_s=TIMEOUT_S)
            found = message.array()
            assert found.dtype == expected.dtype
            assert found.shape == expected.shape
            assert (found == expected).all()
            message.ack()
    assert closes(server) == 0
    print(f"{len(counts)} arrays of {dtype}: closes by the server: 0")


def test_packed_rows_at_every_boundary(server: Server, mq: vecmq.sync.Handle) -> None:
    publisher, width = mq.publisher("t"), 16
    row_bytes = 4 * width
    exact = overhead(publisher.publish_rows(np.zeros((100, width), "f4")))
    counts = sorted({max(1, size // row_bytes + step) for size in sizes(exact) for step in (0, 1)})
    total = 100
    for count in counts:
        rows = np.arange(count * width, dtype="f4").reshape(count, width)
        publisher.publish_rows(rows, timeout_s=TIMEOUT_S)
        total += count
    received = 0
    with mq.subscribe("t", "g") as subscriber:
        while received < total:
            messages = subscriber.fetch(4096, timeout_s=TIMEOUT_S)
            assert messages, f"{received} of {total} rows"
            received += len(messages)
    assert received == total
    assert closes(server) == 0
    print(f"{total} rows in {len(counts) + 1} blocks: closes by the server: 0")


def test_headers_that_leave_no_room_are_refused(server: Server, mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    with pytest.raises((vecmq.TooLargeError, vecmq.InvalidHeadersError)):
        publisher.publish(b"x", {"k": "v" * MAX_PAYLOAD})
    publisher.publish(b"x")
    assert closes(server) == 0


def test_a_limit_that_is_lower_after_a_restart(tmp_path: Path) -> None:
    """What is published when the connection is back is cut to the new limit."""
    with Server(tmp_path / "server", config(1 << 20)) as server:
        nats = NatsOptions(f"nats://{HOST}:{server.port}", reconnect_wait_s=0.1)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats, codec="raw") as mq:
            publisher = mq.publisher("t")
            payloads, frames = [], []
            for number, limit in enumerate((1 << 20, 256 << 10, 64 << 10, 512 << 10, 8 << 10)):
                if number > 0:
                    server.restart(config(limit))
                for payload in (b"back", bytes([number]) * 900_000, bytes([number]) * limit):
                    receipt = publisher.publish(payload, timeout_s=TIMEOUT_S)
                    payloads.append(payload)
                frames.append(receipt.frames_count)
            assert frames == [2] * 5
            check(mq, payloads, {})
        assert closes(server) == 0


@pytest.mark.parametrize(("how", "closes_max"), [("restart", 0), ("reload", 1)])
def test_a_limit_that_is_lower_while_messages_are_in_flight(
    tmp_path: Path, how: str, closes_max: int
) -> None:
    """What was cut for the old limit and not acknowledged arrives in smaller frames, once.

    A running server that is told of a lower one (SIGHUP) tells the client, which does not listen:
    the first frame that is too large says it.
    """
    count = 24
    with Server(tmp_path / "server", config(1 << 20)) as server:
        nats = NatsOptions(f"nats://{HOST}:{server.port}", reconnect_wait_s=0.1)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats, codec="raw") as mq:
            publisher = mq.publisher("t")
            publisher.publish(b"begin")
            outcomes: dict[int, object] = {}

            def publish(number: int) -> None:
                try:
                    payload = bytes([number]) * 2_500_000
                    outcomes[number] = publisher.publish(payload, timeout_s=TIMEOUT_S)
                except vecmq.Error as error:
                    outcomes[number] = error

            threads = [threading.Thread(target=publish, args=(one,)) for one in range(count)]
            for thread in threads:
                thread.start()
            getattr(server, how)(config(256 << 10))
            for thread in threads:
                thread.join()
            assert not [one for one in outcomes.values() if not isinstance(one, vecmq.Receipt)]
            publisher.publish(b"end", timeout_s=TIMEOUT_S)
            found = received_until_end(mq)
            assert sorted(found) == list(range(count))
            print(f"{how}: {count} of {count} arrived once; closes by the server: {closes(server)}")
            assert closes(server) <= closes_max


def received_until_end(mq: vecmq.sync.Handle) -> list[int]:
    """The numbers of the messages between "begin" and "end", which are whole."""
    found: list[int] = []
    with mq.subscribe("t", "g") as subscriber:
        while True:
            (message,) = subscriber.fetch(1, timeout_s=TIMEOUT_S)
            payload = bytes(message.payload)
            message.ack()
            if payload == b"end":
                return found
            if payload != b"begin":
                assert payload == payload[:1] * 2_500_000
                found.append(payload[0])
