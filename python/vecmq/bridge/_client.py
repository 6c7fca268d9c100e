"""`Client`: nats-py's, with payloads of any kind and size, and how to come by one."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Self

import nats.aio.client
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.transport import TcpTransport

from vecmq._native import read_frame
from vecmq._options import FIXED_CODECS, MESSAGE_BYTES_MAX, Codec
from vecmq._payload import Normalised, normalise
from vecmq.bridge import _inbound
from vecmq.bridge._assembly import Groups
from vecmq.bridge._frames import FrameFields, Options, Producer, header_block, header_bytes, plan
from vecmq.bridge._jetstream import JetStream
from vecmq.bridge._link import Link, within
from vecmq.bridge._stream import in_order
from vecmq.errors import ConfigError, FrameError, PayloadError

if TYPE_CHECKING:
    from nats.aio.msg import Msg as NatsMsg
    from nats.aio.subscription import Subscription

    from vecmq._native import InboundSocket, Payload
    from vecmq.bridge._frames import Fields, Group
    from vecmq.bridge._message import Msg

# Below it, a connection of the core's own has nothing to save.
_NATIVE_BYTES_MIN = 256 << 10
_SEND_TIMEOUT_S = 10.0  # nats-py's own for a flush
_WHITESPACE = re.compile(r"[ \t\r\n]")
_DEFAULTS = Options("raw", MESSAGE_BYTES_MAX, native=True)
# Versions of nats-py whose list of pending buffers is known: three buffers go in as they are.
_KNOWN_VERSIONS = re.compile(r"2\.1[4-6]\.")


class Shared:
    """What all wrappers of one connection have in common."""

    def __init__(self, nc: NatsClient) -> None:
        self.link = Link(nc)
        self.producer = Producer()
        self.groups_dropped = 0
        self.groups_swept = 0
        self.arriving: Msg | None = None
        self.inbound: InboundSocket | None = None  # reads the connection, where the core does
        self.flushed_msgs = 0  # of those published over nats-py's connection


class Client(NatsClient):
    """A nats-py client that publishes and receives arrays and payloads of any size.

    Made by `connect`, or by `wrap` from another client: then both are the same connection, and the
    other's subscriptions stay what they are.
    """

    __slots__ = ("_vecmq_options", "_vecmq_plain")
    _vecmq_options: Options
    _vecmq_plain: NatsClient

    def __init__(self) -> None:
        super().__init__()
        self._vecmq_options = _DEFAULTS
        self._vecmq_plain = self

    @property
    def plain(self) -> NatsClient:
        """The client that was wrapped; this one, if none was."""
        return self._vecmq_plain

    @property
    def shared(self) -> Shared:
        """What all wrappers of this connection have in common."""
        known = self.__dict__.get("_vecmq_shared")
        if known is None:
            known = self.__dict__["_vecmq_shared"] = Shared(self._vecmq_plain)
        shared: Shared = known
        return shared

    @property
    def groups_dropped(self) -> int:
        """Messages that came in frames and could not be delivered; error_cb got each error."""
        return self.shared.groups_dropped

    def jetstream(self, **opts: Any) -> JetStream:
        """Make a JetStream context on this connection.

        Args:
            **opts: nats-py's own: prefix, domain, timeout, publish_async_max_pending.

        Returns:
            JetStream, a nats.js.JetStreamContext.
        """
        return JetStream(self, **opts)

    async def publish(
        self,
        subject: str,
        payload: Any = b"",
        reply: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Publish one message.

        Bytes that fit into one NATS message are what nats-py makes of them. Anything else becomes
        frames; the array may be changed again once this returns. Copies besides nats-py's own: 0.

        Args:
            subject: Subject. Those that begin with "$" or with the inbox prefix take plain bytes
                that fit only.
            payload: bytes, buffer or array, as `vecmq.Publisher.publish` takes it.
            reply: Where an answer goes.
            headers: Headers of the message; never changed.

        Raises:
            PayloadError: The payload is neither a buffer nor an array of numbers.
            TooLargeError: The payload is over the limit given to `connect` or `wrap`.
            InvalidHeadersError: A `Vecmq-*` header, or more than 60 KiB of them on a group.
            nats.errors.Error: Whatever nats-py raises, unchanged.
        """
        if isinstance(headers, FrameFields):  # a stored frame on its way through nats-py's request
            await self.send_frame(subject, payload, reply, headers)
            return
        normal = self.as_frames(subject, payload, headers)
        if self.shared.link.unsettled:  # two connections: that has to be there before this
            await self._settle(_SEND_TIMEOUT_S)
        if normal is None:
            await super().publish(subject, payload, reply, headers)
        elif normal.dtype is None and self.fits(normal.view, headers):
            await super().publish(subject, normal.view, reply, headers)
        else:
            await self._publish_group(subject, normal, reply, headers)

    async def request(
        self,
        subject: str,
        payload: Any = b"",
        timeout: float = 0.5,  # noqa: ASYNC109 - nats-py's signature
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> NatsMsg:
        """Publish one message, as `publish`, and wait for an answer.

        Args:
            subject: Subject that somebody answers on.
            payload: bytes, buffer or array.
            timeout: Seconds until the answer has to be there.
            old_style: Use a subscription of its own for the answer; headers are not sent then.
            headers: Headers of the message; never changed.

        Returns:
            The answer.

        Raises:
            nats.errors.NoRespondersError: Nobody listens.
            nats.errors.TimeoutError: No answer in time.
            nats.errors.Error: As `publish`.
        """
        return await super().request(subject, payload, timeout, old_style, headers)

    async def flush(
        self,
        timeout: int = nats.aio.client.DEFAULT_FLUSH_TIMEOUT,  # noqa: ASYNC109 - nats-py's
    ) -> None:
        """Wait until the server has everything that was published, and what it sent before is here.

        Args:
            timeout: Seconds.

        Raises:
            nats.errors.FlushTimeoutError: It took longer.
            nats.errors.Error: Whatever nats-py raises.
        """
        await self._flush_plain(timeout)
        is_reconnect = asyncio.current_task() is self._reconnection_task  # of this connection only
        if self.shared.link.unsettled and not is_reconnect:
            await self._settle(timeout)
            await super().flush(timeout)  # what that brought to our own subscriptions

    async def _flush_plain(self, timeout_s: Any = nats.aio.client.DEFAULT_FLUSH_TIMEOUT) -> None:
        if self.is_connected and self._pending_data_size > 0 and timeout_s > 0:  # before its PING
            timeout_s = await within(self._flush_pending(force_flush=True), timeout_s)
        await super().flush(timeout_s)

    async def _settle(self, timeout_s: float) -> None:
        try:
            await self.shared.link.settle(timeout_s)
        except nats.errors.TimeoutError as error:
            raise nats.errors.FlushTimeoutError from error

    def fits(self, body: Any, headers: Fields | None) -> bool:
        """Tell whether one NATS message takes flat bytes, headers included."""
        return header_bytes(headers) + len(body) <= self._max_payload

    def as_frames(
        self, subject: str, payload: Any, headers: dict[str, Any] | None
    ) -> Normalised | None:
        """Describe a payload that nats-py's own publish does not take; None: it does.

        Raises:
            PayloadError: Neither does anything else, or the subject takes plain bytes only.
            nats.errors.MaxPayloadError: As the latter, for too many bytes.
        """
        if type(payload) is bytes and self.fits(payload, headers):
            return None
        normal = normalise(payload)
        if normal.dtype is None and self.fits(normal.view, headers):
            return normal
        if subject.startswith(("$", "_INBOX.", f"{self._inbox_prefix.decode()}.")):
            if normal.dtype is None:
                raise nats.errors.MaxPayloadError
            raise PayloadError(f"subject {subject!r} takes plain bytes, got {normal.dtype} array")
        return normal

    def check_publish(self, subject: str, size_bytes: int, reply: str = "") -> None:
        """Refuse what nats-py's publish refuses, before the first of several frames is sent.

        Raises:
            nats.errors.Error: The subject, or the connection's state.
        """
        if not self._skip_subject_validation:
            for name in (subject, reply) if reply else (subject,):
                if not name or _WHITESPACE.search(name):
                    raise nats.errors.BadSubjectError
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats.errors.ConnectionDrainingError
        room = self._max_pending_size - self._pending_data_size
        if not self.is_connected and (self._max_pending_size <= 0 or size_bytes > room):
            raise nats.errors.OutboundBufferLimitError

    def plan(self, normal: Normalised, headers: Fields) -> Group:
        """Fix how a message is cut.

        Raises:
            Error: As `publish`.
        """
        producer = self.shared.producer
        return plan(normal, headers, self._max_payload, self._vecmq_options, producer)

    async def native(self, group: Group) -> Any:
        """The core's connection, where it has something to save for this group; else None."""
        if not self._vecmq_options.native or group.size_bytes < _NATIVE_BYTES_MIN:
            return None
        return await self.shared.link.connection()

    async def _publish_group(
        self, subject: str, normal: Normalised, reply: str, headers: Fields | None
    ) -> None:
        group = self.plan(normal, headers or {})
        self.check_publish(subject, group.size_bytes, reply)
        # With a reply subject, the server tells only the connection that it belongs to when nobody
        # listens.
        connection = None if reply else await self.native(group)
        if connection is not None:
            await self._send_native(connection, subject, group)
            return
        frames = group.frames()
        for index, (fields, body) in enumerate(frames):
            if header_bytes(fields) + len(body) > self._max_payload:
                raise nats.errors.MaxPayloadError  # it shrank meanwhile
            data = bytes(body) if normal.writable else body  # it may be sent after this returns
            to = reply if index + 1 == len(frames) else ""
            await self.send_frame(subject, data, to, fields)

    async def _send_native(self, connection: Any, subject: str, group: Group) -> None:
        msgs = self.stats["out_msgs"]
        if msgs != self.shared.flushed_msgs:  # two connections: those have to be there before it
            await self._flush_plain()
            self.shared.flushed_msgs = msgs
        await self.shared.link.send(connection, subject, group)
        self.stats["out_bytes"] += group.size_bytes
        if self._vecmq_plain is not self:  # the wrapped client publishes without asking us
            await self._settle(_SEND_TIMEOUT_S)

    async def send_frame(self, subject: str, body: Any, reply: str, fields: Fields) -> None:
        """Hand one frame to nats-py: as three buffers where its version is known, else whole."""
        is_known = _KNOWN_VERSIONS.match(nats.aio.client.__version__)
        is_clean = isinstance(fields, FrameFields) and isinstance(self._transport, TcpTransport)
        if not (is_known and is_clean and self.is_connected) or self.is_draining_pubs:
            await super().publish(subject, body, reply, fields)
            return
        block = header_block(fields.items())
        total = len(block) + len(body)
        head = f"HPUB {subject} {reply} {len(block)} {total}\r\n".encode() + block
        self._pending += (head, body, b"\r\n")
        self._pending_data_size += len(head) + len(body) + 2
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(body)
        full = 0 < self._max_pending_size < self._pending_data_size
        if full or (self._flush_queue is not None and self._flush_queue.empty()):
            await self._flush_pending(force_flush=full)

    async def _send_subscribe(self, sub: Subscription) -> None:
        # Answers are plain: the server's own may be a frame that was asked for by its sequence.
        is_answer = sub._future is not None or sub._cb == self._request_sub_callback
        if not is_answer and getattr(sub, "_vecmq_groups", None) is None:
            sub._vecmq_groups = Groups(self, sub)  # type: ignore[attr-defined]
        if (inbound := self.shared.inbound) is not None:
            _inbound.limit(inbound, sub)
        await super()._send_subscribe(sub)

    async def _send_unsubscribe(self, sid: int, limit: int = 0) -> None:
        sub = self._subs.get(sid)
        groups = getattr(sub, "_vecmq_groups", None)
        if sub is not None and limit > sub._received and groups is not None and not sub.queue:
            return  # the server would count frames; `_process_msg` counts messages
        if sub is not None and self.shared.link.unsettled:
            await self._settle(_SEND_TIMEOUT_S)  # a drain gives what was published before it
        await super()._send_unsubscribe(sid, limit)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        groups: Groups | None = getattr(self._subs.get(sid), "_vecmq_groups", None)
        super()._remove_sub(sid, max_msgs)
        if (inbound := self.shared.inbound) is not None:
            inbound.forget(sid)
        if groups is not None and groups.sub._id == sid:
            groups.close()

    async def _read_loop(self) -> None:
        if self._vecmq_options.native and _KNOWN_VERSIONS.match(nats.aio.client.__version__):
            await _inbound.read(self, super()._read_loop)
        else:
            await super()._read_loop()

    async def _process_dropped(
        self, sid: int, subject: bytes, reply: bytes, headers: bytes
    ) -> None:
        """Say that a message was over its subscription's limits before the loop came to it."""
        sub = self._subs.get(sid)
        if sub is None:
            return
        groups: Groups | None = getattr(sub, "_vecmq_groups", None)
        sub = sub if groups is None else groups.sub
        names = subject.decode(), reply.decode()
        error = nats.errors.SlowConsumerError(*names, sid=sub._id, sub=sub)
        if groups is not None and b"Vecmq-Frame:" in headers:
            fields = await self._process_headers(headers) or {}
            await groups.lose(fields, reply.decode(), error)
        else:
            await self._error_cb(error)

    async def _process_msg(
        self,
        sid: int,
        subject: bytes,
        reply: bytes,
        data: bytes | Payload,
        headers: bytes,
    ) -> None:
        sub = self._subs.get(sid)
        groups: Groups | None = getattr(sub, "_vecmq_groups", None)
        if sub is None or groups is None:
            data = bytes(data)
            plain = self._vecmq_plain  # a wrapped client's own: its messages are its, too
            if plain is self or isinstance(plain, Client):
                await super()._process_msg(sid, subject, reply, data, headers)
            else:
                await type(plain)._process_msg(plain, sid, subject, reply, data, headers)
            return
        if sub is not groups.sub:  # asked for by a fetch, beyond what nats-py asked for
            if headers and headers.startswith(b"NATS/1.0 "):
                return
            sub, sid = groups.sub, groups.sub._id
        if headers and b"Vecmq-Frame:" in headers:
            fields = await self._process_headers(headers) or {}
            if await self._process_frame(groups, subject.decode(), reply.decode(), data, fields):
                return
        await super()._process_msg(sid, subject, reply, bytes(data), headers)
        await self._end_at_limit(sub)

    async def _process_frame(
        self, groups: Groups, subject: str, reply: str, data: bytes | Payload, fields: Fields
    ) -> bool:
        """Take a frame; False: it is a plain message."""
        try:
            frame = read_frame(fields, data)
        except FrameError as error:
            self.shared.groups_dropped += 1
            await self._error_cb(error)
            return True
        if frame is None:
            return False
        jsi = groups.sub._jsi
        if jsi is not None and not await in_order(jsi, reply):
            return True
        await groups.take(frame, subject, reply, fields, data)
        return True

    async def deliver(self, sub: Subscription, msg: Msg) -> None:
        """Let nats-py count, limit and queue a whole message as if it had come in one piece."""
        subject, reply = msg.subject.encode(), msg.reply.encode()
        jsi: Any = sub._jsi
        noted = None if jsi is None else (jsi._ordered, jsi._cmeta)
        if noted is not None:
            jsi._ordered = False  # its frames were checked one by one
        self.shared.arriving = msg
        try:
            await super()._process_msg(sub._id, subject, reply, msg.data, b"")
        finally:
            self.shared.arriving = None
            if noted is not None:
                jsi._ordered, jsi._cmeta = noted
        await self._end_at_limit(sub)

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Fields | None
    ) -> Any:
        arriving, self.shared.arriving = self.shared.arriving, None
        return arriving or super()._build_message(sid, subject, reply, data, headers)

    async def _end_at_limit(self, sub: Subscription) -> None:
        if sub._max_msgs > 0 and sub._received >= sub._max_msgs:
            if not sub.queue:
                await super()._send_unsubscribe(sub._id)
            if (inbound := self.shared.inbound) is not None:
                inbound.forget(sub._id)
            sub._vecmq_groups.close()  # type: ignore[attr-defined]

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        subs = list(self._subs.values())
        if not self.is_closed and (known := self.__dict__.get("_vecmq_shared")) is not None:
            await known.link.close()
        await super()._close(status, do_cbs)
        for sub in subs:
            if (groups := getattr(sub, "_vecmq_groups", None)) is not None:
                groups.close()


