"""The writes and reads of a batch: the fake store and MongoDB give the same results."""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shopflow.errors import Unavailable
from shopflow.store import MongoStore
from shopflow.store.rules import price_document
from shopflow.store.types import Deletion, Document, Inserted, PartitionSales
from tests.conftest import Run
from tests.contract.conftest import Put, Stored
from tests.support.documents import DIRECT, MINUTE, NOON, customer, kafka, product, purchase, voucher
from tests.support.fakes import FakeStore


def prices(stored: Stored) -> list[int]:
    """The prices of the products, by id."""
    return [one["price"] for one in stored("products").values()]


def test_a_purchase_is_stored_once_however_often_it_is_delivered(store: MongoStore, run: Run, stored: Stored) -> None:
    """A redelivery is neither an error nor a second purchase."""
    bought = purchase("p1", kafka(5))
    for _ in range(3):
        inserted = run(store.insert_purchases([bought]))
        assert not inserted.duplicates
        assert not inserted.refused
    assert len(stored("purchases")) == 1


def test_a_purchase_that_was_changed_by_hand_is_reported_and_restored(
    store: MongoStore, run: Run, stored: Stored, put: Put
) -> None:
    """`restore_purchases` restores the event's fields. Fields that another program added stay."""
    bought = [purchase("p1", kafka(5)), purchase("p2", kafka(6)), purchase("p3", kafka(7))]
    put("purchases", {**bought[0], "price": 1, "note": "mine"})
    put("purchases", {**bought[1], "note": "mine"})
    inserted = run(store.insert_purchases(bought))
    assert not inserted.duplicates
    assert {number: found["price"] for number, found in inserted.differing.items()} == {0: 1}
    run(store.restore_purchases([bought[0], purchase("p2", kafka(99), price=7), purchase("p4", kafka(8))]))
    assert [(one["_id"], one["price"], one.get("note")) for one in stored("purchases").values()] == [
        ("p1", 300, "mine"), ("p2", 300, "mine"), ("p3", 300, None),
    ]  # fmt: skip
    assert run(store.insert_purchases(bought)).differing == {}


def test_a_purchase_that_was_sent_twice_is_a_duplicate(store: MongoStore, run: Run) -> None:
    """A purchase with a stored id, from another offset or partition, is a duplicate. The stored document stays."""
    run(store.insert_purchases([purchase("p1", kafka(5))]))
    again = [
        purchase("p1", kafka(6), price=1, value=2),
        purchase("p1", kafka(5, partition=1), customer="bob"),
        purchase("p2", kafka(7)),
    ]
    assert run(store.insert_purchases(again)).duplicates == {0, 1}
    assert run(store.purchase_prices({"p1", "p2", "p3"})) == {"p1": 300, "p2": 300}


def test_of_two_of_one_id_in_one_call_the_first_is_stored(store: MongoStore, run: Run) -> None:
    """The second purchase of an id in a call is a duplicate, also when the call is repeated."""
    both = [purchase("p1", kafka(5)), purchase("p1", kafka(6), price=1, value=2)]
    for _ in range(2):
        assert run(store.insert_purchases(both)).duplicates == {1}
    assert run(store.purchase_prices({"p1"})) == {"p1": 300}


def test_a_purchase_written_directly_is_not_counted_when_it_comes_by_kafka(store: MongoStore, run: Run) -> None:
    """A purchase that `--direct` stored makes the one from Kafka a duplicate."""
    run(store.insert_purchases([purchase("p1", DIRECT)]))
    assert run(store.insert_purchases([purchase("p1", kafka(1))])).duplicates == {0}


def test_a_purchase_of_another_program_is_not_ours(store: MongoStore, run: Run, put: Put) -> None:
    """A stored purchase without a `source` makes the one from Kafka a duplicate, not a redelivery."""
    foreign = purchase("p1", {})
    del foreign["source"]
    put("purchases", foreign)
    assert run(store.insert_purchases([purchase("p1", kafka(1)), purchase("p2", kafka(2))])).duplicates == {0}


