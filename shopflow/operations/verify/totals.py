"""Are Kafka, MongoDB and the tables in agreement?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from faust_batches import TOTALS_KEY, Position, position_of
from shopflow.errors import Unavailable
from shopflow.kafka import connection as kafka
from shopflow.kafka.security import Bootstrap
from shopflow.models import PartitionTotals, PurchaseCount
from shopflow.shop import announcements
from shopflow.shop.counts import Totals, decode_count, decode_totals
from shopflow.shop.layout import Layout
from shopflow.store import MongoStore

from . import workers
from .announcements import compare_announcements
from .report import Check, Named, Report
from .sales import compare_sales

__all__ = ["Check", "Report", "Tables", "verify"]

#: How often it is looked again while events are on their way, and how long to wait in between.
_ATTEMPTS = 20
#: Looks without any change after which what waits is taken to wait for good.
_STILL = 4
_PAUSE_SECONDS = 0.5
#: How long it is looked again for workers that can't be asked, as while they share out the partitions.
_PATIENCE_SECONDS = 15.0
#: Customers that MongoDB is asked for at once: are they registered?
_REGISTERED_AT_ONCE = 1_000

Counts = tuple[int, int, int]  # purchases, items, spent


class Tables:
    """The counts as the changelog has them: what every worker recovers from."""

    def __init__(self) -> None:
        self._counts: list[dict[bytes, PurchaseCount]] = []
        self._totals: dict[int, PartitionTotals] = {}

    async def read(self, bootstrap: Bootstrap, topic: str, partitions: int) -> None:
        """Read all partitions of the changelog."""
        self._counts = [{} for _ in range(partitions)]
        for partition in range(partitions):
            await kafka.read_partition(bootstrap, topic, partition, self.take)

    def take(self, partition: int, records: Iterable[Any]) -> None:
        """Take in a run of records: of two values of a key the one with the larger position stays."""
        counts = self._counts[partition]
        for record in records:
            try:
                position = position_of(record.value)
            except (msgspec.MsgspecError, TypeError):
                continue
            if record.key is None:
                continue
            if record.key == TOTALS_KEY:
                known = self._totals.get(partition)
                if known is None or position >= Position(known.era, known.offset):
                    self._totals[partition] = decode_totals(record.value)
            elif (count := counts.get(record.key)) is None or position >= Position(count.era, count.offset):
                counts[record.key] = decode_count(record.value)

    def counts(self, partition: int) -> Mapping[bytes, PurchaseCount]:
        """The customers of a partition; what was counted before it was rebuilt counts no more."""
        era = self.totals(partition).era
        return {key: count for key, count in self._counts[partition].items() if count.era >= era}

    def totals(self, partition: int) -> PartitionTotals:
        """The sums of a partition."""
        return self._totals.get(partition) or Totals()

    def by_customer(self) -> dict[str, Counts]:
        """A customer's counts over all partitions."""
        sums: dict[str, Counts] = {}
        for partition in range(len(self._counts)):
            for key, count in self.counts(partition).items():
                name = key.decode("utf-8", "backslashreplace")
                purchases, items, spent = sums.get(name, (0, 0, 0))
                sums[name] = (purchases + count.purchases, items + count.items, spent + count.spent)
        return sums

    def sums(self) -> dict[str, int]:
        """Over all partitions: customers, purchases, items, spent, duplicates, rejected."""
        names = ("customers", "purchases", "items", "spent", "duplicates", "rejected")
        return {name: sum(getattr(totals, name) for totals in self._totals.values()) for name in names}


class _State(NamedTuple):
    """What must stand still while it is compared."""

    lags: dict[str, kafka.Lag]
    live: workers.Live


