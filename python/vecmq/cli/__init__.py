"""The command ``vecmq``.

stdout is for data, stderr for progress and the log. Exit codes: 0 done, 1 a check or the work
failed, 2 wrong usage, 3 no connection or denied by the server, 130 Ctrl-C (what was finished has
been printed).
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

try:
    from cyclopts import CycloptsError, Parameter
    from rich.console import Console
    from rich.text import Text
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"vecmq: the command line needs {missing.name}: pip install 'vecmq[cli]'"
    ) from None

# Importing a command registers it, in the order of the help.
from vecmq.cli.base import (
    EXIT_CONNECT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    EXIT_USAGE,
    UsageError,
    app,
)
from vecmq.cli.bench import bench
from vecmq.cli.demo import demo
from vecmq.cli.nats import nats
from vecmq.cli.pub import pub
from vecmq.cli.queue import queue
from vecmq.cli.queue_check import check as queue_check
from vecmq.cli.queue_topics import topics  # noqa: F401 - registers it and its neighbours
from vecmq.cli.serve import serve
from vecmq.cli.sub import sub
from vecmq.errors import (
    ConfigError,
    DeniedError,
    Error,
    InvalidHeadersError,
    InvalidNameError,
    NotConnectedError,
    ServerError,
)

__all__ = ["app", "bench", "demo", "main", "nats", "pub", "queue", "queue_check", "serve", "sub"]


@app.meta.default
def _meta(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: bool = False,
) -> int:
    """Run a command.

    Args:
        tokens: The command and its arguments.
        debug: Show tracebacks, and the log of the core.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("vecmq")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if debug else logging.WARNING)
    try:
        return _guarded(tokens, is_debug=debug)
    finally:
        log.removeHandler(handler)


def _guarded(tokens: Sequence[str], *, is_debug: bool) -> int:
    """Run a command; give its exit code, and its error as one line."""
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (| head); what it did not take was not acknowledged.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except (Error, CycloptsError, OSError, ModuleNotFoundError) as error:
        if is_debug:
            traceback.print_exc()
        _print_error(error)
        return _exit_code(error)
    return code if isinstance(code, int) else 0


def _print_error(error: Exception) -> None:
    message = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        message += " (pip install 'vecmq[all]')"
    kind = "UsageError" if isinstance(error, CycloptsError) else type(error).__name__
    Console(stderr=True, soft_wrap=True).print(Text(f"{kind}: {message}", style="red"))


def _exit_code(error: Exception) -> int:
    if isinstance(error, NotConnectedError | DeniedError | ServerError):
        return EXIT_CONNECT
    usage = (
        UsageError,
        CycloptsError,
        ConfigError,
        InvalidNameError,
        InvalidHeadersError,
        ModuleNotFoundError,
    )
    return EXIT_USAGE if isinstance(error, usage) else EXIT_FAILED


def main(tokens: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        tokens: Arguments; None: those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 no connection or denied by the
            server, 130 Ctrl-C.
    """
    given = sys.argv[1:] if tokens is None else tokens
    try:
        code = app.meta(given, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _print_error(error)
        return EXIT_USAGE
    return code if isinstance(code, int) else 0