def test_a_purchase_that_was_set_apart_is_taken_back_by_its_first_event(store: MongoStore, run: Run, put: Put) -> None:
    """After a `replay --lose-counts` it is as if it were not stored; also if its producer has sent it again since."""
    for name in ("p1", "p2", "p3"):
        put("purchases", purchase(name, {**kafka(int(name[1])), "origin": "removed"}, price=1))
    batch = [purchase("p1", kafka(1)), purchase("p2", kafka(7)), purchase("p1", kafka(8)), purchase("p2", kafka(9))]
    for _ in range(2):
        inserted = run(store.insert_purchases(batch))
        assert (inserted.duplicates, inserted.refused, inserted.differing) == ({2, 3}, {}, {})
    assert run(store.purchase_prices({"p1", "p2", "p3"})) == {"p1": 300, "p2": 300, "p3": 1}


def test_a_batch_that_comes_again_in_part_has_the_same_duplicates(store: MongoStore, run: Run) -> None:
    """A worker died after it stored a part of the batch. The batch has more ids than one request may have."""
    batch = [purchase(f"p{number % 240}", kafka(number)) for number in range(250)]
    run(store.insert_purchases(batch[:130]))
    for _ in range(2):
        inserted = run(store.insert_purchases(batch))
        assert inserted.duplicates == set(range(240, 250))
        assert not inserted.refused
    assert len(run(store.purchase_prices({f"p{number}" for number in range(300)}))) == 240


def test_a_redelivery_beside_a_duplicate_is_distinguished(store: MongoStore, run: Run) -> None:
    """The one with the `source` of the stored document is the redelivery, wherever it stands in the call."""
    run(store.insert_purchases([purchase("p1", kafka(5))]))
    assert run(store.insert_purchases([purchase("p1", kafka(6)), purchase("p1", kafka(5))])).duplicates == {0}
    assert run(store.insert_purchases([purchase("p1", kafka(5)), purchase("p1", kafka(5))])).duplicates == {1}
    other_topic = purchase("p1", kafka(5, topic="u"))
    assert run(store.insert_purchases([other_topic])).duplicates == {0}


def test_the_newest_product_wins_in_any_order(store: MongoStore, run: Run, stored: Stored) -> None:
    """An older event never overwrites a newer one."""
    run(store.upsert_products([product(2, NOON + MINUTE, kafka(1))]))
    run(store.upsert_products([product(1, NOON, kafka(2))]))
    assert prices(stored) == [2]
    run(store.upsert_products([product(3, NOON + 2 * MINUTE, kafka(0))]))
    assert prices(stored) == [3]


def test_of_products_of_one_time_the_later_in_the_partition_wins(store: MongoStore, run: Run, stored: Stored) -> None:
    """A redelivery of the earlier event does not bring its price back."""
    first, second = product(1, NOON, kafka(1)), product(2, NOON, kafka(2))
    run(store.upsert_products([first, second]))
    run(store.upsert_products([first]))
    assert prices(stored) == [2]
    assert run(store.price_history({"milk"}))["milk"].at(NOON) == 2


def test_of_products_of_one_time_from_different_partitions_the_later_call_wins(
    store: MongoStore, run: Run, stored: Stored
) -> None:
    """Offsets of different partitions can't be compared. A direct write has no offset."""
    sources = [kafka(9), kafka(1, partition=1), kafka(0, topic="u"), DIRECT, kafka(3)]
    for number, source in enumerate(sources):
        run(store.upsert_products([product(number, NOON, source)]))
        assert prices(stored) == [number]


def test_products_of_one_partition_in_one_call_and_of_one_time(store: MongoStore, run: Run, stored: Stored) -> None:
    """The event with the larger offset wins, also if it comes first in the call."""
    run(store.upsert_products([product(2, NOON, kafka(2)), product(1, NOON, kafka(1))]))
    assert prices(stored) == [2]


def test_a_product_that_another_program_wrote_is_replaced(
    store: MongoStore, run: Run, stored: Stored, put: Put
) -> None:
    """A product without `updated_at` is older than any event. A product without a `source` loses at an equal time."""
    put("products", {"_id": "milk", "name": "Milk", "price": 9})
    put("products", {"_id": "tea", "name": "Tea", "price": 9, "updated_at": NOON})
    run(store.upsert_products([product(1, NOON, kafka(1)), product(2, NOON, kafka(2), "tea")]))
    assert prices(stored) == [1, 2]


