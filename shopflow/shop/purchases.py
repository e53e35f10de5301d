"""What happens to a batch: decoded, priced, stored, dead-lettered, counted, in the order that is the guarantee."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from time import time
from typing import Any, Generic, Protocol, TypeVar

from faust_batches.attempts import Attempts
from faust_batches.ledger import Ledger
from shopflow.errors import Rejected
from shopflow.models import Customer, Decoder, Product, Purchase, check_id
from shopflow.store.connection import Deletion, Document, Writes, differs

from .counts import Changes, Counted, advance, begun_anew
from .dead_letters import DeadLetters, Rejection
from .failure_limit import Limit
from .prices import Priced, Pricing

__all__ = ["Counting", "Follower", "Processing", "Registrar", "in_order", "product_document", "source_of", "split"]

log = logging.getLogger(__name__)

E = TypeVar("E", Product, Customer, Purchase)

#: Purchases that a line of the log names.
_NAMED = 5
#: How long after it has begun to count anew a replay may send the workers back, and how often it is looked for that.
_REPLAY_SECONDS = 300.0
_LOOK_SECONDS = 0.1


class BatchLike(Protocol):
    """What is needed of `batching.Batch`."""

    records: list[Any]
    tp: Any
    start: int
    end: int

    def check_owned(self) -> None: ...

    async def session(self) -> None: ...

    def require_next(self) -> None: ...

    def turn(self) -> AbstractAsyncContextManager[None]: ...


@dataclass(frozen=True)
class Counting:
    """What a batch of purchases was to the counts, for those who follow them."""

    partition: int
    end: int
    """The offset after the batch's last record."""

    fresh: Sequence[tuple[Any, Purchase]]
    """Records and events that are stored and were not sent before, by offset; each with its price."""

    duplicates: Sequence[int]
    """Offsets of purchases that were sent before."""

    rejected: Sequence[int]
    """Offsets of records that went to the dead letters."""

    changes: Changes
    """The counts as they are now."""


class Follower(Protocol):
    """What else is made of the purchases, in the order of the log and under the same guarantee."""

    async def follow(self, batch: BatchLike, counting: Counting) -> None:
        """Take in a batch that was counted, before it is finished. It may come again: then it changes nothing.

        Raises:
            PartitionLost: The batch is no longer ours.
        """


class Registrar(Protocol):
    """What else is made of the registrations."""

    async def registered(self, batch: BatchLike, accepted: Sequence[tuple[Any, Customer]]) -> None:
        """Take in registrations that are stored, in the batch's turn. They may come again: then it changes nothing.

        Raises:
            PartitionLost: The batch is no longer ours.
        """


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
    try:
        at = datetime.fromtimestamp(max(record.timestamp or 0, 0) / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError) as error:  # which of them, depends on the system
        raise Rejected("invalid event", f"the record's timestamp {record.timestamp} is no time: {error}") from error
    return Deletion(check_id(record.key), at, source_of(record))


def in_order(
    parts: Parts[E], document: Callable[[Any, E], Document]
) -> Iterator[tuple[list[tuple[Any, Document]], list[Deletion]]]:
    """Upserts, then deletions after them: the log's order, as far as it matters. A deletion ends what was before."""
    ends = {deletion.id: deletion.source["offset"] for deletion in parts.deletions}
    early: list[tuple[Any, Document]] = []
    late: list[tuple[Any, Document]] = []
    for record, event in parts.accepted:
        made = document(record, event)
        (late if record.offset > ends.get(made["_id"], -1) else early).append((record, made))
    yield early, parts.deletions
    yield late, []


