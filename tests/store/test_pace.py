"""The pace of writes to MongoDB, and the trouble of a slow one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faust_batches import Outage, Troubles
from faust_batches.testing import FakeBatch, FakeRecord
from shopflow.errors import Slow, Unavailable
from shopflow.store import pace
from shopflow.store.connection import Patient
from shopflow.store.pace import Pace, Slowness
from shopflow.store.types import Inserted
from tests.support.fakes import FakeStore


@given(st.lists(st.tuples(st.integers(1, 4_000), st.floats(0, 60)), max_size=50))
def test_a_pace_stays_within_its_limits_and_recovers(writes: list[tuple[int, float]]) -> None:
    """Whatever came before, some quick writes bring the largest size back."""
    made = Pace()
    for documents, seconds in writes:
        made.took(documents, seconds)
        assert 50 <= made.size <= 4_000
    made.failed(1)
    assert made.size == 50
    for _ in range(7):
        made.took(made.size, 0.1)
    assert made.size == 4_000


def test_a_part_that_took_too_long_is_repeated_in_smaller_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each document is written, and the answers have its index. Nobody is told of an outage."""
    monkeypatch.setattr("faust_batches.outage.FIRST_PAUSE_SECONDS", 0.0)
    outage, store = Outage("MongoDB"), FakeStore()
    ask = Patient(store, outage)  # type: ignore[arg-type]
    batch: Any = FakeBatch([FakeRecord(b"k", b"v")])
    written: list[int] = []

    async def write(part: Sequence[int]) -> Inserted:
        if len(part) > 1_000:
            raise Slow("MongoDB", "too much")
        written.extend(part)
        return Inserted(frozenset({0}), {1: "why"}, {2: {"_id": part[2]}})

    async def scenario() -> Inserted:
        inserted = Inserted()
        async for start, part in ask.in_parts(batch, "purchases", range(2_500), write):
            inserted = inserted.followed_by(part, start)
        return inserted

    inserted = asyncio.run(scenario())
    assert written == list(range(2_500))
    assert all(stored == {"_id": index} for index, stored in inserted.differing.items())
    assert {index + 1 for index in inserted.duplicates} == set(inserted.refused)
    assert (min(inserted.duplicates), outage.failures) == (0, 0)


def test_a_slow_mongodb_is_a_trouble_that_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins while the request still runs, and ends when none was late for a while."""
    monkeypatch.setattr(pace, "_LATE_SECONDS", 0.05)
    monkeypatch.setattr(pace, "_CALM_SECONDS", 0.3)
    troubles = Troubles()

    async def answers() -> bool:
        return True

    slowness = Slowness(troubles, answers)

    def found() -> list[bool]:
        slowness.look()
        return [trouble.stops for trouble in troubles.present]

    async def scenario() -> None:
        with slowness.request():
            assert found() == []
            await becomes(found, [False])
            assert "MongoDB is slow" in troubles.present[0].text
        await becomes(found, [])
        with suppress(Unavailable), slowness.request():
            raise Unavailable("MongoDB", "away")
        assert found() == []

    asyncio.run(scenario())


def test_a_request_that_waits_for_a_frozen_mongodb_is_not_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MongoDB was away or frozen for a part of the request's time: that says nothing about its speed."""
    monkeypatch.setattr(pace, "_LATE_SECONDS", 0.02)
    troubles, asked = Troubles(), 0

    async def answers() -> bool:
        nonlocal asked
        asked += 1
        return False

    slowness = Slowness(troubles, answers)

    async def scenario() -> None:
        with slowness.request():
            while asked < 4:
                await asyncio.sleep(0.01)
        slowness.look()

    asyncio.run(asyncio.wait_for(scenario(), 10))
    assert troubles.present == []


async def becomes(found: Callable[[], list[bool]], wanted: list[bool]) -> None:
    """Ask until the answer is the one wanted, for at most ten seconds."""
    deadline = asyncio.get_running_loop().time() + 10
    while found() != wanted:
        assert asyncio.get_running_loop().time() < deadline, f"not {wanted}"
        await asyncio.sleep(0.01)
