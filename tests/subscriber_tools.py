"""What tests of several modes share: receiving that many messages, however they come."""

from __future__ import annotations

import vecmq
import vecmq.sync

LONG_S = 20.0


def fetch_all(subscriber: vecmq.sync.Subscriber, count: int) -> list[vecmq.Message]:
    """Fetch that many messages, in as many calls as it takes."""
    messages: list[vecmq.Message] = []
    while len(messages) < count:
        batch = subscriber.fetch(count - len(messages), timeout_s=LONG_S)
        assert batch, f"{len(messages)} of {count} messages came"
        messages += batch
    return messages
