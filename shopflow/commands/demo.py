"""The shop in one command: servers, a worker, example events, and what becomes of them."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from time import monotonic
from typing import Any

import aiohttp
import msgspec

from shopflow import topics
from shopflow.app import config, connect, kafka_at, store
from shopflow.config.promotions import EXAMPLES
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection as kafka
from shopflow.operations.verify.totals import verify
from shopflow.servers.servers import Addresses, Servers
from shopflow.servers.worker import Worker, child_worker
from shopflow.shop.text import money
from shopflow.web import peers

from . import lines as listing
from . import samples, seeding
from .progress import progress_bar

__all__ = ["demo"]

Say = Callable[[str], None]

#: The demo's customers are the same each time.
_SEED = 1
_WORKER_START_SECONDS = 90.0
#: Without any progress for so long, something is wrong.
_STUCK_SECONDS = 60.0
_LOOK_SECONDS = 0.5
#: While the demo is open, so many of its products get another price, so often.
_NEW_PRICES, _NEW_PRICES_SECONDS = 3, 15.0


@dataclass
class Plan:
    """What the demo is to do."""

    customers: int
    purchases: int
    rate: float
    leave: bool


def demo(say: Say, *, customers: int, purchases: int, rate: float, leave: bool) -> int:
    """Run it. Returns the exit status.

    With `leave` that of the verification, 130 if Ctrl-C came before it; else 0 on Ctrl-C.
    """
    plan = Plan(customers, purchases, rate, leave)
    try:
        with Servers(config, say) as servers:
            addresses = servers.start()
            connect(addresses)
            with child_worker(config, "demo", say, _promotions()) as worker:
                return asyncio.run(_shop(plan, addresses, worker, servers, say))
    except KeyboardInterrupt:
        say("Stopped. What was stored stays: the next start goes on from here.")
        return 128 + signal.SIGINT if leave else 0


def _promotions() -> dict[str, str]:
    """The example rules, unless there are others."""
    return {} if config.promotions else {"SHOPFLOW_PROMOTIONS": msgspec.json.encode(EXAMPLES).decode()}


async def _shop(plan: Plan, addresses: Addresses, worker: Worker, servers: Servers, say: Say) -> int:
    async with _guarded(worker, servers):
        say(f"Starting a worker ... (its log: {worker.log})")
        await _until(_answers(worker), _WORKER_START_SECONDS, "the worker does not answer")
        say(f"The shop: {worker.url}/")
        say(f"Counts of all customers: {worker.url}/counts/")
        await _offer_and_register(plan, addresses, say)
        known = await seeding.known(store, plan.customers)
        async with _new_prices(addresses, known[1], wanted=not plan.leave):
            await _sell(plan, addresses, worker, known, say)
            if not plan.leave:
                await _watch(worker, say)
        report = await verify(kafka_at(addresses), store, topics.LAYOUT, token=config.web.read_token)
        await store.close()
        for line in listing.report(report, as_json=False):
            say(line)
        return report.status


@asynccontextmanager
async def _guarded(worker: Worker, servers: Servers) -> AsyncIterator[None]:
    """Ends the body with an error as soon as the worker or a server has died."""
    body = asyncio.current_task()
    reason: list[Exception] = []

    async def guard() -> None:
        while True:
            try:
                worker.check()
                if failure := servers.failure():
                    raise Refused(failure)
            except Refused as error:
                reason.append(error)
                if body:
                    body.cancel()
                return
            await asyncio.sleep(_LOOK_SECONDS)

    guarding = asyncio.create_task(guard())
    try:
        yield
    except asyncio.CancelledError:
        if reason:
            raise reason[0] from None
        raise
    finally:
        guarding.cancel()


async def _until(done: Any, seconds: float, otherwise: str) -> None:
    try:
        await asyncio.wait_for(done, seconds)
    except asyncio.TimeoutError as error:
        raise Unavailable("demo", f"{otherwise} after {seconds:g} s") from error


async def _answers(worker: Worker) -> None:
    while await _counts(worker) is None:
        await asyncio.sleep(_LOOK_SECONDS)


async def _counts(worker: Worker) -> dict[str, Any] | None:
    """The worker's sums; None while it can't say."""
    try:
        async with (
            aiohttp.ClientSession(headers=peers.headers()) as http,
            http.get(f"{worker.url}/counts/") as response,
        ):
            if response.status == 200:
                sums: dict[str, Any] = await response.json()
                return sums
    except aiohttp.ClientError:
        return None  # it is not up yet, or it is just being stopped: the guard tells
    return None


async def _offer_and_register(plan: Plan, addresses: Addresses, say: Say) -> None:
    now = datetime.now(timezone.utc)
    offered = samples.products(random.Random(), now)  # noqa: S311 - example prices
    registered = samples.customers(plan.customers, _SEED, now)
    for topic, key, events, count in (
        (topics.products, "product_id", iter(offered), len(offered)),
        (topics.customers, "customer_id", registered, plan.customers),
    ):
        name = topic.get_topic_name()
        with progress_bar(name, count) as advance:
            await seeding.through_kafka(kafka_at(addresses), name, key, seeding.paced(events, count, 0), advance)
    await _drained(addresses, say)
    say(f"{len(offered)} products are offered, {plan.customers} customers have registered.")


@asynccontextmanager
async def _new_prices(addresses: Addresses, prices: dict[str, int], *, wanted: bool) -> AsyncIterator[None]:
    """Offer some products at another price now and then, so that prices and what is sold at them are seen moving.

    Arguments:
        prices: What purchases are made at; changed, too.
        wanted: Otherwise nothing is done.
    """

    async def offer() -> None:
        chance = random.Random()  # noqa: S311 - example prices
        while True:
            await asyncio.sleep(_NEW_PRICES_SECONDS)
            offered = chance.sample(samples.products(chance, datetime.now(timezone.utc)), _NEW_PRICES)
            events = seeding.paced(offered, None, 0)
            name = topics.products.get_topic_name()
            await seeding.through_kafka(kafka_at(addresses), name, "product_id", events, lambda _: None)
            prices.update({product["product_id"]: product["price"] for product in offered})

    offering = asyncio.create_task(offer()) if wanted else None
    try:
        yield
    finally:
        if offering:
            offering.cancel()
            with suppress(asyncio.CancelledError, Unavailable):  # Kafka away: the guard tells, or nothing is sold
                await offering


async def _sell(
    plan: Plan, addresses: Addresses, worker: Worker, known: tuple[list[str], dict[str, int]], say: Say
) -> None:
    customer_ids, prices = known
    events = samples.purchases(
        random.Random(), customer_ids, list(prices), lambda: datetime.now(timezone.utc), prices  # noqa: S311
    )  # fmt: skip
    name = topics.purchases.get_topic_name()
    began = monotonic()
    with progress_bar(name, plan.purchases) as advance:
        paced = seeding.paced(events, plan.purchases, plan.rate)
        await seeding.through_kafka(kafka_at(addresses), name, "customer_id", paced, advance)
    await _drained(addresses, say)
    say(f"{plan.purchases} purchases were made, stored and counted in {monotonic() - began:.1f} s.")
    if sums := await _counts(worker):
        say(_summary(sums))
    await _newest_voucher(say, "")


async def _drained(addresses: Addresses, say: Say) -> None:
    """Wait until the worker has committed everything."""
    last, since = None, monotonic()
    while True:
        lags = await kafka.lags(kafka_at(addresses), config.app_id, topics.LAYOUT.events)
        waiting = sum(lag.waiting for lag in lags.values())
        if not waiting:
            return
        if waiting != last:
            last, since = waiting, monotonic()
        elif monotonic() - since > _STUCK_SECONDS:
            raise Unavailable("demo", f"{waiting} events wait, and nothing moves; see the worker's log")
        await asyncio.sleep(_LOOK_SECONDS)


async def _watch(worker: Worker, say: Say) -> None:
    """Show what happens until Ctrl-C."""
    say("")
    say(f"The shop is open: {worker.url}/  In another terminal, in this folder:")
    say("    .venv/bin/faust -A shopflow seed-purchases --count 100 --rate 10")
    say("    .venv/bin/faust -A shopflow list-customers --limit 3")
    say("    .venv/bin/faust -A shopflow list-products --sales")
    say(f"    .venv/bin/faust -A shopflow price-history {samples.PRODUCTS[0].product_id}")
    say("    .venv/bin/faust -A shopflow list-vouchers --limit 3")
    say(f"    curl {worker.url}/sales/")
    say(f"Some prices change every {_NEW_PRICES_SECONDS:g} seconds: look at a product on the page. Ctrl-C closes it.")
    before = await _counts(worker)
    newest = await _newest_voucher(lambda _: None, "")
    while True:
        await asyncio.sleep(1.0)
        sums = await _counts(worker)
        if sums and sums != before:
            say(_summary(sums))
            before = sums
            newest = await _newest_voucher(say, newest)


async def _newest_voucher(say: Say, known: str) -> str:
    """Show the newest voucher unless it is known; returns its id."""
    async with aclosing(store.vouchers(limit=1)) as found:
        async for voucher in found:
            if voucher["_id"] != known:
                say(f"The newest voucher: {listing.voucher(voucher)}")
            return str(voucher["_id"])
    return known


def _summary(sums: dict[str, Any]) -> str:
    return (
        f"{datetime.now().astimezone():%H:%M:%S}  {sums['purchases']} purchases of {sums['customers']} customers: "
        f"{sums['items']} items, {money(sums['spent'])}"
    )
