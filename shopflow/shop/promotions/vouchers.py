"""Gives vouchers: stores them, publishes them, writes the customers' windows. The order is the guarantee."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from time import monotonic
from typing import Any

from faust.types import TP

from faust_batches import Batch, SendOnce, Table
from shopflow.models import Customer, Purchase
from shopflow.shop.announcements import VOUCHERS, Publish
from shopflow.shop.dead_letters import ReadSince
from shopflow.shop.documents import source_of
from shopflow.shop.purchases import CountedBatch
from shopflow.store import MongoStore
from shopflow.store.connection import Patient
from shopflow.store.types import Document

from .windows import Bought, Earned, Rules, Window, decode_window, encode_window

log = logging.getLogger(__name__)

#: How long the type of a product is cached.
_TYPE_SECONDS = 60.0
#: Products whose type is cached.
_MAX_TYPES = 100_000

#: Stands for an unknown number of purchases: so low that no purchase is a customer's n-th.
_UNKNOWN = -(1 << 40)

#: Customers of a batch that are handled before other coroutines run.
_SLICE = 500


def voucher_document(earned: Earned, record: Any) -> Document:
    gift = earned.rule.voucher
    what = {name: value for name in ("product_type", "text", "percent", "amount") if (value := getattr(gift, name))}
    return {
        "_id": earned.id,
        "rule": earned.rule.name,
        "customer_id": earned.customer_id,
        **what,
        "issued_at": earned.at,
        "valid_until": earned.valid_until,
        "source": source_of(record),
    }


_FIELDS = frozenset(
    {"_id", "rule", "customer_id", "product_type", "text", "percent", "amount", "issued_at", "valid_until", "source"}
)


def _as_given(stored: Document) -> Document:
    """A voucher as it was given, without what other programs added."""
    return {name: value for name, value in stored.items() if name in _FIELDS}


def _rule_of(voucher_id: str) -> str:
    return voucher_id.partition(":")[0]


class VoucherLog:
    """The topic of the vouchers, of this worker and earlier ones.

    Arguments:
        topic: A voucher is in the partition with its event's number.
        publish: `App.publish`.
        read_since: Reads a partition's records since a time.
    """

    def __init__(self, topic: str, publish: Publish, read_since: ReadSince) -> None:
        self._topic = topic
        self._publish = publish
        self._read_since = read_since
        self._once: SendOnce[tuple[int, str], Document] = SendOnce(self._sent_before, _key)

    def forget(self) -> None:
        """Clear the cache. Call it after a rebalance: other workers may have published meanwhile."""
        self._once.forget()

    async def given(self, batch: Batch) -> dict[int, set[str]]:
        """The ids of vouchers that were given for records of this batch and later ones, by offset.

        Raises:
            KafkaError: The vouchers can't be read now.
        """
        first = batch.records[0]
        ids: dict[int, set[str]] = {}
        for offset, voucher_id in await self._once.sent_keys(batch.tp, first):
            if offset >= first.offset:
                ids.setdefault(offset, set()).add(voucher_id)
        return ids

    async def put(self, batch: Batch, documents: Sequence[Document]) -> list[Document]:
        """Publish the vouchers that the topic lacks. Returns them.

        Raises:
            KafkaError: Some may be missing. Call it again.
        """
        first = batch.records[0]
        self._once.drop(batch.tp, lambda key: key[0] < first.offset)
        return await self._once.send(batch.tp, first, documents, partial(self._send, batch.tp.partition))

    async def _send(self, partition: int, documents: Sequence[Document]) -> None:
        rows = [(document["customer_id"].encode(), VOUCHERS.event(document)) for document in documents]
        await self._publish(self._topic, partition, rows)

    async def _sent_before(self, tp: TP, since: int) -> set[tuple[int, str]]:
        def keys(record: Any) -> list[tuple[int, str]]:
            published = VOUCHERS.documents([record])
            return [_key(one) for one in published if (one["source"]["topic"], one["source"]["partition"]) == tp]

        return set(chain.from_iterable(await self._read_since(self._topic, tp.partition, since, of=keys)))


def _key(document: Document) -> tuple[int, str]:
    return document["source"]["offset"], document["_id"]


@dataclass(eq=False)
class Promotions:
    """Gives vouchers for purchases and registrations, each once.

    1. The voucher is in MongoDB's journal. 2. Kafka has acknowledged its event. 3. The customer's window with it is in
    RocksDB and in the changelog. After a crash in between the batch is redelivered, and the same windows give the same
    vouchers. One that is in MongoDB or in the topic counts as given, even if rules or products have changed since.

    Arguments:
        windows: The table `customer_windows`; None: no rule is about purchases.
    """

    rules: Rules
    mongodb: Patient[MongoStore]
    voucher_log: VoucherLog
    windows: Table | None

    def __post_init__(self) -> None:
        self._types = _ProductTypes(self.mongodb)
        #: Partitions of whose further records MongoDB has no voucher.
        self._fresh: set[TP] = set()

    def forget(self) -> None:
        """Clear the caches. Call it after a rebalance: other workers may have given vouchers meanwhile."""
        self.voucher_log.forget()
        self._fresh = set()

    async def registered(self, batch: Batch, accepted: Sequence[tuple[Any, Customer]]) -> None:
        """Give the vouchers for stored registrations. Call it in the batch's turn. A redelivery changes nothing.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        earned = [
            voucher_document(earned, record)
            for record, event in accepted
            for earned in self.rules.register(event.customer_id, event.city, event.registered_at)
        ]
        await self._give(batch, await self._stored(batch), earned)

    async def follow(self, batch: Batch, counted: CountedBatch) -> None:
        """Give the vouchers for a counted batch of purchases (`purchases.Follower`)."""
        stored = await self._stored(batch)
        if self.windows is None or not counted.fresh:
            await self._give(batch, stored, [])
            return
        given = await batch.with_kafka(lambda: self.voucher_log.given(batch))
        for document in stored:
            given.setdefault(document["source"]["offset"], set()).add(document["_id"])
        types: Mapping[str, str] = {}
        if self.rules.about_types:
            types = await self._types.of(batch, {event.product_id for _, event in counted.fresh})
        context = _BatchContext(self.rules, self.windows.reader(batch.tp.partition), counted, types, given)
        rows: list[tuple[bytes, bytes]] = []
        documents: list[Document] = []
        for number, (customer_id, pairs) in enumerate(_by_customer(counted.fresh).items()):
            if number % _SLICE == 0:
                await asyncio.sleep(0)  # a slice holds the event loop for milliseconds
                batch.check_owned()  # another worker may own the table by now
            window, earned = context.earned_by(customer_id, pairs)
            rows.append((customer_id.encode(), encode_window(window)))  # unchanged windows, too
            documents += earned
        documents.sort(key=lambda document: document["source"]["offset"])
        await self._give(batch, stored, documents)
        batch.check_owned()  # then the windows are still those that were read
        await self.windows.write(batch, rows)

    async def _stored(self, batch: Batch) -> list[Document]:
        """The vouchers in MongoDB that were given for records of this batch: an earlier worker may have died then."""
        fresh, (topic, partition) = self._fresh, batch.tp
        if batch.tp in fresh:
            return []
        store = self.mongodb.store
        found = await self.mongodb(batch, lambda: store.vouchers_from(topic, partition, batch.start, batch.end))
        if not await self.mongodb(batch, lambda: store.vouchers_from(topic, partition, batch.end, limit=1)):
            fresh.add(batch.tp)
        return [_as_given(document) for document in found if isinstance(document.get("customer_id"), str)]

    async def _give(self, batch: Batch, stored: Sequence[Document], earned: Sequence[Document]) -> None:
        known = {document["_id"] for document in stored}
        new = [document for document in earned if document["_id"] not in known]
        if not (stored or new):
            return
        fresh = self._fresh
        looked_up = batch.tp in fresh
        fresh.discard(batch.tp)  # until they are published: the batch may come again
        others = await self.mongodb(batch, lambda: self.mongodb.store.insert_vouchers(new))
        ours = [*stored, *(document for number, document in enumerate(new) if number not in others)]
        sent = await batch.with_kafka(lambda: self.voucher_log.put(batch, ours))
        if looked_up:
            fresh.add(batch.tp)
        for rule, number in Counter(_rule_of(document["_id"]) for document in sent).items():
            log.info("%d voucher(s) of rule %s", number, rule)


