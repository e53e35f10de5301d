"""What the rest of shopflow relies on in its store, on the fake and on MongoDB alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from shopflow.store import Deletion, Document, Store
from tests.contract.conftest import Run

NOON = datetime(2026, 5, 1, 12, 0, 0, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)


def kafka(offset: int, partition: int = 0, topic: str = "t") -> Document:
    """Where a document came from."""
    return {"origin": "kafka", "topic": topic, "partition": partition, "offset": offset}


def purchase(name: str, source: Document, customer: str = "anna", **fields: Any) -> Document:
    """A purchase."""
    base = {"customer_id": customer, "product_id": "milk", "quantity": 2, "price": 300, "value": 600}
    return {"_id": name, **base, "purchased_at": NOON, "source": source, **fields}


def product(price: int, at: datetime, source: Document, name: str = "milk") -> Document:
    """A product."""
    return {"_id": name, "name": name.title(), "type": "dairy", "price": price, "updated_at": at, "source": source}


def customer(name: str, at: datetime = NOON, source: Document | None = None, **fields: Any) -> Document:
    """A customer."""
    base = {"first_name": "Anna", "last_name": "Żak", "address": "ul. Długa 1, 00-001 Łódź", "city": "Łódź"}
    return {"_id": name, **base, "registered_at": at, "source": source or kafka(0), **fields}


async def everything(documents: AsyncIterator[Any]) -> list[Any]:
    """All that an iterator yields."""
    return [document async for document in documents]


def test_a_purchase_is_stored_once_however_often_it_is_delivered(store: Store, run: Run) -> None:
    """A redelivery is neither an error nor a second purchase."""
    bought = purchase("p1", kafka(5))
    for _ in range(3):
        inserted = run(store.insert_purchases([bought]))
        assert not inserted.duplicates
        assert not inserted.refused
    assert run(store.sizes())["purchases"] == 1


def test_a_purchase_that_was_sent_twice_is_a_duplicate(store: Store, run: Run) -> None:
    """The same id at another offset, or of another customer, is not counted again; the first stays."""
    run(store.insert_purchases([purchase("p1", kafka(5))]))
    again = [
        purchase("p1", kafka(6), price=1, value=2),
        purchase("p1", kafka(5, partition=1), customer="bob"),
        purchase("p2", kafka(7)),
    ]
    assert run(store.insert_purchases(again)).duplicates == {0, 1}
    assert run(store.purchase_prices({"p1", "p2", "p3"})) == {"p1": 300, "p2": 300}


def test_of_two_of_one_id_in_one_call_the_first_is_stored(store: Store, run: Run) -> None:
    """So it is too when the call is made again."""
    both = [purchase("p1", kafka(5)), purchase("p1", kafka(6), price=1, value=2)]
    for _ in range(2):
        assert run(store.insert_purchases(both)).duplicates == {1}
    assert run(store.purchase_prices({"p1"})) == {"p1": 300}


def test_a_purchase_written_directly_is_not_counted_when_it_comes_by_kafka(store: Store, run: Run) -> None:
    """What is in the database already, from elsewhere, is a duplicate."""
    run(store.insert_purchases([purchase("p1", {"origin": "direct"})]))
    assert run(store.insert_purchases([purchase("p1", kafka(1))])).duplicates == {0}


def test_the_newest_product_wins_in_any_order(store: Store, run: Run) -> None:
    """An older event never overwrites a newer one."""
    run(store.upsert_products([product(2, NOON + MINUTE, kafka(1))]))
    run(store.upsert_products([product(1, NOON, kafka(2))]))
    assert [one["price"] for one in run(store.products())] == [2]
    run(store.upsert_products([product(3, NOON + 2 * MINUTE, kafka(0))]))
    assert [one["price"] for one in run(store.products())] == [3]


def test_of_products_of_one_time_the_later_in_the_partition_wins(store: Store, run: Run) -> None:
    """A redelivery of the earlier one does not bring it back."""
    first, second = product(1, NOON, kafka(1)), product(2, NOON, kafka(2))
    run(store.upsert_products([first, second]))
    run(store.upsert_products([first]))
    assert [one["price"] for one in run(store.products())] == [2]
    assert run(store.price_history({"milk"}))["milk"].at(NOON) == 2


def test_several_of_one_product_in_one_call_leave_the_newest_and_all_prices(store: Store, run: Run) -> None:
    """A batch may hold a product's whole day."""
    prices = [product(price, NOON + price * MINUTE, kafka(price)) for price in (3, 1, 2)]
    assert run(store.upsert_products(prices)) == {}
    assert [one["price"] for one in run(store.products())] == [3]
    history = run(store.price_history({"milk"}))["milk"]
    assert [history.at(NOON + minutes * MINUTE) for minutes in (0, 1, 1.5, 2, 9)] == [1, 1, 1, 2, 3]


