"""The disk under the queue: full and growing again, read-only, forbidden, damaged, owned."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import vecmq
import vecmq.sync
from cluster_tools import wait_for
from fault_tools import run, start, times
from vecmq.cli import main
from vecmq.cli.base import EXIT_CONNECT, EXIT_FAILED

KIB = 1024
MIB = 1024 * KIB
NOBODY = "65534"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB. Without the right to mount one this fails: nothing is skipped."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def grow(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=256m", str(path)], check=True)


def body(seq: int, size_bytes: int) -> bytes:
    return np.random.default_rng(seq).bytes(size_bytes)


@pytest.mark.parametrize("size_bytes", [1 * KIB, 100 * KIB])
def test_a_full_disk_is_an_error_and_appends_go_on_when_it_grows(
    small_disk: Path, size_bytes: int
) -> None:
    acked: dict[int, int] = {}
    refused = 0
    with vecmq.sync.open(small_disk / "mq", mode="queue") as mq:
        publisher, subscriber = mq.publisher("t"), mq.subscribe("t", group="g")
        number = 0
        for _ in range(100_000):
            number += 1
            began = time.monotonic()
            try:
                acked[publisher.publish(body(number, size_bytes)).seq] = number
            except vecmq.StorageError:
                refused_after_s = time.monotonic() - began
                refused += 1
                break
        assert refused == 1
        # Reads go on.
        messages = subscriber.fetch(min(len(acked), 50), timeout_s=10)
        assert all(bytes(m.payload) == body(acked[m.seq], size_bytes) for m in messages)
        grow(small_disk)
        began = time.monotonic()
        while time.monotonic() - began < 30:
            number += 1
            try:
                acked[publisher.publish(body(number, size_bytes)).seq] = number
                break
            except vecmq.StorageError:
                refused += 1
                time.sleep(0.05)
        resumed_after_s = time.monotonic() - began
        for _ in range(20):
            number += 1
            acked[publisher.publish(body(number, size_bytes)).seq] = number
    report = vecmq.check(small_disk / "mq")
    assert (report.faults, report.leftovers) == ((), ())
    lost = lost_of(small_disk / "mq", acked, size_bytes)
    print(
        f"{size_bytes} bytes: acknowledged {len(acked)}, refused {refused} (first after "
        f"{refused_after_s:.3f} s), appends went on {resumed_after_s:.2f} s after the disk grew, "
        f"lost {lost}"
    )
    assert lost == 0


def lost_of(path: Path, acked: dict[int, int], size_bytes: int) -> int:
    """Acknowledged messages that are not there or not equal, after a reopen."""
    found: dict[int, bytes] = {}
    with vecmq.sync.open(path, mode="queue") as mq:
        subscriber = mq.subscribe("t", group="verify")
        while batch := subscriber.fetch(500, timeout_s=0.3):
            found |= {message.seq: bytes(message.payload) for message in batch}
    assert sorted(found) == list(range(1, len(found) + 1))
    return sum(found.get(seq) != body(number, size_bytes) for seq, number in acked.items())


FILL = """
import sys, vecmq, vecmq.sync
import numpy as np
mq = vecmq.sync.open(sys.argv[1], mode="queue")
publisher = mq.publisher("t")
number = 0
while True:
    number += 1
    try:
        seq = publisher.publish(np.random.default_rng(number).bytes(int(sys.argv[2]))).seq
        print(seq, number, flush=True)
    except vecmq.StorageError:
        print("full", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("size_bytes", [1 * KIB, 100 * KIB])
def test_a_kill_at_the_moment_of_a_full_disk_loses_nothing(
    small_disk: Path, size_bytes: int
) -> None:
    child = start(FILL, small_disk / "mq", str(size_bytes))
    acked: dict[int, int] = {}
    while (line := child.line()) != "full":
        assert line, child.finish()
        seq, number = line.split()
        acked[int(seq)] = int(number)
    child.process.kill()
    child.finish()
    grow(small_disk)
    lost = lost_of(small_disk / "mq", acked, size_bytes)
    print(f"{size_bytes} bytes: killed with a full disk, acknowledged {len(acked)}, lost {lost}")
    assert acked
    assert lost == 0


@pytest.mark.parametrize("size_bytes", [1 * KIB, 300 * KIB])
def test_an_event_loop_goes_on_while_the_disk_is_full(small_disk: Path, size_bytes: int) -> None:
    """Its longest pause is the price of one refused write, not of the disk's recovery."""

    async def work() -> tuple[int, int, float]:
        acked = acked_after = refused = 0
        longest = 0.0
        stop = False

        async def beat() -> None:
            nonlocal longest
            while not stop:
                began = time.monotonic()
                await asyncio.sleep(0.005)
                longest = max(longest, time.monotonic() - began - 0.005)

        async with vecmq.open(small_disk / "mq", mode="queue") as mq:
            publisher = mq.publisher("t")
            beating = asyncio.create_task(beat())
            grown = False
            while refused == 0 or acked_after < 5:
                try:
                    await publisher.publish(body(acked, size_bytes))
                    acked += 1
                    acked_after += grown
                except vecmq.StorageError:
                    refused += 1
                    if refused == 5:
                        grow(small_disk)
                        grown = True
                    await asyncio.sleep(0.02)
            stop = True
            await beating
        return acked, refused, longest

    acked, refused, longest = asyncio.run(work())
    print(
        f"event loop, {size_bytes} bytes: acknowledged {acked}, refused {refused}, "
        f"longest pause {longest:.3f} s"
    )
    assert acked > 5
    assert refused >= 5


def test_an_ack_that_its_owner_cannot_save_is_raised_by_the_next_call(small_disk: Path) -> None:
    """An attached subscriber's acknowledgement is not answered; nor is its failure silent."""
    path, count = small_disk / "mq", 50
    with vecmq.sync.open(path, mode="queue") as mq, vecmq.sync.attach(path) as attached:
        publisher, subscriber = mq.publisher("t"), attached.subscribe("t", "g")
        publisher.publish_many([body(seq, KIB) for seq in range(count)])
        messages = subscriber.fetch(count, timeout_s=10)
        assert len(messages) == count
        while succeeds(lambda: publisher.publish(bytes(10 * KIB))):
            pass
        told = 0
        while succeeds(messages[told].ack):
            told += 1
            time.sleep(0.02)
        grow(small_disk)
        wait_for(lambda: succeeds(lambda: publisher.publish(b"room")))
        # What was told is saved with the next one; the call that raised told nothing.
        for message in messages[told:]:
            wait_for(partial(succeeds, message.ack))
        wait_for(lambda: mq.groups("t")[0].next_seq == messages[-1].seq + 1)
    with vecmq.sync.open(path, mode="queue") as mq:
        (group,) = mq.groups("t")
    print(f"told {told} acks before the error, saved in the end {group.next_seq - 1} of {count}")
    assert group.next_seq == messages[-1].seq + 1


def succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except vecmq.StorageError:
        return False
    return True


OPEN = """
import os, sys, vecmq, vecmq.sync
if len(sys.argv) > 2:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
try:
    vecmq.sync.open(sys.argv[1], mode="queue")
except vecmq.Error as error:
    print(type(error).__name__)
"""


def test_a_directory_that_may_not_be_written_is_a_typed_error(tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents[:-1]]:
        directory.chmod(directory.stat().st_mode | 0o011)
    code, out, err = run(OPEN, tmp_path / "mq", NOBODY)
    assert (code, out.strip()) == (0, "ConfigError"), err
    assert not (tmp_path / "mq").exists()
    # One that is there, and another's.
    with vecmq.sync.open(tmp_path / "own", mode="queue") as mq:
        mq.publisher("t").publish(b"x")
    before = sorted(path.name for path in (tmp_path / "own").rglob("*"))
    code, out, err = run(OPEN, tmp_path / "own", NOBODY)
    assert (code, out.strip()) in [(0, "StorageError"), (0, "ConfigError")], err
    assert sorted(path.name for path in (tmp_path / "own").rglob("*")) == before


def test_a_read_only_file_system_is_a_typed_error(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises((vecmq.StorageError, vecmq.ConfigError)):
        vecmq.sync.open(small_disk / "mq", mode="queue")
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with vecmq.sync.open(small_disk / "mq", mode="queue") as mq:
        mq.publisher("t").publish(b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(vecmq.StorageError):
        vecmq.sync.open(small_disk / "mq", mode="queue")


def test_the_second_process_is_told_who_owns_the_directory(tmp_path: Path) -> None:
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        publisher = mq.publisher("t")
        publisher.publish(b"1")
        began = time.monotonic()
        tries = times(3)
        for _ in range(tries):
            script = OPEN.replace("print(type(error).__name__)", "print(error)\n    raise")
            code, out, err = run(script, tmp_path / "mq")
            assert code == 1
            assert "LockedError" in err
            assert re.search(rf"\b{os.getpid()}\b", out)
        print(f"second openers {tries}, refused {tries}, {time.monotonic() - began:.2f} s in all")
        with pytest.raises(vecmq.LockedError):
            vecmq.check(tmp_path / "mq")
        assert main(["queue", "check", str(tmp_path / "mq")]) == EXIT_CONNECT
        publisher.publish(b"2")
        received = mq.subscribe("t", "g").fetch(2, timeout_s=5)
        assert [bytes(message.payload) for message in received] == [b"1", b"2"]


def fill(path: Path) -> None:
    with vecmq.sync.open(path, mode="queue") as mq:
        publisher = mq.publisher("t")
        publisher.publish(b"small", headers={"key": "value"})
        publisher.publish_rows(np.arange(64, dtype=np.float32).reshape(8, 8))
        publisher.publish_many([body(seq, 700) for seq in range(10)])
        publisher.publish(np.frombuffer(body(1, 40 * KIB), dtype=np.uint8))
        subscriber = mq.subscribe("t", group="g")
        subscriber.fetch(3, timeout_s=5).ack()


def test_queue_check_prints_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "mq")
    assert main(["queue", "check", str(tmp_path / "mq")]) == 0
    assert "sound" in capsys.readouterr().out
    assert main(["queue", "check", str(tmp_path / "mq"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    [topic] = report["topics"]
    assert (topic["name"], topic["messages"], topic["first_seq"]) == ("t", 20, 1)
    assert topic["groups"].keys() == {"g"}
    assert report["faults"] == []
    assert main(["queue", "check", str(tmp_path / "nothing")]) == EXIT_CONNECT
    assert main(["queue", "check"]) == 2


def test_damage_in_a_value_file_is_found_and_never_delivered(tmp_path: Path) -> None:
    fill(tmp_path / "whole")
    [file] = (tmp_path / "whole" / "queue" / "values").iterdir()
    content = file.read_bytes()
    undetected = cases = 0
    positions = range(len(content) - 1, 0, -(len(content) // times(40)))
    for position in positions:
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "whole", copy)
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        cut = position % 2 == 0
        (copy / "queue" / "values" / file.name).write_bytes(
            content[:position] if cut else bytes(damaged)
        )
        cases += 1
        faults = vecmq.check(copy).faults
        undetected += not faults
        if cases == 1:
            assert main(["queue", "check", str(copy)]) == EXIT_FAILED
            [fault] = faults
            assert fault.topic == "t"
            assert fault.seq == 20
            assert fault.file == str(copy / "queue" / "values" / file.name)
        with vecmq.sync.open(copy, mode="queue") as mq:
            subscriber = mq.subscribe("t", group="all")
            seen = len(subscriber.fetch(19, timeout_s=5))
            while seen < 19:
                seen += len(subscriber.fetch(19 - seen, timeout_s=5))
            with pytest.raises(vecmq.CorruptError):
                subscriber.fetch(1, timeout_s=5)
        shutil.rmtree(copy)
    print(f"value file: cases {cases}, undetected {undetected}, delivered damaged 0")
    assert undetected == 0


PUBLISH = """
import sys, vecmq.sync
import numpy as np
mq = vecmq.sync.open(sys.argv[1], mode="queue")
print("repaired", mq.recovery.repaired, flush=True)
publisher = mq.publisher("t")
number = int(sys.argv[2])
while True:
    number += 1
    kind = number % 4
    if kind == 0:
        rows = np.full((200, 8), number, dtype=np.int64)
        receipt = publisher.publish_rows(rows)
        print(receipt.seq, receipt.rows_count, number, flush=True)
    elif kind == 1:
        receipts = publisher.publish_many([np.full(8, number, dtype=np.int64)] * 20)
        print(receipts[0].seq, len(receipts), number, flush=True)
    else:
        count = 8 if kind == 2 else 5000
        receipt = publisher.publish(np.full(count, number, dtype=np.int64))
        print(receipt.seq, 1, number, flush=True)
"""


def test_a_killed_publisher_loses_nothing_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "mq"
    acked: dict[int, int] = {}
    kills, number, first, duplicated, skipped = times(5), 0, 1, 0, 0
    read = 0
    for kill in range(kills):
        child = start(PUBLISH, path, str(number))
        lines = [child.line()]
        threading.Timer(0.05 + 0.02 * (kill % 10), child.process.kill).start()
        _, out, err = child.finish()
        lines += out.splitlines(keepends=False)
        assert lines[0].startswith("repaired"), err
        for line in lines[1:]:
            if len(words := line.split()) == 3:
                seq, count, number = map(int, words)
                duplicated += sum(one in acked for one in range(seq, seq + count))
                acked |= dict.fromkeys(range(seq, seq + count), number)
        with vecmq.sync.open(path, mode="queue") as mq:
            subscriber = mq.subscribe("t", group="verify")
            while batch := subscriber.fetch(2000, timeout_s=0.2):
                for message in batch:
                    skipped += message.seq - first
                    first = message.seq + 1
                    read += 1
                    expected = acked.get(message.seq)
                    values = message.array()
                    assert (values == values.flat[0]).all()
                    assert expected in (None, values.flat[0])
                batch.ack()
        number += 1000
    lost = sum(seq >= first for seq in acked)
    print(
        f"kills {kills}, acknowledged {len(acked)}, read {read}, lost {lost}, "
        f"duplicated {duplicated}, silently skipped {skipped}"
    )
    assert acked
    assert (lost, duplicated, skipped) == (0, 0, 0)
    assert vecmq.check(path).faults == ()


def test_an_open_says_what_it_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vecmq")
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        assert mq.recovery is not None
        assert mq.recovery.created
        assert not mq.recovery.repaired
    fill(tmp_path / "mq")
    child = start(PUBLISH, tmp_path / "mq", "0")
    assert child.line() == "repaired False"
    child.line()
    child.process.kill()
    child.finish()
    # What a kill in the middle of a large publish leaves; a late one finds a second file begun.
    *_, file = sorted((tmp_path / "mq" / "queue" / "values").iterdir())
    with open(file, "ab") as stream:
        stream.write(b"torn" * 100)
    # The kill itself may have come in the middle of one, too.
    [left] = vecmq.check(tmp_path / "mq").leftovers
    assert left.file == str(file)
    assert left.position is not None
    torn_bytes = file.stat().st_size - left.position
    assert torn_bytes >= 400
    caplog.clear()
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        recovery = mq.recovery
        assert recovery is not None
        assert recovery.closed is False
        assert recovery.repaired
        assert recovery.topics[0].dropped_bytes == torn_bytes
        assert recovery.wal_writes > 0
    records = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(records) == 1
    with vecmq.sync.open(tmp_path / "mq", mode="queue") as mq:
        assert mq.recovery is not None
        assert mq.recovery.closed
        assert not mq.recovery.repaired
