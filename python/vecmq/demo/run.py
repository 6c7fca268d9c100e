"""Runs the demo: publishes the plan, subscribes meanwhile, checks, picks up after a crash."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

import vecmq
from vecmq.demo import plan
from vecmq.demo.check import Check
from vecmq.demo.ledger import Entry, Ledger, Start
from vecmq.demo.result import DemoOptions, DemoResult, Match, RouteResult, SizeResult
from vecmq.errors import ConfigError, Error

if TYPE_CHECKING:
    from vecmq.demo.vectors import Corpus

__all__ = ["TOPIC", "run"]

TOPIC: Final = "demo"
SEED: Final = 7
# The reader gives up when nothing came for this long after the last publish.
STALL_S: Final = 15.0
# Larger messages are compared in a thread, so that the event loop can take receipts meanwhile.
THREAD_BYTES: Final = 256 << 10
NEAREST: Final = 5

Progress = Callable[[int, int, int], None]


def run(options: DemoOptions, corpus: Corpus, progress: Progress) -> DemoResult:
    """Publish, receive and verify the demo's plan.

    Args:
        options: What to do.
        corpus: The vectors.
        progress: Called with (items published, items in all, messages received).

    Returns:
        What came of it, also after Ctrl-C.

    Raises:
        ConfigError: The directory holds a demo and `is_resume` is not set, or another plan.
        CorruptError: The ledger cannot be read.
        Error: As `vecmq.open` and `publish`.
    """
    if options.path is None:
        return _run(options, corpus, None, progress)
    with Ledger(options.path) as ledger:
        return _run(options, corpus, ledger, progress)


def _run(
    options: DemoOptions, corpus: Corpus, ledger: Ledger | None, progress: Progress
) -> DemoResult:
    before = ledger.start if ledger else None
    if ledger and before and not options.is_resume:
        raise ConfigError(
            f"path: {options.path} holds a demo with {len(ledger.entries)} receipts; "
            "continue it with --resume, or choose another directory"
        )
    seed = _agreed("seed", options.seed, before.seed if before else None, SEED)
    limit = options.limit if before is None else before.limit
    if options.limit not in (None, limit):
        raise ConfigError(f"limit: expected {limit}, as the earlier runs, got {options.limit}")
    items = plan.make(len(corpus.vectors), seed, limit)
    start = Start(seed, limit, plan.digest(items, corpus.digest))
    if before is not None and before != start:
        raise ConfigError(
            f"path: {options.path} was made from other vectors (another Python or scikit-learn)"
        )
    crashes = ledger.runs_count if ledger else 0
    if ledger is not None:
        ledger.begin(start)
    work = _Work(items, corpus, ledger, progress)
    work.result.crashes_count = crashes
    asyncio.run(work.run(options))
    return work.result


def _agreed(name: str, asked: int | None, before: int | None, usual: int) -> int:
    if before is None:
        return usual if asked is None else asked
    if asked not in (None, before):
        raise ConfigError(f"{name}: expected {before}, as the earlier runs, got {asked}")
    return before


class _Work:
    """One run over one plan."""

    def __init__(
        self, items: list[plan.Item], corpus: Corpus, ledger: Ledger | None, progress: Progress
    ) -> None:
        self._items = items
        self._corpus = corpus
        self._ledger = ledger
        self._progress = progress
        self._entries: list[Entry] = ledger.entries if ledger else []
        self._earlier = len(self._entries)
        self._check = Check(items, corpus.vectors)
        self._sent: list[tuple[plan.Item, str]] = []
        self.result = DemoResult(len(items), earlier_count=self._earlier)
        self.result.routes = {"queue": RouteResult(), "nats": RouteResult()}

    async def run(self, options: DemoOptions) -> None:
        started = time.perf_counter()
        async with vecmq.open(options.path, codec=options.codec) as mq:
            group = f"demo-{self.result.crashes_count + 1}"
            reader = asyncio.create_task(self._read(mq.subscribe(TOPIC, group=group)))
            try:
                await self._publish(mq.publisher(TOPIC), reader)
            except asyncio.CancelledError:
                # Ctrl-C: what was acknowledged is read and checked all the same.
                self.result.is_interrupted = True
            await self._finish(reader)
            self._explain(mq)
        self.result.seconds = time.perf_counter() - started
        self._conclude()

    async def _publish(self, publisher: vecmq.Publisher, reader: asyncio.Task[None]) -> None:
        """Publish what has no receipt yet, one by one: a crash leaves at most one open."""
        done = {entry.plan_index for entry in self._entries}
        for item in self._items:
            if item.index in done:
                continue
            payload = plan.payload(item, self._corpus.vectors)
            headers = {plan.HEADER: str(item.index)}
            publish = publisher.publish_rows if item.kind == "block" else publisher.publish
            before = time.perf_counter()
            receipt = await publish(payload, headers)
            self._note(item, receipt, time.perf_counter() - before)
            # A small message is acknowledged without a turn of the event loop; the reader needs
            # one.
            await asyncio.sleep(0)
            if reader.done():
                return

    def _note(self, item: plan.Item, receipt: vecmq.Receipt, seconds: float) -> None:
        if self._ledger is not None:
            self._ledger.add(item.index, receipt)
        else:
            rows, route = receipt.rows_count, receipt.route
            self._entries.append(Entry(item.index, receipt.seq, rows, route, receipt.id))
        result = self.result.routes[receipt.route]
        result.messages += receipt.rows_count
        result.publish_s += seconds
        result.payload_bytes += receipt.payload_bytes
        result.wire_bytes += receipt.wire_bytes
        result.latencies_s.append(seconds)
        self._sent.append((item, receipt.route))
        self._report()

    def _report(self) -> None:
        self._progress(len(self._entries), len(self._items), self._check.received_count)

    def _end_seq(self) -> int:
        return max((entry.seq + entry.rows_count - 1 for entry in self._entries), default=0)

    async def _read(self, subscriber: vecmq.Subscriber) -> None:
        async for batch in subscriber.batches():
            for message in batch:
                if message.size_bytes < THREAD_BYTES:
                    self._check.take(message)
                else:
                    await asyncio.to_thread(self._check.take, message)
            batch.ack()
            self._report()

    async def _finish(self, reader: asyncio.Task[None]) -> None:
        """Wait until the last acknowledged message was read, or nothing comes any more."""
        seen, since = -1, time.monotonic()
        while self._check.last_seq < self._end_seq() and not reader.done():
            if self._check.received_count != seen:
                seen, since = self._check.received_count, time.monotonic()
            if time.monotonic() - since > STALL_S:
                break
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.result.is_interrupted = True
        # An error of the reader is an error of the demo.
        if reader.done():
            reader.result()
            raise Error("the subscription ended before the last message was read")
        reader.cancel()
        await asyncio.wait([reader])

    def _explain(self, mq: vecmq.Handle) -> None:
        kinds: tuple[plan.Kind, ...] = ("control", "row", "block", "batch")
        for kind in kinds:
            sent = [(item, route) for item, route in self._sent if item.kind == kind]
            if not sent:
                continue
            sizes = sorted(plan.size_bytes(item, self._corpus.vectors) for item, _ in sent)
            routes = [route for _, route in sent]
            middle = mq.explain(TOPIC, sizes[len(sizes) // 2])
            self.result.sizes.append(
                SizeResult(
                    kind,
                    sizes[0],
                    sizes[-1],
                    {route: routes.count(route) for route in self.result.routes},
                    middle.reason,
                )
            )

    def _conclude(self) -> None:
        result, check = self.result, self._check
        lost = check.lost(self._entries)
        for name, route in result.routes.items():
            route.lost = lost[name]
            route.duplicates = check.duplicates[name]
        result.published_count = len({entry.plan_index for entry in self._entries})
        result.received_count = check.received_count
        result.wrong_count = check.wrong_count
        result.unordered_count = check.unordered_count + check.misplaced_count(self._entries)
        result.again_count = check.again_count()
        self._search()

    def _search(self) -> None:
        """Find the nearest neighbours of one sentence among the vectors that were received."""
        vectors = self._check.vectors
        candidates = np.flatnonzero(self._check.present & vectors.any(axis=1))
        if not len(candidates):
            return
        chance = random.Random(SEED)  # noqa: S311 - which sentence is asked for
        query = int(candidates[chance.randrange(len(candidates))])
        similarities = vectors @ vectors[query]
        similarities[~self._check.present] = -2.0
        similarities[query] = -2.0
        self.result.query = self._corpus.sentences[query]
        self.result.nearest = [
            Match(float(similarities[row]), self._corpus.sentences[row])
            for row in np.argsort(-similarities, kind="stable")[:NEAREST]
            if self._check.present[row]
        ]
