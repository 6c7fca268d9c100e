"""The keys of Milvus' sections ``mq``, ``natsmq``, ``rocksmq``: defaults, units, what is allowed.

A default is what Milvus uses when the key is missing from the file, which once differs from the
file it ships (``rocksmq.retentionSizeInMB`` 7200, shipped 8192).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GROUPS", "KEYS", "SECTIONS", "Key", "normalize", "show"]

SECTIONS: Final = ("mq", "natsmq", "rocksmq")
INT64_MAX: Final = (1 << 63) - 1
INT32_MAX: Final = (1 << 31) - 1
# Ages travel as signed 64-bit nanoseconds.
MINUTES_MAX: Final = INT64_MAX // 60_000_000_000
SHOWN_CHARACTERS_MAX: Final = 80

ALL: Final = frozenset({"queue", "nats", "hybrid"})
QUEUE: Final = frozenset({"queue", "hybrid"})
NATS: Final = frozenset({"nats", "hybrid"})
QUEUE_ONLY: Final = frozenset({"queue"})
NOWHERE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file.

    Attributes:
        path: Its name as Milvus writes it.
        default: Value when it is unset.
        parse: Reads its text; raises ValueError.
        allowed: What its text may be, in words, with the unit.
        modes: The modes in which it has an effect.
    """

    path: str
    default: object
    parse: Callable[[str], object]
    allowed: str
    modes: frozenset[str]


def normalize(path: str) -> str:
    """Reduce a key path to what Milvus compares: lower case without ``_``, ``.`` and ``/``."""
    return re.sub(r"[._/]", "", path).lower()


def show(text: str) -> str:
    """Quote a value for a message, cut to a readable length."""
    cut = text if len(text) <= SHOWN_CHARACTERS_MAX else text[:SHOWN_CHARACTERS_MAX] + "..."
    return repr(cut)


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text, re.ASCII):
        raise ValueError
    return int(text)


