"""What goes wrong on the way to a server: typed, in time, and without a secret in the clear.

Row 34 of the fault matrix: `SECRET` stands in every way to say who we are; it may be neither on the
wire in the clear where TLS is asked for, nor in an error, a traceback, a repr or a log line.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import vecmq
import vecmq.sync
from connect_tools import HOST, USER, Key, Operator, Pki, Proxy, Server
from server_tools import wait_until
from vecmq import NatsOptions

SECRET = "s3cret-pa55"
TIMEOUT_S = 4.0
# A loaded machine; what hangs takes for ever, not twice as long.
SLACK_S = 10.0
TOKEN = f'authorization {{ token: "{SECRET}" }}'


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki") / "files")


@pytest.fixture(autouse=True)
def log_without_secrets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    for when in ("setup", "call", "teardown"):
        for record in caplog.get_records(when):
            assert SECRET not in record.getMessage()


def refused(
    kind: type[vecmq.Error], call: Callable[[], object], secret: str = SECRET
) -> vecmq.Error:
    """Call; the error comes in time and shows no secret."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        call()
    assert time.monotonic() - started < TIMEOUT_S + SLACK_S
    assert type(caught.value) is kind
    # Of the traceback what the library adds: pytest's own frames quote this file.
    shown = "".join(traceback.format_exception_only(caught.value))
    cause: BaseException | None = caught.value
    while cause is not None:
        shown += f"{cause!r} {cause} {cause.args}"
        cause = cause.__cause__ or cause.__context__
    assert secret not in shown
    return caught.value


def opening(tmp_path: Path, url: str, **options: Any) -> Callable[[], object]:
    nats = NatsOptions(url, connect_timeout_s=TIMEOUT_S, **options)
    assert SECRET not in repr(nats) + str(nats)
    return lambda: vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats)


class Listener:
    """Says what a server says first, answers nothing, keeps what it hears."""

    def __init__(self, greeting: bytes) -> None:
        self.heard = bytearray()
        self._listener = socket.create_server((HOST, 0))
        self.url = f"{HOST}:{self._listener.getsockname()[1]}"
        self._greeting = greeting
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client:
                    client.sendall(self._greeting)
                    client.settimeout(1)
                    with contextlib.suppress(OSError):
                        while data := client.recv(1 << 16):
                            self.heard += data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


PLAIN_INFO = b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true}\r\n'


@pytest.mark.parametrize("scheme", ["tls", "nats"])
def test_a_plain_listener_hears_no_credentials(tmp_path: Path, pki: Pki, scheme: str) -> None:
    """A man in the middle that says TLS is not spoken here: no connection, 0 bytes of secrets."""
    for identity in (
        {"token": SECRET},
        {"user": "u", "password": SECRET},
        {"user_jwt": SECRET, "nkey_seed": Key(USER).seed},
    ):
        with Listener(PLAIN_INFO) as listener:
            call = opening(tmp_path, f"{scheme}://{listener.url}", tls_ca_path=pki.ca, **identity)
            refused(vecmq.NotConnectedError, call)
            assert listener.heard, "nobody connected: this proves nothing"
            assert b"CONNECT" not in listener.heard
            assert SECRET.encode() not in listener.heard
    print(f"{scheme}: credential bytes in the clear: 0 of 3 connections")


def test_the_listener_would_hear_credentials_sent_in_the_clear(tmp_path: Path) -> None:
    with Listener(PLAIN_INFO) as listener:
        refused(vecmq.NotConnectedError, opening(tmp_path, f"nats://{listener.url}", token=SECRET))
        assert SECRET.encode() in listener.heard