def test_many_workers_leave_the_newest(store: MongoStore, run: Run, stored: Stored) -> None:
    """Four workers write the same products at once, each in another order. All prices are kept."""
    documents = [product(price, NOON + price * MINUTE, kafka(price), name) for price in range(8) for name in "abc"]
    orders = [random.Random(seed).sample(documents, len(documents)) for seed in range(4)]

    async def work(order: list[Document]) -> None:
        for start in range(0, len(order), 6):
            await store.upsert_products(order[start : start + 6])

    async def all_work() -> None:
        await asyncio.gather(*map(work, orders))

    run(all_work())
    assert prices(stored) == [7, 7, 7]
    for history in run(store.price_history({"a", "b", "c"})).values():
        assert history.prices == tuple((NOON + price * MINUTE, price) for price in range(8))


def test_a_batch_made_again_leaves_the_same(store: MongoStore, run: Run, stored: Stored) -> None:
    """Each write can be repeated, whether it was acknowledged or not."""
    first = [product(1, NOON, kafka(1)), product(5, NOON, kafka(2), "tea")]
    second = [product(2, NOON + MINUTE, kafka(4))]

    async def batch() -> None:
        await store.upsert_products(first)
        await store.delete_products([Deletion("tea", NOON + MINUTE, kafka(3))])
        await store.upsert_products(second)

    run(batch())
    once = stored("products"), stored("prices")
    run(batch())
    assert (stored("products"), stored("prices")) == once


def test_several_of_one_product_in_one_call_leave_the_newest_and_all_prices(
    store: MongoStore, run: Run, stored: Stored
) -> None:
    """A batch may hold all price changes of a day."""
    day = [product(price, NOON + price * MINUTE, kafka(price)) for price in (3, 1, 2)]
    assert run(store.upsert_products(day)) == {}
    assert prices(stored) == [3]
    history = run(store.price_history({"milk"}))["milk"]
    assert [history.at(NOON + minutes * MINUTE) for minutes in (0, 1, 1.5, 2, 9)] == [1, 1, 1, 2, 3]


def test_a_deleted_product_has_no_price_from_then_on(store: MongoStore, run: Run, stored: Stored) -> None:
    """A purchase from before the deletion still finds its price."""
    run(store.upsert_products([product(1, NOON, kafka(1))]))
    run(store.delete_products([Deletion("milk", NOON + MINUTE, kafka(2))]))
    assert stored("products") == {}
    history = run(store.price_history({"milk", "bread"}))
    assert set(history) == {"milk"}
    assert [history["milk"].at(NOON), history["milk"].at(NOON + MINUTE)] == [1, None]


def test_a_product_offered_again_has_its_prices_between(store: MongoStore, run: Run) -> None:
    """A product was offered, deleted and offered again. A purchase finds the price in force at its time, or none."""
    run(store.upsert_products([product(1, NOON, kafka(1))]))
    run(store.delete_products([Deletion("milk", NOON + MINUTE, kafka(2))]))
    run(store.upsert_products([product(2, NOON + 2 * MINUTE, kafka(3))]))
    history = run(store.price_history({"milk"}))["milk"]
    assert [history.at(NOON + minutes * MINUTE) for minutes in (-1, 0, 0.5, 1, 1.5, 2, 3)] == [
        1,
        1,
        1,
        None,
        None,
        2,
        2,
    ]


def test_a_deletion_at_the_time_of_a_price_ends_it(store: MongoStore, run: Run, stored: Stored) -> None:
    """At equal times the larger offset decides, for the product and for its price. Redeliveries change nothing."""
    sold = product(1, NOON, kafka(1))
    run(store.upsert_products([sold]))
    run(store.delete_products([Deletion("milk", NOON, kafka(2))]))
    assert run(store.price_history({"milk"}))["milk"].at(NOON) is None
    run(store.upsert_products([product(2, NOON, kafka(3))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(2))]))
    assert prices(stored) == [2]
    assert run(store.price_history({"milk"}))["milk"].at(NOON) == 2


def test_deletions_of_unknown_products_or_from_another_topic(
    store: MongoStore, run: Run, stored: Stored, put: Put
) -> None:
    """Deleting an unknown product is no error. Only a later offset of the same partition stops a deletion."""
    run(store.delete_products([Deletion("tea", NOON, kafka(1)), Deletion("tea", NOON, kafka(2))]))
    assert run(store.price_history({"tea"}))["tea"].at(NOON) is None
    for source in (DIRECT, kafka(9, topic="u"), kafka(9, partition=1)):
        run(store.upsert_products([product(1, NOON, source)]))
        run(store.delete_products([Deletion("milk", NOON, kafka(2))]))
        assert stored("products") == {}
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON, DIRECT)]))
    assert stored("products") == {}
    put("products", {"_id": "milk", "name": "Milk", "price": 9})
    run(store.delete_products([Deletion("milk", NOON, kafka(3))]))
    assert stored("products") == {}


