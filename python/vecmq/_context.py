"""Contexts of the nats command line tool: servers and credentials, by name."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any, Final

from vecmq._nats_options import NatsOptions
from vecmq.errors import ConfigError

__all__ = ["from_context"]

# Of the file's keys these choose what NatsOptions cannot describe.
NOT_SUPPORTED: Final = ("nsc", "socks_proxy", "jetstream_domain", "jetstream_api_prefix")
TEXTS: Final = {
    "token": "token",
    "user": "user",
    "password": "password",
    "user_jwt": "user_jwt",
    "user_seed": "nkey_seed",
    "inbox_prefix": "inbox_prefix",
}
FILES: Final = {
    "creds": "creds_path",
    "nkey": "nkey_path",
    "cert": "tls_cert_path",
    "key": "tls_key_path",
    "ca": "tls_ca_path",
}


def from_context(name: str | None = None) -> NatsOptions:
    """Read a context.

    Args:
        name: As ``nats context ls`` lists it; None: the selected one.

    Returns:
        NatsOptions.

    Raises:
        ConfigError: There is no such context, its file cannot be read, or it needs what is not
            supported.

    Source: the nats CLI keeps contexts in XDG_CONFIG_HOME/nats/context as one JSON file each, the
        selected one's name in XDG_CONFIG_HOME/nats/context.txt; XDG_CONFIG_HOME is by default
        .config in the home of the user's entry in the password database, whatever HOME says. An
        empty string in a file stands for nothing.
    """
    home = os.environ.get("XDG_CONFIG_HOME") or Path(pwd.getpwuid(os.getuid()).pw_dir) / ".config"
    directory = Path(home) / "nats"
    if name is None:
        name = _selected(directory / "context.txt")
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"context: expected a name as `nats context ls` lists it, got {name!r}")
    path = directory / "context" / f"{name}.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        known = sorted(file.stem for file in path.parent.glob("*.json"))
        raise ConfigError(
            f"context: expected one of {', '.join(known) or 'none (there are none)'}, got {name!r}"
        ) from None
    except OSError as error:
        raise ConfigError(f"context: cannot read {path}: {error}") from error
    except ValueError:
        # Without its cause, which holds the whole text.
        raise ConfigError(f"context: {path} is not JSON") from None
    if not isinstance(values, dict):
        raise ConfigError(f"context: {path}: expected an object")
    return _options(name, values)


def _selected(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"context: none is selected: cannot read {path}: {error}") from error


def _options(name: str, values: dict[str, Any]) -> NatsOptions:
    if foreign := [key for key in NOT_SUPPORTED if values.get(key)]:
        raise ConfigError(f"context {name!r}: {', '.join(foreign)}: not supported")
    for key in ("url", *TEXTS, *FILES):
        if not isinstance(values.get(key) or "", str):
            raise ConfigError(f"context {name!r}: {key}: expected a string")
    given: dict[str, Any] = {to: values[key] for key, to in TEXTS.items() if values.get(key)}
    for key, to in FILES.items():
        if values.get(key):
            given[to] = Path(values[key]).expanduser()
    if url := values.get("url"):
        given["url"] = url
    return NatsOptions(**given, tls_first=bool(values.get("tls_first")))
