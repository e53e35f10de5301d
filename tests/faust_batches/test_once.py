"""`SendOnce`: a record derived from another record is sent once, although that one may come again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from faust_batches import SendOnce, once
from faust_batches.testing import FakeRecord

PARTITION = ("records", 0)


@pytest.mark.parametrize(
    ("timestamp", "found"),
    [(None, 0), (-1, 0), (5, 0), (1_700_000_000_000, 1_699_999_400_000), (1_700_000_000_000_000, 0), (2**62, 0)],
)
def test_a_time_that_tells_nothing_makes_it_look_at_everything(timestamp: Any, found: int) -> None:
    """A producer that sends microseconds would hide what was derived from its records: it would be sent again."""
    assert once.since(FakeRecord(b"", b"", timestamp=timestamp)) == found


class Topic:
    """A fake topic of numbers, and the times from which it was searched."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.looks: list[int] = []
        self.failures: list[Exception] = []
        self.once: SendOnce[int, int] = SendOnce(self.find, lambda number: number)

    async def find(self, partition: Any, since: int) -> set[int]:
        self.looks.append(since)
        return set(self.numbers)

    async def send_all(self, numbers: Sequence[int]) -> None:
        self.numbers += numbers
        if self.failures:
            raise self.failures.pop()

    def send(self, *numbers: int) -> list[int]:
        """Send numbers; returns the new ones."""
        return asyncio.run(self.once.send(PARTITION, FakeRecord(b"", b"", timestamp=1_000_000), numbers, self.send_all))


def test_a_record_sent_before_is_not_sent_again() -> None:
    """The keys are looked up once, from a little before the record's time."""
    topic = Topic()
    topic.numbers = [1]
    assert topic.send(1, 2) == [2]
    assert topic.send(2, 3) == [3]
    assert topic.numbers == [1, 2, 3]
    assert topic.looks == [400_000]


def test_after_a_failure_and_after_a_rebalance_the_keys_are_looked_up_again() -> None:
    """A failed record may be in the log or not. Other workers may have sent records meanwhile."""
    topic = Topic()
    topic.failures = [KafkaConnectionError("away")]
    with pytest.raises(KafkaConnectionError):
        topic.send(1)
    assert topic.send(1, 2) == [2]
    topic.once.forget()
    topic.numbers.append(3)
    assert topic.send(3) == []
    assert len(topic.looks) == 3


def test_dropped_keys_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set of keys must not grow for ever."""
    monkeypatch.setattr(once, "_KEYS_TO_HOLD", 2)
    topic = Topic()
    topic.send(1, 2, 3)
    topic.once.drop(PARTITION, lambda number: number < 3)
    topic.once.drop(("other", 0), lambda number: True)
    known = asyncio.run(topic.once.sent_keys(PARTITION, FakeRecord(b"", b"")))
    assert known == {3}
    for number in range(4, 9):
        topic.send(number)
        topic.once.drop(PARTITION, lambda known, upto=number: known < upto)  # type: ignore[misc]
        assert len(asyncio.run(topic.once.sent_keys(PARTITION, FakeRecord(b"", b"")))) <= 2
