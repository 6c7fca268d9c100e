"""RocksMQ directories: damage, locks, kills and Ctrl-C in the middle of an import."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cli_tools
import vecmq
import vecmq.sync
from migrate_tools import COPIED, ORPHAN, expected, flip, stored, table, tree, unpack
from vecmq import migrate


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return unpack(tmp_path / "milvus")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "store"


# ---- what is no RocksMQ directory, what is damaged, what is in use


def test_without_metadata_it_is_no_rocksmq_directory(source: Path, into: Path) -> None:
    shutil.rmtree(source.with_name("rocksmq_meta_kv"))
    with pytest.raises(vecmq.ConfigError, match="rocksmq_meta_kv"):
        migrate.import_rocksmq(source, into)
    assert not into.exists()


@pytest.mark.parametrize("name", ["", "none", "rocksmq_meta_kv", "rocksmq/CURRENT"])
def test_other_paths_are_no_rocksmq_directory(source: Path, into: Path, name: str) -> None:
    with pytest.raises(vecmq.ConfigError):
        migrate.import_rocksmq(source.parent / name, into)
    assert not into.exists()


@pytest.mark.parametrize("place", ["rocksmq", "rocksmq/store", "rocksmq_meta_kv/store"])
def test_the_source_is_no_destination(source: Path, place: str) -> None:
    before = tree(source)
    with pytest.raises(vecmq.ConfigError):
        migrate.import_rocksmq(source, source.parent / place)
    assert tree(source) == before


def test_a_damaged_table_is_an_error_before_anything_is_written(source: Path, into: Path) -> None:
    file = table(source)
    good = file.read_bytes()
    refused = 0
    places = range(0, len(good), len(good) // 60)
    for at in places:
        flip(file, at)
        try:
            done = migrate.import_rocksmq(source, into, [*COPIED, ORPHAN])
        except (vecmq.CorruptError, vecmq.StorageError):
            refused += 1
            assert not into.exists()
        else:
            # A byte that no read depends on.
            assert [one.messages_count for one in done] == [
                len(expected(one.source)) for one in done
            ]
            shutil.rmtree(into)
        file.write_bytes(good)
    print(f"{len(places)} flipped bytes: {refused} refused, 0 short or wrong reads")
    assert refused > len(places) * 0.8


def test_a_missing_table_is_an_error(source: Path, into: Path) -> None:
    table(source).unlink()
    with pytest.raises((vecmq.CorruptError, vecmq.StorageError)):
        migrate.import_rocksmq(source, into)
    assert not into.exists()


def test_damaged_metadata_is_an_error(source: Path, into: Path) -> None:
    file = table(source.with_name("rocksmq_meta_kv"))
    flip(file, 40)
    with pytest.raises(vecmq.CorruptError):
        migrate.import_rocksmq(source, into)
    assert not into.exists()


def test_a_lost_log_is_told(source: Path, into: Path, caplog: pytest.LogCaptureFixture) -> None:
    (log,) = source.glob("*.log")
    log.unlink()
    lost = {topic.name: topic.missing_bytes for topic in migrate.list_rocksmq(source)}
    # The log had 8 messages of 1 KiB: the last one of a closed page, and the open page.
    assert lost["by-dev-rootcoord-dml_0"] == 8 * 1024
    migrate.import_rocksmq(source, into)
    assert [record.name for record in caplog.records] == ["vecmq.migrate"] * 2


HOLD = """
import sys, vecmq.sync
with vecmq.sync.open(sys.argv[1], mode="queue"):
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_rocksdb(directory: Path) -> Iterator[int]:
    """Another process whose RocksDB has `directory`/queue open for writing."""
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield process.pid
        process.communicate()


def test_a_directory_in_use_is_refused_and_names_the_process(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source.with_name("rocksmq_meta_kv"), tmp_path / "queue_meta_kv")
    with held_by_rocksdb(tmp_path) as pid, pytest.raises(vecmq.LockedError, match=str(pid)):
        migrate.list_rocksmq(tmp_path / "queue")
    # And the other way round: RocksDB may not open for writing what is being read.
    (tmp_path / "queue" / "OWNER").unlink()
    reading = migrate._Source(tmp_path / "queue", None)
    command = [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path)]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert done.returncode == 1
    assert b"StorageError" in done.stderr
    reading.__exit__(None, None, None)
    assert subprocess.run(command, input=b"", capture_output=True, check=False).returncode == 0


# ---- kills


