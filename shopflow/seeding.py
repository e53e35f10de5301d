"""Example events on their way into the shop: through Kafka, or straight into MongoDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from time import monotonic
from typing import Any

from aiokafka.errors import KafkaError

from . import kafka
from .credentials import Bootstrap
from .errors import Unavailable
from .models import encode
from .store import Document, Store

__all__ = [
    "DIRECT",
    "customer_document",
    "paced",
    "product_document",
    "purchase_document",
    "through_kafka",
    "to_mongodb",
]

Event = dict[str, Any]
#: Told how many more events are safe: acknowledged by Kafka, or in MongoDB's journal.
Progress = Callable[[int], None]

DIRECT = {"origin": "direct"}

#: Events that may be under way to Kafka at once.
_UNDER_WAY = 2_000
#: Documents of one write to MongoDB.
_AT_ONCE = 1_000
#: Shortest pause when events are paced.
_TICK_SECONDS = 0.02


async def paced(events: Iterable[Event], count: int | None, rate: float) -> AsyncIterator[Event]:
    """The first `count` events (None: all), at most `rate` of them a second (0: as fast as they are taken)."""
    began = monotonic()
    for number, event in enumerate(events):
        if number == count:
            return
        if rate > 0 and (early := began + number / rate - monotonic()) > 0:
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
    async with kafka.producer(bootstrap) as producer:
        under_way = _UnderWay(progress)
        try:
            async for event in events:
                await under_way.add(await producer.send(topic, encode(event), key=event[key].encode()))
            await under_way.settle(0)
        except KafkaError as error:
            await under_way.abandon()
            reason = f"{error or type(error).__name__}; {under_way.acknowledged} events were acknowledged"
            raise Unavailable("Kafka", reason) from error
    return under_way.acknowledged


class _UnderWay:
    """Events on their way to Kafka, oldest first."""

    def __init__(self, progress: Progress) -> None:
        self.acknowledged = 0
        self._progress = progress
        self._futures: list[asyncio.Future[Any]] = []

    async def add(self, future: asyncio.Future[Any]) -> None:
        """One more; waits when there are too many, looks at those that are done now and then."""
        self._futures.append(future)
        if len(self._futures) >= _UNDER_WAY:
            await self.settle(_UNDER_WAY // 2)
        elif self._futures[0].done():
            done = next((number for number, one in enumerate(self._futures) if not one.done()), len(self._futures))
            await self.settle(len(self._futures) - done)

    async def settle(self, keep: int) -> None:
        """Wait until all but `keep` are acknowledged.

        Raises:
            KafkaError: One is not; those before it are counted.
        """
        done = 0
        try:
            for future in self._futures[: len(self._futures) - keep]:
                await future
                done += 1
        finally:
            del self._futures[:done]
            self.acknowledged += done
            if done:
                self._progress(done)

    async def abandon(self) -> None:
        """Count those that were acknowledged all the same, and leave no failure to be complained about later."""
        results = await asyncio.gather(*self._futures, return_exceptions=True)
        done = sum(not isinstance(result, BaseException) for result in results)
        self.acknowledged += done
        if done:
            self._progress(done)


async def to_mongodb(
    events: AsyncIterator[Event],
    document: Callable[[Event], Document],
    write: Callable[[list[Document]], Any],
    progress: Progress,
) -> int:
    """Write events as documents, without Kafka. Returns how many."""
    total, waiting = 0, []
    async for event in events:
        waiting.append(document(event))
        if len(waiting) == _AT_ONCE:
            await write(waiting)
            total += len(waiting)
            progress(len(waiting))
            waiting = []
    if waiting:
        await write(waiting)
        total += len(waiting)
        progress(len(waiting))
    return total


def product_document(event: Event) -> Document:
    """As it stands in `products`."""
    return _document(event, "product_id")


def customer_document(event: Event) -> Document:
    """As it stands in `customers`."""
    return _document(event, "customer_id")


def purchase_document(event: Event) -> Document:
    """As it stands in `purchases`."""
    return {**_document(event, "purchase_id"), "value": event["quantity"] * event["price"]}


def _document(event: Event, key: str) -> Document:
    fields = dict(event)
    return {"_id": fields.pop(key), **fields, "source": dict(DIRECT)}


async def known(store: Store, limit: int) -> tuple[list[str], dict[str, int]]:
    """Ids of customers (at most `limit`), and the products with their prices: who can buy what."""
    customers = await store.customer_ids(limit)
    return customers, {product["_id"]: product["price"] for product in await store.products()}
