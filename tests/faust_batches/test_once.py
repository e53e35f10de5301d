"""What is made of other records, sent once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from faust_batches import SendOnce, once
from faust_batches.testing import FakeRecord

PARTITION = ("records", 0)


class Topic:
    """Numbers that were sent, and how often it was looked for them."""

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
        """Send them; which were new."""
        return asyncio.run(self.once.send(PARTITION, FakeRecord(b"", b"", timestamp=1_000_000), numbers, self.send_all))


def test_what_was_sent_before_is_not_sent_again() -> None:
    """The topic is looked through once, a little further back than the record's time; then it is known."""
    topic = Topic()
    topic.numbers = [1]
    assert topic.send(1, 2) == [2]
    assert topic.send(2, 3) == [3]
    assert topic.numbers == [1, 2, 3]
    assert topic.looks == [400_000]


def test_after_a_failure_and_after_a_rebalance_it_is_looked_again() -> None:
    """A failed one may be there or not; others may have sent some meanwhile."""
    topic = Topic()
    topic.failures = [KafkaConnectionError("away")]
    with pytest.raises(KafkaConnectionError):
        topic.send(1)
    assert topic.send(1, 2) == [2]
    topic.once.forget()
    topic.numbers.append(3)
    assert topic.send(3) == []
    assert len(topic.looks) == 3


def test_what_is_dropped_is_no_longer_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it does not grow for ever."""
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
