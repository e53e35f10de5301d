"""The store's guarantees for the rest of shopflow, on the fake and on MongoDB."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shopflow.errors import Refused, Unavailable
from shopflow.store import MongoStore
from shopflow.store.types import Deletion, Document, Sold
from tests.contract.conftest import Run
from tests.support.documents import DAY, DIRECT, HOUR, MINUTE, NOON, customer, kafka, product, purchase, voucher
from tests.support.fakes import FakeStore


async def everything(documents: AsyncIterator[Any]) -> list[Any]:
    """All that an iterator yields."""
    return [document async for document in documents]


async def put(store: MongoStore, collection: str, document: Document) -> None:
    """Write as another program would."""
    if isinstance(store, FakeStore):
        store.collections[collection][document["_id"]] = document
    else:
        assert isinstance(store, MongoStore)
        await store._collection(collection).insert_one(document)


def product_ids(store: MongoStore, run: Run, limit: int = 9) -> list[str]:
    """The products' ids, in their order."""
    return [one["_id"] for one in run(store.products_after("", limit))]


def prices(store: MongoStore, run: Run) -> list[int]:
    """What the products cost, by their names."""
    return [one["price"] for one in run(store.products())]


def test_a_purchase_is_stored_once_however_often_it_is_delivered(store: MongoStore, run: Run) -> None:
    """A redelivery is neither an error nor a second purchase."""
    bought = purchase("p1", kafka(5))
    for _ in range(3):
        inserted = run(store.insert_purchases([bought]))
        assert not inserted.duplicates
        assert not inserted.refused
    assert run(store.sizes())["purchases"] == 1


def test_a_purchase_that_was_changed_by_hand_is_reported_and_restored(store: MongoStore, run: Run) -> None:
    """A redelivery restores its fields. Fields that another program added stay."""
    bought = [purchase("p1", kafka(5)), purchase("p2", kafka(6)), purchase("p3", kafka(7))]
    run(put(store, "purchases", {**bought[0], "price": 1, "note": "mine"}))
    run(put(store, "purchases", {**bought[1], "note": "mine"}))
    inserted = run(store.insert_purchases(bought))
    assert not inserted.duplicates
    assert {number: found["price"] for number, found in inserted.differing.items()} == {0: 1}
    run(store.restore_purchases([bought[0], purchase("p2", kafka(99), price=7), purchase("p4", kafka(8))]))
    run(put(store, "customers", customer("anna")))
    (anna,) = run(everything(store.customers()))
    assert [(one["_id"], one["price"], one.get("note")) for one in anna["purchases"]] == [
        ("p1", 300, "mine"), ("p2", 300, "mine"), ("p3", 300, None),
    ]  # fmt: skip
    assert run(store.insert_purchases(bought)).differing == {}


def test_a_purchase_that_was_sent_twice_is_a_duplicate(store: MongoStore, run: Run) -> None:
    """The same id at another offset, or of another customer, is not counted again; the first stays."""
    run(store.insert_purchases([purchase("p1", kafka(5))]))
    again = [
        purchase("p1", kafka(6), price=1, value=2),
        purchase("p1", kafka(5, partition=1), customer="bob"),
        purchase("p2", kafka(7)),
    ]
    assert run(store.insert_purchases(again)).duplicates == {0, 1}
    assert run(store.purchase_prices({"p1", "p2", "p3"})) == {"p1": 300, "p2": 300}


def test_of_two_of_one_id_in_one_call_the_first_is_stored(store: MongoStore, run: Run) -> None:
    """The result of a repeated call is the same."""
    both = [purchase("p1", kafka(5)), purchase("p1", kafka(6), price=1, value=2)]
    for _ in range(2):
        assert run(store.insert_purchases(both)).duplicates == {1}
    assert run(store.purchase_prices({"p1"})) == {"p1": 300}


def test_a_purchase_written_directly_is_not_counted_when_it_comes_by_kafka(store: MongoStore, run: Run) -> None:
    """What is in the database already, from elsewhere, is a duplicate."""
    run(store.insert_purchases([purchase("p1", DIRECT)]))
    assert run(store.insert_purchases([purchase("p1", kafka(1))])).duplicates == {0}


def test_a_purchase_of_another_program_is_not_ours(store: MongoStore, run: Run) -> None:
    """Without a `source` it is no redelivery of anything, and no sum breaks on it."""
    foreign = purchase("p1", {})
    del foreign["source"]
    run(put(store, "purchases", foreign))
    assert run(store.insert_purchases([purchase("p1", kafka(1)), purchase("p2", kafka(2))])).duplicates == {0}
    assert run(store.totals()).purchases == 1


def test_a_batch_that_comes_again_in_part_has_the_same_duplicates(store: MongoStore, run: Run) -> None:
    """Some were stored before the worker died; more than MongoDB is asked for at once."""
    batch = [purchase(f"p{number % 240}", kafka(number)) for number in range(250)]
    run(store.insert_purchases(batch[:130]))
    for _ in range(2):
        inserted = run(store.insert_purchases(batch))
        assert inserted.duplicates == set(range(240, 250))
        assert not inserted.refused
    assert len(run(store.purchase_prices({f"p{number}" for number in range(300)}))) == 240