def product_document(record: Any, event: Product) -> Document:
    """As it stands in `products`."""
    units = {"stock": event.stock, "stock_limit": event.stock_limit} if event.stock is not None else {}
    return {
        "_id": event.product_id,
        "name": event.name,
        "type": event.type,
        "price": event.price,
        "updated_at": event.updated_at,
        **{name: number for name, number in units.items() if number is not None},
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
        counts: The table of counts, and its changelog.
        attempts: Tries again while MongoDB or Kafka are away.
        pricing: Gives prices to purchases without one.
        dead_letters: Where the bad records go.
        max_event_bytes: A larger event is a bad record.
        sold: Told of the purchases of each batch that is finished.
        limit: When too many records are bad; without it all of them become dead letters.
        followers: What else is made of the purchases, one after the other.
        on_rejected: Told topic, reason and number of the records that became dead letters.
        registrars: What else is made of the registrations.
    """

    def __init__(
        self,
        store: Writes,
        counts: Ledger,
        attempts: Attempts,
        pricing: Pricing,
        dead_letters: DeadLetters,
        *,
        max_event_bytes: int,
        limit: Limit | None = None,
        sold: Callable[[Sequence[Purchase]], None] = lambda purchases: None,
        followers: Sequence[Follower] = (),
        on_rejected: Callable[[str, str, int], None] = lambda topic, reason, count: None,
        registrars: Sequence[Registrar] = (),
    ) -> None:
        self._store = store
        self._counts = counts
        self._with_mongodb = attempts.with_mongodb
        self._with_kafka = attempts.with_kafka
        self._pricing = pricing
        self._dead_letters = dead_letters
        self._limit = limit
        self._sold = sold
        self.followers = followers
        self._on_rejected = on_rejected
        self._registrars = registrars
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
        upsert, delete = self._store.upsert_customers, self._store.delete_customers
        then = [each.registered for each in self._registrars]
        await self._change(batch, parts, customer_document, upsert, delete, then=then)

    async def purchases(self, batch: BatchLike) -> None:
        """Store a batch of purchases and count them.

        1. The documents are in MongoDB's journal.
        2. The bad records are in the dead letters, and the prices that were given in their log.
        3. The counts are in RocksDB, and 4. Kafka has acknowledged their changelog records.
        5. So is what follows from them.
        Then the batch is finished, and its end may be committed.
        """
        batch.require_next()  # else a repeat could be stored before the purchase that it repeats
        parts = split(batch.records, self._decode_purchase, tombstones=False)
        await asyncio.sleep(0)  # each of these steps holds the event loop for milliseconds
        priced = await self._price(batch, parts)
        duplicates = await self._insert(batch, parts, priced)  # 1
        fresh = [pair for number, pair in enumerate(parts.accepted) if number not in duplicates]
        counted: list[Counted] = [
            (record.offset, event.customer_id, event.quantity, event.quantity * (event.price or 0))
            for record, event in fresh
        ]
        repeated = [parts.accepted[number][0].offset for number in duplicates]
        await asyncio.sleep(0)
        partition = batch.tp.partition
        async with batch.turn():
            await self._reject(batch, parts.rejected)  # 2
            await self._pricing.keep(batch, priced)
            rejected = [record.offset for record, _ in parts.rejected]
            await self._sent_back(batch)
            batch.check_owned()  # else the table may be another's by now
            changes = advance(
                self._counts.getter(partition), counted, end=batch.end, duplicates=repeated, rejected=rejected
            )
            await self._counts.enter(batch, changes.rows())  # 3, 4
            for follower in self.followers:
                await follower.follow(batch, Counting(partition, batch.end, fresh, repeated, rejected, changes))  # 5
        self._sold([event for _, event in fresh])

    # -- the steps

    async def _sent_back(self, batch: BatchLike) -> None:
        """Wait while a replay has begun the counts anew, and has not sent the workers back to the start yet.

        A worker that came back in between would count on behind what is to be read again, and take that for counted.

        Raises:
            PartitionLost: It has.
        """
        get = self._counts.getter(batch.tp.partition)
        while batch.start > 0 and (since := begun_anew(get)):
            if time() > since + _REPLAY_SECONDS:
                log.warning(
                    "Partition %d: a replay began to count anew and did not send the workers back to the start. "
                    "They go on from here; run `faust -A shopflow replay` again",
                    batch.tp.partition,
                )
                return
            await asyncio.sleep(_LOOK_SECONDS)
            batch.check_owned()

    async def _change(
        self,
        batch: BatchLike,
        parts: Parts[E],
        document: Callable[[Any, E], Document],
        upsert: Callable[[Sequence[Document]], Awaitable[dict[int, str]]],
        delete: Callable[[Sequence[Deletion]], Awaitable[None]],
        *,
        then: Sequence[Callable[[BatchLike, list[tuple[Any, E]]], Awaitable[None]]] = (),
    ) -> None:
        for group, deletions in in_order(parts, document):
            if group:
                refused = await self._with_mongodb(batch, partial(upsert, [made for _, made in group]))
                parts.rejected += [(group[n][0], Rejected("refused by MongoDB", why)) for n, why in refused.items()]
            if deletions:
                await self._with_mongodb(batch, partial(delete, deletions))
        async with batch.turn():
            await self._reject(batch, parts.rejected)
            rejected = {record.offset for record, _ in parts.rejected} if then else set()
            for make in then:
                await make(batch, [pair for pair in parts.accepted if pair[0].offset not in rejected])

    async def _price(self, batch: BatchLike, parts: Parts[Purchase]) -> Priced:
        priced = await self._pricing.price(batch, parts.accepted)
        if priced.rejected:
            by_offset = {record.offset: record for record, _ in parts.accepted}
            parts.accepted = [pair for pair in parts.accepted if pair[0].offset not in priced.rejected]
            parts.rejected += [(by_offset[offset], error) for offset, error in priced.rejected.items()]
        return priced

    async def _insert(self, batch: BatchLike, parts: Parts[Purchase], priced: Priced) -> Collection[int]:
        """Insert the accepted purchases; returns which of them are true duplicates."""
        if not parts.accepted:
            return ()
        documents = [purchase_document(record, event) for record, event in parts.accepted]
        await asyncio.sleep(0)
        inserted = await self._with_mongodb(batch, lambda: self._store.insert_purchases(documents))
        if inserted.differing:
            await self._reconcile(batch, parts.accepted, priced, inserted.differing)
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

    async def _reconcile(
        self, batch: BatchLike, accepted: list[tuple[Any, Purchase]], priced: Priced, differing: dict[int, Document]
    ) -> None:
        """What is stored of these events is not what they say.

        Of two workers that gave a purchase a price, one of them asleep when it lost the partition, the first to store
        it has decided. Anything else was changed by others, and is put right.
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
            await self._with_mongodb(batch, lambda: self._store.restore_purchases(changed))
            names = ", ".join(document["_id"] for document in changed[:_NAMED])
            log.warning("%d purchase(s) in MongoDB were not as they were sent; put right: %s", len(changed), names)

    async def _reject(self, batch: BatchLike, rejected: list[Rejection]) -> None:
        rejected.sort(key=lambda rejection: rejection[0].offset)
        if self._limit:
            failed = [(record.offset, error.reason) for record, error in rejected]
            await self._limit.hold(batch.tp, batch.records, failed, batch.check_owned)
        if not rejected:
            return
        sent = await self._with_kafka(batch, lambda: self._dead_letters.put(rejected))
        for reason, count in Counter(error.reason for _, error in sent).items():
            self._on_rejected(batch.tp.topic, reason, count)
            log.warning(
                "%d record(s) of %s to the dead letters: %s", count, batch.records[0].topic, reason,
            )  # fmt: skip