def test_a_product_without_a_history_has_the_price_that_it_has(store: MongoStore, run: Run, put: Put) -> None:
    """Another program wrote the product. Its price counts at all times."""
    old = {"_id": "milk", "name": "Milk", "type": "dairy", "price": 7, "updated_at": NOON}
    put("products", old)
    history = run(store.price_history(["milk", "tea"]))
    assert set(history) == {"milk"}
    assert [history["milk"].at(NOON + minutes * MINUTE) for minutes in (-1, 0, 1)] == [7, 7, 7]


def test_a_product_of_another_program_may_lack_fields(store: MongoStore, run: Run, put: Put) -> None:
    """Without `updated_at` its price counts at all times. Without a price it has no history."""
    put("products", {"_id": "milk", "price": 7})
    put("products", {"_id": "tea", "price": None, "updated_at": NOON})
    history = run(store.price_history(["milk", "tea"]))
    assert set(history) == {"milk"}
    assert history["milk"].at(NOON) == 7


def test_histories_of_more_products_than_are_asked_for_at_once(store: MongoStore, run: Run) -> None:
    """The products of all requests are in the result."""
    run(store.upsert_products([product(number, NOON, kafka(number), f"x{number}") for number in range(210)]))
    history = run(store.price_history({f"x{number}" for number in range(220)}))
    assert {name: known.at(NOON) for name, known in history.items()} == {f"x{number}": number for number in range(210)}


#: The events of a product in each partition, in order: minutes after noon, and a price; None: a deletion.
said = st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 9)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=said, data=st.data())
def test_late_and_repeated_events_give_the_same_history(
    store: MongoStore, run: Run, said: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    """Events come in any order, several times, some of them in one call. The time decides, then the offset."""
    name = uuid.uuid4().hex
    numbers = range(len(said))
    again = data.draw(st.lists(st.sampled_from(numbers), max_size=8), label="repeated")
    order = data.draw(st.permutations([*numbers, *again]), label="order")
    size = data.draw(st.integers(1, len(order)), label="events in a call")
    for start in range(0, len(order), size):
        some = [(number, NOON + said[number][0] * MINUTE, said[number][1]) for number in order[start : start + size]]
        run(store.upsert_products([product(price, at, kafka(n), name) for n, at, price in some if price is not None]))
        run(store.delete_products([Deletion(name, at, kafka(number)) for number, at, price in some if price is None]))
    right = sorted({NOON + minute * MINUTE: price for minute, price in said}.items())
    assert run(store.price_history({name}))[name].prices == tuple(right)


def test_documents_come_back_as_they_were(store: MongoStore, run: Run) -> None:
    """Times have a time zone and milliseconds. None, Polish letters and large numbers stay as they are."""
    at = NOON + timedelta(microseconds=123_456)
    cut = NOON + timedelta(microseconds=123_000)
    run(store.upsert_products([product(2**53 + 1, at, kafka(1))]))
    run(store.upsert_customers([customer("c", at, kafka(1), city=None)]))
    run(store.insert_purchases([purchase("p", kafka(1), "c", value=2**63 - 1, purchased_at=at)]))
    assert run(store.documents("products", ["milk"])) == {"milk": product(2**53 + 1, cut, kafka(1))}
    assert run(store.documents("customers", ["c"])) == {"c": customer("c", cut, kafka(1), city=None)}
    (bought,) = run(store.documents("purchases", ["p"])).values()
    assert bought == purchase("p", kafka(1), "c", value=2**63 - 1, purchased_at=cut)
    assert bought["purchased_at"].utcoffset() == timedelta(0)


def test_a_redelivered_deletion_spares_later_documents(store: MongoStore, run: Run, stored: Stored) -> None:
    """The product was offered again after its deletion. Then the deletion is delivered again."""
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(8))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(8, partition=1))]))
    assert stored("products") == {}
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON - MINUTE, kafka(8))]))
    assert len(stored("products")) == 1


