"""Checks that the sales in the table, in MongoDB and in the purchases are the same."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic

from shopflow.shop.sales import PERIODS, key_of, start_of
from shopflow.store import MongoStore
from shopflow.store.rules import sale_id

from .report import Check, FirstTen
from .tables import Counts, Tables, in_words

#: After a backlog of many days a worker has many rows to bring to MongoDB.
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
#: The era and offset of a partition that never had a purchase.
_NOTHING = (0, -1)


async def compare_sales(tables: Tables, counted: Mapping[str, int], store: MongoStore, *, live: bool) -> Check:
    """Compare them.

    Arguments:
        tables: The table of sales.
        counted: Purchases, items and spent by the table of counts.
        live: True if a worker runs: it brings MongoDB up to date, and is waited for.
    """
    if fault := _unlike_the_counts(tables, counted):
        return Check("sales", False, f"{fault}; `faust -A shopflow replay` counts them anew")
    rows, wrong = tables.by_key(), FirstTen()
    totals = {key: counts for key, counts in rows.items() if key.startswith("total ")}
    bought = {
        key_of("total", "", name): (purchases, units, revenue) async for name, purchases, units, revenue in store.sold()
    }
    _compare(totals, bought, "bought", wrong)
    if not wrong.count:
        if await _still_behind(tables, store, live=live):  # no disagreement: what is not there yet will be
            who = "a worker is bringing" if live else "the next worker brings"
            return Check("sales", True, f"{len(totals)} products; {who} MongoDB up to date")
        _compare(rows, await _mirrored(store), "in MongoDB", wrong)
    return Check.of("sales", wrong, f"{len(totals)} products, each with the sales its purchases add up to")


def _unlike_the_counts(tables: Tables, counted: Mapping[str, int]) -> str:
    """How the sums of the sales differ from the counts; empty if they don't."""
    sold = tables.sums()
    for name in ("purchases", "items", "spent"):
        if sold[name] != len(PERIODS) * counted[name]:
            return f"{name}: {sold[name] / len(PERIODS):g} in the table of sales, {counted[name]} in that of counts"
    return ""


async def _still_behind(tables: Tables, store: MongoStore, *, live: bool) -> bool:
    """True if MongoDB lacks something of a partition, also after a live worker was given time to bring it."""
    deadline = monotonic() + _PATIENCE_SECONDS
    while True:
        behind = [await _is_behind(tables, number, store) for number in range(tables.partitions)]
        if not any(behind) or not live or monotonic() > deadline:
            return any(behind)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _is_behind(tables: Tables, partition: int, store: MongoStore) -> bool:
    totals = tables.totals(partition)
    reached = (totals.era, totals.offset)
    return reached > _NOTHING and await store.sales_position(partition) < reached


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
            period, start, product_id = start_of(key)
            when = f" of the {period} {start.isoformat()}" if start else ""
            said = f"{in_words(theirs, 'units')} {where}, {in_words(ours, 'units')} in the table"
            wrong.add(f"{product_id}{when}: {said}")