def test_an_info_without_tls_does_not_turn_tls_off(tmp_path: Path, pki: Pki) -> None:
    """The proxy takes TLS out of INFO, at the first connection and at a reconnect."""

    def strip(info: dict[str, Any]) -> None:
        for key in ("tls_required", "tls_available", "tls_verify"):
            info.pop(key, None)

    with (
        Server(tmp_path / "server", f"{pki.config()}\n{TOKEN}") as server,
        Proxy(server.port, strip) as proxy,
    ):
        # Without TLS asked for, the secret would be there to be seen.
        refused(
            vecmq.NotConnectedError, opening(tmp_path, f"nats://{HOST}:{proxy.port}", token=SECRET)
        )
        assert SECRET.encode() in proxy.said
        proxy.said.clear()
        nats = NatsOptions(f"tls://{HOST}:{proxy.port}", token=SECRET, tls_ca_path=pki.ca)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats) as mq:
            publisher = mq.publisher("t")
            for number in range(4):
                publisher.publish(b"payload", timeout_s=20)
                if number < 3:
                    proxy.cut()
        assert proxy.said.count(b"\x16\x03\x01") >= 2
        for secret in (SECRET.encode(), b"CONNECT", b"payload"):
            assert secret not in proxy.said
    print(f"credential bytes in the clear: 0 of {len(proxy.said)} sniffed")


def test_a_reconnect_to_a_server_without_tls_is_none(tmp_path: Path, pki: Pki) -> None:
    with (
        Server(tmp_path / "server", f"{pki.config()}\n{TOKEN}") as server,
        Proxy(server.port) as proxy,
    ):
        nats = NatsOptions(f"tls://{HOST}:{proxy.port}", token=SECRET, tls_ca_path=pki.ca)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats) as mq:
            publisher = mq.publisher("t")
            publisher.publish(b"payload")
            server.restart(TOKEN)
            before = len(proxy.said)
            wait_until(lambda: len(proxy.said) > before)
            # It waited for a connection and was not sent.
            refused(vecmq.TimeoutError, lambda: publisher.publish(b"payload", timeout_s=2))
            for secret in (SECRET.encode(), b"CONNECT", b"payload"):
                assert secret not in proxy.said


def test_tls_that_cannot_be(tmp_path: Path, pki: Pki) -> None:
    other = Pki(tmp_path / "other")
    with Server(tmp_path / "server", f"{pki.config()}\n{TOKEN}") as server:
        tls, plain = f"tls://{HOST}:{server.port}", f"nats://{HOST}:{server.port}"
        refused(vecmq.NotConnectedError, opening(tmp_path, tls, token=SECRET, tls_ca_path=other.ca))
        refused(vecmq.NotConnectedError, opening(tmp_path, tls, token=SECRET))
        # INFO asks for TLS, and the system does not know who signed the certificate.
        refused(vecmq.NotConnectedError, opening(tmp_path, plain, token=SECRET))
        # The certificate is for 127.0.0.1.
        named = f"tls://localhost:{server.port}"
        refused(vecmq.NotConnectedError, opening(tmp_path, named, token=SECRET, tls_ca_path=pki.ca))
        # A handshake for which the server does not wait.
        first = {"tls_ca_path": pki.ca, "tls_first": True}
        refused(vecmq.NotConnectedError, opening(tmp_path, plain, token=SECRET, **first))
    with Server(tmp_path / "verify", pki.config("verify: true")) as server:
        tls = f"tls://{HOST}:{server.port}"
        refused(vecmq.NotConnectedError, opening(tmp_path, tls, tls_ca_path=pki.ca))
        refused(
            vecmq.NotConnectedError,
            opening(tmp_path, tls, **other.client(tls_ca_path=pki.ca)),
        )
    with Server(tmp_path / "plain", TOKEN) as server:
        tls = f"tls://{HOST}:{server.port}"
        refused(vecmq.NotConnectedError, opening(tmp_path, tls, token=SECRET, tls_ca_path=pki.ca))


