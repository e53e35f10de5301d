"""The pace of writes to MongoDB, and the trouble of a slow one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
    """It begins while the request still runs, and ends when none was late for a while. Away is not slow."""
    now = [100.0]
    monkeypatch.setattr(pace, "monotonic", lambda: now[0])
    troubles, answers = Troubles(), [True]

    async def ping() -> None:
        if not answers[0]:
            raise Unavailable("MongoDB", "away")

    slowness = Slowness(troubles, ping)

    def found(seconds: float) -> list[bool]:
        now[0] += seconds
        asyncio.run(slowness.look())
        return [trouble.stops for trouble in troubles.present]

    with slowness.request():
        assert found(4) == []
        answers[0] = False
        assert found(2) == [], "it does not answer: it is away"
        answers[0] = True
        assert found(1) == [False]
    assert "a request took 7 s" in troubles.present[0].text
    assert found(9) == [False]
    assert found(11) == []
    for error, late in ((Unavailable("MongoDB", "away"), False), (Slow("MongoDB", "too much"), True)):
        with suppress(Unavailable), slowness.request():
            now[0] += 30
            raise error
        assert bool(found(0)) == late
