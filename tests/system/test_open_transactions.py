"""A producer leaves a transaction open: records behind it wait, are reported with the reason, and are stored later."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import pytest

from shopflow.kafka.held import PATIENCE_SECONDS
from tests.conftest import OpenShop
from tests.support.shop import Json, Record, Shop, Worker, becomes, encoded, product, purchase, until
from tests.support.transactional import Transactional, transactional
from tests.system.test_health import lag, scraped

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def producer(shop: Shop, stack: ExitStack, name: str, seconds: float = 300.0) -> Transactional:
    """A producer with an open transaction; its transactional id begins with the shop's name."""
    assert shop.servers
    made = stack.enter_context(transactional(shop.servers.kafka, f"{shop.name}-{name}", seconds))
    made.begin()
    return made


def reasons(worker: Worker) -> list[str]:
    """Why the worker is not ready; empty if it is ready."""
    status, answer = worker.get("/health/ready")
    assert status in {200, 503}, answer
    return answer["reasons"] if status == 503 else []


def of_partition(found: dict[str, Any], metric: str, topic: str, number: int) -> float:
    value: float = found[metric][("partition", str(number)), ("topic", topic)]
    return value


def page(worker: Worker) -> Json:
    answer: Json = worker.get("/page/data.json")[1]
    return answer


def test_each_open_transaction_is_told_of_and_nothing_behind_it_is_lost(open_shop: OpenShop) -> None:
    """Open transactions on four partitions are reported until they end.

    They are at a partition's start, in its middle, in a compacted topic, and in a topic that only workers write. One is
    committed, two are aborted, and one is aborted by Kafka when its time is over.
    """
    with open_shop() as shop, ExitStack() as stack:
        worker = shop.start_worker().ready()
        purchases, products = shop.topic("purchases"), shop.topic("products")
        shop.send("purchases", *(Record(b"bob", encoded(purchase("bob")), 1) for _ in range(5)))
        shop.drain()
        until(lambda: not reasons(worker), "the worker is ready")
        committed, aborted = producer(shop, stack, "orders"), producer(shop, stack, "returns")
        left, foreign = producer(shop, stack, "offers", 50), producer(shop, stack, "stranger")
        theirs, dropped, behind = purchase("anna"), purchase("anna"), [purchase("anna") for _ in range(20)]
        committed.send(purchases, 0, encoded(theirs), key=b"anna")
        committed.send(purchases, 0, *map(encoded, behind[:10]), key=b"anna")
        aborted.send(purchases, 1, encoded(dropped), key=b"anna")
        milk = product("milk")
        left.send(products, 2, encoded(product("juice")), key=b"juice")
        foreign.send(shop.topic("purchase-prices"), 3, b"?")
        shop.send("purchases", *(Record(b"anna", encoded(event), 1) for event in behind[10:]))
        shop.send("products", Record(b"milk", encoded(milk), 2))
        began = time.monotonic()

        until(lambda: len(reasons(worker)) == 3, "the worker reports the transactions", 60)
        assert time.monotonic() - began > PATIENCE_SECONDS / 2
        said = "\n".join(reasons(worker))
        assert f"11 offsets of {purchases}[0] are held up since " in said
        assert f"11 offsets of {purchases}[1] are held up since " in said
        assert f"2 offsets of {products}[2] are held up since " in said
        for name in ("orders", "returns", "offers"):
            assert f"by an open transaction of the producer {shop.name}-{name}; look after that producer" in said
        assert worker.get("/health/live")[0] == 200
        found = scraped(worker)
        assert of_partition(found, "shopflow_consumer_lag_records", purchases, 1) == 11
        assert of_partition(found, "shopflow_end_offset", purchases, 1) == 5
        assert of_partition(found, "shopflow_high_watermark_offset", purchases, 1) == 16
        kinds = {dict(labels)["subject"]: dict(labels)["stops"] for labels in found["shopflow_trouble_seconds"]}
        assert kinds == {
            f"{purchases}[0]": "true",
            f"{purchases}[1]": "true",
            f"{products}[2]": "true",
            f"{shop.topic('purchase-prices')}[3]": "false",
        }
        shown = page(worker)
        assert shown["level"] == "bad"
        assert shown["numbers"]["Events waiting"] == "24"
        assert f"by an open transaction of the producer {shop.name}-stranger" in str(shown["sentences"])
        outcome = shop.run("verify")
        assert outcome.status == 1
        (line,) = [line for line in outcome.stdout.splitlines() if " lag: " in line]
        assert line.startswith("NOT lag: 24 events wait in Kafka; ")
        for name in ("orders", "returns", "stranger"):
            assert f"of the producer {shop.name}-{name}" in line

        left.leave()  # Kafka aborts it
        committed.commit()
        aborted.abort()
        foreign.abort()
        until(lambda: not reasons(worker), "the worker is ready again", 90)
        until(lambda: all(map(shop.stored, [theirs, *behind])), "all of them are stored")
        becomes(lambda: lag(worker), 0)
        assert shop.stored(dropped) is None
        assert {one["_id"] for one in shop.db.products.find()} == {"milk"}
        until(lambda: not any(dict(scraped(worker).get("shopflow_trouble_seconds", {}))), "no trouble is left")
        shop.agrees()
        assert "It is over after" in worker.output


def test_a_producer_that_commits_each_second_raises_no_alarm(open_shop: OpenShop) -> None:
    """Some transaction is open for longer than the patience, but each time another one."""
    with open_shop() as shop, ExitStack() as stack:
        worker = shop.start_worker().ready()
        until(lambda: not reasons(worker), "the worker is ready")
        sender, sold, held = producer(shop, stack, "orders"), [], 0.0
        deadline = time.monotonic() + 2.5 * PATIENCE_SECONDS
        while time.monotonic() < deadline:
            event = purchase("anna")
            sender.send(shop.topic("purchases"), 0, encoded(event), key=b"anna")
            sold.append(event)
            time.sleep(1)
            found = scraped(worker)
            held = max(held, *found.get("shopflow_consumer_lag_records", {"": 0}).values())
            assert reasons(worker) == []
            assert "shopflow_trouble_seconds" not in found
            assert page(worker)["sentences"] == []
            sender.commit()
            sender.begin()
        assert held > 0
        sender.abort()
        until(lambda: all(map(shop.stored, sold)), "all of them are stored")
        shop.agrees()
