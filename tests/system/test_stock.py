"""Alerts of low stock on real servers: one for each stocking that falls to its limit, through kills and a replay."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from shopflow.shop.stock import in_words
from tests.conftest import OpenShop
from tests.support.shop import Json, Shop, becomes, product, purchase, until

pytestmark = pytest.mark.servers

#: In the middle of an hour, of which earlier purchases don't reduce the stock.
STOCKED = datetime(2024, 5, 6, 5, 15, tzinfo=timezone.utc)
NAMES = [f"p{number}" for number in range(12)]
STOCK, LIMIT = 120, 30


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own. Its batches are small, so that kills hit many points of the work."""
    with open_shop(batching_max_records=50) as shop:
        yield shop


def sold(chance: random.Random, count: int) -> list[Json]:
    """Purchases around the time of the stocking, a third of them before it."""
    return [
        purchase(
            f"c{chance.randrange(50)}",
            product_id=chance.choice(NAMES),
            quantity=chance.randint(1, 4),
            purchased_at=(STOCKED + timedelta(minutes=chance.uniform(-75, 150))).isoformat(),
        )
        for _ in range(count)
    ]


def left(events: list[Json], since: datetime = STOCKED, stock: int = STOCK) -> dict[str, int]:
    """What is left of each product, computed from the events."""
    found = dict.fromkeys(NAMES, stock)
    for event in events:
        if datetime.fromisoformat(event["purchased_at"]).replace(microsecond=0) >= since:
            found[event["product_id"]] -= event["quantity"]
    return found


def offered(since: datetime, stock: int, names: list[str] = NAMES) -> list[Json]:
    """A product event for each name, with this stock at this time."""
    return [product(name, updated_at=since.isoformat(), stock=stock, stock_limit=LIMIT) for name in names]


def published(shop: Shop) -> list[str]:
    """The alert ids in the topic; an alert that was published twice is there twice."""
    return sorted(json.loads(record.value)["alert_id"] for record in shop.read("alerts"))


def ids(names: Any, since: datetime) -> list[str]:
    """The ids of the alerts of these stockings."""
    return sorted(f"{name}@{since.isoformat(timespec='milliseconds')}" for name in names)


def listed(shop: Shop) -> dict[str, int]:
    """What is left of each product, as `list-products --json` says."""
    return {one["product_id"]: one["left"] for one in shop.run("list-products", "--json").json() if "left" in one}


@pytest.mark.slow
def test_each_stocking_alerts_once_whatever_dies(shop: Shop) -> None:
    """Workers are killed when alerts are due; then all is replayed, also without MongoDB. No alert is lost or twice."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    events: list[Json] = []
    first = shop.start_worker().ready()
    shop.offer(*offered(STOCKED, STOCK), product("plain"))
    second = shop.start_worker()
    for _ in range(4):
        more = sold(chance, 150)
        events += more
        before = shop.db.alerts.count_documents({})
        shop.sell(*more, *more[:5])  # some are sent twice
        if sum(units <= LIMIT for units in left(events).values()) > before:
            until(lambda before=before: shop.db.alerts.count_documents({}) > before, "an alert is published", poll=0.01)  # type: ignore[misc]
        time.sleep(chance.random())  # anywhere in the work
        second.kill()
        second = shop.start_worker()
    first.kill()
    first = shop.start_worker(port=first.port)
    more = sold(chance, 300)
    shop.sell(*more)
    events += more
    shop.drain(120)
    expected = left(events)
    fallen = ids((name for name, units in expected.items() if units <= LIMIT), STOCKED)
    assert len(fallen) > 5
    becomes(lambda: listed(shop), expected)
    becomes(lambda: published(shop), fallen)
    becomes(lambda: shop.db.alerts.count_documents({"unpublished": {"$exists": True}}), 0)
    documents = list(shop.db.alerts.find().sort("_id", 1))
    assert [document["_id"] for document in documents] == fallen
    for record in shop.read("alerts"):
        event = json.loads(record.value)
        assert record.key.decode() == event["product_id"]
        assert record.partition == shop.db.products.find_one({"_id": event["product_id"]})["source"]["partition"]
        assert expected[event["product_id"]] <= event["left"] <= event["limit"] == LIMIT
        assert (event["kind"], event["stock"]) == ("stock", STOCK)
    assert in_words(expected["p0"], STOCK) in shop.run("list-products").stdout

    assert shop.run("replay").status == 0
    becomes(lambda: listed(shop), expected)
    shop.db.client.drop_database(shop.name)
    assert shop.run("replay").status == 0
    becomes(lambda: listed(shop), expected)
    # Products that are stocked anew alert again. When they have, the replay has checked all earlier stockings too.
    again = STOCKED + timedelta(days=1)
    shop.offer(*offered(again, 0))
    fallen = sorted([*fallen, *ids(NAMES, again)])
    becomes(lambda: published(shop), fallen)
    assert [one["_id"] for one in shop.db.alerts.find({"since": STOCKED}).sort("_id", 1)] == [
        document["_id"] for document in documents
    ]
    assert list(shop.db.alerts.find({"since": STOCKED}).sort("_id", 1)) == documents
    assert shop.agrees()["status"] == 0
    status, answer = first.get("/products/")
    assert status == 200
    fields = {one["product_id"]: (one.get("stock"), one.get("stock_limit")) for one in answer["products"]}
    assert fields == {**dict.fromkeys(NAMES, (0, LIMIT)), "plain": (None, None)}
    assert shop.run("verify", "--deep").status == 0