def test_a_redelivery_beside_a_duplicate_is_distinguished(store: MongoStore, run: Run) -> None:
    """The stored document decides, in any order of the call."""
    run(store.insert_purchases([purchase("p1", kafka(5))]))
    assert run(store.insert_purchases([purchase("p1", kafka(6)), purchase("p1", kafka(5))])).duplicates == {0}
    assert run(store.insert_purchases([purchase("p1", kafka(5)), purchase("p1", kafka(5))])).duplicates == {1}
    other_topic = purchase("p1", kafka(5, topic="u"))
    assert run(store.insert_purchases([other_topic])).duplicates == {0}


def test_the_newest_product_wins_in_any_order(store: MongoStore, run: Run) -> None:
    """An older event never overwrites a newer one."""
    run(store.upsert_products([product(2, NOON + MINUTE, kafka(1))]))
    run(store.upsert_products([product(1, NOON, kafka(2))]))
    assert [one["price"] for one in run(store.products())] == [2]
    run(store.upsert_products([product(3, NOON + 2 * MINUTE, kafka(0))]))
    assert [one["price"] for one in run(store.products())] == [3]


def test_of_products_of_one_time_the_later_in_the_partition_wins(store: MongoStore, run: Run) -> None:
    """A redelivery of the earlier one does not bring it back."""
    first, second = product(1, NOON, kafka(1)), product(2, NOON, kafka(2))
    run(store.upsert_products([first, second]))
    run(store.upsert_products([first]))
    assert [one["price"] for one in run(store.products())] == [2]
    assert run(store.price_history({"milk"}))["milk"].at(NOON) == 2


def test_of_products_of_one_time_from_different_partitions_the_later_call_wins(store: MongoStore, run: Run) -> None:
    """Offsets of different partitions can't be compared; a direct write has none."""
    sources = [kafka(9), kafka(1, partition=1), kafka(0, topic="u"), DIRECT, kafka(3)]
    for number, source in enumerate(sources):
        run(store.upsert_products([product(number, NOON, source)]))
        assert prices(store, run) == [number]


def test_products_of_one_partition_in_one_call_and_of_one_time(store: MongoStore, run: Run) -> None:
    """The larger offset wins, in any order."""
    run(store.upsert_products([product(2, NOON, kafka(2)), product(1, NOON, kafka(1))]))
    assert prices(store, run) == [2]


def test_a_product_that_another_program_wrote_is_replaced(store: MongoStore, run: Run) -> None:
    """Without a time it is the oldest. Without a source it loses against an equal time."""
    run(put(store, "products", {"_id": "milk", "name": "Milk", "price": 9}))
    run(put(store, "products", {"_id": "tea", "name": "Tea", "price": 9, "updated_at": NOON}))
    run(store.upsert_products([product(1, NOON, kafka(1)), product(2, NOON, kafka(2), "tea")]))
    assert prices(store, run) == [1, 2]


def test_many_workers_leave_the_newest(store: MongoStore, run: Run) -> None:
    """They write the same products at once, each in another order; the prices of all times are kept."""
    documents = [product(price, NOON + price * MINUTE, kafka(price), name) for price in range(8) for name in "abc"]
    orders = [random.Random(seed).sample(documents, len(documents)) for seed in range(4)]

    async def work(order: list[Document]) -> None:
        for start in range(0, len(order), 6):
            await store.upsert_products(order[start : start + 6])

    async def all_work() -> None:
        await asyncio.gather(*map(work, orders))

    run(all_work())
    assert prices(store, run) == [7, 7, 7]
    for history in run(store.price_history({"a", "b", "c"})).values():
        assert history.prices == tuple((NOON + price * MINUTE, price) for price in range(8))


def test_a_batch_made_again_leaves_the_same(store: MongoStore, run: Run) -> None:
    """Each write can be repeated, whether it was confirmed or not."""
    first = [product(1, NOON, kafka(1)), product(5, NOON, kafka(2), "tea")]
    second = [product(2, NOON + MINUTE, kafka(4))]

    async def batch() -> None:
        await store.upsert_products(first)
        await store.delete_products([Deletion("tea", NOON + MINUTE, kafka(3))])
        await store.upsert_products(second)

    run(batch())
    once = run(store.products()), run(store.price_history({"milk", "tea"})), run(store.sizes())
    run(batch())
    assert (run(store.products()), run(store.price_history({"milk", "tea"})), run(store.sizes())) == once


def test_several_of_one_product_in_one_call_leave_the_newest_and_all_prices(store: MongoStore, run: Run) -> None:
    """A batch may hold a product's whole day."""
    day = [product(price, NOON + price * MINUTE, kafka(price)) for price in (3, 1, 2)]
    assert run(store.upsert_products(day)) == {}
    assert [one["price"] for one in run(store.products())] == [3]
    history = run(store.price_history({"milk"}))["milk"]
    assert [history.at(NOON + minutes * MINUTE) for minutes in (0, 1, 1.5, 2, 9)] == [1, 1, 1, 2, 3]


