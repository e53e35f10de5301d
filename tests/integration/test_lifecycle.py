"""Workers that stop, share, die and take over: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from itertools import chain

import pytest

from .conftest import OpenShop
from .shop import PARTITIONS, Json, Record, Shop, Worker, becomes, encoded, product, purchase, until

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own."""
    with open_shop(batching_max_records=500) as shop:
        yield shop


def share(workers: list[Worker]) -> bool:
    """Does each have partitions, and each partition one worker?"""
    owned = [worker.partitions() for worker in workers]
    return all(owned) and sorted(chain.from_iterable(owned)) == list(range(PARTITIONS))


def agrees(shop: Shop) -> Json:
    """`verify` says so; its report."""
    report: Json = json.loads(shop.run("verify", "--json").stdout)
    assert report["status"] == 0, report
    return report


def test_events_wait_while_no_worker_runs_and_appear_afterwards(shop: Shop) -> None:
    """Stopped in order, started again: it goes on where it stopped, and does nothing twice."""
    worker = shop.start_worker().ready()
    shop.sell(*(purchase("anna") for _ in range(10)))
    shop.drain()
    assert worker.stop() == 0
    waiting = [purchase("anna") for _ in range(20)]
    shop.sell(*waiting)
    assert shop.run("verify").status == 1
    assert shop.stored(waiting[0]) is None
    again = shop.start_worker(port=worker.port).ready()
    becomes(lambda: again.count("anna")[1].get("purchases"), 30)
    shop.drain()
    assert agrees(shop)["mongodb"]["purchases"] == 30


def test_two_workers_share_the_partitions_and_answer_for_each_other(shop: Shop) -> None:
    """Each customer's counts from either; the sums of both are the whole."""
    first = shop.start_worker().ready()
    customers = [f"c{number}" for number in range(40)]
    shop.sell(*(purchase(name, quantity=3) for name in customers))
    shop.drain()
    second = shop.start_worker()
    until(lambda: share([first, second]), "they share")
    shop.sell(*(purchase(name, quantity=3) for name in customers))
    shop.drain()
    for worker in (first, second):
        for name in customers:
            expected = {"customer_id": name, "purchases": 2, "items": 6, "spent": 6 * 399}
            assert worker.count(name) == (200, expected)
        assert worker.count("nobody")[0] == 404
    sums = [worker.counts() for worker in (first, second)]
    assert all(one["customers"] for one in sums)
    assert sum(one["customers"] for one in sums) == 40
    assert sum(one["purchases"] for one in sums) == 80
    agrees(shop)


def expected_counts(events: dict[str, Json]) -> dict[str, tuple[int, int, int]]:
    """What the purchases say of each customer."""
    sums: dict[str, tuple[int, int, int]] = {}
    for event in events.values():
        purchases, items, spent = sums.get(event["customer_id"], (0, 0, 0))
        value = event["quantity"] * event["price"]
        sums[event["customer_id"]] = (purchases + 1, items + event["quantity"], spent + value)
    return sums


def backlog(shop: Shop, rng: random.Random, size: int) -> tuple[dict[str, Json], int]:
    """Purchases of 200 customers, some sent twice, bad records between them; the unique ones, and how many are bad."""
    events: dict[str, Json] = {}
    records: list[Record] = []
    bad = 0
    for number in range(size):
        name = f"c{rng.randrange(200)}"
        chance = rng.random()
        if chance < 0.01:
            bad += 1
            records.append(Record(name.encode(), b"{"))
            continue
        event = events[rng.choice(list(events)[-50:])] if chance < 0.05 and events else purchase(
            name, purchase_id=f"p{number}", quantity=rng.randint(1, 5), price=rng.randrange(1000)
        )  # fmt: skip
        events.setdefault(event["purchase_id"], event)
        records.append(Record(event["customer_id"].encode(), encoded(event)))
    shop.send("purchases", *records)
    return events, bad


def check_all(shop: Shop, workers: list[Worker], events: dict[str, Json], bad: int) -> None:
    """Stored once, counted once."""
    stored = {document["_id"]: document for document in shop.db.purchases.find()}
    assert set(stored) == set(events)
    assert all(stored[name]["price"] == event["price"] for name, event in events.items())
    until(lambda: share(workers), "the workers share the partitions", 60)
    for name, (purchases, items, spent) in expected_counts(events).items():
        expected = {"customer_id": name, "purchases": purchases, "items": items, "spent": spent}
        assert workers[0].count(name) == (200, expected)
    sums = [worker.counts() for worker in workers]
    assert sum(one["purchases"] for one in sums) == len(events)
    report = agrees(shop)
    assert report["tables"]["rejected"] == bad


