"""The embedded nats-server: a real process, its settings, and what keeps it from starting."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nats.js.errors
import psutil
import pytest

from server_tools import WAIT_S, is_running, publish, read_info, wait_until, watchdog_of
from vecmq.errors import ConfigError, LockedError, ServerError
from vecmq.server import EmbeddedServer, find_binary


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def server(store: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(store) as running:
        yield running


def make_script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# ---- what runs


def test_serves_jetstream_on_loopback_with_token(server: EmbeddedServer) -> None:
    assert server.alive
    assert server.url == f"nats://127.0.0.1:{server.port}"
    assert publish(server, [b"a", b"b"]) == 2
    info = read_info(server.port)
    assert (info["jetstream"], info["auth_required"]) == (True, True)


@pytest.mark.parametrize("options", [{}, {"auth_token": "wrong"}, {"auth_token": ""}])
def test_no_entry_without_the_token(server: EmbeddedServer, options: dict[str, str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as client:
        lines = client.makefile("rb")
        assert lines.readline().startswith(b"INFO ")
        client.sendall(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        assert lines.readline().startswith(b"-ERR 'Authorization")
        assert lines.read() == b""


def test_one_loopback_socket_and_no_monitoring(server: EmbeddedServer) -> None:
    assert server.pid is not None
    connections = psutil.Process(server.pid).net_connections("all")
    listening = [c.laddr for c in connections if c.status == psutil.CONN_LISTEN]
    assert listening == [("127.0.0.1", server.port)]


def test_files_are_private(store: Path) -> None:
    with EmbeddedServer(store, trace=True, log_size_bytes_max=4096) as server:
        publish(server, [b"x" * 1000] * 20)
        paths = [store, *store.rglob("*")]
        assert store / "server.token" in paths
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # rotated or renamed since
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(store.stat().st_mode) == 0o700


def test_secrets_stay_in_their_files(store: Path) -> None:
    server = EmbeddedServer(store, debug=True, trace=True)
    with server:
        publish(server, [b"x"])
        token = server.token
        assert len(token) >= 32
        assert server.pid is not None
        for process in (psutil.Process(server.pid), watchdog_of(server.pid)):
            assert token not in " ".join(process.cmdline())
            assert token not in str(process.environ())
        assert token not in repr(server)
        assert token not in server.url
        holders = {
            path.name
            for path in store.iterdir()
            if path.is_file() and token in path.read_text(errors="replace")
        }
        assert holders == {"server.conf", "server.token"}
    assert token not in server.log_file.read_text()
    assert not (store / "server.conf").exists()
    assert not (store / "server.token").exists()


def test_payload_limit_is_what_was_asked(store: Path) -> None:
    with EmbeddedServer(store, max_payload_bytes=1 << 16, max_pending_bytes=1 << 20) as server:
        assert read_info(server.port)["max_payload"] == 1 << 16


@pytest.mark.parametrize("declared", [True, False])
def test_file_store_limit_is_enforced(store: Path, declared: bool) -> None:
    limit_bytes = 4 << 20
    with EmbeddedServer(store, file_store_bytes_max=limit_bytes) as server:
        if declared:
            with pytest.raises(nats.js.errors.APIError) as raised:
                publish(server, [], max_bytes=2 * limit_bytes)
            assert raised.value.err_code == 10047
        else:
            with pytest.raises(nats.js.errors.APIError) as raised:
                publish(server, [bytes(1 << 20)] * 8)
            assert raised.value.err_code == 10023


def test_sync_interval(store: Path) -> None:
    for always, word in ((False, '"1s"'), (True, '"always"')):
        with EmbeddedServer(store, sync_always=always):
            assert f'"sync_interval": {word}' in (store / "server.conf").read_text()


def test_log_is_rotated(store: Path) -> None:
    with EmbeddedServer(store, trace=True, log_size_bytes_max=8192) as server:
        for _ in range(5):
            publish(server, [b"x" * 100] * 50)
        # While it rotates there is one more.
        wait_until(lambda: len(list(store.glob("nats-server.log*"))) == 2)
        logs = list(store.glob("nats-server.log*"))
        assert all(path.stat().st_size < 64 << 10 for path in logs)


def test_log_file_elsewhere(store: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "deep" / "nats.log"
    with EmbeddedServer(store, log_file=log, log_time=False):
        assert "ready" in log.read_text()


def test_any_path_will_do(tmp_path: Path) -> None:
    store = tmp_path / "a \"b\" 'c' $HOME {d} # \u00e9 \\ e"
    with EmbeddedServer(store) as server:
        assert publish(server, [b"x"]) == 1
        assert (store / "jetstream").is_dir()


def test_import_starts_no_thread() -> None:
    code = "import threading, vecmq.server; print(threading.active_count())"
    output = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert int(output.stdout) == 1


# ---- start and stop


def test_stop_reaps_and_a_new_start_finds_the_data(store: Path) -> None:
    server = EmbeddedServer(store).start()
    first_pid, first_token = server.pid, server.token
    assert first_pid is not None
    publish(server, [b"a", b"b"])
    assert server.start() is server
    assert server.pid == first_pid
    server.stop()
    server.stop()
    assert not psutil.pid_exists(first_pid)
    assert psutil.Process().children() == []
    assert not server.alive
    for name in ("port", "url", "token"):
        with pytest.raises(ServerError):
            getattr(server, name)
    with server:
        assert server.token != first_token
        assert publish(server, []) == 2


def test_stops_on_error(store: Path) -> None:
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), EmbeddedServer(store) as server:  # noqa: PT012
        pids.append(server.pid or 0)
        raise ZeroDivisionError
    assert not psutil.pid_exists(pids[0])


def test_two_threads_start_one_server(store: Path) -> None:
    server = EmbeddedServer(store)
    threads = [threading.Thread(target=server.start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.pid is not None
    servers = watchdog_of(server.pid).children()
    server.stop()
    assert len(servers) == 1
    assert psutil.Process().children() == []


def test_the_starting_thread_may_end(store: Path) -> None:
    server = EmbeddedServer(store)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    pid = server.pid
    assert pid is not None
    time.sleep(0.5)
    assert is_running(pid)
    assert (server.pid, server.restarts_count) == (pid, 0)
    server.stop()


def test_given_port(store: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with EmbeddedServer(store, port=port) as server:
        assert server.port == port
    with EmbeddedServer(store, port=port) as server:
        assert read_info(port)["jetstream"] is True


# ---- what keeps it from starting


@pytest.mark.parametrize(
    "options",
    [
        {"port": 65536},
        {"port": -2},
        {"port": True},
        {"max_payload_bytes": 0},
        {"max_payload_bytes": 2 << 20, "max_pending_bytes": 1 << 20},
        {"max_pending_bytes": 1 << 31},
        {"file_store_bytes_max": 0},
        {"initialize_timeout_s": 0},
        {"initialize_timeout_s": float("nan")},
        {"log_size_bytes_max": -1},
        {"log_file": "a\nb"},
    ],
)
def test_wrong_options(store: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EmbeddedServer(store, **options)  # type: ignore[arg-type]
    assert not store.exists()


def test_port_taken(server: EmbeddedServer, tmp_path: Path) -> None:
    second = tmp_path / "second"
    with pytest.raises(ServerError) as raised:
        EmbeddedServer(second, port=server.port).start()
    assert str(server.port) in str(raised.value)
    assert not second.exists()
    assert publish(server, [b"x"]) == 1


def test_port_taken_while_the_server_starts(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecmq.server._check_port_free", lambda _: None)
    second = EmbeddedServer(tmp_path / "second", port=server.port)
    with pytest.raises(ServerError) as raised:
        second.start()
    assert str(server.port) in str(raised.value)
    assert "address already in use" in str(raised.value)  # the reason from the server's own log
    assert len(psutil.Process().children()) == 1


def test_store_in_use_by_this_process(store: Path, server: EmbeddedServer) -> None:
    with pytest.raises(LockedError) as raised:
        EmbeddedServer(store).start()
    assert str(os.getpid()) in str(raised.value)
    assert publish(server, [b"x"]) == 1


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """File modes do not bind root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("exists", [True, False])
def test_read_only_directory(exists: bool) -> None:
    # Not tmp_path: its parents are closed to others.
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        store = base / "store"
        if exists:
            store.mkdir(mode=0o555)
        base.chmod(0o555)
        try:
            with unprivileged(), pytest.raises(ServerError) as raised:
                EmbeddedServer(store).start()
        finally:
            base.chmod(0o755)
        assert str(store) in str(raised.value)
        assert list(base.rglob("*")) == ([store] if exists else [])