def test_a_deleted_product_has_no_price_from_then_on(store: Store, run: Run) -> None:
    """Purchases made before keep finding theirs."""
    run(store.upsert_products([product(1, NOON, kafka(1))]))
    run(store.delete_products([Deletion("milk", NOON + MINUTE, kafka(2))]))
    assert run(store.products()) == []
    history = run(store.price_history({"milk", "bread"}))
    assert set(history) == {"milk"}
    assert [history["milk"].at(NOON), history["milk"].at(NOON + MINUTE)] == [1, None]


def test_a_deletion_that_comes_again_spares_what_came_later(store: Store, run: Run) -> None:
    """The product was offered anew after it was deleted; the batch of the deletion is delivered again."""
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(8))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(8, partition=1))]))
    assert run(store.products()) == []
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON - MINUTE, kafka(8))]))
    assert len(run(store.products())) == 1


def test_customers_are_replaced_by_newer_ones_and_deleted(store: Store, run: Run) -> None:
    """As products are."""
    run(store.upsert_customers([customer("a", source=kafka(1)), customer("b", source=kafka(2))]))
    run(store.upsert_customers([customer("a", NOON + MINUTE, kafka(3), city=None), customer("b", NOON - MINUTE)]))
    run(store.delete_customers([Deletion("c", NOON, kafka(4))]))
    found = {one["_id"]: one for one in run(everything(store.customers()))}
    assert found["a"]["city"] is None
    assert found["b"]["registered_at"] == NOON
    run(store.delete_customers([Deletion("a", NOON, kafka(5))]))
    assert run(store.customer_ids(10)) == ["b"]


def test_customers_come_with_what_they_bought(store: Store, run: Run) -> None:
    """Oldest first, with the product's name where it is known; in pages, none lost between two."""
    names = [f"c{number:03}" for number in range(120)]
    run(store.upsert_customers([customer(name) for name in names]))
    run(store.upsert_products([product(300, NOON, kafka(0))]))
    bought = [purchase("p2", kafka(1), "c110", purchased_at=NOON + MINUTE), purchase("p1", kafka(2), "c110")]
    run(store.insert_purchases([*bought, purchase("p3", kafka(3), "c110", product_id="?", purchased_at=NOON - MINUTE)]))
    found = run(everything(store.customers()))
    assert [one["_id"] for one in found] == names
    assert [one["_id"] for one in found[110]["purchases"]] == ["p3", "p1", "p2"]
    assert [one["product_name"] for one in found[110]["purchases"]] == [None, "Milk", "Milk"]
    assert [one["_id"] for one in run(everything(store.customers(101)))] == names[:101]
    assert run(everything(store.customers(0))) == []


