"""A product that is looked at: asked for now and then, whoever looks, and never for long."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest

from shopflow.store.types import PartitionSales
from shopflow.web.page import product
from shopflow.web.page.product import Product
from tests.support.fakes import FakeStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    """A store with milk, whose price fell an hour ago."""
    made = FakeStore()
    now = datetime.now(timezone.utc)
    for hours, price in ((2, 400), (1, 300)):
        at = now - timedelta(hours=hours)
        source = {"origin": "kafka", "topic": "t", "partition": 0, "offset": price}
        document = {"_id": "milk", "name": "Milk", "type": "dairy", "price": price, "updated_at": at, "source": source}
        asyncio.run(made.upsert_products([document]))
    made.collections["purchases"]["b"] = {
        "_id": "b", "product_id": "milk", "quantity": 3, "value": 900, "purchased_at": now - timedelta(minutes=5),
    }  # fmt: skip
    monkeypatch.setattr(product, "store", made)
    product._watched.cache_clear()
    return made


async def shown(product_id: str) -> Product:
    """One that is looked at."""
    found = await product.shown(product_id)
    assert found is not None
    return found


def test_all_who_look_share_one_answer(store: FakeStore) -> None:
    """The table and the chart, too."""

    async def run() -> None:
        found = await asyncio.gather(*(shown("milk") for _ in range(9)))
        assert all(one == found[0] for one in found)
        assert [[cell.text for cell in row[2:5]] for row in found[0].prices] == [
            ["3,00 zł", "3", "9,00 zł"],
            ["4,00 zł", "0", "0,00 zł"],
        ]
        columns = await product.course("milk")
        assert (columns.y0, sum(columns.units)) == ([4.0, 3.0, 4.0], 3)

    asyncio.run(run())
    assert store.calls.count("price_history") == 1


def test_a_stock_is_shown_as_it_is_left(store: FakeStore) -> None:
    """Of a product that carries one."""
    milk = store.collections["products"]["milk"]
    store.parts = {}

    async def run() -> None:
        assert "In stock" not in (await shown("milk")).facts
        product._watched.cache_clear()
        milk["stock"] = 40
        hour = milk["updated_at"].replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        await store.put_sales(0, [PartitionSales("hour", hour, "milk", 1, 3, 900, (0, 1))])
        assert (await shown("milk")).facts["In stock"] == "37 of 40"

    asyncio.run(run())


def test_only_the_last_prices_are_shown(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there were."""
    monkeypatch.setattr(product, "_PRICES", 1)
    found = asyncio.run(shown("milk"))
    assert [row[2].text for row in found.prices] == ["3,00 zł"]


def test_what_is_not_known_is_said(store: FakeStore) -> None:
    """Nothing is looked for where nothing is asked for, and no id that can't be one."""

    async def run() -> None:
        assert await product.shown("") is None
        assert (await product.course("")).units == []
        assert (await shown("x" * 129)).problems == ["A product's id has at most 128 characters."]
        assert "price_history" not in store.calls
        assert (await shown("tea")).problems == ["There is no product with this id."]
        store.away(1)
        assert (await shown("milk")).problems == ["The prices are not known now: MongoDB: away."]

    asyncio.run(run())


def test_a_slow_mongodb_holds_the_page_up_for_a_moment(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said that nothing is known yet."""
    monkeypatch.setattr(product, "_PATIENCE_SECONDS", 0.01)

    async def never(product_ids: object) -> object:
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "price_history", never)
    found = asyncio.run(shown("milk"))
    assert found.problems == ["The prices are not known now: MongoDB does not answer."]


def test_few_products_are_remembered(store: FakeStore) -> None:
    """Ids come from outside; those that were looked at last stay."""

    async def run() -> None:
        for number in range(200):
            await shown("milk")
            await shown(f"p{number}")

    asyncio.run(run())
    assert product._watched.cache_info().currsize == 32
    assert store.calls.count("price_history") == 201
