"""Reads the message queue sections of a Milvus configuration file (``milvus.yaml``).

The keys, defaults and units are those of Milvus 2.3 to 2.5 (2.6 has no natsmq any more): sections
``mq``, ``natsmq`` and ``rocksmq``. As in Milvus, names match without regard to case, ``_``, ``.``
and ``/``; an environment variable (the key in upper case, ``.`` as ``_``, with or without the
prefix ``MILVUS_CONF_``) wins over the file; an empty value is an unset one; numbers and booleans
are written as Go reads them (``true``, ``T``, ``1``; not ``yes``).

Where this product differs from Milvus: ``mq.type`` may also be ``hybrid``;
``natsmq.server.maxFileStore`` is enforced; a stream over ``natsmq.server.retention.maxBytes`` or
``maxMsgs`` refuses new messages, where Milvus deletes acknowledged ones unread.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from vecmq._config_keys import GROUPS, KEYS, SECTIONS, Key, normalize, show
from vecmq.errors import ConfigError
from vecmq.retention import Retention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from yaml.nodes import MappingNode, Node

__all__ = [
    "MilvusConfig",
    "MonitorConfig",
    "NatsmqConfig",
    "OpenArguments",
    "RocksmqConfig",
    "ServerArguments",
    "load",
]

FILE_BYTES_MAX: Final = 1 << 20
DEPTH_MAX: Final = 64
# Paths that are looked at; aliases can make a small file into a large (or an endless) tree.
PATHS_MAX: Final = 1000
ENV_PREFIX: Final = "MILVUS_CONF_"
MINUTE_MS: Final = 60_000
MIB: Final = 1 << 20

Mode = Literal["hybrid", "queue", "nats"]
_MODES: Final[dict[str, Mode]] = {
    "default": "queue",
    "rocksmq": "queue",
    "natsmq": "nats",
    "hybrid": "hybrid",
}


class OpenArguments(TypedDict):
    """Keyword arguments of `vecmq.open`."""

    mode: Mode
    path: Path
    retention: Retention


class ServerArguments(TypedDict):
    """Keyword arguments of `vecmq.server.EmbeddedServer`."""

    store_dir: Path
    port: int
    max_payload_bytes: int
    max_pending_bytes: int
    file_store_bytes_max: int
    initialize_timeout_s: float
    log_file: Path
    log_size_bytes_max: int
    debug: bool
    trace: bool
    log_time: bool


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """Section ``natsmq.server.monitor``: the server's log.

    Attributes:
        trace: Log every protocol line.
        debug: Log debug lines.
        log_time: Start each line with the time.
        log_file: Path of the log.
        log_size_bytes_max: Size at which the log is rotated; 0 never.
    """

    trace: bool
    debug: bool
    log_time: bool
    log_file: Path
    log_size_bytes_max: int


@dataclass(frozen=True, slots=True)
class NatsmqConfig:
    """Section ``natsmq.server``: the embedded nats-server.

    Attributes:
        port: TCP port on loopback; -1 takes a free one.
        store_dir: Directory of the JetStream store.
        file_store_bytes_max: Bytes of all streams together.
        max_payload_bytes: Largest NATS message.
        max_pending_bytes: Bytes that may wait for one client.
        initialize_timeout_ms: Milliseconds until the server has to be ready.
        monitor: The server's log.
        retention: What the streams keep.
    """

    port: int
    store_dir: Path
    file_store_bytes_max: int
    max_payload_bytes: int
    max_pending_bytes: int
    initialize_timeout_ms: int
    monitor: MonitorConfig
    retention: Retention


@dataclass(frozen=True, slots=True)
class RocksmqConfig:
    """Section ``rocksmq``. All but `path` and `retention` is checked and has no effect here.

    Attributes:
        path: Directory of the queue.
        retention: What the queue keeps of what every subscription group has acked.
        lru_cache_ratio: Share of the memory for RocksDB's block cache.
        page_size_bytes: Bytes that RocksMQ deletes at once.
        compaction_interval_s: Seconds between compactions.
        retention_interval_s: Seconds between two looks at the retention (``timtickerInterval``).
        compression_types: RocksDB's compression of each level, 0 none, 7 zstd.
    """

    path: Path
    retention: Retention
    lru_cache_ratio: float
    page_size_bytes: int
    compaction_interval_s: int
    retention_interval_s: int
    compression_types: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MilvusConfig:
    """What a ``milvus.yaml`` and the environment say about the message queue.

    Attributes:
        mq_type: "rocksmq", "natsmq" or "hybrid"; Milvus' "default" is resolved.
        natsmq: Section ``natsmq``.
        rocksmq: Section ``rocksmq``.
        path: The file that was read.
        unknown_keys: Keys of the three sections that Milvus does not have, as written; and
            environment variables with Milvus' prefix for such keys.
        ignored_keys: Known keys that are set and have no effect here, or none with this `mq_type`.
    """

    mq_type: str
    natsmq: NatsmqConfig
    rocksmq: RocksmqConfig
    path: Path
    unknown_keys: tuple[str, ...]
    ignored_keys: tuple[str, ...]

    @property
    def mode(self) -> Mode:
        """The mode of `vecmq.open` that `mq_type` stands for."""
        return _MODES[self.mq_type]

    @property
    def retention(self) -> Retention:
        """What a handle of this mode keeps.

        In mode "hybrid" the shorter age of both sections counts, and the stream's byte and message
        limits: a byte limit of the queue would make the stream refuse messages.
        """
        if self.mode == "queue":
            return self.rocksmq.retention
        stream = self.natsmq.retention
        if self.mode == "nats":
            return stream
        ages = [a for a in (self.rocksmq.retention.age_ms_max, stream.age_ms_max) if a is not None]
        return Retention(
            age_ms_max=min(ages, default=None),
            bytes_max=stream.bytes_max,
            msgs_max=stream.msgs_max,
        )

    def open_options(self) -> OpenArguments:
        """Give the keyword arguments for `vecmq.open`.

        Without `nats`: in the modes "nats" and "hybrid" it is the URL and token of the server that
        `server_options` describes.

        Returns:
            mode, path (the queue's directory, in mode "nats" the server's) and retention.
        """
        path = self.natsmq.store_dir if self.mode == "nats" else self.rocksmq.path
        return {"mode": self.mode, "path": path, "retention": self.retention}

    def server_options(self) -> ServerArguments | None:
        """Give the keyword arguments for `vecmq.server.EmbeddedServer`.

        Returns:
            The arguments; None in mode "queue", which has no server.
        """
        if self.mode == "queue":
            return None
        server, monitor = self.natsmq, self.natsmq.monitor
        return {
            "store_dir": server.store_dir,
            "port": server.port,
            "max_payload_bytes": server.max_payload_bytes,
            "max_pending_bytes": server.max_pending_bytes,
            "file_store_bytes_max": server.file_store_bytes_max,
            "initialize_timeout_s": server.initialize_timeout_ms / 1000,
            "log_file": monitor.log_file,
            "log_size_bytes_max": monitor.log_size_bytes_max,
            "debug": monitor.debug,
            "trace": monitor.trace,
            "log_time": monitor.log_time,
        }

    def log_line(self) -> str:
        """Give the line that Milvus logs when it chooses its queue.

        Returns:
            For example ``["try to init mq"] [standalone=true] [mqType=natsmq]``.
        """
        return f'["try to init mq"] [standalone=true] [mqType={self.mq_type}]'


def load(
    path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None
) -> MilvusConfig:
    """Read a Milvus configuration file and the environment over it.

    Args:
        path: The file, or the directory of a ``milvus.yaml``; None: that of the directory in the
            environment variable MILVUSCONF. At most 1 MiB of UTF-8.
        env: The environment; None: that of the process.

    Returns:
        The configuration, with Milvus' defaults for what is unset.

    Raises:
        ConfigError: The file cannot be read or is no YAML mapping, or a value is wrong; the message
            names the key path, the value and what is allowed.

    Source: Milvus 2.5 ``configs/milvus.yaml`` and its parameter table.
    """
    env = os.environ if env is None else env
    file = _locate(path, env)
    found, unknown = _read_file(file)
    overrides, unknown_overrides = _read_env(env)
    found |= overrides
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        text, source = found.get(name, (None, ""))
        values[key.path] = key.default if text is None else _parse(key, text, source)
    mq_type = "rocksmq" if values["mq.type"] == "default" else str(values["mq.type"])
    mode = _MODES[mq_type]
    _check_together(values, mode)
    ignored = tuple(
        key.path
        for name, key in KEYS.items()
        if name in found and found[name][0] is not None and mode not in key.modes
    )
    return MilvusConfig(
        mq_type=mq_type,
        natsmq=_natsmq(values),
        rocksmq=_rocksmq(values),
        path=file,
        unknown_keys=(*unknown, *unknown_overrides),
        ignored_keys=ignored,
    )


def _parse(key: Key, text: str, source: str) -> object:
    try:
        return key.parse(text)
    except ValueError:
        raise ConfigError(
            f"{key.path}: expected {key.allowed}, got {show(text)} ({source})"
        ) from None


def _check_together(values: dict[str, Any], mode: Mode) -> None:
    payload = values["natsmq.server.maxPayload"]
    pending = values["natsmq.server.maxPending"]
    # Milvus fails here too, when it starts the server.
    if mode != "queue" and payload > pending:
        raise ConfigError(
            f"natsmq.server.maxPayload: expected at most natsmq.server.maxPending "
            f"({pending} bytes), got {payload} bytes"
        )


def _natsmq(values: dict[str, Any]) -> NatsmqConfig:
    server, monitor, retention = (
        "natsmq.server.",
        "natsmq.server.monitor.",
        "natsmq.server.retention.",
    )
    return NatsmqConfig(
        port=values[server + "port"],
        store_dir=Path(values[server + "storeDir"]),
        file_store_bytes_max=values[server + "maxFileStore"],
        max_payload_bytes=values[server + "maxPayload"],
        max_pending_bytes=values[server + "maxPending"],
        initialize_timeout_ms=values[server + "initializeTimeout"],
        monitor=MonitorConfig(
            trace=values[monitor + "trace"],
            debug=values[monitor + "debug"],
            log_time=values[monitor + "logTime"],
            log_file=Path(values[monitor + "logFile"]),
            log_size_bytes_max=values[monitor + "logSizeLimit"],
        ),
        # JetStream reads 0 and -1 as no limit.
        retention=Retention(
            age_ms_max=values[retention + "maxAge"] * MINUTE_MS or None,
            bytes_max=_limit(values[retention + "maxBytes"]),
            msgs_max=_limit(values[retention + "maxMsgs"]),
            unacked=True,
        ),
    )


def _limit(value: int | None) -> int | None:
    return value if value and value > 0 else None


def _rocksmq(values: dict[str, Any]) -> RocksmqConfig:
    minutes = values["rocksmq.retentionTimeInMinutes"]
    mebibytes = values["rocksmq.retentionSizeInMB"]
    return RocksmqConfig(
        path=Path(values["rocksmq.path"]),
        # RocksMQ deletes what is older (or beyond the size) and acked: -1 never, 0 at once.
        retention=Retention(
            age_ms_max=None if minutes < 0 else minutes * MINUTE_MS,
            bytes_max=None if mebibytes < 0 else mebibytes * MIB,
        ),
        lru_cache_ratio=values["rocksmq.lrucacheratio"],
        page_size_bytes=values["rocksmq.rocksmqPageSize"],
        compaction_interval_s=values["rocksmq.compactionInterval"],
        retention_interval_s=values["rocksmq.timtickerInterval"],
        compression_types=values["rocksmq.compressionTypes"],
    )


def _locate(path: str | os.PathLike[str] | None, env: Mapping[str, str]) -> Path:
    if path is None:
        directory = env.get("MILVUSCONF")
        if not directory:
            raise ConfigError("no configuration file: no path given, and MILVUSCONF is not set")
        return Path(directory) / "milvus.yaml"
    file = Path(path)
    return file / "milvus.yaml" if file.is_dir() else file


def _read_file(file: Path) -> tuple[dict[str, tuple[str | None, str]], list[str]]:
    """Read what the file sets: (text, place) by normalized key; and its unknown keys."""
    root = _compose(file, _read_text(file))
    found: dict[str, tuple[str | None, str]] = {}
    unknown: list[str] = []
    if root is None:
        return found, unknown
    for path, name, node, line in _walk(root, file):
        key = KEYS.get(name)
        if key is None:
            unknown.append(path)
            continue
        source = f"{file} line {line}"
        if name in found:
            raise ConfigError(f"{path}: set twice ({found[name][1]} and line {line})")
        found[name] = (_text(key, node, source), source)
    return found, unknown


def _read_text(file: Path) -> str:
    try:
        # Not blocking: a named pipe would wait for its writer.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ConfigError(f"{file}: expected a regular file")
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration: {error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{file}: expected at most {FILE_BYTES_MAX} bytes, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: expected UTF-8, got a wrong byte at {error.start}") from None


def _compose(file: Path, text: str) -> MappingNode | None:
    """Parse YAML to its nodes: no tag is resolved and no object made, every scalar is text."""
    import yaml

    class Loader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: Node | None, index: int) -> Node | None:
            self.depth += 1
            if self.depth > DEPTH_MAX:
                raise ConfigError(f"{file}: nested deeper than {DEPTH_MAX} levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    try:
        root = Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # Not the error's own text: it quotes the file, which holds the secrets of other sections.
        raise ConfigError(f"{file}{place}: no YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: no YAML: {error}") from None
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        return None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{file}: expected a mapping of sections")
    return root


def _walk(root: MappingNode, file: Path) -> Iterator[tuple[str, str, Node, int]]:
    """Yield path, normalized path, value node and line of every key in our sections."""
    import yaml

    stack: list[tuple[str, Node, int]] = [("", root, 0)]
    looked = 0
    while stack:
        path, node, line = stack.pop()
        name = normalize(path)
        looked += 1
        if looked > PATHS_MAX:
            raise ConfigError(f"{file}: expected at most {PATHS_MAX} keys in {SECTIONS}")
        if name in KEYS or name not in GROUPS:
            yield path, name, node, line
        elif isinstance(node, yaml.MappingNode):
            stack.extend(reversed(list(_children(path, node, file))))
        elif not (isinstance(node, yaml.ScalarNode) and _is_null(node)):
            raise ConfigError(f"{path}: expected a mapping ({file} line {line})")


def _children(path: str, node: MappingNode, file: Path) -> Iterator[tuple[str, Node, int]]:
    import yaml

    seen: set[str] = set()
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        if not path and re.split(r"[._/]", key)[0].lower() not in SECTIONS:
            continue
        if key in seen:
            raise ConfigError(f"{path or 'top'}: key {show(key)} twice ({file} line {line})")
        seen.add(key)
        if key == "<<":
            raise ConfigError(f"{path}: merge keys (<<) are not supported ({file} line {line})")
        yield f"{path}.{key}" if path else key, value, line


def _is_null(node: Any) -> bool:
    is_plain = node.style is None
    return not node.value.strip() or (is_plain and node.value in ("~", "null", "Null", "NULL"))


def _text(key: Key, node: Node, source: str) -> str | None:
    """Give a value as text, a list joined by commas; None for an empty one."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        return None if _is_null(node) else str(node.value).strip()
    if isinstance(node, yaml.SequenceNode) and all(
        isinstance(item, yaml.ScalarNode) for item in node.value
    ):
        return "[" + ",".join(str(item.value) for item in node.value) + "]"
    kind = "a mapping" if isinstance(node, yaml.MappingNode) else "a nested list"
    raise ConfigError(f"{key.path}: expected {key.allowed}, got {kind} ({source})")


def _read_env(env: Mapping[str, str]) -> tuple[dict[str, tuple[str | None, str]], list[str]]:
    """Read what the environment sets. With the prefix wins over without it."""
    found: dict[str, tuple[str | None, str]] = {}
    unknown: list[str] = []
    for variable in sorted(env, key=lambda name: (name.upper().startswith(ENV_PREFIX), name)):
        has_prefix = variable.upper().startswith(ENV_PREFIX)
        bare = variable[len(ENV_PREFIX) :] if has_prefix else variable
        name = normalize(bare)
        if name in KEYS:
            if text := env[variable].strip():
                found[name] = (text, f"environment variable {variable}")
        elif has_prefix and bare.split("_")[0].lower() in SECTIONS:
            unknown.append(variable)
    return found, unknown
