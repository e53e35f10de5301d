"""What happens in an open demo: purchases, new customers, deliveries at new prices, now and then a bad event.

It goes on for as long as the demo is open. Only the purchases become more and more: a purchase is a fact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from math import sin, tau
from time import monotonic
from typing import Any, NoReturn

import msgspec

from shopflow import topics
from shopflow.errors import Unavailable
from shopflow.kafka import connection
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.sender import Sender
from shopflow.shop.stock import alert_id, stocked
from shopflow.shop.text import grouped, money
from shopflow.store import MongoStore

from . import samples, seeding
from .base import now

#: Purchases a second: the fewest and the most, and the seconds from one rush to the next.
RATES, _RUSH_SECONDS = (2.0, 5.0), 240.0
REGISTRATION_SECONDS, DELIVERY_SECONDS, BAD_EVENT_SECONDS = 20.0, 10.0, 90.0
#: With so many customers in the shop, nobody registers any more.
MOST_CUSTOMERS = 1_000
#: The newest alerts that a delivery looks at: more than can come between two.
_ALERTS = 4 * len(samples.PRODUCTS)

#: What is wrong with a purchase, and the changes that make it so. Each is rejected at once, without waiting.
_FAULTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("a quantity of 0", {"quantity": 0}),
    ("a price that is a text", {"price": "4,15 zł"}),
    ("no time", {"purchased_at": None}),
    ("a price below 0", {"price": -415}),
)


class Trading:
    """Sends the events of an open shop. Kafka or MongoDB may go away and come back meanwhile.

    Arguments:
        customer_ids: Who buys. New customers are added.
        say: Gets a line about each event but the purchases.
        rate: Purchases a second; None: two to five.

    Attributes:
        open: While it is not set, nothing is sent.
    """

    def __init__(
        self,
        bootstrap: Bootstrap,
        store: MongoStore,
        customer_ids: list[str],
        say: Callable[[str], None],
        rng: random.Random | None = None,
        *,
        rate: float | None = None,
    ) -> None:
        self._bootstrap = bootstrap
        self._store = store
        self._customer_ids = customer_ids
        self._say = say
        self._rate = rate
        self.open = asyncio.Event()
        self.open.set()
        self._rng = rng or random.Random()  # noqa: S311 - examples, not secrets
        self._purchases = samples.purchases(
            self._rng, customer_ids, [product.product_id for product in samples.PRODUCTS], now
        )

    async def run(self) -> NoReturn:
        """Send events until it is cancelled."""
        self._sender = Sender(lambda: connection.producer(self._bootstrap))
        loops = [
            asyncio.ensure_future(self._repeat(send, seconds))
            for send, seconds in (
                (self.buy, lambda: 1 / self._rate if self._rate else pause()),
                (self.register, lambda: REGISTRATION_SECONDS),
                (self.deliver, lambda: DELIVERY_SECONDS),
                (self.send_bad_event, lambda: BAD_EVENT_SECONDS),
            )
        ]
        try:
            await asyncio.gather(*loops)
        finally:
            for each in loops:
                each.cancel()  # an error in one of them leaves the others running
            await self._sender.close()
        raise AssertionError("the events of an open shop do not end")

    async def _repeat(self, send: Callable[[], Awaitable[None]], seconds: Callable[[], float]) -> NoReturn:
        while True:
            await asyncio.sleep(seconds())
            await self.open.wait()
            try:
                await send()
            except Unavailable as error:
                self._say(f"Not sent: {error}")

    async def buy(self) -> None:
        """A random customer buys. The worker gives the price."""
        await self._send(topics.purchases, next(self._purchases))

    async def buy_twice(self) -> None:
        """A producer sends one purchase twice."""
        purchase = next(self._purchases)
        await self._send(topics.purchases, purchase)
        await self._send(topics.purchases, purchase)

    async def register(self) -> None:
        """A new customer registers, unless the shop has enough."""
        if len(self._customer_ids) < MOST_CUSTOMERS:
            (customer,) = samples.customers(1, None, now())
            await self._send(topics.customers, customer)
            self._customer_ids.append(customer["customer_id"])
            self._say(f"{customer['first_name']} {customer['last_name']} has registered.")

    async def deliver(self) -> None:
        """Offer a random product at a new price, and each product with an alert, all with a full stock."""
        alerts = {alert["_id"] for alert in await self._store.alerts(_ALERTS)}
        products = filter(stocked, await self._store.products())
        low = {product["_id"] for product in products if alert_id(product) in alerts}
        offered = samples.products(self._rng, now())
        chosen = self._rng.choice(offered)
        for product in offered:
            if product is chosen or product["product_id"] in low:
                await self._send(topics.products, product)
                name = product["name"] + (" ran low" if product["product_id"] in low else "")
                self._say(f"{name}: {grouped(product['stock'])} are delivered, now {money(product['price'])} each.")

    async def send_bad_event(self) -> None:
        """Send a purchase that becomes a dead letter."""
        what, changes = self._rng.choice(_FAULTS)
        await self._send(topics.purchases, {**next(self._purchases), **changes})
        self._say(f"A purchase with {what} was sent: it becomes a dead letter.")

    async def _send(self, topic: Any, event: seeding.Event) -> None:
        name = topic.get_topic_name()
        await self._sender.send(name, [(event[topics.KEYS[name]].encode(), msgspec.json.encode(event))])


def pause() -> float:
    """The seconds to the next purchase. There is a rush every few minutes."""
    low, high = RATES
    return 1 / (low + (high - low) * (1 + sin(tau * monotonic() / _RUSH_SECONDS)) / 2)
