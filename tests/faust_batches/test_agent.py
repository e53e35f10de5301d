"""The body of a batch agent: a batch is tried until it is finished or lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from faust_batches import App, PartitionLost, Unavailable, agent
from faust_batches.agent import Restarts, each_batch, in_turn
from faust_batches.testing import FakeBatch, FakeRecord

RECORDS = TP("records", 0)


class Stream:
    """A stream of events with these values."""

    def __init__(self, *values: Any) -> None:
        self.enable_acks = True
        self.acked: list[Any] = []
        self.log = log
        self._values = values

    async def events(self) -> AsyncIterator[Any]:
        for value in self._values:
            yield SimpleNamespace(value=value)

    async def ack(self, event: Any) -> None:
        self.acked.append(event.value)


log = logging.getLogger("tests.agent")


def handed(start: int) -> Any:
    """A fake batch with what an agent uses."""
    return SimpleNamespace(start=start, tp=RECORDS, freeze=lambda: None)


class Failing:
    """A handler that raises one of these errors at each call."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.handled: list[Any] = []

    async def __call__(self, batch: Any) -> None:
        self.handled.append(batch.start)
        if self.errors:
            raise self.errors.pop(0)


def test_an_agent_never_raises_and_retries_a_failed_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a Faust agent would acknowledge the batch."""
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0)
    one, two = handed(1), handed(2)
    handle = Failing(ValueError("a fault"), KeyError("another"))
    stream = Stream(one, two)
    asyncio.run(each_batch(stream, handle, lambda batch: nullcontext()))
    assert handle.handled == [1, 1, 1, 2]
    assert stream.acked == [one, two]
    assert not stream.enable_acks


def test_an_error_is_logged_once_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a handler logs one traceback, not one a second. `Unavailable` is logged by its outage."""
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0)
    for error, said in ((ValueError("a fault"), ["again", "at attempt 31"]), (Unavailable("RocksDB", "full"), [])):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            asyncio.run(each_batch(Stream(handed(1)), Failing(*[error] * 30), lambda batch: nullcontext()))
        lines = [record.getMessage() for record in caplog.records]
        assert [line.endswith(end) for line, end in zip(lines, said, strict=True)] == [True] * len(said)


def test_a_rebalance_may_restart_all_actors_at_once() -> None:
    """Faust's supervisor ends the worker at two restarts in 10 ms."""

    async def restart() -> int:
        supervisor = Restarts(max_restarts=1, over=1)
        restarted = 0
        for _ in range(1_000):
            async with supervisor._bucket:
                restarted += 1
        return restarted

    assert asyncio.run(restart()) == 1_000


def test_an_agent_drops_a_lost_batch() -> None:
    """A lost batch is not tried again: the partition's owner reads it again."""
    handle = Failing(PartitionLost("gone"))
    asyncio.run(each_batch(Stream(handed(1)), handle, lambda batch: nullcontext()))
    assert handle.handled == [1]


def test_a_batch_is_handled_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is handled after its predecessor, and finished only when the handler has returned."""
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0)
    batch: Any = FakeBatch([FakeRecord(b"c", b"v")])
    batch.freeze = lambda: batch.events.append("freeze")
    failures = [ValueError("a fault")]

    async def handle(taken: Any) -> None:
        taken.events.append("handle")
        if failures:
            raise failures.pop()

    asyncio.run(each_batch(Stream(batch), in_turn(handle), lambda batch: nullcontext()))
    assert batch.events == ["freeze", "turn", "handle", "turn", "handle", "finished"]
    batch.events, batch.lost = [], True
    asyncio.run(each_batch(Stream(batch), in_turn(handle), lambda batch: nullcontext()))
    assert batch.events == ["freeze"]


def test_a_batch_agent_is_an_agent_of_its_topic(tmp_path: Path) -> None:
    """A batch agent has its function's name and one actor per partition, and does not create its topic."""
    app = App("test", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))
    handled: list[Any] = []

    @app.batch_agent("records")
    async def mine(batch: Any) -> None:
        """What it does."""
        handled.append(batch)

    assert app.batched_topics == {"records"}
    assert app.agents[f"{__name__}.mine"] is mine
    assert (mine.help, mine.isolated_partitions, mine.supervisor_strategy) == ("What it does.", True, Restarts)
    batch: Any = FakeBatch([FakeRecord(b"c", b"v")])
    batch.freeze = lambda: None
    asyncio.run(mine.fun(Stream(batch)))
    assert handled == [batch]
    assert batch.events == ["turn", "finished"]
    app.producer = SimpleNamespace(create_topic=None)  # type: ignore[assignment]
    asyncio.run(mine.channel.declare())
