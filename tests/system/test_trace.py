"""`trace` on real servers: one purchase through the shop, whatever became of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Json, Record, Shop, Worker, encoded, product, purchase, until

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop in which purchases wait only 0.1 s for their products, and the second of a customer earns a voucher."""
    rule = {"name": "second", "kind": "nth", "n": 2, "voucher": {"text": "any", "percent": 5}}
    with open_shop(batching_product_wait_seconds=0.1, promotions=json.dumps([rule])) as shop:
        yield shop


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    return shop.start_worker().ready()


def traced(shop: Shop, event: Json, *options: str) -> Json:
    """What `trace --json` prints. Its status is 1 if it does not know where the purchase is."""
    done = shop.run("trace", event["purchase_id"], "--json", *options)
    found: Json = json.loads(done.stdout)
    assert (done.status, done.stderr) == (found["state"] in {"lost", "unknown"}, "")
    return found


def step(found: Json, name: str) -> Json:
    """The only step with this name."""
    (one,) = (step for step in found["steps"] if step["name"] == name)
    return one  # type: ignore[no-any-return]


def test_a_purchase_is_followed_through_every_step(shop: Shop, worker: Worker) -> None:
    """The steps have record, batch, price with its origin, counts before and after, voucher, alert, and the repeat."""
    offered = product(price=250, stock=2, stock_limit=1)
    shop.offer(offered)
    until(lambda: shop.db.products.find_one({"_id": offered["product_id"]}), "the product is stored")
    first = purchase(quantity=3, price=100)
    event = {**purchase(first["customer_id"], quantity=2, product_id=offered["product_id"])}
    del event["price"]
    shop.sell(first)
    until(lambda: shop.stored(first), "the first is stored")
    key, parent = event["customer_id"].encode(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    (origin,) = shop.send("purchases", Record(key, encoded(event), headers=(("traceparent", parent.encode()),)))
    until(lambda: shop.stored(event), "it is stored")
    (again,) = shop.sell(event)
    shop.drain()
    given = until(lambda: shop.db.alerts.find_one({"product_id": offered["product_id"]}), "there is an alert")
    found = traced(shop, event)
    assert (found["state"], found["verdict"]) == ("stored", "It is stored once and counted once")
    assert (found["customer_id"], found["product_id"]) == (event["customer_id"], offered["product_id"])
    in_kafka = step(found, "in Kafka")
    assert in_kafka["facts"] == {**origin._asdict(), "traceparent": parent}
    assert in_kafka["time"]
    assert step(found, "batch")["facts"] == {"first": origin.offset, "last": origin.offset}
    assert step(found, "price")["facts"] == {"price": 250, "from": "price in force"}
    assert step(found, "price")["seconds"] >= 0
    counts = step(found, "count")
    assert counts["facts"]["before"] == {"purchases": 1, "items": 3, "spent": 300}
    assert counts["facts"]["after"] == {"purchases": 2, "items": 5, "spent": 800}
    assert counts["text"].endswith("from the changelog")
    assert counts["time"] >= in_kafka["time"]
    (earned,) = shop.db.vouchers.find({"customer_id": event["customer_id"]})
    voucher = step(found, "voucher")
    assert voucher["facts"] == {"voucher_id": earned["_id"]}
    assert voucher["time"] >= in_kafka["time"]
    assert "second: 5% off any" in voucher["text"]
    assert step(found, "alert")["facts"] == {"alert_id": given["_id"]}
    assert "0 left of 2" in step(found, "alert")["text"]
    assert [one["name"] for one in traced(shop, first)["steps"] if one["name"].startswith("voucher")] == ["vouchers"]
    assert step(found, "repeats")["facts"] == {"offsets": [again.offset]}
    before = step(traced(shop, first), "count")
    assert before["facts"]["after"] == {"purchases": 1, "items": 3, "spent": 300}
    assert step(traced(shop, first), "price")["facts"]["from"] == "event"
    for_people = shop.run("trace", event["purchase_id"])
    assert for_people.stdout.startswith(f"Purchase {event['purchase_id']}: It is stored once and counted once.\n")
    assert (
        "purchases 1 → 2, items 3 → 5, spent 3,00\N{NO-BREAK SPACE}zł → 8,00\N{NO-BREAK SPACE}zł; from the changelog"
        in for_people.stdout
    )


def test_a_rejected_purchase_is_followed_to_its_retry(shop: Shop, worker: Worker) -> None:
    """Rejected, then retried and stored: both are told, with the dead letter's id."""
    offered = product()
    event = purchase(
        "c-again", product_id=offered["product_id"]
    )  # a retry leaves a marker in its partition, where "c-waits" is not
    del event["price"]
    shop.sell(event)
    found = until(lambda: now if (now := traced(shop, event))["state"] == "rejected" else None, "rejected")
    letter = step(found, "rejected")
    assert "unknown product" in found["verdict"]
    assert letter["facts"]["reason"].startswith("unknown product")
    shop.offer(offered)
    until(lambda: shop.db.products.find_one({"_id": offered["product_id"]}), "the product is stored")
    assert shop.run("dead-letters", "retry", letter["letter"]).status == 0
    counted = "It is stored once and counted once"
    found = until(lambda: now if (now := traced(shop, event))["verdict"] == counted else None, "it is counted")
    assert [step(found, name)["letter"] for name in ("rejected", "retried")] == [letter["letter"]] * 2
    assert step(found, "retried")["text"].endswith("which is stored")
    assert step(found, "in Kafka")["facts"]["offset"] == step(found, "retried")["facts"]["offset"]


def test_what_waits_and_what_nobody_knows_is_told(shop: Shop, worker: Worker) -> None:
    """Without a worker a purchase waits, behind those before it; an unknown id is not found."""
    assert worker.stop() == 0
    events = [purchase("c-waits") for _ in range(3)]
    origins = shop.sell(*events)
    found = traced(shop, events[2])
    assert found["state"] == "waiting"
    assert found["verdict"].endswith("2 offsets of its partition come before it")
    assert step(found, "in Kafka")["facts"] == origins[2]._asdict()
    nothing = traced(shop, purchase(), "--search", "7")
    assert (nothing["state"], nothing["steps"]) == ("unknown", [])
    assert "the last 7 records" in " ".join(nothing["searched"])
    away = shop.run("trace", "b-1", broker="kafka://127.0.0.1:1")
    assert (away.status, len(away.errors)) == (1, 1)
    assert away.errors[0].startswith("Error: Kafka: ")
