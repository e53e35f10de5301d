"""A shop that moves into topics with more partitions takes all with it, and nothing twice, whatever is killed."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Json, Outcome, Record, Shop, Worker, becomes, customer, encoded, product, purchase, until

pytestmark = [pytest.mark.servers, pytest.mark.slow]

MORE = 7
RULES: list[Json] = [
    {"name": "third", "kind": "nth", "n": 3, "voucher": {"text": "any", "amount": 500}},
    {"name": "welcome", "kind": "city", "cities": ["Łódź"], "voucher": {"text": "any", "amount": 1_000}},
]
SETTINGS: Json = {"promotions": json.dumps(RULES), "batching_product_wait_seconds": 0.1}


@pytest.fixture
def old(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with vouchers, whose purchases wait only 0.1 s for their products."""
    with open_shop(**SETTINGS) as shop:
        yield shop


@pytest.fixture
def new(open_shop: OpenShop) -> Iterator[Shop]:
    """An empty shop with more partitions, on the same servers."""
    with open_shop(**SETTINGS, topics_partitions=MORE) as shop:
        yield shop


def copy(old: Shop, new: Shop, *more: str, **settings: Any) -> Outcome:
    """Run `repartition`."""
    return new.run("repartition", "--from-app-id", old.name, "--from-prefix", old.topic(""), *more, **settings)


def sums(worker: Worker) -> Json:
    """The counts of all partitions together."""
    return {name: value for name, value in worker.counts().items() if name != "partitions"}


def documents(shop: Shop, collection: str) -> list[Json]:
    """The collection without the places in Kafka, by id."""
    return list(shop.db[collection].find({}, {"source": 0}).sort("_id"))


def letters(shop: Shop) -> list[tuple[Any, ...]]:
    """The dead letters: key, reason, time, and whether they were retried."""
    found = shop.run("dead-letters", "list", "--json").json()
    return sorted((str(one["key"]), one["reason"], one["time"], bool(one["put_back"])) for one in found)


def orders(shop: Shop) -> dict[bytes, list[bytes]]:
    """The purchases of each key, in the topic's order."""
    found = defaultdict(list)
    for record in shop.read("purchases"):
        found[record.key].append(record.value)
    return found


def purchases(count: int, seed: int) -> list[Json]:
    """Purchases of 40 customers. Some have no price; of these, some are of a product that is not offered yet."""
    rng = random.Random(seed)
    events = []
    for _ in range(count):
        event = purchase(f"c{rng.randrange(40)}", product_id="mleko", quantity=rng.randint(1, 3))
        if rng.random() < 0.4:
            del event["price"]
            event["product_id"] = rng.choice(["mleko", "mleko", "chleb"])
        events.append(event)
    return [*events, *rng.sample(events, count // 20)]  # some are sent twice


def test_a_shop_moves_with_all_it_has(old: Shop, new: Shop) -> None:
    """Counts, documents, prices, dead letters with their retries, vouchers, and each customer's order are the same.

    What the old workers rejected stays rejected, though its product is known by now.
    """
    seed = random.SystemRandom().randrange(10**9)
    print("seed", seed)
    worker = old.start_worker().ready()
    old.offer(product("mleko"))
    old.register(*(customer(f"c{number}", city=("Łódź", "Gdynia")[number % 2]) for number in range(40)))
    old.drain()
    old.sell(*purchases(300, seed))
    old.send("purchases", Record(b"c1", b"no JSON", headers=(("from", b"x"),)), Record(None, encoded(purchase("c2"))))
    for foreign in ("purchase-prices", "retries"):
        old.send(foreign, Record(b"c1", b"another program's"), Record(b"c2", b"{}"), Record(b"\xff", None))
    old.drain()
    old.offer(product("chleb"), product("mleko", price=500, updated_at="2024-01-02T00:00:00Z"))
    old.drain()
    rejected = old.run("dead-letters", "list", "--json").json()
    assert len(rejected) > 5
    counted = sums(worker)["purchases"]
    assert old.run("dead-letters", "retry", rejected[0]["id"]).status == 0
    becomes(lambda: sums(worker)["purchases"], counted + 1)
    until(lambda: copy(old, new).status == 0, "all is copied")

    worker.stop()
    old.sell(*purchases(50, seed + 1))
    waits = copy(old, new)
    assert waits.status == 1
    assert "events wait for the workers of" in waits.stdout
    worker = old.start_worker().ready()
    until(lambda: copy(old, new).stdout.startswith("0 records were copied.\nAll that "), "all is copied")
    old.agrees()

    moved = new.start_worker().ready(MORE)
    becomes(lambda: sums(moved), sums(worker))
    becomes(lambda: letters(new), letters(old))
    refused = copy(old, new)
    assert (refused.status, refused.errors) == (
        2,
        [f"Error: app_id: workers of {new.name} run; stop them until the copy is done"],
    )
    new.agrees()
    assert new.run("verify", "--deep").status == 0
    for name in ("products", "customers", "purchases", "vouchers"):
        assert documents(new, name) == documents(old, name), name
    assert orders(new) == orders(old)
    assert len({record.partition for record in new.read("purchases")}) == MORE
    assert sorted(record.value for record in new.read("vouchers")) == sorted(r.value for r in old.read("vouchers"))


def test_a_copy_that_is_killed_goes_on(old: Shop, new: Shop) -> None:
    """Each record is copied once, though two copies were killed in the middle."""
    worker = old.start_worker().ready()
    old.sell(*(purchase(f"c{number % 500}") for number in range(20_000)))
    old.drain()
    worker.stop()
    for some in (1, 8_000):
        process = new.spawn("repartition", "--from-app-id", old.name, "--from-prefix", old.topic(""))
        until(lambda: new.ends().get(new.topic("purchases"), 0) > some, "some are copied", 60)  # noqa: B023
        process.kill()
    assert copy(old, new).status == 0
    assert orders(new) == orders(old)


def test_what_can_not_be_copied_is_refused(old: Shop, new: Shop) -> None:
    """A shop that is not there, this shop itself, its database, and purchases that Kafka no longer has."""
    assert new.run("repartition", "--from-app-id", "x", "--from-prefix", "nope.").errors == [
        "Error: --from-prefix: there is no topic nope.purchases"
    ]
    old.start_worker().ready()
    (first, *_) = old.sell(*(purchase("c1") for _ in range(5)))
    old.drain()
    same = "Error: app_id, topics.prefix: must be others than those of the shop that is copied"
    assert copy(old, old).errors == [same]
    (error,) = copy(old, new, mongodb_database=old.name).errors
    assert error.startswith("Error: mongodb.database: has purchases of the shop that is copied")
    old.remove("purchases", first.partition, first.offset + 2)
    becomes(lambda: copy(old, new).status, 2)
    (error,) = copy(old, new).errors
    assert "3 of 5 counted" in error
    assert copy(old, new, "--lose-counts").status == 0
    assert len(new.read("purchases")) == 3
