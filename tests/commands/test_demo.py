"""The demo's prices: some change while it is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shopflow.commands import demo, samples, seeding
from shopflow.errors import Unavailable


@pytest.mark.parametrize("wanted", [True, False])
def test_some_prices_change_while_it_is_open(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Purchases cost the offered price. With `--exit` no price changes, because `verify` compares at the end."""
    monkeypatch.setattr(demo, "_NEW_PRICES_SECONDS", 0.0)
    offered: list[dict[str, Any]] = []
    enough = asyncio.Event()

    async def through_kafka(
        bootstrap: object, topic: str, key: str, events: AsyncIterator[dict[str, Any]], progress: object
    ) -> int:
        if enough.is_set():
            raise Unavailable("Kafka", "it goes first")
        offered.extend([event async for event in events])
        if len(offered) >= 9:
            enough.set()
        return 3

    monkeypatch.setattr(seeding, "through_kafka", through_kafka)
    prices = {product.product_id: 0 for product in samples.PRODUCTS}

    async def run() -> None:
        async with demo._new_prices("kafka:1", prices, wanted=wanted):
            if wanted:
                await asyncio.wait_for(enough.wait(), 10)
            else:
                await asyncio.sleep(0)

    asyncio.run(run())
    assert len(offered) == (9 if wanted else 0)
    assert {name: price for name, price in prices.items() if price} == {
        event["product_id"]: event["price"] for event in offered
    }