def test_customers_are_replaced_by_newer_ones_and_deleted(store: MongoStore, run: Run, stored: Stored) -> None:
    """An older registration changes nothing."""
    run(store.upsert_customers([customer("a", source=kafka(1)), customer("b", source=kafka(2))]))
    run(store.upsert_customers([customer("a", NOON + MINUTE, kafka(3), city=None), customer("b", NOON - MINUTE)]))
    run(store.delete_customers([Deletion("c", NOON, kafka(4))]))
    assert stored("customers")["a"]["city"] is None
    assert stored("customers")["b"]["registered_at"] == NOON
    run(store.delete_customers([Deletion("a", NOON, kafka(5))]))
    assert list(stored("customers")) == ["b"]


def test_several_of_one_customer_leave_the_newest(store: MongoStore, run: Run, stored: Stored) -> None:
    """The registrations come in one call or in several. At equal times the larger offset wins."""
    times = [(2, 1), (3, 2), (1, 3), (3, 4), (3, 3)]
    calls = [customer("a", NOON + minute * MINUTE, kafka(offset), city=str(offset)) for minute, offset in times]
    assert run(store.upsert_customers(calls)) == {}
    assert stored("customers")["a"]["city"] == "4"
    for call in calls:
        run(store.upsert_customers([call]))
    assert stored("customers")["a"]["city"] == "4"


def test_a_customer_who_came_later_is_not_deleted_and_purchases_stay(
    store: MongoStore, run: Run, stored: Stored
) -> None:
    """The customer registered again after the deletion. Then the deletion is delivered again."""
    run(store.upsert_customers([customer("anna", source=kafka(9)), customer("bob", source=kafka(9, partition=1))]))
    run(store.insert_purchases([purchase("p1", kafka(1), "anna"), purchase("p2", kafka(2), "bob")]))
    run(store.delete_customers([Deletion("anna", NOON + MINUTE, kafka(8)), Deletion("bob", NOON, kafka(8))]))
    assert list(stored("customers")) == ["anna"]
    run(store.delete_customers([Deletion("anna", NOON, kafka(9))]))
    assert stored("customers") == {}
    assert len(stored("purchases")) == 2


def test_documents_are_found_by_their_ids_as_they_are(store: MongoStore, run: Run, put: Put) -> None:
    """There are more ids than one request may have. Documents of other programs come unchanged."""
    names = [f"p{number:03}" for number in range(950)]
    run(store.insert_purchases([purchase(name, kafka(offset)) for offset, name in enumerate(names)]))
    put("purchases", {"_id": "other", "price": 1.5})
    found = run(store.documents("purchases", [*names, "other", "unknown"]))
    assert set(found) == {*names, "other"}
    assert found["p007"] == purchase("p007", kafka(7))
    assert found["other"] == {"_id": "other", "price": 1.5}
    assert run(store.documents("products", names)) == {}


@pytest.mark.parametrize("name", ["$set", "a.b", "a\x00b", "zażółć 🥛", "x" * 128, "{'$gt': ''}", " "])
def test_an_id_is_a_value_whatever_is_in_it(store: MongoStore, run: Run, name: str, stored: Stored) -> None:
    """Ids come from outside. No part of an id is read as an operator or as a field's path."""
    run(store.upsert_products([product(5, NOON, kafka(1), name)]))
    run(store.upsert_customers([customer(name)]))
    run(store.insert_purchases([purchase(name, kafka(1), name, product_id=name)]))
    assert run(store.price_history({name}))[name].at(NOON) == 5
    assert run(store.purchase_prices({name})) == {name: 300}
    for collection in ("products", "customers", "purchases"):
        assert list(stored(collection)) == list(run(store.documents(collection, [name]))) == [name]
    run(store.delete_products([Deletion(name, NOON, kafka(2))]))
    run(store.delete_customers([Deletion(name, NOON, kafka(2))]))
    assert stored("products") == stored("customers") == {}


def test_times_within_a_millisecond_are_one_time(store: MongoStore, run: Run, stored: Stored) -> None:
    """MongoDB keeps milliseconds, so microseconds must not decide which event is newer."""
    run(store.upsert_products([product(1, NOON + timedelta(microseconds=900), kafka(1))]))
    run(store.upsert_products([product(2, NOON + timedelta(microseconds=100), kafka(2))]))
    assert prices(stored) == [2]


