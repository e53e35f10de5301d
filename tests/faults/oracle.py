"""A random sale, and the checks of the shop after it, whatever happened to workers and servers."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from shopflow.config.promotions import Rule
from shopflow.store import MongoStore
from tests.support.shop import Json, Origin, Record, Shop, Worker, encoded, shared, until
from tests.support.vouchers import Bought, expected

__all__ = ["PARTITIONS", "PROMOTIONS", "Sale", "check", "check_rebuilt", "drained", "offer", "send"]

#: Enough for a third worker to take some from two.
PARTITIONS = 6
CUSTOMERS = 1_000
PRODUCTS = 8
BAD_SHARE, REPEATED_SHARE, UNPRICED_SHARE = 0.01, 0.04, 0.1
#: A repeated purchase is one of this many last ones.
REPEATED_WITHIN = 2_000
FIRST_DAY = datetime(2024, 3, 1, tzinfo=timezone.utc)
DAYS = 30
#: Seconds that the shop is open each day. Few hours make few rows of sales: one for each hour and product.
OPEN_SECONDS = 2 * 3_600
#: The rules of the workers: many vouchers for some customers, few for others.
PROMOTIONS: list[Json] = [
    {"name": "share", "kind": "share", "product_ids": ["product-0", "product-1"], "percent": 40, "days": 5,
     "min_spent": 20_000, "voucher": {"text": "any", "percent": 5}},
    {"name": "spent", "kind": "spent", "amount": 100_000, "days": 10, "voucher": {"text": "any", "percent": 5}},
    {"name": "nth", "kind": "nth", "n": 5, "voucher": {"text": "any", "amount": 100}},
]  # fmt: skip
#: Seconds in which all events must be processed after the last fault.
DRAIN_SECONDS = 180.0
_BATCH_BYTES = 256 << 10
_NAMED = 5


class Sale:
    """Purchases of 1,000 customers: some sent twice, some without a price, and bad records between them.

    Arguments:
        rng: The source of all random choices.
        size: The number of records.
        plain: Only purchases with a price, each sent once.
    """

    def __init__(self, rng: random.Random, size: int, *, plain: bool = False) -> None:
        self._rng = rng
        self.prices = {f"product-{number}": self._history() for number in range(PRODUCTS)}
        self.records: list[Record] = []
        #: The purchases that must be stored, by id, with the right price.
        self.events: dict[str, Json] = {}
        self.repeated = 0
        #: Numbers of the bad records.
        self.bad: list[int] = []
        #: The origin of each record that was sent.
        self.places: list[Origin] = []
        sent: list[Json] = []
        for number in range(size):
            chance = 1.0 if plain else rng.random()
            if chance < BAD_SHARE:
                self.bad.append(number)
                self.records.append(self._bad_record(number))
            elif chance < BAD_SHARE + REPEATED_SHARE and sent:
                self.repeated += 1
                self.records.append(self._repeated(sent))
            else:
                event = self._purchase(number, priced=plain)
                sent.append(event)
                self.events[event["purchase_id"]] = {"price": self._price_of(event), **event}
                self.records.append(_record(event))

    @property
    def waiting(self) -> int:
        """The number of records that were not sent yet."""
        return len(self.records) - len(self.places)

    def sell(self, shop: Shop, count: int | None = None) -> None:
        """Send the next `count` records, or all that are left."""
        start = len(self.places)
        end = len(self.records) if count is None else start + count
        self.places += send(shop, "purchases", self.records[start:end])

    def bad_places(self) -> list[Origin]:
        """The origins of the bad records."""
        return [self.places[number] for number in self.bad]

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Purchases, items and grosze of each customer."""
        sums: dict[str, tuple[int, int, int]] = {}
        for event in self.events.values():
            purchases, items, spent = sums.get(event["customer_id"], (0, 0, 0))
            more = event["quantity"], event["quantity"] * event["price"]
            sums[event["customer_id"]] = (purchases + 1, items + more[0], spent + more[1])
        return sums

    def _moment(self) -> datetime:
        """A random time at which the shop is open."""
        rng = self._rng
        return FIRST_DAY + timedelta(days=rng.randrange(DAYS), seconds=rng.randrange(OPEN_SECONDS))

    def _history(self) -> list[tuple[datetime, int]]:
        """The prices of a product, each with the time of its beginning."""
        times = sorted(self._moment() for _ in range(4))
        return [(time, self._rng.randrange(1, 5_000)) for time in times]

    def _purchase(self, number: int, *, priced: bool = False) -> Json:
        rng = self._rng
        event: Json = {
            "purchase_id": f"purchase-{number}",
            "customer_id": f"customer-{rng.randrange(CUSTOMERS)}",
            "product_id": f"product-{rng.randrange(PRODUCTS)}",
            "quantity": rng.randint(1, 5),
            "purchased_at": self._moment().isoformat(),
        }
        return event if rng.random() < UNPRICED_SHARE and not priced else {**event, "price": rng.randrange(5_000)}

    def _price_of(self, event: Json) -> int:
        """The purchase's own price, else the one in force at its time. Before the first price, the first one counts."""
        history, at = self.prices[event["product_id"]], datetime.fromisoformat(event["purchased_at"])
        in_force = [price for since, price in history if since <= at]
        return int(event.get("price", in_force[-1] if in_force else history[0][1]))

    def _repeated(self, sent: Sequence[Json]) -> Record:
        """A purchase that was sent before, some with another quantity. The first one counts."""
        event = self._rng.choice(sent[-REPEATED_WITHIN:])
        return _record(event if self._rng.random() < 0.5 else {**event, "quantity": 9, "price": 1})

    def _bad_record(self, number: int) -> Record:
        event = self._purchase(number)
        key = event["customer_id"].encode()
        return self._rng.choice(
            [
                Record(key, b"{"),
                Record(key, b"\xff"),
                Record(key, None),
                Record(b"somebody else", encoded(event)),
                Record(key, encoded({**event, "quantity": 0})),
                Record(key, encoded({**event, "price": -1})),
                Record(key, encoded({**event, "purchased_at": "yesterday"})),
            ]
        )