def test_a_deleted_product_has_no_price_from_then_on(store: MongoStore, run: Run) -> None:
    """Purchases made before keep finding theirs."""
    run(store.upsert_products([product(1, NOON, kafka(1))]))
    run(store.delete_products([Deletion("milk", NOON + MINUTE, kafka(2))]))
    assert run(store.products()) == []
    history = run(store.price_history({"milk", "bread"}))
    assert set(history) == {"milk"}
    assert [history["milk"].at(NOON), history["milk"].at(NOON + MINUTE)] == [1, None]


def test_a_product_offered_again_has_its_prices_between(store: MongoStore, run: Run) -> None:
    """Deleted, then offered anew: each purchase finds what was in force at its time."""
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


def test_a_deletion_at_the_time_of_a_price_ends_it(store: MongoStore, run: Run) -> None:
    """The later in the partition decides, for the price as for the product; redeliveries change nothing."""
    sold = product(1, NOON, kafka(1))
    run(store.upsert_products([sold]))
    run(store.delete_products([Deletion("milk", NOON, kafka(2))]))
    assert run(store.price_history({"milk"}))["milk"].at(NOON) is None
    run(store.upsert_products([product(2, NOON, kafka(3))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(2))]))
    assert prices(store, run) == [2]
    assert run(store.price_history({"milk"}))["milk"].at(NOON) == 2


def test_deletions_of_unknown_products_or_from_another_topic(store: MongoStore, run: Run) -> None:
    """An unknown product is no error. A product of a direct write, another topic or no source is deleted."""
    run(store.delete_products([Deletion("tea", NOON, kafka(1)), Deletion("tea", NOON, kafka(2))]))
    assert run(store.price_history({"tea"}))["tea"].at(NOON) is None
    for source in (DIRECT, kafka(9, topic="u"), kafka(9, partition=1)):
        run(store.upsert_products([product(1, NOON, source)]))
        run(store.delete_products([Deletion("milk", NOON, kafka(2))]))
        assert run(store.products()) == []
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON, DIRECT)]))
    assert run(store.products()) == []
    run(put(store, "products", {"_id": "milk", "name": "Milk", "price": 9}))
    run(store.delete_products([Deletion("milk", NOON, kafka(3))]))
    assert run(store.products()) == []


def test_a_product_without_a_history_has_the_price_that_it_has(store: MongoStore, run: Run) -> None:
    """Another program put it there."""
    old = {"_id": "milk", "name": "Milk", "type": "dairy", "price": 7, "updated_at": NOON}
    run(put(store, "products", old))
    history = run(store.price_history(["milk", "tea"]))
    assert set(history) == {"milk"}
    assert [history["milk"].at(NOON + minutes * MINUTE) for minutes in (-1, 0, 1)] == [7, 7, 7]


def test_a_product_of_another_program_may_lack_fields(store: MongoStore, run: Run) -> None:
    """Without a time its price counts always; without a price it is unknown."""
    run(put(store, "products", {"_id": "milk", "price": 7}))
    run(put(store, "products", {"_id": "tea", "price": None, "updated_at": NOON}))
    history = run(store.price_history(["milk", "tea"]))
    assert set(history) == {"milk"}
    assert history["milk"].at(NOON) == 7


def test_histories_of_more_products_than_are_asked_for_at_once(store: MongoStore, run: Run) -> None:
    """None is forgotten between two questions."""
    run(store.upsert_products([product(number, NOON, kafka(number), f"x{number}") for number in range(210)]))
    history = run(store.price_history({f"x{number}" for number in range(220)}))
    assert {name: known.at(NOON) for name, known in history.items()} == {f"x{number}": number for number in range(210)}


#: What a partition says of a product, in its order: minutes after noon and a price; None: it is deleted then.
said = st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 9)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=said, data=st.data())
def test_late_and_repeated_events_give_the_same_history(
    store: MongoStore, run: Run, said: list[tuple[int, int | None]], data: st.DataObject
) -> None:
    """In any order, any number of times, some of them in one call: the time decides, then the offset."""
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


#: When something is bought around a day's end, and how many.
BOUGHT = {"a": (-61, 1), "b": (-60, 2), "c": (-1, 3), "d": (0, 4), "e": (59, 5), "f": (60, 6), "g": (24 * 60, 7)}
MIDNIGHT = NOON + 12 * HOUR


def buy(store: MongoStore, run: Run) -> None:
    """Purchases of milk before, at and after midnight, one written directly; and one of bread."""
    run(
        store.insert_purchases(
            [
                purchase(name, kafka(many), quantity=many, value=10 * many, purchased_at=MIDNIGHT + minute * MINUTE)
                for name, (minute, many) in BOUGHT.items()
            ]
        )
    )
    run(store.insert_purchases([purchase("h", DIRECT, quantity=8, value=1, purchased_at=MIDNIGHT)]))
    run(store.insert_purchases([purchase("i", kafka(9), product_id="bread", purchased_at=MIDNIGHT)]))


