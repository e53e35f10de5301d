"""Seeding: at a rate, until Kafka has acknowledged, or straight into MongoDB."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from shopflow.commands import seeding
from shopflow.errors import Refused, Unavailable
from tests.conftest import Run
from tests.support import events
from tests.support.documents import DIRECT, NOON, customer, product, purchase
from tests.support.iterators import everything
from tests.support.stores import ObservedStore


class Clock:
    """A clock that moves only during a sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A fake clock for `seeding`."""
    made = Clock()
    monkeypatch.setattr(seeding, "monotonic", made.monotonic)
    monkeypatch.setattr(seeding.asyncio, "sleep", made.sleep)
    return made


def numbered(count: int) -> list[dict[str, Any]]:
    """Events with numbered ids."""
    return [{"customer_id": f"c{number}", "n": number} for number in range(count)]


def test_a_rate_is_kept_on_average(clock: Clock) -> None:
    """1,001 events at 100 a second take ten seconds."""
    assert len(asyncio.run(everything(seeding.paced(numbered(5000), 1001, 100)))) == 1001
    assert 10 <= clock.now - 100 < 10.1


@pytest.mark.parametrize(("count", "rate", "expected"), [(3, 0, 3), (0, 0, 0), (None, 0, 7), (100, 0, 7)])
def test_a_count_is_kept_and_no_rate_is_no_wait(clock: Clock, count: int | None, rate: float, expected: int) -> None:
    """A rate of 0 means without pauses. No count means all events."""
    assert len(asyncio.run(everything(seeding.paced(numbered(7), count, rate)))) == expected
    assert clock.now == 100


class Producer:
    """Acknowledges this many sends, then fails."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.sent: list[tuple[str, bytes, bytes]] = []

    async def send(self, topic: str, value: bytes, key: bytes) -> Awaitable[Any]:
        future = asyncio.get_running_loop().create_future()
        if len(self.sent) < self.good:
            future.set_result(None)
        else:
            future.set_exception(KafkaConnectionError("gone"))
        self.sent.append((topic, key, value))
        return future


def produce(monkeypatch: pytest.MonkeyPatch, producer: Producer, count: int) -> tuple[int | str, list[int]]:
    """Send events; returns how many were acknowledged, or the error, and the calls of `progress`."""
    progress: list[int] = []

    @asynccontextmanager
    async def started(bootstrap: str) -> AsyncIterator[Producer]:
        yield producer

    monkeypatch.setattr(seeding.connection, "producer", started)
    events = seeding.paced(numbered(count), None, 0)
    try:
        total = asyncio.run(seeding.through_kafka("kafka:1", "shop.customers", "customer_id", events, progress.append))
    except Unavailable as error:
        return str(error), progress
    return total, progress


def test_events_are_keyed_and_all_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reported number of events is the number that Kafka has acknowledged."""
    producer = Producer(10_000)
    total, progress = produce(monkeypatch, producer, 5000)
    assert total == sum(progress) == len(producer.sent) == 5000
    assert producer.sent[1] == ("shop.customers", b"c1", b'{"customer_id":"c1","n":1}')


def test_when_kafka_goes_it_says_how_many_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the number of acknowledged events, so that the user can send the rest."""
    error, progress = produce(monkeypatch, Producer(1), 5000)
    assert error == "Kafka: KafkaConnectionError: gone; 1 events were acknowledged"
    assert sum(progress) == 1


def test_documents_are_those_of_the_contract() -> None:
    """A direct write stores the same document as an event would, with the source `direct`."""
    event = {**events.purchase("p"), "purchased_at": NOON}
    assert seeding.document(event, "purchase_id") == purchase("p", DIRECT)
    assert seeding.document({"customer_id": "c", "city": None}, "customer_id")["_id"] == "c"
    assert seeding.document({"product_id": "m", "price": 1}, "product_id")["source"] == DIRECT


def test_direct_writing_goes_in_batches() -> None:
    """Each request has up to a thousand documents, and none is left out."""
    written: list[int] = []
    progress: list[int] = []

    async def write(documents: Sequence[Any]) -> dict[int, str]:
        written.append(len(documents))
        return {}

    events = seeding.paced(numbered(2500), None, 0)
    total = asyncio.run(seeding.DirectWriter("customer_id", write, progress.append).take(events))
    assert (total, written, progress) == (2500, [1000, 1000, 500], [1000, 1000, 500])


def test_what_is_paced_is_written_before_each_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate, each document is stored before the next pause, so that it is visible and Ctrl-C doesn't lose it."""
    done: list[str] = []

    async def write(documents: Sequence[Any]) -> dict[int, str]:
        done.append(f"{len(documents)} written")
        return {}

    async def sleep(seconds: float) -> None:
        done.append("pause")
        clock[0] += seconds

    clock = [0.0]
    monkeypatch.setattr(seeding, "monotonic", lambda: clock[0])
    monkeypatch.setattr(seeding.asyncio, "sleep", sleep)
    into = seeding.DirectWriter("customer_id", write, lambda _: None)
    assert asyncio.run(into.take(seeding.paced(numbered(3), 3, 2.0, into.flush))) == 3
    assert done == ["1 written", "pause", "1 written", "pause", "1 written"]


