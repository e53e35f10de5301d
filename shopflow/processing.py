"""What happens to a batch: decoded, priced, stored, dead-lettered, counted, in the order that is the guarantee."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from aiokafka.errors import KafkaError

from .counting import Counted, advance, handled
from .dead_letters import DeadLetters, Rejection
from .errors import Rejected, Unavailable
from .models import Customer, Decoder, Product, Purchase, check_id, check_value
from .outages import Outage, retrying
from .store import Deletion, Document, Store

__all__ = ["Processing"]

log = logging.getLogger(__name__)

E = TypeVar("E", Product, Customer, Purchase)
T = TypeVar("T")

#: How often MongoDB is asked for a product that a purchase waits for.
_LOOK_AGAIN_SECONDS = 0.25
#: Unknown products that are remembered, so that each is waited for once.
_REMEMBERED = 10_000


class BatchLike(Protocol):
    """What is needed of `batching.Batch`."""

    records: list[Any]
    tp: Any
    start: int
    end: int

    def check_owned(self) -> None: ...

    def turn(self) -> AbstractAsyncContextManager[None]: ...


class Counts(Protocol):
    """What is needed of the table `purchase_counts`."""

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]: ...

    def write(self, partition: int, rows: Iterable[tuple[bytes, bytes]]) -> None: ...

    def acknowledged(self, partition: int, last: int, rows: int) -> None: ...

    async def check_late(self, partition: int) -> None: ...


@dataclass
class Parts(Generic[E]):
    """The records of a batch, by what becomes of them."""

    accepted: list[tuple[Any, E]] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)


def source_of(record: Any) -> Document:
    """Where a document came from."""
    return {"origin": "kafka", "topic": record.topic, "partition": record.partition, "offset": record.offset}


def split(records: Iterable[Any], decode: Decoder[E], *, tombstones: bool) -> Parts[E]:
    """Decode the records. A bad one never stops its neighbours."""
    parts: Parts[E] = Parts()
    accept = parts.accepted.append
    for record in records:
        try:
            if tombstones and record.value is None:
                parts.deletions.append(_deletion(record))
            else:
                accept((record, decode(record.key, record.value)))
        except Rejected as error:
            parts.rejected.append((record, error))
    return parts


def _deletion(record: Any) -> Deletion:
    at = datetime.fromtimestamp(max(record.timestamp or 0, 0) / 1000, timezone.utc)
    return Deletion(check_id(record.key), at, source_of(record))


def product_document(record: Any, event: Product) -> Document:
    """As it stands in `products`."""
    return {
        "_id": event.product_id,
        "name": event.name,
        "type": event.type,
        "price": event.price,
        "updated_at": event.updated_at,
        "source": source_of(record),
    }


def customer_document(record: Any, event: Customer) -> Document:
    """As it stands in `customers`."""
    return {
        "_id": event.customer_id,
        "first_name": event.first_name,
        "last_name": event.last_name,
        "address": event.address,
        "city": event.city,
        "registered_at": event.registered_at,
        "source": source_of(record),
    }


def purchase_document(record: Any, event: Purchase) -> Document:
    """As it stands in `purchases`. The price must be known."""
    price = event.price
    assert price is not None  # noqa: S101 - priced before
    return {
        "_id": event.purchase_id,
        "customer_id": event.customer_id,
        "product_id": event.product_id,
        "quantity": event.quantity,
        "price": price,
        "value": event.quantity * price,
        "purchased_at": event.purchased_at,
        "source": source_of(record),
    }


class Processing:
    """What the agents do with their batches.

    Arguments:
        store: MongoDB.
        counts: The table of counts.
        publish: Sends keys and values to one partition of the counts' changelog; returns the offset of the last.
        dead_letters: Where the bad records go.
        max_event_bytes: A larger event is a bad record.
        product_wait_seconds: How long a purchase without a price waits for its product.
    """

    def __init__(
        self,
        store: Store,
        counts: Counts,
        publish: Callable[[int, Sequence[tuple[bytes, bytes]]], Awaitable[int]],
        dead_letters: DeadLetters,
        *,
        max_event_bytes: int,
        product_wait_seconds: float,
    ) -> None:
        self.mongodb = Outage("MongoDB")
        self.kafka = Outage("Kafka")
        self._store = store
        self._prepared = False
        self._counts = counts
        self._publish = publish
        self._dead_letters = dead_letters
        self._wait_seconds = product_wait_seconds
        self._unknown: dict[str, float] = {}
        self._decode_product = Decoder(Product, "product_id", max_event_bytes)
        self._decode_customer = Decoder(Customer, "customer_id", max_event_bytes)
        self._decode_purchase = Decoder(Purchase, "customer_id", max_event_bytes)

    # -- the three topics

    async def products(self, batch: BatchLike) -> None:
        """Upsert a batch of products; a record without a value deletes its product."""
        parts = split(batch.records, self._decode_product, tombstones=True)
        await self._change(batch, parts, product_document, self._store.upsert_products, self._store.delete_products)

    async def customers(self, batch: BatchLike) -> None:
        """Upsert a batch of customers; a record without a value deletes its customer."""
        parts = split(batch.records, self._decode_customer, tombstones=True)
        await self._change(batch, parts, customer_document, self._store.upsert_customers, self._store.delete_customers)

    async def purchases(self, batch: BatchLike) -> None:
        """Store a batch of purchases and count them.

        1. The documents are in MongoDB's journal.
        2. The bad records are in the dead letters.
        3. The counts are in RocksDB, and 4. Kafka has acknowledged their changelog records.
        Then the batch is finished, and its end may be committed.
        """
        parts = split(batch.records, self._decode_purchase, tombstones=False)
        await self._price(batch, parts)
        duplicates = await self._insert(batch, parts)  # 1
        counted = [
            Counted(record.offset, event.customer_id, event.quantity, event.quantity * (event.price or 0))
            for number, (record, event) in enumerate(parts.accepted)
            if number not in duplicates
        ]
        repeated = [parts.accepted[number][0].offset for number in duplicates]
        partition = batch.tp.partition
        async with batch.turn():
            await self._reject(batch, parts.rejected)  # 2
            changes = advance(
                self._counts.getter(partition),
                counted,
                end=batch.end,
                duplicates=repeated,
                rejected=[record.offset for record, _ in parts.rejected],
            )
            rows = changes.rows()
            self._counts.write(partition, rows)  # 3: nothing is awaited between the reading of the counts and this
            last = await self._with_kafka(batch, lambda: self._publish(partition, rows))  # 4
            batch.check_owned()  # else the database may be another's by now
            self._counts.acknowledged(partition, last, len(rows))
            await self._counts.check_late(partition)

    # -- the steps

    async def _change(
        self,
        batch: BatchLike,
        parts: Parts[E],
        document: Callable[[Any, E], Document],
        upsert: Callable[[Sequence[Document]], Awaitable[dict[int, str]]],
        delete: Callable[[Sequence[Deletion]], Awaitable[None]],
    ) -> None:
        """Upserts and deletions in the order of the log, as far as it matters: a deletion ends what came before it."""
        ends = {deletion.id: deletion.source["offset"] for deletion in parts.deletions}
        early: list[tuple[Any, Document]] = []
        late: list[tuple[Any, Document]] = []
        for record, event in parts.accepted:
            made = document(record, event)
            (late if record.offset > ends.get(made["_id"], -1) else early).append((record, made))
        for group, deletions in ((early, parts.deletions), (late, [])):
            if group:
                refused = await self._with_mongodb(batch, partial(upsert, [made for _, made in group]))
                parts.rejected += [(group[n][0], Rejected("refused by MongoDB", why)) for n, why in refused.items()]
            if deletions:
                await self._with_mongodb(batch, partial(delete, deletions))
        async with batch.turn():
            await self._reject(batch, parts.rejected)

    async def _insert(self, batch: BatchLike, parts: Parts[Purchase]) -> Collection[int]:
        """Insert the accepted purchases; returns which of them are true duplicates."""
        if not parts.accepted:
            return ()
        documents = [purchase_document(record, event) for record, event in parts.accepted]
        inserted = await self._with_mongodb(batch, lambda: self._store.insert_purchases(documents))
        if not inserted.refused:
            return inserted.duplicates
        kept: list[tuple[Any, Purchase]] = []
        duplicates: list[int] = []
        for number, pair in enumerate(parts.accepted):
            if number in inserted.refused:
                parts.rejected.append((pair[0], Rejected("refused by MongoDB", inserted.refused[number])))
                continue
            if number in inserted.duplicates:
                duplicates.append(len(kept))
            kept.append(pair)
        parts.accepted = kept
        return duplicates

    async def _price(self, batch: BatchLike, parts: Parts[Purchase]) -> None:
        """Give purchases without a price the one in force when they were made; wait a while for new products."""
        unpriced = [(record, event) for record, event in parts.accepted if event.price is None]
        if not unpriced:
            return
        unpriced, rejected = await self._known_before(batch, unpriced)
        rejected |= await self._look_up(batch, unpriced)
        if rejected:
            gone = set(rejected)
            parts.accepted = [pair for pair in parts.accepted if pair[0].offset not in gone]
            by_offset = {record.offset: record for record in batch.records}
            parts.rejected += [(by_offset[offset], error) for offset, error in rejected.items()]

    async def _look_up(self, batch: BatchLike, unpriced: list[tuple[Any, Purchase]]) -> dict[int, Rejected]:
        rejected: dict[int, Rejected] = {}
        while unpriced:
            wanted = {event.product_id for _, event in unpriced}
            histories = await self._with_mongodb(batch, partial(self._store.price_history, wanted))
            missing = []
            for record, event in unpriced:
                history = histories.get(event.product_id)
                event.price = None if history is None else history.at(event.purchased_at)
                if event.price is None:
                    missing.append((record, event))
                    continue
                self._unknown.pop(event.product_id, None)
                try:
                    check_value(event.quantity, event.price)
                except Rejected as error:
                    rejected[record.offset] = error
            now = monotonic()
            unpriced = [pair for pair in missing if now < self._deadline(pair[1].product_id, now)]
            waited_for = {pair[0].offset for pair in unpriced}
            for record, event in missing:
                if record.offset not in waited_for:
                    rejected[record.offset] = _unknown_product(event.product_id)
            if unpriced:
                await asyncio.sleep(min(_LOOK_AGAIN_SECONDS, self._wait_seconds))
        return rejected

    def _deadline(self, product_id: str, now: float) -> float:
        """Until when purchases of this unknown product are held up: counted once, from the first of them."""
        if product_id not in self._unknown and len(self._unknown) >= _REMEMBERED:  # those that still wait are kept
            self._unknown = {name: deadline for name, deadline in self._unknown.items() if deadline > now}
        return self._unknown.setdefault(product_id, now + self._wait_seconds)

    async def _known_before(
        self, batch: BatchLike, unpriced: list[tuple[Any, Purchase]]
    ) -> tuple[list[tuple[Any, Purchase]], dict[int, Rejected]]:
        """What a worker before us decided, which died before it could commit that, stays decided.

        A purchase that it stored keeps that price. One that it counted past without storing it was rejected: accepted
        now, it would be stored and never counted.
        """
        ids = {event.purchase_id for _, event in unpriced}
        stored = await self._with_mongodb(batch, lambda: self._store.purchase_prices(ids))
        batch.check_owned()
        get = self._counts.getter(batch.tp.partition)
        undecided, rejected = [], {}
        for record, event in unpriced:
            event.price = stored.get(event.purchase_id)
            if event.price is not None:
                continue
            if handled(get, event.customer_id, record.offset):
                rejected[record.offset] = _unknown_product(event.product_id)
            else:
                undecided.append((record, event))
        return undecided, rejected

    async def _reject(self, batch: BatchLike, rejected: list[Rejection]) -> None:
        if not rejected:
            return
        rejected.sort(key=lambda rejection: rejection[0].offset)
        await self._with_kafka(batch, lambda: self._dead_letters.put(rejected))
        for reason, count in Counter(error.reason for _, error in rejected).items():
            log.warning(
                "%d record(s) of %s to the dead letters: %s", count, batch.records[0].topic, reason,
            )  # fmt: skip

    async def _with_mongodb(self, batch: BatchLike, attempt: Callable[[], Awaitable[T]]) -> T:
        async def prepared() -> T:
            if not self._prepared:
                await self._store.prepare()
                self._prepared = True
            return await attempt()

        return await retrying(self.mongodb, batch.check_owned, prepared)

    async def _with_kafka(self, batch: BatchLike, attempt: Callable[[], Awaitable[T]]) -> T:
        async def translated() -> T:
            try:
                return await attempt()
            except KafkaError as error:
                raise Unavailable("Kafka", error) from error

        return await retrying(self.kafka, batch.check_owned, translated)


def _unknown_product(product_id: str) -> Rejected:
    return Rejected("unknown product", f"product_id {product_id!r} was never offered, or is no longer")