def test_units_over_time_come_by_the_hour_and_by_the_day(store: MongoStore, run: Run) -> None:
    """In UTC, by time, without empty ones; the end is not within."""
    buy(store, run)
    by_hour = run(store.units_over_time("milk", MIDNIGHT - HOUR, MIDNIGHT + DAY, "hour"))
    assert by_hour == [
        Sold(MIDNIGHT - HOUR, 5, 50), Sold(MIDNIGHT, 17, 91), Sold(MIDNIGHT + HOUR, 6, 60),
    ]  # fmt: skip
    by_day = run(store.units_over_time("milk", None, None, "day"))
    assert by_day == [Sold(MIDNIGHT - DAY, 6, 60), Sold(MIDNIGHT, 23, 151), Sold(MIDNIGHT + DAY, 7, 70)]
    assert run(store.units_over_time("tea", None, None, "day")) == []
    old = purchase("old", kafka(99), purchased_at=datetime(1960, 1, 1, 0, 30, tzinfo=timezone.utc))
    run(store.insert_purchases([old]))
    first = run(store.units_over_time("milk", None, MIDNIGHT - 7 * DAY, "hour"))
    assert first == [Sold(datetime(1960, 1, 1, tzinfo=timezone.utc), 2, 600)]


def test_units_in_spans_touch_each_purchase_once(store: MongoStore, run: Run) -> None:
    """Each begins where the one before ends; open ends; nothing sold is nothing, not left out."""
    buy(store, run)
    edges = [MIDNIGHT + minute * MINUTE for minute in (-60, 0, 30, 31)]
    spans = list(zip([None, *edges], [*edges, None], strict=True))
    assert [(one.since, one.units) for one in run(store.units_in("milk", spans))] == [
        (None, 1), (edges[0], 5), (edges[1], 12), (edges[2], 0), (edges[3], 18),
    ]  # fmt: skip
    assert run(store.units_in("milk", [(None, None)])) == [Sold(None, 36, 281)]
    assert run(store.units_in("tea", [(None, None)])) == [Sold(None, 0, 0)]
    assert run(store.units_in("milk", [])) == []


def test_purchases_of_another_program_break_no_sum(store: MongoStore, run: Run) -> None:
    """A purchase without a time is in none."""
    buy(store, run)
    foreign = purchase("p1", {})
    del foreign["purchased_at"]
    run(put(store, "purchases", foreign))
    assert run(store.units_in("milk", [(None, None)])) == [Sold(None, 36, 281)]
    assert sum(one.units for one in run(store.units_over_time("milk", None, None, "day"))) == 36


def test_products_come_by_name_and_ids_in_their_order(store: MongoStore, run: Run) -> None:
    """Two of one name by id; no more ids than asked for."""
    names = {"z": "Bread", "ł": "Milk", "a": "Milk", "b": "Butter"}
    run(store.upsert_products([{**product(1, NOON, kafka(1), key), "name": name} for key, name in names.items()]))
    run(store.upsert_customers([customer(key) for key in names]))
    assert [one["_id"] for one in run(store.products())] == ["z", "b", "a", "ł"]
    assert product_ids(store, run) == run(store.customer_ids(9)) == ["a", "b", "z", "ł"]
    assert [product_ids(store, run, limit) for limit in (2, 0, -1)] == [["a", "b"], [], []]
    assert [run(store.customer_ids(limit)) for limit in (2, 0, -1)] == [["a", "b"], [], []]


def test_documents_come_back_as_they_were(store: MongoStore, run: Run) -> None:
    """Times with their zone, in milliseconds; None, Polish letters and large numbers too."""
    at = NOON + timedelta(microseconds=123_456)
    cut = NOON + timedelta(microseconds=123_000)
    run(store.upsert_products([product(2**53 + 1, at, kafka(1))]))
    run(store.upsert_customers([customer("c", at, kafka(1), city=None)]))
    run(store.insert_purchases([purchase("p", kafka(1), "c", value=2**63 - 1, purchased_at=at)]))
    assert run(store.products()) == [product(2**53 + 1, cut, kafka(1))]
    bought = purchase("p", kafka(1), "c", value=2**63 - 1, purchased_at=cut, product_name="Milk")
    (found,) = run(everything(store.customers()))
    assert found == {**customer("c", cut, kafka(1), city=None), "purchases": [bought]}
    assert found["registered_at"].utcoffset() == timedelta(0)


def test_large_numbers_come_back_as_plain_ones(store: MongoStore, run: Run) -> None:
    """The driver has a class of its own from 2**31 on, which the JSON encoder of `--json` doesn't take."""
    run(store.upsert_products([product(2**31, NOON, kafka(2**33))]))
    run(store.upsert_customers([customer("c", NOON, kafka(2**33))]))
    run(store.insert_purchases([purchase("p", kafka(2**33), "c", value=2**40)]))
    found = [*run(store.products()), *run(everything(store.customers()))]
    assert msgspec.json.decode(msgspec.json.encode(found))[0]["price"] == 2**31
    assert type(run(store.purchase_prices(["p"]))["p"]) is int
    assert [type(price) for _, price in run(store.price_history(["milk"]))["milk"].prices] == [int]
    assert run(everything(store.counts())) == [("c", 1, 2, 2**40)]


def test_a_redelivered_deletion_spares_later_documents(store: MongoStore, run: Run) -> None:
    """The product was offered anew after it was deleted; the batch of the deletion is delivered again."""
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(8))]))
    run(store.delete_products([Deletion("milk", NOON, kafka(8, partition=1))]))
    assert run(store.products()) == []
    run(store.upsert_products([product(1, NOON, kafka(9))]))
    run(store.delete_products([Deletion("milk", NOON - MINUTE, kafka(8))]))
    assert len(run(store.products())) == 1