def test_a_document_that_mongodb_refuses_ends_it() -> None:
    """The error has the refused document's id and the reason."""

    async def write(documents: Sequence[Any]) -> dict[int, str]:
        return {1: "Document failed validation"}

    into = seeding.DirectWriter("customer_id", write, lambda _: None)
    with pytest.raises(Refused, match=r"MongoDB refused 'c?1': Document failed validation"):
        asyncio.run(into.take(seeding.paced(numbered(3), None, 0)))


class SlowProducer(Producer):
    """Answers no send before the last event was sent."""

    def __init__(self, good: int, count: int) -> None:
        super().__init__(good)
        self.count = count
        self.under_way: list[asyncio.Future[Any]] = []

    async def send(self, topic: str, value: bytes, key: bytes) -> Awaitable[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.under_way.append(future)
        if len(self.under_way) == self.count:
            asyncio.get_running_loop().call_soon(self.answer)
        return future

    def answer(self) -> None:
        for number, future in enumerate(self.under_way):
            if number < self.good:
                future.set_result(None)
            else:
                future.set_exception(KafkaConnectionError("gone"))
        self.under_way = []


def test_what_was_acknowledged_before_kafka_went_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """If some sends of a group fail, the acknowledged ones still count."""
    error, progress = produce(monkeypatch, SlowProducer(2, 5), 5)
    assert error == "Kafka: KafkaConnectionError: gone; 2 events were acknowledged"
    assert sum(progress) == 2


def test_a_kafka_outage_is_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio would log a line for each send whose failure nobody looked at."""
    produce(monkeypatch, SlowProducer(0, 5), 5)
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def test_progress_is_updated_while_events_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--rate 2`, the user sees each event when it is acknowledged, not all at the end."""
    producer = Producer(10_000)
    done: list[int] = []
    events = seeding.paced(numbered(50), None, 0)

    @asynccontextmanager
    async def started(bootstrap: str) -> AsyncIterator[Producer]:
        yield producer

    monkeypatch.setattr(seeding.connection, "producer", started)
    asyncio.run(seeding.through_kafka("kafka:1", "t", "customer_id", events, lambda _: done.append(len(producer.sent))))
    assert done[0] < 10


def test_a_failure_is_seen_while_events_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends at the first failures, not after all events were sent in vain."""
    producer = Producer(1)
    produce(monkeypatch, producer, 500)
    assert len(producer.sent) < 10


class BusyProducer(Producer):
    """Acknowledges the open sends when the loop is idle; `most` is the largest number of open sends."""

    def __init__(self) -> None:
        super().__init__(0)
        self.under_way: list[asyncio.Future[Any]] = []
        self.most = 0

    async def send(self, topic: str, value: bytes, key: bytes) -> Awaitable[Any]:
        loop = asyncio.get_running_loop()
        if not self.under_way:
            loop.call_soon(self.answer)
        self.under_way.append(loop.create_future())
        self.most = max(self.most, len(self.under_way))
        return self.under_way[-1]

    def answer(self) -> None:
        for future in self.under_way:
            future.set_result(None)
        self.under_way = []


def test_only_so_many_events_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of open sends is bounded, so that a million events don't fill the memory."""
    producer = BusyProducer()
    total, progress = produce(monkeypatch, producer, 7000)
    assert total == sum(progress) == 7000
    assert producer.most <= 2000


def test_when_the_sending_itself_fails_it_says_how_many_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the number of events that were acknowledged before."""

    class Refusing(Producer):
        async def send(self, topic: str, value: bytes, key: bytes) -> Awaitable[Any]:
            if len(self.sent) == 3:
                raise KafkaConnectionError("closed")
            return await super().send(topic, value, key)

    error, progress = produce(monkeypatch, Refusing(10), 9)
    assert error == "Kafka: KafkaConnectionError: closed; 3 events were acknowledged"
    assert sum(progress) == 3


def test_who_can_buy_what_comes_from_mongodb(store: ObservedStore, run: Run) -> None:
    """The buyers are the first customers, as many as asked for; the products come with their prices."""

    async def ask() -> tuple[list[str], dict[str, int]]:
        assert await seeding.known(store, 5) == ([], {})
        await store.upsert_customers([customer(name) for name in "cab"])
        await store.upsert_products([product(389)])
        return await seeding.known(store, 2)

    assert run(ask()) == (["a", "b"], {"milk": 389})


def test_pauses_are_not_too_short_to_be_kept(clock: Clock) -> None:
    """At 1,000 a second, events come in groups with pauses of 20 ms: a pause of 1 ms would take longer."""

    async def take() -> list[float]:
        return [clock.now async for _ in seeding.paced(numbered(200), None, 1000)]

    times = asyncio.run(take())
    assert {round(times[number] - times[number - 1], 6) for number in range(1, 200)} == {0, 0.02}
