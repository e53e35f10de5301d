"""Fakes of MongoDB, as far as a batch uses it, and of Kafka's topics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import ProducerFenced

from faust_batches import testing
from shopflow.kafka import connection
from shopflow.shop.layout import Layout
from shopflow.store.errors import unencodable
from shopflow.store.rules import differs, newest, no_price_document, outdoes, price_document, sale_id
from shopflow.store.types import (
    REMOVED,
    Deletion,
    Document,
    Inserted,
    PartitionSales,
    PriceHistory,
    milliseconds,
)

from .stores import Interrupted


def layout(partitions: int) -> Layout:
    """A shop's topics by their short names."""
    return Layout(
        group="shop",
        products="products",
        customers="customers",
        purchases="purchases",
        dead_letters="dead-letters",
        retries="retries",
        changelog="changelog",
        sales_changelog="sales",
        prices="prices",
        vouchers="vouchers",
        alerts="alerts",
        partitions=partitions,
    )


class FakeStore(Interrupted):
    """The requests of a batch to `MongoStore`, in memory, by the same rules. Documents are copied in both directions.

    Tests of sums, pages and sales use a real MongoDB (the fixture `store`). tests/contract compares the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collections: dict[str, dict[str, Document]] = {
            name: {} for name in ("products", "customers", "purchases", "prices", "vouchers")
        }
        self.parts: dict[str, dict[int, PartitionSales]] = {}
        self.positions: dict[int, tuple[int, int]] = {}
        #: Returns why a document is refused; None: it is stored.
        self.refuses: Callable[[Document], str | None] = lambda document: None

    async def ping(self) -> None:
        self._called("ping")

    async def prepare(self) -> None:
        self._called("prepare")

    async def insert_purchases(self, documents: Sequence[Document]) -> Inserted:
        self._called("insert_purchases")
        stored, duplicates, refused, differing = self.collections["purchases"], set(), {}, {}
        met: set[str] = set()
        for number, document in enumerate(documents):
            name = document["_id"]
            if reason := unencodable([document], [0]).get(0) or (None if name in stored else self.refuses(document)):
                refused[number] = reason
            elif name not in stored or (stored[name].get("source") or {}).get("origin") == REMOVED:
                stored[name] = _as_stored(document)
                met.add(name)
            elif name in met or stored[name].get("source") != document["source"]:
                duplicates.add(number)
            else:
                met.add(name)
                if differs(document, stored[name]):
                    differing[number] = deepcopy(stored[name])
        return Inserted(frozenset(duplicates), refused, differing)

    async def restore_purchases(self, documents: Sequence[Document]) -> None:
        self._called("restore_purchases")
        for document in documents:
            known = self.collections["purchases"].get(document["_id"])
            if known is not None and known.get("source") == document["source"]:
                known |= _as_stored(document)

    async def purchase_prices(self, purchase_ids: Collection[str]) -> dict[str, int]:
        self._called("purchase_prices")
        stored = self.collections["purchases"]
        return {name: stored[name]["price"] for name in purchase_ids if name in stored}

    async def upsert_products(self, documents: Sequence[Document]) -> dict[int, str]:
        self._called("upsert_products")
        refused = self._refused(documents)
        prices = [price_document(document) for number, document in enumerate(documents) if number not in refused]
        self._upsert("prices", prices, range(len(prices)), "since")
        self._upsert("products", documents, _others(documents, refused), "updated_at")
        return refused

    async def upsert_customers(self, documents: Sequence[Document]) -> dict[int, str]:
        self._called("upsert_customers")
        refused = self._refused(documents)
        self._upsert("customers", documents, _others(documents, refused), "registered_at")
        return refused

    def _refused(self, documents: Sequence[Document]) -> dict[int, str]:
        return {number: reason for number, document in enumerate(documents) if (reason := self.refuses(document))}

    def _upsert(self, name: str, documents: Sequence[Document], numbers: Iterable[int], time: str) -> None:
        stored = self.collections[name]
        for number in newest(documents, numbers, time):
            document = documents[number]
            known = stored.get(document["_id"])
            if known is None or outdoes(document, known, time):
                stored[document["_id"]] = _as_stored(document)

    async def delete_products(self, deletions: Sequence[Deletion]) -> None:
        self._called("delete_products")
        self._upsert("prices", [no_price_document(deletion) for deletion in deletions], range(len(deletions)), "since")
        self._delete("products", deletions)

    async def delete_customers(self, deletions: Sequence[Deletion]) -> None:
        self._called("delete_customers")
        self._delete("customers", deletions)

    def _delete(self, name: str, deletions: Sequence[Deletion]) -> None:
        stored = self.collections[name]
        for deletion in deletions:
            if not _is_behind(stored.get(deletion.id, {}).get("source") or {}, deletion.source):
                stored.pop(deletion.id, None)

    async def insert_vouchers(self, documents: Sequence[Document]) -> frozenset[int]:
        self._called("insert_vouchers")
        stored = self.collections["vouchers"]
        for document in documents:
            stored.setdefault(document["_id"], _as_stored(document))
        return frozenset(
            number
            for number, document in enumerate(documents)
            if stored[document["_id"]].get("source") != document["source"]
        )

    async def vouchers_from(
        self, topic: str, partition: int, start: int, end: int | None = None, limit: int | None = None
    ) -> list[Document]:
        self._called("vouchers_from")
        found = [
            one
            for one in self.collections["vouchers"].values()
            if (one["source"]["topic"], one["source"]["partition"]) == (topic, partition)
            and one["source"]["offset"] in range(start, 1 << 62 if end is None else end)
        ]
        return deepcopy(sorted(found, key=lambda one: one["source"]["offset"])[:limit])

    async def price_history(self, product_ids: Collection[str]) -> dict[str, PriceHistory]:
        self._called("price_history")
        prices: dict[str, list[tuple[Any, int | None]]] = {}
        for document in self.collections["prices"].values():
            if document["product_id"] in product_ids:
                prices.setdefault(document["product_id"], []).append((document["since"], document["price"]))
        for name, product in self.collections["products"].items():
            if name in product_ids and name not in prices and isinstance(product.get("price"), int):
                prices[name] = [(datetime.min.replace(tzinfo=timezone.utc), product["price"])]
        return {name: PriceHistory(tuple(sorted(known, key=itemgetter(0)))) for name, known in prices.items()}

    async def documents(self, collection: str, ids: Collection[str]) -> dict[str, Document]:
        self._called("documents")
        stored = self.collections[collection]
        return {name: deepcopy(stored[name]) for name in ids if name in stored}

    async def put_sales(self, partition: int, sales: Sequence[PartitionSales]) -> None:
        self._called("put_sales")
        for sale in sales:
            parts = self.parts.setdefault(sale_id(sale.period, sale.start, sale.product_id), {})
            if partition not in parts or parts[partition].position <= sale.position:
                parts[partition] = sale

    async def sales_position(self, partition: int) -> tuple[int, int]:
        self._called("sales_position")
        return self.positions.get(partition, (-1, -1))

    async def reached_sales(self, partition: int, position: tuple[int, int]) -> None:
        self._called("reached_sales")
        self.positions[partition] = max(position, self.positions.get(partition, (-1, -1)))


def _as_stored(document: Document) -> Document:
    """A copy with its times as MongoDB stores them."""
    return {
        name: milliseconds(value) if isinstance(value, datetime) else deepcopy(value)
        for name, value in document.items()
    }


def _others(documents: Sequence[Document], refused: Collection[int]) -> list[int]:
    return [number for number in range(len(documents)) if number not in refused]


def _is_behind(stored: Document, source: Document) -> bool:
    """True if the stored record is a later one of the same partition."""
    if "offset" not in source or "offset" not in stored:
        return False
    same = (stored["topic"], stored["partition"]) == (source["topic"], source["partition"])
    return bool(same and stored["offset"] > source["offset"])


@dataclass(frozen=True)
class FakeRecord(testing.FakeRecord):
    """A record, by default of the purchases."""

    topic: str = "shop.purchases"
    timestamp_type: int = 0  #: the producer's clock


class FakeKafka:
    """Kafka as `letters.Retry` uses it: the committed records, and the only producer that may commit."""

    def __init__(self) -> None:
        self.committed: list[tuple[str, int, bytes | None, bytes | None, list[tuple[str, bytes]]]] = []
        #: Raises for a record that Kafka refuses.
        self.check: Callable[[str, bytes | None, bytes | None], None] = lambda topic, key, value: None
        self.started = 0
        self.commits = 0
        #: Called before each commit with its number; the first is 1.
        self.before_commit: Callable[[int], None] = lambda number: None

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[FakeTransactions]:
        self.started += 1
        yield FakeTransactions(self, self.started)


class FakeTransactions:
    """A transactional producer of `FakeKafka`; a later one fences it."""

    def __init__(self, kafka: FakeKafka, epoch: int) -> None:
        self._kafka = kafka
        self._epoch = epoch
        self._sent: list[Any] = []

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        self._sent = []
        yield
        self._kafka.commits += 1
        self._kafka.before_commit(self._kafka.commits)
        self._check_epoch()
        self._kafka.committed += self._sent

    def _check_epoch(self) -> None:
        if self._epoch != self._kafka.started:
            raise ProducerFenced

    async def send(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> Awaitable[Any]:
        self._check_epoch()
        self._kafka.check(topic, key, value)
        self._sent.append((topic, partition, key, value, list(headers)))
        offset = sum(one[:2] == (topic, partition) for one in [*self._kafka.committed, *self._sent]) - 1

        async def acknowledged() -> Any:
            return SimpleNamespace(offset=offset)

        return acknowledged()


class FakeOutlet:
    """A topic of dead letters in memory, which fails this many times first."""

    def __init__(self, events: list[str] | None = None) -> None:
        self.got: list[tuple[str, bytes | None, bytes | None, int, list[tuple[str, bytes]]]] = []
        self.failures: list[Exception] = []
        self.events = events if events is not None else []

    async def send(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> Awaitable[Any]:
        if self.failures:
            raise self.failures.pop()
        self.events.append("dead letter")
        self.got.append((topic, key, value, partition, headers))

        async def acknowledged() -> None:
            return

        return acknowledged()


class FakeTopics:
    """Topics in memory, which Kafka's admin client and consumer of `shopflow.kafka.connection` see.

    Arguments:
        partitions: The records of each partition of a topic, as they are now; empty if there is no such topic.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, partitions: Callable[[str], Sequence[Sequence[FakeRecord]]]
    ) -> None:
        self.partitions = partitions
        #: The end offset of a partition at the start of a read; later records arrive during it.
        self.ends: dict[tuple[str, int], int] = {}
        #: Where a partition's log ends on its leader, if it has more than it gives out.
        self.log_ends: dict[tuple[str, int], int] = {}
        #: Bootstrap, topic and partition of each read.
        self.read: list[tuple[Any, str, int]] = []
        monkeypatch.setattr(connection, "admin", self._admin)
        monkeypatch.setattr(connection, "consumer", self._consumer)
        monkeypatch.setattr(connection, "client", self._client)

    @asynccontextmanager
    async def _admin(self, bootstrap: Any, **options: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(describe_topics=self._describe)

    async def _describe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        found = {name: [{"leader": 0}] * len(self.partitions(name)) for name in names}
        return [
            {"topic": name, "error_code": 0 if partitions else 3, "partitions": partitions}
            for name, partitions in found.items()
        ]

    @asynccontextmanager
    async def _consumer(self, bootstrap: Any, *, values: bool = True, **options: Any) -> AsyncIterator[FakeConsumer]:
        yield FakeConsumer(self, bootstrap, values=values)

    @asynccontextmanager
    async def _client(self, bootstrap: Any) -> AsyncIterator[FakeClient]:
        yield FakeClient(self, bootstrap)


class FakeClient:
    """A client of `FakeTopics` that asks the leader for the ends of partitions: for consumers, or of its log."""

    def __init__(self, topics: FakeTopics, bootstrap: Any) -> None:
        self._topics = topics
        self._consumer = FakeConsumer(topics, bootstrap, values=False)
        self.cluster = SimpleNamespace(leader_for_partition=lambda partition: 0)

    async def set_topics(self, topics: Iterable[str]) -> None:
        pass

    async def send(self, leader: int, request: Any) -> Any:
        ((topic, ((number, _),)),) = request._topics
        partition = TopicPartition(topic, number)
        ends = await self._consumer.end_offsets([partition])
        end = ends[partition] if request._replica_id == -1 else self._topics.log_ends.get(partition, ends[partition])
        return SimpleNamespace(topics=[(topic, [(number, 0, -1, end)])])


class FakeConsumer:
    """A consumer of `FakeTopics` that returns two records at a time."""

    def __init__(self, topics: FakeTopics, bootstrap: Any, *, values: bool) -> None:
        self._topics, self._bootstrap, self._values = topics, bootstrap, values
        self._at: dict[TopicPartition, int] = {}

    def _records(self, partition: TopicPartition) -> Sequence[FakeRecord]:
        return self._topics.partitions(partition.topic)[partition.partition]

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._at = dict.fromkeys(partitions, 0)
        self._topics.read += [(self._bootstrap, *partition) for partition in partitions]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert partition in self._at
        self._at[partition] = offset

    async def position(self, partition: TopicPartition) -> int:
        return self._at[partition]

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: next((record.offset for record in self._records(one)), 0) for one in partitions}

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: self._topics.ends.get(one, self._end(one)) for one in partitions}

    def _end(self, partition: TopicPartition) -> int:
        return max((record.offset + 1 for record in self._records(partition)), default=0)

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        return {
            one: next((record for record in self._records(one) if record.timestamp >= time), None)
            for one, time in times.items()
        }

    async def getmany(self, partition: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[FakeRecord]]:
        found = [record for record in self._records(partition) if record.offset >= self._at[partition]][:2]
        self._at[partition] = found[-1].offset + 1 if found else self._end(partition)
        run = found if self._values else [replace(record, value=None) for record in found]
        return {partition: run} if run else {}


def numbered(records: Iterable[FakeRecord], start: int = 0) -> list[FakeRecord]:
    """The records of a partition, at these offsets."""
    return [replace(record, offset=offset) for offset, record in enumerate(records, start)]
