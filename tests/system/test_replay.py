"""`replay` after MongoDB, the tables or both are lost: all documents and counts are as before."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from shopflow.kafka import group
from shopflow.kafka.security import Bootstrap
from shopflow.operations import replay as rebuild
from shopflow.store import MongoStore
from tests.conftest import OpenShop
from tests.support import fakes
from tests.support.shop import Json, Record, Shop, Worker, customer, product, purchase, until

pytestmark = pytest.mark.servers

COLLECTIONS = ("products", "customers", "purchases", "prices")


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own."""
    with open_shop(batching_product_wait_seconds=0.5, batching_max_records=50) as shop:
        yield shop


def unpriced(customer_id: str, **fields: Any) -> Json:
    """A purchase without a price."""
    return {name: value for name, value in purchase(customer_id, **fields).items() if name != "price"}


def trade(shop: Shop) -> None:
    """Send a history with every kind of event that a replay could get wrong."""
    shop.offer(product("bread", price=500), product("gone", price=100))
    shop.register(customer("anna"), customer("bob"))
    shop.drain()
    shop.sell(unpriced("anna", product_id="bread", purchase_id="kept-1"), unpriced("bob", product_id="not-yet"))
    shop.sell(purchase("bob", purchase_id="own", price=7), purchase("bob", purchase_id="own", price=9))
    shop.send("purchases", Record(b"bob", b"{"))
    shop.drain()
    # A new price of bread, which also counts for earlier purchases that come later; and a product that was unknown.
    shop.offer(product("bread", price=900, updated_at="2024-05-01T00:00:00Z"), product("not-yet", price=300))
    shop.send("products", Record(b"gone", None))
    shop.drain()
    shop.sell(unpriced("anna", product_id="bread", purchase_id="kept-2", purchased_at="2024-06-01T00:00:00Z"))
    shop.sell(*(purchase(f"c{n % 20}", purchase_id=f"p{n}", price=n) for n in range(300)))
    shop.drain()


def documents(shop: Shop) -> dict[str, list[Json]]:
    """All documents of MongoDB."""
    return {name: sorted(shop.db[name].find(), key=lambda one: one["_id"]) for name in COLLECTIONS}


def letters(shop: Shop) -> int:
    """The number of dead letters."""
    return len(shop.read("dead-letters"))


def counts(worker: Worker) -> Json:
    """The sums, once the worker serves them."""
    return until(worker.counts, "the worker says its counts")


def drop_mongodb(shop: Shop) -> None:
    """Drop the database."""
    shop.db.client.drop_database(shop.name)


def lose_tables(shop: Shop) -> None:
    """Delete the workers' folders and the changelog."""
    for folder in shop.data.glob("worker-*"):
        shutil.rmtree(folder)

    async def delete() -> None:
        async with shop._admin() as admin:
            await admin.delete_topics([shop.changelog])

    asyncio.run(delete())
    until(lambda: shop.changelog not in shop.describe_topics(), "the changelog is deleted")


@contextmanager
def buying(shop: Shop) -> Iterator[None]:
    """New purchases arrive while the body runs."""
    over = False

    def buy() -> None:
        number = 0
        while not over:
            shop.sell(*(purchase(f"n{n % 7}", purchase_id=f"new-{number}-{n}") for n in range(20)))
            number += 1
            time.sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        bought = pool.submit(buy)
        try:
            yield
        finally:
            over = True
            bought.result()


