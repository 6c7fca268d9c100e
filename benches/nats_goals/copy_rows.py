"""How often a payload is copied in the client's memory on its way to the socket.

A preloaded library counts the calls of memcpy and memmove of 64 KiB and more; what the kernel
copies is not among them. nats-py, natsio and natsrpy stand in the note.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import memcount
from compare import Figure, Goal, Group, Missing, peer, progress
from contest import HERE, LARGE, PYTHON_PEERS, NatsContext
from vecmq.bench.process import BenchError

COPIED_MSGS: Final = 10
GOALS: Final = {f"copies-{size}": Goal(0, digits=1) for size, _, _ in LARGE}


def copies(size: str, size_bytes: int) -> Group:
    """Makes the row of a size.

    Args:
        size: Its name.
        size_bytes: Of a message.

    Returns:
        The group.
    """
    row = f"copies-{size}"

    def measure(context: NatsContext) -> dict[str, Figure]:
        library = memcount.build(context.directory)
        if library is None:
            raise Missing("not measured: no C compiler")
        clients = {"vecmq": (sys.executable, str(HERE))}
        for name in PYTHON_PEERS:
            try:
                python, worker = peer(name).command
            except Missing as missing:
                progress(f"{name}: {missing}")
            else:
                clients[name] = (python, str(Path(worker).parent))
        counted = {
            name: count(context, library, name, client, size_bytes)
            for name, client in clients.items()
        }
        context.samples[row] = [dict(counted)]
        notes = [f"{name} {value:.1f}" for name, value in counted.items() if name != "vecmq"]
        return {row: Figure(counted["vecmq"], ", ".join(notes))}

    return Group((row,), measure)


def count(
    context: NatsContext, library: Path, name: str, client: tuple[str, str], size_bytes: int
) -> float:
    """Counts for one client.

    Args:
        context: Of this run.
        library: The counter.
        name: Of the client.
        client: Its Python, and the directory of its worker.
        size_bytes: Of a message.

    Returns:
        Bytes copied a byte published.

    Raises:
        BenchError: It failed.
    """
    python, workers = client
    server = context.server
    command = [python, str(HERE / "copies.py"), name, workers, server.url, server.token or ""]
    done = subprocess.run(
        [*command, str(size_bytes), str(COPIED_MSGS)],
        env=memcount.preloaded(library),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"counting copies of {name} ended with exit code {done.returncode}")
    value = float(done.stdout.splitlines()[-1])
    progress(f"copies of {size_bytes} bytes, {name}: {value:.2f}")
    return value


GROUPS: Final = [copies(size, size_bytes) for size, size_bytes, _ in LARGE]
