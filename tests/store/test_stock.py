"""The store's stock and alerts, on a real MongoDB-protocol server."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

from pymongo.database import Database

from shopflow.store import MongoStore
from shopflow.store.types import Document, PartitionSales
from tests.conftest import Run
from tests.support.documents import DAY, DIRECT, HOUR, NOON, alert, kafka, product, purchase


def sales(start: datetime | None, units: int, product_id: str = "milk") -> list[PartitionSales]:
    """The rows of one hour, as they are made of purchases that are all in it."""
    if start is None:
        return [PartitionSales("total", None, product_id, 1, units, 1, (0, 1))]
    day = start.replace(hour=0)
    return [
        PartitionSales(period, at, product_id, 1, units, 1, (0, 1)) for period, at in (("hour", start), ("day", day))
    ]


def test_units_from_an_hour_on_are_those_of_all_later_hours(store: MongoStore, run: Run) -> None:
    """Later days are read as days, and the sum is that of their hours, over all partitions."""
    days = [NOON + number * DAY for number in (-1, 1, 2, 400)]
    for number, start in enumerate([*days, NOON]):
        run(store.put_sales(0, sales(start, 10**number)))
    of_others = [*sales(NOON, 7, "tea"), *sales(NOON + HOUR, 7, "$gt")]
    run(store.put_sales(0, of_others))
    run(store.put_sales(3, sales(NOON, 500_000)))
    assert run(store.sold_from("milk", NOON - 2 * DAY)) == 511_111
    assert run(store.sold_from("milk", NOON)) == 511_110
    assert run(store.sold_from("milk", NOON + HOUR)) == 1_110
    assert run(store.sold_from("milk", days[2])) == 1_100
    assert run(store.sold_from("milk", days[3] + HOUR)) == 0
    assert run(store.sold_from("$gt", NOON)) == 7
    assert run(store.sold_from("nobody", NOON)) == 0


def test_the_last_day_of_all_can_be_asked_for(store: MongoStore, run: Run) -> None:
    """Times come from outside. There is no day after 31 December 9999."""
    last = datetime(9999, 12, 31, 23, tzinfo=timezone.utc)
    run(store.put_sales(0, sales(last, 3)))
    assert run(store.sold_from("milk", last)) == 3


def test_units_sold_ever_are_the_totals(store: MongoStore, run: Run) -> None:
    """Products that were never sold are left out."""
    run(store.put_sales(0, [*sales(None, 2), *sales(NOON, 9), *sales(None, 4, "$set")]))
    run(store.put_sales(1, sales(None, 3)))
    assert run(store.sold_ever(["milk", "tea", "$set"])) == {"milk": 5, "$set": 4}
    assert run(store.sold_ever([])) == {}


def test_units_from_kafka_leave_out_others(store: MongoStore, run: Run) -> None:
    """Purchases that `--direct` stored are not in the sales. The span ends before its second time."""
    until = NOON + timedelta(milliseconds=5)
    moments = [NOON - timedelta(milliseconds=1), NOON, NOON + timedelta(milliseconds=4), until]
    documents = [
        purchase(f"p{number}", kafka(number), purchased_at=at, quantity=10**number) for number, at in enumerate(moments)
    ]
    documents += [
        purchase("direct", DIRECT),
        purchase("other", kafka(9), product_id="tea"),
    ]
    run(store.insert_purchases(documents))
    assert run(store.units_from_kafka("milk", NOON, until)) == 110
    assert run(store.units_from_kafka("milk", NOON + HOUR, NOON + 2 * HOUR)) == 0


def test_stocked_products_come_by_id_a_page_at_a_time(
    store: MongoStore, run: Run, database: Database[Document]
) -> None:
    """Only products of these partitions of this topic are found. A value that is no number is no stock."""
    for number, name in enumerate("fabcde"):
        stocked = product(1, NOON, kafka(number, number % 3), name, stock=number)
        assert run(store.upsert_products([stocked])) == {}
    run(store.upsert_products([product(1, NOON, kafka(9), "none")]))
    run(store.upsert_products([product(1, NOON, kafka(9, topic="other"), "elsewhere", stock=1)]))
    for name, stock in {"text": "5", "null": None, "negative": -1}.items():
        database.products.insert_one({"_id": name, "stock": stock, "source": kafka(1)})
    database.products.insert_one({"_id": "direct", "stock": 5, "source": DIRECT})
    database.products.insert_one({"_id": "bare", "stock": 5})

    def ids(after: str, limit: int, *partitions: int) -> list[str]:
        return [one["_id"] for one in run(store.stocked("t", partitions, after, limit))]

    assert ids("", 10, 0, 1, 2) == ["a", "b", "c", "d", "e", "f"]
    assert ids("", 2, 0, 1, 2) == ["a", "b"]
    assert ids("b", 2, 0, 2) == ["c", "e"]
    assert ids("", 10, 1) == ["a", "d"]
    (found,) = run(store.stocked("t", [0], "c", 1))
    assert (found["stock"], found["updated_at"], found["source"]["partition"]) == (0, NOON, 0)


def test_the_first_of_an_alert_stays(store: MongoStore, run: Run) -> None:
    """A worker that finds the same alert again publishes the stored one, with times in milliseconds."""
    given = alert("$set@x", 3, at=NOON + timedelta(microseconds=1_999))
    kept = {**given, "at": NOON + timedelta(milliseconds=1)}
    assert run(store.insert_alert(given)) == kept
    assert run(store.insert_alert(alert("$set@x", 2))) == kept
    assert run(store.documents("alerts", ["$set@x"])) == {"$set@x": kept}


def test_a_restored_document_is_as_before(store: MongoStore, run: Run) -> None:
    """A changed or deleted document is restored. Fields that another program added stay."""
    given = alert("$set@x", 3, at=NOON + timedelta(microseconds=1_999))
    kept = {**given, "at": NOON + timedelta(milliseconds=1)}
    run(store.insert_alert({**alert("$set@x", 8), "seen": True}))
    run(store.restore("alerts", [given, alert("b", 5)]))
    run(store.restore("alerts", []))
    assert run(store.documents("alerts", ["$set@x", "b"])) == {"$set@x": {**kept, "seen": True}, "b": alert("b", 5)}


def test_the_newest_alerts_come_first(store: MongoStore, run: Run) -> None:
    """Alerts of one time are sorted by id."""
    given = [alert(name, 1, at=NOON + hours * HOUR) for name, hours in (("b", 1), ("c", 0), ("a", 1), ("d", 2))]
    run(store.restore("alerts", given))
    assert [one["_id"] for one in run(store.alerts(3))] == ["d", "a", "b"]
    assert run(store.alerts(9))[3] == given[1]
    assert run(store.alerts(0)) == []


def test_the_alert_after_a_time_is_of_this_product(store: MongoStore, run: Run) -> None:
    """The first alert at this time or later; those of other products are not looked at."""
    given = [alert(name, 1, at=NOON + hours * HOUR) for name, hours in (("late", 2), ("first", 1), ("before", 0))]
    run(store.restore("alerts", [*given, {**alert("bread", 1, at=NOON + HOUR), "product_id": "bread"}]))
    assert run(store.alert_since("milk", NOON + HOUR)) == given[1]
    assert run(store.alert_since("milk", NOON + 3 * HOUR)) is None


def test_two_workers_that_find_the_same_agree(store: MongoStore, run: Run) -> None:
    """Several workers insert the alert at once. Each that gets an answer gets the same document."""

    async def both() -> list[Document]:
        found = await asyncio.gather(
            *(store.insert_alert(alert("a", left)) for left in range(5)), return_exceptions=True
        )
        return [one for one in found if isinstance(one, dict)]

    found = run(both())
    assert found
    assert all(one == found[0] for one in found)


def test_stocked_products_have_an_index(store: MongoStore, run: Run, database: Database[Document]) -> None:
    """A worker queries stocked products each second, among all products. The page queries the newest alerts."""
    found = database.alerts.index_information()
    assert [("at", -1), ("_id", 1)] in [index["key"] for index in found.values()]
    found = database.products.index_information()
    assert [("stock", 1)] in [index["key"] for index in found.values()]
