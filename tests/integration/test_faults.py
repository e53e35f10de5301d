"""Workers and a database, killed or frozen in the middle of their work: nothing is lost, nothing counted twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from .conftest import OpenShop
from .shop import Json, Place, Process, Record, Shop, Worker, encoded, free_port, purchase, shared, until

pytestmark = pytest.mark.servers

CUSTOMERS = 200
CHUNK = 500
CHUNK_SECONDS = 0.25


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own, its topics made; its batches are small, so that more of them are cut off."""
    with open_shop(batching_max_records=300) as shop:
        assert shop.run("seed-products").status == 0
        yield shop


@dataclass
class Sale:
    """Purchases of 200 customers, some of them sent twice, bad records between them."""

    records: list[Record]
    events: dict[str, Json]
    repeated: int
    bad: int

    def counts(self) -> dict[str, Json]:
        """What `/counts/{customer_id}/` must say, by customer."""
        sums: dict[str, Json] = {}
        for event in self.events.values():
            name = event["customer_id"]
            count = sums.setdefault(name, {"customer_id": name, "purchases": 0, "items": 0, "spent": 0})
            count["purchases"] += 1
            count["items"] += event["quantity"]
            count["spent"] += event["quantity"] * event["price"]
        return sums


def sale(size: int) -> Sale:
    """A random one; its seed is printed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    made = Sale([], {}, 0, 0)
    sent: list[Json] = []
    for number in range(size):
        name, chance = f"c{rng.randrange(CUSTOMERS)}", rng.random()
        if chance < 0.01:
            made.bad += 1
            made.records.append(Record(name.encode(), b"{"))
            continue
        if chance < 0.05 and sent:
            made.repeated += 1
            event = rng.choice(sent[-100:])
        else:
            event = purchase(name, purchase_id=f"p{number}", quantity=rng.randint(1, 5), price=rng.randrange(1000))
            made.events[event["purchase_id"]] = event
            sent.append(event)
        made.records.append(Record(event["customer_id"].encode(), encoded(event)))
    return made


@contextmanager
def flowing(shop: Shop, records: Sequence[Record]) -> Iterator[None]:
    """Records keep coming while the body runs; it ends when all are sent."""

    def flow() -> None:
        for start in range(0, len(records), CHUNK):
            began = time.monotonic()
            shop.send("purchases", *records[start : start + CHUNK])
            time.sleep(max(0.0, began + CHUNK_SECONDS - time.monotonic()))

    with ThreadPoolExecutor(1) as pool:
        flow_ends = pool.submit(flow)
        yield
        flow_ends.result()


def stored(shop: Shop) -> int:
    count: int = shop.db.purchases.estimated_document_count()
    return count


def check_all(shop: Shop, workers: Sequence[Worker], made: Sale) -> None:
    """Stored once, counted once, every bad record a dead letter."""
    until(lambda: shop.lag() == 0 or any(worker.status is not None for worker in workers), "all are processed", 120)
    assert [worker.status for worker in workers] == [None] * len(workers), "a worker has ended"
    until(lambda: shared(workers), "the workers share the partitions", 60)
    documents = {document["_id"]: document for document in shop.db.purchases.find()}
    assert set(documents) == set(made.events)
    fields = ("customer_id", "product_id", "quantity", "price")
    for name, event in made.events.items():
        assert {field: documents[name][field] for field in fields} == {field: event[field] for field in fields}
    counts = made.counts()
    assert {name: workers[0].count(name) for name in counts} == {name: (200, count) for name, count in counts.items()}
    sums = [worker.counts() for worker in workers]
    assert sum(one["purchases"] for one in sums) == len(made.events)
    assert sum(one["spent"] for one in sums) == sum(count["spent"] for count in counts.values())
    tables = shop.agrees()["tables"]
    found = {name: tables[name] for name in ("purchases", "duplicates", "rejected")}
    assert found == {"purchases": len(made.events), "duplicates": made.repeated, "rejected": made.bad}
    # One may have come twice: its place tells that it is the same.
    assert len(set(dead_letters(shop))) == made.bad


def dead_letters(shop: Shop) -> list[Place]:
    """Where each record was that became a dead letter."""
    headers = [dict(letter.headers) for letter in shop.read("dead-letters")]
    found = [[each[f"__connect.errors.{name}"] for name in ("topic", "partition", "offset")] for each in headers]
    return [Place(topic.decode(), int(partition), int(offset)) for topic, partition, offset in found]


def test_workers_killed_in_mid_batch_while_others_join_lose_nothing(shop: Shop) -> None:
    """SIGKILL of one when the next is joining, and of that one while both are at work; purchases keep coming."""
    made = sale(20_000)
    shop.send("purchases", *made.records[:8_000])
    first = shop.start_worker()
    with flowing(shop, made.records[8_000:]):
        until(lambda: stored(shop) > 1_000, "it is in the middle of it", 60)
        second = shop.start_worker()
        until(lambda: not first.partitions() or second.partitions(), "the second one joins", 60)
        first.kill()
        third = shop.start_worker(port=first.port)  # with the tables that the first left
        until(lambda: shared([second, third]), "the third one has joined", 60)
        second.kill()
        fourth = shop.start_worker(port=second.port)
    check_all(shop, [third, fourth], made)


def test_a_frozen_worker_that_wakes_up_changes_nothing(shop: Shop) -> None:
    """Its session has run out, another did its work; what it still has under way must not count."""
    made = sale(20_000)
    workers = [shop.start_worker(), shop.start_worker()]
    until(lambda: shared(workers), "they share the partitions", 60)
    frozen, other = workers
    with flowing(shop, made.records):
        until(lambda: stored(shop) > 1_000, "they are in the middle of it", 60)
        frozen.send(signal.SIGSTOP)
        try:
            until(lambda: len(other.partitions()) == 4, "the other has all partitions", 60)
        finally:
            frozen.send(signal.SIGCONT)
    check_all(shop, workers, made)


def test_mongodb_away_frozen_and_killed_is_waited_for(open_shop: OpenShop) -> None:
    """At the start of a worker and in the middle of its work: said once, and everything is there when it is back."""
    port = free_port()
    uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    made = sale(12_000)
    with open_shop(mongodb=uri, embedded_mongodb_port=port, batching_max_records=300) as shop:
        worker = shop.start_worker().ready()
        shop.send("purchases", *made.records[:2_000])
        until(lambda: "MongoDB is away" in worker.output, "it says that MongoDB is away", 60)
        mongodb = start_mongodb(shop)
        shop.drain()
        assert worker.output.count("MongoDB is away") == worker.output.count("MongoDB is back") == 1
        with flowing(shop, made.records[2_000:]):
            works_on(shop)
            os.kill(shop.server_pid("mongodb"), signal.SIGSTOP)
            try:
                until(lambda: shop.lag() > 2 * CHUNK, "purchases wait")
            finally:
                os.kill(shop.server_pid("mongodb"), signal.SIGCONT)
            works_on(shop)
            os.kill(shop.server_pid("mongodb"), signal.SIGKILL)
            assert mongodb.wait() == 1
            assert "MongoDB has died, killed by SIGKILL" in mongodb.output
            start_mongodb(shop)
        check_all(shop, [worker], made)
        assert worker.output.count("MongoDB is away") == worker.output.count("MongoDB is back")
        assert worker.stop() == 0


def works_on(shop: Shop) -> None:
    """Wait until more is stored than now."""
    before = stored(shop)
    until(lambda: stored(shop) > before, "it works on", 60)


def start_mongodb(shop: Shop) -> Process:
    """The shop's own, on its port."""
    process = shop.spawn("servers", mongodb_uri="embedded")
    until(lambda: "Ctrl-C stops them." in process.output, "MongoDB runs", 60)
    return process
