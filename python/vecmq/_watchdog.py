"""Runs one nats-server for exactly as long as its owner lives; started by `vecmq.server`.

This file is a program of its own (``python -I -S _watchdog.py ...``), not part of the package: it
imports only what the interpreter has built in, and has one thread. That is what makes it the place
for the two things which are unsafe in the owner: code between fork and exec, and
``PR_SET_PDEATHSIG``, which fires when the *thread* that forked ends.

Standard input is a pipe whose other end only the owner holds. ``s`` on it asks for a patient stop;
its end, which the kernel brings about however the owner dies, for a quick one. Standard output
carries two lines back: ``pid N`` when the server runs, ``exit N`` when it has been reaped (minus
the signal's number when a signal ended it).

The run file stays locked by the server itself, so the next owner can see a server that is still
ending even when every Python process of this one is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time

# A server of a killed owner needs this long to end before the next one may open the store.
RUN_LOCK_TIMEOUT_S = 3.0
RUN_LOCK_RETRY_S = 0.01
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Start the server, wait for its end or the owner's, and report.

    Returns:
        Exit code of this process: 0 when the server was started and reaped.
    """
    binary, config, run_file, pid_file = sys.argv[1:5]
    owner_gone_grace_s, stop_grace_s = float(sys.argv[5]), float(sys.argv[6])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    run = _lock_run_file(run_file)
    if run is None:
        sys.stderr.write(f"vecmq: {run_file} is still locked by a former server\n")
        return 1
    pid = os.fork()
    if pid == 0:
        _become_server(binary, config, pid_file, run)
    os.close(run)  # the server's copy holds the lock, however this process fares
    _say(f"pid {pid}\n")
    status = _supervise(pid, wake, owner_gone_grace_s, stop_grace_s)
    _say(f"exit {os.waitstatus_to_exitcode(status)}\n")
    return 0


def _lock_run_file(path: str) -> int | None:
    """Lock the run file; a former server may need a moment to let go of it."""
    run = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + RUN_LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(RUN_LOCK_RETRY_S)
        else:
            return run


def _become_server(binary: str, config: str, pid_file: str, run: int) -> None:
    """Turn this forked child into the server. Never returns."""
    try:
        supervisor = os.getppid()
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        # The supervisor may have died before the call above took effect.
        if os.getppid() != supervisor or _is_closed(0):
            os._exit(0)
        # Recorded before the server exists: no moment at which it runs without a record.
        temporary = f"{pid_file}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        os.replace(temporary, pid_file)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.set_inheritable(run, True)
        os.execv(binary, [binary, "-c", config])
    except BaseException as error:  # nothing may return into the supervisor's code
        sys.stderr.write(f"vecmq: cannot run {binary}: {error}\n")
        sys.stderr.flush()
    os._exit(127)


def _is_closed(stdin: int) -> bool:
    """Tell whether the owner's end of the pipe is gone."""
    poll = select.poll()
    poll.register(stdin, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


def _supervise(pid: int, wake: int, owner_gone_grace_s: float, stop_grace_s: float) -> int:
    """Wait for the server's end, ending it when asked or when the owner is gone."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(wake, select.POLLIN)
    deadline: float | None = None
    while True:
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = [fd for fd, _ in poll.poll(None if left_s is None else left_s * 1000)]
        grace_s: float | None = None
        if wake in ready:
            # Read before looking at the child: a later SIGCHLD then leaves its byte in the pipe.
            signals = os.read(wake, 512)
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                return status
            if signal.SIGTERM in signals:
                grace_s = stop_grace_s
        if 0 in ready:
            if os.read(0, 64):
                grace_s = stop_grace_s
            else:
                poll.unregister(0)
                grace_s = owner_gone_grace_s
        if grace_s is not None:
            _kill(pid, signal.SIGTERM)
            end = time.monotonic() + grace_s
            deadline = end if deadline is None else min(deadline, end)
        elif deadline is not None and time.monotonic() >= deadline:
            _kill(pid, signal.SIGKILL)
            deadline = None


def _kill(pid: int, number: int) -> None:
    """Send a signal to the server, which stays our child until it is reaped here."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _say(line: str) -> None:
    """Tell the owner; it may be gone."""
    with contextlib.suppress(OSError):
        os.write(1, line.encode("ascii"))


if __name__ == "__main__":
    sys.exit(main())
