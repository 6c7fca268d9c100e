"""``vecmq nats``: topics and groups of mode "nats", as the server has them."""

from __future__ import annotations

from cyclopts import App

import vecmq.sync
from vecmq.cli.base import NO_SERVER, Server, UsageError, app, examples
from vecmq.cli.queue_topics import Sure, be_sure, print_groups, print_topics

__all__ = ["nats"]

nats = App(
    name="nats",
    help="Look after the topics and groups of a NATS server (mode nats).",
    help_epilogue=examples(
        "vecmq nats topics --nats nats://127.0.0.1:4222",
        "vecmq nats groups vectors --nats nats://127.0.0.1:4222",
    ),
)
app.command(nats)


def _open(server: Server) -> vecmq.sync.Handle:
    options = server.options()
    if options is None:
        raise UsageError("say where: --nats URL or --context NAME")
    return vecmq.sync.open(mode="nats", nats=options)


@nats.command(help_epilogue=examples("vecmq nats topics --nats nats://127.0.0.1:4222 --json"))
def topics(*, server: Server = NO_SERVER, json: bool = False) -> int:
    """List the topics of a server, with what they hold.

    Args:
        server: Where they are.
        json: Print one JSON object a topic.
    """
    with _open(server) as mq:
        infos = [mq.topic_info(name) for name in mq.topics()]
    print_topics(infos, json=json)
    return 0


@nats.command(help_epilogue=examples("vecmq nats groups vectors --nats nats://127.0.0.1:4222"))
def groups(topic: str, *, server: Server = NO_SERVER, json: bool = False) -> int:
    """List the subscription groups of a topic, and how far they are.

    Args:
        topic: An existing topic.
        server: Where it is.
        json: Print one JSON object a group.
    """
    with _open(server) as mq:
        found = mq.groups(topic)
    print_groups(found, json=json)
    return 0


@nats.command(
    help_epilogue=examples(
        "vecmq nats delete vectors --yes --nats nats://127.0.0.1:4222",
        "vecmq nats delete vectors --group indexer --yes --nats nats://127.0.0.1:4222",
    )
)
def delete(
    topic: str, *, group: str | None = None, sure: Sure = False, server: Server = NO_SERVER
) -> int:
    """Delete a topic with its messages and groups, or one of its groups.

    Args:
        topic: An existing topic.
        group: Delete this subscription group alone.
        sure: Needed: nothing brings them back.
        server: Where it is.
    """
    be_sure("delete", topic, sure=sure)
    with _open(server) as mq:
        if group is None:
            mq.delete_topic(topic)
        else:
            mq.delete_group(topic, group)
    return 0
