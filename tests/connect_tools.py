"""Real servers with a configuration of their own, their keys, and a proxy that listens in."""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import trustme
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server_tools import wait_until
from vecmq.server import find_binary

HOST = "127.0.0.1"
USER, ACCOUNT, OPERATOR, SEED = 20 << 3, 0, 14 << 3, 18 << 3


class Server:
    """A nats-server with the given lines in its configuration; JetStream unless told otherwise."""

    def __init__(self, directory: Path, config: str = "", *, jetstream: bool = True) -> None:
        self.directory = directory
        self.port = -1
        self.jetstream = jetstream
        directory.mkdir(exist_ok=True)
        self.start(config)

    def start(self, config: str) -> None:
        """Start, on the port of the last time and with its store."""
        self.write(config)
        ports = self.directory / "ports"
        ports.mkdir(exist_ok=True)
        for old in ports.iterdir():
            old.unlink()
        self.process = subprocess.Popen([find_binary(), "-c", self.directory / "server.conf"])
        wait_until(lambda: self._read_port(ports) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()

    def write(self, config: str) -> None:
        store = f'jetstream {{ store_dir: "{self.directory}/store" }}' if self.jetstream else ""
        (self.directory / "server.conf").write_text(
            f'listen: "{HOST}:{self.port}"\nports_file_dir: "{self.directory}/ports"\n'
            f'logfile: "{self.directory}/log"\nwrite_deadline: "60s"\n{store}\n{config}\n'
        )

    def _read_port(self, ports: Path) -> bool:
        for file in ports.glob("*.ports"):
            with contextlib.suppress(ValueError):
                found = json.loads(file.read_text())["nats"][0]
                self.port = int(found.rpartition(":")[2])
                return True
        return False

    def reload(self, config: str) -> None:
        self.write(config)
        before = self.log().count("Reloaded server configuration")
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.log().count("Reloaded server configuration") > before)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self, config: str) -> None:
        self.stop()
        self.start(config)

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Proxy:
    """Passes bytes to a server and keeps what the client said; may change the server's INFO."""

    def __init__(
        self, port: int, change: Callable[[dict[str, Any]], None] = lambda info: None
    ) -> None:
        self.said = bytearray()
        self._server_port, self._change = port, change
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client:
            server = socket.create_connection((HOST, self._server_port), 20)
            with server:
                self._sockets += [client, server]
                greeting = server.makefile("rb", buffering=0).readline()
                info = json.loads(greeting.removeprefix(b"INFO "))
                self._change(info)
                client.sendall(b"INFO " + json.dumps(info).encode() + b"\r\n")
                threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
                while data := client.recv(1 << 16):
                    self.said += data
                    server.sendall(data)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()


class Key:
    """An nkey."""

    def __init__(self, kind: int) -> None:
        self._key = Ed25519PrivateKey.generate()
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.public = _nkey(bytes([kind]), raw)
        head = bytes([SEED | kind >> 5, (kind & 31) << 3])
        self.seed = _nkey(head, self._key.private_bytes_raw())

    def jwt(self, subject: str, kind: str, **claims: object) -> str:
        """Sign what `subject` is and may."""
        body = {
            "jti": f"{subject}-{kind}",
            "iat": int(time.time()),
            "iss": self.public,
            "name": kind,
            "sub": subject,
            "nats": {"type": kind, "version": 2, **claims},
        }
        text = f"{_url({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_url(body)}"
        return f"{text}.{_url(self._key.sign(text.encode()))}"


def _nkey(head: bytes, raw: bytes) -> str:
    data = head + raw
    data += binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(data).decode().rstrip("=")


def _url(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Operator:
    """An operator with an account that may use JetStream, and one that may not."""

    def __init__(self) -> None:
        self._operator, self._system = Key(OPERATOR), Key(ACCOUNT)
        self.account, self.poor = Key(ACCOUNT), Key(ACCOUNT)

    def config(self) -> str:
        everything = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        limits = dict.fromkeys(everything, -1) | {"wildcards": True}
        rich = limits | dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        accounts = ((self._system, limits), (self.account, rich), (self.poor, limits))
        preload = "\n".join(
            f"{key.public}: {self._operator.jwt(key.public, 'account', limits=limits)}"
            for key, limits in accounts
        )
        operator = self._operator.jwt(
            self._operator.public, "operator", system_account=self._system.public
        )
        return (
            f"operator: {operator}\nsystem_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload {{\n{preload}\n}}"
        )

    @staticmethod
    def user(account: Key) -> tuple[str, str]:
        """A new user's JWT and seed."""
        user = Key(USER)
        free = {"pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        return account.jwt(user.public, "user", **free), user.seed

    def creds(self, account: Key) -> str:
        jwt, seed = self.user(account)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )


class Pki:
    """Files of a certificate authority, a server's certificate and a client's."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca)
        for name, host in (("server", "127.0.0.1"), ("client", "client.test")):
            issued = authority.issue_cert(host)
            issued.private_key_pem.write_to_path(directory / f"{name}.key")
            issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
        self.directory = directory

    def config(self, more: str = "") -> str:
        files = f'cert_file: "{self.directory}/server.pem", key_file: "{self.directory}/server.key"'
        return f'tls {{ {files}, ca_file: "{self.ca}", {more} }}'

    def client(self, **more: Any) -> dict[str, Any]:
        cert, key = self.directory / "client.pem", self.directory / "client.key"
        return {"tls_ca_path": self.ca, "tls_cert_path": cert, "tls_key_path": key, **more}
