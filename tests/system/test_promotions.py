"""Vouchers through kills, redelivery and a replay: each is right, and once in MongoDB and in the topic."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from shopflow.config.promotions import Rule
from tests.conftest import OpenShop
from tests.support.shop import Json, Shop, customer, product, purchase, until
from tests.support.vouchers import Bought, expected

pytestmark = pytest.mark.servers

RULES: list[Json] = [
    {"name": "bread", "kind": "share", "product_types": ["bread"], "percent": 25, "days": 30, "min_spent": 500,
     "voucher": {"product_type": "butter", "percent": 20, "valid_days": 14}},
    {"name": "big-week", "kind": "spent", "amount": 2_000, "days": 7, "voucher": {"text": "any", "percent": 5}},
    {"name": "tenth", "kind": "nth", "n": 10, "voucher": {"text": "any", "amount": 500}},
    {"name": "welcome", "kind": "city", "cities": ["Łódź"], "voucher": {"text": "any", "amount": 1_000}},
]  # fmt: skip
TYPES = {"rye": "bread", "wheat": "bread", "milk": "dairy", "sugar": "sugar"}
START = datetime(2024, 3, 1, 9, 30, tzinfo=timezone.utc)


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with promotions. Its batches are small, so that kills hit many points of the work."""
    with open_shop(promotions=json.dumps(RULES), batching_max_records=40) as shop:
        yield shop


def history(count: int) -> list[Json]:
    """Purchases over four months, some of them late, by 40 customers; the same for the same seed."""
    seed = random.SystemRandom().randrange(10**9)
    print("seed", seed)
    rng = random.Random(seed)
    events = []
    for number in range(count):
        at = START + timedelta(days=120 * number / count) - timedelta(days=rng.choice([0, 0, 0, rng.random() * 40]))
        fields = {"product_id": rng.choice(sorted(TYPES)), "quantity": rng.randint(1, 3), "price": rng.randint(0, 300)}
        name = f"c{rng.randrange(40)}"
        events.append(purchase(name, purchase_id=f"p{number}", purchased_at=at.isoformat(), **fields))
    return events


def registrations() -> list[Json]:
    """Registrations of 40 customers, two thirds of them in Łódź; 12 are sent twice."""
    cities = {f"c{number}": ("Łódź", "łódź ", "Gdynia")[number % 3] for number in range(40)}
    return [customer(name, city=city) for name, city in [*cities.items(), *list(cities.items())[:12]]]


def earned(events: list[Json], customers: list[Json]) -> list[str]:
    """The ids of the vouchers that the oracle expects, each once."""
    rules = msgspec.convert(RULES, tuple[Rule, ...])
    log = [Bought.of(event) for event in events]
    welcome = {f"welcome:{one['customer_id']}:registration" for one in customers if one["city"] != "Gdynia"}
    return sorted([*expected(rules, TYPES, log), *welcome])


def stored(shop: Shop) -> list[str]:
    """The ids of the vouchers in MongoDB."""
    return sorted(one["_id"] for one in shop.db.vouchers.find({}, {"_id": 1}))


def published(shop: Shop) -> list[str]:
    """The voucher ids in the topic; a voucher that was published twice is there twice."""
    return sorted(json.loads(record.value)["voucher_id"] for record in shop.read("vouchers"))


def open_with_products(shop: Shop) -> Any:
    """Start a worker that has stored the products."""
    worker = shop.start_worker().ready()
    shop.offer(*(product(name, type=kind) for name, kind in TYPES.items()))
    shop.drain()
    return worker


@pytest.mark.slow
def test_each_voucher_is_given_once_whatever_dies(shop: Shop) -> None:
    """Workers are killed four times while purchases arrive, and come back with or without their tables."""
    worker = open_with_products(shop)
    events, customers = history(4_000), registrations()
    wanted = earned(events, customers)
    assert len(wanted) > 200
    half = len(customers) // 2
    shop.register(*customers[:half])
    for number in range(4):
        shop.sell(*events[1_000 * number : 1_000 * (number + 1)])
        seen = shop.db.vouchers.estimated_document_count()
        until(lambda seen=seen: shop.db.vouchers.estimated_document_count() > seen, "it gives vouchers", poll=0.01)  # type: ignore[misc]
        time.sleep(random.random() / 2)  # anywhere in the work
        worker.kill()
        # The same port has its tables; a new one recovers them from the changelog.
        worker = shop.start_worker(port=worker.port if number % 2 else None).ready()
    shop.register(*customers[half:])
    shop.drain()
    assert stored(shop) == wanted
    assert published(shop) == wanted
    shop.agrees()
    assert worker.stop() == 0