def test_documents_are_not_changed_by_storing_them(store: MongoStore, run: Run) -> None:
    """The caller counts the same documents afterwards."""
    bought, sold = purchase("p1", kafka(1)), product(1, NOON, kafka(1))
    registered = customer("c", NOON + timedelta(microseconds=1))
    before = repr((bought, sold, registered))
    run(store.insert_purchases([bought, bought]))
    run(store.upsert_products([sold, sold]))
    run(store.upsert_customers([registered]))
    assert repr((bought, sold, registered)) == before


def test_empty_calls_do_nothing(store: MongoStore, run: Run) -> None:
    """A batch that has only bad records has no documents."""
    assert run(store.insert_purchases([])).duplicates == frozenset()
    assert run(store.upsert_products([])) == run(store.upsert_customers([])) == {}
    run(store.delete_products([]))
    assert run(store.price_history(set())) == run(store.purchase_prices(set())) == {}


HUGE = "x" * (17 * 1024 * 1024)


#: Values that no MongoDB takes.
impossible = pytest.mark.parametrize("value", [1 << 70, HUGE, "\ud800"], ids=["number", "size", "surrogate"])


@impossible
def test_an_impossible_purchase_is_refused_and_its_neighbours_are_stored(
    store: MongoStore, run: Run, value: Any
) -> None:
    """A purchase that MongoDB can never store does not hold up its batch, also when the batch comes again."""
    documents = [purchase("p1", kafka(1)), purchase("p2", kafka(2), note=value), purchase("p3", kafka(3))]
    documents += [purchase("p1", kafka(4)), purchase("p2", kafka(5))]
    for _ in range(2):
        inserted = run(store.insert_purchases(documents))
        assert list(inserted.refused) == [1]
        assert 0 < len(inserted.refused[1]) <= 300
        assert inserted.duplicates == {3}
    assert set(run(store.purchase_prices({"p1", "p2", "p3"}))) == {"p1", "p2", "p3"}


def test_what_is_stored_is_not_refused_by_a_rule_that_came_later(
    store: Any, run: Run, request: pytest.FixtureRequest, stored: Stored
) -> None:
    """A replay brings the purchases again. Each is what it was: stored, or a duplicate. Only a new one is refused."""
    documents = [purchase("p1", kafka(1)), purchase("p2", kafka(2), quantity=9), purchase("p1", kafka(3))]
    assert run(store.insert_purchases(documents)) == Inserted(frozenset({2}), {}, {})
    before = stored("purchases")
    if isinstance(store, FakeStore):
        store.refuses = lambda document: "few" if document["quantity"] < 5 else None
    else:
        request.getfixturevalue("database").command("collMod", "purchases", validator={"quantity": {"$gt": 5}})
    again = [*documents, purchase("p3", kafka(4))]
    inserted = run(store.insert_purchases(again))
    assert (inserted.duplicates, list(inserted.refused), inserted.differing) == ({2}, [3], {})
    assert stored("purchases") == before


@impossible
def test_an_impossible_customer_is_refused_and_its_neighbours_are_stored(
    store: MongoStore, run: Run, value: Any, stored: Stored
) -> None:
    """An older registration of the same customer in the call is stored instead."""
    documents = [customer("a", city="old"), customer("a", NOON + MINUTE, city=value), customer("b")]
    assert list(run(store.upsert_customers(documents))) == [1]
    assert [(name, one["city"]) for name, one in stored("customers").items()] == [("a", "old"), ("b", "Łódź")]


@impossible
def test_an_impossible_product_is_refused_and_brings_no_price(
    store: MongoStore, run: Run, value: Any, stored: Stored
) -> None:
    """A refused product is a dead letter. Its price must not be given to a purchase."""
    bad = {**product(2, NOON + MINUTE, kafka(2)), "name": value}
    alone = {**product(3, NOON, kafka(3), "tea"), "name": value}
    documents = [product(1, NOON, kafka(1)), bad, alone, product(4, NOON, kafka(4), "bread")]
    assert sorted(run(store.upsert_products(documents))) == [1, 2]
    assert list(stored("products")) == ["bread", "milk"]
    history = run(store.price_history({"milk", "tea", "bread"}))
    assert {name: known.at(NOON + MINUTE) for name, known in history.items()} == {"milk": 1, "bread": 4}


