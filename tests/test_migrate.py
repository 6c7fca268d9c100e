"""RocksMQ directories that Milvus' own code wrote: listed, read, copied; kills, damage, locks."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cli_tools
import vecmq
import vecmq.sync
from cli_tools import Command
from vecmq import migrate

FIXTURE = Path(__file__).resolve().parent / "rocksmq"
MANIFEST: dict[str, Any] = json.loads((FIXTURE / "manifest.json").read_text())
# Milvus' retention has deleted the first pages of this one.
RETAINED = "retained"
ORPHAN = "destroyed"
COPIED = sorted(name for name, topic in MANIFEST["topics"].items() if not topic["destroyed"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE / "rocksmq.tar.gz") as archive:
        archive.extractall(tmp_path / "milvus", filter="data")
    return tmp_path / "milvus" / "rocksmq"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


def expected(topic: str) -> list[tuple[int, int, str]]:
    """Id, size and hash of what Milvus holds of a topic, by the manifest it was written with."""
    keys = set(MANIFEST["store_keys"])
    return [
        (one["id"], one["size_bytes"], one["sha256"])
        for one in MANIFEST["topics"][topic]["messages"]
        if f"{topic}/{one['id']}" in keys
    ]


def seen(message_id: int, payload: memoryview) -> tuple[int, int, str]:
    return message_id, len(payload), hashlib.sha256(payload).hexdigest()


def stored(into: Path, topic: str) -> list[tuple[int, int, str]]:
    """What a vecmq topic holds, in order; every message has to be one of an import."""
    found = []
    with (
        vecmq.sync.open(into, mode="queue") as mq,
        mq.subscribe(topic, group=f"check-{random.random()}".replace(".", "")) as subscriber,
    ):
        while batch := subscriber.fetch(timeout_s=0.05):
            found += [seen(int(m.headers[migrate.ID_HEADER]), m.payload) for m in batch]
    return found


def tree(path: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file of both directories: bytes, mode and time of the last change."""
    parts = [path, path.with_name(path.name + "_meta_kv")]
    files = {one for part in parts for one in [part, *part.rglob("*")]}
    return {
        str(file): (
            file.read_bytes() if file.is_file() else b"",
            file.stat().st_mode,
            file.stat().st_mtime_ns,
        )
        for file in files
    }


def table(directory: Path) -> Path:
    """The largest table of a database."""
    return max(directory.glob("*.sst"), key=lambda file: file.stat().st_size)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)


# ---- reading


def test_the_manifest_has_the_traps() -> None:
    assert len(expected(RETAINED)) < len(MANIFEST["topics"][RETAINED]["messages"])
    assert len(expected(ORPHAN)) == 12
    sizes = {size for _, size, _ in expected("sizes")}
    assert {0, 1, 1 << 10, 100 << 10} <= sizes


@pytest.mark.parametrize("topic", sorted(MANIFEST["topics"]))
def test_every_payload_is_what_milvus_wrote(source: Path, topic: str) -> None:
    assert [seen(*one) for one in migrate.read_rocksmq(source, topic)] == expected(topic)


def test_reading_begins_behind_an_id(source: Path) -> None:
    topic = "by-dev-rootcoord-dml_0"
    whole = expected(topic)
    for index in (0, 30, len(whole) - 1):
        rest = [seen(*one) for one in migrate.read_rocksmq(source, topic, after=whole[index][0])]
        assert rest == whole[index + 1 :]


def test_a_value_of_milvus_2_6_is_passed_through(source: Path) -> None:
    payloads = [bytes(payload) for _, payload in migrate.read_rocksmq(source, "sizes")]
    assert [one for one in payloads if one.startswith(b"\xff\xfe\xfd\xfcSTREAM")]


def test_topics_and_pages_are_those_of_the_metadata(source: Path) -> None:
    meta = MANIFEST["meta"]
    topics = {topic.name: topic for topic in migrate.list_rocksmq(source)}
    assert sorted(topics) == sorted(MANIFEST["topics"])
    for name, topic in topics.items():
        messages = expected(name)
        assert topic.messages_count == len(messages)
        assert topic.payload_bytes == sum(size for _, size, _ in messages)
        assert topic.first_id == (messages[0][0] if messages else None)
        assert topic.last_id == (messages[-1][0] if messages else None)
        assert topic.missing_bytes == 0
        assert topic.orphaned == (name == ORPHAN)
        if topic.orphaned:
            assert (topic.created_s, topic.pages, topic.open_page_bytes) == (None, (), 0)
            continue
        assert topic.created_s == int(meta[f"topic_id/{name}"])
        assert topic.open_page_bytes == int(meta[f"message_size/{name}"])
        pages = [
            (int(key.rpartition("/")[2]), int(value))
            for key, value in sorted(meta.items())
            if key.startswith(f"page_message_size/{name}/")
        ]
        assert [(page.end_id, page.size_bytes) for page in topic.pages] == pages
        for page in topic.pages:
            assert page.closed_s == int(meta[f"page_ts/{name}/{page.end_id}"])
            acked = meta.get(f"acked_ts/{name}/{page.end_id}")
            assert page.acked_s == (None if acked is None else int(acked))
    assert [page.acked_s is not None for page in topics["acked"].pages] == [True, True]