@pytest.mark.slow
def test_redelivery_and_replay_give_the_same_and_publish_nothing_twice(shop: Shop) -> None:
    """A replay, with or without the tables and MongoDB, restores the same vouchers and publishes none again."""
    worker = open_with_products(shop)
    events, customers = history(1_000), registrations()
    wanted = earned(events, customers)
    shop.register(*customers)
    shop.sell(*events)
    shop.drain()
    assert (stored(shop), published(shop)) == (wanted, wanted)
    documents = list(shop.db.vouchers.find().sort("_id", 1))
    shop.db.vouchers.update_one({"_id": wanted[0]}, {"$set": {"valid_until": documents[0]["issued_at"], "used": True}})
    shop.db.vouchers.delete_one({"_id": wanted[1]})
    outcome = shop.run("verify")
    assert outcome.status == 1
    assert f"{wanted[1]}: published, and not in MongoDB" in outcome.stdout
    assert f"{wanted[0]}: valid_until: stored" in outcome.stdout
    assert shop.run("replay", "--keep-tables").status == 0
    assert list(shop.db.vouchers.find().sort("_id", 1)) == [{**documents[0], "used": True}, *documents[1:]]
    assert (stored(shop), published(shop)) == (wanted, wanted)
    shop.agrees()
    assert shop.run("replay").status == 0
    assert (stored(shop), published(shop)) == (wanted, wanted)
    shop.db.client.drop_database(shop.name)
    assert shop.run("replay").status == 0
    assert (stored(shop), published(shop)) == (wanted, wanted)
    assert list(shop.db.vouchers.find().sort("_id", 1)) == documents
    assert worker.stop() == 0
    # After the replays the windows are as if each purchase had been read once: new purchases get the right vouchers.
    worker = shop.start_worker(port=worker.port).ready()
    more = [
        purchase(f"c{n}", purchase_id=f"more-{n}", price=900, purchased_at="2024-06-29T10:00:00Z") for n in range(40)
    ]
    shop.sell(*more)
    shop.drain()
    wanted = earned([*events, *more], customers)
    assert (stored(shop), published(shop)) == (wanted, wanted)
    assert worker.stop() == 0


def test_vouchers_are_listed_and_rules_are_tried(shop: Shop, tmp_path: Any) -> None:
    """`try-promotion` finds as many vouchers as a rule gave, and publishes none."""
    worker = open_with_products(shop)
    events, customers = history(500), registrations()
    shop.register(*customers)
    shop.sell(*events)
    shop.drain()
    wanted = earned(events, customers)
    found = shop.run("list-vouchers", "--json").json()
    assert sorted(one["voucher_id"] for one in found) == wanted
    times = [one["issued_at"] for one in found]
    assert times == sorted(times, reverse=True)
    assert {one["customer_id"] for one in shop.run("list-vouchers", "--json", "--customer", "c1").json()} == {"c1"}
    (line,) = shop.run("list-vouchers", "--limit", "1").stdout.splitlines()
    assert " off " in line
    other = {"name": "other", "kind": "nth", "n": 10, "enabled": False, "voucher": {"text": "x", "percent": 1}}
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"promotions": [other]}))
    tried = shop.run_all([("try-promotion", rule["name"], "--json") for rule in RULES])
    for rule, outcome in zip(RULES, tried, strict=True):
        assert outcome.json()["vouchers"] == sum(name.startswith(f"{rule['name']}:") for name in wanted), rule["name"]
    tenth = sum(name.startswith("tenth:") for name in wanted)
    line = shop.run("try-promotion", "other", "--config-file", str(path)).stdout
    assert line.startswith(f"other: {tenth} vouchers for {tenth} customers")
    refused = shop.run("try-promotion", "none")
    assert refused.status == 2
    assert "there are: bread, big-week, tenth, welcome" in refused.stderr
    assert (stored(shop), published(shop)) == (wanted, wanted)
    assert worker.stop() == 0


def test_without_rules_there_is_no_window_and_no_voucher(open_shop: OpenShop) -> None:
    """Without rules no window and no voucher is written. A wrong rule is refused before the worker starts."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        shop.sell(*history(100))
        shop.drain()
        ends = shop.ends()
        assert ends[shop.topic("vouchers")] == ends[f"{shop.name}-customer_windows-changelog"] == 0
        assert shop.run("list-vouchers").stdout == "Vouchers: none yet.\n"
        assert worker.stop() == 0
        wrong = shop.run("worker", promotions=json.dumps([{**RULES[0], "days": 0}]))
        assert wrong.status != 0
        assert "SHOPFLOW_PROMOTIONS (promotions[0].days (rule bread)): must be 1 to 366" in wrong.stderr