def test_what_is_there_is_not_changed_by_a_replay(shop: Shop) -> None:
    """The running workers do the replay. Decided prices, deletions and dead letters stay as they are."""
    worker = shop.start_worker().ready()
    trade(shop)
    before, sums, dead = documents(shop), counts(worker), letters(shop)
    assert [one["price"] for one in before["purchases"] if one["_id"].startswith("kept")] == [500, 900]
    done = shop.run("replay")
    assert done.status == 0, done
    assert "The running workers do the replay." in done.stdout
    assert documents(shop) == before
    assert counts(worker) == sums
    assert letters(shop) == dead == 2
    shop.agrees()
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_replay_decides_as_it_was_decided_at_first(shop: Shop) -> None:
    """The largest size and MongoDB's rules have changed. No record is in MongoDB and in the dead letters."""

    def sold(name: str, size: int = 0, **fields: Any) -> None:
        shop.sell(purchase("anna", purchase_id=name, note="x" * size, **fields))
        shop.drain()

    def restarted(most: int, validator: Json) -> None:
        nonlocal worker
        assert worker.stop() == 0
        shop.db.command("collMod", "purchases", validator=validator)
        worker = shop.start_worker(port=worker.port, batching_max_event_bytes=most).ready()

    def replayed() -> tuple[Json, int, dict[str, list[Json]]]:
        assert shop.run("replay").status == 0
        assert shop.run("verify", "--deep").status == 0
        return counts(worker), letters(shop), documents(shop)

    worker = shop.start_worker(batching_max_event_bytes=2_000).ready()
    sold("small")
    sold("large", 3_000)
    restarted(100_000, {"quantity": {"$ne": 7}})
    sold("large too", 3_000)
    sold("seven", quantity=7)
    first = replayed()
    assert ([one["_id"] for one in first[2]["purchases"]], first[1]) == (["large too", "small"], 2)
    restarted(2_000, {"quantity": {"$gt": 100}})
    assert replayed() == first
    restarted(100_000, {})
    drop_mongodb(shop)
    assert replayed() == first


@pytest.mark.slow
def test_a_dropped_mongodb_is_filled_again_while_new_purchases_arrive(shop: Shop) -> None:
    """The running workers fill it, and each purchase keeps its own price."""
    worker = shop.start_worker().ready()
    trade(shop)
    before, dead = documents(shop), letters(shop)
    with buying(shop):
        drop_mongodb(shop)
        done = shop.run("replay")
        assert done.status == 0, done
    shop.drain()
    shop.agrees()
    after = documents(shop)
    after["purchases"] = [one for one in after["purchases"] if not one["_id"].startswith("new")]
    assert after == before
    assert letters(shop) == dead
    assert worker.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["goes on", "killed"])
def test_a_worker_that_joins_between_the_steps_of_a_replay_starts_again_by_itself(shop: Shop, killed: bool) -> None:
    """A rebalance comes between the new era and the reset of the offsets, or the replay is killed there."""
    worker = shop.start_worker().ready()
    trade(shop)
    bootstrap, names = Bootstrap(shop.servers.kafka if shop.servers else ""), ("products", "customers", "purchases")
    layout = replace(
        fakes.layout(4),
        group=shop.name,
        changelog=shop.changelog,
        sales_changelog=f"{shop.name}-product_sales-changelog",
    )

    async def begin() -> None:
        await rebuild._begin_new_era(bootstrap, layout)
        store = MongoStore(shop.name)
        store.connect(shop.servers.mongodb if shop.servers else "")
        await store.clear_sales()
        await store.close()
        await group._remove_members(bootstrap, shop.name, (await group.group_of(bootstrap, shop.name)).members)

    readies = worker.output.count("Worker ready")
    asyncio.run(begin())
    until(lambda: worker.output.count("Worker ready") > readies, "the worker is back", 60)
    shop.sell(*(purchase(f"c{n % 20}", purchase_id=f"new-{n}") for n in range(100)))
    until(lambda: shop.db.purchases.count_documents({"_id": {"$regex": "^new-"}}), "the first of them are stored")
    if not killed:
        starts = {(shop.topic(name), partition): 0 for name in names for partition in range(4)}
        asyncio.run(group.reset_offsets(bootstrap, shop.name, starts))
    shop.drain()
    shop.agrees()
    assert worker.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("mongodb_too", [False, True])
