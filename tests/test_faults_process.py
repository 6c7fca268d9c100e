"""The process over the queue: exits, forks, Ctrl-C and cancellation with publishes pending."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from fault_tools import start, times

KIB = 1024


def read_all(path: Path, group: str) -> list[int]:
    """Read a topic to its end; give the number that each message begins with, in order."""
    numbers: list[int] = []
    with vecmq.sync.open(path, mode="queue") as mq:
        subscriber = mq.subscribe("t", group=group)
        first = 1
        while batch := subscriber.fetch(1000, timeout_s=0.2):
            for message in batch:
                assert message.seq == first, "a hole"
                first += 1
                numbers.append(int(np.frombuffer(message.payload[:8], dtype=np.int64)[0]))
    return numbers


EXIT = """
import asyncio, os, sys, threading, time
import numpy as np, vecmq, vecmq.sync

path, way, api = sys.argv[1:4]

def payload(number):
    # Every third goes to the queue's own thread.
    out = np.zeros(40_000 if number % 3 == 0 else 16, dtype=np.int64)
    out[0] = number
    return out

told = []

def tell(number):
    os.write(1, f"{number}\\n".encode())
    told.append(number)

def leave():
    if way == "exit":
        sys.exit(7)
    if way == "raise":
        raise RuntimeError("on purpose")
    if way == "_exit":
        os._exit(9)

def work_sync(mq):
    publisher = mq.publisher("t")
    for number in range(1, 10_000):
        publisher.publish(payload(number))
        tell(number)

async def publish(publisher, number):
    await publisher.publish(payload(number))
    tell(number)

async def main():
    mq = await vecmq.open(path, mode="queue")
    publisher = mq.publisher("t")
    tasks = [asyncio.create_task(publish(publisher, number)) for number in range(1, 200)]
    while tasks[20].done() is False:
        await asyncio.sleep(0)
    leave()

if api == "asyncio":
    asyncio.run(main())