def test_nothing_in_the_directories_changes(source: Path, into: Path) -> None:
    before = tree(source)
    migrate.list_rocksmq(source)
    migrate.import_rocksmq(source, into)
    migrate.import_rocksmq(source, into, [ORPHAN])
    with pytest.raises(vecmq.TopicNotFoundError):
        migrate.import_rocksmq(source, into, ["none"])
    assert tree(source) == before


def test_a_directory_without_write_permission_is_read(source: Path, into: Path) -> None:
    for part in (source, source.with_name("rocksmq_meta_kv")):
        for file in part.iterdir():
            file.chmod(0o400)
        part.chmod(0o500)
    try:
        done = migrate.import_rocksmq(source, into)
        assert sum(one.copied_count for one in done) == sum(len(expected(name)) for name in COPIED)
    finally:
        for part in (source, source.with_name("rocksmq_meta_kv")):
            part.chmod(0o700)


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


# ---- copying


def test_all_topics_are_copied_but_destroyed_ones(source: Path, into: Path) -> None:
    done = migrate.import_rocksmq(source, into)
    assert [one.source for one in done] == COPIED
    for one in done:
        count = len(expected(one.source))
        assert (one.messages_count, one.copied_count, one.verified_count) == (count, count, count)
        assert one.present_count == one.deleted_there_count == one.deleted_here_count == 0
        assert stored(into, one.topic) == expected(one.source)
    with vecmq.sync.open(into, mode="queue") as mq:
        assert mq.topics() == COPIED


def test_a_destroyed_topic_is_copied_by_its_name_and_to_another_name(
    source: Path, into: Path
) -> None:
    (done,) = migrate.import_rocksmq(source, into, {ORPHAN: "kept"})
    assert (done.source, done.topic, done.copied_count) == (ORPHAN, "kept", 12)
    assert stored(into, "kept") == expected(ORPHAN)


def test_again_copies_nothing_and_compares_all(source: Path, into: Path) -> None:
    migrate.import_rocksmq(source, into)
    for one in migrate.import_rocksmq(source, into):
        assert (one.copied_count, one.present_count) == (0, len(expected(one.source)))
        assert one.verified_count == one.messages_count
    assert stored(into, "sizes") == expected("sizes")


def test_topics_have_to_exist_and_names_to_be_good(source: Path, into: Path) -> None:
    with pytest.raises(vecmq.TopicNotFoundError):
        migrate.import_rocksmq(source, into, ["acked", "none"])
    with pytest.raises(vecmq.InvalidNameError):
        migrate.import_rocksmq(source, into, {"acked": "a.b"})
    with pytest.raises(vecmq.ConfigError):
        migrate.import_rocksmq(source, into, {"acked": "one", "sizes": "one"})
    with pytest.raises(vecmq.ConfigError):
        migrate.import_rocksmq(source, into, "acked")
    assert not into.exists()


def refused(source: Path, into: Path, topic: str) -> None:
    """An import of two topics is refused for one of them, and writes nothing to either."""
    with vecmq.sync.open(into, mode="queue") as mq:
        before = mq.topics()
    with pytest.raises(vecmq.ConflictError):
        migrate.import_rocksmq(source, into, {"acked": "other", topic: "t"})
    with vecmq.sync.open(into, mode="queue") as mq:
        assert mq.topics() == before


def test_messages_of_others_are_never_appended_to(source: Path, into: Path) -> None:
    with vecmq.sync.open(into, mode="queue") as mq:
        mq.publisher("t").publish(b"mine")
    refused(source, into, "sizes")
    refused(source, into, "empty")


def test_a_message_of_others_behind_an_import_is_seen(source: Path, into: Path) -> None:
    migrate.import_rocksmq(source, into, {"sizes": "t"})
    with vecmq.sync.open(into, mode="queue") as mq:
        mq.publisher("t").publish(b"mine")
    refused(source, into, "sizes")


def test_two_topics_of_milvus_do_not_mix(source: Path, into: Path) -> None:
    # Ids of topics overlap: both begin with the same one.
    assert expected("sizes")[0][0] == expected(ORPHAN)[0][0]
    migrate.import_rocksmq(source, into, {ORPHAN: "t"})
    refused(source, into, "sizes")


@pytest.mark.parametrize("change", ["payload", "missing", "twice", "array", "rows"])
def test_what_looks_like_an_import_is_compared(source: Path, into: Path, change: str) -> None:
    import numpy as np

    messages = [
        (message_id, bytes(data)) for message_id, data in migrate.read_rocksmq(source, "acked")
    ]
    chosen = messages[:3]
    if change == "payload":
        chosen[1] = (chosen[1][0], chosen[1][1][:-1] + b"\0")
    elif change == "missing":
        del chosen[1]
    elif change == "twice":
        chosen.insert(1, chosen[1])
    with vecmq.sync.open(into, mode="queue") as mq:
        publisher = mq.publisher("t")
        for message_id, data in chosen:
            headers = {migrate.ID_HEADER: str(message_id), migrate.TOPIC_HEADER: "acked"}
            array = np.frombuffer(data, np.uint8)
            if change == "rows":
                publisher.publish_rows(np.stack([array, array]), headers)
            else:
                publisher.publish(array if change == "array" else data, headers)
    refused(source, into, "acked")


