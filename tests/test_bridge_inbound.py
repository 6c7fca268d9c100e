"""What `vecmq.bridge` does with nats-py's connection: bursts, order, ends, and how it signs in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import numpy as np
import pytest
from nats.aio.client import Client as NatsClient
from nats.protocol.parser import Parser as NatsParser

from bridge_tools import LARGE, MIB, Errors, client, random_bytes
from connect_tools import USER, Key, Operator, Pki, Server
from server_tools import pause
from vecmq import bridge
from vecmq.bridge import _inbound
from vecmq.errors import TooLargeError
from vecmq.server import EmbeddedServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store = tmp_path_factory.mktemp("bridge")
    with EmbeddedServer(store / "nats", max_payload_bytes=MIB) as running:
        yield running


@pytest.fixture
def errors() -> Errors:
    return Errors()


def publish_while_this_loop_stands(server: EmbeddedServer, subject: str, payloads: Any) -> None:
    """Publish from another thread, and let this one, with its event loop, wait for it."""

    async def publish() -> None:
        async with client(server) as nc:
            for payload in payloads:
                await nc.publish(subject, payload)
            await nc.flush()

    thread = threading.Thread(target=asyncio.run, args=(publish(),))
    thread.start()
    thread.join()


async def received(sub: Any, ended: Callable[[Any], bool]) -> list[Any]:
    got: list[Any] = []
    while not got or not ended(got[-1]):
        got.append(await sub.next_msg(20))
    return got


class TestBursts:
    """More than a server holds for a slow client (64 MiB) while the event loop does nothing."""

    async def test_what_the_limits_allow_arrives(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            sub = await nc.subscribe("burst", pending_bytes_limit=0)
            await nc.flush()
            publish_while_this_loop_stands(
                server, "burst", (n.to_bytes(4, "little") * (MIB // 4) for n in range(160))
            )
            got = [await sub.next_msg(20) for _ in range(160)]
            assert [int.from_bytes(msg.data[:4], "little") for msg in got] == list(range(160))
            assert all(msg.data == msg.data[:4] * (MIB // 4) for msg in got)
            assert nc.last_error is None

    async def test_what_they_do_not_is_a_slow_consumer(
        self, server: EmbeddedServer, errors: Errors
    ) -> None:
        async with client(server, errors) as nc:
            sub = await nc.subscribe("burst", pending_bytes_limit=8 * MIB)
            other = await nc.subscribe("other")
            await nc.flush()
            payloads = [n.to_bytes(4, "little") * (MIB // 4) for n in range(160)]
            publish_while_this_loop_stands(server, "burst", payloads)
            await nc.publish("other", b"last")
            assert (await other.next_msg(20)).data == b"last"
            await nc.publish("burst", b"last")
            got = await received(sub, lambda msg: msg.data == b"last")
            numbers = [int.from_bytes(msg.data[:4], "little") for msg in got[:-1]]
            assert numbers == sorted(set(numbers))
            assert {type(error) for error in errors} == {nats.errors.SlowConsumerError}
            assert all(error.sub is sub for error in errors)  # type: ignore[attr-defined]
            assert len(numbers) + len(errors) == len(payloads)

    async def test_messages_of_many_frames_are_whole_or_dropped(
        self, server: EmbeddedServer, errors: Errors
    ) -> None:
        count = 60
        async with client(server, errors) as nc:
            sub: Any = await nc.subscribe("burst", pending_bytes_limit=16 * MIB)
            await nc.flush()
            arrays = (np.full((3, 262_144), n, np.float32) for n in range(count))
            publish_while_this_loop_stands(server, "burst", arrays)
            await nc.publish("burst", b"last")
            got = await received(sub, lambda msg: msg.data == b"last")
            numbers = [int(msg.array()[0, 0]) for msg in got[:-1]]
            assert all((msg.array() == msg.array()[0, 0]).all() for msg in got[:-1])
            assert numbers == sorted(set(numbers))
            assert numbers
            slow = [e for e in errors if isinstance(e, nats.errors.SlowConsumerError)]
            assert slow
            assert len(numbers) + len(errors) == count
            assert {type(e) for e in errors} <= {nats.errors.SlowConsumerError, TooLargeError}
            await nc.publish("burst", LARGE)  # no dead message is in its way
            np.testing.assert_array_equal((await sub.next_msg(20)).array(), LARGE)


class TestOrder:
    async def test_a_flush_of_a_server_that_reads_nothing_ends(self, tmp_path: Path) -> None:
        with EmbeddedServer(tmp_path) as own:
            assert own.pid is not None
            async with client(own) as nc:
                pause(own.pid)
                try:
                    with contextlib.suppress(TimeoutError):  # until nats-py holds them back
                        for _ in range(20):
                            await asyncio.wait_for(nc.publish("x", bytes(900_000)), 0.5)
                    with pytest.raises(nats.errors.FlushTimeoutError):
                        await asyncio.wait_for(nc.flush(timeout=1), 15)
                finally:
                    os.kill(own.pid, signal.SIGCONT)

    async def test_a_flush_brings_what_was_published_before(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            sub = await nc.subscribe("own")
            for n in range(300):
                await nc.publish("own", b"%d" % n)
            await nc.publish("own", LARGE)
            await nc.publish("own", LARGE[:8])
            await nc.flush()
            assert sub.pending_msgs == 302
            small_bytes = sum(len(b"%d" % n) for n in range(300))
            assert sub.pending_bytes == small_bytes + LARGE.nbytes + LARGE[:8].nbytes
            got = [(await sub.next_msg(5)).data for _ in range(302)]
            assert got[:300] == [b"%d" % n for n in range(300)]
            assert got[300] == LARGE.tobytes()

    async def test_a_drain_loses_nothing(self, server: EmbeddedServer) -> None:
        async with client(server) as nc:
            got: list[bytes] = []

            async def callback(msg: Any) -> None:
                await asyncio.sleep(0)
                got.append(msg.data)

            sub = await nc.subscribe("own", "workers", cb=callback)
            for n in range(500):
                await nc.publish("own", b"%d" % n)
            await nc.publish("own", LARGE)
            await sub.drain()  # type: ignore[no-untyped-call]
            assert got == [*(b"%d" % n for n in range(500)), LARGE.tobytes()]

    async def test_a_client_that_drains_takes_and_gives_everything(
        self, server: EmbeddedServer
    ) -> None:
        async with client(server) as other:
            seen = await other.subscribe("given")
            await other.flush()
            nc = await bridge.connect(server.url, token=server.token)

            async def callback(msg: Any) -> None:
                await nc.publish("given", msg.data)

            await nc.subscribe("taken", cb=callback)
            for n in range(200):
                await nc.publish("taken", b"%d" % n)
            await nc.publish("taken", LARGE.tobytes())
            await nc.drain()
            assert nc.is_closed
            got = [(await seen.next_msg(20)).data for _ in range(201)]
            assert got == [*(b"%d" % n for n in range(200)), LARGE.tobytes()]

    async def test_somebody_who_hears_everything_is_in_nobodys_way(
        self, server: EmbeddedServer
    ) -> None:
        async with client(server) as nc, client(server) as other:
            heard = await other.subscribe(">")
            await other.flush()
            await nc.publish("large", LARGE)
            await nc.flush(5)
            await nc.publish("small", b"after")
            got = await received(heard, lambda msg: msg.data == b"after")
            assert got[0].data == LARGE.tobytes()


class TestEnds:
    async def test_a_server_that_comes_back(self, tmp_path: Path) -> None:
        events: list[str] = []

        async def reconnected() -> None:
            events.append("reconnected")

        with Server(tmp_path / "server", "max_payload: 1MB") as one:
            url = f"nats://127.0.0.1:{one.port}"
            nc = await bridge.connect(url, reconnected_cb=reconnected, reconnect_time_wait=0.1)
            sub = await nc.subscribe("s")
            await nc.publish("s", LARGE)
            assert (await sub.next_msg(20)).data == LARGE.tobytes()
            for _ in range(2):
                await asyncio.to_thread(one.restart, "max_payload: 1MB")
                async with asyncio.timeout(30):
                    while not events:  # noqa: ASYNC110 - a callback sets nothing
                        await asyncio.sleep(0.02)
                events.clear()
                await nc.publish("s", b"small")
                await nc.flush()
                assert sub.pending_msgs == 1  # once: no subscription is there twice
                assert (await sub.next_msg(20)).data == b"small"
            async with asyncio.timeout(30):
                await nc.publish("s", LARGE)
                assert (await sub.next_msg(20)).data == LARGE.tobytes()
            assert nc.stats["reconnects"] == 2
            await nc.close()

    async def test_the_core_keeps_no_socket(self, server: EmbeddedServer) -> None:
        def sockets() -> int:
            names = []
            for descriptor in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # the one that lists them
                    names.append(str(descriptor.readlink()))
            return sum("socket" in name for name in names)

        async with client(server) as nc:  # what stays: a runtime
            await nc.flush()
        before = sockets()
        for _ in range(5):
            async with client(server) as nc:
                await nc.subscribe("s")
                await nc.flush()
        async with asyncio.timeout(10):
            while sockets() > before:  # noqa: ASYNC110 - a task of the core lets it go
                await asyncio.sleep(0.02)

    async def test_a_denied_subscription(self, tmp_path: Path, errors: Errors) -> None:
        rights = 'permissions: { subscribe: { deny: "secret" } }'
        config = f"authorization {{ users: [{{ user: u, password: p, {rights} }}] }}"
        with Server(tmp_path / "server", config) as one:
            url = f"nats://u:p@127.0.0.1:{one.port}"
            nc = await bridge.connect(url, error_cb=errors.add)
            await nc.subscribe("secret")
            await nc.flush()
            assert [type(error) for error in errors] == [nats.errors.Error]
            assert "secret" in str(errors[0])
            assert nc.is_connected
            await nc.close()


class Recorder:
    """Stands where a parser expects its client; what nats-py's parser would have it do."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    async def _process_msg(self, *args: Any) -> None:
        *most, data, headers = args
        self.done.append((*most, bytes(data), headers or b""))

    async def _process_ping(self) -> None:
        self.done.append(("ping",))

    async def _process_pong(self) -> None:
        self.done.append(("pong",))

    async def _process_err(self, text: str) -> None:
        self.done.append(("err", text))

    async def _process_info(self, info: Any) -> None:
        self.done.append(("info", info))