def test_customers_are_replaced_by_newer_ones_and_deleted(store: MongoStore, run: Run) -> None:
    """As products are."""
    run(store.upsert_customers([customer("a", source=kafka(1)), customer("b", source=kafka(2))]))
    run(store.upsert_customers([customer("a", NOON + MINUTE, kafka(3), city=None), customer("b", NOON - MINUTE)]))
    run(store.delete_customers([Deletion("c", NOON, kafka(4))]))
    found = {one["_id"]: one for one in run(everything(store.customers()))}
    assert found["a"]["city"] is None
    assert found["b"]["registered_at"] == NOON
    run(store.delete_customers([Deletion("a", NOON, kafka(5))]))
    assert run(store.customer_ids(10)) == ["b"]


def test_several_of_one_customer_leave_the_newest(store: MongoStore, run: Run) -> None:
    """In one call or in several; of one time the later in the partition."""
    times = [(2, 1), (3, 2), (1, 3), (3, 4), (3, 3)]
    calls = [customer("a", NOON + minute * MINUTE, kafka(offset), city=str(offset)) for minute, offset in times]
    assert run(store.upsert_customers(calls)) == {}
    assert [one["city"] for one in run(everything(store.customers()))] == ["4"]
    for call in calls:
        run(store.upsert_customers([call]))
    assert [one["city"] for one in run(everything(store.customers()))] == ["4"]


def test_a_customer_who_came_later_is_not_deleted_and_purchases_stay(store: MongoStore, run: Run) -> None:
    """The deletion is delivered again after the customer registered anew."""
    run(store.upsert_customers([customer("anna", source=kafka(9)), customer("bob", source=kafka(9, partition=1))]))
    run(store.insert_purchases([purchase("p1", kafka(1), "anna"), purchase("p2", kafka(2), "bob")]))
    run(store.delete_customers([Deletion("anna", NOON + MINUTE, kafka(8)), Deletion("bob", NOON, kafka(8))]))
    assert run(store.customer_ids(9)) == ["anna"]
    run(store.delete_customers([Deletion("anna", NOON, kafka(9))]))
    assert run(store.customer_ids(9)) == []
    assert run(store.sizes())["purchases"] == 2


def test_customers_come_with_what_they_bought(store: MongoStore, run: Run) -> None:
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


def test_sums_are_those_of_the_purchases_from_kafka(store: MongoStore, run: Run) -> None:
    """What was written directly is not in the tables, so it is not in the sums that are compared with them."""
    assert run(store.totals()).purchases == 0
    run(store.insert_purchases([purchase("p1", kafka(1)), purchase("p2", kafka(2)), purchase("p3", kafka(3), "bob")]))
    run(store.insert_purchases([purchase("p4", DIRECT, "bob")]))
    totals = run(store.totals())
    assert (totals.purchases, totals.items, totals.spent, totals.customers) == (3, 6, 1800, 2)
    assert sorted(run(everything(store.counts()))) == [("anna", 2, 4, 1200), ("bob", 1, 2, 600)]
    assert run(store.sizes()) == {"products": 0, "customers": 0, "purchases": 4, "prices": 0}


def test_registered_returns_the_registered_customers(store: MongoStore, run: Run) -> None:
    """However many are asked for at once."""
    names = [f"c{number:03}" for number in range(250)]
    run(store.upsert_customers([customer(name) for name in names[::2]]))
    assert run(store.registered(names)) == set(names[::2])
    assert run(store.registered(["nobody", "$ne"])) == set()
    assert run(store.registered([])) == set()


def test_documents_are_found_by_their_ids_as_they_are(store: MongoStore, run: Run) -> None:
    """However many are asked for at once; also such as another program wrote."""
    names = [f"p{number:03}" for number in range(950)]
    run(store.insert_purchases([purchase(name, kafka(offset)) for offset, name in enumerate(names)]))
    run(put(store, "purchases", {"_id": "other", "price": 1.5}))
    found = run(store.documents("purchases", [*names, "other", "unknown"]))
    assert set(found) == {*names, "other"}
    assert found["p007"] == purchase("p007", kafka(7))
    assert found["other"] == {"_id": "other", "price": 1.5}
    assert run(store.documents("products", names)) == {}


def test_the_sources_are_those_of_documents_from_kafka(store: MongoStore, run: Run) -> None:
    """What was written directly, or by another program, has none there."""
    run(store.upsert_customers([customer("a", source=kafka(1)), customer("b", source=DIRECT)]))
    run(put(store, "customers", {"_id": "other"}))
    run(put(store, "customers", {"_id": "odd", "source": {"origin": "kafka"}}))
    assert dict(run(everything(store.sources("customers")))) == {"a": kafka(1), "odd": {"origin": "kafka"}}
    assert run(everything(store.sources("products"))) == []


@pytest.mark.parametrize("name", ["$set", "a.b", "a\x00b", "zażółć 🥛", "x" * 128, "{'$gt': ''}", " "])
def test_an_id_is_a_value_whatever_is_in_it(store: MongoStore, run: Run, name: str) -> None:
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
    assert product_ids(store, run) == run(store.customer_ids(9)) == []


