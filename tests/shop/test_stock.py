"""Stock: the units left, and one alert for each stocking."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.database import Database

from faust_batches import Outage
from shopflow.errors import PartitionLost, Slow, Unavailable
from shopflow.shop import stock
from shopflow.shop.announcements import ALERTS
from shopflow.shop.stock import AlertLog, Watch, alert_id, left_of
from shopflow.store.types import Document, PartitionSales
from tests.conftest import Run
from tests.support.documents import DIRECT, HOUR, MINUTE, NOON, kafka, product, purchase
from tests.support.fakes import FakeRecord
from tests.support.stores import ObservedStore

#: The time of the stocking: in the middle of an hour.
HALF_PAST = NOON + 30 * MINUTE
TOPIC = "shop.products"


class Stockroom:
    """A product in MongoDB, the topic of the alerts, and a worker that may be killed at any time."""

    def __init__(self, store: ObservedStore, database: Database[Document], run: Run) -> None:
        self.store, self.database, self.run = store, database, run
        self.empty()

    def empty(self) -> None:
        """Remove everything that was offered, sold or published."""
        for name in ("products", "purchases", "sales", "alerts"):
            self.database[name].delete_many({})
        self.store.away(0)
        self.published: list[tuple[int, Document]] = []
        self.owned = [0, 1]
        self.lease_valid = True
        #: Faults of the next sends: nothing is sent, or it is sent and not acknowledged.
        self.faults: list[str] = []
        self.before_send: Callable[[], None] = lambda: None
        self.bought = 0
        #: Purchases whose sales are not written yet.
        self.unwritten: list[Document] = []
        self.units: dict[datetime, int] = {}
        self.start()

    def start(self) -> None:
        """Start a new worker, which has nothing in its caches."""
        self.log = AlertLog("shop.alerts", TOPIC, self._publish, self._read)
        self.watch = Watch(
            self.store,  # type: ignore[arg-type]
            self.log,
            lambda: self.owned,
            lambda: self.lease_valid,
            now=lambda: HALF_PAST,
            outages={name: Outage(name) for name in ("MongoDB", "Kafka")},
        )

    async def _publish(self, topic: str, partition: int, rows: Sequence[tuple[bytes, bytes]]) -> None:
        fault = self.faults.pop() if self.faults else ""
        for key, value in rows if fault != "lost" else ():
            assert topic == "shop.alerts"
            event = json.loads(value)
            assert key == event["product_id"].encode()
            self.published.append((partition, event))
        if fault:
            raise KafkaError(fault)

    async def _read(self, topic: str, partition: int, since: int, *, of: Any) -> list[Any]:
        found = [FakeRecord(None, json.dumps(event).encode()) for at, event in self.published if at == partition]
        self.before_send()
        return list(map(of, [FakeRecord(None, b"not ours"), FakeRecord(None, None), *found]))

    def offer(
        self,
        units: Any,
        limit: int | None = None,
        at: datetime = HALF_PAST,
        *,
        name: str = "milk",
        source: Document | None = None,
    ) -> Document:
        """Stock the product. None: an event without a stock."""
        given = {"stock": units, "stock_limit": limit}
        fields = {field: value for field, value in given.items() if value is not None}
        made = product(1, at, source or kafka(0, 1, TOPIC), name, **fields)
        self.database.products.replace_one({"_id": name}, made, upsert=True)
        return made

    def sell(self, units: int, at: datetime = HALF_PAST, source: Document | None = None) -> None:
        """Store a purchase, without its sales."""
        self.bought += 1
        source = source or kafka(self.bought)
        self.unwritten.append(purchase(f"p{self.bought}", source, quantity=units, value=units, purchased_at=at))
        if source != DIRECT:
            hour = at.replace(minute=0)
            self.units[hour] = self.units.get(hour, 0) + units

    def mirror(self, most: int | None = None) -> None:
        """Write the sales, or only the first `most` rows. The total is the last row, as `Mirror` writes it."""
        rows = [
            PartitionSales("hour", hour, "milk", 1, units, 1, (0, self.bought)) for hour, units in self.units.items()
        ]
        days: dict[datetime, int] = {}
        for hour, units in self.units.items():
            day = hour.replace(hour=0)
            days[day] = days.get(day, 0) + units
        rows += [PartitionSales("day", day, "milk", 1, units, 1, (0, self.bought)) for day, units in days.items()]
        rows.append(PartitionSales("total", None, "milk", 1, sum(self.units.values()), 1, (0, self.bought)))
        self.run(self.store.put_sales(0, rows[:most]))

    def _write(self) -> None:
        if self.unwritten:
            self.database.purchases.insert_many(self.unwritten)
            self.unwritten = []

    def check(self) -> None:
        """Run a round of checks. A failure is left to a later round."""
        self._write()
        self.run(self.watch.check_products())

    def left(self) -> dict[str, int]:
        """What is left of each product."""
        self._write()
        return self.run(left_of(self.store, list(self.database.products.find())))  # type: ignore[arg-type]

    @property
    def ids(self) -> list[str]:
        """The ids of the alerts in the topic."""
        return [event["alert_id"] for _, event in self.published]


@pytest.fixture
def shop(store: ObservedStore, database: Database[Document], run: Run) -> Stockroom:
    """A shop that has sold nothing."""
    return Stockroom(store, database, run)


def test_the_alert_comes_when_the_limit_is_reached_and_not_again(shop: Stockroom) -> None:
    """The event and the document have what is needed to order more."""
    product = shop.offer(10, 3)
    for _ in range(7):
        shop.check()
        assert shop.published == []
        shop.sell(1)
        shop.mirror()
    shop.check()
    expected = {
        "alert_id": "milk@2026-05-01T12:30:00.000+00:00", "kind": "stock", "product_id": "milk", "left": 3, "limit": 3,
        "stock": 10, "since": "2026-05-01T12:30:00Z", "at": "2026-05-01T12:30:00Z",
    }  # fmt: skip
    assert shop.published == [(1, expected)]
    assert alert_id(product) == expected["alert_id"]
    shop.sell(5)
    shop.mirror()
    shop.check()
    assert len(shop.published) == 1
    assert list(shop.database.alerts.find()) == ALERTS.documents([FakeRecord(None, json.dumps(expected).encode())])


def test_what_was_bought_before_the_stocking_does_not_count(shop: Stockroom) -> None:
    """Purchases of the same hour, before the stocking, don't count. Late purchases count by their own time."""
    shop.offer(10)
    shop.sell(8, HALF_PAST - MINUTE)
    shop.sell(8, HALF_PAST - HOUR)
    shop.sell(9, HALF_PAST, source=DIRECT)
    shop.sell(9, HALF_PAST - MINUTE, source=DIRECT)
    shop.sell(4, HALF_PAST + 30 * HOUR)
    shop.sell(5, HALF_PAST)
    shop.mirror()
    shop.check()
    assert (shop.left(), shop.published) == ({"milk": 1}, [])
    shop.sell(2, HALF_PAST + 5 * MINUTE)
    shop.mirror()
    shop.check()
    assert shop.left() == {"milk": -1}  # sold more than there was
    assert [event["left"] for _, event in shop.published] == [-1]