COPY = """
import sys, time
from vecmq import migrate
migrate.WINDOW_MSGS = 1
def say(*what):
    print(*what, flush=True)
    # Slow enough that a kill comes near the line that it is meant for.
    time.sleep(float(sys.argv[3]))
migrate.import_rocksmq(sys.argv[1], sys.argv[2], progress=say)
say("done")
"""
COPY_COMMAND = [sys.executable, "-W", "ignore", "-c", COPY]


def killed_after(lines: int, source: Path, into: Path) -> str | None:
    """Imports, killed after so many lines of progress; gives the last line of one that ended."""
    command = [*COPY_COMMAND, str(source), str(into), "0.003"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last = line
            lines -= 1
            if lines < 0:
                process.kill()
                break
        process.stdout.read()
    return None if process.returncode == -signal.SIGKILL else last


def copied_so_far(into: Path) -> int:
    """Messages of all topics; each has to be a beginning of what Milvus wrote."""
    count = 0
    for name in COPIED if into.exists() else ():
        with vecmq.sync.open(into, mode="queue") as mq:
            known = name in mq.topics()
        found = stored(into, name) if known else []
        assert found == expected(name)[: len(found)], "a message is missing, twice or changed"
        count += len(found)
    return count


def run_kills(source: Path, into: Path, wanted: int) -> None:
    before = tree(source)
    total = sum(len(expected(name)) for name in COPIED)
    chance = random.Random(20)
    killed = within = finished = 0
    while killed < wanted:
        # From before the first write to behind the last comparison.
        last = killed_after(chance.randrange(2 * total + 20), source, into)
        count = copied_so_far(into)
        if last is None:
            killed += 1
            within += 0 < count < total
        else:
            assert (last, count) == ("done\n", total)
            finished += 1
        if count == total:
            migrate.import_rocksmq(source, into)
            shutil.rmtree(into)
    done = migrate.import_rocksmq(source, into)
    assert sum(one.verified_count for one in done) == copied_so_far(into) == total
    assert tree(source) == before
    print(
        f"{killed} kills, {within} of them between the first and the last of {total} messages, "
        f"{finished} imports ended: 0 messages lost, 0 twice, 0 out of order"
    )
    assert within > wanted / 4


def test_kill_9_at_any_moment_leaves_one_copy_of_each(source: Path, into: Path) -> None:
    run_kills(source, into, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_any_moment_often(source: Path, into: Path) -> None:
    run_kills(source, into, 200)


def test_the_command_is_killed_and_goes_on(source: Path, into: Path) -> None:
    tokens = ("queue", "import", source, "--into", into, "--json")
    killed = 0
    for delay_s in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6):
        with cli_tools.start(*tokens) as process:
            try:
                process.communicate(timeout=delay_s)
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
                process.communicate()
    outcome = cli_tools.run(*tokens)
    assert outcome.code == 0, outcome.err
    for name in COPIED:
        assert stored(into, name) == expected(name)
    print(f"{killed} kills of the command")
    assert killed >= 1


def test_ctrl_c_ends_an_import_and_loses_nothing(source: Path, into: Path) -> None:
    # 58 messages: the signal has more than a second before the last one.
    command = [*COPY_COMMAND, str(source), str(into), "0.03"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("copy by-dev") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    found = stored(into, "by-dev-rootcoord-dml_0")
    assert 0 < len(found) < 58
    assert found == expected("by-dev-rootcoord-dml_0")[: len(found)]
    done = {one.source: one for one in migrate.import_rocksmq(source, into)}
    assert done["by-dev-rootcoord-dml_0"].present_count == len(found)
    assert stored(into, "by-dev-rootcoord-dml_0") == expected("by-dev-rootcoord-dml_0")


def test_ctrl_c_of_the_command_is_exit_code_130(source: Path, into: Path) -> None:
    # Held by this process, the destination cannot be opened: the signal comes while it reads.
    code = (
        "import os, signal, sys\nfrom vecmq import migrate\nfrom vecmq.cli import main\n"
        "migrate.WINDOW_MSGS = 1\ntell = migrate._Source.__init__\n"
        "def init(self, path, progress):\n"
        "    def stop(what, *rest):\n"
        "        progress(what, *rest)\n"
        "        if (what, *rest[:2]) == ('copy', 'acked', 5):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "    tell(self, path, stop)\n"
        "migrate._Source.__init__ = init\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    tokens = ["queue", "import", str(source), "--into", str(into), "--json"]
    command = [sys.executable, "-W", "ignore", "-c", code, *tokens]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 130
    assert not done.stderr
    assert stored(into, "acked") == expected("acked")[:5]
    assert cli_tools.run(*tokens).code == 0
    assert stored(into, "acked") == expected("acked")
