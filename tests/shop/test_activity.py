"""The followers of a batch: called after the counts, idempotent, and complete."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from faust_batches import TOTALS_KEY
from faust_batches import outage as outages
from faust_batches.testing import FakeBatch, FakeTable
from shopflow.shop.activity import Activity
from shopflow.shop.counts import advance, decode_totals
from shopflow.shop.purchases import CountedBatch
from shopflow.shop.sales import Sales
from tests.shop.test_sales import NOON, Purchase
from tests.support.fakes import FakeRecord


class Shop:
    """The followers of one partition."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.table = FakeTable(self.steps)
        self.published: list[tuple[str, int, list[tuple[bytes, bytes]]]] = []
        self.away = 0
        self.activity = Activity("activity", self.publish)
        self.changed: list[bytes] = []
        self.sales = Sales(self.table, lambda partition, rows: self.changed.extend(key for key, _ in rows))

    async def publish(self, topic: str, partition: int, rows: Any) -> None:
        if self.away:
            self.away -= 1
            raise KafkaConnectionError("away")
        self.published.append((topic, partition, list(rows)))

    def follow(self, follower: Any, *customers: str) -> None:
        """Each bought milk for 300 once."""
        records = [FakeRecord(name.encode(), b"", offset) for offset, name in enumerate(customers)]
        counted = [(offset, name, 2, 600) for offset, name in enumerate(customers)]
        changes = advance({}.get, counted, end=len(customers))
        fresh = [(record, Purchase("milk", 2, 300, NOON)) for record in records]
        counted = CountedBatch(fresh, (), (), changes)
        asyncio.run(follower.follow(FakeBatch(records or [FakeRecord(b"", b"", 0)]), counted))


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop that does not wait."""
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0)
    return Shop()


def test_each_customer_of_a_batch_is_published_once(shop: Shop) -> None:
    """Under their id, with what they bought so far."""
    shop.follow(shop.activity, "anna", "bob", "anna")
    ((topic, partition, rows),) = shop.published
    assert (topic, partition) == ("activity", 0)
    assert {key: json.loads(value) for key, value in rows} == {
        b"anna": {"customer_id": "anna", "purchases": 2, "items": 4, "spent": 1200, "offset": 2},
        b"bob": {"customer_id": "bob", "purchases": 1, "items": 2, "spent": 600, "offset": 1},
    }


def test_while_kafka_is_away_it_is_tried_again(shop: Shop) -> None:
    """The batch is finished only after the counts are published."""
    shop.away = 2
    shop.follow(shop.activity, "anna")
    assert len(shop.published) == 1


def test_a_batch_without_customers_publishes_nothing(shop: Shop) -> None:
    """All of it was bad."""
    shop.follow(shop.activity)
    assert shop.published == []


def test_sales_go_to_the_table_then_to_the_changelog_then_to_the_mirror(shop: Shop) -> None:
    """And when the batch comes again nothing is sold twice."""
    for _ in range(2):
        shop.follow(shop.sales, "anna", "bob")
    assert shop.steps == ["table", "changelog"] * 2
    assert shop.changed == [key for key, _ in shop.table.changelog]
    assert decode_totals(shop.table.rows[0][TOTALS_KEY]).purchases == 3 * 2
