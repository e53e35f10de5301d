"""Vouchers given: what the rules say is stored, told on a topic and remembered, in the order that is the guarantee."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

#: How long the type of a product is taken to be what it was.
_TYPE_SECONDS = 60.0
#: Products whose type is remembered.
_REMEMBERED = 100_000

#: As the number of a customer's purchases: none is the n-th, until the number is known again.
_UNKNOWN = -(1 << 40)

#: Customers of a batch that are looked at before other coroutines get a turn.
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


class VoucherLog:
    """The topic of the vouchers: what was given, by the workers before us too.

    Arguments:
        topic: With as many partitions as those whose events vouchers are given for, a voucher in the one with the
            number of its event's.
        publish: `App.publish`.
        read_since: Reads what a partition of the topic holds since a time.
    """

    def __init__(self, topic: str, publish: Publish, read_since: ReadSince) -> None:
        self._topic = topic
        self._publish = publish
        self._read_since = read_since
        self._once: SendOnce[tuple[int, str], Document] = SendOnce(self._sent_before, _key)

    def forget(self) -> None:
        """Forget what is known. Call it after a rebalance: other workers may have given vouchers meanwhile."""
        self._once.forget()

    async def given(self, batch: Batch) -> Mapping[int, Collection[str]]:
        """The rules that gave a voucher for records of this batch, by offset.

        Raises:
            KafkaError: It can't be told now.
        """
        first = batch.records[0]
        rules: dict[int, set[str]] = {}
        for offset, voucher_id in await self._once.sent_keys(batch.tp, first):
            if offset >= first.offset:
                rules.setdefault(offset, set()).add(voucher_id.partition(":")[0])
        return rules

    async def put(self, batch: Batch, documents: Sequence[Document]) -> list[Document]:
        """Send those that are not there yet; returns them.

        Raises:
            KafkaError: Not all are there; do it again.
        """
        first = batch.records[0]
        self._once.drop(batch.tp, lambda key: key[0] < first.offset)
        return await self._once.send(batch.tp, first, documents, partial(self._send, batch.tp.partition))

    async def _send(self, partition: int, documents: Sequence[Document]) -> None:
        rows = [(document["customer_id"].encode(), VOUCHERS.event(document)) for document in documents]
        await self._publish(self._topic, partition, rows)

    async def _sent_before(self, tp: TP, since: int) -> set[tuple[int, str]]:
        published = VOUCHERS.documents(await self._read_since(self._topic, tp.partition, since))
        return {_key(one) for one in published if (one["source"]["topic"], one["source"]["partition"]) == tp}


def _key(document: Document) -> tuple[int, str]:
    return document["source"]["offset"], document["_id"]


@dataclass(eq=False)
class Promotions:
    """Gives vouchers for purchases and registrations, each once.

    1. The voucher is in MongoDB's journal, 2. Kafka has acknowledged its event, 3. the customer's window with it is in
    RocksDB and in the changelog. Cut off in between, the batch comes again, and makes of the same windows the same
    vouchers; what the topic says was given is given, whatever the rules or the products are by then.

    Arguments:
        windows: The table `customer_windows`; None: no rule is about purchases.
    """

    rules: Rules
    mongodb: Patient[MongoStore]
    voucher_log: VoucherLog
    windows: Table | None

    def __post_init__(self) -> None:
        self._types = _Types(self.mongodb)

    async def registered(self, batch: Batch, accepted: Sequence[tuple[Any, Customer]]) -> None:
        """Take in registrations that are stored, in the batch's turn. They may come again: then it changes nothing.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        await self._give(
            batch,
            [
                voucher_document(earned, record)
                for record, event in accepted
                for earned in self.rules.register(event.customer_id, event.city, event.registered_at)
            ],
        )

    async def follow(self, batch: Batch, counted: CountedBatch) -> None:
        """Take in a batch of purchases that was counted (`purchases.Follower`)."""
        if self.windows is None or not counted.fresh:
            return
        given = await batch.with_kafka(lambda: self.voucher_log.given(batch))
        types: Mapping[str, str] = {}
        if self.rules.about_types:
            types = await self._types.of(batch, {event.product_id for _, event in counted.fresh})
        judge = _Judge(self.rules, self.windows.reader(batch.tp.partition), counted, types, given)
        rows: list[tuple[bytes, bytes]] = []
        documents: list[Document] = []
        for number, (customer_id, pairs) in enumerate(_by_customer(counted.fresh).items()):
            if number % _SLICE == 0:
                await asyncio.sleep(0)  # a slice holds the event loop for milliseconds
                batch.check_owned()  # else the table is another's by now
            window, earned = judge.judge(customer_id, pairs)
            rows.append((customer_id.encode(), encode_window(window)))  # also one that did not change
            documents += earned
        documents.sort(key=lambda document: document["source"]["offset"])
        await self._give(batch, documents)
        batch.check_owned()  # so the windows are still those that were read
        await self.windows.write(batch, rows)

    async def _give(self, batch: Batch, documents: Sequence[Document]) -> None:
        if not documents:
            return
        others = await self.mongodb(batch, lambda: self.mongodb.store.insert_vouchers(documents))
        ours = [document for number, document in enumerate(documents) if number not in others]
        sent = await batch.with_kafka(lambda: self.voucher_log.put(batch, ours))
        for rule, number in Counter(document["rule"] for document in sent).items():
            log.info("%d voucher(s) of rule %s", number, rule)


@dataclass(frozen=True)
class _Judge:
    """What is known when the purchases of a batch are looked at."""

    rules: Rules
    get: Callable[[bytes], bytes | None]
    counted: CountedBatch
    types: Mapping[str, str]
    given: Mapping[int, Collection[str]]

    def judge(self, customer_id: str, pairs: list[tuple[Any, Purchase]]) -> tuple[Window, list[Document]]:
        """A customer's window after these purchases, and the vouchers for them."""
        window = _current(self.get(customer_id.encode()), self.counted.changes.totals.era)
        new = [pair for pair in pairs if pair[0].offset > window.offset]
        count = self.counted.changes.values[customer_id]
        if new and count.offset == new[-1][0].offset:  # also what was bought before there were rules
            window.purchases = count.purchases - len(new)
        elif new and window.offset < 0 and count.first < new[0][0].offset:  # a cut off batch comes in smaller ones
            window.purchases = _UNKNOWN
        documents: list[Document] = []
        for record, event in new:
            bought = _bought(record, event, self.types.get(event.product_id))
            for earned in self.rules.buy(window, customer_id, bought, self.given.get(record.offset, ())):
                documents.append(voucher_document(earned, record))  # noqa: PERF401 - nearly always there is none
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


class _Types:
    """The types of the products, remembered for a while."""

    def __init__(self, mongodb: Patient[MongoStore]) -> None:
        self._mongodb = mongodb
        self._known: dict[str, tuple[str, float]] = {}

    async def of(self, batch: Batch, product_ids: Collection[str]) -> dict[str, str]:
        """The types of those that are offered now."""
        now = monotonic()
        if len(self._known) > _REMEMBERED:
            self._known = {}
        # Others clear or change what is known while MongoDB is asked.
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
