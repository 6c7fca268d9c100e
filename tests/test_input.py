"""Bad input gets a typed error before anything is written."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from vecmq._nats_options import from_url
from vecmq._options import Mode


@pytest.fixture
def mq(tmp_path: Path) -> Iterator[vecmq.sync.Handle]:
    with vecmq.sync.open(tmp_path / "mq", mode="queue", message_bytes_max=1000) as handle:
        yield handle


def is_empty(mq: vecmq.sync.Handle) -> bool:
    return not mq.subscribe("t", group="check").fetch(timeout_s=0.05)


def test_payload_over_the_limit(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    publisher.publish(bytes(1000))
    with pytest.raises(vecmq.TooLargeError, match=r"1001 bytes.*1000 bytes"):
        publisher.publish(bytes(1001))
    with pytest.raises(vecmq.TooLargeError):
        publisher.publish_many([b"good", bytes(1001)])
    assert len(mq.subscribe("t", group="g").fetch(timeout_s=1)) == 1


@pytest.mark.parametrize("payload", [None, "text", 3, [1.0, 2.0], {"a": 1}, object()])
def test_what_is_not_a_payload(mq: vecmq.sync.Handle, payload: object) -> None:
    with pytest.raises(vecmq.PayloadError):
        mq.publisher("t").publish(payload)
    assert is_empty(mq)


def test_object_arrays(mq: vecmq.sync.Handle) -> None:
    with pytest.raises(vecmq.PayloadError, match="object"):
        mq.publisher("t").publish(np.array([{}, None], dtype=object))
    assert is_empty(mq)


@pytest.mark.parametrize(
    "topic", ["", "a b", "a.b", "a*", "a>", "a/b", "tab\t", "x" * 300, "\u00e9"]
)
def test_topic_names(mq: vecmq.sync.Handle, topic: str) -> None:
    with pytest.raises(vecmq.InvalidNameError):
        mq.publisher(topic)
    with pytest.raises(vecmq.InvalidNameError):
        mq.subscribe("t", group=topic)
    assert mq.topics() in ([], ["t"])


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Msg-Id": "x"},
        {"vecmq-frame": "x"},
        {"a b": "x"},
        {"a:b": "x"},
        {"": "x"},
        {"a": "line\nbreak"},
        {"a": "x" * 70_000},
        {"a": 3},
        {3: "a"},
        [("a", "b")],
    ],
)
def test_headers_that_do_not_fit(mq: vecmq.sync.Handle, headers: object) -> None:
    with pytest.raises(vecmq.InvalidHeadersError):
        mq.publisher("t").publish(b"x", headers=headers)  # type: ignore[arg-type]
    assert is_empty(mq)


@pytest.mark.parametrize("timeout_s", [-1, 0, math.nan, "5", True])
def test_timeouts(mq: vecmq.sync.Handle, timeout_s: object) -> None:
    with pytest.raises(vecmq.ConfigError):
        mq.publisher("t").publish(b"x", timeout_s=timeout_s)  # type: ignore[arg-type]
    with pytest.raises(vecmq.ConfigError):
        mq.subscribe("t", group="g").fetch(timeout_s=timeout_s)  # type: ignore[arg-type]
    assert is_empty(mq)


def test_routes_and_modes(mq: vecmq.sync.Handle, tmp_path: Path) -> None:
    with pytest.raises(vecmq.ConfigError):
        mq.publisher("t").publish(b"x", route="other")  # type: ignore[arg-type]
    with pytest.raises(vecmq.ConfigError):
        mq.publisher("t").publish(b"x", route="nats")
    for codec, codec_level in (("gzip", None), ("zstd", 20), ("lz4", 1), (None, 3)):
        with pytest.raises(vecmq.ConfigError):
            mq.publisher("t", codec=codec, codec_level=codec_level)  # type: ignore[arg-type]
    for options in (
        {"mode": "both"},
        {"codec": "gzip"},
        {"codec": "zstd1"},
        {"codec": "zstd", "codec_level": 0},
        {"codec": "zstd", "codec_level": 20},
        {"codec": "zstd", "codec_level": "9"},
        {"codec": "planes", "codec_level": 3},
        {"codec_level": 3},
        {"nats": vecmq.NatsOptions("nats://127.0.0.1:1", link_bytes_per_s=0)},
        {"nats": vecmq.NatsOptions("nats://127.0.0.1:1", link_bytes_per_s=2**63)},
        {"level": "enqueued"},
        {"message_bytes_max": 0},
        {"threshold_bytes": -1},
        {"mode": "queue", "nats": "nats://127.0.0.1:1"},
        {"nats": 3},
    ):
        with pytest.raises(vecmq.ConfigError):
            vecmq.sync.open(tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()
    assert is_empty(mq)


def test_rows(mq: vecmq.sync.Handle) -> None:
    publisher = mq.publisher("t")
    for rows in (np.zeros(4), np.zeros((0, 4)), b"bytes", np.float32(1)):
        with pytest.raises(vecmq.PayloadError):
            publisher.publish_rows(rows)
    with pytest.raises(vecmq.PayloadError):
        publisher.publish_many(b"one payload")
    assert publisher.publish_many([]) == []
    assert is_empty(mq)


def test_closed_handles(tmp_path: Path) -> None:
    mq = vecmq.sync.open(tmp_path / "mq", mode="queue")
    publisher, subscriber = mq.publisher("t"), mq.subscribe("t", group="g")
    mq.close()
    mq.close()
    for call in (
        lambda: publisher.publish(b"x"),
        lambda: subscriber.fetch(timeout_s=1),
        lambda: subscriber.ack_through(1),
        lambda: mq.publisher("t"),
        lambda: mq.subscribe("t", "h"),
        lambda: mq.topics(),
    ):
        with pytest.raises(vecmq.ClosedError):
            call()


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    with (
        vecmq.sync.open(tmp_path / "mq", mode="queue"),
        pytest.raises(vecmq.LockedError, match=str(os.getpid())),
    ):
        vecmq.sync.open(tmp_path / "mq", mode="queue")
    vecmq.sync.open(tmp_path / "mq", mode="queue").close()


def test_no_server_there(tmp_path: Path) -> None:
    options = vecmq.NatsOptions(url="nats://127.0.0.1:1", connect_timeout_s=1)
    with pytest.raises(vecmq.NotConnectedError):
        vecmq.sync.open(tmp_path / "mq", nats=options)


def test_secrets_stay_out_of_reprs() -> None:
    options = vecmq.NatsOptions(
        url="nats://h", token="s3cret", password="s3cret", nkey_seed="s3cret"
    )
    assert "s3cret" not in repr(options)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("mode", ["queue", "hybrid"])
def test_a_forked_child_is_refused_and_exits(tmp_path: Path, mode: Mode) -> None:
    with vecmq.sync.open(tmp_path / "mq", mode=mode) as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", group="g")
        publisher.publish(b"before")
        message = subscriber.fetch(timeout_s=5)[0]
        pid = os.fork()
        if pid == 0:
            refused = 0
            for call in (
                lambda: publisher.publish(b"child"),
                lambda: subscriber.fetch(timeout_s=1),
                lambda: message.ack(),
                lambda: mq.topics(),
            ):
                try:
                    call()
                except vecmq.ForkError:
                    refused += 1
            del publisher, subscriber, message
            os._exit(refused)
        watchdog = threading.Timer(20, os.kill, (pid, 9))
        watchdog.start()
        _, status = os.waitpid(pid, 0)
        watchdog.cancel()
        assert os.waitstatus_to_exitcode(status) == 4
        publisher.publish(b"after")
        assert bytes(subscriber.fetch(timeout_s=5)[0].payload) == b"after"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://h:1", vecmq.NatsOptions("nats://h:1")),
        ("nats://t%40k@h:1", vecmq.NatsOptions("nats://h:1", token="t@k")),
        ("tls://u:p%3A@h", vecmq.NatsOptions("tls://h", user="u", password="p:")),
        ("u:p@h", vecmq.NatsOptions("h", user="u", password="p")),
    ],
)
def test_credentials_are_taken_out_of_a_url(url: str, expected: vecmq.NatsOptions) -> None:
    assert from_url(url) == expected
