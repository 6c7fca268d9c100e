"""Codec "auto": no slower than raw where nothing can be saved, as fast as the best on slow links.

The rate of a link is that of `throttle.py`; before it is used, the relay has to show that without a
limit it passes twice as much.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from compare import Figure, Goal, Group, Missing, digits, progress, ratio
from contest import HERE, NatsContext, Side, best, contest
from vecmq._options import CODECS
from vecmq.bench.contender import Contender
from vecmq.bench.runner import MIB

SIZE_BYTES: Final = MIB
LOOPBACK_MSGS: Final = 500
SETS: Final = ("f32", "bf16", "sparse", "random")
# Name, bytes a second, messages of an operation.
LINKS: Final = (("1Gb", 125_000_000, 256), ("200Mb", 25_000_000, 64))
# What shrinks thirtyfold is through before a clock could tell.
SPARSE_MSGS: Final = 256
# Each operation takes as long as the link, not as the code.
FEW_ROUNDS: Final = 3
# What the relay is tried with.
TRIAL_BYTES: Final = 256 * MIB
SPARE: Final = 2

GOALS: Final = {
    "random-auto-raw": Goal(1.03),
    "gauss-auto-raw": Goal(1.03),
    **{f"{data}-auto-{link}": Goal(0.95, ">=") for link, _, _ in LINKS for data in SETS},
}


def coded(
    context: NatsContext,
    data: str,
    codec: str,
    count: int,
    url: str | None = None,
    rate_bytes: int | None = None,
) -> Side:
    """Makes a side that publishes arrays with a codec.

    Args:
        context: Of this run.
        data: Which arrays.
        codec: Of the frames.
        count: Messages.
        url: Of the link; None: none.
        rate_bytes: Its speed, a second.

    Returns:
        The side.
    """
    link = "" if url is None else "-link"
    contender = Contender(codec, (sys.executable, str(HERE / "coded.py")))
    return Side(
        f"{data}-{codec}{link}",
        contender,
        SIZE_BYTES,
        count,
        kind="publish",
        data=data,
        codec=codec,
        publish_url=url,
        link_bytes_per_s=rate_bytes,
        context=context,
    )


def loopback(data: str) -> Group:
    """Makes the row of a set without a link.

    Args:
        data: Which arrays.

    Returns:
        The group.
    """
    name = f"{data}-auto-raw"

    def measure(context: NatsContext) -> dict[str, Figure]:
        count = context.count(LOOPBACK_MSGS, 4)
        auto, raw = (coded(context, data, codec, count) for codec in ("auto", "raw"))
        contest(context, [auto, raw])
        return {name: ratio(auto, raw)}

    return Group((name,), measure)


def through(link: str, rate_bytes: int, full: int, data: str) -> Group:
    """Makes the row of a set through a link.

    Args:
        link: Its name.
        rate_bytes: A second.
        full: Messages at scale 1.
        data: Which arrays.

    Returns:
        The group.
    """
    name = f"{data}-auto-{link}"

    def measure(context: NatsContext) -> dict[str, Figure]:
        count = context.count(full, 4)
        check_capacity(rate_bytes, max(MIB, round(TRIAL_BYTES * context.scale)))
        with throttled(rate_bytes, context.server.url) as url:
            sides = [coded(context, data, codec, count, url, rate_bytes) for codec in CODECS]
            for side in sides:
                side.name += f"-{link}"
            contest(context, sides, min(context.rounds, FEW_ROUNDS))
        auto = next(side for side in sides if side.contender.name == "auto")
        least = best([side for side in sides if side is not auto])
        # Bytes a second: the other way round than seconds.
        value = ratio(least, auto).value
        rates = [SIZE_BYTES * count / side.median("seconds") / 1e6 for side in (auto, least)]
        note = f"{digits(rates[0])} against {digits(rates[1])} MB/s, {least.contender.name}"
        return {name: Figure(value, note)}

    return Group((name,), measure)


@contextmanager
def throttled(rate_bytes: float, url: str) -> Iterator[str]:
    """Starts a relay.

    Args:
        rate_bytes: A second; 0: no limit.
        url: Where it leads.

    Yields:
        Its own address.
    """
    target = urlsplit(url)
    process = subprocess.Popen(
        [
            sys.executable,
            str(HERE / "throttle.py"),
            str(rate_bytes),
            str(target.hostname),
            str(target.port),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"nats://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def check_capacity(rate_bytes: float, trial_bytes: int) -> None:
    """Sees whether the relay without a limit passes twice the rate.

    Args:
        rate_bytes: A second.
        trial_bytes: What it is tried with.

    Raises:
        Missing: It does not.
    """
    got = capacity(trial_bytes)
    progress(f"the relay passes {got / 1e6:.0f} MB/s")
    if got < SPARE * rate_bytes:
        wanted = SPARE * rate_bytes / 1e6
        raise Missing(f"not measured: the relay passes {got / 1e6:.0f} of {wanted:.0f} MB/s")


def capacity(trial_bytes: int) -> float:
    """Measures the relay without a limit.

    Args:
        trial_bytes: What is sent through it.

    Returns:
        Bytes a second.
    """
    sink = socket.create_server(("127.0.0.1", 0))
    with sink, throttled(0, f"nats://127.0.0.1:{sink.getsockname()[1]}") as url:
        source = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0))
        target, _ = sink.accept()
        with source, target:
            sender = threading.Thread(target=source.sendall, args=(bytes(trial_bytes),))
            started = time.perf_counter()
            sender.start()
            left, buffer = trial_bytes, bytearray(MIB)
            while left and (count := target.recv_into(buffer)):
                left -= count
            seconds = time.perf_counter() - started
            sender.join()
    return trial_bytes / seconds


GROUPS: Final[Sequence[Group]] = [
    *(loopback(data) for data in ("random", "gauss")),
    *(
        through(link, rate, SPARSE_MSGS if data == "sparse" else full, data)
        for link, rate, full in LINKS
        for data in SETS
    ),
]