def test_identities_that_are_not_taken(tmp_path: Path) -> None:
    key, other = Key(USER), Key(USER)
    users = f"users: [{{ nkey: {key.public} }}, {{ user: u, password: p }}]"
    with Server(tmp_path / "users", f"authorization {{ {users} }}") as server:
        url = f"nats://{HOST}:{server.port}"
        for identity in (
            {},
            {"token": SECRET},
            {"user": "u", "password": SECRET},
            {"user": "other", "password": SECRET},
            {"nkey_seed": other.seed},
        ):
            secret = identity.get("nkey_seed", SECRET) if identity else SECRET
            refused(vecmq.DeniedError, opening(tmp_path, url, **identity), secret)
    operator, stranger = Operator(), Operator()
    creds = tmp_path / "user.creds"
    creds.write_text(stranger.creds(stranger.account))
    with Server(tmp_path / "operator", operator.config()) as server:
        url = f"nats://{HOST}:{server.port}"
        refused(vecmq.DeniedError, opening(tmp_path, url, creds_path=creds))
        # A right JWT with the seed of somebody else.
        jwt, _ = operator.user(operator.account)
        call = opening(tmp_path, url, user_jwt=jwt, nkey_seed=other.seed)
        refused(vecmq.DeniedError, call, other.seed)
        refused(vecmq.ConfigError, opening(tmp_path, url, nkey_seed=SECRET))
        creds.write_text(SECRET)
        refused(vecmq.ConfigError, opening(tmp_path, url, creds_path=creds))


RIGHTS = """
authorization {{ users: [
  {{ user: all, password: p }}
  {{ user: some, password: p, permissions: {{ {rights} }} }}
] }}
"""


@pytest.mark.parametrize(
    "rights",
    [
        'publish: { deny: ["t"] }',
        'publish: { deny: ["t.>"] }',
        'publish: { deny: ["$JS.API.STREAM.INFO.t"] }',
        'subscribe: { deny: ["_INBOX.>"] }',
    ],
)
def test_a_denied_subject_is_named_at_the_call_that_needs_it(tmp_path: Path, rights: str) -> None:
    with Server(tmp_path / "server", RIGHTS.format(rights=rights)) as server:
        url = f"nats://{HOST}:{server.port}"
        free = NatsOptions(url, user="all", password="p")
        with vecmq.sync.open(tmp_path / "all", mode="nats", nats=free) as mq:
            mq.publisher("t").publish(b"payload")
        bound = NatsOptions(url, user="some", password="p")
        with vecmq.sync.open(tmp_path / "some", mode="nats", nats=bound) as mq:

            def publish() -> None:
                mq.publisher("t").publish(bytes(3 << 20), timeout_s=60)

            error = refused(vecmq.DeniedError, publish)
            assert isinstance(error, PermissionError)
            if "INBOX" not in rights:
                # Others are not concerned, now or later.
                mq.publisher("u").publish(bytes(3 << 20))
            refused(vecmq.DeniedError, publish)


@pytest.mark.parametrize(
    "subject", ["$JS.API.CONSUMER.>", "$JS.API.CONSUMER.MSG.NEXT.>", "$JS.API.DIRECT.GET.>"]
)
def test_a_denied_subscription_is_an_error_of_the_subscriber(tmp_path: Path, subject: str) -> None:
    config = RIGHTS.format(rights=f'publish: {{ deny: ["{subject}"] }}')
    with Server(tmp_path / "server", config) as server:
        nats = NatsOptions(f"nats://{HOST}:{server.port}", user="some", password="p")
        with vecmq.sync.open(tmp_path / "some", mode="nats", nats=nats) as mq:
            mq.publisher("t").publish(bytes(3 << 20))

            def receive() -> None:
                with mq.subscribe("t", "g") as subscriber:
                    subscriber.fetch(timeout_s=SLACK_S)

            refused(vecmq.DeniedError, receive)


def test_exchanged_credentials(tmp_path: Path) -> None:
    """A server that takes other credentials now: no hang, an error; and back again."""
    with Server(tmp_path / "server", TOKEN) as server:
        nats = NatsOptions(f"nats://{HOST}:{server.port}", token=SECRET, reconnect_wait_s=0.2)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats) as mq:
            publisher = mq.publisher("t")
            publisher.publish(b"1")
            server.reload('authorization { token: "another" }')
            deadline = time.monotonic() + 20
            kinds = set()
            while vecmq.NotConnectedError not in kinds:
                assert time.monotonic() < deadline
                with contextlib.suppress(vecmq.Error):
                    try:
                        publisher.publish(b"2", timeout_s=1)
                    except vecmq.Error as error:
                        kinds.add(type(error))
                        raise
            # Not sent in its second: the server's answer to the next connection was late.
            early = {vecmq.PublishUnknownError, vecmq.TimeoutError}
            assert kinds <= {vecmq.NotConnectedError, *early}
            refused(vecmq.NotConnectedError, lambda: publisher.publish(b"3"))
            server.reload(TOKEN)
            wait_until(lambda: _publishes(publisher))


