"""A replay: the workers read all topics again. They restore MongoDB, and count the tables again from zero.

They handle the records in the log's order, by the usual steps: stored documents are not stored twice, changed ones are
restored, decided prices stay. New events wait in Kafka until the workers have read all earlier ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

from faust_batches import TOTALS_KEY
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection, group, offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import count_partitions, id_of
from shopflow.models import Product
from shopflow.shop import announcements
from shopflow.shop.announcements import Announcements, Published
from shopflow.shop.counts import new_era_totals
from shopflow.shop.decoding import Decoder, split
from shopflow.shop.documents import product_document
from shopflow.shop.layout import Layout
from shopflow.shop.upserts import in_order
from shopflow.store import MongoStore
from shopflow.store.types import PURCHASES

from .verify.accounts import account
from .verify.report import FirstTen
from .verify.tables import Tables

#: An offset by topic and partition.
Offsets = dict[tuple[str, int], int]
#: Called with the number of events handled since the last call.
Advance = Callable[[int], None]

_POLL_SECONDS = 0.5
#: Give up when the group has had no member for so long.
_NO_WORKER_SECONDS = 60.0


@dataclass(frozen=True)
class Work:
    """The offsets to read again: from `starts` up to, not including, `ends`."""

    starts: Offsets
    ends: Offsets

    @property
    def total(self) -> int:
        return sum(end - self.starts[tp] for tp, end in self.ends.items())

    def done(self, committed: Offsets) -> int:
        """How many of these offsets are before the committed ones."""
        return sum(
            min(max(committed.get(tp, 0), self.starts[tp]), end) - self.starts[tp] for tp, end in self.ends.items()
        )


async def begin(
    bootstrap: Bootstrap,
    store: MongoStore,
    shop: Layout,
    *,
    max_event_bytes: int,
    keep_tables: bool,
    lose_counts: bool = False,
) -> Work:
    """Reset the group's committed offsets to the start of the topics, so that the workers read them again.

    Arguments:
        keep_tables: Restore only MongoDB, and leave the counts as they are.
        lose_counts: Count again also if Kafka no longer has all purchases that are counted or stored. The others stay
            in MongoDB, with `removed` as the `origin` of their source, and are in no count and no sum.

    Raises:
        Refused: Kafka no longer has all of them, so they can't be counted again.
        Unavailable: Kafka or MongoDB does not answer.
    """
    spans = await _spans(bootstrap, shop)
    starts = {tp: span.start for tp, span in spans.items()}
    ends = {tp: span.end for tp, span in spans.items()}
    if not keep_tables and not lose_counts:
        instead = (
            "With --keep-tables only MongoDB is restored; with --lose-counts the others are no longer in the counts"
        )
        await check_counts(bootstrap, store, shop, spans, instead)
    if lose_counts:
        await store.set_apart()  # the events that Kafka still has take theirs back
    await _restore_products(bootstrap, store, shop, max_event_bytes)
    await restore(bootstrap, store, shop, shop.vouchers, announcements.VOUCHERS)
    await restore(bootstrap, store, shop, shop.alerts, announcements.ALERTS)
    if not keep_tables:
        await _begin_new_era(bootstrap, shop)
        await store.clear_sales()
    try:
        await group.reset_offsets(bootstrap, shop.group, starts)
    except Unavailable as error:
        raise Unavailable("replay", f"the committed offsets were not reset; run it again. {error}") from error
    return Work(starts, ends)


async def check_counts(
    bootstrap: Bootstrap,
    store: MongoStore,
    shop: Layout,
    spans: Mapping[tuple[str, int], offsets.Span],
    instead: str,
) -> None:
    """Check that Kafka still has all purchases that are counted or, where no counts are left, stored.

    Arguments:
        instead: A sentence that says what can be done if it has not.

    Raises:
        Refused: It has not.
        Unavailable: Kafka or MongoDB does not answer.
    """
    tables = await Tables.read(bootstrap, shop.changelog, shop.partitions)
    stored: Counter[int] = Counter()
    if any(tables.totals(number).offset < 0 for number in range(shop.partitions)):
        async for _, source in store.sources(PURCHASES):
            if source.get("topic") == shop.purchases:
                stored[source.get("partition", -1)] += 1
    lost = FirstTen()
    topic_id = await id_of(bootstrap, shop.purchases)
    for number in range(shop.partitions):
        span = spans.get((shop.purchases, number), offsets.Span(0, 0, 0))
        found = await account(bootstrap, shop.purchases, number, span, tables, topic_id=topic_id, exact=True)
        known, what = (stored[number], "stored") if found.totals.offset < 0 else (found.accounted, "counted")
        has = found.records if found.totals.offset < 0 else found.counted
        if found.replaced and known:
            lost.add(f"partition {number}: {known} counted in a topic that was deleted, {found.records} in the new one")
        elif has < known:
            begins = f", from offset {span.start} on" if span.start else ""
            lost.add(f"partition {number}: {has} of {known} {what}{begins}")
    if lost.count:
        raise Refused(
            f"{shop.purchases}: Kafka no longer has all purchases, so they can't be counted again: {lost.listed()}. "
            + instead
        )


async def _restore_products(bootstrap: Bootstrap, store: MongoStore, shop: Layout, max_event_bytes: int) -> None:
    """Restore products and prices first: no purchase may be priced by an incomplete price history."""
    await store.prepare()
    decode = Decoder(Product, "product_id", max_event_bytes)
    found: list[list[Any]] = []
    for partition in range(shop.partitions):
        async with reading.runs(bootstrap, shop.products, partition, odd=True) as runs:
            found += [run async for run in runs]
    for run in found:
        for upserts, deletions in in_order(split(run, decode, tombstones=True), product_document):
            if upserts:
                await store.upsert_products([document for _, document in upserts])
            if deletions:
                await store.delete_products(deletions)


async def restore(bootstrap: Bootstrap, store: MongoStore, shop: Layout, topic: str, kind: Announcements) -> None:
    """Restore vouchers or alerts as they were first published: rules and products may have changed since."""
    published = Published(kind)
    for partition in range(await count_partitions(bootstrap, topic)):
        async with reading.runs(bootstrap, topic, partition) as runs:
            async for run in runs:
                await store.restore(kind.collection, published.new(run))


async def _begin_new_era(bootstrap: Bootstrap, shop: Layout) -> None:
    """Append empty totals of a new era to each changelog partition. The rows of earlier eras then no longer count."""
    topic_id = await id_of(bootstrap, shop.purchases)
    eras: dict[tuple[str, int], int] = {}
    for changelog in (shop.changelog, shop.sales_changelog):
        tables = await Tables.read(bootstrap, changelog, shop.partitions)
        eras |= {(changelog, partition): tables.totals(partition).era for partition in range(shop.partitions)}
    async with connection.producer(bootstrap) as producer:
        for (changelog, partition), era in eras.items():
            totals = new_era_totals(era, time(), topic_id)
            await producer.send_and_wait(changelog, totals, TOTALS_KEY, partition=partition)


async def finished(
    bootstrap: Bootstrap, shop: Layout, work: Work, check: Callable[[], None], progress: AbstractContextManager[Advance]
) -> None:
    """Wait until the workers have read all of the work again.

    Arguments:
        check: Called every half second. May raise, which ends the wait.

    Raises:
        Unavailable: No worker runs any more, or Kafka does not answer.
    """
    done, alone_since = 0, monotonic()
    with progress as advance:
        while True:
            check()
            now = work.done({tp: span.done for tp, span in (await _spans(bootstrap, shop)).items()})
            advance(max(0, now - done))
            done = max(done, now)
            if done == work.total or await _nothing_waits(bootstrap, shop):
                return
            if (await group.group_of(bootstrap, shop.group)).members:
                alone_since = monotonic()
            elif monotonic() - alone_since > _NO_WORKER_SECONDS:
                raise Unavailable("replay", "no worker runs any more; the next one that starts continues the replay")
            await asyncio.sleep(_POLL_SECONDS)


async def _spans(bootstrap: Bootstrap, shop: Layout) -> dict[tuple[str, int], offsets.Span]:
    spans = await offsets.spans(bootstrap, shop.group, shop.events)
    return {(topic, number): span for topic, partitions in spans.items() for number, span in partitions.items()}


async def _nothing_waits(bootstrap: Bootstrap, shop: Layout) -> bool:
    """True if no record is left: the last offsets are ends of transactions."""
    lags = await offsets.lags(bootstrap, shop.group, shop.events)
    return not any(lag.waiting for lag in lags.values())