@dataclass(frozen=True)
class _BatchContext:
    """The input for the vouchers of one batch."""

    rules: Rules
    get: Callable[[bytes], bytes | None]
    counted: CountedBatch
    types: Mapping[str, str]
    given: Mapping[int, Collection[str]]
    """The ids of the vouchers that were given before, by offset."""

    def earned_by(self, customer_id: str, pairs: list[tuple[Any, Purchase]]) -> tuple[Window, list[Document]]:
        """A customer's window after these purchases, and the vouchers for them."""
        window = _current(self.get(customer_id.encode()), self.counted.changes.totals.era)
        new = [pair for pair in pairs if pair[0].offset > window.offset]
        count = self.counted.changes.values[customer_id]
        if new and count.offset == new[-1][0].offset:  # purchases from before there were rules count
            window.purchases = count.purchases - len(new)
        elif new and window.offset < 0 and count.first < new[0][0].offset:  # redelivered in smaller batches
            window.purchases = _UNKNOWN
        documents: list[Document] = []
        for record, event in new:
            bought = _bought(record, event, self.types.get(event.product_id))
            known = self.given.get(record.offset, ())
            already = {_rule_of(voucher_id) for voucher_id in known}
            for earned in self.rules.buy(window, customer_id, bought, already):
                if earned.rule.name not in already or earned.id in known:
                    documents.append(voucher_document(earned, record))  # noqa: PERF401 - nearly always empty
        return window, documents


