"""``vecmq queue``: directories of the queue route."""

from __future__ import annotations

from cyclopts import App

from vecmq.cli.base import app

__all__ = ["queue"]

queue = App(name="queue", help="Work on a directory of the queue route.", help_format="markdown")
app.command(queue)
