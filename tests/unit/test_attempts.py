"""What is done again and again, whatever it raises."""

from __future__ import annotations

import asyncio

import pytest

from faust_batches import outage


def test_work_that_fails_is_said_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in what is done beside the batches must not end the worker."""
    pauses: list[float] = []
    outcomes = [KeyError("a"), KeyError("a"), 0.5, KeyError("a"), ValueError("b"), 0.7]

    async def work() -> float:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(outage.asyncio, "sleep", sleep)
    asyncio.run(outage.repeated("The work", work, lambda: bool(outcomes)))
    assert pauses == [1.0, 1.0, 0.5, 1.0, 1.0, 0.7]
    assert [record.getMessage() for record in caplog.records] == ["The work: failed; trying again"] * 3
    assert all(record.exc_info for record in caplog.records)
