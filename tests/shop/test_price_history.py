"""Prices over time: which price was in force when, and what was sold at it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymongo.database import Database

from shopflow.shop.price_history import Period, Prices, SalesOverTime, periods, read, sales_over_time
from shopflow.store.types import BEGINNING, Deletion, Document, PriceHistory, Sold
from tests.conftest import Run
from tests.support.documents import DAY, HOUR, MINUTE, NOON, kafka, product, purchase
from tests.support.stores import ObservedStore


@dataclass
class Milk:
    """A product, its prices and its purchases, in MongoDB."""

    store: ObservedStore
    database: Database[Document]
    run: Run

    def costs(self, *prices: tuple[int | None, datetime], bought: tuple[tuple[datetime, int, int], ...] = ()) -> Milk:
        """Store these prices (None: deleted) and these purchases (when, how many, at which price), and no others."""
        for name in ("products", "prices", "purchases"):
            self.database[name].delete_many({})
        for offset, (price, at) in enumerate(prices):
            if price is None:
                self.run(self.store.delete_products([Deletion("milk", at, kafka(offset))]))
            else:
                self.run(self.store.upsert_products([product(price, at, kafka(offset))]))
        pieces = [
            purchase(f"p{number}", quantity=units, price=price, value=price * units, purchased_at=at)
            for number, (at, units, price) in enumerate(bought)
        ]
        self.run(self.store.insert_purchases(pieces))
        return self

    def put(self, document: Document) -> None:
        """Store the product as another program does."""
        self.database.products.insert_one(document)

    def found(self, since: datetime | None = None) -> Prices:
        """The product's price history."""
        prices = self.run(read(self.store, "milk", since))
        assert prices is not None
        return prices

    def sold(self, now: datetime, since: datetime | None = None) -> SalesOverTime:
        """The sales that are shown below the prices."""
        prices = self.found(since).prices
        return self.run(sales_over_time(self.store, "milk", prices, now, since))


@pytest.fixture
def milk(store: ObservedStore, database: Database[Document], run: Run) -> Milk:
    """A product that was never offered and never bought."""
    return Milk(store, database, run)


def test_each_price_ends_where_the_next_begins(milk: Milk) -> None:
    """A deletion ends a price too. An event with the same price begins no new period."""
    milk.costs(
        (300, NOON), (300, NOON + MINUTE), (None, NOON + 2 * MINUTE), (400, NOON + 5 * MINUTE),
        bought=((NOON, 1, 300), (NOON + MINUTE, 2, 300), (NOON + 5 * MINUTE, 4, 400)),
    )  # fmt: skip
    assert milk.found() == Prices(
        "milk",
        "Milk",
        (
            Period(NOON, NOON + 2 * MINUTE, 300, 3, 900),
            Period(NOON + 2 * MINUTE, NOON + 5 * MINUTE, None),
            Period(NOON + 5 * MINUTE, None, 400, 4, 1_600),
        ),
    )


def test_what_was_sold_before_the_first_price_is_not_forgotten(milk: Milk) -> None:
    """Purchases from before the first price are shown with it, as purchases without a price are given it."""
    milk.costs((300, NOON), (400, NOON + MINUTE), bought=((NOON - DAY, 5, 300), (NOON, 1, 300)))
    assert milk.found().prices == (
        Period(None, NOON, 300, 5, 1_500), Period(NOON, NOON + MINUTE, 300, 1, 300), Period(NOON + MINUTE, None, 400),
    )  # fmt: skip


def test_what_was_paid_is_what_is_shown(milk: Milk) -> None:
    """Purchases at another price than the one in force are rows of their own, so units times price is the revenue."""
    milk.costs(
        (300, NOON), (None, NOON + HOUR),
        bought=((NOON - HOUR, 1, 200), (NOON, 527, 415), (NOON, 3, 0), (NOON, 2, 300), (NOON + HOUR, 4, 300)),
    )  # fmt: skip
    found = milk.found()
    assert found.prices == (Period(NOON, NOON + HOUR, 300, 2, 600), Period(NOON + HOUR, None, None))
    assert found.other_prices == (
        Period(None, NOON, 200, 1, 200), Period(NOON, NOON + HOUR, 415, 527, 218_705), Period(NOON, NOON + HOUR, 0, 3),
        Period(NOON + HOUR, None, 300, 4, 1_200),
    )  # fmt: skip
    assert [(one.price, other) for one, other in found.rows()] == [
        (200, True), (300, False), (415, True), (0, True), (None, False), (300, True),
    ]  # fmt: skip
    assert [(one.price, other) for one, other in found.rows(newest_first=True)] == [
        (None, False), (300, True), (300, False), (415, True), (0, True), (200, True),
    ]  # fmt: skip


def test_many_other_prices_are_summed_up(milk: Milk) -> None:
    """A period names five other prices, those with the most units. The others are a row, without a price."""
    milk.costs((300, NOON), bought=tuple((NOON, units, 10 * units) for units in range(1, 9)))
    *named, rest = milk.found().other_prices
    assert [(one.price, one.units, one.revenue) for one in named] == [(10 * n, n, 10 * n * n) for n in (8, 7, 6, 5, 4)]
    assert (rest.price, rest.units, rest.revenue) == (None, 6, 140)


