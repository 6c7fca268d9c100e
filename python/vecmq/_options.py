"""What `open` takes, checked, and the stores that belong to one handle."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from vecmq._native import Hub
from vecmq._nats_options import NatsOptions, check_nats, native_nats
from vecmq.errors import ConfigError
from vecmq.integrity import Recovery
from vecmq.retention import Retention

# At import: exit handlers run in reverse order, so handles close before their servers stop.
from vecmq.server import EmbeddedServer

Mode = Literal["hybrid", "queue", "nats"]
Route = Literal["queue", "nats"]
Codec = Literal["auto", "raw", "zstd", "planes", "pk3", "lz4"]
# With a level, as the core takes it.
Coding = tuple[Codec, int | None]
Level = Literal["stored", "durable"]
Start = Literal["first", "new"]

MESSAGE_BYTES_MAX = 1 << 30
TIMEOUT_S = 30.0
ACK_WAIT_S = 30.0
SWEEP_AGE_S = 3600.0

MODES = ("hybrid", "queue", "nats")
CODECS = ("auto", "raw", "zstd", "planes", "pk3", "lz4")
# Those that need nobody to choose.
FIXED_CODECS = CODECS[1:]
ZSTD_LEVEL_MAX = 19
LEVELS = ("stored", "durable")
ROUTES = ("queue", "nats")


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """Everything `open` was called with, checked."""

    path: Path | None
    mode: Mode
    nats: NatsOptions | None
    threshold_bytes: int | None
    codec: Codec
    codec_level: int | None
    level: Level
    message_bytes_max: int
    retention: Retention
    attach: bool
    replicas: int
    atomic: bool


def check_options(
    path: str | os.PathLike[str] | None,
    mode: Mode,
    nats: str | NatsOptions | None,
    *,
    threshold_bytes: int | None,
    codec: Codec,
    codec_level: int | None,
    level: Level,
    message_bytes_max: int,
    retention: Retention | None,
    attach: bool,
    replicas: int,
    atomic: bool,
) -> OpenOptions:
    """Check the arguments of `open` before anything is made.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.
    """
    _one_of("mode", mode, MODES)
    _one_of("codec", codec, CODECS)
    check_codec(codec, codec_level)
    _one_of("level", level, LEVELS)
    check_message_bytes(message_bytes_max)
    if threshold_bytes is not None and not (
        isinstance(threshold_bytes, int) and 0 <= threshold_bytes <= 1 << 40
    ):
        raise ConfigError(
            f"threshold_bytes: expected None or 0 to {1 << 40} bytes, got {threshold_bytes!r}"
        )
    if isinstance(nats, str):
        nats = NatsOptions(url=nats)
    if nats is not None:
        nats = check_nats(nats)
    if nats is not None and mode == "queue":
        raise ConfigError("nats: mode 'queue' has no NATS route")
    if nats is not None and level == "durable":
        raise ConfigError(
            "level: 'durable' needs a server that syncs before it acknowledges, "
            "which cannot be seen from a client; use the embedded server (nats=None)"
        )
    if not isinstance(attach, bool):
        raise ConfigError(f"attach: expected True or False, got {attach!r}")
    _check_stream(mode, replicas, atomic)
    if nats is not None:
        _check_link(nats.link_bytes_per_s)
    return OpenOptions(
        path=None if path is None else Path(path),
        mode=mode,
        nats=nats,
        threshold_bytes=threshold_bytes,
        codec=codec,
        codec_level=codec_level,
        level=level,
        message_bytes_max=message_bytes_max,
        retention=retention or Retention(),
        attach=attach,
        replicas=replicas,
        atomic=atomic,
    )


def _check_stream(mode: Mode, replicas: int, atomic: bool) -> None:
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 1 <= replicas <= 5:
        raise ConfigError(f"replicas: expected 1 to 5 servers, got {replicas!r}")
    if not isinstance(atomic, bool):
        raise ConfigError(f"atomic: expected True or False, got {atomic!r}")
    if mode == "queue" and (atomic or replicas != 1):
        raise ConfigError("replicas, atomic: mode 'queue' has no stream")


def check_codec(codec: Codec | None, codec_level: int | None) -> Coding | None:
    """Check a codec and its level; None for either leaves it to others and the codec.

    Returns:
        Codec and level as the core takes them; None for no codec.

    Raises:
        ConfigError: Unknown codec, or a level that it does not have.
    """
    if codec is not None:
        _one_of("codec", codec, CODECS)
    if codec_level is not None:
        if codec != "zstd":
            raise ConfigError(f"codec_level: only codec 'zstd' has levels, the codec is {codec!r}")
        if type(codec_level) is not int or not 1 <= codec_level <= ZSTD_LEVEL_MAX:
            raise ConfigError(f"codec_level: expected 1 to {ZSTD_LEVEL_MAX}, got {codec_level!r}")
    return None if codec is None else (codec, codec_level)


def _check_link(link_bytes_per_s: int | None) -> None:
    if link_bytes_per_s is None:
        return
    if type(link_bytes_per_s) is not int or not 0 < link_bytes_per_s < 1 << 63:
        raise ConfigError(
            f"link_bytes_per_s: expected None or bytes a second > 0, got {link_bytes_per_s!r}"
        )


def check_message_bytes(message_bytes_max: int) -> None:
    """Check the size of the largest message.

    Raises:
        ConfigError: It is out of its range.
    """
    if not isinstance(message_bytes_max, int) or not 1 <= message_bytes_max <= 1 << 40:
        raise ConfigError(
            f"message_bytes_max: expected 1 to {1 << 40} bytes, got {message_bytes_max!r}"
        )


def check_timeout(timeout_s: float | None, name: str = "timeout_s") -> None:
    """Check a timeout in seconds; None waits.

    Raises:
        ConfigError: It is not a positive number.
    """
    if timeout_s is None or timeout_s is TIMEOUT_S:
        return
    is_number = isinstance(timeout_s, (int, float)) and not isinstance(timeout_s, bool)
    if not is_number or math.isnan(timeout_s) or timeout_s <= 0:
        raise ConfigError(f"{name}: expected seconds > 0 or None, got {timeout_s!r}")


def check_delivery(
    topic: str, ack_wait_s: float | None, max_deliver: int | None, dead_letter_topic: str | None
) -> tuple[float | None, int | None, str | None]:
    """Check how a group's messages are delivered again.

    Returns:
        Wait in seconds, deliveries, and the topic of dead letters, as the core takes them.

    Raises:
        ConfigError: A value is out of its range, or dead letters without `max_deliver`.
    """
    check_timeout(ack_wait_s, "ack_wait_s")
    if max_deliver is None:
        if dead_letter_topic is not None:
            raise ConfigError("dead_letter_topic: needs max_deliver, which is None")
        return ack_wait_s, None, None
    is_int = isinstance(max_deliver, int) and not isinstance(max_deliver, bool)
    if not is_int or not 1 <= max_deliver < 1 << 32:
        raise ConfigError(
            f"max_deliver: expected None or 1 to {(1 << 32) - 1}, got {max_deliver!r}"
        )
    return ack_wait_s, max_deliver, dead_letter_topic or f"{topic}-dead"


def seek_target(to: object) -> tuple[str, int]:
    """Where to seek, as the core takes it: a kind and a number.

    Raises:
        ConfigError: Neither a seq, an aware datetime, "first" nor "new".
    """
    if isinstance(to, datetime):
        if to.tzinfo is None:
            raise ConfigError(f"to: expected a datetime with a time zone, got {to!r}")
        return "time", max(0, math.ceil(to.timestamp() * 1000))
    if to in ("first", "new"):
        return str(to), 0
    if isinstance(to, int) and not isinstance(to, bool) and 0 <= to < 1 << 64:
        return "seq", to
    raise ConfigError(f"to: expected a seq, a datetime, 'first' or 'new', got {to!r}")


def check_publish(
    timeout_s: float | None, route: Route | None, codec: Codec | None, codec_level: int | None
) -> Coding | None:
    """Check how messages are to be published.

    Returns:
        Codec and level as the core takes them; None for the publisher's.

    Raises:
        ConfigError: A bad timeout, route, codec or level.
    """
    # Called for each message: the usual case ends here.
    is_time = timeout_s is TIMEOUT_S or (timeout_s.__class__ is float and timeout_s > 0)
    if is_time and route is None and codec is None and codec_level is None:
        return None
    check_timeout(timeout_s)
    if route is not None:
        _one_of("route", route, ROUTES)
    return check_codec(codec, codec_level)


def check_seq(seq: int) -> int:
    """Check a position in a topic; 0 stands for an empty one.

    Returns:
        The seq.

    Raises:
        ConfigError: It is no integer of 64 bits.
    """
    if not isinstance(seq, int) or isinstance(seq, bool) or not 0 <= seq < 1 << 64:
        raise ConfigError(f"expected_last_seq: expected 0 to {(1 << 64) - 1}, got {seq!r}")
    return seq


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        expected = ", ".join(repr(one) for one in allowed)
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


class Stores:
    """The directory, the server and the core of one handle; opened and closed as one. Blocks."""

    def __init__(self, options: OpenOptions) -> None:
        self.options = options
        self.server: EmbeddedServer | None = None
        self._temporary: Path | None = None
        self._closed = False
        self._pid = os.getpid()
        if options.path is None:
            self._temporary = Path(tempfile.mkdtemp(prefix="vecmq-"))
        self.path = options.path or self._temporary
        try:
            self.hub = Hub(self._hub_options())
        except BaseException:
            self._release()
            raise
        self.recovery = Recovery.from_native(self.hub.recovery())
        _open_stores.add(self)

    def _hub_options(self) -> dict[str, Any]:
        assert self.path is not None
        options = self.options
        retention = options.retention
        nats = options.nats
        if options.mode != "nats" or nats is None:
            self._make_directory(self.path)
        if options.mode != "queue" and nats is None:
            nats = self._start_server(self.path / "nats")
        return {
            "mode": options.mode,
            "queue_path": None if options.mode == "nats" else str(self.path / "queue"),
            "nats": native_nats(nats) if nats else None,
            "durable": options.level == "durable",
            "codec": options.codec,
            "codec_level": options.codec_level,
            "link_bytes_per_s": nats.link_bytes_per_s if nats else None,
            "message_bytes_max": options.message_bytes_max,
            "threshold_bytes": options.threshold_bytes,
            "age_ms_max": retention.age_ms_max,
            "bytes_max": retention.bytes_max,
            "msgs_max": retention.msgs_max,
            "unacked": retention.unacked,
            "replicas": options.replicas,
            "atomic": options.atomic,
            "attach": options.attach,
        }

    @staticmethod
    def _make_directory(path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"path: cannot make the directory {path}: {error}") from error

    def _start_server(self, store_dir: Path) -> NatsOptions:
        self.server = EmbeddedServer(store_dir, sync_always=self.options.level == "durable")
        self.server.start()
        return check_nats(NatsOptions(url=self.server.url, token=self.server.token))

    def close(self) -> None:
        """Close the core, then the server; delete a temporary directory. Once is enough."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        _open_stores.discard(self)
        try:
            self.hub.close()
        finally:
            self._release()

    def _release(self) -> None:
        try:
            if self.server is not None:
                self.server.stop()
        finally:
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)


_open_stores: weakref.WeakSet[Stores] = weakref.WeakSet()


@atexit.register
def _close_open_stores() -> None:
    # A process that ends with open handles still releases its directories and servers.
    for stores in list(_open_stores):
        with contextlib.suppress(Exception):
            stores.close()