def with_headers(head: str, headers: bytes, body: bytes) -> bytes:
    sizes = f" {len(headers)} {len(headers) + len(body)}\r\n"
    return f"HMSG {head}{sizes}".encode() + headers + body + b"\r\n"


STREAM = (
    b"PING\r\nMSG a.b 1 5\r\nhel\r\n\r\n+OK\r\nMSG c 2 re.ply 0\r\n\r\nPONG\r\n"
    + with_headers("d 3", b"NATS/1.0\r\n\r\n", b"hi")
    + with_headers("d 4 r", b"NATS/1.0\r\nVecmq-Frame: 1;2\r\n\r\n", bytes(range(251)) * 160)
    + b"INFO {\"max_payload\": 5}\r\n-ERR 'Permissions Violation for X'\r\nMSG e 5 1\r\n!\r\n"
)


class TestParser:
    """The core's, beside nats-py's."""

    async def both(self, pieces: list[bytes]) -> tuple[list[Any], list[Any]]:
        ours, theirs = Recorder(), Recorder()
        own, other = _inbound.Parser(ours), NatsParser(theirs)  # type: ignore[arg-type]
        for piece in pieces:
            await own.parse(piece)
            await other.parse(piece)
        return ours.done, theirs.done

    async def test_the_same_whatever_the_pieces(self) -> None:
        chance = random.Random(7)
        for _ in range(30):
            cuts = sorted(chance.sample(range(len(STREAM)), chance.randrange(1, 20)))
            ends = zip([0, *cuts], [*cuts, len(STREAM)], strict=True)
            ours, theirs = await self.both([STREAM[start:end] for start, end in ends])
            assert ours == theirs
            assert len(ours) == 9

    async def test_it_takes_over_in_the_middle_of_a_message(self) -> None:
        for cut in range(0, len(STREAM), 997):
            whole, taken = Recorder(), Recorder()
            await NatsParser(whole).parse(STREAM)
            before = NatsParser(taken)
            await before.parse(STREAM[:cut])
            parser = _inbound.Parser(taken, before)  # type: ignore[arg-type]
            await parser.parse(STREAM[cut : cut + 100])
            await parser.parse(STREAM[cut + 100 :])
            assert taken.done == whole.done

    async def test_what_is_no_nats(self) -> None:
        for bad in (b"HELLO\r\n", b"MSG a 1 5\r\nhelloXY"):
            with pytest.raises(nats.errors.ProtocolError):
                await _inbound.Parser(Recorder()).parse(bad)  # type: ignore[arg-type]

    async def test_a_client_that_was_wrapped_while_it_received(
        self, server: EmbeddedServer
    ) -> None:
        nc = await nats.connect(server.url, token=server.token)
        async with client(server) as other:
            sub = await nc.subscribe("s")
            await nc.flush()
            payloads = [random_bytes(n * 7919 % MIB) for n in range(40)]
            for n, payload in enumerate(payloads):
                await other.publish("s", payload)
                if n == 20:
                    wrapped = bridge.wrap(nc)
            got = [(await sub.next_msg(20)).data for _ in payloads]
            assert got == payloads
            seen: Any = await wrapped.subscribe("s")
            await wrapped.publish("s", LARGE)
            np.testing.assert_array_equal((await seen.next_msg(20)).array(), LARGE)
        assert nc.stats["reconnects"] == 0
        await nc.close()