def test_a_product_of_another_program_has_its_price_since_ever(milk: Milk) -> None:
    """A product without a history has one period, without a start."""
    milk.costs(bought=((NOON, 5, 7),))
    milk.put({"_id": "milk", "price": 7})
    assert milk.found() == Prices("milk", None, (Period(None, None, 7, 5, 35),))


def test_a_deleted_product_is_known_and_one_never_offered_is_not(milk: Milk) -> None:
    """The prices of a deleted product stay. Its name was deleted with it."""
    milk.costs((300, NOON), (None, NOON + MINUTE))
    assert milk.found() == Prices("milk", None, (Period(NOON, NOON + MINUTE, 300), Period(NOON + MINUTE, None, None)))
    assert milk.run(read(milk.store, "tea")) is None


def test_since_leaves_out_what_was_over_before(milk: Milk) -> None:
    """The price in force at `since` is shown with its whole period."""
    milk.costs((1, NOON), (2, NOON + MINUTE), (3, NOON + 2 * MINUTE), bought=((NOON + MINUTE, 8, 2),))
    assert [one.price for one in milk.found(NOON + MINUTE).prices] == [2, 3]
    assert milk.found(NOON + 1.5 * MINUTE).prices[0] == Period(NOON + MINUTE, NOON + 2 * MINUTE, 2, 8, 16)
    assert [one.price for one in milk.found(NOON + DAY).prices] == [3]


changes = st.lists(
    st.tuples(st.integers(0, 50), st.none() | st.integers(0, 3)), min_size=1, unique_by=lambda one: one[0]
)


@given(changes=changes, minute=st.integers(-2, 52))
def test_the_periods_say_what_the_purchases_are_given(changes: list[tuple[int, int | None]], minute: int) -> None:
    """At any time exactly one period is in force. Its price is the one that the history gives."""
    history = PriceHistory(tuple((NOON + after * MINUTE, price) for after, price in sorted(changes)))
    at = NOON + minute * MINUTE
    (then,) = [
        one
        for one in periods(history)
        if (one.since is None or one.since <= at) and (one.until is None or at < one.until)
    ]
    assert then.price == history.at(at)


def test_some_days_are_shown_by_the_hour_and_more_by_the_day(milk: Milk) -> None:
    """The chart begins at the first price, or at `since`."""
    seed = random.randrange(1_000)
    print("seed", seed)
    some = random.Random(seed)
    times = tuple((NOON + some.random() * 20 * DAY, 1, 300) for _ in range(50))
    milk.costs((300, NOON), bought=times)
    whole = milk.sold(NOON + 20 * DAY)
    assert (whole.start, whole.end, whole.bucket, whole.width) == (NOON, NOON + 20 * DAY, "day", DAY)
    assert sum(one.units for one in whole.sold) == 50
    since = NOON + 17 * DAY
    part = milk.sold(NOON + 20 * DAY, since)
    assert (part.start, part.bucket, part.width) == (since, "hour", HOUR)
    assert sum(one.units for one in part.sold) == sum(at >= since for at, _, _ in times)
    assert milk.sold(NOON + 20 * DAY, NOON - 99 * DAY).start == NOON


def test_an_hour_is_shown_by_the_minute(milk: Milk) -> None:
    """Up to two hours are shown by the minute."""
    milk.costs((300, NOON), bought=((NOON + MINUTE, 2, 1), (NOON + 1.5 * MINUTE, 3, 1), (NOON + 9 * MINUTE, 1, 1)))
    near = milk.sold(NOON + HOUR)
    assert (near.bucket, near.width, [one.units for one in near.sold]) == ("minute", MINUTE, [5, 1])
    assert milk.sold(NOON + 3 * HOUR).bucket == "hour"


def test_only_the_last_prices_where_they_are_many(milk: Milk) -> None:
    """The sales of older prices are not summed up."""
    milk.costs((1, NOON), (2, NOON + MINUTE), (3, NOON + 2 * MINUTE))
    prices = milk.run(read(milk.store, "milk", most=2))
    assert prices is not None
    assert [one.price for one in prices.prices] == [2, 3]


def test_a_course_has_a_length_whatever_is_known(milk: Milk) -> None:
    """The chart is an hour long if the first price is new, or in the future, or missing with nothing sold."""
    for at in (NOON, NOON + DAY):
        milk.costs((300, at))
        assert milk.sold(NOON) == SalesOverTime(NOON - HOUR, NOON, "minute", ())
        assert milk.sold(NOON, NOON + 9 * DAY).start == NOON - HOUR
    milk.costs()
    milk.put({"_id": "milk", "price": 7})
    assert milk.sold(NOON) == SalesOverTime(NOON - HOUR, NOON, "minute", ())
    milk.costs(bought=((NOON - 2 * HOUR, 5, 100),))
    milk.put({"_id": "milk", "price": 7})
    day = NOON.replace(hour=0)
    assert milk.sold(NOON) == SalesOverTime(day, NOON, "hour", (Sold(NOON - 2 * HOUR, 5, 500),))


def test_the_first_period_of_all_time_is_one() -> None:
    """A price since the beginning of time has one period, without a start."""
    assert periods(PriceHistory(((BEGINNING, 7), (NOON, 8)))) == [Period(None, NOON, 7), Period(NOON, None, 8)]