def test_lost_tables_are_counted_again(shop: Shop, mongodb_too: bool) -> None:
    """Without a running worker, `replay` starts one. The next worker has the tables."""
    port = int(shop.environment["SHOPFLOW_WEB_PORT"])
    worker = shop.start_worker(port=port).ready()
    trade(shop)
    before, sums, dead = documents(shop), counts(worker), letters(shop)
    assert worker.stop() == 0
    lose_tables(shop)
    if mongodb_too:
        drop_mongodb(shop)
    done = shop.run("replay", seconds=120)
    assert done.status == 0, done
    assert "No worker runs. Starting one for the replay" in done.stdout
    assert documents(shop) == before
    shop.agrees()
    worker = shop.start_worker(port=port).ready()
    assert counts(worker) == sums
    assert letters(shop) == dead
    assert worker.stop() == 0


@pytest.mark.slow
def test_documents_and_counts_that_were_changed_by_hand_are_restored(shop: Shop) -> None:
    """A changed price, a deleted purchase and a count that was changed in the changelog are as before."""
    worker = shop.start_worker().ready()
    trade(shop)
    before, sums = documents(shop), counts(worker)
    assert worker.stop() == 0
    shop.db.purchases.update_one({"_id": "p7"}, {"$set": {"price": 1, "value": 2}})
    shop.db.purchases.delete_one({"_id": "p8"})
    changed = {"purchases": 99, "items": 99, "spent": 99, "first": 0, "offset": 10**9, "era": 0}
    shop.send_to(shop.changelog, Record(b"anna", str(changed).replace("'", '"').encode(), 0))
    worker = shop.start_worker(port=worker.port).ready()
    assert shop.run("verify").status == 1
    assert shop.run("replay").status == 0
    assert documents(shop) == before
    assert counts(worker) == sums
    shop.agrees()
    assert worker.stop() == 0


@pytest.mark.slow
def test_a_topic_that_lost_records_is_not_counted_again(shop: Shop) -> None:
    """Retention removed the first purchases, so only `--keep-tables` is possible, which fills MongoDB."""
    worker = shop.start_worker().ready()
    trade(shop)
    sums = counts(worker)
    topic_partition = TopicPartition(shop.topic("purchases"), 1)
    had = shop.committed("purchases")[1]

    async def shorten() -> None:
        async with shop._admin() as admin:
            await admin.delete_records({topic_partition: RecordsToDelete(before_offset=3)})

    asyncio.run(shorten())
    refused = shop.run("replay")
    assert refused.status == 2
    assert refused.errors == [
        f"Error: {topic_partition.topic}: Kafka no longer has all purchases, so they can't be counted again: "
        f"partition 1: {had - 3} of {had} counted, from offset 3 on. With --keep-tables only MongoDB is restored; with "
        "--lose-counts the others are no longer in the counts"
    ]
    lost = shop.db.purchases.find_one({"source.partition": 2})
    shop.db.purchases.delete_one({"_id": lost["_id"]})
    assert shop.run("replay", "--keep-tables").status == 0
    assert shop.db.purchases.find_one({"_id": lost["_id"]}) == lost
    assert counts(worker) == sums
    assert shop.run("replay", "--lose-counts").status == 0
    left = counts(worker)
    assert sums["purchases"] - 3 <= left["purchases"] < sums["purchases"]
    assert worker.stop() == 0


@pytest.mark.slow
def test_counts_that_only_mongodb_knows_are_not_lost(shop: Shop) -> None:
    """The purchases and the changelog were deleted: nothing says "Done" and counts nothing."""
    worker = shop.start_worker().ready()
    shop.sell(*(purchase(f"c{number}") for number in range(12)))
    shop.drain()
    assert worker.stop() == 0

    async def delete() -> None:
        async with shop._admin() as admin:
            await admin.delete_topics([shop.changelog, shop.topic("purchases")])

    asyncio.run(delete())
    until(lambda: shop.topic("purchases") not in shop.describe_topics(), "the topics are deleted")
    refused = shop.run("replay")
    assert refused.status == 2
    assert "0 of " in refused.errors[-1]
    assert " stored" in refused.errors[-1]