def options(codec: Codec, message_bytes_max: int, native: bool) -> Options:
    """Check the options.

    Raises:
        ConfigError: Unknown codec, or a limit that is no positive number of bytes.
    """
    if codec not in FIXED_CODECS:
        raise ConfigError(f"codec: expected one of {', '.join(FIXED_CODECS)}, got {codec!r}")
    if not isinstance(message_bytes_max, int) or message_bytes_max < 1:
        raise ConfigError(f"message_bytes_max: expected bytes >= 1, got {message_bytes_max!r}")
    return Options(codec, message_bytes_max, bool(native))


async def connect(
    servers: str | list[str] = "nats://localhost:4222",
    *,
    codec: Codec = "raw",
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    native: bool = True,
    **options_: Any,
) -> Client:
    """Connect as `nats.connect` does.

    Args:
        servers: URL, or list of URLs.
        codec: Compressor of the frames: "raw", "zstd", "planes", "pk3" or "lz4".
        message_bytes_max: Largest payload in bytes, in and out.
        native: Large payloads go out over a connection of the core's own, opened when the first
            one is published; else everything stays on nats-py's.
        **options_: nats-py's own.

    Returns:
        Client, a nats.aio.client.Client.

    Raises:
        ConfigError: Unknown codec, or a limit that is no positive number of bytes.
        nats.errors.Error: Whatever nats-py raises.
    """
    checked = options(codec, message_bytes_max, native)
    client = Client()
    client._vecmq_options = checked
    await client.connect(servers, **options_)
    return client


