"""The producer for HTTP: it starts at the first event, is shared, replaced after a fatal error, and always stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from shopflow.errors import Refusal, Unavailable
from shopflow.kafka.sender import Sender

RECORDS = [(b"k", b"1"), (b"k", b"2")]


class Kafka:
    """Fake producers, one after the other."""

    def __init__(self) -> None:
        self.log: list[tuple[str, bytes | None, bytes]] = []
        self.started = self.stopped = 0
        self.away = False
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None  # acknowledgements wait until it is set; None: they don't wait
        self.hangs_at_start = False

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Kafka]:
        self.started += 1
        try:
            if self.hangs_at_start:
                await asyncio.Event().wait()
            if self.away:
                raise Unavailable("Kafka", "does not answer")
            yield self
        finally:
            self.stopped += 1

    async def send(self, topic: str, value: bytes, key: bytes) -> Awaitable[None]:
        async def acknowledged() -> None:
            if self.gate is not None:
                await self.gate.wait()
            if self.failure:
                raise self.failure
            self.log.append((topic, key, value))

        return asyncio.ensure_future(acknowledged())


def run(body: Callable[[Kafka, Sender], Coroutine[Any, Any, None]]) -> Kafka:
    """Run the test's body and close the sender; every producer was stopped, and no task is left."""
    kafka = Kafka()

    async def whole() -> None:
        before = asyncio.all_tasks()
        sender = Sender(kafka.connect)
        await body(kafka, sender)
        await sender.close()
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(whole(), 20))
    assert kafka.started == kafka.stopped
    return kafka


def test_all_is_sent_in_order_by_one_producer() -> None:
    """Simultaneous requests share one producer, which starts with the first of them."""

    async def body(kafka: Kafka, sender: Sender) -> None:
        assert kafka.started == 0
        await asyncio.gather(*(sender.send("t", RECORDS) for _ in range(3)))
        await sender.send("t", [(b"k", b"%d" % number) for number in range(250)])

    kafka = run(body)
    assert kafka.started == 1
    assert len(kafka.log) == 256
    assert kafka.log[-250:] == [("t", b"k", b"%d" % number) for number in range(250)]


def test_kafka_that_is_away_is_tried_again_by_the_next() -> None:
    """A request gets an error while Kafka is away; the next one starts a new producer."""

    async def body(kafka: Kafka, sender: Sender) -> None:
        kafka.away = True
        for _ in range(2):
            with pytest.raises(Unavailable, match="does not answer"):
                await sender.send("t", RECORDS)
        kafka.away = False
        await sender.send("t", RECORDS)

    assert run(body).started == 3


def test_a_producer_that_failed_for_good_is_replaced_one_that_was_slow_is_not() -> None:
    """After a fatal error, like a lost sequence number, aiokafka's producer refuses everything."""

    async def body(kafka: Kafka, sender: Sender) -> None:
        kafka.failure = KafkaTimeoutError()
        with pytest.raises(Unavailable):
            await sender.send("t", RECORDS)
        assert kafka.started == 1
        kafka.failure = OutOfOrderSequenceNumber()
        with pytest.raises(Unavailable):
            await sender.send("t", RECORDS)
        kafka.failure = None
        await sender.send("t", RECORDS)
        assert kafka.started == 2

    assert len(run(body).log) == 2


def test_a_refusal_names_the_topic_and_the_setting() -> None:
    """The error is the answer to an HTTP request: the number of Kafka's error helps nobody."""

    async def body(kafka: Kafka, sender: Sender) -> None:
        kafka.failure = MessageSizeTooLargeError()
        with pytest.raises(Refusal, match="takes no record of this size for the topic t; raise its limit: kafka-conf"):
            await sender.send("t", RECORDS)

    run(body)


def test_a_cancelled_send_leaves_nothing_behind() -> None:
    """A request may time out while the producer starts or Kafka is slow. Other requests still succeed."""

    async def body(kafka: Kafka, sender: Sender) -> None:
        kafka.gate = asyncio.Event()
        for _ in range(2):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(sender.send("t", RECORDS), 0.05)
        patient = asyncio.ensure_future(sender.send("t", RECORDS))
        await asyncio.sleep(0)
        kafka.gate.set()
        await patient
        assert kafka.started == 1

    run(body)


def test_closing_does_not_wait_for_a_producer_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker stops although its producer hangs at the start. Requests get an error."""
    monkeypatch.setattr("shopflow.kafka.sender._CLOSE_SECONDS", 0.05)

    async def body(kafka: Kafka, sender: Sender) -> None:
        kafka.hangs_at_start = True
        waiting = asyncio.ensure_future(sender.send("t", RECORDS))
        await asyncio.sleep(0.01)
        await sender.close()
        with pytest.raises(Unavailable, match="did not start"):
            await waiting
        with pytest.raises(Unavailable, match="stops"):
            await sender.send("t", RECORDS)

    assert run(body).log == []
