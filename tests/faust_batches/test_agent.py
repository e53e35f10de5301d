"""The application: its agents' bodies, what it publishes, and what can be set late."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP

from faust_batches import App, agent
from faust_batches import app as batching
from faust_batches.agent import Restarts, each_batch, in_turn
from faust_batches.testing import FakeBatch
from shopflow.errors import PartitionLost, Unavailable
from tests.fakes import FakeRecord

PURCHASES = TP("shop.purchases", 0)


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


log = logging.getLogger("tests.batching")


def handed(start: int) -> Any:
    """A batch, as far as an agent cares."""
    return SimpleNamespace(start=start, tp=PURCHASES, freeze=lambda: None)


class Failing:
    """A handler that raises these, one a call."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.handled: list[Any] = []

    async def __call__(self, batch: Any) -> None:
        self.handled.append(batch.start)
        if self.errors:
            raise self.errors.pop(0)


def test_an_agent_never_raises_and_tries_again_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a Faust agent would acknowledge the batch."""
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0)
    one, two = handed(1), handed(2)
    handle = Failing(ValueError("a fault"), KeyError("another"))
    stream = Stream(one, two)
    asyncio.run(each_batch(stream, handle, lambda batch: nullcontext()))
    assert handle.handled == [1, 1, 1, 2]
    assert stream.acked == [one, two]
    assert not stream.enable_acks


def test_what_keeps_failing_is_said_once_and_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the program: a traceback when it begins, not one a second. What is away, its outage says."""
    monkeypatch.setattr(agent, "RETRY_SECONDS", 0)
    for error, said in ((ValueError("a fault"), ["again", "at the try 31"]), (Unavailable("RocksDB", "full"), [])):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            asyncio.run(each_batch(Stream(handed(1)), Failing(*[error] * 30), lambda batch: nullcontext()))
        lines = [record.getMessage() for record in caplog.records]
        assert [line.endswith(end) for line, end in zip(lines, said, strict=True)] == [True] * len(said)


def test_a_rebalance_may_restart_all_actors_at_once() -> None:
    """Faust's supervisor allows one in 10 ms, and ends the worker at the next."""

    async def restart() -> int:
        supervisor = Restarts(max_restarts=1, over=1)
        restarted = 0
        for _ in range(1_000):
            async with supervisor._bucket:
                restarted += 1
        return restarted

    assert asyncio.run(restart()) == 1_000


def test_an_agent_leaves_a_batch_that_it_lost() -> None:
    """It is another worker's, or comes again."""
    handle = Failing(PartitionLost("gone"))
    asyncio.run(each_batch(Stream(handed(1)), handle, lambda batch: nullcontext()))
    assert handle.handled == [1]


class Builder:
    """aiokafka's BatchBuilder for two records of at most 100 bytes."""

    def __init__(self) -> None:
        self.rows: list[tuple[bytes, bytes]] = []

    def append(self, *, key: bytes, value: bytes, timestamp: None) -> object | None:
        if len(self.rows) == 2 or len(value) > 100:
            return None
        self.rows.append((key, value))
        return object()

    def record_count(self) -> int:
        return len(self.rows)