async def goes_out_natively(url: str, **options: Any) -> None:
    """A large message is published over the core's own connection and comes back."""
    nc = await bridge.connect(url, connect_timeout=10, **options)
    try:
        async with asyncio.timeout(30):
            sub: Any = await nc.subscribe("s")
            await nc.publish("s", LARGE)
            np.testing.assert_array_equal((await sub.next_msg(20)).array(), LARGE)
            js = nc.jetstream(timeout=20)
            await js.add_stream(name="t", subjects=["t"])
            await js.publish("t", LARGE)
            pulled: Any = await js.pull_subscribe("t", "w")
            (msg,) = await pulled.fetch(1, timeout=20)
            np.testing.assert_array_equal(msg.array(), LARGE)
            assert await nc.shared.link.connection() is not None
    finally:
        await nc.close()


class TestSigningIn:
    async def test_tls(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pki = Pki(tmp_path / "pki")
        monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))  # both take the system's authorities
        with Server(tmp_path / "server", pki.config()) as one:
            await goes_out_natively(f"tls://127.0.0.1:{one.port}")

    async def test_tls_with_a_context_stays_on_one_connection(self, tmp_path: Path) -> None:
        pki = Pki(tmp_path / "pki")
        with Server(tmp_path / "server", pki.config()) as one:
            context = ssl.create_default_context(cafile=str(pki.ca))
            nc = await bridge.connect(f"tls://127.0.0.1:{one.port}", tls=context)
            sub: Any = await nc.subscribe("s")
            await nc.publish("s", LARGE)
            np.testing.assert_array_equal((await sub.next_msg(20)).array(), LARGE)
            assert await nc.shared.link.connection() is None
            await nc.close()

    async def test_nkey(self, tmp_path: Path) -> None:
        key, file = Key(USER), tmp_path / "seed"
        file.write_text(key.seed)
        users = f"users: [{{ nkey: {key.public} }}]"
        with Server(tmp_path / "server", f"authorization {{ {users} }}") as one:
            url = f"nats://127.0.0.1:{one.port}"
            await goes_out_natively(url, nkeys_seed_str=key.seed)
        with Server(tmp_path / "other", f"authorization {{ {users} }}") as one:
            await goes_out_natively(f"nats://127.0.0.1:{one.port}", nkeys_seed=str(file))

    async def test_creds(self, tmp_path: Path) -> None:
        operator, creds = Operator(), tmp_path / "user.creds"
        creds.write_text(operator.creds(operator.account))
        with Server(tmp_path / "server", operator.config()) as one:
            await goes_out_natively(f"nats://127.0.0.1:{one.port}", user_credentials=str(creds))


