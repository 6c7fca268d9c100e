"""The embedded nats-server under fire: kills of every process involved, forks, signals, exits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from server_tools import (
    WAIT_S,
    Owner,
    is_running,
    publish,
    read_info,
    wait_gone,
    wait_until,
    watchdog_of,
)
from vecmq.errors import ForkError, LockedError, ServerError
from vecmq.server import EmbeddedServer

# The watchdog gives it 1 s, then kills; the rest is for a loaded machine and a slow disk.
GONE_WITHIN_S = 5.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def server(store: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(store) as running:
        yield running


@pytest.fixture
def make_owner(store: Path) -> Iterator[Callable[..., Owner]]:
    owners: list[Owner] = []

    def make(after_start: str = "time.sleep(600)") -> Owner:
        owners.append(Owner(store, after_start))
        return owners[-1]

    yield make
    for owner in owners:
        owner.kill()
        assert owner.process.stdout is not None
        assert owner.process.stdin is not None
        owner.process.stdout.close()
        owner.process.stdin.close()
        wait_gone(owner.server_pid)


def test_store_in_use_by_another_process(store: Path, make_owner: Callable[..., Owner]) -> None:
    owner = make_owner()
    with pytest.raises(LockedError) as raised:
        EmbeddedServer(store).start()
    assert str(owner.process.pid) in str(raised.value)
    assert is_running(owner.server_pid)
    assert read_info(owner.port)["jetstream"] is True


def test_a_killed_server_comes_back_on_its_port(server: EmbeddedServer) -> None:
    publish(server, [b"a", b"b", b"c"])
    pid, port, token = server.pid, server.port, server.token
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.alive and server.pid != pid)
    assert (server.port, server.token, server.restarts_count) == (port, token, 1)
    assert publish(server, []) == 3


def test_a_killed_watchdog_leaves_one_server(server: EmbeddedServer) -> None:
    publish(server, [b"a"])
    pid = server.pid
    assert pid is not None
    watchdog_of(pid).kill()
    wait_until(lambda: server.alive and server.pid != pid)
    assert not is_running(pid)
    assert publish(server, []) == 1


@pytest.mark.parametrize("who", ["watchdog", "server"])
def test_stop_of_a_stuck_process(store: Path, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmq._server_process.STOP_GRACE_S", 0.5)
    server = EmbeddedServer(store).start()
    pid = server.pid
    assert pid is not None
    (watchdog_of(pid) if who == "watchdog" else psutil.Process(pid)).suspend()
    server.stop()
    # A server without its watchdog lets go of its lock a moment before it is gone.
    wait_gone(pid, GONE_WITHIN_S)
    assert psutil.Process().children() == []


def test_a_server_that_keeps_crashing_is_given_up(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone: list[ServerError] = []
    server = EmbeddedServer(store)
    server.on_exit = gone.append
    with server:
        last = 0
        while not gone:
            wait_until(lambda: gone or (server.alive and server.pid != last))  # noqa: B023
            pid = server.pid
            if pid is not None:
                last = pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert isinstance(gone[0], ServerError)
        assert not server.alive
        assert server.restarts_count == 5
        assert [r.levelname for r in caplog.records] == ["WARNING"] * 5 + ["ERROR"]
        with pytest.raises(LockedError):
            EmbeddedServer(store).start()
    with EmbeddedServer(store) as second:
        assert second.alive


def test_on_exit_may_stop_the_server(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecmq.server.RESTARTS_PER_MINUTE_MAX", 1)
    stopped = threading.Event()
    server = EmbeddedServer(store)

    def on_exit(_: ServerError) -> None:
        server.stop()
        stopped.set()

    server.on_exit = on_exit
    server.start()
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: server.pid not in (None, first))
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert stopped.wait(WAIT_S)
    with server:
        assert server.alive


def test_dies_with_its_owner(store: Path, make_owner: Callable[..., Owner]) -> None:
    owner = make_owner()
    watchdog = watchdog_of(owner.server_pid)
    owner.kill()
    wait_gone(owner.server_pid, GONE_WITHIN_S)
    wait_gone(watchdog.pid)
    with EmbeddedServer(store) as server:
        assert server.alive


def test_new_start_right_after_the_owner_was_killed(
    store: Path, make_owner: Callable[..., Owner]
) -> None:
    for _ in range(5):
        owner = make_owner()
        owner.kill()
        with EmbeddedServer(store) as server:
            assert not is_running(owner.server_pid)
            publish(server, [b"x"])
    with EmbeddedServer(store) as server:
        assert publish(server, []) == 5


def test_owner_and_watchdog_killed(store: Path, make_owner: Callable[..., Owner]) -> None:
    owner = make_owner()
    watchdog_of(owner.server_pid).kill()
    owner.kill()
    with EmbeddedServer(store) as server:
        assert not is_running(owner.server_pid)
        assert server.alive


def test_stuck_server_of_a_killed_owner(store: Path, make_owner: Callable[..., Owner]) -> None:
    owner = make_owner()
    watchdog = watchdog_of(owner.server_pid)
    psutil.Process(owner.server_pid).suspend()
    watchdog.suspend()
    owner.kill()
    with EmbeddedServer(store) as server:
        assert not is_running(owner.server_pid)
        assert server.alive
    watchdog.kill()


def test_a_later_process_with_the_old_pid_is_spared(store: Path) -> None:
    EmbeddedServer(store).start().stop()
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        (store / "server.pid").write_text(str(bystander.pid))
        with EmbeddedServer(store):
            assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("ending", ["pass", "sys.exit(3)", "raise ValueError", "os._exit(4)"])
def test_ends_with_its_interpreter(
    store: Path, make_owner: Callable[..., Owner], ending: str
) -> None:
    owner = make_owner(f"sys.stderr = open(os.devnull, 'w')\n{ending}")
    code = owner.process.wait(WAIT_S)
    assert code == {"pass": 0, "sys.exit(3)": 3, "raise ValueError": 1, "os._exit(4)": 4}[ending]
    wait_gone(owner.server_pid, GONE_WITHIN_S)
    assert (store / "server.token").exists() == (ending == "os._exit(4)")


def test_ctrl_c_is_the_owners_own(make_owner: Callable[..., Owner]) -> None:
    owner = make_owner(
        "try:\n    print(flush=True); time.sleep(600)\nexcept KeyboardInterrupt:\n"
        "    time.sleep(0.3); print(server.pid, server.restarts_count, flush=True); server.stop()"
    )
    owner.read()
    os.killpg(owner.process.pid, signal.SIGINT)
    assert owner.read().split() == [str(owner.server_pid), "0"]
    assert owner.process.wait(WAIT_S) == 0


def test_works_with_ignored_and_blocked_signals(make_owner: Callable[..., Owner]) -> None:
    owner = make_owner(
        "server.stop()\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n"
        "server.start(); print(server.alive, flush=True); server.stop(); print(server.alive)"
    )
    assert owner.read().strip() == "True"
    assert owner.read().strip() == "False"


FORK = """
child = os.fork()
if child == 0:
    try:
        server.start()
    except Exception as error:
        # One write: two processes share this pipe.
        sys.stdout.write("%s %s\\n" % (type(error).__name__, server.alive))
        sys.stdout.flush()
    server.stop()
    {child}
{parent}
"""


def test_a_forked_child_does_not_own_the_server(make_owner: Callable[..., Owner]) -> None:
    owner = make_owner(
        FORK.format(
            child="sys.exit(0)",
            parent="os.waitpid(child, 0); print(server.pid, flush=True); sys.stdin.readline()",
        )
    )
    assert owner.read().split() == [ForkError.__name__, "False"]
    assert owner.read().split() == [str(owner.server_pid)]
    assert is_running(owner.server_pid)
    assert read_info(owner.port)["jetstream"] is True


def test_a_forked_child_keeps_neither_lock_nor_server(
    store: Path, make_owner: Callable[..., Owner]
) -> None:
    owner = make_owner(
        FORK.format(
            child="time.sleep(600)",
            parent="sys.stdout.write(f'{child}\\n'); sys.stdout.flush(); time.sleep(600)",
        )
    )
    lines = {owner.read().strip(), owner.read().strip()}
    child = next(int(line) for line in lines if line.isdigit())
    try:
        owner.kill()
        wait_gone(owner.server_pid, GONE_WITHIN_S)
        assert is_running(child)
        with EmbeddedServer(store) as server:
            assert server.alive
    finally:
        os.kill(child, signal.SIGKILL)
