"""An open demo: what happens in it, for as long as it is open, whatever is away meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from aiokafka.errors import LeaderNotAvailableError, OutOfOrderSequenceNumber

from shopflow.commands import demo, samples, trading
from shopflow.commands.trading import Trading, pause
from shopflow.errors import Rejected, Unavailable
from shopflow.kafka.sender import Sender
from shopflow.models import Purchase
from shopflow.shop.decoding import Decoder
from shopflow.shop.stock import alert_document
from shopflow.store.types import Document
from tests.support.text import plain

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
EVENTS = ("shop.products", "shop.customers", "shop.purchases")


class Producer:
    """Like aiokafka's: after a record that waited for too long, Kafka refuses all others of its partition."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._gap = False

    async def send(self, topic: str, value: bytes, key: bytes) -> asyncio.Future[None]:
        delivery: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._gap:
            delivery.set_exception(OutOfOrderSequenceNumber())
        elif self._world.kafka_away:
            self._gap = True
            delivery.set_exception(LeaderNotAvailableError())
        else:
            delivery.set_result(None)
            self._world.sent.append((topic, key.decode(), json.loads(value)))
        return delivery


class World:
    """Kafka, and MongoDB with the example products; the tests let them go away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.said: list[str] = []
        self.low: set[str] = set()
        self.kafka_away = self.mongodb_away = False
        self.customers = ["anna"]
        self.rng = random.Random(1)
        monkeypatch.setattr(trading.connection, "producer", self._producer)
        self.trading = Trading("kafka:1", self, self.customers, self.said.append, self.rng)  # type: ignore[arg-type]

    @asynccontextmanager
    async def _producer(self, bootstrap: object) -> AsyncIterator[Producer]:
        yield Producer(self)

    async def products(self) -> list[Document]:
        self._check()
        return [
            {"_id": product.product_id, "stock": product.stock, "updated_at": NOON} for product in samples.PRODUCTS
        ] + [{"_id": "herbata"}]

    async def alerts(self, limit: int) -> list[Document]:
        self._check()
        return [alert_document(one, 3, NOON) for one in await self.products() if one["_id"] in self.low][:limit]

    def _check(self) -> None:
        if self.mongodb_away:
            raise Unavailable("MongoDB", "away")

    def events(self, topic: str) -> list[dict[str, Any]]:
        """The events of a topic, each with its key checked."""
        for name, key, event in self.sent:
            assert key == event[{EVENTS[0]: "product_id"}.get(name, "customer_id")]
        return [event for name, _, event in self.sent if name == topic]

    def trade(self, enough: Callable[[], bool]) -> None:
        """Trade until there is enough."""

        async def run() -> None:
            task = asyncio.create_task(self.trading.run())

            async def wait() -> None:
                while not enough() and not task.done():
                    await asyncio.sleep(0)

            await asyncio.wait_for(wait(), 10)
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.wait({task})

        asyncio.run(run())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world without pauses."""
    for name in ("REGISTRATION_SECONDS", "DELIVERY_SECONDS", "BAD_EVENT_SECONDS"):
        monkeypatch.setattr(trading, name, 0.0)
    monkeypatch.setattr(trading, "pause", lambda: 0.0)
    return World(monkeypatch)


def accepted(event: dict[str, Any]) -> bool:
    """True if the worker accepts the purchase."""
    try:
        Decoder(Purchase, "customer_id", 1 << 20)(event["customer_id"].encode(), msgspec.json.encode(event))
    except Rejected:
        return False
    return True


def test_everything_happens_for_as_long_as_it_is_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Customers buy at the worker's price, register up to a limit, and goods are delivered. Some purchases are bad."""
    monkeypatch.setattr(trading, "MOST_CUSTOMERS", 12)
    world.trade(lambda: all(len(world.events(topic)) >= 11 for topic in EVENTS) and len(world.sent) > 300)
    assert len(world.events("shop.customers")) == 11
    assert world.customers == ["anna", *(event["customer_id"] for event in world.events("shop.customers"))]
    purchases = world.events("shop.purchases")
    bought = Counter(accepted(purchase) for purchase in purchases)
    assert min(bought[True], bought[False]) > 11
    assert {event["customer_id"] for event in purchases} == set(world.customers)
    assert not any("price" in event for event in purchases if accepted(event))
    assert all(any(word in line for line in world.said) for word in ("registered", "delivered", "dead letter"))


def test_each_bad_event_is_rejected_at_once(world: World) -> None:
    """A purchase of an unknown product would hold up its partition for ten seconds."""
    for what, changes in trading._FAULTS:
        assert not accepted({**next(world.trading._purchases), **changes}), what


def test_a_product_that_runs_low_is_delivered(world: World) -> None:
    """Each product with an alert of its present stocking is filled up, so that nothing stays sold out."""
    world.low = {"chleb-zytni", "maslo-ekstra"}
    world.trade(lambda: len(world.events("shop.products")) > 0)
    names = [event["product_id"] for event in world.events("shop.products")]
    assert world.low <= set(names[:3])
    assert all(event["stock"] >= 300 for event in world.events("shop.products"))


@pytest.mark.parametrize("away", ["kafka_away", "mongodb_away"])
def test_it_goes_on_after_an_outage(world: World, away: str) -> None:
    """Who looks at the demo sees what is away. While only MongoDB is, purchases are sent: they wait in Kafka."""
    setattr(world, away, True)

    def back() -> bool:
        """Let the outage be over once it was seen. True: after it the shop sells and is delivered to."""
        seen = any("Not sent" in line for line in world.said) and (world.kafka_away or len(world.sent) > 50)
        if seen and getattr(world, away):
            assert bool(world.events("shop.purchases")) == (away == "mongodb_away")
            setattr(world, away, False)
        return len(world.events("shop.products")) > 3 and len(world.events("shop.purchases")) > 3

    world.trade(back)


def test_two_to_five_purchases_a_second_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a rush every few minutes."""
    pauses = []
    for second in range(240):
        monkeypatch.setattr(trading, "monotonic", lambda second=second: float(second))
        pauses.append(pause())
    assert 1 / 5 <= min(pauses) < 0.21
    assert 0.49 < max(pauses) <= 1 / 2


def test_one_purchase_is_sent_twice_unchanged(world: World) -> None:
    """It is a repeat only if both have one id and one key."""

    async def twice() -> None:
        world.trading._sender = Sender(lambda: world._producer(None))
        await world.trading.buy_twice()
        await world.trading._sender.close()

    asyncio.run(twice())
    first, second = world.events("shop.purchases")
    assert first == second


def test_nothing_is_sent_while_the_shop_is_closed(world: World) -> None:
    """`verify` compares a shop in which nothing moves."""
    world.trading.open.clear()

    async def closed() -> int:
        task = asyncio.create_task(world.trading.run())
        for _ in range(200):
            await asyncio.sleep(0)
        count = len(world.sent)
        world.trading.open.set()
        while not world.sent:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return count

    assert asyncio.run(closed()) == 0


def test_totals_without_some_partitions_are_the_least() -> None:
    """Another worker may have the others: what the demo's workers count is not all."""
    sums = {"purchases": 2_097, "customers": 100, "items": 6_292, "spent": 4_145_335, "partitions": [0, 1, 2, 3]}
    whole = "2 097 purchases of 100 customers: 6 292 items, 41 453,35 zł"
    assert plain(demo._summary(sums)).endswith(f"  {whole}")
    assert plain(demo._summary({**sums, "partitions": [0, 2]})).endswith(f"  at least {whole}")
