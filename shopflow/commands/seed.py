"""`seed-products`, `seed-customers`, `seed-purchases`: send example events to Kafka or write them to MongoDB."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import click
from faust.cli import option

from shopflow import topics
from shopflow.app import config, kafka_at, store
from shopflow.errors import Refused
from shopflow.kafka.topics import ensure_topics
from shopflow.servers.servers import locate
from shopflow.store.types import Document

from . import samples, seeding
from .base import DIRECT, Command, mongodb, now
from .progress import progress_bar

#: Customers that `seed-purchases` chooses from.
_BUYERS = 100_000


async def _seed(
    self: Command,
    topic: Any,
    events: Iterator[dict[str, Any]],
    count: int,
    direct: Callable[[seeding.Progress], seeding.DirectWriter] | None,
    *,
    rate: float = 0.0,
) -> None:
    name = topic.get_topic_name()
    what = name.removeprefix(config.topics.prefix)
    with progress_bar(what, count, quiet=self.quiet) as advance:
        if direct:
            await store.prepare()
            writer = direct(advance)
            total = await writer.take(seeding.paced(events, count, rate, writer.flush))
        else:
            paced = seeding.paced(events, count, rate)
            bootstrap = kafka_at(locate(config, mongodb=False))
            await ensure_topics(bootstrap, topics.SPECS)
            total = await seeding.through_kafka(bootstrap, name, topics.KEYS[name], paced, advance)
    where = "in MongoDB" if direct else f"in Kafka, topic {name}"
    self.say(f"{total} {what} {where}.")


@Command.from_handler(DIRECT)
async def seed_products(self: Command, direct: bool) -> None:
    """Offer the 13 example products, each with a price. Run it again for new prices."""
    events = samples.products(random.Random(), now())  # noqa: S311 - example prices
    writer = partial(seeding.DirectWriter, "product_id", store.upsert_products) if direct else None
    async with mongodb(able=True) if direct else nullcontext():
        await _seed(self, topics.products, iter(events), len(events), writer)


@Command.from_handler(
    option("--count", type=click.IntRange(1), default=20, show_default=True, help="How many customers."),
    option("--seed", type=int, default=None, help="The same seed gives the same customers."),
    DIRECT,
)
async def seed_customers(self: Command, count: int, seed: int | None, direct: bool) -> None:
    """Register example customers."""
    events = samples.customers(count, seed, now())
    writer = partial(seeding.DirectWriter, "customer_id", store.upsert_customers) if direct else None
    async with mongodb(able=True) if direct else nullcontext():
        await _seed(self, topics.customers, events, count, writer)


@Command.from_handler(
    option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many purchases."),
    option("--rate", type=click.FloatRange(0), default=2.0, show_default=True, help="Purchases a second; 0: no limit."),
    option("--with-prices", is_flag=True, help="Send each with the price of now. Else the worker gives the price."),
    DIRECT,
)
async def seed_purchases(self: Command, count: int, rate: float, with_prices: bool, direct: bool) -> None:
    """Send purchases of random products by random customers, all from MongoDB."""
    async with mongodb(able=direct):
        customer_ids, prices = await seeding.known(store, _BUYERS)
        for ids, what in ((customer_ids, "customers"), (prices, "products")):
            if not ids:
                raise Refused(f"no {what} in MongoDB yet: run `faust -A shopflow seed-{what}` with a worker running")
        sent = prices if with_prices or direct else None
        events = samples.purchases(random.Random(), customer_ids, list(prices), now, sent)  # noqa: S311 - examples
        writer = partial(seeding.DirectWriter, "purchase_id", _insert_purchases) if direct else None
        await _seed(self, topics.purchases, events, count, writer, rate=rate)


async def _insert_purchases(documents: Sequence[Document]) -> Mapping[int, str]:
    return (await store.insert_purchases(documents)).refused
