"""The demo: real vectors, every fault seen, and nothing acknowledged lost over twenty kills."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import cli_tools
import vecmq.sync
from vecmq.demo import plan, vectors
from vecmq.demo.check import Check
from vecmq.demo.ledger import FILE_NAME, Entry, Ledger, Start
from vecmq.demo.run import TOPIC
from vecmq.errors import CorruptError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KILLS = 20
LIMIT = 600


@pytest.fixture(scope="session")
def corpus() -> vectors.Corpus:
    return vectors.load()


def small_corpus() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((600, 256), dtype=np.float32)


# ---- vectors and plan


def test_vectors_are_real_and_the_same_each_time(corpus: vectors.Corpus) -> None:
    assert corpus.vectors.shape == (len(corpus.sentences), vectors.DIMENSIONS)
    assert corpus.vectors.dtype == np.float32
    assert len(corpus.sentences) > 5_000
    assert len(set(corpus.sentences)) == len(corpus.sentences)
    np.testing.assert_allclose(np.linalg.norm(corpus.vectors, axis=1).max(), 1.0, rtol=1e-5)
    again = vectors.load()
    assert again.was_cached
    assert again.digest == corpus.digest


def test_a_damaged_cache_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: vectors.Corpus
) -> None:
    monkeypatch.setenv("VECMQ_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(vectors, "_sentences", lambda: list(corpus.sentences[:600]))
    first = vectors.load()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    second = vectors.load()
    assert not first.was_cached
    assert not second.was_cached
    assert second.digest == first.digest


def test_the_plan_is_the_same_for_a_seed_and_has_every_size() -> None:
    items = plan.make(13_000, seed=3)
    assert items == plan.make(13_000, seed=3)
    assert items != plan.make(13_000, seed=4)
    assert items[:50] == plan.make(13_000, seed=3, limit=50)
    corpus = np.zeros((13_000, 256), np.float32)
    sizes = {
        kind: [plan.size_bytes(item, corpus) for item in items if item.kind == kind]
        for kind in ("control", "row", "block", "batch")
    }
    assert max(sizes["control"]) < 200
    assert set(sizes["row"]) == {1024}
    assert min(sizes["batch"]) < 2e6
    assert max(sizes["batch"]) > 19e6
    assert len(sizes["block"]) == len(sizes["batch"])


def test_a_batch_longer_than_the_corpus_wraps() -> None:
    corpus = small_corpus()
    item = plan.Item(0, "batch", 500, 1_000)
    rows = plan.payload(item, corpus)
    np.testing.assert_array_equal(rows, corpus[np.arange(500, 1_500) % 600])


# ---- check


@dataclass
class FakeMessage:
    seq: int
    id: str
    data: Any
    headers: dict[str, str] = field(default_factory=dict)
    route: str = "queue"

    @property
    def dtype(self) -> str | None:
        return None if isinstance(self.data, bytes) else str(self.data.dtype)

    @property
    def payload(self) -> Any:
        return memoryview(self.data)

    def array(self) -> Any:
        return self.data


ITEMS = [
    plan.Item(0, "control", 0, 0),
    plan.Item(1, "row", 5, 1),
    plan.Item(2, "block", 7, 64),
    plan.Item(3, "batch", 590, 20),
    plan.Item(4, "row", 5, 1),
]


def good_messages(corpus: NDArray[np.float32]) -> list[FakeMessage]:
    messages: list[FakeMessage] = []
    for item in ITEMS:
        payload = plan.payload(item, corpus)
        for row in payload if item.kind == "block" else [payload]:
            seq = len(messages) + 1
            messages.append(FakeMessage(seq, f"p-{seq}", row, {plan.HEADER: str(item.index)}))
    return messages


def receipts(messages: list[FakeMessage]) -> list[Entry]:
    first = {int(message.headers[plan.HEADER]): message for message in reversed(messages)}
    return [
        Entry(item.index, first[item.index].seq, item.messages_count, "queue", first[item.index].id)
        for item in ITEMS
    ]


def checked(
    change: Callable[[list[FakeMessage]], list[FakeMessage] | None],
) -> dict[str, int]:
    corpus = small_corpus()
    messages = good_messages(corpus)
    entries = receipts(messages)
    check = Check(ITEMS, corpus)
    for message in change(messages) or messages:
        check.take(message)  # type: ignore[arg-type]
    return {
        "lost": check.lost(entries).total(),
        "duplicates": check.duplicates.total(),
        "wrong": check.wrong_count,
        "unordered": check.unordered_count,
        "misplaced": check.misplaced_count(entries),
        "again": check.again_count(),
    }


NOTHING = dict.fromkeys(("lost", "duplicates", "wrong", "unordered", "misplaced", "again"), 0)


def test_check_passes_what_is_right() -> None:
    assert checked(lambda messages: None) == NOTHING


@pytest.mark.parametrize("missing", [0, 1, 66, 67])
def test_check_sees_a_lost_message(missing: int) -> None:
    assert checked(lambda m: m[:missing] + m[missing + 1 :])["lost"] == 1


def test_check_sees_a_lost_row_of_a_block() -> None:
    assert checked(lambda m: m[:20] + m[21:])["lost"] > 0


def test_check_sees_a_message_delivered_twice() -> None:
    assert checked(lambda m: m[:2] + m[1:]) == NOTHING | {"duplicates": 1}


def test_check_sees_a_message_stored_twice() -> None:
    def twice(messages: list[FakeMessage]) -> list[FakeMessage]:
        last = messages[-1]
        return [*messages, FakeMessage(last.seq + 1, last.id, last.data, last.headers)]

    assert checked(twice) == NOTHING | {"duplicates": 1}


def test_check_sees_one_changed_bit_and_a_negative_zero() -> None:
    def change(messages: list[FakeMessage]) -> None:
        for number in (1, 30, 66):
            data = messages[number].data.copy()
            data.view(np.uint32).reshape(-1)[-1] ^= 1
            messages[number].data = data
        messages[0].data = messages[0].data.replace(b"flush", b"flusH")

    assert checked(change) == NOTHING | {"wrong": 4}


def test_check_sees_another_dtype_shape_and_header() -> None:
    def change(messages: list[FakeMessage]) -> None:
        messages[1].data = messages[1].data.astype(np.float64)
        messages[66].data = messages[66].data[:-1]
        messages[67].headers = {plan.HEADER: "99"}

    outcome = checked(change)
    assert outcome["wrong"] == 3
    assert outcome["lost"] == 1


def test_check_sees_the_wrong_order() -> None:
    def swap(messages: list[FakeMessage]) -> None:
        a, b = messages[0], messages[1]
        a.data, b.data, a.headers, b.headers = b.data, a.data, b.headers, a.headers
        a.id, b.id = b.id, a.id

    outcome = checked(swap)
    assert outcome["unordered"] == 1
    assert outcome["misplaced"] == 2


def test_check_counts_what_a_crash_left_without_a_receipt() -> None:
    def again(messages: list[FakeMessage]) -> list[FakeMessage]:
        block = messages[2:66]
        before = [FakeMessage(0, f"q-{n}", m.data, m.headers) for n, m in enumerate(block)]
        every = [*messages[:2], *before, *messages[2:]]
        for seq, message in enumerate(every, 1):
            message.seq = seq
        return every

    outcome = checked(again)
    assert outcome["again"] == 1
    assert outcome["lost"] == outcome["duplicates"] == outcome["wrong"] == outcome["unordered"] == 0


# ---- ledger


def test_ledger_keeps_whole_lines_and_drops_a_torn_one(tmp_path: Path) -> None:
    start = Start(seed=1, limit=None, digest="d")
    receipt: Any = FakeReceipt()
    with Ledger(tmp_path) as ledger:
        ledger.begin(start)
        ledger.add(0, receipt)
    file = tmp_path / FILE_NAME
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"plan": 1, "seq"')
    with Ledger(tmp_path) as ledger:
        assert ledger.start == start
        assert ledger.runs_count == 1
        assert ledger.entries == [Entry(0, 9, 3, "nats", "p-9")]
        ledger.begin(start)
    with Ledger(tmp_path) as ledger:
        assert ledger.runs_count == 2
    assert file.read_bytes().startswith(whole)


@dataclass
class FakeReceipt:
    seq: int = 9
    rows_count: int = 3
    route: str = "nats"
    id: str = "p-9"


@pytest.mark.parametrize("line", [b"no json\n", b"{}\n", b"[1]\n", b'{"ledger": 99}\n'])
def test_ledger_refuses_another_file(tmp_path: Path, line: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(line)
    with pytest.raises(CorruptError):
        Ledger(tmp_path)


# ---- the command


def demo(*tokens: object) -> dict[str, Any]:
    outcome = cli_tools.run("demo", *tokens, "--json", "-")
    assert outcome.code == 0, outcome.err + outcome.out
    document: dict[str, Any] = json.loads(outcome.out)
    return document


@pytest.mark.parametrize("codec", ["raw", "planes"])
def test_the_demo_is_bit_equal_on_both_routes(corpus: vectors.Corpus, codec: str) -> None:
    document = demo("--limit", 150, "--codec", codec)
    assert document["schema"] == "vecmq-demo-1"
    assert document["is_good"]
    assert document["published_count"] == 150
    assert document["lost_count"] == document["duplicates_count"] == document["wrong_count"] == 0
    assert all(route["messages"] > 0 for route in document["routes"].values())
    assert document["query"] in corpus.sentences
    assert len(document["nearest"]) == 5
    ratio = document["routes"]["nats"]["wire_bytes"] / document["routes"]["nats"]["payload_bytes"]
    assert ratio < 0.95 if codec == "planes" else 1 <= ratio < 1.05


def test_the_demo_prints_its_tables(corpus: vectors.Corpus, tmp_path: Path) -> None:
    outcome = cli_tools.run("demo", "--limit", 60, "--path", tmp_path / "d")
    assert outcome.code == 0
    for text in ("queue", "nats", "lost", "one vector", "batch (matrix)", "query", "0 lost"):
        assert text in outcome.out
    assert f"{len(corpus.sentences):,} sentences" in outcome.err
    assert "\x1b" not in outcome.out + outcome.err
    # The directory is not used again by mistake, and not with another plan.
    assert cli_tools.run("demo", "--path", tmp_path / "d").code == 2
    assert cli_tools.run("demo", "--path", tmp_path / "d", "--resume", "--seed", 8).code == 2
    assert cli_tools.run("demo", "--path", tmp_path / "d", "--resume", "--limit", 61).code == 2


def test_ctrl_c_prints_what_is_finished_and_resume_goes_on(
    corpus: vectors.Corpus, tmp_path: Path
) -> None:
    process = cli_tools.start("demo", "--path", tmp_path)
    wait_for_receipts(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert "Traceback" not in err
    document = demo("--path", tmp_path, "--resume")
    assert document["published_count"] == document["items_count"]
    assert 0 < document["earlier_count"] < document["items_count"]
    assert document["lost_count"] == 0


def receipts_count(directory: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (directory / FILE_NAME).read_bytes().count(b'"plan"')
    return 0


def wait_for_receipts(directory: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while receipts_count(directory) < count:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def kill_one(directory: Path, chance: random.Random) -> bool:
    """Run the demo and kill -9 it at a random moment; False when it was faster."""
    before = receipts_count(directory)
    process = cli_tools.start("demo", "--path", directory, "--resume", "--limit", LIMIT)
    if chance.random() < 0.2:
        # While it starts: imports, recovery, the server.
        time.sleep(chance.uniform(0.1, 1.0))
    else:
        while receipts_count(directory) == before and process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.08))
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def read_all(directory: Path, end_seq: int) -> dict[str, int]:
    """Read a demo's topic with a group of its own; gives the seq of every id."""
    found: dict[str, int] = {}
    with vecmq.sync.open(directory) as mq, mq.subscribe(TOPIC, group="test") as subscriber:
        seq = 0
        while seq < end_seq:
            batch = subscriber.fetch(512, timeout_s=20)
            assert batch, f"nothing after seq {seq} of {end_seq}"
            found |= {message.id: message.seq for message in batch}
            seq = batch[-1].seq
    return found


@pytest.mark.timeout(400)
def test_twenty_kills_lose_nothing_acknowledged(corpus: vectors.Corpus, tmp_path: Path) -> None:
    chance = random.Random()
    kills = again = acknowledged = 0
    rounds: list[Path] = []
    while kills < KILLS:
        directory = tmp_path / f"round-{len(rounds)}"
        rounds.append(directory)
        while kills < KILLS and kill_one(directory, chance):
            kills += 1
    for directory in rounds:
        document = demo("--path", directory, "--resume", "--limit", LIMIT)
        assert document["lost_count"] == 0
        assert document["duplicates_count"] == 0
        assert document["wrong_count"] == document["unordered_count"] == 0
        assert document["published_count"] == document["items_count"] == LIMIT
        again += document["again_count"]
        # Once more without the demo's own checks: every receipt of every run, at its seq.
        with Ledger(directory) as ledger:
            entries = ledger.entries
        found = read_all(directory, entries[-1].seq)
        assert [e for e in entries if found.get(e.id) != e.seq] == []
        acknowledged += len(entries)
    print(
        f"{kills} kills over {len(rounds)} plans: {acknowledged} publishes acknowledged, 0 lost, "
        f"{again} published again after a crash"
    )
