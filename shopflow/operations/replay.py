"""A replay: the workers read all topics again, so that MongoDB gets what it lacks and the tables are counted anew.

The workers do it in the order of the log, by the same steps as ever: what is stored is met again, what was changed is
put right, what was decided before stays decided. New events wait at the end of the log until it is their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import monotonic, time
from typing import Any

from faust_batches import TOTALS_KEY
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection, group, offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import count_partitions
from shopflow.models import Product
from shopflow.shop import announcements
from shopflow.shop.announcements import Announcements, Told
from shopflow.shop.counts import rebuilt
from shopflow.shop.decoding import Decoder, split
from shopflow.shop.documents import product_document
from shopflow.shop.layout import Layout
from shopflow.shop.upserts import in_order
from shopflow.store import MongoStore

from .verify.tables import Tables

#: An offset by topic and partition.
Offsets = dict[tuple[str, int], int]
#: Called with how many more events were done.
Advance = Callable[[int], None]

_LOOK_SECONDS = 0.5
#: Without a worker in the group for so long, nobody does it.
_ALONE_SECONDS = 60.0


@dataclass(frozen=True)
class Work:
    """The offsets that are read again: from the starts up to, not including, the ends."""

    starts: Offsets
    ends: Offsets

    @property
    def total(self) -> int:
        return sum(end - self.starts[tp] for tp, end in self.ends.items())

    def done(self, committed: Offsets) -> int:
        """How many of them are before the committed offsets."""
        return sum(
            min(max(committed.get(tp, 0), self.starts[tp]), end) - self.starts[tp] for tp, end in self.ends.items()
        )


async def begin(
    bootstrap: Bootstrap, store: MongoStore, shop: Layout, *, max_event_bytes: int, keep_tables: bool
) -> Work:
    """Send the workers back to the start of the topics.

    Arguments:
        keep_tables: Leave the counts as they are: only MongoDB is filled again.

    Raises:
        Refused: The counts can't be made of what the topic still has.
        Unavailable: Kafka or MongoDB does not answer.
    """
    spans = await _spans(bootstrap, shop)
    starts = {tp: span.start for tp, span in spans.items()}
    ends = {tp: span.end for tp, span in spans.items()}
    late = sorted((tp, start) for tp, start in starts.items() if start and tp[0] == shop.purchases)
    if late and not keep_tables:
        (topic, partition), offset = late[0]
        raise Refused(
            f"{topic}: partition {partition} begins at offset {offset}: what was before it is gone from Kafka, so the "
            "counts can't be made anew from it. With --keep-tables only MongoDB is filled again"
        )
    await _restore_products(bootstrap, store, shop, max_event_bytes)
    await _restore(bootstrap, store, shop, shop.vouchers, announcements.VOUCHERS)
    await _restore(bootstrap, store, shop, shop.alerts, announcements.ALERTS)
    if not keep_tables:
        await _count_anew(bootstrap, shop)
        await store.clear_sales()
    try:
        await group.reset_offsets(bootstrap, shop.group, starts)
    except Unavailable as error:
        raise Unavailable("replay", f"the workers were not sent back to the start, run it again. {error}") from error
    return Work(starts, ends)


async def _restore_products(bootstrap: Bootstrap, store: MongoStore, shop: Layout, max_event_bytes: int) -> None:
    """Products and their prices come first: no purchase must be given its price from half a history."""
    await store.prepare()
    decode = Decoder(Product, "product_id", max_event_bytes)
    found: list[list[Any]] = []
    for partition in range(shop.partitions):
        async with reading.runs(bootstrap, shop.products, partition) as runs:
            found += [run async for run in runs]
    for run in found:
        for upserts, deletions in in_order(split(run, decode, tombstones=True), product_document):
            if upserts:
                await store.upsert_products([document for _, document in upserts])
            if deletions:
                await store.delete_products(deletions)


async def _restore(bootstrap: Bootstrap, store: MongoStore, shop: Layout, topic: str, kind: Announcements) -> None:
    """Restore vouchers or alerts as they were first published: by now rules and products may be others."""
    told = Told(kind)
    for partition in range(await count_partitions(bootstrap, topic)):
        async with reading.runs(bootstrap, topic, partition) as runs:
            async for run in runs:
                await store.restore(kind.collection, told.first(run))


async def _count_anew(bootstrap: Bootstrap, shop: Layout) -> None:
    """Put empty sums of a new era behind the rows of each partition: those count no more."""
    eras: dict[tuple[str, int], int] = {}
    for changelog in (shop.changelog, shop.sales_changelog):
        tables = await Tables.read(bootstrap, changelog, shop.partitions)
        eras |= {(changelog, partition): tables.totals(partition).era for partition in range(shop.partitions)}
    # The counts first: until we are done, who finds them new waits.
    async with connection.producer(bootstrap) as producer:
        for (changelog, partition), era in eras.items():
            await producer.send_and_wait(changelog, rebuilt(era, time()), TOTALS_KEY, partition=partition)


async def finished(
    bootstrap: Bootstrap, shop: Layout, work: Work, check: Callable[[], None], progress: AbstractContextManager[Advance]
) -> None:
    """Wait until all that there was has been done again.

    Arguments:
        check: Called now and then; what it raises ends the waiting.

    Raises:
        Unavailable: No worker is left, or Kafka does not answer.
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
            elif monotonic() - alone_since > _ALONE_SECONDS:
                raise Unavailable("replay", "no worker runs any more; the next one that starts goes on with it")
            await asyncio.sleep(_LOOK_SECONDS)


async def _spans(bootstrap: Bootstrap, shop: Layout) -> dict[tuple[str, int], offsets.Span]:
    spans = await offsets.spans(bootstrap, shop.group, shop.events)
    return {(topic, number): span for topic, partitions in spans.items() for number, span in partitions.items()}


async def _nothing_waits(bootstrap: Bootstrap, shop: Layout) -> bool:
    """True if the offsets that are left are no records, but the ends of transactions."""
    lags = await offsets.lags(bootstrap, shop.group, shop.events)
    return not any(lag.waiting for lag in lags.values())