def wrap(
    nc: NatsClient,
    *,
    codec: Codec = "raw",
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    native: bool = True,
) -> Client:
    """Give a nats-py client that takes and gives payloads of any kind and size.

    Args:
        nc: Client of nats-py, connected or not; it stays usable, is the same connection, and its
            own subscriptions get what they always got.
        codec: Compressor of the frames: "raw", "zstd", "planes", "pk3" or "lz4".
        message_bytes_max: Largest payload in bytes, in and out.
        native: As `connect`.

    Returns:
        Client, also an instance of the class of `nc`.

    Raises:
        TypeError: `nc` is not a nats-py client.
        ConfigError: Unknown codec, or a limit that is no positive number of bytes.

    Example:
        >>> js = vecmq.wrap(await nats.connect(url)).jetstream()  # doctest: +SKIP
        >>> await js.publish("vectors", np.zeros((1000, 768), np.float32))  # doctest: +SKIP
    """
    if not isinstance(nc, NatsClient):
        raise TypeError(f"wrap takes a nats.aio.client.Client, got {type(nc).__name__}")
    checked = options(codec, message_bytes_max, native)
    client = object.__new__(_client_class(type(nc)))
    client.__dict__ = nc.__dict__  # one state: reconnects and subscriptions are seen by both
    client._vecmq_options = checked
    client._vecmq_plain = nc.plain if isinstance(nc, Client) else nc
    if client._vecmq_plain is not nc or not isinstance(nc, Client):
        # What arrives, and the end of the connection, reach this one first.
        client.__dict__["_process_msg"] = client._process_msg
        client.__dict__["_close"] = client._close
        client.__dict__["_read_loop"] = client._read_loop
        if client._vecmq_options.native and not isinstance(client._ps, _inbound.Parser):
            client._ps = _inbound.Parser(client, client._ps)  # type: ignore[assignment] # its place
    return client