def dead_letter_places(shop: Shop) -> list[tuple[bytes, ...]]:
    """Topic, partition and offset of each record that became a dead letter."""
    headers = [dict(letter.headers) for letter in shop.read("dead-letters")]
    return [tuple(each[f"__connect.errors.{name}"] for name in ("topic", "partition", "offset")) for each in headers]


def test_a_worker_killed_in_mid_batch_while_another_joins_loses_nothing(shop: Shop) -> None:
    """SIGKILL with a backlog, and once more while the partitions change hands."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    shop.run("seed-products")
    events, bad = backlog(shop, rng, 20_000)
    first = shop.start_worker()
    until(lambda: shop.db.purchases.estimated_document_count() > 1_000, "it is in the middle of it")
    second = shop.start_worker()
    further = rng.randrange(2_000, 6_000)
    until(lambda: shop.db.purchases.estimated_document_count() > further, "and further")
    first.kill()
    third = shop.start_worker(port=first.port)
    shop.drain(120)
    check_all(shop, [second, third], events, bad)
    assert len(dead_letter_places(shop)) == bad


def test_a_frozen_worker_that_wakes_up_changes_nothing(shop: Shop) -> None:
    """Its session has run out, another did its work; what it still has under way must not count."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    shop.run("seed-products")
    first = shop.start_worker().ready()
    second = shop.start_worker()
    until(second.partitions, "they share")
    events, bad = backlog(shop, random.Random(seed), 20_000)
    until(lambda: shop.db.purchases.estimated_document_count() > 1_000, "they are in the middle of it")
    first.send(signal.SIGSTOP)
    try:
        until(lambda: len(second.partitions()) == 4, "the other has all partitions", 60)
        shop.drain()
    finally:
        first.send(signal.SIGCONT)
    until(first.partitions, "it is back", 60)
    shop.drain()
    check_all(shop, [first, second], events, bad)
    # What it had under way to the dead letters may arrive once more: its place tells that it is the same.
    assert len(set(dead_letter_places(shop))) == bad


def test_a_worker_that_lost_its_tables_recovers_them_from_kafka(shop: Shop) -> None:
    """An empty data directory: another machine."""
    worker = shop.start_worker().ready()
    shop.sell(*(purchase(f"c{number}", quantity=2) for number in range(50)))
    shop.drain()
    assert worker.stop() == 0
    other = shop.start_worker().ready()  # another port, so another folder
    assert {name: other.counts()[name] for name in ("customers", "purchases", "items")} == {
        "customers": 50,
        "purchases": 50,
        "items": 100,
    }
    assert other.stop() == 0
    reset = shop.run("reset", web_port=other.port)
    assert reset.status == 0
    assert shop.start_worker(port=other.port).ready().counts()["purchases"] == 50


def test_mongodb_frozen_and_gone_is_waited_for(open_embedded_shop: OpenShop) -> None:
    """One line when it goes; when it answers again, everything is there once."""
    with open_embedded_shop() as shop:
        servers = shop.spawn("servers")
        until(lambda: "Ctrl-C" in servers.output, "the servers run", 60)
        worker = shop.start_worker().ready()
        assert shop.run("seed-products").status == 0
        assert shop.run("seed-customers").status == 0
        until(lambda: shop.run("seed-purchases", "--count", "50", "--rate", "0").status == 0, "customers are known")
        mongodb = shop.server_pid("mongodb")
        os.kill(mongodb, signal.SIGSTOP)
        try:
            assert shop.run("seed-products").status == 0  # Kafka is there, and that is all it needs
            for number in range(3):
                event = json.dumps(product(f"p{number}"))
                sent = shop.run("send", f"{shop.name}.products", event, "-k", f"p{number}", "--partition", "0")
                assert sent.status == 0, sent
        finally:
            os.kill(mongodb, signal.SIGCONT)
        until(lambda: len(shop.run("list-products", "--json").json()) == 16, "all products are stored", 60)
        assert worker.stop() == 0
        assert servers.stop(signal.SIGINT) == 0