def test_an_import_goes_on_behind_the_last_message(source: Path, into: Path) -> None:
    messages = list(migrate.read_rocksmq(source, "acked"))
    with vecmq.sync.open(into, mode="queue") as mq:
        for message_id, data in messages[:17]:
            headers = {migrate.ID_HEADER: str(message_id), migrate.TOPIC_HEADER: "acked"}
            mq.publisher("acked").publish(data, headers)
    (done,) = migrate.import_rocksmq(source, into, ["acked"])
    assert (done.present_count, done.copied_count, done.verified_count) == (17, 23, 40)
    assert stored(into, "acked") == expected("acked")


def test_messages_that_milvus_has_deleted_since_stay(source: Path, into: Path) -> None:
    first, *_ = expected(RETAINED)
    earlier = MANIFEST["topics"][RETAINED]["messages"][0]["id"]
    assert earlier < first[0]
    with vecmq.sync.open(into, mode="queue") as mq:
        headers = {migrate.ID_HEADER: str(earlier), migrate.TOPIC_HEADER: RETAINED}
        mq.publisher(RETAINED).publish(b"deleted in Milvus", headers)
    (done,) = migrate.import_rocksmq(source, into, [RETAINED])
    assert (done.deleted_there_count, done.copied_count) == (1, len(expected(RETAINED)))
    assert [one[0] for one in stored(into, RETAINED)] == [
        earlier,
        *(one[0] for one in expected(RETAINED)),
    ]


# ---- kills


COPY = """
import sys, time
from vecmq import migrate
migrate.WINDOW_MSGS = 1
def say(*what):
    print(*what, flush=True)
    # Slow enough that a kill comes near the line that it is meant for.
    time.sleep(0.001)
migrate.import_rocksmq(sys.argv[1], sys.argv[2], progress=say)
say("done")
"""
COPY_COMMAND = [sys.executable, "-W", "ignore", "-c", COPY]


def killed_after(lines: int, source: Path, into: Path) -> str | None:
    """Imports, killed after so many lines of progress; gives the last line of one that ended."""
    command = [*COPY_COMMAND, str(source), str(into)]
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
    command = [*COPY_COMMAND, str(source), str(into)]
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


# ---- the command


def test_list_prints_a_line_a_topic(command: Command, source: Path, into: Path) -> None:
    outcome = command("queue", "import", source, "--list", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    lines = {line["name"]: line for line in outcome.lines}
    assert {name: line["messages_count"] for name, line in lines.items()} == {
        name: len(expected(name)) for name in MANIFEST["topics"]
    }
    assert [name for name, line in lines.items() if line["orphaned"]] == [ORPHAN]
    assert len(lines["by-dev-rootcoord-dml_0"]["pages"]) == 3
    assert lines["by-dev-rootcoord-dml_0"]["pages"][0]["size_bytes"] == 17 * 1024
    for_people = command("queue", "import", source, "--list")
    assert len(for_people.out.splitlines()) == 1 + len(MANIFEST["topics"])
    assert not into.exists()


def test_the_command_copies_and_says_what_it_did(
    command: Command, source: Path, into: Path
) -> None:
    outcome = command("queue", "import", source, "--into", into, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line["source"] for line in outcome.lines] == COPIED
    assert all(line["verified_count"] == line["messages_count"] for line in outcome.lines)
    again = command("queue", "import", source, "--into", into)
    assert len(again.out.splitlines()) == 1 + len(COPIED)
    renamed = command(
        *("queue", "import", source, "--into", into, "--json"),
        *("--topic", f"{ORPHAN}=kept", "--topic", "sizes"),
    )
    assert [(line["topic"], line["copied_count"]) for line in renamed.lines] == [
        ("kept", 12),
        ("sizes", 0),
    ]


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["--list", "--into", "store"],
        ["--list", "--topic", "acked"],
        ["--into", "store", "--topic", "=x"],
        ["--into", "store", "--topic", "acked", "--topic", "acked=b"],
        ["--into", "store", "--topic", "acked=a.b"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(
    command: Command,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tokens: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("queue", "import", source, *tokens)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_exit_codes_of_directories(command: Command, source: Path, into: Path) -> None:
    assert command("queue", "import", source.parent / "none", "--list").code == 2
    flip(table(source), 2000)
    damaged = command("queue", "import", source, "--into", into)
    assert damaged.code == 1
    assert damaged.err.startswith("CorruptError")
    assert not into.exists()


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


def test_help_has_examples(command: Command) -> None:
    assert command("queue", "--help").out.count("vecmq queue") >= 3
    outcome = command("queue", "import", "--help")
    assert outcome.out.partition("Examples")[2].count("vecmq queue import") >= 3
