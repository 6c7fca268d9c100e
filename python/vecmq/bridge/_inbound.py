"""What a client's connection receives, read by the core instead of nats-py.

nats-py opens the connection, signs in, writes to it and opens it again. Between that, its socket
is read by a thread of the core, which waits for no event loop: a burst waits here, not in the
server, and what is over a subscription's limits is a SlowConsumerError, not the end of the
connection. Everything comes over one connection, in the order in which the server sent it, and
goes through nats-py's own `_process_msg`; so flush, drain, limits, answers and JetStream are what
they are in nats-py. A TLS connection, which asyncio decrypts, a WebSocket, and that of a client
that was wrapped (until it reconnects) are read by nats-py as before, and only taken apart by the
core.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.transport import TcpTransport
from nats.protocol.parser import AWAITING_CONTROL_LINE

from vecmq._loop import Loop
from vecmq._native import InboundParser, SocketDoor
from vecmq.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.subscription import Subscription
    from nats.protocol.parser import Parser as NatsParser

    from vecmq._native import InboundSocket, Payload
    from vecmq.bridge._client import Client

_log = logging.getLogger("vecmq")
# What is handed to the subscriptions before their readers have their turn; as much as nats-py.
_TURN_BYTES = 32 << 10


async def read(client: Client, by_nats: Callable[[], Awaitable[None]]) -> None:
    """Read a client's connection until it ends, as nats-py's `_read_loop` does.

    Args:
        client: Connected.
        by_nats: nats-py's `_read_loop`, for what the core cannot read.
    """
    try:
        source = _open(client)
        loop = None if source is None else Loop()
    except OSError as error:  # the connection has ended already, or there are no descriptors
        await client._process_op_err(error)
        return
    if source is None or loop is None:
        client._ps = Parser(client)  # type: ignore[assignment] # in its place
        await by_nats()
        return
    client.shared.inbound = source
    for sub in client._subs.values():
        limit(source, sub)
    try:
        await _read(client, source, loop)
    except asyncio.CancelledError:
        pass  # as nats-py: it cancels the task when the connection is over
    except OSError as error:
        await client._process_op_err(error)
    except Exception:
        _log.exception("nats: the connection is not read any more")  # as nats-py
        raise
    finally:
        if client.shared.inbound is source:
            client.shared.inbound = None
        source.close()
        loop.close()


async def _read(client: Client, source: InboundSocket, loop: Loop) -> None:
    while not client.is_closed and not client.is_reconnecting:
        came = source.take(_TURN_BYTES)
        if not came:
            token = loop.tokens(1)
            if source.wait(loop.native, token):
                await loop.future(token)
            continue
        for one in came:
            if not await _dispatch(client, *one):
                return
        await asyncio.sleep(0)


def limit(source: InboundSocket, sub: Subscription) -> None:
    """Tell the core what may wait for a subscription."""
    msgs_max, bytes_max = sub._pending_msgs_limit, sub._pending_bytes_limit
    source.limit(sub._id, max(msgs_max, 0), max(bytes_max, 0))


def _open(client: Client) -> InboundSocket | None:
    """Take the reading over from asyncio; None: it does not read a plain socket."""
    transport = client._transport
    if not isinstance(transport, TcpTransport):
        return None
    writer, reader = transport._io_writer, transport._io_reader
    if writer is None or reader is None or writer is not transport._bare_io_writer:
        return None
    own = writer.get_extra_info("socket")
    if own is None:
        return None
    writer.transport.pause_reading()  # type: ignore[attr-defined] # it is one that reads, too
    buffer: bytearray = reader._buffer  # type: ignore[attr-defined] # what asyncio has read already
    before = bytes(buffer)
    buffer.clear()
    door = SocketDoor()
    with socket.socket(fileno=os.dup(door.fileno())) as way:
        socket.send_fds(way, [b"\0"], [own.fileno()])
    return door.read(before)


async def _dispatch(
    client: Client,
    kind: str,
    sid: int,
    subject: bytes,
    reply: bytes,
    data: bytes | Payload,
    headers: bytes,
) -> bool:
    """Do what nats-py's parser does with one thing that came; False: it was the last."""
    if kind == "msg":
        await client._process_msg(sid, subject, reply, data, headers)
    elif kind == "ping":
        await client._process_ping()
    elif kind == "pong":
        await client._process_pong()
    elif kind == "dropped":
        await client._process_dropped(sid, subject, reply, headers)
    elif kind == "refusal":
        await client._process_err(subject.decode(errors="replace").lower())
    elif kind == "info":
        await client._process_info(json.loads(subject))
    else:
        error: Exception = nats.errors.ProtocolError()
        if kind == "end":
            error = nats.errors.UnexpectedEOF()
            await client._error_cb(error)
        elif kind == "broken":
            error = ConnectionError(subject.decode())
        await client._process_op_err(error)
        return False
    return True


class Parser:
    """In the place of nats-py's parser where Python reads the connection.

    Args:
        client: Gets what comes.
        before: The parser that was there; it keeps the message that it is in the middle of.
    """

    def __init__(self, client: Client, before: NatsParser | None = None) -> None:
        self._client = client
        self._before = before
        self._native = InboundParser()

    def reset(self) -> None:
        """Begin with a new connection."""
        self._before, self._native = None, InboundParser()

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read.

        Raises:
            nats.errors.ProtocolError: It is no NATS.
        """
        if self._before is not None:
            await self._before.parse(data)
            if self._before.state != AWAITING_CONTROL_LINE:
                return
            data, self._before = bytes(self._before.buf), None
        try:
            came: list[Any] = self._native.feed(data)
        except CorruptError as error:
            raise nats.errors.ProtocolError from error
        for one in came:
            await _dispatch(self._client, *one)