def _by_customer(fresh: Iterable[tuple[Any, Purchase]]) -> dict[str, list[tuple[Any, Purchase]]]:
    found: dict[str, list[tuple[Any, Purchase]]] = {}
    for pair in fresh:
        found.setdefault(pair[1].customer_id, []).append(pair)
    return found


def _current(value: bytes | None, era: int) -> Window:
    window: Window | None = decode_window(value) if value else None
    return Window(era=era) if window is None or window.era < era else window


def _bought(record: Any, event: Purchase, product_type: str | None) -> Bought:
    return Bought(
        record.offset,
        event.purchased_at,
        event.quantity * (event.price or 0),
        event.product_id,
        product_type,
        record.timestamp if (record.timestamp or 0) > 0 else None,
    )


class _ProductTypes:
    """Caches the types of products for a minute."""

    def __init__(self, mongodb: Patient[MongoStore]) -> None:
        self._mongodb = mongodb
        self._known: dict[str, tuple[str, float]] = {}

    async def of(self, batch: Batch, product_ids: Collection[str]) -> dict[str, str]:
        """The types of those products that are in MongoDB and have one."""
        now = monotonic()
        if len(self._known) > _MAX_TYPES:
            self._known = {}
        # Other batches may change the cache while MongoDB is asked.
        known = {name: self._known[name] for name in product_ids if name in self._known}
        wanted = [name for name in product_ids if name not in known or known[name][1] < now]
        if wanted:
            found = await self._mongodb(batch, lambda: self._mongodb.store.documents("products", wanted))
            for name in wanted:
                known.pop(name, None)
                self._known.pop(name, None)
            new = {
                name: (document["type"], now + _TYPE_SECONDS)
                for name, document in found.items()
                if isinstance(document.get("type"), str)
            }
            known |= new
            self._known |= new
        return {name: product_type for name, (product_type, _) in known.items()}
