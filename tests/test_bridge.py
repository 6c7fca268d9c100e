"""`vecmq.wrap`: nats-py's own surface, arrays and any size behind it, on a real server."""

from __future__ import annotations

import array
import asyncio
import inspect
import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import nats.errors
import nats.js.errors
import numpy as np
import pytest
from nats.aio.client import Client as NatsClient
from nats.js import JetStreamContext
from nats.js.api import PubAck

from bridge_tools import MIB, Case, Run, connected, random_bytes, runner
from vecmq import bridge
from vecmq._payload import to_array
from vecmq.errors import ConfigError, InvalidHeadersError, PayloadError, TooLargeError
from vecmq.server import EmbeddedServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store = tmp_path_factory.mktemp("bridge")
    with EmbeddedServer(store / "nats", max_payload_bytes=MIB) as running:
        yield running


@pytest.fixture
def run(server: EmbeddedServer) -> Run:
    return runner(server)


class TestWrap:
    def test_it_is_the_same_connection(self, run: Run) -> None:
        async def body(case: Case) -> None:
            client = bridge.wrap(case.nc)
            assert isinstance(client, NatsClient)
            assert isinstance(case.js, JetStreamContext)
            assert isinstance(case.js._nc, NatsClient)
            assert client.is_connected
            assert client.client_id == case.nc.client_id
            subscription = await client.subscribe("here")
            await case.nc.publish("here", b"hello")
            assert (await subscription.next_msg(timeout=10)).data == b"hello"
            await client.close()
            assert case.nc.is_closed

        run(body)

    def test_a_subclass_stays_one(self) -> None:
        class Own(NatsClient):
            def own(self) -> str:
                return "own"

        wrapped = bridge.wrap(Own())
        assert isinstance(wrapped, Own)
        assert isinstance(wrapped, bridge.Client)
        assert wrapped.own() == "own"
        assert type(bridge.wrap(wrapped)) is type(wrapped)

    @pytest.mark.parametrize("other", [None, object(), "nats://localhost", NatsClient])
    def test_it_takes_nats_py_clients_only(self, other: Any) -> None:
        with pytest.raises(TypeError):
            bridge.wrap(other)

    @pytest.mark.parametrize(
        "options", [{"codec": "lz5"}, {"message_bytes_max": 0}, {"message_bytes_max": 1.5}]
    )
    def test_wrong_options(self, options: Any) -> None:
        with pytest.raises(ConfigError):
            bridge.wrap(NatsClient(), **options)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            (bridge.JetStream.publish, JetStreamContext.publish),
            (bridge.Client.jetstream, NatsClient.jetstream),
        ],
    )
    def test_signatures_are_nats_pys(self, ours: Any, theirs: Any) -> None:
        def surface(function: Any) -> list[tuple[str, Any, Any]]:
            parameters = inspect.signature(function).parameters.values()
            return [(p.name, p.kind, p.default) for p in parameters]

        assert surface(ours) == surface(theirs)
        assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


