"""The command line: exit codes, stdout and stderr apart, errors as one line, no lost messages."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import cli_tools
import vecmq
import vecmq.sync
from cli_tools import Command
from vecmq.server import EmbeddedServer

COMMANDS = (["pub"], ["sub"], ["serve"], ["demo"], ["bench"], ["bench", "table1"])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    file = tmp_path / "vectors.npy"
    np.save(file, np.arange(10 * 8, dtype=np.float32).reshape(10, 8))
    return file


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, so that nobody else can listen on it, and that refuses everybody."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def assert_one_line(err: str, name: str) -> None:
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(name)


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: Command, name: list[str]) -> None:
    outcome = command(*name, "--help")
    assert outcome.code == 0
    assert not outcome.err
    assert "vecmq " + name[0] in outcome.out


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != ["bench"]], ids=" ".join)
def test_help_has_examples(command: Command, name: list[str]) -> None:
    examples = command(*name, "--help").out.partition("Examples")[2]
    assert examples.count("vecmq " + " ".join(name)) >= 3


def test_help_of_the_whole(command: Command) -> None:
    assert command().out == command("--help").out
    assert command("--version").out.strip() == vecmq.__version__


@pytest.mark.parametrize(
    "tokens",
    [
        ["pbu"],
        ["pub"],
        ["pub", "t"],
        ["pub", "t", "-", "--no-such-option"],
        ["pub", "t", "-"],
        ["pub", "t", "-", "--mode", "hybrid"],
        ["pub", "t", "no-such-file.npy", "--path", "x"],
        ["pub", "t", "-", "--header", "no-sign", "--path", "x"],
        ["pub", "t", "-", "--rows", "10", "--path", "x"],
        ["pub", "t", "-", "--mode", "other", "--path", "x"],
        ["pub", "t", "-", "--mode", "queue", "--nats", "nats://127.0.0.1:1", "--path", "x"],
        ["sub", "t", "--path", "x"],
        ["sub", "t", "--group", "g"],
        ["sub", "t", "--group", "g", "--path", "x", "--count", "0"],
        ["sub", "t", "--group", "g", "--path", "x", "--mode", "queue", "--timeout-s", "-1"],
        ["serve"],
        ["serve", "--config", "no-such-file.yaml"],
        ["demo", "--limit", "0"],
        ["demo", "--resume"],
        ["demo", "--codec", "lzma"],
        ["bench", "table2"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MILVUSCONF", raising=False)
    outcome = command(*tokens)
    assert outcome.code == 2
    assert not outcome.out.strip() or tokens[0] == "sub"
    assert len(outcome.err.splitlines()) == 1, outcome.err


def test_a_bad_topic_is_wrong_usage(command: Command, store: Path) -> None:
    outcome = command("pub", "a.b", "-", "--path", store, "--mode", "queue", stdin=b"x")
    assert outcome.code == 2
    assert_one_line(outcome.err, "InvalidNameError")


def test_no_connection_is_exit_code_3(command: Command, closed_port: int) -> None:
    url = f"nats://127.0.0.1:{closed_port}"
    outcome = command("pub", "t", "-", "--nats", url, stdin=b"x")
    assert outcome.code == 3
    assert_one_line(outcome.err, "NotConnectedError")


def test_an_error_is_one_line_and_with_debug_a_traceback(command: Command, store: Path) -> None:
    tokens = ["sub", "t", "--group", "g", "--path", str(store), "--mode", "queue"]
    with vecmq.sync.open(store, mode="queue", attach=False):
        outcome = command(*tokens)
        with_debug = command(*tokens, "--debug")
    assert outcome.code == with_debug.code == 1
    assert_one_line(outcome.err, "LockedError")
    assert "Traceback" in with_debug.err


def test_an_array_goes_round(command: Command, store: Path, vectors: Path) -> None:
    published = command("pub", "t", vectors, "--path", store, "--mode", "queue", "--json")
    assert published.code == 0
    (receipt,) = published.lines
    assert receipt["route"] == "queue"
    assert receipt["seq"] == 1
    assert receipt["payload_bytes"] == 320
    out = store / "out"
    received = command(
        "sub", "t", "--group", "g", "--path", store, "--mode", "queue", "--out", out, "--json"
    )
    assert received.code == 0
    (message,) = received.lines
    assert (message["dtype"], message["shape"]) == ("float32", [10, 8])
    assert message["id"] == receipt["id"]
    np.testing.assert_array_equal(np.load(message["file"]), np.load(vectors))


@pytest.mark.parametrize("mode", ["queue", "hybrid"])
def test_rows_go_round_in_blocks(command: Command, store: Path, vectors: Path, mode: str) -> None:
    where = ["--path", str(store), "--mode", mode, "--json"]
    published = command("pub", "t", vectors, "--rows", 4, *where)
    assert [line["rows_count"] for line in published.lines] == [4, 4, 2]
    assert [line["seq"] for line in published.lines] == [1, 5, 9]
    received = command("sub", "t", "--group", "g", "--out", store / "out", *where)
    rows = [np.load(line["file"]) for line in received.lines]
    np.testing.assert_array_equal(np.stack(rows), np.load(vectors))


def test_bytes_and_headers_go_round_from_stdin(command: Command, store: Path) -> None:
    where = ["--path", str(store), "--mode", "queue", "--json"]
    headers = ["--header", "kind=control", "--header", "note=a=b"]
    assert command("pub", "t", "-", *headers, *where, stdin=b"\x00hello\n").code == 0
    received = command("sub", "t", "--group", "g", "--out", store / "out", *where)
    (message,) = received.lines
    assert message["dtype"] is None
    assert message["headers"] == {"kind": "control", "note": "a=b"}
    assert Path(message["file"]).read_bytes() == b"\x00hello\n"


def test_npy_on_stdin_is_an_array(command: Command, store: Path, vectors: Path) -> None:
    where = ["--path", str(store), "--mode", "queue", "--json"]
    command("pub", "t", "-", *where, stdin=vectors.read_bytes())
    (message,) = command("sub", "t", "--group", "g", *where).lines
    assert message["shape"] == [10, 8]
    assert message["file"] is None


def test_a_dtype_that_npy_cannot_name_is_kept_as_bytes(command: Command, store: Path) -> None:
    payload = np.arange(4, dtype=ml_dtypes.bfloat16)
    with vecmq.sync.open(store, mode="queue") as mq:
        mq.publisher("t").publish(payload)
    where = ["--path", str(store), "--mode", "queue", "--json"]
    (message,) = command("sub", "t", "--group", "g", "--out", store / "out", *where).lines
    assert message["dtype"] == "bfloat16"
    assert Path(message["file"]).read_bytes() == payload.tobytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "nats") as running:
        yield running


def test_nats_mode_goes_round_and_rows_have_files_of_their_own(
    command: Command, server: EmbeddedServer, vectors: Path, tmp_path: Path
) -> None:
    where = ["--nats", server.url.replace("//", f"//{server.token}@"), "--json"]
    published = command("pub", "cli-rows", vectors, "--rows", 5, *where)
    assert [line["route"] for line in published.lines] == ["nats", "nats"]
    # The first one waits for the server to make a consumer.
    patience = ["--timeout-s", "5", "--out", str(tmp_path / "out")]
    received = command("sub", "cli-rows", "--group", "g", *patience, *where)
    files = [line["file"] for line in received.lines]
    assert len(set(files)) == 10
    np.testing.assert_array_equal(np.stack([np.load(file) for file in files]), np.load(vectors))


def test_credentials_come_from_the_environment(
    command: Command, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--nats", server.url]
    refused = command("pub", "t", "-", *where, stdin=b"x")
    monkeypatch.setenv("NATS_TOKEN", server.token)
    assert command("pub", "t", "-", *where, stdin=b"x").code == 0
    assert refused.code == 3
    assert server.token not in refused.err


def test_a_group_goes_on_where_it_stopped(command: Command, store: Path, vectors: Path) -> None:
    where = ["--path", str(store), "--mode", "queue", "--json"]
    command("pub", "t", vectors, "--rows", 10, *where)
    first = command("sub", "t", "--group", "g", "--count", 3, *where)
    rest = command("sub", "t", "--group", "g", *where)
    assert first.code == rest.code == 0
    assert [line["seq"] for line in first.lines + rest.lines] == list(range(1, 11))


def test_too_few_messages_is_exit_code_1(command: Command, store: Path) -> None:
    where = ["--path", str(store), "--mode", "queue"]
    command("pub", "t", "-", *where, stdin=b"x")
    outcome = command("sub", "t", "--group", "g", "--count", 2, "--timeout-s", 0.1, *where)
    assert outcome.code == 1
    assert_one_line(outcome.err, "Error")


def test_tables_for_people_have_a_head_and_a_line_each(
    command: Command, store: Path, vectors: Path
) -> None:
    where = ["--path", str(store), "--mode", "queue"]
    assert len(command("pub", "t", vectors, "--rows", 4, *where).out.splitlines()) == 1 + 3
    assert len(command("sub", "t", "--group", "g", *where).out.splitlines()) == 1 + 10


def test_ctrl_c_ends_follow_and_loses_nothing(store: Path, vectors: Path) -> None:
    where = ["--path", str(store), "--mode", "queue", "--json"]
    assert cli_tools.run("pub", "t", vectors, "--rows", 10, *where).code == 0
    follow = cli_tools.start("sub", "t", "--group", "g", "--follow", *where)
    assert follow.stdout is not None
    first = [json.loads(follow.stdout.readline())["seq"] for _ in range(10)]
    follow.send_signal(signal.SIGINT)
    out, err = follow.communicate(timeout=20)
    assert follow.returncode == 130
    assert "Traceback" not in err
    assert not out
    assert first == list(range(1, 11))
    again = cli_tools.run("sub", "t", "--group", "g", "--timeout-s", 0.1, *where)
    # The signal may fall behind the last line: before that message counts as handled it comes
    # again, before the ack of what was fetched together all of that does. Never is one missing.
    assert [line["seq"] for line in again.lines] in ([], [10], first)


def test_a_closed_pipe_ends_quietly_and_loses_nothing(store: Path) -> None:
    where = ["--path", str(store), "--mode", "queue", "--json"]
    with vecmq.sync.open(store, mode="queue") as mq:
        mq.publisher("t").publish_rows(np.zeros((5000, 8), np.float32))
    process = cli_tools.start("sub", "t", "--group", "g", *where)
    assert process.stdout is not None
    assert process.stderr is not None
    taken = json.loads(process.stdout.readline())["seq"]
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
    left = cli_tools.run("sub", "t", "--group", "g", "--timeout-s", 0.2, *where).lines
    # What was printed into the pipe and not read is gone, as with any pipe; nothing behind it is.
    assert taken == 1
    assert left[-1]["seq"] == 5000
    assert [line["seq"] for line in left] == list(range(left[0]["seq"], 5001))


def colours(**environment: str) -> bool:
    """Run a failing command on a terminal and look for escape sequences in its error."""
    leader, terminal = pty.openpty()
    with subprocess.Popen(
        [*cli_tools.COMMAND, "pbu"],
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", **environment},
    ) as process:
        process.wait(20)
    os.close(terminal)
    shown = b""
    # What was written arrives in pieces; behind the last one a terminal has an error.
    with contextlib.suppress(OSError):
        while piece := os.read(leader, 4096):
            shown += piece
    os.close(leader)
    assert b"UsageError" in shown
    return b"\x1b[" in shown


def test_no_color_is_honoured() -> None:
    assert colours()
    assert not colours(NO_COLOR="1")


def test_pipes_get_no_colours(command: Command) -> None:
    assert "\x1b" not in command("pbu").err + command("--help").out


# ---- serve


class Served:
    """A running `vecmq serve`."""

    def __init__(self, *tokens: object) -> None:
        self.process = cli_tools.start("serve", *tokens)
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.log = ""
        for line in self.process.stderr:
            self.log += line
            if line.rstrip().endswith("ready"):
                break
        assert self.process.poll() is None, self.log
        self.values: dict[str, str] = {}
        self.out = ""
        while "token_file" not in self.values and self.values.get("mode") != "queue":
            line = self.process.stdout.readline()
            self.out += line
            key, _, value = line.strip().partition("=")
            self.values[key] = value

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        self.out += out
        self.log += err
        return self.process.returncode


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[type[Served]]:
    running: list[Served] = []

    class Kept(Served):
        def __init__(self, *tokens: object) -> None:
            super().__init__(*tokens)
            running.append(self)

    yield Kept
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_nats_until_a_signal(served: type[Served], store: Path, number: int) -> None:
    server = served("--path", store, "--mode", "nats")
    token = Path(server.values["token_file"]).read_text()
    options = vecmq.NatsOptions(server.values["url"], token=token)
    with vecmq.sync.open(mode="nats", nats=options) as mq:
        assert mq.publisher("t").publish(b"x").route == "nats"
    assert server.stop(number) == 0
    assert '["try to init mq"] [standalone=true] [mqType=natsmq]' in server.log
    assert token not in server.log + server.out
    assert "Traceback" not in server.log


def test_serve_holds_the_queue(served: type[Served], store: Path, command: Command) -> None:
    server = served("--path", store, "--mode", "queue")
    outcome = command("pub", "t", "-", "--path", store, "--mode", "queue", stdin=b"x")
    assert outcome.code == 1
    assert_one_line(outcome.err, "LockedError")
    assert str(server.process.pid) in outcome.err
    assert server.stop(signal.SIGTERM) == 0
    assert command("pub", "t", "-", "--path", store, "--mode", "queue", stdin=b"x").code == 0


def test_serve_reads_milvus_configuration(served: type[Served], tmp_path: Path) -> None:
    config = tmp_path / "milvus.yaml"
    config.write_text(
        f"""
mq: {{type: hybrid}}
natsmq:
  server: {{port: -1, storeDir: {tmp_path}/nats, noSuchKey: 1,
            monitor: {{logFile: {tmp_path}/nats.log}}}}
rocksmq: {{path: {tmp_path}/rocks, retentionTimeInMinutes: 60}}
"""
    )
    server = served("--config", config)
    assert server.values["mode"] == "hybrid"
    assert server.values["path"] == f"{tmp_path}/rocks"
    assert server.values["token_file"].startswith(f"{tmp_path}/nats/")
    assert server.stop(signal.SIGTERM) == 0
    assert '["try to init mq"] [standalone=true] [mqType=hybrid]' in server.log
    assert "natsmq.server.noSuchKey" in server.log


def test_serve_on_a_taken_port_is_exit_code_3(command: Command, store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = command("serve", "--path", store, "--port", port)
    assert outcome.code == 3
    assert outcome.err.splitlines()[-1].startswith("ServerError")
    assert not outcome.out