def _record(event: Json) -> Record:
    return Record(event["customer_id"].encode(), encoded(event))


# -- sending, as fast as it goes


def send(shop: Shop, kind: str, records: Iterable[Record]) -> list[Origin]:
    """Send records to the partitions that Java's partitioner chooses; returns their origins, in the same order."""
    return asyncio.run(_send(shop, shop.topic(kind), records))


async def _send(shop: Shop, topic: str, records: Iterable[Record]) -> list[Origin]:
    assert shop.servers
    partitions, choose = list(range(PARTITIONS)), DefaultPartitioner()
    open_batches: dict[int, Any] = {}
    sent: list[tuple[int, int, int]] = []  # partition, number of the batch, index in it
    numbers: Counter[int] = Counter()
    under_way: dict[tuple[int, int], Any] = {}
    async with AIOKafkaProducer(
        bootstrap_servers=shop.servers.kafka.split(";"), enable_idempotence=True, max_batch_size=_BATCH_BYTES
    ) as producer:

        async def ship(partition: int) -> None:
            under_way[partition, numbers[partition]] = await producer.send_batch(
                open_batches.pop(partition), topic, partition=partition
            )
            numbers[partition] += 1

        for record in records:
            partition = choose(record.key, partitions, partitions) if record.partition is None else record.partition
            for _ in range(2):  # the second time into a new batch
                if partition not in open_batches:
                    open_batches[partition] = producer.create_batch()
                batch = open_batches[partition]
                if batch.append(key=record.key, value=record.value, timestamp=None) is not None:
                    sent.append((partition, numbers[partition], batch.record_count() - 1))
                    break
                await ship(partition)
        for partition in list(open_batches):
            await ship(partition)
        starts = {key: (await future).offset for key, future in under_way.items()}
    return [Origin(topic, partition, starts[partition, number] + place) for partition, number, place in sent]