class TestPlainBytes:
    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"abc",
            bytearray(b"abc"),
            memoryview(b"abc"),
            memoryview(b"a-b-c")[::2],
            array.array("B", b"abc"),
            random_bytes(MIB),
        ],
        ids=lambda payload: f"{type(payload).__name__}-{len(payload)}",
    )
    def test_they_stay_plain_nats(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            ack = await case.js.publish(case.subject, payload)
            assert isinstance(ack, PubAck)
            assert (ack.stream, ack.seq, ack.duplicate) == (case.subject, 1, None)
            await case.js.publish(case.subject, payload[:1], headers={"Kind": "x"})
            first, second = await case.stored()
            assert (first.data, first.fields) == (bytes(memoryview(payload)), {})
            assert second.fields == {"Kind": "x"}

        run(body)

    def test_the_header_bytes_count(self, run: Run) -> None:
        headers = {"Nats-Msg-Id": "id-1", " Padded ": " v\u00e4lue ", "Empty": ""}
        wire = "NATS/1.0\r\nNats-Msg-Id: id-1\r\nPadded: v\u00e4lue\r\nEmpty: \r\n\r\n"

        async def body(case: Case) -> None:
            fits = random_bytes(case.nc.max_payload - len(wire.encode()))
            await case.js.publish(case.subject, fits, headers=headers)
            (only,) = await case.stored()
            assert not only.is_frame
            assert only.data == fits
            headers["Nats-Msg-Id"] = "id-2"
            await case.js.publish(case.subject, fits + b"+", headers=headers)
            assert [stored.is_frame for stored in await case.stored()] == [False, True, True]
            (message,) = await case.received()
            assert bytes(message.payload) == fits + b"+"
            await case.assert_alive()

        run(body)

    def test_a_full_payload_with_a_header_keeps_the_connection(self, run: Run) -> None:
        # Plain nats-py sends it; the server hangs up, and every publish in flight fails.
        async def body(case: Case) -> None:
            full = random_bytes(case.nc.max_payload)
            publishes = [
                case.js.publish(case.subject, full, headers={"Nats-Msg-Id": str(n)})
                for n in range(10)
            ]
            acks = await asyncio.gather(*publishes)
            assert len({ack.seq for ack in acks}) == 10
            await case.assert_alive()
            assert [bytes(m.payload) == full for m in await case.received()] == [True] * 10

        run(body)

    def test_a_large_max_payload_is_used(self, tmp_path: Any) -> None:
        async def body(case: Case) -> None:
            payload = random_bytes(5 * MIB)
            await case.js.publish(case.subject, payload)
            (only,) = await case.stored()
            assert only == (1, {}, payload)

        with EmbeddedServer(tmp_path / "nats", max_payload_bytes=8 * MIB) as roomy:
            asyncio.run(connected(roomy, body, {}, {}))


class TestGroups:
    @pytest.mark.parametrize("size", [MIB + 1, 3 * MIB + 17, 20_000_000])
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_bytes_of_any_size(self, run: Run, size: int, kind: Any) -> None:
        payload = random_bytes(size)

        async def body(case: Case) -> None:
            ack = await case.js.publish(case.subject, kind(payload))
            stored = await case.stored()
            assert all(one.is_frame for one in stored)
            assert ack.seq == stored[-1].seq == len(stored)
            assert b"".join(one.data for one in stored) == payload
            (message,) = await case.received()
            assert (message.dtype, message.shape) == (None, None)
            assert bytes(message.payload) == payload

        run(body)

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "bfloat16", "complex64"])
    @pytest.mark.parametrize("shape", [(), (0, 4), (256,), (5, 300_001)], ids=str)
    @pytest.mark.parametrize("codec", ["raw", "zstd", "planes", "pk3", "lz4"])
    def test_arrays_come_back_bit_equal(
        self, run: Run, dtype: str, shape: tuple[int, ...], codec: str
    ) -> None:
        real = np.dtype(getattr(ml_dtypes, dtype, dtype))
        size = math.prod(shape) * real.itemsize
        raw = np.frombuffer(random_bytes(size), np.uint8) % (2 if dtype == "bool" else 251)
        original = raw.view(real).reshape(shape)

        async def body(case: Case) -> None:
            await case.js.publish(case.subject, original)
            back = await case.only_array()
            assert (back.dtype, back.shape) == (real, shape)
            assert back.tobytes() == original.tobytes()

        run(body, codec=codec)

    def test_a_small_array_is_its_own_bytes(self, run: Run) -> None:
        # So that a reader in any language needs nothing of ours.
        original = np.arange(256, dtype=np.float32)

        async def body(case: Case) -> None:
            await case.js.publish(case.subject, original)
            (only,) = await case.stored()
            assert only.data == original.tobytes()
            assert only.fields["Vecmq-Dtype"] == "float32"
            assert only.fields["Vecmq-Shape"] == "256"

        run(body)

    @pytest.mark.parametrize(
        "payload",
        [
            np.arange(6, dtype=np.float32).data,
            array.array("d", [1.0, 2.0]),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(6.0)[::2],
        ],
        ids=["memoryview", "array", "fortran", "strided"],
    )
    def test_typed_buffers_keep_the_connection(self, run: Run, payload: Any) -> None:
        # nats-py sends the number of elements as the number of bytes; the server hangs up.
        async def body(case: Case) -> None:
            await case.js.publish(case.subject, payload)
            await case.assert_alive()
            np.testing.assert_array_equal(await case.only_array(), np.asarray(payload))

        run(body)

    def test_groups_published_at_once_stay_apart(self, run: Run) -> None:
        arrays = [np.full((3, 200_000), n, np.float32) for n in range(8)]

        async def body(case: Case) -> None:
            publishes = [case.js.publish(case.subject, one) for one in arrays]
            acks = await asyncio.gather(*publishes, case.js.publish(case.subject, b"plain"))
            assert len({ack.seq for ack in acks}) == 9
            received = [to_array(m.payload, m.dtype, m.shape) for m in await case.received()]
            assert sorted(one.flat[0] for one in received) == list(range(8))
            assert all((one == one.flat[0]).all() for one in received)

        run(body)

    def test_the_limit(self, run: Run) -> None:
        async def body(case: Case) -> None:
            await case.js.publish(case.subject, np.zeros(1000, np.uint8))
            with pytest.raises(TooLargeError):
                await case.js.publish(case.subject, np.zeros(1001, np.uint8))
            assert len(await case.stored()) == 1

        run(body, message_bytes_max=1000)

    @pytest.mark.parametrize("payload", [None, "text", [1.0], np.array([None])], ids=repr)
    def test_what_is_no_payload(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(PayloadError):
                await case.js.publish(case.subject, payload)
            assert await case.stored() == []

        run(body)


class TestHeaders:
    LARGE = random_bytes(3 * MIB)

    def test_the_callers_dict_is_never_changed(self, run: Run) -> None:
        async def body(case: Case) -> None:
            for payload in (b"small", np.zeros(3), self.LARGE):
                headers = {"Kind": "x"}
                options: dict[str, Any] = {
                    "stream": case.subject,
                    "msg_ttl": 100.0,
                    "headers": headers,
                }
                await case.js.publish(case.subject, payload, **options)
                assert headers == {"Kind": "x"}
            stored = await case.stored()
            assert {one.fields["Nats-TTL"] for one in stored} == {"100"}
            assert {one.fields["Nats-Expected-Stream"] for one in stored} == {case.subject}
            assert ["Kind" in one.fields for one in stored] == [True, True] + [False] * 3 + [True]

        run(body, {"allow_msg_ttl": True})

    @pytest.mark.parametrize("key", ["Vecmq-Frame", "vecmq-shape", " Vecmq-X"])
    def test_our_names_are_reserved(self, run: Run, key: str) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(InvalidHeadersError):
                await case.js.publish(case.subject, np.zeros(3), headers={key: "1"})
            assert await case.stored() == []

        run(body)

    def test_what_several_frames_cannot_carry(self, run: Run) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(InvalidHeadersError):
                await case.js.publish(case.subject, self.LARGE, headers={"Nats-Incr": "1"})
            assert await case.stored() == []

        run(body)

    def test_headers_that_leave_no_room(self, run: Run) -> None:
        async def body(case: Case) -> None:
            for payload in (b"", np.zeros(3), self.LARGE):
                with pytest.raises(InvalidHeadersError):
                    await case.js.publish(case.subject, payload, headers={"Long": "x" * MIB})
            assert await case.stored() == []
            await case.js.publish(case.subject, self.LARGE, headers={"Long": "x" * 60_000})
            assert len(await case.received()) == 1
            await case.assert_alive()

        run(body)

    def test_expectations_are_checked_before_the_first_frame(self, run: Run) -> None:
        key = "Nats-Expected-Last-Subject-Sequence"

        async def body(case: Case) -> None:
            await case.js.publish(case.subject, self.LARGE, headers={key: "0"})
            count = len(await case.stored())
            with pytest.raises(nats.js.errors.BadRequestError):
                await case.js.publish(case.subject, self.LARGE, headers={key: "0"})
            assert len(await case.stored()) == count
            await case.js.publish(case.subject, self.LARGE, headers={key: str(count)})
            assert len(await case.received()) == 2

        run(body)

    def test_a_rollup_spares_its_own_frames(self, run: Run) -> None:
        async def body(case: Case) -> None:
            await case.js.publish(case.subject, b"older")
            await case.js.publish(case.subject, self.LARGE, headers={"Nats-Rollup": "sub"})
            assert all(one.is_frame for one in await case.stored())
            assert len(await case.received()) == 1

        run(body, {"allow_rollup_hdrs": True})
