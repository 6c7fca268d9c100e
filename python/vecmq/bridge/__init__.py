"""Drop-in for nats-py: publish and receive arrays and payloads of any size, on its own surface.

`connect` instead of `nats.connect`, `wrap` around a client that exists, or `install` for programs
that connect by themselves. Plain bytes that fit into one NATS message stay plain NATS, byte for
byte: nats-py's own `publish` sends them. Arrays, and bytes that do not fit, become frames
(`Vecmq-*` headers, body = the bytes) on the caller's subject, because the streams and subscribers
of code written against nats-py listen there and nowhere else:

| frame | Nats-Msg-Id | the caller's headers |
|---|---|---|
| 0 | producer-epoch-seq-0 | what the stream's last message must be, Nats-Rollup |
| 1 to n-2 | producer-epoch-seq-index | |
| n-1, the manifest | the caller's, else producer-epoch-seq-(n-1) | all others, the reply subject |
| every frame | | Nats-Expected-Stream, Nats-TTL |

On JetStream, frame 0 is acknowledged before the next leaves, so a refusal (no stream, wrong stream,
no room) stores nothing; frames 1 to n-2 are pipelined; the manifest goes last, when all others are
stored, so a reader never sees a group that its publisher gave up, and says in `Vecmq-Seqs` where
they are ("17-19,23"). A stream that keeps fewer messages per subject than the group has frames
cannot hold it: leave `max_msgs_per_subject` unset.

Receiving, a group is delivered whole, as one `Msg`, or not at all, once its last frame came.
Unfinished groups count in the subscription's `pending_bytes_limit`; one that does not fit, that is
damaged, or of which no frame came for a minute is dropped, counted in `Client.groups_dropped`, and
goes to `error_cb`. What a stream holds is not lost by that: frames are fetched from it again when
their manifest comes. Who acknowledges which frame: `vecmq.bridge._stream`. On streams with
retention workqueue or interest `max_ack_pending` has to be larger than the frames of the unfinished
groups.

Payloads of 256 KiB and more go out over a connection of the core's own (`native=False`: over
nats-py's), opened with the same options when the first one is published. Where the options cannot
be met by it (an `ssl.SSLContext`, callbacks that sign, WebSocket), one log line says so. Each
publish that is awaited before the next keeps its place in the order on both connections, and
`flush` waits for both.

Everything is received over nats-py's connection, whose socket the core reads (`_inbound`): a burst
waits within the subscription's limits, also while the event loop is busy.

Without JetStream, a queue group's members send each other the frames of a message, so all of them
have to receive through this module, and their claims need the permission to publish on the inbox
prefix: see `vecmq.bridge._queue_group`.
"""

from __future__ import annotations

from vecmq.bridge._client import Client, Installed, connect, install, wrap
from vecmq.bridge._jetstream import JetStream, PullSubscription
from vecmq.bridge._message import Msg

__all__ = [
    "Client",
    "Installed",
    "JetStream",
    "Msg",
    "PullSubscription",
    "connect",
    "install",
    "wrap",
]
