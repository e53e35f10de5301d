"""What happens to a batch of purchases: decoded, priced, stored, counted, in the order that is the guarantee."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

from faust_batches import Batch, Table
from shopflow.errors import Rejected
from shopflow.models import Purchase, PurchaseCount
from shopflow.store import MongoStore
from shopflow.store.connection import Patient
from shopflow.store.rules import differs
from shopflow.store.types import Document, Inserted

from .counts import Changes, Counted, advance
from .dead_letters import Rejections
from .decoding import DecodedBatch, Decoder, split
from .documents import purchase_document
from .prices import Priced, Prices

log = logging.getLogger(__name__)

#: Purchases that a line of the log names.
_NAMED = 5


@dataclass(frozen=True)
class CountedBatch:
    """A batch of purchases that is stored and counted, for what follows the counts."""

    fresh: Sequence[tuple[Any, Purchase]]
    """Records and events that are stored and were not sent before, by offset; each with its price."""

    duplicates: Sequence[int]
    """Offsets of purchases that were sent before."""

    rejected: Sequence[int]
    """Offsets of records that went to the dead letters."""

    changes: Changes[PurchaseCount]
    """The counts as they are now."""


#: Makes something else of a batch that is counted and not yet finished. It may come again: then it must change nothing.
#: Raises `PartitionLost` when the batch is no longer ours.
Follower: TypeAlias = Callable[[Batch, CountedBatch], Awaitable[None]]


@dataclass(eq=False)
class Purchases:
    """What the agent of `purchases` does with its batches.

    Arguments:
        mongodb: Asks MongoDB until it answers.
        counts: The table `purchase_counts`.
        prices: Gives prices to purchases without one.
        rejections: Takes the bad records.
        max_event_bytes: A larger event is a bad record.
        followers: What else is made of a batch, in this order.
        sold: Told of the new purchases of each batch that is finished.
    """

    mongodb: Patient[MongoStore]
    counts: Table
    prices: Prices
    rejections: Rejections
    _: KW_ONLY
    max_event_bytes: int
    followers: Sequence[Follower] = ()
    sold: Callable[[Sequence[Purchase]], None] = lambda purchases: None

    def __post_init__(self) -> None:
        self._decode = Decoder(Purchase, "customer_id", self.max_event_bytes)

    async def handle(self, batch: Batch) -> None:
        """Store a batch of purchases and count them.

        1. The documents are in MongoDB's journal.
        2. The bad records are in the dead letters, and the prices that were given are in their log.
        3. The counts are in RocksDB, and 4. Kafka has acknowledged their changelog records.
        5. So is what follows from them: sales, customer activity, vouchers.
        Then the batch is finished, and its end may be committed. Each step may be repeated.

        Raises:
            PartitionLost: The batch is no longer ours; the partition's owner gets it again.
        """
        batch.require_next()  # else a repeat could be stored before the purchase that it repeats
        decoded = split(batch.records, self._decode, tombstones=False)
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
            batch.check_owned()  # else the table may be another worker's by now
            get = self.counts.reader(batch.tp.partition)
            changes = advance(get, purchases, end=batch.end, duplicates=repeated, rejected=rejected)
            await self.counts.write(batch, changes.rows())  # 3, 4
            for follow in self.followers:
                await follow(batch, CountedBatch(fresh, repeated, rejected, changes))  # 5
        self.sold([event for _, event in fresh])

    async def _insert(self, batch: Batch, decoded: DecodedBatch[Purchase], priced: Priced) -> Collection[int]:
        """Insert the accepted purchases. Returns the indexes of those that were sent before."""
        if not decoded.accepted:
            return ()
        documents = [purchase_document(record, event) for record, event in decoded.accepted]
        await asyncio.sleep(0)
        inserted: Inserted = await self.mongodb(batch, lambda: self.mongodb.store.insert_purchases(documents))
        if inserted.differing:
            await self._reconcile(batch, decoded.accepted, priced, inserted.differing)
        if not inserted.refused:
            return inserted.duplicates
        kept: list[tuple[Any, Purchase]] = []
        duplicates: list[int] = []
        for number, pair in enumerate(decoded.accepted):
            if number in inserted.refused:
                decoded.rejected.append((pair[0], Rejected("refused by MongoDB", inserted.refused[number])))
                continue
            if number in inserted.duplicates:
                duplicates.append(len(kept))
            kept.append(pair)
        decoded.accepted = kept
        return duplicates

    async def _reconcile(
        self, batch: Batch, accepted: list[tuple[Any, Purchase]], priced: Priced, differing: dict[int, Document]
    ) -> None:
        """Settle what is stored of these events and is not what they say.

        Of two workers that gave a purchase a price, one of them asleep when it lost the partition, the first to store
        it has decided. Any other difference was made by another program, and is put right.
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
            log.warning("%d purchase(s) in MongoDB were not as they were sent; put right: %s", len(changed), names)
