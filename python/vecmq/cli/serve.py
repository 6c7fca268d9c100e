"""``vecmq serve``."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import vecmq
import vecmq.sync
from vecmq import config as milvus
from vecmq.cli.base import Mode, UsageError, app, examples, print_line
from vecmq.errors import ServerError
from vecmq.server import EmbeddedServer

__all__ = ["serve"]

WAIT_S: Final = 0.5
MQ_TYPES: Final = {"queue": "rocksmq", "nats": "natsmq", "hybrid": "hybrid"}

logger = logging.getLogger("vecmq.serve")


@app.command(
    help_epilogue=examples(
        "vecmq serve --path data",
        "vecmq serve --config milvus.yaml",
        "vecmq serve --path data --mode nats --port 4222",
    )
)
def serve(
    *,
    config: Path | None = None,
    path: Path | None = None,
    mode: Mode | None = None,
    port: int | None = None,
) -> int:
    """Run the embedded server and hold the queue open until SIGINT or SIGTERM (exit code 0).

    In the modes nats and hybrid, other processes use the server: its URL is printed, its token is
    in the file that is printed; a topic's stream takes the retention of the process that makes it.
    In the modes queue and hybrid the queue's directory is opened, its retention is enforced, and
    it is held until the end. Other processes cannot attach to it yet: while this runs, a second
    one that opens the directory gets an error that names this process.

    Args:
        config: A milvus.yaml (Milvus 2.3 to 2.5), or its directory: the sections mq, natsmq,
            rocksmq and the environment over them. Default without --path: the directory in
            MILVUSCONF.
        path: Directory of the stores; with --config instead of the file's own.
        mode: Mode without --config. Default: hybrid.
        port: TCP port on 127.0.0.1. Default: the configuration's, else a free one.
    """
    logging.getLogger("vecmq").setLevel(min(logging.INFO, logging.getLogger("vecmq").level))
    plan = _plan_serve(config, path, mode, port)
    # Why to end: the server did, or None, a signal came. Not an Event: one that a signal sets in
    # the moment it begins to wait would wait for itself.
    ends: SimpleQueue[ServerError | None] = SimpleQueue()
    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, lambda *_: ends.put(None))
            stack.callback(signal.signal, number, before)
        nats = None
        if plan.server is not None:
            plan.server.on_exit = ends.put
            server = stack.enter_context(plan.server)
            nats = vecmq.NatsOptions(url=server.url, token=server.token)
        if plan.mode != "nats":
            stack.enter_context(
                vecmq.sync.open(plan.path, mode=plan.mode, nats=nats, retention=plan.retention)
            )
        _announce(plan)
        failure = _wait(ends)
        logger.info("stopping")
    if failure is not None:
        raise failure
    return 0


def _wait(ends: SimpleQueue[ServerError | None]) -> ServerError | None:
    """Wait for the end. A signal that comes just before a wait interrupts none: waits are short."""
    while True:
        with suppress(Empty):
            return ends.get(timeout=WAIT_S)


def _announce(plan: _ServePlan) -> None:
    print_line(f"mode={plan.mode}")
    if plan.mode != "nats":
        print_line(f"path={plan.path}")
    if plan.server is not None:
        print_line(f"url={plan.server.url}")
        print_line(f"token_file={plan.server.store_dir / 'server.token'}")
    logger.info("ready")


@dataclass(frozen=True, slots=True)
class _ServePlan:
    mode: Mode
    path: Path
    retention: vecmq.Retention | None
    server: EmbeddedServer | None


def _plan_serve(
    config: Path | None, path: Path | None, mode: Mode | None, port: int | None
) -> _ServePlan:
    if config is None and path is not None:
        chosen = mode or "hybrid"
        logger.info('["try to init mq"] [standalone=true] [mqType=%s]', MQ_TYPES[chosen])
        server = None
        if chosen != "queue":
            server = EmbeddedServer(path / "nats", port=-1 if port is None else port)
        return _ServePlan(chosen, path, None, server)
    if config is None and not os.environ.get("MILVUSCONF"):
        raise UsageError("say what to serve: --config FILE or --path DIR")
    if mode is not None:
        raise UsageError("--mode: mq.type of the configuration decides; leave it out")
    loaded = milvus.load(config)
    logger.info("%s", loaded.log_line())
    for key in loaded.unknown_keys:
        logger.warning("%s: unknown key %s", loaded.path, key)
    for key in loaded.ignored_keys:
        logger.warning("%s: %s is set and has no effect here", loaded.path, key)
    options = loaded.open_options()
    if options["mode"] == "nats":
        logger.info("retention: a topic's stream takes the limits of the process that makes it")
    arguments = loaded.server_options()
    if arguments is not None:
        if path is not None:
            arguments["store_dir"] = path / "nats"
        if port is not None:
            arguments["port"] = port
    server = None if arguments is None else EmbeddedServer(**arguments)
    return _ServePlan(options["mode"], path or options["path"], options["retention"], server)