def _client_class(kind: type[NatsClient]) -> type[Client]:
    if kind is NatsClient:
        return Client
    if issubclass(kind, Client):
        return kind
    return type("Client", (Client, kind), {"__slots__": (), "__doc__": Client.__doc__})


class Installed:
    """What `install` changed; calling it, or leaving its `with` block, changes it back."""

    def __init__(self, names: dict[tuple[Any, str], Any]) -> None:
        self._before = {(owner, name): getattr(owner, name) for owner, name in names}
        for (owner, name), value in names.items():
            setattr(owner, name, value)

    def __call__(self) -> None:
        """Change it back. A second call does nothing."""
        for (owner, name), value in self._before.items():
            setattr(owner, name, value)
        self._before = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self()


def install(
    *,
    codec: Codec = "raw",
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    native: bool = True,
) -> Installed:
    """Make `nats.connect` and `nats.aio.client.Client` give clients of this package.

    For programs and frameworks that connect by themselves. Names that were imported before
    (`from nats import connect`) stay what they were: install first.

    Args:
        codec: Compressor of the frames: "raw", "zstd", "planes", "pk3" or "lz4".
        message_bytes_max: Largest payload in bytes, in and out.
        native: As `connect`.

    Returns:
        Installed: call it to undo this, or use it as a context manager.

    Raises:
        ConfigError: Unknown codec, or a limit that is no positive number of bytes.
    """
    checked = options(codec, message_bytes_max, native)

    class InstalledClient(Client):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            self._vecmq_options = checked

    InstalledClient.__name__ = InstalledClient.__qualname__ = "Client"

    async def connect_installed(
        servers: str | list[str] = "nats://localhost:4222", **options_: Any
    ) -> Client:
        client = InstalledClient()
        await client.connect(servers, **options_)
        return client

    return Installed(
        {
            (nats, "connect"): connect_installed,
            (nats, "NATS"): InstalledClient,
            (nats.aio.client, "Client"): InstalledClient,
        }
    )
