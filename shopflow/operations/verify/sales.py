"""Are the sales in the table, in MongoDB and in the purchases the same?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from time import monotonic
from typing import Protocol

from shopflow.models import PartitionTotals, PurchaseCount
from shopflow.shop.sales import PERIODS, key_of, start_of
from shopflow.store import MongoStore
from shopflow.store.rules import sale_id
from shopflow.store.types import Document

from .report import Check, Named

__all__ = ["compare_sales"]

#: After a backlog of many days a worker has many rows to bring to MongoDB.
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
#: Where a partition stands that never had a purchase.
_NOTHING = (0, -1)

Sums = tuple[int, int, int]  # purchases, units, revenue


class Tables(Protocol):
    """The sales as their changelog has them."""

    def counts(self, partition: int) -> Mapping[bytes, PurchaseCount]:
        """The rows of a partition."""

    def totals(self, partition: int) -> PartitionTotals:
        """The sums of a partition."""


async def compare_sales(
    tables: Tables, partitions: int, counted: Mapping[str, int], store: MongoStore, *, live: bool
) -> Check:
    """Compare them.

    Arguments:
        counted: Purchases, items and spent by the table of counts.
        live: Does a worker run? Then it brings MongoDB up to date.
    """
    rows, fault = _added(tables, partitions), _unlike_the_counts(tables, partitions, counted)
    if fault:
        return Check("sales", False, f"{fault}; `faust -A shopflow replay` counts them anew")
    wrong = Named()
    totals = {key: sums for key, sums in rows.items() if key.startswith("total ")}
    bought = {key_of("total", "", name): sums async for name, *sums in store.sold()}
    _compare(totals, bought, "bought", wrong)
    if wrong.count:
        return Check("sales", False, f"{wrong.count} differ: {wrong.listed()}")
    behind = await _still_behind(tables, partitions, store, live=live)
    if behind:  # no disagreement: what is not there yet will be
        who = "a worker is bringing" if live else "the next worker brings"
        return Check("sales", True, f"{len(totals)} products; {who} MongoDB up to date")
    _compare(rows, {key: sums async for key, sums in _mirrored(store)}, "in MongoDB", wrong)
    if wrong.count:
        return Check("sales", False, f"{wrong.count} differ: {wrong.listed()}")
    return Check("sales", True, f"{len(totals)} products, each with the sales its purchases add up to")


def _unlike_the_counts(tables: Tables, partitions: int, counted: Mapping[str, int]) -> str:
    for name in ("purchases", "items", "spent"):
        sold = sum(getattr(tables.totals(number), name) for number in range(partitions))
        if sold != len(PERIODS) * counted[name]:
            return f"{name}: {sold / len(PERIODS):g} in the table of sales, {counted[name]} in that of counts"
    return ""


def _added(tables: Tables, partitions: int) -> dict[str, Sums]:
    """The rows of all partitions, added up."""
    rows: dict[str, Sums] = {}
    for partition in range(partitions):
        for key, count in tables.counts(partition).items():
            name = key.decode("utf-8", "backslashreplace")
            purchases, units, revenue = rows.get(name, (0, 0, 0))
            rows[name] = (purchases + count.purchases, units + count.items, revenue + count.spent)
    return rows


async def _still_behind(tables: Tables, partitions: int, store: MongoStore, *, live: bool) -> list[int]:
    """The partitions that MongoDB does not have all of, after it was waited for a worker that brings them."""
    deadline = monotonic() + _PATIENCE_SECONDS
    while True:
        behind = [number for number in range(partitions) if await _is_behind(tables, number, store)]
        if not behind or not live or monotonic() > deadline:
            return behind
        await asyncio.sleep(_PAUSE_SECONDS)


async def _is_behind(tables: Tables, partition: int, store: MongoStore) -> bool:
    totals = tables.totals(partition)
    reached = (totals.era, totals.offset)
    return reached > _NOTHING and await store.sales_position(partition) < reached


async def _mirrored(store: MongoStore) -> AsyncIterator[tuple[str, Sums]]:
    for period in PERIODS:
        async for sale in store.sales(period):
            yield _key(sale), (sale["purchases"], sale["units"], sale["revenue"])


def _key(sale: Document) -> str:
    return sale_id(sale["period"], sale["start"], sale["product_id"])


def _compare(rows: Mapping[str, Sums], found: Mapping[str, Iterable[int]], where: str, wrong: Named) -> None:
    for key in sorted(rows.keys() | found.keys()):
        ours, theirs = rows.get(key), found.get(key)
        if theirs is None or ours != tuple(theirs):
            period, start, product_id = start_of(key)
            when = f" of the {period} {start.isoformat()}" if start else ""
            wrong.add(f"{product_id}{when}: {_said(theirs)} {where}, {_said(ours)} in the table")


def _said(sums: Iterable[int] | None) -> str:
    return "nothing" if sums is None else "{} purchases, {} units, {} grosze".format(*sums)