async def verify(bootstrap: Bootstrap, store: MongoStore, shop: Layout, *, token: str = "") -> Report:
    """Compare what was sent, what is stored and what was counted; wait a little for what is on its way.

    Arguments:
        token: What the workers want to see before they tell what they have.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    report = Report()
    still, last = 0, None
    deadline = monotonic() + _PATIENCE_SECONDS
    for _ in range(_ATTEMPTS):
        before = await _state(bootstrap, shop)
        if any(topic not in before.lags for topic in shop.events):
            raise Unavailable("Kafka", "the shop's topics do not exist yet: start a worker, or seed some events")
        report = await _compare(bootstrap, store, before, shop, token)
        after = await _state(bootstrap, shop)
        moved = before != after or last not in (None, before)
        last = after
        still = 0 if moved else still + 1
        if still and _settled(report, still, waits=_waiting(before.lags, shop) > 0, patient=monotonic() < deadline):
            return report
        if moved:
            report.status = 2
            report.checks.append(Check("quiet", None, "events arrive faster than they can be compared"))
        await asyncio.sleep(_PAUSE_SECONDS)
    return report


def _settled(report: Report, still: int, *, waits: bool, patient: bool) -> bool:
    """Would it be in vain to look once more, when nothing moves?"""
    if report.status == 2:
        return not patient
    return report.status == 0 or not waits or still == _STILL


async def _state(bootstrap: Bootstrap, shop: Layout) -> _State:
    lags = await kafka.lags(bootstrap, shop.group, (*shop.events, shop.dead_letters))
    return _State(lags, await workers.live(bootstrap, shop.group, shop.changelog))


def _waiting(lags: dict[str, kafka.Lag], shop: Layout) -> int:
    return sum(lags[topic].waiting for topic in shop.events)


async def _compare(bootstrap: Bootstrap, store: MongoStore, state: _State, shop: Layout, token: str) -> Report:
    lags = state.lags
    tables = Tables()
    await tables.read(bootstrap, shop.changelog, shop.partitions)
    totals, sizes = await store.totals(), await store.sizes()
    sums = tables.sums()
    sent = lags[shop.purchases].records
    waiting = _waiting(lags, shop)
    accounted = sums["purchases"] + sums["duplicates"] + sums["rejected"]
    if sent != accounted:  # some offsets may be no records: then they have to be counted one by one
        sent = await kafka.count_records(bootstrap, shop.purchases, shop.partitions)
    sold = Tables()
    await sold.read(bootstrap, shop.sales_changelog, shop.partitions)
    sales = await compare_sales(sold, shop.partitions, sums, store, live=bool(state.live.workers))
    customers, unregistered = await _customers(tables.by_customer(), store)
    report = Report(
        status=0,
        kafka={
            "purchases": sent,
            "waiting": waiting,
            "dead_letters": lags[shop.dead_letters].records if shop.dead_letters in lags else 0,
        },
        mongodb={
            **sizes,
            "purchases": totals.purchases,
            "items": totals.items,
            "spent": totals.spent,
            "unregistered": unregistered.count,
        },
        tables=sums,
        workers=[asdict(worker) for worker in state.live.workers],
    )
    told = [
        await compare_announcements(bootstrap, shop.group, topic, kind, store)
        for topic, kind in ((shop.vouchers, announcements.VOUCHERS), (shop.alerts, announcements.ALERTS))
    ]
    report.add(
        [
            Check("lag", waiting == 0, f"{waiting} events wait in Kafka"),
            Check(
                "purchases in Kafka and tables",
                sent == accounted,
                f"{sent} sent = {sums['purchases']} counted + {sums['duplicates']} repeated"
                f" + {sums['rejected']} rejected",
            ),
            Check(
                "purchases in MongoDB and tables",
                totals.purchases == sums["purchases"],
                f"{totals.purchases} stored, {sums['purchases']} counted",
            ),
            customers,
            _sums(tables, shop.partitions),
            sales,
            *told,
            await _workers(state.live, tables, shop.partitions, token),
            _registrations(unregistered),
        ]
    )
    return report


async def _customers(counted: dict[str, Counts], store: MongoStore) -> tuple[Check, Named]:
    """Each customer's counts are what their purchases say; and who bought something without being registered."""
    customers, wrong, unregistered = 0, Named(), Named()
    names: list[str] = []

    async def look_up() -> None:
        registered = await store.registered(names)
        for name in names:
            if name not in registered:
                unregistered.add(name)
        names.clear()

    async for name, *numbers in store.counts():
        customers += 1
        found = counted.pop(name, None)
        if found != tuple(numbers):
            wrong.add(f"{name}: stored {_said(tuple(numbers))}, counted {_said(found)}")
        names.append(name)
        if len(names) == _REGISTERED_AT_ONCE:
            await look_up()
    await look_up()
    for name, found in counted.items():
        wrong.add(f"{name}: stored nothing, counted {_said(found)}")
    if wrong.count:
        return Check("customers", False, f"{wrong.count} differ: {wrong.listed()}"), unregistered
    detail = f"{customers} customers, each with the counts their purchases add up to"
    return Check("customers", True, detail), unregistered


def _sums(tables: Tables, partitions: int) -> Check:
    """The sums that stand beside the customers of a partition are what these add up to."""
    wrong = Named()
    for partition in range(partitions):
        counts, said = tables.counts(partition).values(), tables.totals(partition)
        added = (
            len(counts),
            sum(count.purchases for count in counts),
            sum(count.items for count in counts),
            sum(count.spent for count in counts),
        )
        sums = (said.customers, said.purchases, said.items, said.spent)
        if sums != added:
            wrong.add(f"partition {partition}: the sums say {_of(*sums)}, its customers add up to {_of(*added)}")
    if wrong.count:
        return Check("sums", False, f"{wrong.count} differ: {wrong.listed()}")
    return Check("sums", True, f"{partitions} partitions, each with the sums its customers add up to")


async def _workers(live: workers.Live, tables: Tables, partitions: int, token: str) -> Check:
    """The tables of the live workers are what the changelog says."""
    if live.unclear:
        return Check("workers", None, live.unclear)
    if not live.workers:
        return Check("workers", True, "no worker runs; the next one recovers its tables from the changelog")
    found = await workers.compare(live, partitions, tables, partial(workers.session, token))
    unasked = f"{found.unasked.count} can't be asked: {found.unasked.listed()}"
    if found.wrong.count:
        also = f"; {unasked}" if found.unasked.count else ""
        return Check("workers", False, f"{found.wrong.count} differ: {found.wrong.listed()}{also}")
    if found.unasked.count:
        return Check("workers", None, unasked)
    count = len(live.workers)
    return Check("workers", True, f"{count} live, {found.customers} customers in their tables, all as in the changelog")


def _registrations(unregistered: Named) -> Check:
    """A purchase of a customer who is not registered is a fact: the registration may be on its way."""
    if not unregistered.count:
        return Check("registrations", True, "every customer who bought is registered")
    return Check(
        "registrations", True, f"{unregistered.count} who bought are not registered: {unregistered.listed(', ')}"
    )


def _of(customers: int, *numbers: int) -> str:
    return f"{customers} customers with {_said(numbers)}"


def _said(numbers: Any) -> str:
    return "nothing" if numbers is None else "{} purchases, {} items, {} grosze".format(*numbers)
