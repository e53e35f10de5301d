"""What becomes of a batch: its good records, its bad records, and the order of the steps."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from faust_batches import TOTALS_KEY, once
from faust_batches import outage as outages
from faust_batches.testing import FakeBatch
from shopflow.errors import PartitionLost, Unavailable
from shopflow.shop import failure_limit as limits
from shopflow.shop import prices as module
from shopflow.shop.counts import new_era_totals
from shopflow.shop.failure_limit import Limit
from tests.support import documents
from tests.support.documents import HOUR, NOON
from tests.support.events import customer, product, purchase, record, unpriced
from tests.support.fake_shop import FakeShop
from tests.support.fakes import FakeRecord

#: A record's timestamp, in milliseconds.
ONE_PM = int((NOON + HOUR).timestamp() * 1000)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for MongoDB or Kafka takes no time."""
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0)


@pytest.fixture
def shop() -> FakeShop:
    """A shop without products, in which no purchase waits for one."""
    return FakeShop()


def test_the_order_of_the_steps_is_the_guarantee(shop: FakeShop) -> None:
    """Documents, dead letters, table, changelog. Then the batch is finished."""
    shop.handle(shop.batch(purchase("p1"), b"bad"))
    steps = ["prepare", "insert_purchases", "turn", "dead letter", "table", "changelog", "finished"]
    assert shop.events == steps
    assert shop.counts.changelog == list(shop.counts.rows[0].items())
    assert shop.counts.persisted == {0: len(shop.counts.changelog) - 1}


def test_a_purchase_is_a_document_of_the_contract_and_counted(shop: FakeShop) -> None:
    """The document has the contract's fields, the value and the source."""
    shop.handle(shop.batch(purchase("p1", unnamed={"x": 1}), start=7))
    source = documents.kafka(7, topic="shop.purchases")
    assert shop.store.collections["purchases"]["p1"] == documents.purchase("p1", source)
    assert shop.count() == (1, 2, 600)