def test_nothing_is_asked_of_products_that_were_not_sold_since(shop: Stockroom) -> None:
    """A round of such products makes two requests."""
    shop.offer(10)
    shop.sell(1)
    shop.mirror()
    shop.check()
    shop.store.calls.clear()
    shop.check()
    assert shop.store.calls == ["stocked", "sold_ever"]


def test_purchases_before_the_stocking_are_looked_through_only_when_they_may_decide(shop: Stockroom) -> None:
    """There may be many such purchases. They are summed up only if the sales of the hour alone reach the limit."""
    shop.offer(10)
    shop.sell(10, HALF_PAST - MINUTE)
    for times in (1, 1, 1):
        shop.sell(1)
        shop.mirror()
        shop.check()
        assert shop.store.calls.count("units_from_kafka") == times
    assert shop.published == []


@pytest.mark.parametrize("units", [None, "12", 1.5, True])
def test_a_product_without_a_stock_has_none(shop: Stockroom, units: Any) -> None:
    """Another program may have written another value there."""
    shop.offer(units)
    shop.check()
    assert (shop.left(), shop.published) == ({}, [])


def test_each_stocking_has_an_alert_of_its_own(shop: Stockroom) -> None:
    """A later worker publishes it no second time. A product event without a stock has no alert."""
    for hours in range(3):
        shop.offer(0, at=HALF_PAST + hours * HOUR)
        shop.check()
        shop.start()
        shop.check()
    shop.offer(None, at=HALF_PAST + 4 * HOUR)
    shop.check()
    assert len(set(shop.ids)) == len(shop.ids) == 3


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("then", ["stocked", "not tracked", "deleted"])
def test_an_alert_that_is_stored_is_published_whatever_becomes_of_the_product(
    shop: Stockroom, then: str, killed: bool
) -> None:
    """A worker stored it, and was killed or could not reach Kafka. Another worker's alert is left to that one."""
    shop.offer(0)
    shop.faults = ["lost"]
    with pytest.raises(Unavailable):
        shop.check()
    assert (shop.published, shop.database.alerts.count_documents({})) == ([], 1)
    later = HALF_PAST + HOUR
    if then == "deleted":
        shop.database.products.delete_many({})
    else:
        shop.offer(100 if then == "stocked" else None, at=later)
    if killed:
        shop.start()
        shop.owned = [0]
        shop.check()
        assert shop.published == []
        shop.watch.forget()
        shop.owned = [0, 1]
    for _ in range(2):
        shop.check()
    ((partition, event),) = shop.published
    assert (partition, event["alert_id"]) == (1, f"milk@{HALF_PAST.isoformat(timespec='milliseconds')}")
    assert "unpublished" not in event
    assert shop.database.alerts.count_documents({"unpublished": {"$exists": True}}) == 0


