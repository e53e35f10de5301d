"""Example events on their way into the shop: through Kafka, or straight into MongoDB."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any

from aiokafka.errors import KafkaError

from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection
from shopflow.kafka.security import Bootstrap
from shopflow.shop.decoding import encode
from shopflow.shop.text import whole
from shopflow.store import MongoStore
from shopflow.store.types import Document

Event = dict[str, Any]
#: Called with how many more events are safe: acknowledged by Kafka, or in MongoDB's journal.
Progress = Callable[[int], None]

#: Writes documents; returns the reasons of those that were refused, by their indexes.
Write = Callable[[Sequence[Document]], Awaitable[Mapping[int, str]]]

#: Events that may be under way to Kafka at once.
_UNDER_WAY = 2_000
#: Documents of one write to MongoDB.
_AT_ONCE = 1_000
#: Shortest pause when events are paced.
_TICK_SECONDS = 0.02


async def paced(
    events: Iterable[Event], count: int | None, rate: float, before_pause: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Event]:
    """The first `count` events (None: all), at most `rate` of them a second (0: as fast as they are taken)."""
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
    """Produce events, each under the value of its field `key`.

    Returns:
        How many; Kafka has acknowledged all of them.

    Raises:
        Unavailable: Kafka went away; `progress` has been told how many it has acknowledged.
    """
    async with connection.producer(bootstrap) as producer:
        under_way = _UnderWay(progress)
        try:
            async for event in events:
                under_way.futures.append(await producer.send(topic, encode(event), key=event[key].encode()))
                await under_way.settle(_UNDER_WAY)
            await under_way.settle(1)
        except KafkaError as error:
            await under_way.abandon()
            reason = f"{error or type(error).__name__}; {under_way.acknowledged} events were acknowledged"
            raise Unavailable("Kafka", reason) from error
    return under_way.acknowledged


class _UnderWay:
    """Events on their way to Kafka, oldest first."""

    def __init__(self, progress: Progress) -> None:
        self.acknowledged = 0
        self.futures: deque[asyncio.Future[Any]] = deque()
        self._progress = progress

    async def settle(self, most: int) -> None:
        """Count those that are acknowledged, oldest first; wait while `most` or more are under way.

        Raises:
            KafkaError: One is not acknowledged; those before it are counted.
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
        """Count those that were acknowledged all the same, and leave no failure to be complained about later."""
        results = await asyncio.gather(*self.futures, return_exceptions=True)
        self._count(sum(not isinstance(result, BaseException) for result in results))

    def _count(self, done: int) -> None:
        self.acknowledged += done
        if done:
            self._progress(done)


class DirectWriter:
    """Writes events straight into MongoDB, a thousand documents at once.

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
        """Write all events. Returns how many.

        Raises:
            Refused: The collection does not take one.
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
            raise Refused(f"MongoDB: does not take {documents[number]['_id']!r}: {reason}")
        self._total += len(documents)
        self._progress(len(documents))


def document(event: Event, id_field: str) -> Document:
    """The event as it is stored when Kafka never had it; a purchase with its value."""
    fields = dict(event)
    made = {"_id": fields.pop(id_field), **fields, "source": {"origin": "direct"}}
    return {**made, "value": event["quantity"] * event["price"]} if "quantity" in event else made


async def known(store: MongoStore, limit: int) -> tuple[list[str], dict[str, int]]:
    """The ids of at most `limit` customers, and the products that have a price, with it in grosze."""
    customers = await store.customer_ids(limit)
    prices = {product["_id"]: whole(product.get("price")) for product in await store.products()}
    return customers, {name: price for name, price in prices.items() if price is not None and price >= 0}