async def test_without_the_core_nats_py_reads(server: EmbeddedServer) -> None:
    async with client(server, native=False) as nc:
        assert nc.shared.inbound is None
        assert type(nc._ps) is NatsParser
    async with client(server) as nc:
        await nc.flush()
        assert nc.shared.inbound is not None
    plain = NatsClient()
    wrapped = bridge.wrap(plain)
    await plain.connect(server.url, token=server.token)
    await wrapped.flush()
    assert wrapped.shared.inbound is not None
    await wrapped.close()


def test_under_uvloop(server: EmbeddedServer) -> None:
    """The core reads the socket of any event loop; also what that loop has read already."""
    uvloop = pytest.importorskip("uvloop")
    count = 300

    async def exchange() -> None:
        async with client(server) as nc:
            sub: Any = await nc.subscribe("own")
            for number in range(count):
                await nc.publish("own", number.to_bytes(4, "little") * (MIB // 16))
            await nc.publish("own", LARGE)
            await nc.flush()
            got = [await sub.next_msg(20) for _ in range(count + 1)]
            assert nc.shared.inbound is not None
            assert [int.from_bytes(msg.data[:4], "little") for msg in got[:-1]] == [*range(count)]
            assert all(msg.data == msg.data[:4] * (MIB // 16) for msg in got[:-1])
            np.testing.assert_array_equal(got[-1].array(), LARGE)

    uvloop.run(exchange())