def test_another_workers_products_are_left_to_it(shop: Stockroom) -> None:
    """Products of another topic, and those that `--direct` stored, are in no partition of this worker."""
    for source in (kafka(0, 2, TOPIC), kafka(0, 1, "other.products"), DIRECT):
        shop.offer(0, source=source)
        shop.check()
    assert shop.published == []


def test_who_may_have_lost_the_partition_sends_nothing(shop: Stockroom) -> None:
    """The lease ended, or there was a rebalance, after the topic was read and before the alert was sent."""

    def forget() -> None:
        shop.watch.forget()

    def sleep() -> None:
        shop.lease_valid = False

    def revoked() -> None:
        shop.owned = []

    shop.offer(0)
    for shop.before_send in (forget, sleep, revoked):
        with pytest.raises(PartitionLost):
            shop.check()
        assert shop.published == []
        shop.lease_valid, shop.owned = True, [1]
        shop.watch.forget()
    shop.before_send = lambda: None
    shop.check()
    assert len(shop.published) == 1


def test_more_products_than_a_round_takes_are_looked_at_in_turns(
    shop: Stockroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each product is checked, and again after its next stocking."""
    monkeypatch.setattr(stock, "AT_ONCE", 2)
    names = [f"p{number}" for number in range(5)]
    for times in (1, 2):
        for name in names:
            shop.offer(0, at=HALF_PAST + times * HOUR, name=name)
        for _ in range(3):
            shop.check()
        assert Counter(event["product_id"] for _, event in shop.published) == dict.fromkeys(names, times)


class Story(Stockroom):
    """A stockroom with random events; it computes from the purchases alone what is left."""

    def empty(self) -> None:
        super().empty()
        self.purchases: list[tuple[int, datetime]] = []
        self.stocking(9, 0)

    def stocking(self, units: int, number: int) -> None:
        self.product = self.offer(units, 2, HALF_PAST + 10 * number * MINUTE)

    def truly_left(self) -> int:
        since = self.product["updated_at"]
        return int(self.product["stock"]) - sum(units for units, at in self.purchases if at >= since)

    def happens(self, name: str, *values: int) -> None:
        """Let the named event happen."""
        with suppress(Unavailable, PartitionLost):  # an event may fail halfway
            if name == "sell":
                self.purchases.append((values[0], HALF_PAST + values[1] * MINUTE))
                self.sell(*self.purchases[-1])
            elif name in {"lost", "unacknowledged"}:
                self.faults.append(name)
            else:
                getattr(self, name)(*values)

    def looked(self) -> None:
        before = set(self.ids)
        try:
            self.check()
        finally:
            assert alert_id(self.product) not in set(self.ids) - before or self.truly_left() <= 2

    def rebalanced(self) -> None:
        self.watch.forget()

    def counted_anew(self) -> None:
        self.run(self.store.clear_sales())

    def away(self, calls: int) -> None:
        self.store.away(calls)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sell"), st.integers(1, 4), st.integers(-90, 200)),
        st.sampled_from(
            [("mirror",), ("mirror", 1), ("mirror", 2), ("looked",), ("start",), ("rebalanced",), ("counted_anew",)]
        ),
        st.sampled_from([("lost",), ("unacknowledged",), ("away", 1), ("away", 2), ("away", 4)]),
        st.tuples(st.just("stocking"), st.integers(0, 12)),
    ),
    max_size=40,
)


def test_the_looks_stand_back_while_purchases_wait_but_for_no_longer_than_that(
    shop: Stockroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a slow look, the next one waits for the purchases. After one that failed, MongoDB is asked again soon."""
    looks, clock, waiting = [None, Slow("MongoDB", "slow"), Unavailable("MongoDB", "away"), None], [100.0], [True]
    monkeypatch.setattr(stock, "monotonic", lambda: clock[0])
    shop.watch.waits = lambda: waiting[0]

    async def look() -> bool:
        clock[0] += 30
        if error := looks.pop(0):
            raise error
        return True

    def rounds(count: int) -> int:
        """How many looks there are in so many rounds."""
        before = len(looks)
        for _ in range(count):
            clock[0] += shop.run(shop.watch.round())
        return before - len(looks)

    monkeypatch.setattr(shop.watch, "check_products", look)
    assert rounds(10) == 1
    waiting[0] = False
    assert rounds(2) == 2, "slow, then away"
    waiting[0] = True
    assert shop.watch.outages["MongoDB"].seconds is not None
    assert rounds(1) == 1
    assert shop.watch.outages["MongoDB"].seconds is None


@pytest.fixture
def story(store: ObservedStore, database: Database[Document], run: Run) -> Story:
    """A stockroom for several stories, one after the other."""
    return Story(store, database, run)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_each_stocking_alerts_at_most_once_and_the_last_if_it_must(story: Story, steps: list[tuple[Any, ...]]) -> None:
    """Purchases are late or early, and workers are killed anywhere. No alert comes before the limit is reached.

    What is stored is published, also if the product was stocked again in between.
    """
    shop = story
    shop.empty()
    newest = 0
    for name, *values in steps:
        if name == "stocking":
            newest += 1
            values.append(newest)
        shop.happens(name, *values)
    shop.store.away(0)
    shop.faults.clear()
    shop.mirror()
    shop.looked()
    shop.start()
    shop.looked()
    assert max(Counter(shop.ids).values(), default=1) == 1
    assert (alert_id(shop.product) in shop.ids) == (shop.truly_left() <= 2)
    assert set(shop.ids) == {one["_id"] for one in shop.database.alerts.find({"unpublished": {"$exists": False}})}
    assert shop.database.alerts.count_documents({}) == len(shop.ids)
    assert shop.left() == {"milk": shop.truly_left()}