def test_times_within_a_millisecond_are_one_time(store: MongoStore, run: Run) -> None:
    """MongoDB keeps milliseconds: the comparison here and there must agree."""
    run(store.upsert_products([product(1, NOON + timedelta(microseconds=900), kafka(1))]))
    run(store.upsert_products([product(2, NOON + timedelta(microseconds=100), kafka(2))]))
    assert [one["price"] for one in run(store.products())] == [2]


def test_documents_are_not_changed_by_storing_them(store: MongoStore, run: Run) -> None:
    """The caller counts them afterwards."""
    bought, sold = purchase("p1", kafka(1)), product(1, NOON, kafka(1))
    registered = customer("c", NOON + timedelta(microseconds=1))
    before = repr((bought, sold, registered))
    run(store.insert_purchases([bought, bought]))
    run(store.upsert_products([sold, sold]))
    run(store.upsert_customers([registered]))
    assert repr((bought, sold, registered)) == before


def test_empty_calls_do_nothing(store: MongoStore, run: Run) -> None:
    """A batch of bad records only has no documents."""
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
    """One that MongoDB never takes must not hold up a batch for ever; nor when the batch comes again."""
    documents = [purchase("p1", kafka(1)), purchase("p2", kafka(2), note=value), purchase("p3", kafka(3))]
    documents += [purchase("p1", kafka(4)), purchase("p2", kafka(5))]
    for _ in range(2):
        inserted = run(store.insert_purchases(documents))
        assert list(inserted.refused) == [1]
        assert 0 < len(inserted.refused[1]) <= 300
        assert inserted.duplicates == {3}
    assert set(run(store.purchase_prices({"p1", "p2", "p3"}))) == {"p1", "p2", "p3"}


@impossible
def test_an_impossible_customer_is_refused_and_its_neighbours_are_stored(
    store: MongoStore, run: Run, value: Any
) -> None:
    """The older one of the same id gets its turn."""
    documents = [customer("a", city="old"), customer("a", NOON + MINUTE, city=value), customer("b")]
    assert list(run(store.upsert_customers(documents))) == [1]
    assert [(one["_id"], one["city"]) for one in run(everything(store.customers()))] == [("a", "old"), ("b", "Łódź")]


@impossible
def test_an_impossible_product_is_refused_and_brings_no_price(store: MongoStore, run: Run, value: Any) -> None:
    """It is a dead letter: no purchase may find a price that no stored product had."""
    bad = {**product(2, NOON + MINUTE, kafka(2)), "name": value}
    alone = {**product(3, NOON, kafka(3), "tea"), "name": value}
    documents = [product(1, NOON, kafka(1)), bad, alone, product(4, NOON, kafka(4), "bread")]
    assert sorted(run(store.upsert_products(documents))) == [1, 2]
    assert product_ids(store, run) == ["bread", "milk"]
    history = run(store.price_history({"milk", "tea", "bread"}))
    assert {name: known.at(NOON + MINUTE) for name, known in history.items()} == {"milk": 1, "bread": 4}