else:
    mq = vecmq.sync.open(path, mode="queue")
    threads = [threading.Thread(target=work_sync, args=(mq,), daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    while not told:
        time.sleep(0.001)
    leave()
"""
CODES = {"return": 0, "exit": 7, "raise": 1, "_exit": 9}


@pytest.mark.parametrize("api", ["threads", "asyncio"])
@pytest.mark.parametrize("way", sorted(CODES))
def test_an_exit_with_publishes_pending_keeps_its_code(tmp_path: Path, way: str, api: str) -> None:
    acknowledged = lost = wrong = 0
    runs = times(2)
    for number in range(runs):
        path = tmp_path / str(number)
        child = start(EXIT, path, way, api)
        code, out, err = child.finish()
        wrong += code != CODES[way]
        assert code == CODES[way], err
        told = Counter(map(int, out.split()))
        stored = Counter(read_all(path, "verify"))
        acknowledged += told.total()
        lost += (told - stored).total()
        assert vecmq.check(path).faults == ()
    print(
        f"{way} {api}: exits {runs}, crashed or hung 0, wrong codes {wrong}, "
        f"acknowledged {acknowledged}, lost {lost}"
    )
    assert acknowledged > 0
    assert lost == 0


def child_is_refused(
    calls: dict[str, Callable[[], object]], results: multiprocessing.Queue[str]
) -> None:
    """In a forked child: every use is refused."""
    for name, call in calls.items():
        try:
            call()
            results.put(f"{name} was allowed")
        except vecmq.ForkError:
            results.put("ForkError")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_forks_are_refused_and_cost_the_parent_nothing(tmp_path: Path, way: str) -> None:
    path = tmp_path / "mq"
    acked: list[int] = []
    stop = threading.Event()
    forks = times(5)
    slowest = 0.0
    with vecmq.sync.open(path, mode="queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", group="g")
        publisher.publish(np.zeros(2, dtype=np.int64))
        message = subscriber.fetch(1, timeout_s=5)[0]

        def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                publisher.publish(np.full(40_000 if number % 9 == 0 else 16, number))
                acked.append(number)

        thread = threading.Thread(target=work)
        thread.start()
        calls: dict[str, Callable[[], object]] = {
            "publish": lambda: publisher.publish(b"child"),
            "fetch": lambda: subscriber.fetch(1, timeout_s=1),
            "ack": lambda: message.ack(),
            "topics": lambda: mq.topics(),
        }
        for _ in range(forks):
            began = time.monotonic()
            if way == "fork":
                assert fork_once(calls) == len(calls)
            else:
                context = multiprocessing.get_context("fork")
                results: multiprocessing.Queue[str] = context.Queue()
                process = context.Process(target=child_is_refused, args=(calls, results))
                process.start()
                assert [results.get(timeout=20) for _ in calls] == ["ForkError"] * len(calls)
                process.join(20)
                assert process.exitcode == 0
            slowest = max(slowest, time.monotonic() - began)
        stop.set()
        thread.join()
    numbers = read_all(path, "verify")
    lost = len(Counter(acked) - Counter(numbers))
    print(
        f"{way}: forks {forks}, hung 0, slowest child {slowest:.2f} s, "
        f"acknowledged by the parent {len(acked)}, lost {lost}"
    )
    assert numbers == [0, *acked]
    assert vecmq.check(path).faults == ()


def fork_once(calls: dict[str, Callable[[], object]]) -> int:
    """Fork a child that uses the handles, drops them and exits; give how often it was refused."""
    pid = os.fork()
    if pid == 0:
        refused = 0
        for call in calls.values():
            try:
                call()
            except vecmq.ForkError:
                refused += 1
        calls.clear()
        gc.collect()
        os._exit(refused)
    watchdog = threading.Timer(20, os.kill, (pid, signal.SIGKILL))
    watchdog.start()
    _, status = os.waitpid(pid, 0)
    watchdog.cancel()
    return os.waitstatus_to_exitcode(status)


class Tracked(np.ndarray):
    """An array that can be watched."""


def tracked(number: int, count: int) -> np.ndarray:
    array = np.full(count, number, dtype=np.int64).view(Tracked)
    array.flags.writeable = False
    return array


def test_cancelled_publishes_are_there_or_not_and_leak_nothing(tmp_path: Path) -> None:
    """A cancelled publish may have been stored: whole, once. Its payload is let go of."""
    path, cancels = tmp_path / "mq", times(600)
    chance = random.Random(7)
    done: list[int] = []
    cancelled: list[int] = []
    watched: list[weakref.ref[np.ndarray]] = []

    async def one(publisher: vecmq.Publisher, number: int) -> None:
        # Over 256 KiB the queue's own thread writes it.
        array = tracked(number, 40_000 if number % 2 else 64)
        watched.append(weakref.ref(array))
        try:
            await publisher.publish(array)
            done.append(number)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async def work() -> int:
        async with vecmq.open(path, mode="queue") as mq:
            publisher = mq.publisher("t")
            for first in range(0, cancels * 2, 20):
                tasks = [asyncio.create_task(one(publisher, first + index)) for index in range(20)]
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                for task in chance.sample(tasks, 10):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            # Publishes go on after all that.
            receipt = await publisher.publish(tracked(-1, 4))
            done.append(-1)
            assert receipt.seq > 0
            return len(asyncio.all_tasks()) - 1

    tasks_left = asyncio.run(work())
    gc.collect()
    buffers_left = sum(ref() is not None for ref in watched)
    numbers = Counter(read_all(path, "verify"))
    lost = sum(number not in numbers for number in done)
    duplicated = sum(count > 1 for count in numbers.values())
    stored = sum(number in numbers for number in cancelled)
    print(
        f"cancelled {len(cancelled)}, of them stored {stored}, acknowledged {len(done)}, "
        f"lost {lost}, duplicated {duplicated}, tasks left {tasks_left}, "
        f"buffers left {buffers_left}"
    )
    assert cancelled
    assert (lost, duplicated, tasks_left, buffers_left) == (0, 0, 0, 0)
    assert set(numbers) <= set(done) | set(cancelled)


INTERRUPT = """
import asyncio, os, sys
import numpy as np, vecmq, vecmq.sync

path, api = sys.argv[1:3]

def payload(number):
    out = np.zeros(40_000 if number % 3 == 0 else 16, dtype=np.int64)
    out[0] = number
    return out

async def main():
    async with vecmq.open(path, mode="queue") as mq:
        publisher = mq.publisher("t")
        number = 0
        while True:
            many = range(number + 1, number + 9)
            async def one(number):
                await publisher.publish(payload(number))
                os.write(1, f"{number}\\n".encode())
            await asyncio.gather(*map(one, many))
            number += 8

def blocking():
    with vecmq.sync.open(path, mode="queue") as mq:
        publisher = mq.publisher("t")
        number = 0
        while True:
            number += 1
            publisher.publish(payload(number))
            os.write(1, f"{number}\\n".encode())

try:
    asyncio.run(main()) if api == "asyncio" else blocking()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_ctrl_c_at_any_moment_ends_the_process_in_order(tmp_path: Path, api: str) -> None:
    acknowledged = lost = closed = 0
    runs = times(5)
    for number in range(runs):
        path = tmp_path / str(number)
        child = start(INTERRUPT, path, api)
        first = child.line()
        time.sleep(0.003 * (number % 20))
        child.process.send_signal(signal.SIGINT)
        code, out, err = child.finish()
        assert code == 130, err
        told = {int(first), *map(int, out.split())}
        with vecmq.sync.open(path, mode="queue") as mq:
            assert mq.recovery is not None
            closed += mq.recovery.closed is True
        stored = Counter(read_all(path, "verify"))
        acknowledged += len(told)
        lost += sum(one not in stored for one in told)
        assert max(stored.values()) == 1
    print(
        f"Ctrl-C {api}: runs {runs}, crashed or hung 0, closed in order {closed}, "
        f"acknowledged {acknowledged}, lost {lost}"
    )
    assert lost == 0
    assert closed == runs


ACK = """
import sys, vecmq.sync
mq = vecmq.sync.open(sys.argv[1], mode="queue")
publisher, subscriber = mq.publisher("t"), mq.subscribe("t", group="g")
seq = 0
while True:
    for batch in range(4):
        publisher.publish_many([b"x" * 100] * 25 + [b"y" * 20_000])
    for message in subscriber.fetch(60, timeout_s=5):
        message.ack()
        print(message.seq, flush=True)
"""


def test_a_killed_subscriber_is_not_given_again_what_it_acknowledged(tmp_path: Path) -> None:
    path, kills = tmp_path / "mq", times(5)
    acknowledged = redelivered = skipped = last = 0
    for kill in range(kills):
        child = start(ACK, path)
        lines = [child.line()]
        threading.Timer(0.03 + 0.01 * (kill % 7), child.process.kill).start()
        _, out, err = child.finish()
        lines += [line for line in out.split("\n")[:-1] if line]
        seqs = [int(line) for line in lines]
        assert seqs, err
        # The last process's acknowledgements count, but for one that it could not tell any more.
        redelivered += seqs[0] <= last
        skipped += seqs[0] > last + 2
        acknowledged += len(seqs)
        last = seqs[-1]
    print(
        f"kills of a subscriber {kills}, acknowledged {acknowledged}, "
        f"redelivered {redelivered}, silently skipped {skipped}"
    )
    assert (redelivered, skipped) == (0, 0)


def test_a_handle_that_is_forgotten_lets_go_of_payloads(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        publisher = mq.publisher("t")
        array = tracked(1, 40_000)
        before = sys.getrefcount(array)
        publisher.publish(array)
        publisher.publish_many([array] * 10)
        assert sys.getrefcount(array) <= before
