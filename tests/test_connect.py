"""Every way to reach a server and to say who we are, against real servers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import vecmq
import vecmq.sync
from cli_tools import Command
from connect_tools import USER, Key, Operator, Pki, Server
from vecmq import NatsOptions
from vecmq._nats_options import check_nats, from_environment


def works(tmp_path: Path, options: NatsOptions) -> None:
    """A message goes out and comes back."""
    with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=options) as mq:
        mq.publisher("t").publish(b"payload")
        with mq.subscribe("t", "g") as subscriber:
            assert bytes(subscriber.fetch(timeout_s=10)[0].payload) == b"payload"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki") / "files")


def test_token_password_and_nkey(tmp_path: Path) -> None:
    with Server(tmp_path / "token", 'authorization { token: "to ken" }') as server:
        works(tmp_path, NatsOptions(f"nats://127.0.0.1:{server.port}", token="to ken"))
        works(tmp_path, NatsOptions(f"nats://to%20ken@127.0.0.1:{server.port}"))
    key, other = Key(USER), tmp_path / "seed"
    other.write_text(key.seed + "\n")
    users = f"users: [{{ nkey: {key.public} }}, {{ user: u, password: p }}]"
    with Server(tmp_path / "users", f"authorization {{ {users} }}") as server:
        url = f"nats://127.0.0.1:{server.port}"
        works(tmp_path, NatsOptions(url, user="u", password="p"))
        works(tmp_path, NatsOptions(url, nkey_seed=key.seed))
        works(tmp_path, NatsOptions(url, nkey_path=other))


def test_creds_and_jwt(tmp_path: Path) -> None:
    operator, creds = Operator(), tmp_path / "user.creds"
    creds.write_text(operator.creds(operator.account))
    jwt, seed = operator.user(operator.account)
    with Server(tmp_path / "server", operator.config()) as server:
        url = f"nats://127.0.0.1:{server.port}"
        works(tmp_path, NatsOptions(url, creds_path=creds))
        works(tmp_path, NatsOptions(url, user_jwt=jwt, nkey_seed=seed))
        works(tmp_path, NatsOptions(url, user_jwt=jwt, nkey_path=_file(tmp_path, seed)))


def _file(directory: Path, text: str) -> Path:
    path = directory / "a-file"
    path.write_text(text)
    return path


def test_tls_with_both_schemes_certificates_and_handshake_first(tmp_path: Path, pki: Pki) -> None:
    with Server(tmp_path / "server", pki.config("verify: true")) as server:
        for scheme in ("tls", "nats"):
            works(tmp_path, NatsOptions(f"{scheme}://127.0.0.1:{server.port}", **pki.client()))
    with Server(tmp_path / "first", pki.config("handshake_first: true")) as server:
        url = f"nats://127.0.0.1:{server.port}"
        works(tmp_path, NatsOptions(url, tls_ca_path=pki.ca, tls_first=True))
    with Server(tmp_path / "either", pki.config() + "\nallow_non_tls: true") as server:
        works(tmp_path, NatsOptions(f"tls://127.0.0.1:{server.port}", tls_ca_path=pki.ca))


def test_of_several_servers_one_that_answers(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        url = f"nats://127.0.0.1:{server.port}"
        works(tmp_path, NatsOptions(["nats://127.0.0.1:1", url]))
        works(tmp_path, NatsOptions(f"nats://127.0.0.1:1, {url}"))


def test_the_name_and_the_inbox_prefix_reach_the_server(tmp_path: Path) -> None:
    rights = 'publish: ">", subscribe: ["_MINE.>", "t"]'
    user = f"{{ user: u, password: p, permissions: {{ {rights} }} }}"
    with Server(tmp_path / "server", f"authorization {{ users: [{user}] }}\ntrace: true") as server:
        url = f"nats://127.0.0.1:{server.port}"
        works(tmp_path, NatsOptions(url, user="u", password="p", inbox_prefix="_MINE", name="me"))
        assert '"name":"me"' in server.log()


CONTEXTS = [
    ({}, NatsOptions()),
    ({"url": "tls://a:1,tls://b:2"}, NatsOptions("tls://a:1,tls://b:2")),
    ({"user": "u", "password": "p", "token": ""}, NatsOptions(user="u", password="p")),
    ({"token": "t", "inbox_prefix": "_X"}, NatsOptions(token="t", inbox_prefix="_X")),
    ({"creds": "/c"}, NatsOptions(creds_path=Path("/c"))),
    ({"nkey": "/n"}, NatsOptions(nkey_path=Path("/n"))),
    ({"user_jwt": "j", "user_seed": "s"}, NatsOptions(user_jwt="j", nkey_seed="s")),
    (
        {"ca": "/a", "cert": "/b", "key": "/k", "tls_first": True},
        NatsOptions(
            tls_ca_path=Path("/a"),
            tls_cert_path=Path("/b"),
            tls_key_path=Path("/k"),
            tls_first=True,
        ),
    ),
]


@pytest.mark.parametrize(("values", "expected"), CONTEXTS)
def test_contexts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, object],
    expected: NatsOptions,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    directory = tmp_path / "nats" / "context"
    directory.mkdir(parents=True)
    (directory / "here.json").write_text(json.dumps({"description": "", "url": "", **values}))
    (tmp_path / "nats" / "context.txt").write_text("here")
    assert NatsOptions.from_context("here") == expected
    assert NatsOptions.from_context() == expected


@pytest.mark.parametrize(
    "text",
    ["{", '["s3cret"]', '{"user": ["s3cret"]}', '{"jetstream_domain": "d", "token": "s3cret"}'],
)
def test_contexts_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    directory = tmp_path / "nats" / "context"
    directory.mkdir(parents=True)
    (directory / "here.json").write_text(text)
    with pytest.raises(vecmq.ConfigError) as caught:
        NatsOptions.from_context("here")
    assert "s3cret" not in str(caught.value)
    for name in ("there", "../here", "", None):
        with pytest.raises(vecmq.ConfigError):
            NatsOptions.from_context(name)


ENVIRONMENTS = [
    ({}, NatsOptions(("nats://127.0.0.1:4222",))),
    ({"NATS_URL": "tls://u:p@h"}, NatsOptions(("tls://h",), user="u", password="p")),
    ({"NATS_URL": "h", "NATS_TOKEN": "t"}, NatsOptions(("h",), token="t")),
    ({"NATS_URL": "h", "NATS_USER": "u"}, NatsOptions(("h",), user="u", password="")),
    ({"NATS_URL": "t@h", "NATS_CREDS": "/c"}, NatsOptions(("h",), token="t")),
    (
        {"NATS_URL": "h", "NATS_CREDS": "/c", "NATS_TOKEN": "t"},
        NatsOptions(("h",), creds_path="/c"),
    ),
    ({"NATS_URL": "h", "NATS_NKEY": "/n"}, NatsOptions(("h",), nkey_path="/n")),
    (
        {"NATS_URL": "h", "NATS_CA": "/a", "NATS_CERT": "/b", "NATS_KEY": "/k"},
        NatsOptions(("h",), tls_ca_path="/a", tls_cert_path="/b", tls_key_path="/k"),
    ),
    ({"NATS_URL": "h", "NATS_TIMEOUT": "500ms"}, NatsOptions(("h",), connect_timeout_s=0.5)),
]


@pytest.mark.parametrize(("variables", "expected"), ENVIRONMENTS)
def test_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: NatsOptions
) -> None:
    for name in [name for name in os.environ if name.startswith("NATS_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert NatsOptions.from_environment() == expected
    if "NATS_URL" in variables:
        assert from_environment(NatsOptions(variables["NATS_URL"])) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"url": ""},
        {"url": "http://h"},
        {"url": "nats://u:s3cret,more@h"},
        {"url": "nats://a:s3cret@h,nats://b:s3cret@i"},
        {"url": 7},
        {"url": "nats://s3cret@h", "user": "u"},
        {"token": "s3cret", "creds_path": "/c"},
        {"password": "s3cret"},
        {"user_jwt": "s3cret"},
        {"user_jwt": "s3cret", "user": "u"},
        {"token": b"s3cret"},
        {"tls_cert_path": "/c"},
        {"tls": 1},
        {"max_reconnects": 0},
        {"max_pending": None},
        {"reconnect_wait_s": 0},
        {"ping_interval_s": float("nan")},
        {"request_timeout_s": float("inf")},
        {"inbox_prefix": "a.>"},
        {"inbox_prefix": "a b"},
        {"name": None},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(vecmq.ConfigError) as caught:
        check_nats(NatsOptions(**options))
    assert "s3cret" not in f"{caught.value} {NatsOptions(**options)!r}"


@pytest.mark.parametrize("name", ["tls_ca_path", "creds_path", "nkey_path"])
def test_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    file: dict[str, Any] = {name: tmp_path / "absent"}
    options = NatsOptions("nats://127.0.0.1:1", **file)
    with pytest.raises(vecmq.ConfigError):
        vecmq.sync.open(tmp_path / "mq", nats=options)


def test_commands_take_a_server_and_who_we_are(
    tmp_path: Path,
    pki: Pki,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = Command(capsys, monkeypatch)
    operator, creds = Operator(), tmp_path / "user.creds"
    creds.write_text(operator.creds(operator.account))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "nats" / "context").mkdir(parents=True)
    with Server(tmp_path / "server", f"{operator.config()}\n{pki.config()}") as server:
        url = f"tls://127.0.0.1:{server.port}"
        context = {"url": url, "creds": str(creds), "ca": str(pki.ca)}
        (tmp_path / "nats" / "context" / "here.json").write_text(json.dumps(context))
        who = ["--creds", str(creds), "--tlsca", str(pki.ca)]
        for where in (["--nats", url, *who], ["--context", "here"]):
            outcome = command("pub", "t", "-", *where, "--json", stdin=b"x")
            assert [line["route"] for line in outcome.lines] == ["nats"]
        for wrong in (who, ["--nats", url, "--context", "here"]):
            assert command("pub", "t", "-", *wrong, stdin=b"x").code == 2
