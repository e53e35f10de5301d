"""The price log: the prices given to purchases are found again, and few of them are in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from shopflow.shop.prices import PriceLog
from tests.support.fakes import FakeRecord

TIME = 1_700_000_000_000


class Topic:
    """The log's partitions, in memory."""

    def __init__(self) -> None:
        self.values: dict[int, list[bytes]] = {}
        self.asked: list[tuple[str, int, int]] = []

    async def send(self, topic: str, partition: int, key: None, value: bytes, headers: list[Any]) -> Awaitable[None]:
        self.values.setdefault(partition, []).append(value)
        return asyncio.sleep(0)

    async def read_since(self, topic: str, partition: int, since: int, *, of: Any) -> list[Any]:
        self.asked.append((topic, partition, since))
        return [of(FakeRecord(None, value)) for value in self.values.get(partition, [])]

    def log(self) -> PriceLog:
        """The price log of a worker that has just started."""
        return PriceLog("shop.purchase-prices", self.send, self.read_since)


def prices(log: PriceLog, start: int, end: int, partition: int = 0) -> dict[int, int]:
    """The prices of a batch."""
    return asyncio.run(log.prices(partition, FakeRecord(b"anna", b"", start, partition, timestamp=TIME), end))


def put(log: PriceLog, given: dict[int, int], partition: int = 0) -> None:
    """Publish decided prices."""
    asyncio.run(log.put(partition, given))


def test_prices_are_found_by_their_offsets_in_their_partition() -> None:
    """The purchases may come again in other batches."""
    topic = Topic()
    put(topic.log(), {5: 500, 2: 200})
    put(topic.log(), {9: 900})
    put(topic.log(), {5: 1}, partition=1)
    log = topic.log()
    assert prices(log, 0, 6) == {2: 200, 5: 500}
    assert prices(log, 3, 20) == {5: 500, 9: 900}
    assert prices(log, 6, 9) == {}
    assert prices(log, 0, 9, partition=1) == {5: 1}


def test_the_later_of_two_decisions_counts() -> None:
    """All readers of the topic find the same price."""
    topic = Topic()
    put(topic.log(), {1: 10, 2: 20})
    put(topic.log(), {2: 21, 3: 30})
    assert prices(topic.log(), 0, 9) == {1: 10, 2: 21, 3: 30}


def test_a_partition_is_read_once_from_a_little_before_the_first_purchase() -> None:
    """Clocks differ. After a rebalance it is read again, because other workers may have added prices."""
    topic = Topic()
    put(topic.log(), {1: 10})
    log = topic.log()
    for _ in range(3):
        prices(log, 0, 5)
    assert topic.asked == [("shop.purchase-prices", 0, TIME - 600_000)]
    log.forget()
    prices(log, 0, 5)
    assert len(topic.asked) == 2


def test_what_is_done_is_not_kept() -> None:
    """The prices of finished batches are dropped: a replay may have a million."""
    topic = Topic()
    for start in range(0, 1000, 100):
        put(topic.log(), dict.fromkeys(range(start, start + 100), 1))
    log = topic.log()
    assert len(prices(log, 0, 100)) == 100
    log.done(0, 950)
    assert len(log._cache[0]) == 1
    assert len(prices(log, 950, 1000)) == 50


def test_what_is_not_ours_in_the_topic_is_passed_over() -> None:
    """Any program may write to the topic, so unknown records are skipped."""
    topic = Topic()
    topic.values[0] = [b"{", b'{"prices": []}', b'{"prices": [[1, "x"]]}', b'{"prices": [[1, 10]]}']
    assert prices(topic.log(), 0, 5) == {1: 10}


def test_a_purchase_without_a_time_is_looked_for_from_the_start() -> None:
    """Old producers send records without a timestamp."""
    topic = Topic()
    put(topic.log(), {1: 10})
    record: Any = FakeRecord(b"anna", b"", 0, timestamp=-1)
    assert asyncio.run(topic.log().prices(0, record, 5)) == {1: 10}
    assert topic.asked[0][2] == 0