def test_sums_are_those_of_the_purchases_from_kafka(store: Store, run: Run) -> None:
    """What was written directly is not in the tables, so it is not in the sums that are compared with them."""
    assert run(store.totals()).purchases == 0
    run(store.insert_purchases([purchase("p1", kafka(1)), purchase("p2", kafka(2)), purchase("p3", kafka(3), "bob")]))
    run(store.insert_purchases([purchase("p4", {"origin": "direct"}, "bob")]))
    totals = run(store.totals())
    assert (totals.purchases, totals.items, totals.spent, totals.customers) == (3, 6, 1800, 2)
    assert sorted(run(everything(store.counts()))) == [("anna", 2, 4, 1200), ("bob", 1, 2, 600)]
    assert run(store.sizes()) == {"products": 0, "customers": 0, "purchases": 4, "prices": 0}


@pytest.mark.parametrize("name", ["$set", "a.b", "a\x00b", "zażółć 🥛", "x" * 128, "{'$gt': ''}", " "])
def test_an_id_is_a_value_whatever_is_in_it(store: Store, run: Run, name: str) -> None:
    """Ids come from outside: none is an operator or a field."""
    run(store.upsert_products([product(5, NOON, kafka(1), name)]))
    run(store.upsert_customers([customer(name)]))
    run(store.insert_purchases([purchase(name, kafka(1), name, product_id=name)]))
    assert run(store.price_history({name}))[name].at(NOON) == 5
    assert run(store.purchase_prices({name})) == {name: 300}
    (found,) = run(everything(store.customers()))
    assert found["_id"] == name
    assert found["purchases"][0]["product_name"] == name.title()
    run(store.delete_products([Deletion(name, NOON, kafka(2))]))
    run(store.delete_customers([Deletion(name, NOON, kafka(2))]))
    assert run(store.product_ids(9)) == run(store.customer_ids(9)) == []


def test_times_within_a_millisecond_are_one_time(store: Store, run: Run) -> None:
    """MongoDB keeps milliseconds: the comparison here and there must agree."""
    run(store.upsert_products([product(1, NOON + timedelta(microseconds=900), kafka(1))]))
    run(store.upsert_products([product(2, NOON + timedelta(microseconds=100), kafka(2))]))
    assert [one["price"] for one in run(store.products())] == [2]


def test_documents_are_not_changed_by_storing_them(store: Store, run: Run) -> None:
    """The caller counts them afterwards."""
    bought, sold = purchase("p1", kafka(1)), product(1, NOON, kafka(1))
    before = repr((bought, sold))
    run(store.insert_purchases([bought]))
    run(store.upsert_products([sold]))
    assert repr((bought, sold)) == before


def test_empty_calls_do_nothing(store: Store, run: Run) -> None:
    """A batch of bad records only has no documents."""
    assert run(store.insert_purchases([])).duplicates == frozenset()
    assert run(store.upsert_products([])) == run(store.upsert_customers([])) == {}
    run(store.delete_products([]))
    assert run(store.price_history(set())) == run(store.purchase_prices(set())) == {}


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_what_mongodb_can_never_take_is_refused_and_its_neighbours_are_stored(store: Store, run: Run) -> None:
    """One impossible document must not hold up a batch for ever."""
    documents = [purchase("p1", kafka(1)), purchase("p2", kafka(2), quantity=1 << 70), purchase("p3", kafka(3))]
    inserted = run(store.insert_purchases(documents))
    assert list(inserted.refused) == [1]
    assert set(run(store.purchase_prices({"p1", "p2", "p3"}))) == {"p1", "p3"}
    assert list(
        run(store.upsert_products([product(1 << 70, NOON, kafka(1)), product(1, NOON, kafka(2), "bread")]))
    ) == [0]
    assert run(store.product_ids(9)) == ["bread"]


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_the_indexes_are_made_once_and_those_of_the_contract(store: Any, run: Run) -> None:
    """Other programs rely on them."""
    run(store.prepare())
    found = run(store._collection("purchases").index_information())
    keys = sorted([key for key, _ in index["key"]] for index in found.values())
    assert keys == [["_id"], ["customer_id", "purchased_at"], ["product_id", "purchased_at"]]