def _int_key(
    path: str, default: int | None, low: int, high: int, unit: str, modes: frozenset[str]
) -> Key:
    def parse(text: str) -> int:
        value = _integer(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Key(path, default, parse, f"an integer from {low} to {high}{unit}", modes)


def _port_key(path: str, default: int) -> Key:
    def parse(text: str) -> int:
        value = _integer(text)
        if value != -1 and not 1 <= value <= 65535:
            raise ValueError
        return value

    return Key(path, default, parse, "-1 (a free port) or a port from 1 to 65535", NATS)


def _float_key(path: str, default: float, low: float, high: float, unit: str) -> Key:
    def parse(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value

    return Key(path, default, parse, f"a number from {low} to {high}{unit}", NOWHERE)


def _bool_key(path: str, default: bool, modes: frozenset[str]) -> Key:
    def parse(text: str) -> bool:
        if text in ("1", "t", "T", "true", "TRUE", "True"):
            return True
        if text in ("0", "f", "F", "false", "FALSE", "False"):
            return False
        raise ValueError

    return Key(path, default, parse, "true or false", modes)


def _path_key(path: str, default: str, modes: frozenset[str]) -> Key:
    def parse(text: str) -> str:
        if text.startswith("[") or any(ord(one) < 32 or ord(one) == 127 for one in text):
            raise ValueError
        return text

    return Key(path, default, parse, "a path without control characters", modes)


def _type_key() -> Key:
    def parse(text: str) -> str:
        if text not in ("default", "rocksmq", "natsmq", "hybrid"):
            raise ValueError
        return text

    allowed = (
        "default (which is rocksmq), rocksmq, natsmq or hybrid; "
        "pulsar, kafka and woodpecker are not part of this product"
    )
    return Key("mq.type", "default", parse, allowed, ALL)


def _compression_key(path: str) -> Key:
    def parse(text: str) -> tuple[int, ...]:
        codes = tuple(_integer(one.strip()) for one in text.strip("[]").split(","))
        if not 1 <= len(codes) <= 7 or not set(codes) <= {0, 7}:
            raise ValueError
        return codes

    return Key(path, (0, 0, 7, 7, 7), parse, "1 to 7 codes, each 0 (none) or 7 (zstd)", NOWHERE)


def _table() -> tuple[Key, ...]:
    server, monitor, retention = "natsmq.server", "natsmq.server.monitor", "natsmq.server.retention"
    dispatcher = "mq.dispatcher"
    return (
        _type_key(),
        _bool_key("mq.enablePursuitMode", True, NOWHERE),
        _int_key("mq.pursuitLag", 10, 0, INT32_MAX, " seconds", NOWHERE),
        _int_key("mq.pursuitBufferSize", 8388608, 0, INT64_MAX, " bytes", NOWHERE),
        _int_key("mq.pursuitBufferTime", 60, 0, INT32_MAX, " seconds", NOWHERE),
        _int_key("mq.mqBufSize", 16, 0, INT32_MAX, " messages", NOWHERE),
        _int_key("mq.receiveBufSize", 16, 0, INT32_MAX, " messages", NOWHERE),
        _bool_key("mq.ignoreBadPosition", False, NOWHERE),
        _float_key(f"{dispatcher}.mergeCheckInterval", 0.1, 0, INT32_MAX, " seconds"),
        _int_key(f"{dispatcher}.targetBufSize", 16, 0, INT32_MAX, " messages", NOWHERE),
        _float_key(f"{dispatcher}.maxTolerantLag", 3, 0, INT32_MAX, " seconds"),
        _float_key(f"{dispatcher}.maxPositionGapInMinutes", 60, 0, INT32_MAX, " minutes"),
        _port_key(f"{server}.port", 4222),
        _path_key(f"{server}.storeDir", "/var/lib/milvus/nats", NATS),
        _int_key(f"{server}.maxFileStore", 17179869184, 1, INT64_MAX, " bytes", NATS),
        _int_key(f"{server}.maxPayload", 8388608, 1024, INT32_MAX, " bytes", NATS),
        _int_key(f"{server}.maxPending", 67108864, 1024, INT32_MAX, " bytes", NATS),
        _int_key(f"{server}.initializeTimeout", 4000, 1, 10**9 - 1, " milliseconds", NATS),
        _bool_key(f"{monitor}.trace", False, NATS),
        _bool_key(f"{monitor}.debug", False, NATS),
        _bool_key(f"{monitor}.logTime", True, NATS),
        _path_key(f"{monitor}.logFile", "/tmp/milvus/logs/nats.log", NATS),
        _int_key(f"{monitor}.logSizeLimit", 536870912, 0, INT64_MAX, " bytes (0: no limit)", NATS),
        _int_key(f"{retention}.maxAge", 4320, 0, MINUTES_MAX, " minutes (0: no limit)", NATS),
        _int_key(f"{retention}.maxBytes", None, -1, INT64_MAX, " bytes (0, -1: no limit)", NATS),
        _int_key(f"{retention}.maxMsgs", None, -1, INT64_MAX, " messages (0, -1: no limit)", NATS),
        _path_key("rocksmq.path", "/var/lib/milvus/rdb_data", QUEUE),
        _float_key("rocksmq.lrucacheratio", 0.06, 0, 1, " of the memory"),
        _int_key("rocksmq.rocksmqPageSize", 67108864, 1, INT64_MAX, " bytes", NOWHERE),
        _int_key(
            "rocksmq.retentionTimeInMinutes", 4320, -1, MINUTES_MAX, " minutes (-1: off)", QUEUE
        ),
        _int_key(
            "rocksmq.retentionSizeInMB", 7200, -1, INT64_MAX >> 20, " MiB (-1: off)", QUEUE_ONLY
        ),
        _int_key("rocksmq.compactionInterval", 86400, 0, INT32_MAX, " seconds", NOWHERE),
        _int_key("rocksmq.timtickerInterval", 600, 1, INT32_MAX, " seconds", NOWHERE),
        _compression_key("rocksmq.compressionTypes"),
    )


KEYS: Final[dict[str, Key]] = {normalize(key.path): key for key in _table()}
# The mappings that hold them, normalized.
GROUPS: Final = frozenset(
    normalize(".".join(parts[:depth]))
    for parts in (key.path.split(".") for key in KEYS.values())
    for depth in range(len(parts))
)