def offer(shop: Shop, sale: Sale) -> None:
    """Put the sale's products into MongoDB, each with all its prices, which purchases without a price need."""
    documents = [
        {
            "_id": name,
            "name": name,
            "type": "test",
            "price": price,
            "updated_at": since,
            "source": {"origin": "direct"},
        }
        for name, history in sale.prices.items()
        for since, price in history
    ]

    async def write() -> None:
        assert shop.servers
        store = MongoStore(shop.name)
        store.connect(shop.servers.mongodb)
        try:
            await store.prepare()
            assert await store.upsert_products(documents) == {}
        finally:
            await store.close()

    asyncio.run(write())


# -- what must be true


def drained(shop: Shop, workers: Sequence[Worker], seconds: float = DRAIN_SECONDS) -> None:
    """Wait until every event is processed. Fails at once if a worker has ended."""

    def done() -> bool:
        assert [worker.status for worker in workers] == [None] * len(workers), "a worker has ended"
        try:
            return shop.lag() == 0
        except KafkaError:  # Kafka has no coordinator for the group yet
            return False

    until(done, "all purchases are processed", seconds)


def check(shop: Shop, workers: Sequence[Worker], sale: Sale) -> None:
    """Every purchase is in MongoDB and in the counts once, and every bad record in the dead letters once."""
    assert sale.waiting == 0
    drained(shop, workers)
    check_documents(shop, sale)
    check_dead_letters(shop, sale)
    check_vouchers(shop, sale)
    until(lambda: shared(workers, PARTITIONS), "the workers share the partitions", 60)
    for worker in workers:
        check_views(worker, sale)
        check_sales(worker, sale)
    check_activity(shop, sale)
    sums = [worker.counts() for worker in workers]
    check_sums({name: sum(each[name] for each in sums) for name in _SUMS}, sale)
    tables = shop.agrees()["tables"]
    found = {name: tables[name] for name in ("purchases", "duplicates", "rejected")}
    assert found == {"purchases": len(sale.events), "duplicates": sale.repeated, "rejected": len(sale.bad)}


def check_rebuilt(shop: Shop, sale: Sale) -> Worker:
    """A new worker with an empty data directory has the same counts, from the changelog. Returns the running worker."""
    worker = shop.start_worker()
    worker.ready(PARTITIONS, seconds=120)
    check_views(worker, sale)
    check_sales(worker, sale)
    check_sums(worker.counts(), sale)
    return worker


def check_documents(shop: Shop, sale: Sale) -> None:
    """Each purchase is stored once, unchanged, with its right price."""
    fields = ("customer_id", "product_id", "quantity", "price")
    projection = dict.fromkeys((*fields, "value", "source"), 1)
    found, places = {}, Counter[Any]()
    for document in shop.db.purchases.find({}, projection):
        found[document["_id"]] = tuple(document[field] for field in fields)
        assert document["value"] == document["quantity"] * document["price"]
        source = document["source"]
        places[source["topic"], source["partition"], source["offset"]] += 1
    wanted = {name: tuple(event[field] for field in fields) for name, event in sale.events.items()}
    _same("purchases in MongoDB", found, wanted)
    assert len(places) == len(found), "two documents come from one record"


def check_dead_letters(shop: Shop, sale: Sale) -> None:
    """Each bad record is a dead letter once; the headers have its origin."""
    found: Counter[Origin] = Counter()
    for letter in shop.read("dead-letters"):
        headers = dict(letter.headers)
        topic, partition, offset = (headers[f"__connect.errors.{name}"] for name in ("topic", "partition", "offset"))
        found[Origin(topic.decode(), int(partition), int(offset))] += 1
    _same("dead letters", found, Counter(sale.bad_places()))


def check_vouchers(shop: Shop, sale: Sale) -> None:
    """Each voucher that was earned is in MongoDB once, and in the topic once."""
    log = [Bought.of(event) for event in sale.events.values()]
    wanted = Counter(expected(msgspec.convert(PROMOTIONS, tuple[Rule, ...]), {}, log))
    _same("vouchers in MongoDB", Counter(one["_id"] for one in shop.db.vouchers.find({}, {"_id": 1})), wanted)
    told = Counter(json.loads(record.value)["voucher_id"] for record in shop.read("vouchers"))
    _same("vouchers in the topic", told, wanted)


