"""Handles batches of purchases: decode, price, store, count. The order of the steps is the guarantee."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

from faust_batches import Batch, Table
from shopflow.models import Purchase, PurchaseCount
from shopflow.store import MongoStore
from shopflow.store.connection import Patient
from shopflow.store.rules import differs
from shopflow.store.types import PURCHASES, Document, Inserted

from .counts import Changes, Counted, advance
from .dead_letters import Rejections
from .decisions import Decisions
from .decoding import DecodedBatch, Decoder
from .documents import purchase_document
from .prices import Priced, Prices

log = logging.getLogger(__name__)

#: Purchases named in one log line.
_NAMED = 5


@dataclass(frozen=True)
class CountedBatch:
    """A batch of purchases that is stored and counted: the input of each `Follower`."""

    fresh: Sequence[tuple[Any, Purchase]]
    """The stored purchases without duplicates, as (record, event) by offset. Each has a price."""

    duplicates: Sequence[int]
    """Offsets of purchases that their producer had sent before."""

    rejected: Sequence[int]
    """Offsets of records that went to the dead letters."""

    changes: Changes[PurchaseCount]
    """The counts after this batch."""


#: Handles a counted batch before it is finished. The batch may be redelivered, so the call must be idempotent.
#: Raises `PartitionLost` if the batch is no longer ours.
Follower: TypeAlias = Callable[[Batch, CountedBatch], Awaitable[None]]


@dataclass(eq=False)
class Purchases:
    """Handles the batches of the agent `purchases`.

    Arguments:
        mongodb: Retries each request until MongoDB answers.
        counts: The table `purchase_counts`.
        prices: Decides the price of purchases without one.
        rejections: Publishes dead letters.
        max_event_bytes: A larger event is a bad record.
        followers: Called with each counted batch, in this order.
        sold: Called with each finished batch and its new purchases, as (record, event) by offset.
        topic_id: Returns Kafka's id of the topic of the purchases; empty: not known.
    """

    mongodb: Patient[MongoStore]
    counts: Table
    prices: Prices
    rejections: Rejections
    _: KW_ONLY
    max_event_bytes: int
    followers: Sequence[Follower] = ()
    sold: Callable[[Batch, Sequence[tuple[Any, Purchase]]], None] = lambda batch, fresh: None
    topic_id: Callable[[], str] = str

    def __post_init__(self) -> None:
        decode = Decoder(Purchase, "customer_id", self.max_event_bytes)
        self._decisions = Decisions(self.mongodb, self.rejections, PURCHASES, decode)

    async def handle(self, batch: Batch) -> None:
        """Store a batch of purchases and count them.

        1. The documents are in MongoDB's journal.
        2. The bad records are in the dead letters, and the decided prices are in the price log.
        3. The counts are in RocksDB.
        4. Kafka has acknowledged their changelog records.
        5. Kafka has acknowledged what follows from the counts: sales, customer activity, vouchers.
        Then the batch is finished, and its end may be committed. Every step may be repeated.

        Raises:
            PartitionLost: The batch is no longer ours; the partition's owner gets it again.
        """
        decoded = await self._decisions.split(batch, tombstones=False)
        await asyncio.sleep(0)  # each of these steps holds the event loop for milliseconds
        priced = await self.prices.give(batch, decoded)
        duplicates = await self._insert(batch, decoded, priced)  # 1
        fresh = [pair for number, pair in enumerate(decoded.accepted) if number not in duplicates]
        repeated = [decoded.accepted[number][0].offset for number in duplicates]
        purchases: list[Counted] = [
            (record.offset, event.customer_id, event.quantity, event.quantity * (event.price or 0))
            for record, event in fresh
        ]
        await asyncio.sleep(0)
        async with batch.turn():
            await self.rejections.put(batch, decoded.rejected)  # 2
            await self.prices.keep(batch, priced)
            rejected = [record.offset for record, _ in decoded.rejected]
            batch.check_owned()  # another worker may own the table by now
            get = self.counts.reader(batch.tp.partition)
            changes = advance(
                get, purchases,
                start=batch.start, end=batch.end, removed=batch.removed, duplicates=repeated, rejected=rejected,
                topic_id=self.topic_id(),
            )  # fmt: skip
            await self.counts.write(batch, changes.rows())  # 3, 4
            for follow in self.followers:
                await follow(batch, CountedBatch(fresh, repeated, rejected, changes))  # 5
        self.sold(batch, fresh)

    async def _insert(self, batch: Batch, decoded: DecodedBatch[Purchase], priced: Priced) -> Collection[int]:
        """Insert the accepted purchases. Returns the indexes of the duplicates."""
        if not decoded.accepted:
            return ()
        documents = [purchase_document(record, event) for record, event in decoded.accepted]
        await asyncio.sleep(0)
        inserted = Inserted()
        async for start, part in self.mongodb.in_parts(
            batch, PURCHASES, documents, self.mongodb.store.insert_purchases
        ):
            inserted = inserted.followed_by(part, start)
        if inserted.differing:
            await self._reconcile(batch, decoded.accepted, priced, inserted.differing)
        if not inserted.refused:
            return inserted.duplicates
        repeated = {decoded.accepted[number][0].offset for number in inserted.duplicates}
        decoded.reject({decoded.accepted[number][0].offset: why for number, why in inserted.refused.items()})
        return [number for number, pair in enumerate(decoded.accepted) if pair[0].offset in repeated]

    async def _reconcile(
        self, batch: Batch, accepted: list[tuple[Any, Purchase]], priced: Priced, differing: dict[int, Document]
    ) -> None:
        """Resolve the differences between these events and their stored documents.

        If two workers decided a price, because one lost the partition without noticing, the stored price counts.
        Another program made any other difference; the document is restored.
        """
        undecided, changed = priced.to_log, []
        for number, stored in differing.items():
            record, event = accepted[number]
            if record.offset in undecided and isinstance(stored.get("price"), int):
                event.price = priced.decided[record.offset] = stored["price"]
            document = purchase_document(record, event)
            if differs(document, stored):
                changed.append(document)
        if changed:
            await self.mongodb(batch, lambda: self.mongodb.store.restore_purchases(changed))
            names = ", ".join(document["_id"] for document in changed[:_NAMED])
            log.warning(
                "%d purchase(s) in MongoDB differed from their events and were restored: %s", len(changed), names
            )
