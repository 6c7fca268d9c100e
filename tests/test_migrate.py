"""RocksMQ directories that Milvus' own code wrote: listed, read, copied."""

from __future__ import annotations

from pathlib import Path

import pytest

import vecmq
import vecmq.sync
from cli_tools import Command
from migrate_tools import (
    COPIED,
    MANIFEST,
    ORPHAN,
    RETAINED,
    expected,
    flip,
    seen,
    stored,
    table,
    tree,
    unpack,
)
from vecmq import migrate


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return unpack(tmp_path / "milvus")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


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


def test_messages_that_retention_has_deleted_since_are_not_copied_again(
    source: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Retention deletes pages of 1 MiB: a large message that Milvus has not any more, and some.
    earlier = expected("acked")[0][0] - 1
    with vecmq.sync.open(into, mode="queue") as mq:
        headers = {migrate.ID_HEADER: str(earlier), migrate.TOPIC_HEADER: "acked"}
        mq.publisher("acked").publish(bytes((1 << 20) - 20_000), headers)
    monkeypatch.setattr(migrate, "WINDOW_MSGS", 1)
    migrate.import_rocksmq(source, into, ["acked"])
    with vecmq.sync.open(into, mode="queue", retention=vecmq.Retention(bytes_max=1, unacked=True)):
        pass
    left = stored(into, "acked")
    assert 0 < len(left) < 40
    (done,) = migrate.import_rocksmq(source, into, ["acked"])
    assert (done.copied_count, done.deleted_there_count) == (0, 0)
    assert (done.deleted_here_count, done.verified_count) == (40 - len(left), len(left))
    assert stored(into, "acked") == left == expected("acked")[-len(left) :]


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


def test_help_has_examples(command: Command) -> None:
    assert command("queue", "--help").out.count("vecmq queue") >= 3
    outcome = command("queue", "import", "--help")
    assert outcome.out.partition("Examples")[2].count("vecmq queue import") >= 3
