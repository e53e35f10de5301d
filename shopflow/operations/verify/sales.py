"""Checks that the table of sales, `sales` in MongoDB and the stored purchases agree."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic

from shopflow.shop.sales import PERIODS, key_of, start_of
from shopflow.store import MongoStore
from shopflow.store.rules import sale_id

from .report import Check, FirstTen
from .tables import Counts, Tables, in_words

#: How long a live worker may take to write its rows to MongoDB. After a backlog of many days it has many.
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
#: The era and offset of a partition that never had a purchase.
_NO_PURCHASES = (0, -1)


async def compare_sales(tables: Tables, counted: Mapping[str, int], store: MongoStore, *, live: bool) -> Check:
    """Compare the sales.

    Arguments:
        tables: The table of sales.
        counted: Purchases, items and spent by the table of counts.
        live: True if a worker runs. Then wait until it has brought MongoDB up to date.
    """
    if fault := _unlike_the_counts(tables, counted):
        return Check("sales", False, f"{fault}; `faust -A shopflow replay` counts them again")
    rows, wrong = tables.by_key(), FirstTen()
    totals = {key: counts for key, counts in rows.items() if key.startswith("total ")}
    bought = {
        key_of("total", "", name): (purchases, units, revenue) async for name, purchases, units, revenue in store.sold()
    }
    _compare(totals, bought, "bought", wrong)
    if not wrong.count:
        if await _still_behind(tables, store, live=live):  # no difference: a worker will write the rest
            writer = "a worker is bringing" if live else "the next worker brings"
            return Check("sales", True, f"{len(totals)} products; {writer} MongoDB up to date")
        _compare(rows, await _mirrored(store), "in MongoDB", wrong)
    return Check.of("sales", wrong, f"{len(totals)} products, each with the sales its purchases add up to")


def _unlike_the_counts(tables: Tables, counted: Mapping[str, int]) -> str:
    """The difference between the totals of the sales and of the counts; empty if there is none."""
    sold = tables.sums()
    for name in ("purchases", "items", "spent"):
        if sold[name] != len(PERIODS) * counted[name]:
            return f"{name}: {sold[name] / len(PERIODS):g} in the table of sales, {counted[name]} in that of counts"
    return ""


async def _still_behind(tables: Tables, store: MongoStore, *, live: bool) -> bool:
    """True if MongoDB lacks rows of a partition, even after waiting for a live worker to write them."""
    deadline = monotonic() + _PATIENCE_SECONDS
    while True:
        behind = [await _is_behind(tables, number, store) for number in range(tables.partitions)]
        if not any(behind) or not live or monotonic() > deadline:
            return any(behind)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _is_behind(tables: Tables, partition: int, store: MongoStore) -> bool:
    totals = tables.totals(partition)
    reached = (totals.era, totals.offset)
    return reached > _NO_PURCHASES and await store.sales_position(partition) < reached


async def _mirrored(store: MongoStore) -> dict[str, Counts]:
    return {
        sale_id(sale["period"], sale["start"], sale["product_id"]): (sale["purchases"], sale["units"], sale["revenue"])
        for period in PERIODS
        async for sale in store.sales(period)
    }


def _compare(rows: Mapping[str, Counts], found: Mapping[str, Counts], where: str, wrong: FirstTen) -> None:
    for key in sorted(rows.keys() | found.keys()):
        ours, theirs = rows.get(key), found.get(key)
        if ours != theirs:
            try:
                period, start, product_id = start_of(key)
            except ValueError:
                wrong.add(f"{key!r} in the table is no row of sales: another program wrote it into the changelog")
                continue
            when = f" of the {period} {start.isoformat()}" if start else ""
            difference = f"{in_words(theirs, 'units')} {where}, {in_words(ours, 'units')} in the table"
            wrong.add(f"{product_id}{when}: {difference}")
