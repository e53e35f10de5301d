"""Sales by product on real servers: `/sales/`, MongoDB and the purchases agree, through kills and a replay."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Json, Shop, Worker, becomes, product, purchase, until

pytestmark = pytest.mark.servers


@pytest.fixture
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop of the test's own. Its batches are small, so that kills hit many points of the work."""
    with open_shop(batching_max_records=50) as shop:
        yield shop


def made(seed: int, count: int) -> list[Json]:
    """Purchases of two days, by many customers."""
    chance = random.Random(seed)
    return [
        purchase(
            f"c{chance.randrange(50)}",
            product_id=chance.choice(["milk", "bread", "$gt"]),
            quantity=chance.randrange(1, 5),
            price=chance.randrange(1000),
            purchased_at=f"2024-05-0{chance.randrange(1, 3)}T{chance.randrange(24):02}:30:00Z",
        )
        for _ in range(count)
    ]


def expected(events: list[Json], digits: int) -> dict[tuple[str, ...], list[int]]:
    """Purchases, units and revenue by product and period, computed from the events."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for event in events:
        start = (event["purchased_at"][:digits],) if digits else ()
        known = sums.setdefault((event["product_id"], *start), [0, 0, 0])
        for column, number in enumerate((1, event["quantity"], event["quantity"] * event["price"])):
            known[column] += number
    return sums


def shown(worker: Worker, query: str, digits: int) -> Any:
    """The same from `/sales/`; None while the worker answers 503 or starts."""
    status, answer = worker.get(f"/sales/?{query}")
    if status != 200:
        assert status in {0, 503}, answer  # 0: it is only just starting
        return None
    return {
        (sale["product_id"], *((sale["start"][:digits],) if digits else ())): [
            *(sale["purchases"], sale["units"], sale["revenue"])
        ]
        for sale in answer["sales"]
    }


@pytest.mark.slow
def test_sales_are_right_over_all_workers_through_kills_and_a_replay(shop: Shop) -> None:
    """One of two workers is killed while purchases arrive; then a replay counts all of them again."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    events = made(seed, 3000)
    first = shop.start_worker().ready()
    shop.offer(product("milk"), product("bread"))
    second = shop.start_worker()
    for start in range(0, len(events), 1000):
        shop.sell(*events[start : start + 1000], *events[start : start + 5])  # some are sent twice
        second.kill()
        second = shop.start_worker()
    shop.drain(120)
    queries = {"by=total": 0, "by=day&since=2024-01-01": 10, "by=hour&since=2024-01-01T00:00Z": 13}
    for query, digits in queries.items():
        for worker in (first, second):
            becomes(lambda: shown(worker, query, digits), expected(events, digits))  # noqa: B023
    later = [event for event in events if event["purchased_at"] >= "2024-05-02"]
    becomes(lambda: shown(first, "by=day&since=2024-05-02", 10), expected(later, 10))
    assert shop.agrees()["status"] == 0
    listed = {row["product_id"]: row for row in shop.run("list-products", "--sales", "--json").json()}
    assert listed["milk"]["units"] == expected(events, 0)[("milk",)][1]
    assert "revenue" in shop.run("list-products", "--sales").stdout

    assert shop.run("replay").status == 0
    shop.drain()
    for query, digits in queries.items():
        becomes(lambda: shown(first, query, digits), expected(events, digits))  # noqa: B023
    assert shop.agrees()["status"] == 0
    periods = Counter(sale["period"] for sale in shop.db["sales"].find())
    assert periods["total"] == 3


def test_a_wrong_query_of_sales_is_refused(shop: Shop) -> None:
    """A wrong parameter of `/sales/` gets 400 with its name."""
    worker = shop.start_worker().ready()
    for query, said in {
        "by=year": ("by", "must be one of total, day, hour"),
        "limit=0": ("limit", "must be a whole number from 1 to 10000"),
        "limit=x": ("limit", "must be a whole number from 1 to 10000"),
        "by=day&since=yesterday": ("since", "must be a time in ISO 8601"),
        "since=2024-01-01": ("since", "needs by=day or by=hour"),
    }.items():
        status, answer = worker.get(f"/sales/?{query}")
        assert status == 400
        (problem,) = answer["fields"]
        assert (problem["field"], problem["message"][: len(said[1])]) == said
    until(
        lambda: worker.get("/sales/") == (200, {"by": "total", "since": None, "sales": [], "more": False}), "no sales"
    )
