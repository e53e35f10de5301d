"""Are Kafka, MongoDB and the tables in agreement?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from . import kafka
from .counting import TOTALS_KEY, Position, decode_count, decode_totals, position_of
from .errors import Unavailable
from .models import PartitionTotals, PurchaseCount
from .store import Store

__all__ = ["Check", "Layout", "Report", "Tables", "verify"]

#: Differences that are named; the rest is counted.
_NAMED = 10
#: How often it is looked again while events are on their way, and how long to wait in between.
_ATTEMPTS = 20
#: Looks without any change after which what waits is taken to wait for good.
_STILL = 4
_PAUSE_SECONDS = 0.5

Counts = tuple[int, int, int]  # purchases, items, spent


@dataclass(frozen=True)
class Layout:
    """Where a shop's events and counts are in Kafka."""

    group: str
    products: str
    customers: str
    purchases: str
    dead_letters: str
    changelog: str
    partitions: int

    @property
    def events(self) -> tuple[str, str, str]:
        """The topics that are consumed."""
        return self.products, self.customers, self.purchases


@dataclass
class Check:
    """One thing that must hold."""

    name: str
    good: bool
    detail: str


@dataclass
class Report:
    """What was found.

    Attributes:
        status: 0 they agree, 1 they do not, 2 it could not be told (events kept arriving).
    """

    status: int = 2
    kafka: dict[str, int] = field(default_factory=dict)
    mongodb: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As `verify --json` prints it."""
        return asdict(self)


class Tables:
    """The counts as the changelog has them: what every worker recovers from."""

    def __init__(self) -> None:
        self._counts: list[dict[bytes, PurchaseCount]] = []
        self._totals: dict[int, PartitionTotals] = {}

    async def read(self, bootstrap: str, topic: str, partitions: int) -> None:
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
            if record.key == TOTALS_KEY:
                known = self._totals.get(partition)
                if known is None or position >= Position(known.era, known.offset):
                    self._totals[partition] = decode_totals(record.value)
            elif (count := counts.get(record.key)) is None or position >= Position(count.era, count.offset):
                counts[record.key] = decode_count(record.value)

    def era(self, partition: int) -> int:
        """How often the counts of a partition were rebuilt."""
        return self._totals[partition].era if partition in self._totals else 0

    def by_customer(self) -> dict[str, Counts]:
        """A customer's counts over all partitions."""
        sums: dict[str, Counts] = {}
        for partition, counts in enumerate(self._counts):
            era = self.era(partition)
            for key, count in counts.items():
                if count.era < era:
                    continue
                name = key.decode()
                purchases, items, spent = sums.get(name, (0, 0, 0))
                sums[name] = (purchases + count.purchases, items + count.items, spent + count.spent)
        return sums

    def sums(self) -> dict[str, int]:
        """Over all partitions: customers, purchases, items, spent, duplicates, rejected."""
        names = ("customers", "purchases", "items", "spent", "duplicates", "rejected")
        return {name: sum(getattr(totals, name) for totals in self._totals.values()) for name in names}


async def verify(bootstrap: str, store: Store, shop: Layout) -> Report:
    """Compare what was sent, what is stored and what was counted; wait a little for what is on its way.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    report = Report()
    still, last = 0, None
    for _ in range(_ATTEMPTS):
        before = await kafka.lags(bootstrap, shop.group, (*shop.events, shop.dead_letters))
        if any(topic not in before for topic in shop.events):
            raise Unavailable("Kafka", "the shop's topics do not exist yet: start a worker, or seed some events")
        report = await _compare(bootstrap, store, before, shop)
        after = await kafka.lags(bootstrap, shop.group, (*shop.events, shop.dead_letters))
        moved = before != after or last not in (None, before)
        last = after
        still = 0 if moved else still + 1
        if still and (report.status == 0 or not _waiting(before, shop) or still == _STILL):
            return report
        if moved:
            report.status = 2
            report.checks.append(Check("quiet", False, "events arrive faster than they can be compared"))
        await asyncio.sleep(_PAUSE_SECONDS)
    return report


def _waiting(lags: dict[str, kafka.Lag], shop: Layout) -> int:
    return sum(lags[topic].waiting for topic in shop.events)


async def _compare(bootstrap: str, store: Store, lags: dict[str, kafka.Lag], shop: Layout) -> Report:
    tables = Tables()
    await tables.read(bootstrap, shop.changelog, shop.partitions)
    totals, sizes = await store.totals(), await store.sizes()
    sums = tables.sums()
    sent = lags[shop.purchases].records
    waiting = _waiting(lags, shop)
    accounted = sums["purchases"] + sums["duplicates"] + sums["rejected"]
    if sent != accounted:  # some offsets may be no records: then they have to be counted one by one
        sent = await kafka.count_records(bootstrap, shop.purchases, shop.partitions)
    checks = [
        Check("lag", waiting == 0, f"{waiting} events wait in Kafka"),
        Check(
            "purchases in Kafka and tables",
            sent == accounted,
            f"{sent} sent = {sums['purchases']} counted + {sums['duplicates']} repeated + {sums['rejected']} rejected",
        ),
        Check(
            "purchases in MongoDB and tables",
            totals.purchases == sums["purchases"],
            f"{totals.purchases} stored, {sums['purchases']} counted",
        ),
        await _customers(tables.by_customer(), store.counts()),
    ]
    return Report(
        status=0 if all(check.good for check in checks) else 1,
        kafka={
            "purchases": sent,
            "waiting": waiting,
            "dead_letters": lags[shop.dead_letters].records if shop.dead_letters in lags else 0,
        },
        mongodb={**sizes, "purchases": totals.purchases, "items": totals.items, "spent": totals.spent},
        tables=sums,
        checks=checks,
    )


async def _customers(counted: dict[str, Counts], stored: AsyncIterator[tuple[str, int, int, int]]) -> Check:
    """Each customer's counts are what their purchases say."""
    customers, wrong = 0, []
    async for name, *numbers in stored:
        customers += 1
        found = counted.pop(name, None)
        if found != tuple(numbers):
            wrong.append(f"{name}: stored {_said(tuple(numbers))}, counted {_said(found)}")
    wrong += [f"{name}: stored nothing, counted {_said(numbers)}" for name, numbers in counted.items()]
    if not wrong:
        return Check("customers", True, f"{customers} customers, each with the counts their purchases add up to")
    more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return Check("customers", False, f"{len(wrong)} differ: " + "; ".join(wrong[:_NAMED]) + more)


def _said(numbers: Any) -> str:
    return "nothing" if numbers is None else "{} purchases, {} items, {} grosze".format(*numbers)