class Producer:
    """A producer that acknowledges."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[bytes, bytes]]] = []

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
        offset = 100 + sum(map(len, self.sent))
        self.sent.append(batch.rows)

        async def acknowledged() -> Any:
            return SimpleNamespace(offset=offset)

        return acknowledged()


@pytest.fixture
def app(tmp_path: Path) -> App:
    """A Faust application that is never started."""
    return App("test", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))


def test_publish_fills_batches_and_says_where_the_last_record_is(app: App) -> None:
    """Few requests instead of one a record."""
    producer = Producer()
    app.producer = SimpleNamespace(_producer=producer)  # type: ignore[assignment]
    rows = [(b"k%d" % number, b"v") for number in range(5)]
    assert asyncio.run(app.publish("topic", 0, rows)) == 104
    assert producer.sent == [rows[:2], rows[2:4], rows[4:]]


def test_publish_refuses_what_no_batch_can_hold(app: App) -> None:
    """Instead of sending empty batches for ever."""
    app.producer = SimpleNamespace(_producer=Producer())  # type: ignore[assignment]
    with pytest.raises(ValueError, match="larger than a Kafka batch"):
        asyncio.run(app.publish("topic", 0, [(b"k", b"v" * 101)]))


def test_the_servers_may_become_known_late(app: App) -> None:
    """The embedded Kafka has its port only when it runs; Faust must neither warn nor keep the old one."""
    before = app.transport
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.reconfigure(broker="kafka://127.0.0.1:2", broker_consumer="kafka://127.0.0.1:2")
    assert app.transport is not before
    assert [url.port for url in app.conf.broker] == [2]


class FailingProducer(Producer):
    """Has sent all, when each of them fails."""

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
        delivery = asyncio.get_running_loop().create_future()
        delivery.set_exception(KafkaConnectionError("away"))
        self.sent.append(batch.rows)
        return delivery


def test_a_publish_that_fails_is_one_error(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio writes a traceback for each failure that nobody looked at."""
    app.producer = SimpleNamespace(_producer=FailingProducer())  # type: ignore[assignment]
    with pytest.raises(KafkaConnectionError):
        asyncio.run(app.publish("topic", 0, [(b"k%d" % number, b"v") for number in range(5)]))
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def test_one_record_is_sent_with_its_headers(app: App) -> None:
    """Also one with neither key nor value: a dead letter is as it came."""
    sent: list[Any] = []

    class One:
        def append(self, **fields: Any) -> object:
            sent.append(fields)
            return object()

    class OneProducer:
        def create_batch(self) -> One:
            return One()

        async def send_batch(self, batch: One, topic: str, *, partition: int) -> Awaitable[Any]:
            sent.append((topic, partition))
            return asyncio.sleep(0, "acknowledged")

    app.producer = SimpleNamespace(_producer=OneProducer())  # type: ignore[assignment]

    async def send() -> Any:
        return await (await app.send_record("dead", 2, None, None, [("why", b"x")]))

    assert asyncio.run(send()) == "acknowledged"
    assert sent == [{"key": None, "value": None, "timestamp": None, "headers": [("why", b"x")]}, ("dead", 2)]


def test_a_batch_of_another_application_is_handled_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never before what comes before it, and finished only when it was handled: else it comes again."""
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


def test_a_batch_agent_is_an_agent_of_its_topic(app: App) -> None:
    """Under its own name, an actor a partition; what reads a topic does not create it."""
    handled: list[Any] = []

    @app.batch_agent("shop.purchases")
    async def mine(batch: Any) -> None:
        """What it does."""
        handled.append(batch)

    assert app.batched_topics == {"shop.purchases"}
    assert app.agents[f"{__name__}.mine"] is mine
    assert (mine.help, mine.isolated_partitions, mine.supervisor_strategy) == ("What it does.", True, Restarts)
    batch: Any = FakeBatch([FakeRecord(b"c", b"v")])
    batch.freeze = lambda: None
    asyncio.run(mine.fun(Stream(batch)))
    assert handled == [batch]
    assert batch.events == ["turn", "finished"]
    app.producer = SimpleNamespace(create_topic=None)  # type: ignore[assignment]
    asyncio.run(mine.channel.declare())


def test_what_batches_need_of_faust_is_the_default(tmp_path: Path) -> None:
    """Another application need not know it; what it sets itself, counts."""
    app = App("test", broker="kafka://127.0.0.1:1", datadir=str(tmp_path), broker_max_poll_records=7)
    wanted = {**batching.SETTINGS, "broker_max_poll_records": 7}
    assert {name: getattr(app.conf, name) for name in wanted} == wanted
