"""The store's sales, on a real MongoDB-protocol server."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any

from shopflow.store import MongoStore
from shopflow.store.types import Document, PartitionSales
from tests.conftest import Run
from tests.support.documents import HOUR, NOON


def sale(
    units: int, position: tuple[int, int], product_id: str = "milk", start: datetime | None = NOON
) -> PartitionSales:
    """Sales of a product: one purchase a unit, three grosze each."""
    return PartitionSales("hour" if start else "total", start, product_id, units, units, 3 * units, position)


async def listed(store: MongoStore, period: str, since: datetime | None = None) -> list[Document]:
    """All sales of a period."""
    return [found async for found in store.sales(period, since)]


def sold(documents: list[Document]) -> dict[Any, int]:
    """Units by product and start."""
    return {(found["product_id"], found["start"]): found["units"] for found in documents}


def test_the_sales_of_a_product_are_the_sum_of_its_parts(store: MongoStore, run: Run) -> None:
    """Each partition of the purchases has other customers, who buy the same products."""
    run(store.put_sales(0, [sale(2, (0, 7)), sale(5, (0, 7), start=None)]))
    run(store.put_sales(3, [sale(1, (0, 9)), sale(4, (0, 9), "tea")]))
    hours = run(listed(store, "hour"))
    assert sold(hours) == {("milk", NOON): 3, ("tea", NOON): 4}
    milk = next(found for found in hours if found["product_id"] == "milk")
    assert milk == {
        "product_id": "milk",
        "period": "hour",
        "start": NOON,
        "purchases": 3,
        "units": 3,
        "revenue": 9,
    }
    assert sold(run(listed(store, "total"))) == {("milk", None): 5}


def test_of_two_the_one_with_the_later_position_stays(store: MongoStore, run: Run) -> None:
    """A worker that was frozen may write after its successor. A later era counts more than any offset."""
    for number, (units, position, stays) in enumerate(
        [(2, (0, 7), 2), (1, (0, 5), 2), (3, (0, 8), 3), (1, (4, 0), 1), (9, (3, 99), 1), (2, (4, 1), 2)]
    ):
        run(store.put_sales(0, [sale(units, position)]))
        assert sold(run(listed(store, "hour"))) == {("milk", NOON): stays}, number


def test_in_any_order_the_result_is_the_same(store: MongoStore, run: Run) -> None:
    """The message of a failure has the seed."""
    for seed in range(5):
        run(store.clear_sales())
        chance = random.Random(seed)
        writes = [
            (partition, sale(offset * 2, (era, offset), product))
            for partition in range(2)
            for era in range(2)
            for offset in range(3)
            for product in ("milk", "tea")
        ]
        chance.shuffle(writes)
        for partition, each in writes:
            run(store.put_sales(partition, [each]))
        assert sold(run(listed(store, "hour"))) == {("milk", NOON): 8, ("tea", NOON): 8}, f"seed {seed}"


def test_those_since_a_time_come_by_time(store: MongoStore, run: Run) -> None:
    """A chart needs the sales sorted by start."""
    starts = [NOON + hours * HOUR for hours in (3, 0, 1, 2)]
    run(store.put_sales(0, [sale(1, (0, 1), start=start) for start in starts]))
    found = run(listed(store, "hour", NOON + HOUR))
    assert [document["start"] for document in found] == sorted(starts)[1:]


def test_a_product_may_have_any_name(store: MongoStore, run: Run) -> None:
    """Ids come from outside. No part of an id is read as an operator or as a field's path."""
    for name in ("$set", "a.b", "$where: 1", "x" * 128, "ą ę", "p0"):
        run(store.put_sales(0, [sale(1, (0, 1), name)]))
        assert sold(run(listed(store, "hour"))) == {(name, NOON): 1}
        run(store.clear_sales())


def test_how_far_a_partition_is_never_goes_back(store: MongoStore, run: Run) -> None:
    """`sales_position` keeps the largest position. `clear_sales` removes it."""
    assert run(store.sales_position(2)) == (-1, -1)
    for position, stays in [((0, 5), (0, 5)), ((0, 3), (0, 5)), ((1, 0), (1, 0)), ((0, 9), (1, 0))]:
        run(store.reached_sales(2, position))
        assert run(store.sales_position(2)) == stays
    assert run(store.sales_position(1)) == (-1, -1)
    run(store.clear_sales())
    assert run(store.sales_position(2)) == (-1, -1)


def test_nothing_is_put_without_sales(store: MongoStore, run: Run) -> None:
    """A batch that has only bad records has no sales."""
    run(store.put_sales(0, []))
    assert run(listed(store, "hour")) == []


def test_the_best_sellers_of_one_period(store: MongoStore, run: Run) -> None:
    """Units are summed over all partitions. Sales of another period or another start are left out."""
    run(store.put_sales(0, [sale(units, (0, 7), name) for name, units in (("milk", 2), ("tea", 4), ("salt", 1))]))
    run(store.put_sales(1, [sale(9, (0, 8)), sale(7, (0, 8), "tea", None), sale(50, (0, 8), "salt", NOON + HOUR)]))
    found = run(store.best_sellers("hour", NOON, 2))
    assert [(one["product_id"], one["units"], one["revenue"]) for one in found] == [("milk", 11, 33), ("tea", 4, 12)]
    assert [one["product_id"] for one in run(store.best_sellers("hour", NOON, 10))] == ["milk", "tea", "salt"]
    assert [one["product_id"] for one in run(store.best_sellers("total", None, 10))] == ["tea"]
    assert run(store.best_sellers("day", NOON, 10)) == []
