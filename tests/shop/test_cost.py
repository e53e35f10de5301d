"""The cost of a purchase in function calls, which is the same on every machine."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from faust_batches.testing import FakeBatch, FakeTable
from shopflow.store.types import Inserted
from tests.support.events import purchase, record
from tests.support.fake_shop import FakeWorker
from tests.support.fakes import FakeStore

SIZE = 1_000


class Takes(FakeStore):
    """A MongoDB that accepts everything and costs nothing."""

    async def insert_purchases(self, documents: Sequence[Any]) -> Inserted:
        return Inserted()


def processing() -> FakeWorker:
    """The handler of a worker whose MongoDB and Kafka cost nothing."""
    return FakeWorker(Takes(), FakeTable())


def batch(customers: int) -> FakeBatch:
    """Purchases of this many customers, in turn."""
    return FakeBatch(
        [record(purchase(f"p{number}", f"customer-{number % customers}"), number) for number in range(SIZE)]
    )


def calls(work: Callable[[], object]) -> Counter[str]:
    """How often each function is called: Python's own, and those written in C."""
    counted: Counter[str] = Counter()

    def count(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            counted[frame.f_code.co_name] += 1
        elif event == "c_call":
            counted[getattr(argument, "__qualname__", repr(argument))] += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize(("customers", "most"), [(100, 13.5), (SIZE, 17.5)])
def test_a_purchase_costs_no_more_calls_than_it_did(customers: int, most: float) -> None:
    """A change that adds work for each record fails here, and the message names the most frequent calls."""
    worker, made = processing(), batch(customers)
    counted = calls(lambda: asyncio.run(worker.purchases(made)))
    each = sum(counted.values()) / SIZE
    assert each <= most, f"{each:.1f} calls a purchase: {counted.most_common(12)}"


def test_ten_times_the_records_cost_ten_times_the_calls() -> None:
    """No work grows faster than the batch."""
    worker = processing()
    small, large = batch(100), batch(100)
    small.records = small.records[: SIZE // 10]
    few = sum(calls(lambda: asyncio.run(worker.purchases(small))).values())
    worker = processing()
    many = sum(calls(lambda: asyncio.run(worker.purchases(large))).values())
    assert many < 10.5 * few
