"""`demo`: starts servers if none run, and a worker; sends example events, and shows the results."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, NoReturn

import click
import msgspec
from faust.cli import option

from shopflow import topics
from shopflow.app import config, connect, kafka_at, store
from shopflow.config.promotions import EXAMPLES
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import offsets
from shopflow.kafka.security import Bootstrap
from shopflow.servers.servers import Servers
from shopflow.servers.worker import Worker, check_alone, child_worker
from shopflow.shop.text import grouped, money
from shopflow.web import client

from . import lines, samples, seeding, trading
from .base import ServingCommand, cancel, check_mongodb, now, run, running_servers
from .progress import Activity, always_in_sight, fitted, progress_bar

#: Each demo has the same customers.
_SEED = 1
_WORKER_START_SECONDS = 90.0
#: The demo fails after so long without progress.
_STUCK_SECONDS = 60.0
_POLL_SECONDS = 0.5
_STATUS_SECONDS = 1.0
#: Purchases a second while things are broken: enough to see events wait.
_FAULTS_RATE = 30.0


@ServingCommand.from_handler(
    option("--customers", type=click.IntRange(1), default=100, show_default=True, help="How many customers."),
    option("--purchases", type=click.IntRange(1), default=2000, show_default=True, help="How many purchases."),
    option(
        "--rate", type=click.FloatRange(0), default=200.0, show_default=True, help="Purchases a second; 0: no limit."
    ),
    option("--faults", "faulty", is_flag=True, help="With two workers, and a page to break them and the servers."),
    option(
        "--exit",
        "leave",
        is_flag=True,
        help="After the last purchase, and a round of the faults, stop and exit with the status of verify.",
    ),
)
def demo(self: ServingCommand, leave: bool, faulty: bool, **plan: Any) -> int:
    """Start servers if none run, and a worker; send example events, and show live progress."""
    check_alone(config, "demo")
    with running_servers(self.say) as (servers, addresses), ExitStack() as stack:
        try:
            connect(addresses)
            check_mongodb(addresses)
            workers = [stack.enter_context(child_worker(config, "demo", _promotions()))]
            if faulty:
                workers.append(stack.enter_context(child_worker(config, "demo-second", _promotions(), first=False)))
            status = run(_Demo(kafka_at(addresses), workers, servers, self.say, leave=leave, **plan).run())
        except KeyboardInterrupt:  # said at once: the worker and the servers take seconds to stop
            self.say("Stopping. All data is kept: the next start continues from here.")
            return 128 + signal.SIGINT if leave else 0
        self.say("Stopping the worker ...")
        return status


def _promotions() -> dict[str, str]:
    """The environment variable with the example rules; none if the configuration has rules."""
    return {} if config.promotions else {"SHOPFLOW_PROMOTIONS": msgspec.json.encode(EXAMPLES).decode()}


@dataclass
class _Demo:
    bootstrap: Bootstrap
    workers: list[Worker]  #: two: with faults
    servers: Servers
    say: Callable[[str], None]
    customers: int
    purchases: int
    rate: float
    leave: bool

    @property
    def worker(self) -> Worker:
        return self.workers[0]

    async def run(self) -> int:
        """Run the demo, and fail as soon as a worker or a server has died. Returns the report's status."""
        work, guard = asyncio.create_task(self._run()), asyncio.create_task(_guard(self.workers, self.servers))
        try:
            await asyncio.wait({work, guard}, return_when=asyncio.FIRST_COMPLETED)
            return await (guard if guard.done() else work)
        finally:
            await cancel(work)
            await cancel(guard)

    async def _run(self) -> int:
        from shopflow.operations.verify.totals import verify

        self.say(f"Starting a worker ... (its log: {self.worker.log})")
        with Activity("The worker starts", self.say):
            await self._wait_for_worker()
        self.say(f"The shop: {self.worker.url}/")
        self.say(f"Counts of all customers: {self.worker.url}/counts/")
        await self._offer_and_register()
        await self._sell()
        await self._show_voucher()
        worst = 0
        if len(self.workers) > 1:
            worst = await self._break()
        elif not self.leave:
            await self._stay_open()
        report = await verify(self.bootstrap, store, topics.LAYOUT, token=config.web.read_token)
        await store.close()
        for line in lines.report(report, as_json=False):
            self.say(line)
        return worst or report.status

    async def _wait_for_worker(self) -> None:
        async def answer() -> None:
            while await self._counts() is None:
                await asyncio.sleep(_POLL_SECONDS)

        try:
            await asyncio.wait_for(answer(), _WORKER_START_SECONDS)
        except asyncio.TimeoutError as error:
            why = f"the worker does not answer after {_WORKER_START_SECONDS:g} s"
            raise Unavailable("demo", why) from error

    async def _counts(self) -> dict[str, Any] | None:
        """The totals of the demo's workers; None if none answers, as while they start or stop."""
        async with client.session(config.web.read_token) as http:
            answers = await asyncio.gather(*(client.counts(http, worker.url) for worker in self.workers))
        found = [sums for sums in answers if sums]
        return {name: sum((sums[name] for sums in found[1:]), found[0][name]) for name in found[0]} if found else None

    async def _offer_and_register(self) -> None:
        at = now()
        offered = samples.products(random.Random(), at)  # noqa: S311 - example prices
        await self._send(topics.products, offered, len(offered))
        await self._send(topics.customers, samples.customers(self.customers, _SEED, at), self.customers)
        await self._drained()
        self.say(f"{len(offered)} products are offered, {self.customers} customers have registered.")

    async def _sell(self) -> None:
        customer_ids, prices = await seeding.known(store, self.customers)
        events = samples.purchases(random.Random(), customer_ids, list(prices), now)  # noqa: S311 - examples
        began = monotonic()
        await self._send(topics.purchases, events, self.purchases, self.rate)
        await self._drained()
        self.say(f"{self.purchases} purchases were made, stored and counted in {monotonic() - began:.1f} s.")
        if sums := await self._counts():
            self.say(fitted(_summary(sums)))

    async def _send(self, topic: Any, events: Iterable[seeding.Event], count: int, rate: float = 0) -> None:
        name = topic.get_topic_name()
        with progress_bar(name, count) as advance:
            paced = seeding.paced(events, count, rate)
            await seeding.through_kafka(self.bootstrap, name, topics.KEYS[name], paced, advance)

    async def _drained(self) -> None:
        with Activity("The worker stores and counts", self.say):
            await self._wait_until_drained()

    async def _wait_until_drained(self) -> None:
        last, since = None, monotonic()
        while True:
            lags = await offsets.lags(self.bootstrap, config.app_id, topics.LAYOUT.events)
            waiting = sum(lag.all_waiting for lag in lags.values())
            if not waiting:
                return
            if waiting != last:
                last, since = waiting, monotonic()
            elif monotonic() - since > _STUCK_SECONDS:
                raise Unavailable("demo", f"{waiting} events wait, and there is no progress; see the worker's log")
            await asyncio.sleep(_POLL_SECONDS)

    async def _stay_open(self) -> None:
        """Trade, and show the state of the shop, until Ctrl-C."""
        latest = [""]

        def say(line: str) -> None:
            latest[0] = f"{_clock()}  {line}"

        shop = trading.Trading(self.bootstrap, store, await self._known(), say)
        await self._watch(asyncio.create_task(shop.run()), _signs(self.worker.url), latest)

    async def _known(self) -> list[str]:
        customer_ids, _ = await seeding.known(store, max(self.customers, trading.MOST_CUSTOMERS))
        return customer_ids

    async def _break(self) -> int:
        """Serve the page of the faults until Ctrl-C; with `--exit` do each fault once. Returns the worst status."""
        from .faults import Faults
        from .faults_page import serving

        latest = [""]

        def say(line: str) -> None:
            latest[0] = line
            if self.leave:
                self.say(line)

        shop = trading.Trading(self.bootstrap, store, await self._known(), lambda line: None, rate=_FAULTS_RATE)
        faults = Faults(self.bootstrap, self.workers, self.servers, shop, say)
        async with serving(faults) as url:
            self.say(f"Break it: {url}")
            if self.leave:
                await faults.round()
            else:
                await self._watch(
                    asyncio.create_task(faults.run()), [*_signs(self.worker.url), f"Break it: {url}"], latest
                )
        return faults.status

    async def _watch(self, trade: asyncio.Task[NoReturn], signs: list[str], latest: list[str]) -> None:
        """Show the state of the shop until this task, which sells, has failed, or until Ctrl-C."""
        try:
            with always_in_sight(signs) as show:
                while not trade.done():
                    sums = await self._counts()
                    show(
                        [_summary(sums) if sums else f"{_clock()}  The worker does not answer.", *filter(None, latest)]
                    )
                    await asyncio.wait({trade}, timeout=_STATUS_SECONDS)
            await trade  # it has failed
        finally:
            await cancel(trade)

    async def _show_voucher(self) -> None:
        async with aclosing(store.vouchers(limit=1)) as found:
            async for voucher in found:
                self.say(fitted(f"The newest voucher: {lines.voucher(voucher)}"))


