"""What the commands share: the app, exit codes, where messages are stored, consoles."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter
from rich.console import Console

import vecmq
import vecmq.sync
from vecmq._nats_options import from_environment
from vecmq.errors import Error, LockedError, NotConnectedError

__all__ = [
    "ANYWHERE",
    "EXIT_CONNECT",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_PIPE",
    "EXIT_USAGE",
    "NO_SERVER",
    "Codec",
    "JsonFile",
    "Mode",
    "Server",
    "UsageError",
    "Where",
    "app",
    "data_console",
    "examples",
    "print_line",
    "save",
    "save_text",
]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONNECT: Final = 3
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141

# Where stdout is no terminal, tables take the room they need.
WIDTH_WITHOUT_TERMINAL: Final = 200

# A path, or "-".
JsonFile = Annotated[str | None, Parameter(allow_leading_hyphen=True)]
Mode = Literal["hybrid", "queue", "nats"]
Codec = Literal["auto", "raw", "zstd", "planes", "pk3", "lz4"]


class UsageError(Error):
    """Arguments that make no sense together, or name a file that cannot be read."""


def examples(*lines: str) -> str:
    """Make the end of a command's help.

    Args:
        lines: Commands as they are typed.

    Returns:
        Markdown.
    """
    return "\n".join(["**Examples**", "", "```", *lines, "```"])


app = App(
    name="vecmq",
    help="Moves vectors through one topic over two routes: NATS JetStream and a RocksDB log.",
    help_epilogue=examples(
        "vecmq demo",
        "vecmq pub vectors embeddings.npy --path data",
        "vecmq sub vectors --group indexer --path data --out received",
        "vecmq bench table1 --scale 0.1",
    ),
    help_format="markdown",
    version=lambda: vecmq.__version__,
    default_parameter=Parameter(negative=()),
)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Server:
    """A NATS server; what is not said here is taken from the environment, as the nats CLI does.

    Attributes:
        nats: URL of a NATS server, for example nats://127.0.0.1:4222; several with commas between.
            Credentials: in the URL, or NATS_TOKEN, NATS_USER and NATS_PASSWORD, NATS_CREDS,
            NATS_NKEY in the environment.
        context: The same, by the name of a context of the nats CLI.
        creds: File of a user's credentials.
        nkey: File with the seed of an nkey.
        tlsca: File of the certificates to trust instead of the system's.
        tlscert: File of our own certificate.
        tlskey: File of its key.
        tlsfirst: The TLS handshake comes before anything else.
    """

    nats: str | None = None
    context: str | None = None
    creds: Path | None = None
    nkey: Path | None = None
    tlsca: Path | None = None
    tlscert: Path | None = None
    tlskey: Path | None = None
    tlsfirst: bool = False

    def options(self) -> vecmq.NatsOptions | None:
        """Put together where and who.

        Returns:
            NatsOptions; None: no server was named.

        Raises:
            UsageError: Two were named, or files without a server.
            ConfigError: The context cannot be read.
        """
        given = {
            "creds_path": self.creds,
            "nkey_path": self.nkey,
            "tls_ca_path": self.tlsca,
            "tls_cert_path": self.tlscert,
            "tls_key_path": self.tlskey,
            "tls_first": self.tlsfirst or None,
        }
        files: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.nats is not None and self.context is not None:
            raise UsageError("--nats, --context: expected one of them, got both")
        if self.context is not None:
            return replace(vecmq.NatsOptions.from_context(self.context), **files)
        if self.nats is not None:
            return from_environment(vecmq.NatsOptions(self.nats, **files))
        if files:
            raise UsageError("--creds, --nkey, --tls...: need --nats or --context")
        return None


NO_SERVER: Final = Server()


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Where:
    """Where messages are stored.

    Attributes:
        path: Directory of the queue and the embedded server; one process owns it at a time.
        server: A NATS server of one's own instead of the embedded one.
        mode: Default: hybrid with --path, nats with a server alone.
    """

    path: Path | None = None
    server: Server = NO_SERVER
    mode: Mode | None = None

    def open(self) -> vecmq.sync.Handle:
        """Open what was named; never a temporary directory, which would be deleted at the end.

        Returns:
            A handle to close.

        Raises:
            UsageError: Neither a directory nor a server was named.
            Error: As `vecmq.sync.open`.
        """
        mode = self.mode or ("nats" if self.path is None else "hybrid")
        nats = self.server.options()
        if self.path is None and (mode != "nats" or nats is None):
            raise UsageError("say where: --path DIR, or --nats URL")
        return vecmq.sync.open(self.path, mode=mode, nats=nats)

    def open_or_attach(self) -> vecmq.sync.Handle | vecmq.sync.AttachedHandle:
        """Open what was named; a directory that another process owns is attached to.

        Returns:
            A handle to close.

        Raises:
            LockedError: Another process owns the directory and takes no subscribers.
            Error: As `open`.
        """
        try:
            return self.open()
        except LockedError as locked:
            try:
                attached = vecmq.sync.attach(self.path or "")
            except NotConnectedError:
                raise locked from None
            sys.stderr.write(f"{self.path} is open in another process: subscribing through it\n")
            return attached


ANYWHERE: Final = Where()


def print_line(line: str) -> None:
    """Print data at once: what was done must be seen even when the next step is killed.

    Args:
        line: Text without a line break.
    """
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def data_console() -> Console:
    """Make the console for tables on stdout.

    Returns:
        A Console; without colours where stdout is no terminal.
    """
    return Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def save(file: str, document: dict[str, Any]) -> None:
    """Write a result as JSON.

    Args:
        file: Path, or "-" for stdout.
        document: JSON values.

    Raises:
        OSError: The file cannot be written.
    """
    save_text(file, json.dumps(document, indent=1) + "\n")


def save_text(file: str, text: str) -> None:
    """Write a text.

    Args:
        file: Path, or "-" for stdout.
        text: What to write.

    Raises:
        OSError: The file cannot be written.
    """
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text)
