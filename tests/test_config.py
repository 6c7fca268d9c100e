"""milvus.yaml: Milvus' keys, defaults and units; and what a wrong file does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmq.config import MilvusConfig, load
from vecmq.errors import ConfigError
from vecmq.retention import Retention
from vecmq.server import EmbeddedServer

FILES = Path(__file__).parent / "milvus"
MINUTE_MS = 60_000
NO_ENV: dict[str, str] = {}


def load_text(directory: Path, text: str | bytes, env: dict[str, str] = NO_ENV) -> MilvusConfig:
    path = directory / "milvus.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    return load(path, env)


def assert_refused(directory: Path, text: str | bytes, *named: str) -> None:
    """Refused with a ConfigError that names these values."""
    with pytest.raises(ConfigError) as raised:
        load_text(directory, text)
    for value in named:
        assert value in str(raised.value)


def test_defaults_are_milvus_own(tmp_path: Path) -> None:
    config = load_text(tmp_path, "")
    assert config.mq_type == "rocksmq"
    assert config.mode == "queue"
    server = config.natsmq
    assert (server.port, server.store_dir) == (4222, Path("/var/lib/milvus/nats"))
    assert server.file_store_bytes_max == 16 << 30
    assert (server.max_payload_bytes, server.max_pending_bytes) == (8 << 20, 64 << 20)
    assert server.initialize_timeout_ms == 4000
    monitor = server.monitor
    assert (monitor.trace, monitor.debug, monitor.log_time) == (False, False, True)
    assert monitor.log_file == Path("/tmp/milvus/logs/nats.log")
    assert monitor.log_size_bytes_max == 512 << 20
    assert server.retention == Retention(age_ms_max=4320 * MINUTE_MS, unacked=True)
    queue = config.rocksmq
    assert queue.path == Path("/var/lib/milvus/rdb_data")
    assert queue.retention == Retention(age_ms_max=4320 * MINUTE_MS, bytes_max=7200 << 20)
    assert (queue.lru_cache_ratio, queue.page_size_bytes) == (0.06, 64 << 20)
    assert (queue.compaction_interval_s, queue.retention_interval_s) == (86400, 600)
    assert queue.compression_types == (0, 0, 7, 7, 7)
    assert (config.unknown_keys, config.ignored_keys) == ((), ())


def test_natsmq_file() -> None:
    config = load(FILES / "natsmq.yaml", NO_ENV)
    assert config.mode == "nats"
    assert config.log_line() == '["try to init mq"] [standalone=true] [mqType=natsmq]'
    assert config.unknown_keys == ()
    assert "rocksmq.retentionSizeInMB" in config.ignored_keys
    assert "mq.dispatcher.mergeCheckInterval" in config.ignored_keys
    assert not any(key.startswith("natsmq") for key in config.ignored_keys)
    assert config.open_options() == {
        "mode": "nats",
        "path": Path("/var/lib/milvus/nats"),
        "retention": Retention(age_ms_max=4320 * MINUTE_MS, unacked=True),
    }


def test_rocksmq_file_in_other_spellings() -> None:
    config = load(FILES / "rocksmq.yaml", NO_ENV)
    assert (config.mode, config.server_options()) == ("queue", None)
    assert config.rocksmq.page_size_bytes == 16 << 20
    assert config.rocksmq.compression_types == (0, 7)
    assert config.open_options() == {
        "mode": "queue",
        "path": Path("/data/rdb"),
        "retention": Retention(age_ms_max=60 * MINUTE_MS, bytes_max=1 << 30),
    }
    assert config.unknown_keys == ()
    assert config.ignored_keys == ("rocksmq.rocksmqPageSize", "rocksmq.compressionTypes")


def test_hybrid_file_takes_both_sections() -> None:
    config = load(FILES / "hybrid.yaml", NO_ENV)
    assert config.log_line().endswith("[mqType=hybrid]")
    assert config.open_options() == {
        "mode": "hybrid",
        "path": Path("/data/rdb"),
        "retention": Retention(age_ms_max=30 * MINUTE_MS, bytes_max=1_000_000, msgs_max=5000),
    }
    assert config.unknown_keys == ("natsmq.server.clusterName", "rocksmq.writeBufferSize")
    assert config.ignored_keys == ("rocksmq.retentionSizeInMB",)
    options = config.server_options()
    assert options is not None
    assert options["initialize_timeout_s"] == 2.5
    assert options["debug"] is True
    EmbeddedServer(**options)  # every argument is one of the server's, and in its range


@pytest.mark.parametrize("mq_type", ["default", "rocksmq"])
def test_default_is_rocksmq_in_standalone(tmp_path: Path, mq_type: str) -> None:
    assert load_text(tmp_path, f"mq: {{type: {mq_type}}}").mq_type == "rocksmq"


@pytest.mark.parametrize("mq_type", ["pulsar", "kafka", "woodpecker", "RocksMQ", "nats", "[a]"])
def test_other_queues_are_refused(tmp_path: Path, mq_type: str) -> None:
    assert_refused(tmp_path, f"mq:\n  type: {mq_type}", "mq.type", "hybrid")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("natsmq.server.port", "70000"),
        ("natsmq.server.port", "0"),
        ("natsmq.server.port", "4222.0"),
        ("natsmq.server.port", "true"),
        ("natsmq.server.port", "{a: 1}"),
        ("natsmq.server.port", "[[1]]"),
        ("natsmq.server.maxPayload", "8MB"),
        ("natsmq.server.maxPayload", "9" * 5000),
        ("natsmq.server.maxFileStore", "-1"),
        ("natsmq.server.maxFileStore", "9223372036854775808"),
        ("natsmq.server.initializeTimeout", "0"),
        ("natsmq.server.initializeTimeout", "4s"),
        ("natsmq.server.monitor.trace", "yes"),
        ("natsmq.server.monitor.logTime", "2"),
        ("natsmq.server.monitor.logFile", '"a\\nb"'),
        ("natsmq.server.retention.maxAge", "-1"),
        ("natsmq.server.retention.maxAge", "9223372036854775807"),
        ("natsmq.server.retention.maxBytes", "1e9"),
        ("natsmq.server.retention.maxMsgs", "-2"),
        ("rocksmq.retentionTimeInMinutes", "3 days"),
        ("rocksmq.retentionTimeInMinutes", "-2"),
        ("rocksmq.retentionSizeInMB", "0x10"),
        ("rocksmq.lrucacheratio", "0.0.6"),
        ("rocksmq.lrucacheratio", "nan"),
        ("rocksmq.rocksmqPageSize", "0"),
        ("rocksmq.compressionTypes", "0,1"),
        ("rocksmq.compressionTypes", "[0,0,0,0,0,0,0,0]"),
        ("rocksmq.path", "[/data]"),
        ("mq.enablePursuitMode", "on"),
        ("mq.dispatcher.maxTolerantLag", "inf"),
    ],
)
def test_wrong_values_name_key_and_value(tmp_path: Path, key: str, value: str) -> None:
    shown = [] if value[0] in '{["' else [value[:20]]
    assert_refused(tmp_path, f"{key}: {value}", key, *shown)


@pytest.mark.parametrize("empty", ["", "~", "null", '""', "''"])
def test_empty_is_unset(tmp_path: Path, empty: str) -> None:
    config = load_text(tmp_path, f"natsmq: {{server: {{port: {empty}}}}}\nrocksmq: {empty}\n")
    assert config.natsmq.port == 4222
    assert config.ignored_keys == ()


@pytest.mark.parametrize(
    ("minutes", "age_ms"), [("-1", None), ("0", 0), ("1", MINUTE_MS), ("+5", 5 * MINUTE_MS)]
)
def test_rocksmq_retention(tmp_path: Path, minutes: str, age_ms: int | None) -> None:
    text = f"rocksmq: {{retentionTimeInMinutes: {minutes}, retentionSizeInMB: {minutes}}}"
    retention = load_text(tmp_path, text).rocksmq.retention
    assert retention.age_ms_max == age_ms
    assert retention.bytes_max == (None if age_ms is None else int(minutes) << 20)
    assert not retention.unacked  # RocksMQ never deletes what a group has not acked


@pytest.mark.parametrize("limit", ["", "0", "-1"])
def test_natsmq_retention_without_limit(tmp_path: Path, limit: str) -> None:
    text = f"natsmq.server.retention: {{maxAge: 0, maxBytes: {limit}, maxMsgs: {limit}}}"
    retention = load_text(tmp_path, text).natsmq.retention
    assert (retention.age_ms_max, retention.bytes_max, retention.msgs_max) == (None, None, None)


def test_payload_over_pending_is_refused_where_a_server_runs(tmp_path: Path) -> None:
    text = "natsmq.server: {maxPayload: 2097152, maxPending: 1048576}\nmq: {type: %s}"
    assert_refused(tmp_path, text % "natsmq", "natsmq.server.maxPayload", "2097152", "1048576")
    assert_refused(tmp_path, text % "hybrid")
    assert load_text(tmp_path, text % "rocksmq").mode == "queue"


def test_environment_wins_over_the_file() -> None:
    env = {
        "NATSMQ_SERVER_PORT": "4333",
        "MILVUS_CONF_NATSMQ_SERVER_PORT": "4334",
        "natsmq_server_max_payload": "1048576",
        "MILVUS_CONF_NATSMQ_SERVER_CLUSTER": "a",
        "ROCKSMQ_PATH": "",
        "MQ_SERVICE_HOST": "10.0.0.1",
        "NATSMQ_FOO": "not ours to judge",
    }
    config = load(FILES / "natsmq.yaml", env)
    assert config.natsmq.port == 4334
    assert config.natsmq.max_payload_bytes == 1 << 20
    assert config.rocksmq.path == Path("/var/lib/milvus/rdb_data")
    assert config.unknown_keys == ("MILVUS_CONF_NATSMQ_SERVER_CLUSTER",)


def test_wrong_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError) as raised:
        load(FILES / "natsmq.yaml", {"NATSMQ_SERVER_PORT": "tcp://10.0.0.1:4222"})
    assert "NATSMQ_SERVER_PORT" in str(raised.value)
    assert "natsmq.server.port" in str(raised.value)


def test_directory_and_milvusconf(tmp_path: Path) -> None:
    (tmp_path / "milvus.yaml").write_text("natsmq: {server: {port: 5000}}")
    assert load(tmp_path, NO_ENV).natsmq.port == 5000
    assert load(env={"MILVUSCONF": str(tmp_path)}).natsmq.port == 5000
    with pytest.raises(ConfigError):
        load(env=NO_ENV)


def test_symlink_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "linked.yaml"
    link.symlink_to(FILES / "hybrid.yaml")
    assert load(link, NO_ENV).mode == "hybrid"


@pytest.mark.parametrize("name", ["tabs.yaml", "latin1.yaml", "endless.yaml", "missing.yaml"])
def test_malformed_files(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(FILES / name, NO_ENV)
    assert name in str(raised.value)
    assert "minioadmin-secret" not in str(raised.value)


def test_alias_bomb_is_not_expanded() -> None:
    with pytest.raises(ConfigError):
        load(FILES / "alias_bomb.yaml", NO_ENV)


@pytest.mark.parametrize(
    "text",
    [
        "- a\n- b",
        "just text",
        "natsmq: 5",
        "natsmq: [server]",
        "natsmq: {server: 4222}",
        "mq: {type: rocksmq}\nmq: {type: natsmq}",
        "natsmq:\n  server:\n    port: 1\n    port: 2",
        "natsmq.server: {maxPayload: 2048, max_payload: 4096}",
        "base: &b {port: 1}\nnatsmq: {server: {<<: *b}}",
        "a: *unknown",
        "a: 1\n---\nb: 2",
        "{" * 200,
        "a: " + "[" * 100_000,
        "? " * 10_000,
        "a: \x00",
        b"\xff\xfem\x00q\x00",
        b"a: " + b"x" * (1 << 20),
        "mq: {type: !!python/object/apply:os.system [true]}",
    ],
)
def test_malformed_texts(tmp_path: Path, text: str | bytes) -> None:
    assert_refused(tmp_path, text)


def test_not_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path / "dangling"):
        if path.name == "dangling":
            path.symlink_to(tmp_path / "nothing")
        with pytest.raises(ConfigError):
            load(path, NO_ENV)


def test_other_sections_are_not_judged(tmp_path: Path) -> None:
    text = "mqtt: {port: x}\nother: {a: 1, <<: {b: 2}, 5: [1]}\n? [complex]\n: 1\n"
    assert load_text(tmp_path, text).unknown_keys == ()


def test_unknown_keys_are_listed_as_written(tmp_path: Path) -> None:
    text = "mq: {kind: a}\nnatsmq: {server: {monitor: {Level: 1}}, s: {x: 1}}\nrocksmq: {5: 6}"
    expected = ("mq.kind", "natsmq.server.monitor.Level", "natsmq.s", "rocksmq.5")
    assert load_text(tmp_path, text).unknown_keys == expected


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_any_text_gives_a_config_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    directory = tmp_path_factory.mktemp("any")
    for prefix in ("", "natsmq:\n  server:\n    port: "):
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        try:
            load_text(directory, prefix.encode() + raw)
        except ConfigError:
            continue


@pytest.mark.parametrize(
    "wrong",
    [
        {"age_ms_max": -1},
        {"bytes_max": 1.5},
        {"msgs_max": True},
        {"age_ms_max": 1 << 63},
        {"unacked": "no"},
    ],
)
def test_retention_checks_its_limits(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Retention(**wrong)  # type: ignore[arg-type]