def test_a_batch_that_is_too_much_for_one_message_is_stored_all_the_same(
    store: MongoStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store splits the batch. The indexes of duplicates and refused documents are those in the whole batch."""
    for module in ("connection", "errors"):
        monkeypatch.setattr(f"shopflow.store.{module}.MAX_MESSAGE_BYTES", 5_000)
    run(store.insert_purchases([purchase("p3", kafka(1))]))
    documents = [purchase(f"p{number}", kafka(10 + number)) for number in range(20)]
    documents[7]["value"] = 1 << 70
    inserted = run(store.insert_purchases(documents))
    assert (inserted.duplicates, list(inserted.refused)) == ({3}, [7])
    assert len(run(store.purchase_prices({one["_id"] for one in documents}))) == 19


def test_an_impossible_price_is_refused(store: MongoStore, run: Run, stored: Stored) -> None:
    """MongoDB's integers have 64 bits. The price is in no history."""
    documents = [product(1 << 70, NOON, kafka(1)), product(1, NOON, kafka(2), "bread")]
    assert list(run(store.upsert_products(documents))) == [0]
    assert list(stored("products")) == ["bread"]
    assert set(run(store.price_history({"milk", "bread"}))) == {"bread"}


def test_the_fake_is_away_as_often_as_set(run: Run) -> None:
    """A call while the fake is away raises `Unavailable`, writes nothing and is not in `calls`."""
    fake = FakeStore()
    fake.away(3)
    for call in (fake.prepare, lambda: fake.insert_purchases([purchase("p1")]), lambda: fake.sales_position(0)):
        with pytest.raises(Unavailable):
            run(call())
    assert run(fake.insert_purchases([purchase("p1", kafka(1))])).duplicates == frozenset()
    fake.refuses = lambda document: "too sour" if document["_id"] == "milk" else None
    assert run(fake.upsert_products([product(1, NOON, kafka(1)), product(1, NOON, kafka(2), "tea")])) == {0: "too sour"}
    assert {name: list(found) for name, found in fake.collections.items() if found} == {
        "products": ["tea"], "prices": [price_document(product(1, name="tea"))["_id"]], "purchases": ["p1"],
    }  # fmt: skip
    assert fake.calls == ["insert_purchases", "upsert_products"]


def test_a_voucher_is_stored_once_and_the_first_stays(store: MongoStore, run: Run, stored: Stored) -> None:
    """The same event's voucher is no duplicate. A voucher of another event is reported, and changes nothing."""
    for _ in range(2):
        assert run(store.insert_vouchers([voucher("v1", kafka(1)), voucher("v2", kafka(2))])) == frozenset()
    again = [voucher("v1", kafka(3), percent=99), voucher("v3", kafka(4)), voucher("v3", kafka(5), percent=7)]
    assert run(store.insert_vouchers(again)) == {0, 2}
    assert run(store.insert_vouchers([])) == frozenset()
    found = stored("vouchers")
    assert {name: (one["percent"], one["source"]["offset"]) for name, one in found.items()} == {
        "v1": (5, 1), "v2": (5, 2), "v3": (5, 4),
    }  # fmt: skip
    assert found["v1"]["issued_at"] == NOON


def test_a_part_of_the_sales_with_an_earlier_position_changes_nothing(store: MongoStore, run: Run) -> None:
    """A worker that was frozen may write after its successor. A later era counts more than any offset."""

    def row(units: int, position: tuple[int, int]) -> PartitionSales:
        return PartitionSales("hour", NOON, "milk", units, units, 3 * units, position)

    assert run(store.sales_position(0)) == (-1, -1)
    for units, position, stays in ((2, (0, 7), 2), (1, (0, 5), 2), (3, (1, 0), 3), (9, (0, 99), 3)):
        run(store.put_sales(0, [row(units, position)]))
        run(store.reached_sales(0, position))
        assert sold(store, run) == stays
    assert run(store.sales_position(0)) == (1, 0)
    run(store.put_sales(1, [row(4, (0, 1))]))
    assert sold(store, run) == 3 + 4
    assert run(store.sales_position(1)) == (-1, -1)


def sold(store: Any, run: Run) -> int:
    """The units of all parts."""
    if isinstance(store, FakeStore):
        return sum(part.units for parts in store.parts.values() for part in parts.values())
    return int(run(store.sold_from("milk", NOON)))
