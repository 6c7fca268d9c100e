"""`vecmq.wrap` when things go wrong: repeats, refusals, cancelled and cut off publishes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import nats.errors
import nats.js.errors
import numpy as np
import pytest

from bridge_tools import MIB, Case, Run, after_each_frame, random_bytes, runner
from vecmq import bridge
from vecmq.errors import BufferMutatedError, PayloadError
from vecmq.server import EmbeddedServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    store = tmp_path_factory.mktemp("bridge")
    with EmbeddedServer(store / "nats", max_payload_bytes=MIB) as running:
        yield running


@pytest.fixture
def run(server: EmbeddedServer) -> Run:
    return runner(server)


class TestMessageId:
    LARGE = np.frombuffer(random_bytes(3 * MIB), np.float32)

    def test_every_frame_has_its_own(self, run: Run) -> None:
        async def body(case: Case) -> None:
            await case.js.publish(case.subject, self.LARGE)
            await case.js.publish(case.subject, self.LARGE)
            stored = await case.stored()
            assert len({one.fields["Nats-Msg-Id"] for one in stored}) == len(stored) == 8

        run(body)

    @pytest.mark.parametrize(
        "payload", [b"small", np.arange(4), LARGE], ids=["plain", "one", "many"]
    )
    def test_a_repeat_is_stored_once(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            headers = {"Nats-Msg-Id": "order-1"}
            first = await case.js.publish(case.subject, payload, headers=headers)
            stored = await case.stored()
            assert stored[-1].fields["Nats-Msg-Id"] == "order-1"
            other = bridge.wrap(case.nc).jetstream()
            again = await other.publish(case.subject, payload, headers=headers)
            assert (again.seq, again.duplicate) == (first.seq, True)
            assert await case.stored() == stored

        run(body)

    def test_a_retry_completes_what_was_cut_off(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        headers = {"Nats-Msg-Id": "order-1"}

        def fail(count: int) -> None:
            if count == 2:
                raise nats.errors.TimeoutError

        async def body(case: Case) -> None:
            with monkeypatch.context() as patch:
                after_each_frame(patch, fail)
                with pytest.raises(nats.errors.TimeoutError):
                    await case.js.publish(case.subject, self.LARGE, headers=headers)
            assert await case.received() == []
            retry = bridge.wrap(case.nc).jetstream()
            ack = await retry.publish(case.subject, self.LARGE, headers=headers)
            assert not ack.duplicate
            assert len(await case.stored()) == 4
            np.testing.assert_array_equal(await case.only_array(), self.LARGE)

        run(body)

    def test_another_payload_under_the_same_id_is_dropped_whole(self, run: Run) -> None:
        async def body(case: Case) -> None:
            headers = {"Nats-Msg-Id": "order-1"}
            first = await case.js.publish(case.subject, self.LARGE, headers=headers)
            other = await case.js.publish(case.subject, self.LARGE[::-1], headers=headers)
            assert (other.seq, other.duplicate) == (first.seq, True)
            np.testing.assert_array_equal(await case.only_array(), self.LARGE)

        run(body)


class TestErrors:
    PAYLOADS = pytest.mark.parametrize(
        "payload", [b"small", np.zeros(3), random_bytes(3 * MIB)], ids=["plain", "one", "many"]
    )

    @PAYLOADS
    def test_no_stream(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(nats.js.errors.NoStreamResponseError):
                await case.js.publish("nobody", payload)

        run(body)

    @PAYLOADS
    def test_wrong_stream(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(nats.js.errors.BadRequestError) as caught:
                await case.js.publish(case.subject, payload, stream="other")
            assert caught.value.err_code == 10060
            assert await case.stored() == []

        run(body)

    @PAYLOADS
    def test_bad_subject(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            for subject in ("", "a b"):
                with pytest.raises(nats.errors.BadSubjectError):
                    await case.js.publish(subject, payload)

        run(body)

    @PAYLOADS
    def test_closed_connection(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            await case.nc.close()
            with pytest.raises(nats.errors.ConnectionClosedError):
                await case.js.publish(case.subject, payload)

        run(body)

    @PAYLOADS
    def test_timeout(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(nats.errors.TimeoutError):
                await case.js.publish(case.subject, payload, timeout=1e-9)

        run(body)

    @pytest.mark.parametrize("timeout", [0, -1, math.nan])
    def test_impossible_timeouts(self, run: Run, timeout: float) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(nats.errors.BadTimeoutError):
                await case.js.publish(case.subject, np.zeros(3), timeout=timeout)
            assert await case.stored() == []

        run(body)

    @PAYLOADS
    def test_a_stream_that_is_full(self, run: Run, payload: Any) -> None:
        async def body(case: Case) -> None:
            await case.js.publish(case.subject, b"first")
            with pytest.raises(nats.js.errors.ServiceUnavailableError) as caught:
                await case.js.publish(case.subject, payload)
            assert caught.value.err_code == 10077
            assert len(await case.stored()) == 1

        run(body, {"max_bytes": 80, "discard": "new"})

    def test_a_stream_that_fills_up_gets_no_manifest(self, run: Run) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(nats.js.errors.ServiceUnavailableError):
                await case.js.publish(case.subject, random_bytes(6 * MIB))
            await case.assert_alive()
            assert await case.received() == []

        run(body, {"max_bytes": 3 * MIB, "discard": "new"})

    def test_a_stream_with_small_messages_refuses_the_first_frame(self, run: Run) -> None:
        async def body(case: Case) -> None:
            with pytest.raises(nats.js.errors.BadRequestError) as caught:
                await case.js.publish(case.subject, random_bytes(3 * MIB))
            assert caught.value.err_code == 10054
            assert await case.stored() == []

        run(body, {"max_msg_size": 1000})

    def test_a_max_payload_that_shrinks_meanwhile(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def body(case: Case) -> None:
            def shrink(_: int) -> None:
                case.nc._max_payload = 1000  # as the INFO of another server would

            after_each_frame(monkeypatch, shrink)
            with pytest.raises(nats.errors.MaxPayloadError):
                await case.js.publish(case.subject, random_bytes(3 * MIB))
            await case.assert_alive()
            assert len(await case.stored()) == 1

        run(body)

    @pytest.mark.parametrize("frame", [1, 2, 3])
    def test_a_changed_array_is_never_seen(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, frame: int
    ) -> None:
        payload = np.zeros(3 * MIB, np.uint8)

        async def body(case: Case) -> None:
            def change(count: int) -> None:
                if count == frame:
                    payload[-1] = 1

            with monkeypatch.context() as patch:
                after_each_frame(patch, change)
                with pytest.raises(BufferMutatedError):
                    await case.js.publish(case.subject, payload)
            assert await case.received() == []
            await case.js.publish(case.subject, payload)
            assert (await case.only_array())[-1] == 1

        run(body)

    @pytest.mark.parametrize("frame", [1, 2, 3])
    def test_a_cancelled_publish_leaves_no_message(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, frame: int
    ) -> None:
        async def body(case: Case) -> None:
            with monkeypatch.context() as patch:
                publish = asyncio.create_task(case.js.publish(case.subject, random_bytes(3 * MIB)))
                after_each_frame(patch, lambda n: n == frame and publish.cancel())
                with pytest.raises(asyncio.CancelledError):
                    await publish
            assert await case.received() == []
            await case.js.publish(case.subject, b"next")
            await case.assert_alive()

        run(body)


class TestServerSubjects:
    """Key-value and object stores publish through the context; their messages are not ours."""

    def test_stores_work_as_before(self, run: Run) -> None:
        async def body(case: Case) -> None:
            bucket = await case.js.create_key_value(bucket="settings")
            await bucket.put("a", b"1")
            assert (await bucket.get("a")).value == b"1"
            await bucket.delete("a")
            objects = await case.js.create_object_store("files")
            await objects.put("f", random_bytes(300_000))
            assert (await objects.get("f")).data == random_bytes(300_000)

        run(body)

    def test_what_they_cannot_hold_is_refused(self, run: Run) -> None:
        async def body(case: Case) -> None:
            bucket = await case.js.create_key_value(bucket="limits")
            with pytest.raises(nats.errors.MaxPayloadError):
                await bucket.put("a", random_bytes(2 * MIB))
            with pytest.raises(PayloadError):
                await bucket.put("a", np.zeros(3))  # type: ignore[arg-type]
            await case.assert_alive()

        run(body)
