"""The followers of a batch: customer activity and sales, published after the counts."""

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
from tests.support.events import accepted
from tests.support.fakes import FakeRecord


class Followers:
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
        """Each customer bought two for 300 grosze each."""
        records = [FakeRecord(name.encode(), b"", offset) for offset, name in enumerate(customers)]
        counted = [(offset, name, 2, 600) for offset, name in enumerate(customers)]
        changes = advance({}.get, counted, end=len(customers))
        fresh = [(record, accepted()) for record in records]
        batch: Any = FakeBatch(records or [FakeRecord(b"", b"")])
        asyncio.run(follower.follow(batch, CountedBatch(fresh, (), (), changes)))


@pytest.fixture
def followers(monkeypatch: pytest.MonkeyPatch) -> Followers:
    """Followers that do not pause while they wait for Kafka."""
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0)
    return Followers()


def test_each_customer_of_a_batch_is_published_once(followers: Followers) -> None:
    """The key is the customer's id, the value has what they bought so far."""
    followers.follow(followers.activity, "anna", "bob", "anna")
    ((topic, partition, rows),) = followers.published
    assert (topic, partition) == ("activity", 0)
    assert {key: json.loads(value) for key, value in rows} == {
        b"anna": {"customer_id": "anna", "purchases": 2, "items": 4, "spent": 1200, "offset": 2},
        b"bob": {"customer_id": "bob", "purchases": 1, "items": 2, "spent": 600, "offset": 1},
    }


def test_while_kafka_is_away_it_is_tried_again(followers: Followers) -> None:
    """The follower returns only after Kafka has acknowledged the activity."""
    followers.away = 2
    followers.follow(followers.activity, "anna")
    assert len(followers.published) == 1


def test_a_batch_without_customers_publishes_nothing(followers: Followers) -> None:
    """A batch of bad records has no customers, and publishes nothing."""
    followers.follow(followers.activity)
    assert followers.published == []


def test_sales_go_to_the_table_then_to_the_changelog_then_to_the_mirror(followers: Followers) -> None:
    """A batch that comes again writes the same rows, and adds nothing to the sales."""
    for _ in range(2):
        followers.follow(followers.sales, "anna", "bob")
    assert followers.steps == ["table", "changelog"] * 2
    assert followers.changed == [key for key, _ in followers.table.changelog]
    assert decode_totals(followers.table.rows[0][TOTALS_KEY]).purchases == 3 * 2
