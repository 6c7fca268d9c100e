"""`make bench-nats`: it measures, says what is missing, and its tools count right."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOALS = ROOT / "benches" / "nats_goals"
SMALL = ("--scale", "0.01", "--rounds", "1")
KIB, MIB = 1 << 10, 1 << 20


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


memcount = load(GOALS / "memcount.py")
throttle = load(GOALS / "throttle.py")
compare = load(ROOT / "benches" / "goals" / "compare.py")


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(GOALS), "--path", str(tmp_path), *arguments],
        env=os.environ | {"VECMQ_CACHE_DIR": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bench(tmp_path: Path, *arguments: str) -> tuple[int, list[str], str]:
    with start(tmp_path, *arguments) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err


@pytest.mark.skipif(shutil.which("cc") is None, reason="the counter is compiled where it is used")
def test_a_row_has_a_figure_a_goal_and_a_verdict(tmp_path: Path) -> None:
    document = tmp_path / "rows.json"
    code, lines, err = bench(tmp_path, *SMALL, "--only", "copies-1MB", "--json", str(document))
    assert code == 0, err
    (line,) = lines
    name, value, side, limit, verdict, *_ = line.split()
    assert (name, side, limit) == ("copies-1MB", "<=", "0")
    assert verdict == ("met" if float(value) == 0 else "missed")
    values = json.loads(document.read_text())
    assert values["rows"]["copies-1MB"]["value"] == pytest.approx(float(value), abs=0.05)
    assert set(values["samples"]) == {"copies-1MB"}
    document.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_not_built_is_a_row_that_says_so(tmp_path: Path) -> None:
    names = ["5MB-publish-nats-py", "5MB-pubsub-natsmq", "cpu-sent"]
    code, lines, err = bench(tmp_path, *SMALL, "--only", *names)
    assert code == 0, err
    assert [line.split()[0] for line in lines] == names
    assert all(line.endswith("not measured: run make peers") for line in lines)


def test_a_bare_side_receives_what_it_sent(tmp_path: Path) -> None:
    code, lines, err = bench(tmp_path, *SMALL, "--only", "1KB-async-nats")
    assert code == 0, err
    assert len(lines) == 1
    assert "each 1: " in err


@pytest.mark.parametrize("arguments", [("--scale", "0"), ("--rounds", "0"), ("--only", "none")])
def test_bad_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, lines, _ = bench(tmp_path, *arguments)
    assert code == 2
    assert lines == []


def test_an_interrupt_keeps_what_there_is(tmp_path: Path) -> None:
    document = tmp_path / "rows.json"
    rounds = ("--scale", "0.001", "--rounds", "100")
    only = ("--only", "5MB-pubsub-natsmq", "1KB-async-nats", "--json", str(document))
    with start(tmp_path, *rounds, *only) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert first.split()[0] == "5MB-pubsub-natsmq"
    assert process.returncode == 130, err
    assert out == ""
    assert set(json.loads(document.read_text())["rows"]) == {"5MB-pubsub-natsmq"}
    document.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("side", "value", "is_met"),
    [
        ("<=", 0.94, True),
        ("<=", 0.95, True),
        ("<=", 0.954, True),
        ("<=", 0.96, False),
        (">=", 0.96, True),
        (">=", 0.94, False),
    ],
)
def test_what_is_shown_is_what_is_judged(side: str, value: float, *, is_met: bool) -> None:
    words = compare.Goal(0.95, side).verdict(compare.Figure(value)).split()
    assert words[:3] == [f"{value:.2f}", side, "0.95"]
    assert words[3] == ("met" if is_met else "missed")


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    contender = compare.Contender("none")
    mine, theirs = (compare.Member(name, contender, 8, 1) for name in ("a", "b"))
    mine.samples = [{"seconds": seconds} for seconds in (1.0, 9.0, 3.0)]
    theirs.samples = [{"seconds": seconds} for seconds in (2.0, 3.0, 3.0)]
    assert compare.ratio(mine, theirs).value == 1.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("rate_bytes", [125_000_000, 25_000_000])
@pytest.mark.parametrize("step", [lambda _: 0.0, lambda source: source.uniform(0, 0.004)])
def test_a_bucket_lets_through_its_rate(
    rate_bytes: int, step: Callable[[random.Random], float]
) -> None:
    """Whoever reads now and then, or as fast as he can, gets the rate and no more."""
    clock, source = Clock(), random.Random(rate_bytes)
    bucket = throttle.Bucket(rate_bytes, clock)
    passed, started = 0, clock.now_s
    while clock.now_s - started < 10:
        clock.now_s += step(source)
        count = source.randint(1, throttle.CHUNK_BYTES)
        clock.now_s += bucket.take(count)
        passed += count
    elapsed_s = clock.now_s - started
    assert passed <= rate_bytes * (elapsed_s + throttle.BURST_S)
    if step(source) == 0:
        assert passed >= 0.99 * rate_bytes * elapsed_s


def test_a_pause_gives_no_credit_beyond_the_burst() -> None:
    clock = Clock()
    bucket = throttle.Bucket(1_000_000, clock)
    clock.now_s += 60
    assert bucket.take(1_000_000) == pytest.approx(1 - throttle.BURST_S)


def test_the_relay_passes_every_byte_both_ways() -> None:
    payload = random.Random(1).randbytes(3 * MIB)
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, str(GOALS / "throttle.py"), "1e9", "127.0.0.1"]
        command.append(str(server.getsockname()[1]))
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as relay:
            assert relay.stdout is not None
            near = socket.create_connection(("127.0.0.1", int(relay.stdout.readline())))
            far, _ = server.accept()
            with near, far:
                for source, target in ((near, far), (far, near)):
                    sender = threading.Thread(target=source.sendall, args=(payload,))
                    sender.start()
                    got = b""
                    while len(got) < len(payload):
                        got += target.recv(MIB)
                    sender.join()
                    assert got == payload
            relay.communicate(timeout=10)
    assert relay.returncode == 0


COPIES = """
import sys
sys.path.insert(0, sys.argv[1])
import memcount
import numpy as np
for size in map(int, sys.argv[2:]):
    source = bytes(size)
    target = np.ones(size, np.uint8)
    before = memcount.counted_bytes()
    for _ in range(3):
        bytearray(source)
    target[:] = np.frombuffer(source, np.uint8)
    print(memcount.counted_bytes() - before, int(target.sum()))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="the counter is compiled where it is used")
