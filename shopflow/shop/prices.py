"""Decides the price of each purchase that came without one: the product's price at `purchased_at`.

The decided prices are published to a topic, the price log, and a replay takes them from it. It has a record for each
batch, with offsets and prices in grosze, in the partition with the purchases' number. A price can't be decided again
later: a late product event may have changed the product's history, or MongoDB may have been dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from faust_batches import Batch, Table
from faust_batches.once import since
from shopflow.errors import Rejected
from shopflow.models import Purchase
from shopflow.store import MongoStore
from shopflow.store.connection import Patient

from .counts import handled
from .dead_letters import ReadSince, SendRecord
from .decoding import DecodedBatch, check_value

#: Pause between two queries for a product that a purchase waits for.
_QUERY_AGAIN_SECONDS = 0.25
#: Unknown products that are kept in memory. Purchases wait for each of them once.
_MAX_UNKNOWN_PRODUCTS = 10_000

Pair = tuple[Any, Purchase]


class Entry(msgspec.Struct):
    """The value of a record in the price log: (offset, price) pairs, by offset."""

    prices: list[tuple[int, int]]


_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


class PriceLog:
    """The topic of the decided prices, of this worker and earlier ones.

    Arguments:
        topic: It has as many partitions as the purchases.
        send: `App.send_record`.
        read_since: Topic, partition, Unix time in ms -> its records since then.
    """

    def __init__(self, topic: str, send: SendRecord, read_since: ReadSince) -> None:
        self._topic = topic
        self._send = send
        self._read_since = read_since
        #: Partition -> the log's records at the first read: first offset, last offset, value.
        self._cache: dict[int, list[tuple[int, int, bytes]]] = {}

    def forget(self) -> None:
        """Clear the cache. Call it after a rebalance: other workers may have published meanwhile."""
        self._cache = {}

    async def prices(self, partition: int, first: Any, end: int) -> dict[int, int]:
        """The logged prices by offset, from the record `first` up to, not including, offset `end`.

        Raises:
            KafkaError: The log can't be read now.
        """
        cache = self._cache
        if partition not in cache:
            found = await self._read_since(self._topic, partition, since(first), of=_range)
            cache[partition] = [entry for entry in found if entry is not None]
        start = first.offset
        prices: dict[int, int] = {}
        for low, high, value in cache[partition]:
            if low < end and high >= start:
                prices.update(_decode(value).prices)
        return {offset: price for offset, price in prices.items() if start <= offset < end}

    async def put(self, partition: int, prices: Mapping[int, int]) -> None:
        """Publish prices, and wait until Kafka has acknowledged them. If an offset has two prices, the later counts.

        Raises:
            KafkaError: They may be in the log or not. Call it again.
        """
        entry = _encode(Entry(sorted(prices.items())))
        await (await self._send(self._topic, partition, None, entry, []))

    def done(self, partition: int, end: int) -> None:
        """Drop cached prices of offsets before `end`: they are not needed again until a rebalance."""
        if partition in self._cache:
            self._cache[partition] = [entry for entry in self._cache[partition] if entry[1] >= end]


def prices_in(record: Any) -> list[tuple[int, int]]:
    """The (offset, price) pairs of a record of the price log; none if another program wrote it."""
    try:
        return _decode(record.value).prices
    except (msgspec.MsgspecError, TypeError):
        return []


def _range(record: Any) -> tuple[int, int, bytes] | None:
    prices = prices_in(record)
    return (prices[0][0], prices[-1][0], record.value) if prices else None


class Priced:
    """The results for those purchases of a batch that came without a price."""

    def __init__(self) -> None:
        self.rejected: dict[int, Rejected] = {}  #: by offset
        self.decided: dict[int, int] = {}  #: all prices, by offset
        self.logged: set[int] = set()  #: offsets whose price is in the log already

    @property
    def to_log(self) -> dict[int, int]:
        """The prices that are not in the log yet, by offset."""
        return {offset: price for offset, price in self.decided.items() if offset not in self.logged}


@dataclass(eq=False)
class Prices:
    """Decides each price once.

    A decision holds after a crash and in a replay. So the sources are, in this order: the price log; the stored
    purchase; the counts, which show that the purchase was rejected; the product's price history. Purchases that are
    dead letters do not come here.

    Arguments:
        wait_seconds: How long purchases wait for an unknown product.
    """

    mongodb: Patient[MongoStore]
    counts: Table
    log: PriceLog
    _: KW_ONLY
    wait_seconds: float
    _unknown: dict[str, float] = field(default_factory=dict, init=False)

    async def give(self, batch: Batch, decoded: DecodedBatch[Purchase]) -> Priced:
        """Set the price of each purchase without one. A purchase whose product has no price is rejected."""
        priced = Priced()
        unpriced = {record.offset: (record, event) for record, event in decoded.accepted if event.price is None}
        if not unpriced:
            return priced
        waiting = dict(unpriced)
        await self._decided_before(batch, waiting, priced)
        await self._look_up(batch, list(waiting.values()), priced)
        for offset, (record, event) in unpriced.items():
            if error := priced.rejected.get(offset):
                decoded.rejected.append((record, error))
            elif event.price is not None:
                priced.decided[offset] = event.price
        if priced.rejected:
            decoded.accepted = [pair for pair in decoded.accepted if pair[0].offset not in priced.rejected]
        return priced

    async def keep(self, batch: Batch, priced: Priced) -> None:
        """Publish new prices to the log. Call it before the purchases are counted."""
        if new := priced.to_log:
            await batch.with_kafka(lambda: self.log.put(batch.tp.partition, new))
        if priced.decided:
            self.log.done(batch.tp.partition, batch.end)

    async def _decided_before(self, batch: Batch, waiting: dict[int, Pair], priced: Priced) -> None:
        """Apply earlier decisions, and remove those purchases from `waiting`."""
        first = batch.records[0]  # caches are filled from here, and last until a rebalance
        partition = batch.tp.partition
        logged = await batch.with_kafka(lambda: self.log.prices(partition, first, batch.end))
        for offset in waiting.keys() & logged.keys():
            waiting.pop(offset)[1].price = logged[offset]
            priced.logged.add(offset)
        if not waiting:
            return
        ids = {event.purchase_id for _, event in waiting.values()}
        stored = await self.mongodb(batch, lambda: self.mongodb.store.purchase_prices(ids))
        batch.check_owned()
        get = self.counts.reader(partition)
        for offset, (_, event) in list(waiting.items()):
            if event.purchase_id in stored:
                event.price = stored[event.purchase_id]
            elif handled(get, event.customer_id, offset):
                # Its dead letter is gone. If it were accepted now, it would be stored and never counted.
                priced.rejected[offset] = _unknown_product(event.product_id)
            else:
                continue
            del waiting[offset]

    async def _look_up(self, batch: Batch, unpriced: list[Pair], priced: Priced) -> None:
        while unpriced:
            wanted = {event.product_id for _, event in unpriced}
            histories = await self.mongodb(batch, partial(self.mongodb.store.price_history, wanted))
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
                    priced.rejected[record.offset] = error
            now = monotonic()
            unpriced = [pair for pair in missing if now < self._deadline(pair[1].product_id, now)]
            waited_for = {pair[0].offset for pair in unpriced}
            for record, event in missing:
                if record.offset not in waited_for:
                    priced.rejected[record.offset] = _unknown_product(event.product_id)
            if unpriced:
                await asyncio.sleep(min(_QUERY_AGAIN_SECONDS, self.wait_seconds))

    def _deadline(self, product_id: str, now: float) -> float:
        """The monotonic time until which purchases of this unknown product wait. The first of them sets it."""
        if product_id not in self._unknown and len(self._unknown) >= _MAX_UNKNOWN_PRODUCTS:  # keep deadlines ahead
            self._unknown = {name: deadline for name, deadline in self._unknown.items() if deadline > now}
        return self._unknown.setdefault(product_id, now + self.wait_seconds)


def _unknown_product(product_id: str) -> Rejected:
    return Rejected("unknown product", f"product_id {product_id!r} was never offered, or is deleted")
