"""A product on the page: MongoDB is asked seldom, however many look, and the page never waits for long."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone

import pytest

from shopflow.store.types import PartitionSales
from shopflow.web.page import product
from shopflow.web.page.product import Product
from shopflow.web.page.render import Cell
from tests.conftest import Run
from tests.support import documents
from tests.support.documents import HOUR, MINUTE, kafka
from tests.support.stores import ByHand, ObservedStore
from tests.support.text import plain


@pytest.fixture
def milk(monkeypatch: pytest.MonkeyPatch, store: ObservedStore, run: Run) -> ObservedStore:
    """A store with milk, whose price fell an hour ago."""
    now = datetime.now(timezone.utc)
    prices = [documents.product(price, now - hours * HOUR, kafka(price)) for hours, price in ((2, 400), (1, 300))]
    run(store.upsert_products(prices))
    bought = documents.purchase("b", quantity=3, value=900, purchased_at=now - 5 * MINUTE)
    run(store.insert_purchases([bought]))
    monkeypatch.setattr(product, "store", store)
    product._watched.cache_clear()
    return store


async def shown(product_id: str) -> Product:
    """The product's texts on the page."""
    found = await product.shown(product_id)
    assert found is not None
    return found


def test_all_who_look_share_one_answer(milk: ObservedStore, run: Run) -> None:
    """The table and the chart of all visitors need one request to MongoDB."""

    async def look() -> None:
        found = await asyncio.gather(*(shown("milk") for _ in range(9)))
        assert all(one == found[0] for one in found)
        assert plain([cell.text for cell in row[2:5]] for row in found[0].prices) == [
            ["3,00 zł", "3", "9,00 zł"],
            ["4,00 zł", "0", "0,00 zł"],
        ]
        columns = await product.course("milk")
        assert (columns.y0, sum(columns.units)) == ([4.0, 3.0, 4.0], 3)

    run(look())
    assert milk.calls.count("price_history") == 1


def test_a_stock_is_shown_as_it_is_left(milk: ObservedStore, by_hand: ByHand, run: Run) -> None:
    """The page shows how much of the stock is left. A product whose stock is not tracked has no such line."""

    async def look() -> None:
        assert "In stock" not in (await shown("milk")).facts
        product._watched.cache_clear()
        by_hand.change("products", "milk", stock=40)
        hour = by_hand.find("products", "milk")["updated_at"].replace(minute=0, second=0, microsecond=0) + HOUR
        periods = (("hour", hour), ("day", hour.replace(hour=0)))  # the hour may be of the next day
        await milk.put_sales(0, [PartitionSales(*period, "milk", 1, 3, 900, (0, 1)) for period in periods])
        assert (await shown("milk")).facts["In stock"] == "37 of 40"

    run(look())


def test_only_the_last_prices_are_shown(milk: ObservedStore, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """A long price history does not make the page long."""
    monkeypatch.setattr(product, "_PRICES", 1)
    found = run(shown("milk"))
    assert plain(row[2].text for row in found.prices) == ["3,00 zł"]


def test_what_is_not_known_is_said(milk: ObservedStore, run: Run) -> None:
    """An unknown id, a too long id and an outage of MongoDB each give a sentence. No id needs no request."""

    async def look() -> None:
        assert await product.shown("") is None
        assert (await product.course("")).units == []
        assert (await shown("x" * 129)).problems == ["A product's id has at most 128 characters."]
        assert "price_history" not in milk.calls
        assert (await shown("tea")).problems == ["There is no product with this name or id."]
        milk.away(1)
        assert (await shown("milk")).problems == []
        assert (await shown("milk")).moment == Cell("Not known: MongoDB does not answer.", level="warn")

    run(look())


def test_a_slow_mongodb_holds_the_page_up_for_a_moment(
    milk: ObservedStore, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """The page comes after a short wait, and says that the prices are unknown."""
    monkeypatch.setattr(product, "_PATIENCE_SECONDS", 0.01)

    async def never(product_ids: object) -> object:
        await asyncio.Event().wait()

    monkeypatch.setattr(milk, "price_history", never)
    found = run(shown("milk"))
    assert (found.problems, found.moment.text) == ([], "Not known: MongoDB has not answered yet.")


def test_few_products_are_remembered(milk: ObservedStore, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids come from outside, so the cache is bounded. The products that were looked at last stay in it."""
    monkeypatch.setattr(product, "_SECONDS", 3600.0)  # else a slow machine asks for the same product again

    async def look() -> None:
        for number in range(200):
            await shown("milk")
            await shown(f"p{number}")

    run(look())
    assert product._watched.cache_info().currsize == 32
    assert milk.calls.count("price_history") == 201
