"""``vecmq queue``: topics and groups from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vecmq.sync
from cli_tools import Command

COMMANDS = ("topics", "groups", "create", "retention", "purge", "delete", "seek")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture(params=["queue", "hybrid"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with vecmq.sync.open(tmp_path, request.param) as mq:
        mq.publisher("t").publish_rows(np.zeros((100, 8), "f4"))
        mq.publisher("t").publish(bytes(2 << 20))
        with mq.subscribe("t", "g") as subscriber:
            subscriber.ack_through(10)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command: Command, name: str) -> None:
    outcome = command("queue", name, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"vecmq queue {name} " in outcome.out.partition("Examples")[2]
    assert name in command("queue", "--help").out


def test_topics_and_groups(command: Command, store: Path) -> None:
    (topic,) = command("queue", "topics", store, "--json").lines
    assert (topic["name"], topic["messages"], topic["next_seq"]) == ("t", 101, 102)
    assert [(group["name"], group["lag"]) for group in topic["groups"]] == [("g", 91)]
    head, row = command("queue", "topics", store).out.splitlines()
    assert head.split()[-1] == "topic"
    assert row.split()[-1] == "t"
    (group,) = command("queue", "groups", store, "t", "--json").lines
    assert (group["next_seq"], group["lag"]) == (11, 91)
    assert command("queue", "groups", store, "t").out.splitlines()[1].split() == [
        "91", "11", "0", "g",
    ]  # fmt: skip
    assert command("queue", "groups", store, "other").code == 1


def test_seek(command: Command, store: Path) -> None:
    for to, expected in (("first", 1), ("20", 20), ("new", 102), ("2020-01-01", 1)):
        outcome = command("queue", "seek", store, "t", "g", to)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out == f"next seq {expected}, lag {102 - expected}\n"
    assert command("queue", "seek", store, "t", "g", "20", "--exclusive").out.startswith(
        "next seq 21,"
    )
    assert command("queue", "seek", store, "t", "g", "500").code == 1
    assert command("queue", "seek", store, "t", "none", "1").code == 1
    assert command("queue", "seek", store, "t", "g", "soon").code == 2


def test_create_and_retention(command: Command, store: Path) -> None:
    assert command("queue", "create", store, "new", "--msgs-max", "5").code == 0
    (new, _) = command("queue", "topics", store, "--json").lines
    assert new["retention"]["msgs_max"] == 5
    assert command("queue", "retention", store, "new").code == 0
    (new, _) = command("queue", "topics", store, "--json").lines
    assert new["retention"] is None
    assert command("queue", "create", store, "a b").code == 2
    assert command("queue", "create", store, "x", "--unacked").code == 2
    assert command("queue", "retention", store, "t", "--bytes-max", "-1").code == 2


def test_purge_and_delete_want_a_yes(command: Command, store: Path) -> None:
    for tokens in (("purge", store, "t"), ("delete", store, "t")):
        assert command("queue", *tokens).code == 2
    assert command("queue", "purge", store, "t", "--yes").out.startswith("deleted 101 messages")
    assert command("queue", "delete", store, "t", "--group", "g", "--yes").code == 0
    assert command("queue", "groups", store, "t", "--json").lines == []
    assert command("queue", "delete", store, "t", "--yes").code == 0
    assert command("queue", "topics", store, "--json").lines == []
    assert command("queue", "delete", store, "t", "--yes").code == 1


def test_a_directory_without_a_queue_is_not_made(command: Command, tmp_path: Path) -> None:
    assert command("queue", "topics", tmp_path / "none").code == 2
    assert list(tmp_path.iterdir()) == []