def check_sales(worker: Worker, sale: Sale) -> None:
    """The worker's `/sales/` has the right sales of every product, in total and by day, over all workers."""
    for query, digits in (("by=total", 0), ("by=day&since=1970-01-01&limit=10000", 10)):
        wanted: dict[tuple[str, str], list[int]] = {}
        for event in sale.events.values():
            at = datetime.fromisoformat(event["purchased_at"]).astimezone(timezone.utc)
            sums = wanted.setdefault((event["product_id"], at.isoformat()[:digits]), [0, 0, 0])
            for place, number in enumerate((1, event["quantity"], event["quantity"] * event["price"])):
                sums[place] += number

        def asked(query: str = query, digits: int = digits) -> dict[tuple[str, str], list[int]] | None:
            status, answer = worker.get(f"/sales/?{query}")
            if status == 503:  # a rebalance
                return None
            assert (status, answer.get("more")) == (200, False), answer
            return {
                (each["product_id"], each.get("start", "")[:digits]): [
                    *(each["purchases"], each["units"], each["revenue"])
                ]
                for each in answer["sales"]
            }

        found = until(asked, f"worker {worker.port} tells the sales", 60)
        _same(f"sales ({query}) on worker {worker.port}", found, wanted)


def check_activity(shop: Shop, sale: Sale) -> None:
    """The last record of each customer in `customer-activity` has the customer's counts."""
    last: dict[str, tuple[int, ...]] = {}
    for record in shop.read("customer-activity"):
        value = json.loads(record.value)
        last[record.key.decode()] = tuple(value[name] for name in ("purchases", "items", "spent"))
    _same("customers in customer-activity", last, sale.counts())


_SUMS = ("customers", "purchases", "items", "spent")


def check_sums(found: Mapping[str, Any], sale: Sale) -> None:
    """The sums are those of the purchases."""
    counts = sale.counts().values()
    purchases, items, spent = (sum(each) for each in zip(*counts, strict=True))
    wanted = dict(zip(_SUMS, (len(counts), purchases, items, spent), strict=True))
    assert {name: found[name] for name in _SUMS} == wanted


def check_views(worker: Worker, sale: Sale) -> None:
    """The worker answers with the right counts of every customer, also those of other workers' partitions."""
    wanted = sale.counts()
    found = _ask(worker, wanted)
    _same(f"customers on worker {worker.port}", found, wanted)


def _ask(worker: Worker, names: Iterable[str], seconds: float = 60.0) -> dict[str, Any]:
    """Each customer's counts, over one connection. A request that gets 503, in a rebalance, is repeated."""
    deadline, found = time.monotonic() + seconds, {}
    connection = http.client.HTTPConnection(worker.host, worker.port, timeout=30)
    try:
        for name in names:
            while True:
                connection.request("GET", f"/counts/{quote(name, safe='')}/")
                response = connection.getresponse()
                answer = response.read().decode()
                if response.status != 503 or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            good = response.status == 200
            found[name] = (
                tuple(json.loads(answer)[field] for field in ("purchases", "items", "spent"))
                if good
                else (response.status, answer)
            )
    finally:
        connection.close()
    return found


def _same(what: str, found: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> None:
    """Fails with the number of differences and the first of them: pytest's own message is useless for 100,000."""
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    other = [key for key in wanted if key in found and found[key] != wanted[key]]
    lines = [f"{what}: {len(wanted)} wanted, {len(missing)} missing, {len(extra)} too many, {len(other)} different"]
    lines += [f"  missing   {key}: {wanted[key]}" for key in missing[:_NAMED]]
    lines += [f"  too many  {key}: {found[key]}" for key in extra[:_NAMED]]
    lines += [f"  different {key}: {found[key]} instead of {wanted[key]}" for key in other[:_NAMED]]
    assert len(missing) + len(extra) + len(other) == 0, "\n".join(lines)
