"""Commands that show what MongoDB or a topic has: `list-...`, `price-history`, `trace`, `tail`, `describe`, ..."""

from __future__ import annotations

import os
import sys
from contextlib import aclosing
from datetime import datetime

import click
import msgspec
from faust.cli import argument, option

from shopflow import topics
from shopflow.app import config, kafka_at, store
from shopflow.config.loading import load
from shopflow.errors import Refused
from shopflow.kafka import reading
from shopflow.operations.letters import time_of
from shopflow.servers.servers import locate
from shopflow.shop import price_history as history
from shopflow.shop import stock
from shopflow.shop.promotions import trial

from . import lines, plots
from .base import JSON, Command, Time, mongodb, now
from .output import width
from .progress import progress_bar


@Command.from_handler(JSON, option("--sales", is_flag=True, help="With the sales of each."))
async def list_products(self: Command, as_json: bool, sales: bool) -> None:
    """List the products in MongoDB."""
    async with mongodb():
        products = await store.products()
        sold = {sale["product_id"]: sale async for sale in store.sales("total")} if sales else None
        left = await stock.left_of(store, products)
    for line in lines.products(products, sold, left, as_json=as_json or self.json, terminal=width()):
        self.say(line)


@Command.from_handler(
    JSON,
    option("--limit", type=click.IntRange(0), default=None, help="At most this many customers."),
    option("--purchases", is_flag=True, help="With what each bought; --json has it anyway."),
)
async def list_customers(self: Command, as_json: bool, limit: int | None, purchases: bool) -> None:
    """List the customers in MongoDB: how much each bought."""
    async with mongodb():
        found = store.customers(limit)
        async for line in lines.customers(found, as_json=as_json or self.json, purchases=purchases, terminal=width()):
            self.say(line)


@Command.from_handler(
    argument("product_id"),
    JSON,
    option("--since", type=Time(), metavar="TIME", help="Only prices that were in force then or later."),
)
async def price_history(self: Command, product_id: str, as_json: bool, since: datetime | None) -> None:
    """List every price of a product: since when, until when, and the sales at it."""
    as_json, paper = as_json or self.json, plots.paper(sys.stdout, os.environ)
    async with mongodb():
        found = await history.read(store, product_id, since)
        if found is None:
            raise Refused(f"product_id: there is no product {product_id!r} in MongoDB, and never was")
        for line in lines.price_history(found, as_json=as_json, terminal=width()):
            self.say(line)
        if paper and not as_json and not self.quiet:
            sold = await history.sales_over_time(store, product_id, found.prices, now(), since)
            for line in lines.sales_over_time(paper, found, sold):
                self.say(line)


@Command.from_handler(
    JSON,
    option("--limit", type=click.IntRange(0), default=None, help="At most this many, the newest."),
    option("--customer", metavar="ID", default=None, help="Only this customer's."),
)
async def list_vouchers(self: Command, as_json: bool, limit: int | None, customer: str | None) -> None:
    """List the vouchers in MongoDB, the newest first."""
    async with mongodb(), aclosing(store.vouchers(customer, limit)) as found:
        async for line in lines.vouchers(found, as_json=as_json or self.json):
            self.say(line)


@Command.from_handler(
    argument("name"),
    option(
        "--config-file", metavar="FILE", default=None, help="Read the rule from this file instead of the configuration."
    ),
    JSON,
)
async def try_promotion(self: Command, name: str, config_file: str | None, as_json: bool) -> None:
    """Count the vouchers that a rule would have given for the data in MongoDB. Gives none."""
    rules = load({"SHOPFLOW_CONFIG": config_file}).promotions if config_file else config.promotions
    rule = next((rule for rule in rules if rule.name == name), None)
    if rule is None:
        known = ", ".join(rule.name for rule in rules) or "none"
        raise Refused(f"no promotion is called {name!r} in {config_file or 'the configuration'}; there are: {known}")
    async with mongodb():
        with progress_bar(name, await trial.size(store, rule), quiet=self.quiet) as advance:
            found = await trial.try_rule(store, rule, advance)
    self.say(lines.tried(found, as_json=as_json or self.json))


@Command.from_handler(
    argument("purchase_id"),
    option(
        "--search",
        type=click.IntRange(1),
        default=20_000,
        show_default=True,
        help="Search at most this many records of a partition for repeats, dead letters, and what is not stored.",
    ),
    JSON,
)
async def trace(self: Command, purchase_id: str, search: int, as_json: bool) -> int:
    """Follow one purchase: Kafka, batch, price, document, counts, vouchers, or its dead letter. Status 1: not found."""
    from shopflow.operations.trace import Tracer, lines_of

    async with mongodb(kafka=True) as addresses:
        found = await Tracer(kafka_at(addresses), store, topics.LAYOUT, search).trace(purchase_id)
    for line in lines.trace(found, lines_of(found), as_json=as_json or self.json):
        self.say(line)
    return 1 if found.state in {"unknown", "lost"} else 0


@Command.from_handler(
    argument("topic", type=click.Choice(list(topics.SHOWN)), metavar="TOPIC"),
    option("--limit", type=click.IntRange(1), default=10, show_default=True, help="At most this many."),
    JSON,
)
async def tail(self: Command, topic: str, limit: int, as_json: bool) -> None:
    """Show the newest records of a topic, the newest last: partition, offset, time, key, value, and who sent it."""
    bootstrap, name = kafka_at(locate(config, mongodb=False)), topics.SHOWN[topic]
    found = await reading.tail(bootstrap, name, limit)
    found.sort(key=lambda record: (time_of(record), record.partition, record.offset))
    for line in lines.records(found[-limit:], as_json=as_json or self.json):
        self.say(line)


@Command.from_handler(argument("topic", required=False, type=click.Choice(list(topics.SHOWN)), metavar="[TOPIC]"))
async def describe(self: Command, topic: str | None) -> None:
    """Print the AsyncAPI document of all topics, or the JSON Schema of the values of one."""
    from shopflow.operations import describe as described

    if topic and topic not in described.DESCRIBED:
        raise Refused(f"TOPIC: the values of {topic} are as they came, and have no schema")
    found = described.schema(topic) if topic else described.asyncapi(topics.SHOWN, topics.SPECS)
    self.say(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