BAD = {
    "not JSON": b"{",
    "no object": b"[]",
    "a missing field": {"purchase_id": "x", "customer_id": "anna"},
    "a wrong type": purchase("x", quantity="2"),
    "a quantity of 0": purchase("x", quantity=0),
    "a negative price": purchase("x", price=-1),
    "an empty id": purchase(""),
    "a long id": purchase("x" * 129),
    "a naive time": purchase("x", purchased_at="2026-05-01T12:00:00"),
    "too large": purchase("x", product_id="y" * 11_000),
    "a foreign key": FakeRecord(b"bob", json.dumps(purchase("x")).encode(), 1),
    "no key": FakeRecord(None, json.dumps(purchase("x")).encode(), 1),
    "no value": FakeRecord(b"anna", None, 1),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_record_is_a_dead_letter_and_its_neighbours_are_stored(shop: FakeShop, bad: Any) -> None:
    """A bad record never stops its batch."""
    batch = shop.batch(purchase("p1"), bad, purchase("p2"))
    shop.handle(batch)
    assert set(shop.store.collections["purchases"]) == {"p1", "p2"}
    assert shop.count() == (2, 4, 1200)
    ((_, key, value, partition, _),) = shop.outlet.got
    assert (key, value, partition) == (batch.records[1].key, batch.records[1].value, 0)
    assert shop.totals().rejected == 1


def test_a_purchase_sent_twice_is_counted_once(shop: FakeShop) -> None:
    """The totals count the second one as a duplicate, in the same batch or a later one."""
    shop.handle(shop.batch(purchase("p1"), purchase("p1")))
    shop.handle(shop.batch(purchase("p1"), start=2))
    assert shop.count() == (1, 2, 600)
    assert (shop.totals().purchases, shop.totals().duplicates) == (1, 2)


def test_a_batch_that_comes_again_changes_nothing(shop: FakeShop) -> None:
    """The batch may come again with other limits."""
    shop.handle(shop.batch(purchase("p1"), purchase("p2")))
    before = dict(shop.counts.rows[0])
    shop.handle(shop.batch(purchase("p1"), purchase("p2")))
    assert shop.counts.rows[0] == before
    shop.handle(shop.batch(purchase("p2"), purchase("p3"), start=1))
    assert shop.count() == (3, 6, 1800)


def test_a_purchase_without_a_price_gets_the_one_in_force(shop: FakeShop) -> None:
    """The time of the purchase decides, not the time when it is stored."""
    prices = [product(100, "2026-05-01T10:00:00Z"), product(200, "2026-05-01T13:00:00Z")]
    shop.handle(shop.batch(*prices, kind="products"), "products")
    shop.handle(shop.batch(unpriced("p1"), unpriced("p2", purchased_at="2026-05-01T15:00:00+02:00")))
    assert shop.count() == (2, 4, 2 * 100 + 2 * 200)


def test_a_purchase_of_an_unknown_product_waits_for_it(shop: FakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product may still be in the topic of the products."""
    shop = FakeShop(wait_seconds=30)
    monkeypatch.setattr(module, "_QUERY_AGAIN_SECONDS", 0)
    looks = 0
    look = shop.store.price_history

    async def learns_at_the_third(product_ids: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 3:
            await shop.store.upsert_products([documents.product(150, source=documents.DIRECT)])
        return await look(product_ids)

    monkeypatch.setattr(shop.store, "price_history", learns_at_the_third)
    shop.handle(shop.batch(unpriced("p1")))
    assert looks == 3
    assert shop.count() == (1, 2, 300)


def test_an_unknown_product_is_waited_for_once(shop: FakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the wait its purchases are dead letters at once, so that they don't hold up the partition again."""
    clock = [100.0]
    shop = FakeShop(wait_seconds=10)
    monkeypatch.setattr(module, "_QUERY_AGAIN_SECONDS", 0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.__setitem__(0, clock[0] + 4) or clock[0])
    shop.handle(shop.batch(unpriced("p1"), purchase("p2")))
    first = shop.events.count("price_history")
    assert first > 1
    shop.handle(shop.batch(unpriced("p3"), start=2))
    assert shop.events.count("price_history") == first + 1
    assert shop.reasons() == ["unknown product: product_id 'milk' was never offered, or is deleted"] * 2
    assert shop.count() == (1, 2, 600)


def test_what_was_stored_keeps_its_price(shop: FakeShop) -> None:
    """A worker died after it stored the purchase and before it counted it. Another price for that time came since."""
    shop.handle(shop.batch(product(100, "2026-05-01T10:00:00Z"), kind="products"), "products")
    shop.handle(shop.batch(unpriced("p1")))
    shop.counts.rows.clear()
    shop.handle(shop.batch(product(999, "2026-05-01T11:59:00Z"), start=1, kind="products"), "products")
    shop.handle(shop.batch(unpriced("p1")))
    assert shop.count() == (1, 2, 200)


def test_what_was_rejected_stays_rejected(shop: FakeShop) -> None:
    """A worker counted the batch and died before its commit. A purchase that is stored now would never be counted."""
    shop.handle(shop.batch(unpriced("p1"), purchase("p2")))
    shop.handle(shop.batch(product(100), kind="products"), "products")
    shop.handle(shop.batch(unpriced("p1"), purchase("p2")))
    assert set(shop.store.collections["purchases"]) == {"p2"}
    assert (shop.totals().purchases, shop.totals().rejected) == (1, 1)


def test_what_mongodb_refuses_is_a_dead_letter(shop: FakeShop) -> None:
    """A validator of the database may refuse a document. The other purchases of the batch are counted."""
    shop.store.refuses = lambda document: "forbidden" if document["_id"] == "p1" else None
    shop.handle(shop.batch(purchase("p0"), purchase("p1"), purchase("p2"), purchase("p2")))
    assert shop.reasons() == ["refused by MongoDB: forbidden"]
    assert shop.count() == (2, 4, 1200)
    assert (shop.totals().duplicates, shop.totals().rejected) == (1, 1)


@pytest.mark.parametrize("kind", ["products", "customers"])
def test_records_without_a_value_delete_in_the_order_of_the_log(shop: FakeShop, kind: str) -> None:
    """The product is offered, deleted and offered again in one batch."""
    event = product(100) if kind == "products" else customer("milk")
    tombstone = [FakeRecord(b"milk", None, offset, 0, f"shop.{kind}") for offset in range(6)]
    shop.handle(shop.batch(event, tombstone[1], kind=kind), kind)
    assert shop.store.collections[kind] == {}
    shop.handle(shop.batch(event, tombstone[3], event, start=2, kind=kind), kind)
    assert shop.store.collections[kind]["milk"]["source"]["offset"] == 4
    assert shop.outlet.got == []


def test_a_deletion_without_an_id_is_a_dead_letter(shop: FakeShop) -> None:
    """The key is missing, empty, too long or not UTF-8."""
    keys = (None, b"", b"\xff", b"x" * 129)
    records = [FakeRecord(key, None, offset, 0, "shop.products") for offset, key in enumerate(keys)]
    shop.handle(FakeBatch(records, shop.events), "products")
    assert len(shop.outlet.got) == 4


@pytest.mark.parametrize("timestamp", [10**15 * 2, 2**62])
def test_a_deletion_at_no_time_is_a_dead_letter(shop: FakeShop, timestamp: int) -> None:
    """A producer that writes microseconds as the timestamp does not stop the partition."""
    tombstone = FakeRecord(b"tea", None, 1, 0, "shop.products", timestamp=timestamp)
    shop.handle(shop.batch(product(100), tombstone, kind="products"), "products")
    assert list(shop.store.collections["products"]) == ["milk"]
    (letter,) = shop.outlet.got
    assert letter[1] == b"tea"
    assert b"is not a time" in dict(letter[4])["__connect.errors.exception.message"]


def test_a_partition_that_was_lost_while_dead_letters_were_sent_is_not_counted(shop: FakeShop) -> None:
    """Another worker may own the table by then."""

    class Lost(FakeBatch):
        """A batch that is lost as soon as there is a dead letter."""

        def check_owned(self) -> None:
            self.lost = "dead letter" in self.events
            super().check_owned()

    batch = Lost(shop.batch(purchase("p1"), b"no JSON").records, shop.events)
    with pytest.raises(PartitionLost):
        shop.handle(batch)
    assert "table" not in shop.events


def test_a_mongodb_outage_is_logged_once_and_waited_for(shop: FakeShop, caplog: pytest.LogCaptureFixture) -> None:
    """One line is logged when MongoDB goes, and one when it is back."""
    shop.store.away(5)
    with caplog.at_level(logging.WARNING):
        shop.handle(shop.batch(purchase("p1")))
    assert [entry.getMessage().split(";")[0].split(" after")[0] for entry in caplog.records] == [
        "MongoDB is away",
        "MongoDB is back",
    ]
    assert shop.count() == (1, 2, 600)


def test_waiting_for_mongodb_ends_with_the_loss_of_the_partition(shop: FakeShop) -> None:
    """The batch is neither given up nor written after the loss."""
    batch = shop.batch(purchase("p1"))
    batch.lost = True
    with pytest.raises(PartitionLost):
        shop.handle(batch)
    assert shop.events == []


def test_kafka_away_while_it_matters_is_waited_for(shop: FakeShop) -> None:
    """Dead letters and changelog records are sent again until Kafka acknowledges them."""
    shop.outlet.failures = [KafkaConnectionError("away")] * 2
    shop.counts.failures = [KafkaConnectionError("away")] * 2
    shop.handle(shop.batch(purchase("p1"), b"bad"))
    assert len(shop.outlet.got) == 1
    assert shop.events[-1] == "finished"


def test_more_unknown_products_than_are_remembered_do_not_wait_for_ever(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer may invent product ids. Forgotten deadlines must not make a purchase wait again and again."""
    shop = FakeShop(wait_seconds=0.01)
    monkeypatch.setattr(module, "_MAX_UNKNOWN_PRODUCTS", 3)
    batch = shop.batch(*(unpriced(f"p{number}", product_id=f"made-up-{number}") for number in range(8)))

    async def handle() -> None:
        await asyncio.wait_for(shop.worker.purchases(batch), 5)

    asyncio.run(handle())
    assert len(shop.outlet.got) == 8


def test_unknown_products_that_are_remembered_take_bounded_memory(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest of too many unknown products are forgotten."""
    monkeypatch.setattr(module, "_MAX_UNKNOWN_PRODUCTS", 3)
    for number in range(20):
        shop.handle(shop.batch(unpriced(f"p{number}", product_id=f"made-up-{number}"), start=number))
    assert len(shop.worker.prices._unknown) <= 3


class LostAfter(FakeBatch):
    """A batch that is lost as soon as this step is done."""

    step = ""

    def check_owned(self) -> None:
        self.lost |= self.step in self.events
        super().check_owned()


@pytest.mark.parametrize("step", ["price_history", "insert_purchases"])
def test_a_batch_that_was_lost_touches_no_table(shop: FakeShop, step: str) -> None:
    """A lost batch sends no dead letters either: the partition's next owner handles the whole batch."""
    shop.handle(shop.batch(product(100), kind="products"), "products")
    del shop.events[:]
    batch = LostAfter(shop.batch(unpriced("p1"), b"bad").records, shop.events)
    batch.step = step
    with pytest.raises(PartitionLost):
        shop.handle(batch)
    assert not {"dead letter", "table", "changelog", "finished"} & set(shop.events)


def test_a_batch_that_was_lost_while_its_rows_were_under_way_does_not_touch_the_table(shop: FakeShop) -> None:
    """The partition's database may be closed, or opened again for a successor in the same process."""
    batch = shop.batch(purchase("p1"))
    publish = shop.counts._publish

    async def loses(rows: Sequence[tuple[bytes, bytes]]) -> None:
        batch.lost = True
        await publish(rows)

    shop.counts._publish = loses  # type: ignore[method-assign]
    with suppress(PartitionLost):
        shop.handle(batch)
    assert shop.counts.persisted == {}


def test_waiting_for_kafka_ends_with_the_loss_of_the_partition(shop: FakeShop) -> None:
    """A dead letter that can't be sent does not hold up a rebalance."""
    batch = shop.batch(b"bad")

    async def loses(*args: Any) -> Any:
        batch.lost = True
        raise KafkaConnectionError("away")

    shop.worker.dead_letters._send = loses
    with pytest.raises(PartitionLost):
        shop.handle(batch)
    assert "table" not in shop.events


def test_what_comes_before_a_deletion_is_written_before_it(shop: FakeShop) -> None:
    """Events after the deletion are written after it. Dead letters are sent last."""
    tombstone = FakeRecord(b"milk", None, 1, 0, "shop.products")
    shop.handle(shop.batch(product(100), tombstone, product(100), b"bad", kind="products"), "products")
    writes = ["upsert_products", "delete_products", "upsert_products"]
    assert shop.events == ["prepare", *writes, "turn", "dead letter", "finished"]


@pytest.mark.parametrize("kind", ["products", "customers"])
def test_refused_products_and_customers_are_dead_letters(shop: FakeShop, kind: str) -> None:
    """The others are written. Dead letters are in the order of the log."""
    events = [product(1, name=n) if kind == "products" else customer(n) for n in ("a", "b", "c")]
    shop.store.refuses = lambda document: "forbidden" if document["_id"] == "b" else None
    batch = shop.batch(*events, b"bad", kind=kind)
    shop.handle(batch, kind)
    assert set(shop.store.collections[kind]) == {"a", "c"}
    assert [key for _, key, *_ in shop.outlet.got] == [b"b", batch.records[3].key]  # in the order of the log


def test_dead_letters_are_logged_once_per_reason(shop: FakeShop, caplog: pytest.LogCaptureFixture) -> None:
    """A line for each record would fill the disk after a bad deployment."""
    with caplog.at_level(logging.WARNING):
        shop.handle(shop.batch(b"{", b"}", purchase("x", quantity=0), purchase("p1")))
    assert [entry.getMessage() for entry in caplog.records] == [
        "2 record(s) of shop.purchases became dead letters: not JSON",
        "1 record(s) of shop.purchases became dead letters: invalid event",
    ]


def test_a_purchase_that_is_worth_too_much_at_its_products_price_is_a_dead_letter(shop: FakeShop) -> None:
    """The value is known only with the price. Sums of such values would not be exact."""
    shop.handle(shop.batch(product(10**12), kind="products"), "products")
    shop.handle(shop.batch(unpriced("p1"), unpriced("p2", quantity=1)))
    assert set(shop.store.collections["purchases"]) == {"p2"}
    assert shop.reasons() == ["invalid event: quantity times price is over 1000000000000 grosze"]


def test_a_purchase_sent_twice_by_two_customers_is_the_first_ones(shop: FakeShop) -> None:
    """The second one is a duplicate, and not counted for its customer."""
    shop.handle(shop.batch(purchase("p1"), purchase("p1", customer_id="bob")))
    assert (shop.count("anna"), shop.count("bob")) == ((1, 2, 600), (0, 0, 0))
    assert shop.totals().duplicates == 1


STEPS = ("prepare", "purchase_prices", "price_history", "insert_purchases", "upsert_products", "delete_products")


@pytest.mark.parametrize("step", STEPS)
def test_mongodb_may_go_at_any_step(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    """The failed step is repeated, and no step is left out. The outage is logged once, and so is its end."""
    failures = [Unavailable("MongoDB", "away")] * 3
    call = getattr(shop.store, step)

    async def fails_at_first(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await call(*args)

    monkeypatch.setattr(shop.store, step, fails_at_first)
    gone = FakeRecord(b"tea", None, 1, 0, "shop.products")
    with caplog.at_level(logging.WARNING):
        shop.handle(shop.batch(product(100), gone, kind="products"), "products")
        shop.handle(shop.batch(unpriced("p1"), purchase("p2")))
    assert [entry.getMessage().split()[2] for entry in caplog.records] == ["away;", "back"]
    assert shop.count() == (2, 4, 800)
    assert {name: shop.events.count(name) for name in STEPS} == dict.fromkeys(STEPS, 1)


class LostAtCheck(FakeBatch):
    """A batch that is lost at its sixth check."""

    checks = 6

    def check_owned(self) -> None:
        self.checks -= 1
        self.lost |= self.checks <= 0
        super().check_owned()


def test_a_loss_while_mongodb_is_away_ends_the_waiting(shop: FakeShop, caplog: pytest.LogCaptureFixture) -> None:
    """A rebalance does not wait for MongoDB."""
    shop.store.away(1000)
    with caplog.at_level(logging.WARNING), pytest.raises(PartitionLost):
        shop.handle(LostAtCheck(shop.batch(purchase("p1"), b"bad").records, shop.events))
    assert [entry.getMessage().split(";")[0] for entry in caplog.records] == ["MongoDB is away"]
    assert shop.events == []
    assert shop.outlet.got == []


def test_a_loss_while_a_product_is_waited_for_ends_the_waiting(shop: FakeShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebalance does not wait for a product."""
    shop = FakeShop(wait_seconds=3600)
    monkeypatch.setattr(module, "_QUERY_AGAIN_SECONDS", 0)
    batch = LostAtCheck(shop.batch(unpriced("p1")).records, shop.events)

    async def handle() -> None:
        await asyncio.wait_for(shop.worker.purchases(batch), 10)

    with pytest.raises(PartitionLost):
        asyncio.run(handle())
    assert not {"insert_purchases", "dead letter", "table"} & set(shop.events)


def test_a_kafka_outage_is_logged_once_and_the_table_written_once(
    shop: FakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the send that failed is repeated. Nobody may read the counts between two writes."""
    shop.outlet.failures = [KafkaConnectionError("away")] * 3
    shop.counts.failures = [KafkaConnectionError("away")] * 3
    with caplog.at_level(logging.WARNING):
        shop.handle(shop.batch(purchase("p1"), b"bad"))
    said = [entry.getMessage() for entry in caplog.records]
    assert [line.partition(" is ")[2][:4] for line in said if line.startswith("Kafka")] == ["away", "back"] * 2
    assert shop.events.count("table") == shop.events.count("changelog") == 1


def test_duplicates_and_bad_records_that_come_again_are_in_the_sums_once(shop: FakeShop) -> None:
    """`verify` compares the sum of the totals with the number of records sent."""
    for _ in range(2):
        shop.handle(shop.batch(purchase("p1"), purchase("p1"), b"bad", purchase("p2")))
    totals = shop.totals()
    assert (totals.purchases, totals.duplicates, totals.rejected) == (2, 1, 1)
    assert shop.count() == (2, 4, 1200)


def test_a_batch_of_bad_records_only_is_finished(shop: FakeShop) -> None:
    """MongoDB gets no request. The totals count the bad records."""
    shop.handle(shop.batch(b"bad", b"bad"))
    assert "insert_purchases" not in shop.events
    assert shop.events[-1] == "finished"
    assert (shop.totals().purchases, shop.totals().rejected) == (0, 2)


def test_each_id_has_its_own_deletions(shop: FakeShop) -> None:
    """One product ends deleted, one is offered after its deletion, one is never deleted."""

    def gone(name: str, offset: int) -> FakeRecord:
        return FakeRecord(name.encode(), None, offset, 0, "shop.products")

    events = [
        gone("milk", 0),
        product(1),
        gone("milk", 2),
        gone("tea", 3),
        product(2, name="tea"),
        product(3, name="x"),
    ]
    shop.handle(shop.batch(*events, kind="products"), "products")
    assert {name: one["price"] for name, one in shop.store.collections["products"].items()} == {"tea": 2, "x": 3}


def test_a_deleted_product_has_its_price_until_then(shop: FakeShop) -> None:
    """A purchase from before the deletion gets the price. One from after it is a dead letter."""
    gone = FakeRecord(b"milk", None, 1, 0, "shop.products", timestamp=ONE_PM)
    shop.handle(shop.batch(product(100, "2026-05-01T10:00:00Z"), gone, kind="products"), "products")
    shop.handle(shop.batch(unpriced("p1"), unpriced("p2", purchased_at="2026-05-01T14:00:00Z")))
    assert set(shop.store.collections["purchases"]) == {"p1"}
    assert shop.reasons() == ["unknown product: product_id 'milk' was never offered, or is deleted"]


def test_a_product_that_was_known_in_between_is_waited_for_again(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product was unknown, then offered, then deleted. The deadline of the first wait is forgotten."""
    clock = [100.0]
    shop = FakeShop(wait_seconds=10)
    monkeypatch.setattr(module, "_QUERY_AGAIN_SECONDS", 0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.__setitem__(0, clock[0] + 4) or clock[0])
    shop.handle(shop.batch(unpriced("p1")))
    shop.handle(shop.batch(product(100, "2026-05-01T10:00:00Z"), kind="products"), "products")
    shop.handle(shop.batch(unpriced("p2"), start=1))
    shop.handle(shop.batch(FakeRecord(b"milk", None, 1, 0, "shop.products", timestamp=ONE_PM)), "products")
    looks = shop.events.count("price_history")
    shop.handle(shop.batch(unpriced("p3", purchased_at="2026-05-01T14:00:00Z"), start=2))
    assert shop.events.count("price_history") > looks + 1
    assert set(shop.store.collections["purchases"]) == {"p2"}


def test_a_price_stays_when_mongodb_is_dropped_and_the_product_was_offered_again(shop: FakeShop) -> None:
    """A replay takes the price from the price log, whatever the product's history says now."""
    shop.handle(shop.batch(product(300), kind="products"), "products")
    shop.handle(shop.batch(unpriced("p0"), purchase("p1", price=7), unpriced("p2")))
    for stored in shop.store.collections.values():
        stored.clear()
    shop.worker.rebalance()
    shop.handle(shop.batch(product(999), start=1, kind="products"), "products")
    shop.handle(shop.batch(unpriced("p0"), purchase("p1", price=7), unpriced("p2")))
    assert {name: one["price"] for name, one in shop.store.collections["purchases"].items()} == {
        "p0": 300, "p1": 7, "p2": 300,
    }  # fmt: skip
    assert shop.count() == (3, 6, 1214)
    assert len(shop.price_log) == 1, "what is there is not added again"
    assert shop.outlet.got == []


def letters_of(shop: FakeShop) -> Callable[..., Awaitable[list[Any]]]:
    """Reads the shop's dead letters."""

    async def there(topic: str, partition: int, since: int, *, of: Callable[[Any], Any]) -> list[Any]:
        return [of(FakeRecord(key, value, n, where, topic, headers=tuple(headers)))
                for n, (topic, key, value, where, headers) in enumerate(shop.outlet.got)]  # fmt: skip

    return there


def replay(shop: FakeShop, keep_mongodb: bool, **options: Any) -> None:
    """Restart the worker with other options, and count everything again."""
    shop.restart(**options)
    shop.worker.dead_letters._read_since = letters_of(shop)
    if not keep_mongodb:
        for stored in shop.store.collections.values():
            stored.clear()
    shop.counts.rows[0] = {TOTALS_KEY: new_era_totals(0, now=0)}


LARGE = purchase("p1", unnamed="x" * 11_000)


@pytest.mark.parametrize("keep_mongodb", [True, False])
@pytest.mark.parametrize("why", ["size", "MongoDB"])
def test_what_was_rejected_is_rejected_again_though_it_would_be_accepted_now(why: str, keep_mongodb: bool) -> None:
    """Else it were in MongoDB and in the dead letters. `dead-letters retry` accepts it."""
    shop = FakeShop()
    shop.store.refuses = lambda document: "forbidden" if document["_id"] == "p1" and why == "MongoDB" else None
    sent = [purchase("p0"), LARGE if why == "size" else purchase("p1"), b"bad"]
    shop.handle(shop.batch(*sent))
    shop.store.refuses = lambda document: None
    replay(shop, keep_mongodb, max_event_bytes=100_000)
    shop.handle(shop.batch(*sent, purchase("p3")))
    assert set(shop.store.collections["purchases"]) == {"p0", "p3"}
    assert len(shop.reasons()) == 2
    assert (shop.totals().purchases, shop.totals().rejected) == (2, 2)
    shop.handle(shop.batch(LARGE, start=4))
    assert shop.totals().purchases == 3


@pytest.mark.parametrize("why", ["size", "MongoDB"])
def test_what_was_accepted_is_accepted_again_though_it_would_be_rejected_now(why: str) -> None:
    """A worker stored it, and died; or it was counted, and is counted anew."""
    shop = FakeShop(max_event_bytes=100_000)
    sent = [purchase("p0"), LARGE, purchase("p1"), purchase("p2")]
    shop.handle(shop.batch(*sent))
    shop.store.refuses = lambda document: "forbidden" if document["_id"] in ("p1", "p4") and why == "MongoDB" else None
    replay(shop, True, **({"max_event_bytes": 10_000} if why == "size" else {"max_event_bytes": 100_000}))
    shop.handle(shop.batch(*sent, purchase("p4", unnamed="x" * 11_000)))
    assert set(shop.store.collections["purchases"]) == {"p0", "p1", "p2"}
    assert [reason.partition(":")[0] for reason in shop.reasons()] == [
        {"size": "too large", "MongoDB": "refused by MongoDB"}[why]
    ]
    assert (shop.totals().purchases, shop.totals().duplicates, shop.totals().rejected) == (3, 1, 1)


@pytest.mark.parametrize("kind", ["products", "customers"])
def test_products_and_customers_are_decided_once_too(kind: str) -> None:
    """One was too large, one was refused; both would be accepted now. One was accepted, and would be neither now."""

    def event(name: str, size: int = 0) -> Any:
        more = {"unnamed": "x" * size}
        return product(1, name=name) | more if kind == "products" else customer(name) | more

    shop = FakeShop()
    shop.store.refuses = lambda document: "forbidden" if document["_id"] == "b" else None
    sent = [event("a", 11_000), event("b"), event("c", 9_000)]
    shop.handle(shop.batch(*sent, kind=kind), kind)
    shop.store.refuses = lambda document: "forbidden" if document["_id"] == "c" else None
    for most in (100_000, 1_000):
        replay(shop, True, max_event_bytes=most)
        shop.handle(shop.batch(*sent, kind=kind), kind)
        assert set(shop.store.collections[kind]) == {"c"}
        assert len(shop.reasons()) == 2


def test_another_record_at_the_offset_of_a_dead_letter_is_another_record(shop: FakeShop) -> None:
    """The topic was deleted and made anew: offsets begin at 0 again. A retried dead letter may come there, too."""
    refused = shop.batch(purchase("p1"), purchase("p2"), b"bad")
    shop.store.refuses = lambda document: "forbidden"
    shop.handle(refused)
    shop.store.refuses = lambda document: None
    replay(shop, False)
    retried = dataclasses.replace(refused.records[1], headers=(("shopflow.retry.count", b"1"),))
    shop.handle(FakeBatch([*shop.batch(purchase("p9")).records, retried, *shop.batch(b"worse", start=2).records]))
    assert set(shop.store.collections["purchases"]) == {"p9", "p2"}
    assert [value for _, _, value, *_ in shop.outlet.got[2:]] == [b"bad", b"worse"]


def test_offsets_of_dead_letters_are_forgotten_when_they_are_behind(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that runs for months has rejected millions."""
    monkeypatch.setattr(once, "_KEYS_TO_HOLD", 10)
    for start in range(0, 300, 3):
        shop.handle(shop.batch(b"bad", b"bad", purchase(f"p{start}"), start=start))
        assert sum(map(len, shop.worker.dead_letters._once._sent.values())) <= 14
    assert len(shop.reasons()) == 200


def test_a_purchase_that_was_rejected_stays_rejected_when_all_is_rebuilt(shop: FakeShop) -> None:
    """The product is known by now. An accepted purchase would be stored and be a dead letter too."""

    shop.worker.dead_letters._read_since = letters_of(shop)
    shop.handle(shop.batch(unpriced("p0"), purchase("p1")))
    assert len(shop.reasons()) == 1
    shop.handle(shop.batch(product(300), kind="products"), "products")
    shop.store.collections["purchases"].clear()
    shop.counts.rows[0][TOTALS_KEY] = new_era_totals(0, now=0)
    shop.worker.rebalance()
    shop.handle(shop.batch(unpriced("p0"), purchase("p1")))
    assert set(shop.store.collections["purchases"]) == {"p1"}
    assert len(shop.reasons()) == 1
    assert (shop.totals().purchases, shop.totals().rejected) == (1, 1)


def test_a_bad_record_from_long_before_the_first_without_a_price_is_not_sent_again(shop: FakeShop) -> None:
    """A batch may span days. The dead letters are read from the time of its first record on."""
    asked: list[int] = []

    async def there(topic: str, partition: int, since: int, *, of: Any) -> list[FakeRecord]:
        asked.append(since)
        return []

    shop.handle(shop.batch(product(300), kind="products"), "products")
    shop.worker.dead_letters._read_since = there
    day = 86_400_000
    bad = FakeRecord(b"anna", b"{", 0, timestamp=day)
    late = record(unpriced("p0"), 1)
    shop.handle(FakeBatch([bad, dataclasses.replace(late, timestamp=9 * day)]))
    assert asked == [day - 600_000]


def test_a_batch_that_is_not_next_stores_nothing(shop: FakeShop) -> None:
    """A duplicate with other fields must not be stored before the purchase that it repeats."""
    batch = shop.batch(purchase("p0"))
    batch.early = True
    with pytest.raises(PartitionLost):
        shop.handle(batch)
    assert shop.store.collections["purchases"] == {}


def test_the_price_of_the_worker_that_stored_it_first_counts(shop: FakeShop) -> None:
    """Two workers found different prices. The one that is stored is counted and goes into the price log."""
    shop.handle(shop.batch(product(300), kind="products"), "products")
    batch = shop.batch(unpriced("p0"))
    insert = shop.store.insert_purchases

    async def other_first(documents: Sequence[Any]) -> Any:
        shop.store.insert_purchases = insert  # type: ignore[method-assign]
        await insert([{**documents[0], "price": 500, "value": 1000}])
        return await insert(documents)

    shop.store.insert_purchases = other_first  # type: ignore[method-assign]
    shop.handle(batch)
    assert shop.store.collections["purchases"]["p0"]["price"] == 500
    assert shop.count() == (1, 2, 1000)
    assert json.loads(shop.price_log[0].value) == {"prices": [[0, 500]]}


def test_a_document_that_was_changed_by_hand_is_restored_by_a_redelivery(
    shop: FakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    """The event's fields are restored, and the price from the price log."""
    shop.handle(shop.batch(product(300), kind="products"), "products")
    events = unpriced("p0"), purchase("p1")
    shop.handle(shop.batch(*events))
    before = deepcopy(shop.store.collections["purchases"])
    shop.store.collections["purchases"]["p0"]["price"] = 1
    shop.store.collections["purchases"]["p1"]["quantity"] = 99
    shop.worker.rebalance()
    shop.handle(shop.batch(*events))
    assert shop.store.collections["purchases"] == before
    assert "2 purchase(s) in MongoDB differed from their events and were restored: p0, p1" in caplog.text


def test_prices_are_in_their_log_before_they_are_counted(shop: FakeShop) -> None:
    """A replay must find the price of each counted purchase."""
    shop.handle(shop.batch(product(300), kind="products"), "products")
    shop.events.clear()
    shop.handle(shop.batch(unpriced("p0")))
    assert [event for event in shop.events if event in {"insert_purchases", "prices", "table"}] == [
        "insert_purchases", "prices", "table",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["purchases", "products"])
def test_what_is_too_much_is_neither_sent_nor_counted_nor_finished(
    shop: FakeShop, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The whole batch waits before its first dead letter, until its partition is lost."""
    monkeypatch.setattr(limits, "_CHECK_SECONDS", 0.001)
    good = purchase("p1") if kind == "purchases" else product(100)
    batch = shop.batch(good, b"bad", b"bad", b"bad", kind=kind)
    shop.restart(limit=Limit(0.5, 5))

    async def lose() -> None:
        task = asyncio.ensure_future(getattr(shop.worker, kind)(batch))
        await asyncio.sleep(0.05)
        assert not task.done()
        batch.lost = True
        with pytest.raises(PartitionLost):
            await task

    asyncio.run(lose())
    assert "turn" in shop.events
    assert not {"dead letter", "table", "changelog", "finished"} & set(shop.events)


def test_what_is_not_too_much_goes_on(shop: FakeShop) -> None:
    """Below the limit the batch is handled as it is without a limit."""
    shop.restart(limit=Limit(0.5, 6))
    shop.handle(shop.batch(purchase("p1"), b"bad", b"bad", b"bad"))
    assert (len(shop.outlet.got), shop.events[-1]) == (3, "finished")


def test_sold_is_called_when_the_batch_is_finished() -> None:
    """`sold` gets the accepted purchases without duplicates. It is not called for a batch that was lost."""
    sold: list[Any] = []
    shop = FakeShop(sold=lambda batch, fresh: sold.append(fresh))
    shop.handle(shop.batch(purchase("p1"), b"bad", purchase("p2"), purchase("p1")))
    assert [[event.purchase_id for _, event in fresh] for fresh in sold] == [["p1", "p2"]]
    lost = shop.batch(purchase("p3"), start=4)
    lost.lost = True
    with pytest.raises(PartitionLost):
        shop.handle(lost)
    assert len(sold) == 1


def test_who_follows_the_counts_gets_what_is_new_before_the_batch_is_finished() -> None:
    """A follower gets no duplicates and no bad records, and the counts after the batch."""
    seen: list[Any] = []

    async def follow(batch: Any, counted: Any) -> None:
        shop.events.append("followed")
        seen.append(counted)

    shop = FakeShop(followers=[follow])
    shop.handle(shop.batch(purchase("p1")))
    assert shop.events[-3:] == ["changelog", "followed", "finished"]
    shop.handle(shop.batch(purchase("p1"), purchase("p2", quantity=0), purchase("p3"), start=1))
    counted = seen[1]
    assert [event.purchase_id for _, event in counted.fresh] == ["p3"]
    assert (counted.duplicates, counted.rejected) == ([1], [2])
    assert counted.changes.values["anna"].purchases == 2


def test_a_product_has_a_stock_only_if_its_event_has_one(shop: FakeShop) -> None:
    """Documents of products without a stock have no such fields. A later event without a stock removes them."""
    plain = product(1, name="plain")
    events = [plain, {**product(1), "stock": 5}, {**product(1, name="tea"), "stock": 0, "stock_limit": 2},
              {**product(1, name="odd"), "stock_limit": 2}]  # fmt: skip
    shop.handle(shop.batch(*events, kind="products"), "products")
    stored = shop.store.collections["products"]
    assert set(stored["plain"]) == set(stored["odd"]) == {"_id", "name", "type", "price", "updated_at", "source"}
    assert set(stored["milk"]) == {*stored["plain"], "stock"}
    assert (stored["tea"]["stock"], stored["tea"]["stock_limit"]) == (0, 2)
    shop.handle(shop.batch(product(1, "2026-05-02T10:00:00Z"), start=9, kind="products"), "products")
    assert set(stored["milk"]) == set(stored["plain"])


@pytest.mark.parametrize("stock", [-1, 10**9 + 1, 1.5, "5", True])
@pytest.mark.parametrize("name", ["stock", "stock_limit"])
def test_a_stock_that_is_none_is_a_dead_letter(shop: FakeShop, name: str, stock: Any) -> None:
    """The reason names the field."""
    shop.handle(shop.batch({**product(1), "stock": 1, name: stock}, kind="products"), "products")
    (reason,) = shop.reasons()
    assert reason.startswith(f"invalid event: {name}: ")