def test_a_batch_that_is_too_much_for_one_message_is_stored_all_the_same(
    store: MongoStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver splits it. Duplicates and refused documents keep their indexes."""
    monkeypatch.setattr("shopflow.store.purchases._MAX_MESSAGE_BYTES", 5_000)
    run(store.insert_purchases([purchase("p3", kafka(1))]))
    documents = [purchase(f"p{number}", kafka(10 + number)) for number in range(20)]
    documents[7]["value"] = 1 << 70
    inserted = run(store.insert_purchases(documents))
    assert (inserted.duplicates, list(inserted.refused)) == ({3}, [7])
    assert len(run(store.purchase_prices({one["_id"] for one in documents}))) == 19


def test_an_impossible_price_is_refused(store: MongoStore, run: Run) -> None:
    """MongoDB's integers have 64 bits."""
    documents = [product(1 << 70, NOON, kafka(1)), product(1, NOON, kafka(2), "bread")]
    assert list(run(store.upsert_products(documents))) == [0]
    assert product_ids(store, run) == ["bread"]
    assert set(run(store.price_history({"milk", "bread"}))) == {"bread"}


def test_preparing_again_changes_nothing(store: MongoStore, run: Run) -> None:
    """Every worker does it at its start."""
    run(store.insert_purchases([purchase("p1", kafka(1))]))
    run(store.prepare())
    run(store.prepare())
    run(store.ping())
    assert run(store.sizes())["purchases"] == 1


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_the_indexes_are_made_once_and_those_of_the_contract(store: Any, run: Run) -> None:
    """Other programs rely on them."""
    run(store.prepare())
    found = run(store._collection("purchases").index_information())
    keys = sorted([key for key, _ in index["key"]] for index in found.values())
    assert keys == [["_id"], ["customer_id", "purchased_at"], ["product_id", "purchased_at"]]


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_another_index_with_the_name_of_ours_is_refused(store: Any, run: Run) -> None:
    """The error is one line that names the collection; it is not retried for ever."""
    purchases = store._collection("purchases")
    run(purchases.drop_index("customer_id_1_purchased_at_1"))
    run(purchases.create_index([("quantity", 1)], name="customer_id_1_purchased_at_1"))
    with pytest.raises(Refused, match="collection purchases") as refused:
        run(store.prepare())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_closing_twice(store: Any, run: Run) -> None:
    """The end of a command and the end of the program may both do it."""
    other = MongoStore(store._database)
    run(other.close())
    other.connect("mongodb://127.0.0.1:1")
    run(other.close())
    run(other.close())


def test_a_collection_is_read_in_its_order_from_any_id_on(
    store: MongoStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export reads each document once, as it is, in a known order, and goes on from where it was cut off."""
    monkeypatch.setattr("shopflow.store.connection.PAGE_SIZE", 2)
    names = ["a", "b", "c1", "c2", "Ł", "z", "ą"]
    run(store.insert_purchases([purchase(name, kafka(place), note="mine") for place, name in enumerate(names)]))
    for after, wanted in (
        ("", sorted(names)),
        ("b", sorted(names)[2:]),
        ("c", sorted(names)[2:]),
        ("Ł", []),
        ("~", ["ą", "Ł"]),
    ):
        pages = run(everything(store.pages("purchases", after)))
        assert [one["_id"] for page in pages for one in page] == wanted
        assert all(0 < len(page) <= 2 for page in pages)
    assert run(everything(store.pages("purchases")))[0][0] == purchase("a", kafka(0), note="mine")
    assert run(everything(store.pages("customers"))) == []


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_ids_that_are_no_text_are_passed_over(store: Any, run: Run) -> None:
    """They are another program's; they neither end nor upset the reading."""
    for name in (1, "a", 2.5, "b"):
        run(put(store, "products", {"_id": name}))
    assert run(everything(store.pages("products"))) == [[{"_id": "a"}, {"_id": "b"}]]


@pytest.mark.parametrize("store", ["mongodb"], indirect=True)
@pytest.mark.servers
def test_each_write_of_events_reports_the_outcomes_of_its_documents(store: Any, run: Run) -> None:
    """After a success, with the collection and the seconds. Reads and other writes report nothing."""
    reported: list[tuple[str, dict[str, int]]] = []

    def on_write(collection: str, seconds: float, outcomes: dict[str, int]) -> None:
        assert 0 < seconds < 60
        reported.append((collection, outcomes))

    store.on_write = on_write
    bought = [purchase("p1", kafka(1)), purchase("p1", kafka(2)), purchase("p2", kafka(3), value=1 << 70)]
    run(store.insert_purchases(bought))
    run(store.restore_purchases(bought[:1]))
    run(store.upsert_products([product(1, NOON, kafka(1)), product(1 << 70, NOON, kafka(2), "tea")]))
    run(store.upsert_customers([customer("anna"), customer("bob")]))
    run(store.delete_products([Deletion("milk", NOON, kafka(3))]))
    run(store.delete_customers([Deletion("anna", NOON, kafka(3)), Deletion("bob", NOON, kafka(4))]))
    run(store.insert_vouchers([{"_id": "v", "source": kafka(1)}]))
    run(store.totals())
    assert reported == [
        ("purchases", {"inserted": 1, "duplicate": 1, "refused": 1}),
        ("purchases", {"restored": 1}),
        ("products", {"upserted": 1, "refused": 1}),
        ("customers", {"upserted": 2, "refused": 0}),
        ("products", {"deleted": 1}),
        ("customers", {"deleted": 2}),
    ]


def test_the_fake_is_away_as_often_as_set(run: Run) -> None:
    """Tests of the outages rely on it: a call that finds it away does nothing."""
    fake = FakeStore()
    fake.away(3)
    for call in (fake.ping, fake.totals, lambda: everything(fake.customers())):
        with pytest.raises(Unavailable):
            run(call())
    assert run(fake.insert_purchases([purchase("p1", kafka(1))])).duplicates == frozenset()
    fake.refuses = lambda document: "too sour" if document["_id"] == "milk" else None
    assert run(fake.upsert_products([product(1, NOON, kafka(1)), product(1, NOON, kafka(2), "tea")])) == {0: "too sour"}
    assert run(fake.sizes()) == {"products": 1, "customers": 0, "purchases": 1, "prices": 1}


def test_products_are_paged_by_their_ids(store: MongoStore, run: Run) -> None:
    """Those behind an id, whatever it is; ids of other kinds than text are another program's."""
    run(store.upsert_products([product(1, NOON, kafka(1), name) for name in ("b", "$gt", "a", "ł")]))
    assert [one["_id"] for one in run(store.products_after("", 9))] == ["$gt", "a", "b", "ł"]
    assert [one["_id"] for one in run(store.products_after("a", 1))] == ["b"]
    assert run(store.products_after("b", 1)) == [product(1, NOON, kafka(1), "ł")]
    assert run(store.products_after("", 0)) == run(store.products_after("ł", 9)) == []


def test_purchases_are_paged_by_time_and_id(store: MongoStore, run: Run) -> None:
    """Each once and in order, wherever a page ends, also among many of one moment; no other customer's."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    ids = [f"{choice.randrange(10**6):06}" for _ in range(40)]
    made = [
        purchase(name, kafka(number), purchased_at=NOON + choice.randrange(5) * MINUTE)
        for number, name in enumerate(dict.fromkeys(ids))
    ]
    run(store.insert_purchases([*made, purchase("other", kafka(99), "bob")]))
    wanted = sorted(made, key=lambda one: (one["purchased_at"], one["_id"]))
    assert run(store.purchases_after("anna", None, 99)) == wanted
    for size in (1, 3, 7, 40):
        found: list[Document] = []
        while page := run(
            store.purchases_after("anna", (found[-1]["purchased_at"], found[-1]["_id"]) if found else None, size)
        ):
            assert len(page) <= size
            found += page
        assert found == wanted
    assert run(store.purchases_after("anna", None, 0)) == run(store.purchases_after('{"$gt": ""}', None, 9)) == []


def test_the_last_purchases_of_a_customer(store: MongoStore, run: Run) -> None:
    """Newest first, with the products' names; an id is only ever an id."""
    run(store.upsert_products([product(300, NOON, kafka(0))]))
    documents = [purchase(f"p{number}", kafka(number), purchased_at=NOON + number * MINUTE) for number in range(5)]
    documents += [purchase("x", kafka(9), "bob"), purchase("p9", kafka(8), product_id="gone", purchased_at=NOON)]
    run(store.insert_purchases(documents))
    found = run(store.last_purchases("anna", 10))
    assert [one["_id"] for one in found] == ["p4", "p3", "p2", "p1", "p9", "p0"]
    assert [one["product_name"] for one in found] == ["Milk"] * 4 + [None, "Milk"]
    assert [one["_id"] for one in run(store.last_purchases("anna", 2))] == ["p4", "p3"]
    assert run(store.last_purchases("$gt", 2)) == run(store.last_purchases("nobody", 2)) == []


def test_a_voucher_is_stored_once_and_the_first_stays(store: MongoStore, run: Run) -> None:
    """The same event's voucher is no duplicate. Another event's is reported, and changes nothing."""
    for _ in range(2):
        assert run(store.insert_vouchers([voucher("v1", kafka(1)), voucher("v2", kafka(2))])) == frozenset()
    again = [voucher("v1", kafka(3), percent=99), voucher("v3", kafka(4)), voucher("v3", kafka(5), percent=7)]
    assert run(store.insert_vouchers(again)) == {0, 2}
    assert run(store.insert_vouchers([])) == frozenset()
    found = run(everything(store.vouchers()))
    assert {one["_id"]: (one["percent"], one["source"]["offset"]) for one in found} == {
        "v1": (5, 1), "v2": (5, 2), "v3": (5, 4),
    }  # fmt: skip
    assert found[0]["issued_at"] == NOON


def test_vouchers_come_newest_first(store: MongoStore, run: Run) -> None:
    """All, those of one customer, the first few."""
    made = [voucher(f"v{n}", kafka(n), ("anna", "$bob")[n % 2], NOON + n * MINUTE) for n in range(5)]
    run(store.insert_vouchers(made))
    assert [one["_id"] for one in run(everything(store.vouchers()))] == ["v4", "v3", "v2", "v1", "v0"]
    assert [one["_id"] for one in run(everything(store.vouchers("$bob")))] == ["v3", "v1"]
    assert [one["_id"] for one in run(everything(store.vouchers("anna", 2)))] == ["v4", "v2"]
    assert run(everything(store.vouchers(limit=0))) == []


def test_buyers_are_the_purchases_from_kafka_customer_by_customer(store: MongoStore, run: Run) -> None:
    """With what a rule asks for, and no more."""
    sources = [kafka(n) if n % 5 else DIRECT for n in range(20)]
    run(store.insert_purchases([purchase(f"p{n}", source, f"c{n % 3}") for n, source in enumerate(sources)]))
    found = run(everything(store.buyers()))
    names = [one["customer_id"] for one in found]
    assert names == sorted(names)
    assert sorted(one["source"]["offset"] for one in found) == [n for n in range(20) if n % 5]
    assert set(found[0]) == {"customer_id", "product_id", "value", "purchased_at", "source"}


def test_registrations_are_the_customers_from_kafka(store: MongoStore, run: Run) -> None:
    """Each with where they live and since when they are known."""
    run(store.upsert_customers([customer("anna"), customer("bob", source=DIRECT)]))
    (found,) = run(everything(store.registrations()))
    assert (found["_id"], found["city"], found["registered_at"]) == ("anna", "Łódź", NOON)


def test_documents_of_other_programs_do_not_end_a_reader(store: MongoStore, run: Run) -> None:
    """Without a time or a product, or with something else there: the others are read, and they too."""
    strange = {"_id": "anna", "registered_at": "yesterday"}
    run(put(store, "customers", strange))
    for document in (
        {"_id": "odd", "customer_id": "anna"},
        {"_id": "when", "customer_id": "anna", "product_id": ["x"]},
    ):
        run(put(store, "purchases", document))
    run(put(store, "purchases", purchase("good", kafka(1))))
    run(put(store, "products", {"_id": "milk", "name": "Milk"}))
    (anna,) = run(everything(store.customers()))
    assert anna["registered_at"] == "yesterday"
    assert [(one["_id"], one["product_name"]) for one in anna["purchases"]] == [
        ("good", "Milk"),
        ("odd", None),
        ("when", None),
    ]
    last = run(store.last_purchases("anna", 5))
    assert {one["_id"]: one["product_name"] for one in last} == {"good": "Milk", "odd": None, "when": None}