def test_store_is_a_file(store: Path) -> None:
    store.write_text("mine")
    with pytest.raises(ServerError) as raised:
        EmbeddedServer(store).start()
    assert str(store) in str(raised.value)
    assert store.read_text() == "mine"


def test_the_servers_own_reason_is_passed_on(store: Path) -> None:
    store.mkdir()
    (store / "jetstream").write_text("in the way")
    with pytest.raises(ServerError) as raised:
        EmbeddedServer(store).start()
    assert str(store) in str(raised.value)
    assert "[FTL]" in str(raised.value)
    (store / "jetstream").unlink()
    with EmbeddedServer(store) as server:
        assert server.alive


def test_log_cannot_be_written(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for log in (tmp_path / "file" / "nats.log", tmp_path):
        with pytest.raises(ServerError) as raised:
            EmbeddedServer(store, log_file=log).start()
        assert str(tmp_path) in str(raised.value)
    assert psutil.Process().children() == []


@pytest.mark.parametrize(
    "script",
    [
        "echo nats-server: v2.12.5",
        "echo nats-server: v2.10.27",
        "echo hello",
        "exit 3",
        "while :; do echo endless; done",
    ],
)
def test_wrong_binary(store: Path, tmp_path: Path, script: str) -> None:
    binary = make_script(tmp_path / "nats-server", script)
    with pytest.raises(ServerError) as raised:
        EmbeddedServer(store, binary=binary).start()
    assert str(binary) in str(raised.value)
    assert not store.exists()


@pytest.mark.parametrize("kind", ["missing", "directory", "not executable", "not a program"])
def test_no_binary(store: Path, tmp_path: Path, kind: str) -> None:
    binary = tmp_path / "binary"
    if kind == "directory":
        binary.mkdir()
    elif kind != "missing":
        binary.write_bytes(b"\x00nothing")
        binary.chmod(0o755 if kind == "not a program" else 0o644)
    with pytest.raises(ServerError) as raised:
        EmbeddedServer(store, binary=binary).start()
    assert str(binary) in str(raised.value)
    assert not store.exists()


def test_binary_comes_from_the_wheel_or_the_environment(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VECMQ_NATS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    binary = find_binary()
    assert binary.name.startswith("nats-server")
    linked = tmp_path / "linked"
    linked.symlink_to(binary)
    monkeypatch.setenv("VECMQ_NATS_SERVER", str(linked))
    assert find_binary() == linked
    with EmbeddedServer(store) as server:
        assert psutil.Process(server.pid).cmdline()[0] == str(linked)
    monkeypatch.setenv("VECMQ_NATS_SERVER", str(tmp_path / "gone"))
    with pytest.raises(ServerError):
        find_binary()


def test_not_ready_in_time(store: Path, tmp_path: Path) -> None:
    silent = make_script(
        tmp_path / "nats-server",
        'if [ "$1" = --version ]; then echo nats-server: v2.15.1; else exec sleep 600; fi',
    )
    server = EmbeddedServer(store, binary=silent, initialize_timeout_s=0.3)
    with pytest.raises(ServerError) as raised:
        server.start()
    assert "0.3" in str(raised.value)
    assert psutil.Process().children() == []
    assert not server.alive
    with EmbeddedServer(store) as second:
        assert second.alive