def _signs(url: str) -> list[str]:
    """The lines that an open demo keeps in sight."""
    return [
        "",
        f"The shop is open: {url}/",
        "In another terminal, in this folder:",
        "  .venv/bin/faust -A shopflow list-products --sales",
        "  .venv/bin/faust -A shopflow list-customers --limit 3",
        f"  .venv/bin/faust -A shopflow price-history {samples.PRODUCTS[0].product_id}",
        "  .venv/bin/faust -A shopflow list-vouchers --limit 3",
        "  .venv/bin/faust -A shopflow dead-letters",
        "  .venv/bin/faust -A shopflow seed-purchases --rate 10",
        f"  curl {url}/sales/",
        "Customers buy, register and get vouchers; prices change. Ctrl-C closes it.",
    ]


def _clock() -> str:
    return f"{datetime.now().astimezone():%H:%M:%S}"


def _summary(sums: dict[str, Any]) -> str:
    """The totals in words. Other workers may have some of the partitions, or nobody while these change hands."""
    least = "" if len(set(sums["partitions"])) == config.topics.partitions else "at least "
    return (
        f"{_clock()}  {least}{grouped(sums['purchases'])} purchases of {grouped(sums['customers'])} customers: "
        f"{grouped(sums['items'])} items, {money(sums['spent'])}"
    )


async def _guard(workers: list[Worker], servers: Servers) -> NoReturn:
    """Wait until a worker or a server has died, but not by a fault of this demo.

    Raises:
        Refused: A worker or a server has died.
    """
    while True:
        for worker in workers:
            worker.check()
        if failure := servers.failure():
            raise Refused(failure)
        await asyncio.sleep(_POLL_SECONDS)