def test_the_counter_counts_known_copies(tmp_path: Path) -> None:
    library = memcount.build(tmp_path)
    sizes = [64 * KIB - 1, 64 * KIB, MIB, 5 * MIB]
    done = subprocess.run(
        [sys.executable, "-c", COPIES, str(GOALS), *map(str, sizes)],
        env=memcount.preloaded(library),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [int(copied) for copied, _ in lines] == [0, *(4 * size for size in sizes[1:])]
    # They were made as well.
    assert all(total == "0" for _, total in lines)


FRAMES = """
import sys
sys.path.insert(0, sys.argv[1])
import memcount
from vecmq._native import GroupAssembler, make_frames
payload = memoryview(bytes(1 << 20))
before = memcount.counted_bytes()
frames = make_frames(payload, None, 1, None, bytes(16), 1, 1, 1 << 18, "raw")
cut = memcount.counted_bytes()
assembler = GroupAssembler(1 << 20)
whole = [assembler.accept(dict(fields), body) for fields, body in frames][-1]
print(cut - before, memcount.counted_bytes() - cut, whole[0] == payload)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="the counter is compiled where it is used")
def test_the_counter_sees_copies_that_rust_makes(tmp_path: Path) -> None:
    """Frames of a raw payload are views of it; putting them together again is one copy."""
    library = memcount.build(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRAMES, str(GOALS)],
        env=memcount.preloaded(library),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", str(MIB), "True"]
