"""Sends example events to Kafka, or writes them to MongoDB."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

import msgspec
from aiokafka.errors import KafkaError

from faust_batches.refusals import kafka_failure
from shopflow.errors import Refused
from shopflow.kafka import connection
from shopflow.kafka.security import Bootstrap
from shopflow.shop.text import whole
from shopflow.store import MongoStore
from shopflow.store.types import Document

Event = dict[str, Any]
#: Called with the number of further events that Kafka has acknowledged, or that are in MongoDB's journal.
Progress = Callable[[int], None]

#: Writes documents. Returns the reasons of the refused ones, by index.
Write = Callable[[Sequence[Document]], Awaitable[Mapping[int, str]]]

_encode = msgspec.json.Encoder().encode

#: The most events that Kafka has not acknowledged yet.
_MAX_IN_FLIGHT = 2_000
#: Documents of one write to MongoDB.
_AT_ONCE = 1_000
#: Shortest pause when events are paced.
_TICK_SECONDS = 0.02


async def paced(
    events: Iterable[Event], count: int | None, rate: float, before_pause: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Event]:
    """The first `count` events (None: all), at most `rate` per second (0: no limit)."""
    began = monotonic()
    for number, event in enumerate(events):
        if number == count:
            return
        if rate > 0 and (early := began + number / rate - monotonic()) > 0:
            if before_pause:
                await before_pause()
            await asyncio.sleep(max(early, _TICK_SECONDS))
        yield event


async def through_kafka(
    bootstrap: Bootstrap, topic: str, key: str, events: AsyncIterator[Event], progress: Progress
) -> int:
    """Send events. The key of each is the value of its field `key`.

    Returns:
        The number of events. Kafka has acknowledged all of them.

    Raises:
        Unavailable: Kafka went away. `progress` was called with the acknowledged events.
    """
    async with connection.producer(bootstrap) as producer:
        in_flight = _InFlight(progress)
        try:
            async for event in events:
                in_flight.futures.append(await producer.send(topic, _encode(event), key=event[key].encode()))
                await in_flight.settle(_MAX_IN_FLIGHT)
            await in_flight.settle(1)
        except KafkaError as error:
            await in_flight.abandon()
            failure = kafka_failure(error, topic)
            failure.args = (f"{failure}; {in_flight.acknowledged} events were acknowledged",)
            raise failure from error
    return in_flight.acknowledged


class _InFlight:
    """Events that Kafka has not acknowledged yet, oldest first."""

    def __init__(self, progress: Progress) -> None:
        self.acknowledged = 0
        self.futures: deque[asyncio.Future[Any]] = deque()
        self._progress = progress

    async def settle(self, most: int) -> None:
        """Count acknowledged events, oldest first. Wait while `most` or more are in flight.

        Raises:
            KafkaError: An event was not acknowledged. Those before it are counted.
        """
        done = 0
        try:
            while self.futures and (self.futures[0].done() or len(self.futures) >= most):
                await self.futures[0]
                self.futures.popleft()
                done += 1
        finally:
            self._count(done)

    async def abandon(self) -> None:
        """Count the other acknowledged events, and consume all errors, so that asyncio logs none."""
        results = await asyncio.gather(*self.futures, return_exceptions=True)
        self._count(sum(not isinstance(result, BaseException) for result in results))

    def _count(self, done: int) -> None:
        self.acknowledged += done
        if done:
            self._progress(done)


class DirectWriter:
    """Writes events to MongoDB, a thousand documents at once.

    Arguments:
        id_field: The field of an event that becomes the document's `_id`.
    """

    def __init__(self, id_field: str, write: Write, progress: Progress) -> None:
        self._id_field = id_field
        self._write = write
        self._progress = progress
        self._waiting: list[Document] = []
        self._total = 0

    async def take(self, events: AsyncIterator[Event]) -> int:
        """Write all events. Returns their number.

        Raises:
            Refused: MongoDB refused a document.
            Unavailable: MongoDB is away.
        """
        async for event in events:
            self._waiting.append(document(event, self._id_field))
            if len(self._waiting) == _AT_ONCE:
                await self.flush()
        await self.flush()
        return self._total

    async def flush(self) -> None:
        documents, self._waiting = self._waiting, []
        if not documents:
            return
        for number, reason in (await self._write(documents)).items():
            raise Refused(f"MongoDB refused {documents[number]['_id']!r}: {reason}")
        self._total += len(documents)
        self._progress(len(documents))


def document(event: Event, id_field: str) -> Document:
    """The document of an event that was not sent through Kafka. That of a purchase has a `value`."""
    fields = dict(event)
    made = {"_id": fields.pop(id_field), **fields, "source": {"origin": "direct"}}
    return {**made, "value": event["quantity"] * event["price"]} if "quantity" in event else made


async def known(store: MongoStore, limit: int) -> tuple[list[str], dict[str, int]]:
    """The ids of at most `limit` customers, and the prices in grosze by product_id."""
    customers = await store.customer_ids(limit)
    prices = {product["_id"]: whole(product.get("price")) for product in await store.products()}
    return customers, {name: price for name, price in prices.items() if price is not None and price >= 0}
