"""A worker's parts are made by one call, from what it is given."""

from __future__ import annotations

import asyncio
from typing import Any

from faust_batches import App
from faust_batches.testing import FakeBatch, FakeTable
from shopflow.bootstrap import Parts
from shopflow.config.settings import Config
from shopflow.shop.promotions.windows import Rules
from tests.support.events import purchase, record
from tests.support.fakes import FakeStore


def test_parts_work_with_another_store_and_other_tables() -> None:
    """A purchase is stored and counted in the fakes, and published by the application that the call got."""
    app, store, counts, sales = App("test", broker="kafka://127.0.0.1:1"), FakeStore(), FakeTable(), FakeTable()
    published: list[str] = []

    async def publish(topic: str, partition: int, rows: Any) -> int:
        published.append(topic)
        return 0

    async def nothing(topic: str, partition: int, since: int, **options: Any) -> list[Any]:
        return []

    app.publish = publish  # type: ignore[method-assign]
    given: Any = {"counts": counts, "sales": sales, "windows": None, "rules": Rules(())}
    parts = Parts(Config(), app, store, nothing, **given)  # type: ignore[arg-type]
    batch: Any = FakeBatch([record(purchase("p"))])
    with app.on_batch(batch):
        asyncio.run(parts.purchases.handle(batch))
    assert store.collections["purchases"]["p"]["value"] == 600
    assert b"anna" in counts.rows[0]
    assert len(sales.rows[0]) == 4, "total, day, hour and the totals"
    assert published == ["shop.customer-activity"]
    assert parts.board.snapshot({0}).latest[0].purchase_id == "p"
