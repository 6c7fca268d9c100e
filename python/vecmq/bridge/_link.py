"""The core's own connection beside nats-py's, for payloads of many bytes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import nats.errors
import nats.js.errors
from nats.aio.client import RawCredentials

from vecmq._loop import Loop
from vecmq._native import PlainConnection
from vecmq._nats_options import NatsOptions, check_nats, native_nats
from vecmq.errors import (
    ClosedError,
    Error,
    NoStreamError,
    NotConnectedError,
    TimeoutError,  # noqa: A004 - vecmq's own
    TooLargeError,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nats.aio.client import Client as NatsClient

    from vecmq._native import PlainPublish
    from vecmq.bridge._frames import Group

_log = logging.getLogger("vecmq")


class Link:
    """A connection of the core, opened when the first payload needs it."""

    def __init__(self, nc: NatsClient) -> None:
        self._nc = nc
        self._opening: asyncio.Future[PlainConnection | None] | None = None
        self._loop: Loop | None = None
        # Groups that were sent, and of how many of them the server is known to have read them.
        self._sent = 0
        self._settled = 0

    @property
    def unsettled(self) -> bool:
        """Something was sent of which nobody knows whether the server has read it yet."""
        return self._settled < self._sent

    async def connection(self) -> PlainConnection | None:
        """The connection; None: this client's options cannot be met by it."""
        opening = self._opening
        if opening is None:
            opening = self._opening = asyncio.ensure_future(self._open())
        return await asyncio.shield(opening)

    async def _open(self) -> PlainConnection | None:
        why = unsupported(self._nc)
        if why is None:
            try:
                options = native_options(self._nc)
                connection = await asyncio.to_thread(PlainConnection, options)
            except (Error, OSError) as error:
                why = str(error)
            else:
                self._loop = Loop()
                return connection
        _log.warning("large payloads go over nats-py's own connection: %s", why)
        return None

    async def store(
        self,
        connection: PlainConnection,
        subject: str,
        group: Group,
        timeout_s: float,
    ) -> bytes:
        """Store a group; give the server's answer."""
        loop = self._loop
        assert loop is not None
        token = loop.tokens(1)
        publish = connection.store(
            subject, group.normal, group.cut, group.pairs, timeout_s, loop.native, token
        )
        return await _finished(loop, token, publish)

    async def send(self, connection: PlainConnection, subject: str, group: Group) -> None:
        """Send a group; the payload's memory is free when this returns."""
        self._sent += 1
        loop = self._loop
        assert loop is not None
        token = loop.tokens(1)
        publish = connection.send(subject, group.normal, group.cut, group.pairs, loop.native, token)
        await _finished(loop, token, publish)

    async def settle(self, timeout_s: float) -> None:
        """Wait until the server has read what was sent before."""
        sent = self._sent
        connection, loop = await self.connection(), self._loop
        if connection is not None and loop is not None:
            token = loop.tokens(1)
            await _finished(loop, token, connection.settle(timeout_s, loop.native, token))
        self._settled = max(self._settled, sent)

    async def close(self) -> None:
        """Flush and end the connection."""
        opening, self._opening = self._opening, None
        if opening is None:
            return
        connection = await opening
        if connection is not None:
            await asyncio.to_thread(connection.close)
        if self._loop is not None:
            self._loop.close()
            self._loop = None


async def within(flushing: Coroutine[Any, Any, object], timeout_s: float) -> float:
    """Wait for nats-py's flush, which knows no time limit; give the seconds that are left."""
    started_s = time.monotonic()
    task = asyncio.ensure_future(flushing)
    await asyncio.wait({task}, timeout=timeout_s)
    left_s = timeout_s - (time.monotonic() - started_s)
    if not task.done() or left_s <= 0:
        raise nats.errors.FlushTimeoutError
    task.result()
    return left_s


async def _finished(loop: Loop, token: int, publish: PlainPublish) -> bytes:
    try:
        answer: Any = await loop.future(token)
    except asyncio.CancelledError:
        publish.cancel()
        raise
    except NoStreamError as error:
        raise nats.js.errors.NoStreamResponseError from error
    except TooLargeError as error:
        raise nats.errors.MaxPayloadError from error
    except (TimeoutError, NotConnectedError) as error:
        # What nats-py says, too, when nobody answers: stored or not, nobody knows.
        raise nats.errors.TimeoutError from error
    except ClosedError as error:
        raise nats.errors.ConnectionClosedError from error
    data: bytes = answer
    return data


def unsupported(nc: NatsClient) -> str | None:
    """Say what a client was made with that the core's connection cannot have; None: nothing."""
    own = nc._user_credentials, nc._nkeys_seed, nc._nkeys_seed_str
    creds = nc._user_credentials
    url = nc.connected_url
    reasons = {
        "it is not connected": url is None,
        "a WebSocket": url is not None and url.scheme in ("ws", "wss"),
        "an ssl.SSLContext of its own": "tls" in nc.options or "tls_hostname" in nc.options,
        "no_echo": bool(nc.options.get("no_echo")),
        "a signature callback": not any(own) and nc._signature_cb is not None,
        "credentials that are not one file": isinstance(creds, (tuple, RawCredentials)),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def native_options(nc: NatsClient) -> dict[str, Any]:
    """Say in the core's words how a client is connected.

    Raises:
        ConfigError: It takes them for wrong.
    """

    def plain(name: str) -> Any:
        value = nc.options.get(name)
        return value() if callable(value) else value

    connected = nc.connected_url
    assert connected is not None
    servers = [connected, *(url for url in nc.servers if url != connected)]
    who: dict[str, Any] = {}
    user, password, token = plain("user"), plain("password"), plain("token")
    # In nats-py's order.
    if nc._user_credentials is not None:
        who = {"creds_path": str(nc._user_credentials)}
    elif nc._nkeys_seed_str is not None:
        who = {"nkey_seed": nc._nkeys_seed_str.strip()}
    elif nc._nkeys_seed is not None:
        who = {"nkey_path": nc._nkeys_seed}
    elif user is not None and password is not None:
        who = {"user": user, "password": password}
    elif token is not None:
        who = {"token": token}
    elif connected.username is not None and connected.password is not None:
        who = {"user": connected.username, "password": connected.password}
    elif connected.username is not None:
        who = {"token": connected.username}
    options = NatsOptions(
        url=[f"{url.scheme}://{url.netloc.rpartition('@')[2]}" for url in servers],
        tls=bool(nc._server_info.get("tls_required")),
        tls_first=bool(nc.options.get("tls_handshake_first")),
        name=nc.options.get("name") or "vecmq",
        inbox_prefix=nc._inbox_prefix.decode(),
        connect_timeout_s=float(nc.options["connect_timeout"]),
        **who,
    )
    return native_nats(check_nats(options))
