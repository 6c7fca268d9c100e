"""Contexts of the nats command line tool: a server and its credentials, by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from vecmq._options import NatsOptions
from vecmq.errors import ConfigError

__all__ = ["from_context"]

# Of the file's keys these choose a connection that NatsOptions cannot describe.
NOT_SUPPORTED: Final = ("cert", "key", "ca", "nsc", "user_jwt", "user_seed", "socks_proxy")


def from_context(name: str) -> NatsOptions:
    """Read a context.

    Args:
        name: As ``nats context ls`` lists it.

    Returns:
        NatsOptions; of several servers the first.

    Raises:
        ConfigError: There is no such context, its file cannot be read, or it needs what is not
            supported.

    Source: the nats CLI keeps contexts in XDG_CONFIG_HOME/nats/context, by default
        ~/.config/nats/context, as one JSON file each.
    """
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"context: expected a name as `nats context ls` lists it, got {name!r}")
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    path = Path(home) / "nats" / "context" / f"{name}.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        known = sorted(file.stem for file in path.parent.glob("*.json"))
        raise ConfigError(
            f"context: expected one of {', '.join(known) or 'none (there are none)'}, got {name!r}"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"context: cannot read {path}: {error}") from error
    if foreign := [key for key in NOT_SUPPORTED if values.get(key)]:
        raise ConfigError(f"context {name!r}: {', '.join(foreign)}: not supported")
    return NatsOptions(
        url=values.get("url", "").split(",")[0].strip() or "nats://127.0.0.1:4222",
        token=values.get("token") or None,
        user=values.get("user") or None,
        password=values.get("password") or None,
        creds_path=Path(values["creds"]).expanduser() if values.get("creds") else None,
        nkey_seed=_seed(name, values.get("nkey")),
    )


def _seed(name: str, file: str | None) -> str | None:
    """The context names the file of a seed."""
    if not file:
        return None
    try:
        return Path(file).expanduser().read_text().strip()
    except OSError as error:
        raise ConfigError(f"context {name!r}: nkey: cannot read {file}: {error}") from error