def _publishes(publisher: vecmq.sync.Publisher) -> bool:
    with contextlib.suppress(vecmq.Error):
        publisher.publish(b"again", timeout_s=2)
        return True
    return False


def test_a_creds_file_is_read_again_for_a_reconnect(tmp_path: Path) -> None:
    key, next_key, file = Key(USER), Key(USER), tmp_path / "seed"
    config = "authorization {{ users: [{{ nkey: {} }}] }}".format
    file.write_text(key.seed)
    with Server(tmp_path / "server", config(key.public)) as server:
        nats = NatsOptions(f"nats://{HOST}:{server.port}", nkey_path=file, reconnect_wait_s=0.2)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats) as mq:
            publisher = mq.publisher("t")
            publisher.publish(b"1")
            file.write_text(next_key.seed)
            server.reload(config(next_key.public))
            wait_until(lambda: _publishes(publisher))


def test_a_connection_that_is_lost_for_good(tmp_path: Path) -> None:
    with Server(tmp_path / "server") as server:
        nats = NatsOptions(f"nats://{HOST}:{server.port}", max_reconnects=2, reconnect_wait_s=0.1)
        with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats) as mq:
            publisher, subscriber = mq.publisher("t"), mq.subscribe("t", "g")
            publisher.publish(b"1")
            assert len(subscriber.fetch(timeout_s=10)) == 1
            server.stop()
            with pytest.raises((vecmq.PublishUnknownError, vecmq.NotConnectedError)):
                publisher.publish(b"2", timeout_s=20)
            wait_until(lambda: not _publishes(publisher))
            refused(vecmq.NotConnectedError, lambda: publisher.publish(b"3"))
            refused(vecmq.NotConnectedError, lambda: subscriber.fetch(timeout_s=TIMEOUT_S))
            refused(vecmq.NotConnectedError, lambda: mq.publisher("u").publish(b"4"))


def test_no_jetstream(tmp_path: Path) -> None:
    operator, creds = Operator(), tmp_path / "user.creds"
    creds.write_text(operator.creds(operator.poor))
    with Server(tmp_path / "none", jetstream=False) as server:
        assert rejection(tmp_path, NatsOptions(f"nats://{HOST}:{server.port}")) == 10076
    with Server(tmp_path / "poor", operator.config()) as server:
        url = f"nats://{HOST}:{server.port}"
        assert rejection(tmp_path, NatsOptions(url, creds_path=creds)) == 10039


def rejection(tmp_path: Path, nats: NatsOptions) -> int:
    with vecmq.sync.open(tmp_path / "mq", mode="nats", nats=nats) as mq:
        error = refused(vecmq.RejectedError, lambda: mq.publisher("t").publish(b"x"))
    assert isinstance(error, vecmq.RejectedError)
    return error.code


@pytest.mark.parametrize("version", ["2.9.25", "1.4.1", "", "dev"])
def test_a_server_that_is_too_old(tmp_path: Path, version: str) -> None:
    def age(info: dict[str, Any]) -> None:
        info["version"] = version

    with Server(tmp_path / "server") as server, Proxy(server.port, age) as proxy:
        refused(vecmq.NotConnectedError, opening(tmp_path, f"nats://{HOST}:{proxy.port}"))


def test_a_server_that_says_nothing(tmp_path: Path) -> None:
    with Listener(b"") as listener:
        refused(vecmq.NotConnectedError, opening(tmp_path, f"nats://{listener.url}", token=SECRET))
