"""How to reach a NATS server: the options, where they come from, what they may be."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final
from urllib.parse import unquote

from vecmq.errors import ConfigError

__all__ = ["NatsOptions", "check_nats", "from_environment", "from_url", "native_nats"]

SERVER: Final = r"(?:(?:nats|tls)://)?(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?/?"
INBOX: Final = r"[!-)+\-/-=?-~]+(?:\.[!-)+\-/-=?-~]+)*"
SECONDS_MAX: Final = 1e9
COUNT_MAX: Final = (1 << 31) - 1

# Names of the nats command line tool; what names a file or a server and what is the secret itself.
ENVIRONMENT: Final = {
    "NATS_CREDS": "creds_path",
    "NATS_NKEY": "nkey_path",
    "NATS_USER": "user",
    "NATS_PASSWORD": "password",
    "NATS_TOKEN": "token",
    "NATS_CERT": "tls_cert_path",
    "NATS_KEY": "tls_key_path",
    "NATS_CA": "tls_ca_path",
}
# Ways to say who we are, of which one holds.
IDENTITIES: Final = ("token", "user", "creds_path", "nkey_seed", "nkey_path")
PATHS: Final = ("creds_path", "nkey_path", "tls_ca_path", "tls_cert_path", "tls_key_path")


@dataclass(frozen=True, slots=True)
class NatsOptions:
    """How to reach a NATS server. Secrets are in no repr, log line or error.

    Files of credentials are read again for every connection, so they can be exchanged while we run.
    There is one connection to a server, and one more as soon as something is published over it.

    Attributes:
        url: "nats://host:port" or "tls://host:port"; several of a cluster as a sequence or with
            commas between. One "tls://" means TLS or no connection, for all of them.
        token: Authentication token.
        user: User name.
        password: Password of the user.
        creds_path: Path of a .creds file: a user JWT and its seed.
        nkey_seed: Seed of an nkey.
        nkey_path: Path of a file with the seed of an nkey.
        user_jwt: User JWT; `nkey_seed` or `nkey_path` signs for it.
        tls: TLS or no connection, with any URL; the files below and `tls_first` imply it.
        tls_ca_path: Path of the certificates to trust instead of the system's, PEM.
        tls_cert_path: Path of our own certificate, PEM; with `tls_key_path`.
        tls_key_path: Path of its key, PEM.
        tls_first: The handshake comes before the server's INFO; the server must be set so, too.
        name: Client name that the server lists.
        inbox_prefix: What the subjects of replies begin with.
        connect_timeout_s: Seconds until the first connection has to stand, over all servers, > 0.
        request_timeout_s: Seconds until the server has to answer a request, > 0.
        ping_interval_s: Seconds between PINGs, > 0; after two without an answer we reconnect.
        reconnect_wait_s: Longest wait in seconds between two attempts to reconnect, > 0. The first
            comes at once, then waits double from 10 ms, with jitter.
        max_reconnects: Attempts a server, >= 1, before the connection is lost for good and calls
            raise NotConnectedError. None: for ever.
        max_pending: Messages and requests, >= 1, that wait for the socket; with more, publishes
            wait. Bytes that may wait are bounded apart from this: 16 MiB a topic.
        link_bytes_per_s: Speed of the link, > 0, for codec "auto". None: a server of this host gets
            raw payloads, unless it turns out slow as behind a tunnel; the speed of any other is
            measured on what is published.
    """

    url: str | Sequence[str] = "nats://127.0.0.1:4222"
    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    creds_path: str | os.PathLike[str] | None = None
    nkey_seed: str | None = field(default=None, repr=False)
    connect_timeout_s: float = 5.0
    name: str = "vecmq"
    nkey_path: str | os.PathLike[str] | None = None
    user_jwt: str | None = field(default=None, repr=False)
    tls: bool = False
    tls_ca_path: str | os.PathLike[str] | None = None
    tls_cert_path: str | os.PathLike[str] | None = None
    tls_key_path: str | os.PathLike[str] | None = None
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    request_timeout_s: float = 5.0
    ping_interval_s: float = 60.0
    reconnect_wait_s: float = 4.0
    max_reconnects: int | None = None
    max_pending: int = 2048
    link_bytes_per_s: int | None = None

    @classmethod
    def from_context(cls, name: str | None = None) -> NatsOptions:
        """Read a context of the nats command line tool.

        Args:
            name: As ``nats context ls`` lists it; None: the selected one.

        Returns:
            NatsOptions.

        Raises:
            ConfigError: There is no such context, its file cannot be read, or it needs what is not
                supported.
        """
        from vecmq._context import from_context

        return from_context(name)

    @classmethod
    def from_environment(cls) -> NatsOptions:
        """Read NATS_URL, NATS_CONTEXT, NATS_CREDS and the like, as the nats tool does.

        Returns:
            NatsOptions.

        Raises:
            ConfigError: NATS_TIMEOUT is no duration, or the context cannot be read.
        """
        return from_environment()

    def __repr__(self) -> str:
        """Show what differs from the defaults; credentials in a URL are left out, too."""
        shown = [
            f"{one.name}={getattr(self, one.name)!r}"
            for one in fields(self)
            if one.repr and one.name != "url" and getattr(self, one.name) != one.default
        ]
        return f"NatsOptions({', '.join([f'url={_shown(self.url)!r}', *shown])})"


def check_nats(options: NatsOptions) -> NatsOptions:
    """Check the options of a connection.

    Returns:
        The options, with the credentials taken out of the URLs and `url` as a tuple of servers.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.
    """
    if not isinstance(options, NatsOptions):
        raise ConfigError(f"nats: expected a URL or NatsOptions, got {type(options).__name__}")
    options = _without_secrets_in_urls(options)
    for one in fields(options):
        _check_field(one.name, getattr(options, one.name))
    _check_identity(options)
    if (options.tls_cert_path is None) != (options.tls_key_path is None):
        raise ConfigError("tls_cert_path and tls_key_path: expected both or none, got one")
    return options


def _check_field(name: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name.endswith("_s") and name != "link_bytes_per_s":
        if not is_number or not 0 < value <= SECONDS_MAX:
            raise ConfigError(
                f"{name}: expected seconds > 0, at most {SECONDS_MAX:g}, got {value!r}"
            )
    elif name in ("tls", "tls_first"):
        if not isinstance(value, bool):
            raise ConfigError(f"{name}: expected True or False, got {value!r}")
    elif name in PATHS:
        if not isinstance(value, (str, os.PathLike, type(None))):
            raise ConfigError(f"{name}: expected a path, got {type(value).__name__}")
    elif name in ("token", "user", "password", "nkey_seed", "user_jwt"):
        if not isinstance(value, (str, type(None))):
            raise ConfigError(f"{name}: expected a str, got {type(value).__name__}")
    elif name in ("max_reconnects", "max_pending"):
        is_off = name == "max_reconnects" and value is None
        if not is_off and not (is_number and isinstance(value, int) and 1 <= value <= COUNT_MAX):
            raise ConfigError(f"{name}: expected 1 to {COUNT_MAX}, got {value!r}")
    elif name == "inbox_prefix":
        if not isinstance(value, str) or not re.fullmatch(INBOX, value):
            raise ConfigError(f"{name}: expected a subject without wildcards, got {value!r}")
    elif name == "name" and not isinstance(value, str):
        raise ConfigError(f"{name}: expected a str, got {value!r}")


def _check_identity(options: NatsOptions) -> None:
    given = [name for name in IDENTITIES if getattr(options, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"nats: expected one way to authenticate, got {' and '.join(given)}")
    if options.password is not None and options.user is None:
        raise ConfigError("password: needs user, which is None")
    if options.user_jwt is not None and given not in (["nkey_seed"], ["nkey_path"]):
        raise ConfigError("user_jwt: needs nkey_seed or nkey_path, which signs for it")


def native_nats(options: NatsOptions) -> dict[str, Any]:
    """Give checked options as the core takes them."""
    native = {one.name: getattr(options, one.name) for one in fields(options)}
    for name in PATHS:
        native[name] = None if native[name] is None else os.fspath(native[name])
    native["servers"] = list(native.pop("url"))
    return native


def from_url(url: str) -> NatsOptions:
    """Options of a URL; credentials before the host are taken out of it.

    Args:
        url: "nats://host:port", with "user:password@" or "token@" before the host or without;
            several with commas between.

    Returns:
        NatsOptions whose url holds no secret.

    Raises:
        ConfigError: Two servers have different credentials.
    """
    options = _without_secrets_in_urls(NatsOptions(url=url))
    return replace(options, url=",".join(options.url))


def from_environment(options: NatsOptions | None = None) -> NatsOptions:
    """Fill in what the environment says; the names are those of the nats command line tool.

    Args:
        options: What was asked for; wins. With an identity of its own none is taken from the
            environment. None: NATS_CONTEXT or NATS_URL say where.

    Returns:
        NatsOptions.

    Raises:
        ConfigError: NATS_TIMEOUT is no number of seconds; the context cannot be read.
    """
    if options is None:
        context = os.environ.get("NATS_CONTEXT")
        options = NatsOptions.from_context(context) if context else NatsOptions()
        if url := os.environ.get("NATS_URL"):
            options = replace(options, url=url)
    options = _without_secrets_in_urls(options)
    found: dict[str, Any] = {}
    for variable, name in ENVIRONMENT.items():
        if name.startswith("tls_") and getattr(options, name) is None:
            found[name] = os.environ.get(variable) or None
    if all(getattr(options, name) is None for name in IDENTITIES):
        found |= _identity_in_environment()
    if timeout := os.environ.get("NATS_TIMEOUT"):
        found["connect_timeout_s"] = _seconds(timeout)
    return replace(options, **found)


def _identity_in_environment() -> dict[str, str]:
    """The first that is set, in the order in which the nats tool looks."""
    for variable, name in ENVIRONMENT.items():
        value = os.environ.get(variable)
        if value and name == "user":
            return {"user": value, "password": os.environ.get("NATS_PASSWORD", "")}
        if value and name in IDENTITIES:
            return {name: value}
    return {}


def _seconds(text: str) -> float:
    """Seconds of a Go duration of one unit, as "5s", "500ms", "2m"."""
    for unit, factor in (("ms", 1e-3), ("s", 1.0), ("m", 60.0)):
        if text.endswith(unit):
            try:
                return float(text.removesuffix(unit)) * factor
            except ValueError:
                break
    raise ConfigError(f"NATS_TIMEOUT: expected a duration such as 5s or 500ms, got {text!r}")


def _servers(url: str | Sequence[str]) -> list[str]:
    given = [url] if isinstance(url, str) else url
    if not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise ConfigError(f"nats: expected a URL or a sequence of URLs, got {type(url).__name__}")
    return [one.strip() for text in given for one in text.split(",") if one.strip()]


def _split(url: str) -> tuple[str, str]:
    """Credentials and the URL without them."""
    scheme, separator, rest = url.rpartition("://")
    secret, _, host = rest.rpartition("@")
    return secret, f"{scheme}{separator}{host}"


def _without_secrets_in_urls(options: NatsOptions) -> NatsOptions:
    given = [_split(url) for url in _servers(options.url)]
    if not given:
        raise ConfigError("nats: expected at least one server, got none")
    for number, (_, server) in enumerate(given, 1):
        # Not shown: what is no URL may be half of a secret.
        if not re.fullmatch(SERVER, server):
            raise ConfigError(
                "nats: expected nats://host:port or tls://host:port (a comma or @ in credentials "
                f"is written %2C, %40); server number {number} is neither"
            )
    options = replace(options, url=tuple(server for _, server in given))
    secrets = {secret for secret, _ in given if secret}
    if len(secrets) > 1:
        raise ConfigError("nats: expected the same credentials for all servers, got several")
    for secret in secrets:
        user, colon, password = (unquote(piece) for piece in secret.partition(":"))
        if colon:
            return replace(options, user=user, password=password)
        return replace(options, token=user)
    return options


def _shown(url: Any) -> str:
    """The servers; what is no URL may be half of a secret."""
    with contextlib.suppress(ConfigError):
        servers = [_split(one)[1] for one in _servers(url)]
        return ",".join(one if re.fullmatch(SERVER, one) else ".." for one in servers)
    return ".."
