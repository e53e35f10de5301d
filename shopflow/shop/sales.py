"""Sales by product: what a batch of purchases makes of them, in total, by day and by hour.

They are counts like those of the customers (`counting`), under other keys: each row is a function of the log alone and
says up to which offset. The purchases' topic is partitioned by customer, so each partition has sales of its own for
every product; a product's sales are their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import date, datetime, timezone
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from faust_batches import TOTALS_KEY, Batch, Table
from shopflow.models import ProductSales

from .counts import Changes, Totals, decode_totals
from .decoding import struct_of
from .purchases import CountedBatch

_Row = struct_of(ProductSales)

decode_row = msgspec.json.Decoder(_Row).decode

#: Every purchase is in a row of each; the sums of a partition have it as often.
PERIODS = ("total", "day", "hour")

Hour = tuple[int, str]  # hours since the year 0, UTC; product_id
Fresh = Sequence[tuple[Any, Any]]  # records and purchases, each with its price, by offset


class Sale(NamedTuple):
    """What was sold of a product in a period, as one partition or several have it."""

    period: str
    start: datetime | None  #: UTC; None: ever
    product_id: str
    purchases: int
    units: int
    revenue: int  #: grosze


def key_of(period: str, start: str, product_id: str) -> str:
    """The row's key. In their order, the rows of a period go by time.

    Arguments:
        start: ISO 8601, cut after the hour or the day; empty for the total.
    """
    return f"{period} {start} {product_id}"


def start_of(key: str) -> tuple[str, datetime | None, str]:
    """Period, its start and the product that a row's key names."""
    period, start, product_id = key.split(" ", 2)
    if not start:
        return period, None, product_id
    time = datetime.fromisoformat(start if period == "day" else f"{start}:00")
    return period, time.replace(tzinfo=timezone.utc), product_id


def sale_of(key: bytes, row: ProductSales) -> Sale:
    period, start, product_id = start_of(key.decode())
    return Sale(period, start, product_id, row.purchases, row.items, row.spent)


class Sales:
    """Enters the sales of each batch of purchases in the table `product_sales`.

    Arguments:
        changed: Told of the rows that were written: partition, keys and values.
    """

    def __init__(self, table: Table, changed: Callable[[int, Sequence[tuple[bytes, bytes]]], None]) -> None:
        self._table = table
        self._changed = changed

    async def follow(self, batch: Batch, counted: CountedBatch) -> None:
        """Enter a batch that was counted (`purchases.Follower`)."""
        partition = batch.tp.partition
        changes = advance(
            self._table.reader(partition),
            counted.fresh,
            end=batch.end,
            duplicates=counted.duplicates,
            rejected=counted.rejected,
        )
        rows = changes.rows()
        await self._table.write(batch, rows)
        self._changed(partition, rows)


class Sum:
    """What some purchases add up to."""

    __slots__ = ("first", "last", "purchases", "revenue", "units")

    def __init__(self, first: int) -> None:
        self.first = self.last = first  #: offsets
        self.purchases = self.units = self.revenue = 0

    def take(self, offset: int, event: Any) -> None:
        self.purchases += 1
        self.units += event.quantity
        self.revenue += event.quantity * event.price
        self.last = offset

    def add(self, other: Sum) -> None:
        self.first, self.last = min(self.first, other.first), max(self.last, other.last)
        self.purchases += other.purchases
        self.units += other.units
        self.revenue += other.revenue


def advance(
    get: Callable[[bytes], bytes | None],
    fresh: Fresh,
    *,
    end: int,
    duplicates: Collection[int] = (),
    rejected: Collection[int] = (),
) -> Changes[ProductSales]:
    """The sales after a batch that ends before offset `end`; the arguments are those of `counting.advance`.

    Rows and sums are judged each by their own offset: a crash can leave one ahead of the other. Nearly always none is;
    then each purchase is looked at once, and the rows get the sums of their hours.

    Arguments:
        fresh: Records and purchases, each with its price.
    """
    known = get(TOTALS_KEY)
    totals = decode_totals(known) if known else Totals()
    rows: dict[str, ProductSales] = {}
    seen = totals.offset
    batch = _Batch(fresh)
    for key, added in batch.sums.items():
        row = rows[key] = _row(get(key.encode()), totals.era)
        new = batch.after(row.offset, key)
        if new is not None:
            row.first = new.first if row.first < 0 else min(row.first, new.first)
            row.purchases += new.purchases
            row.items += new.units
            row.spent += new.revenue
        row.offset = max(row.offset, added.last)
        totals.customers += seen < row.first < end
        unseen = batch.after(seen, key)
        if unseen is not None:
            totals.purchases += unseen.purchases
            totals.items += unseen.units
            totals.spent += unseen.revenue
    totals.duplicates += sum(offset > seen for offset in duplicates)
    totals.rejected += sum(offset > seen for offset in rejected)
    totals.offset = max(seen, end - 1)
    totals.settled = end - 1
    return Changes(rows, totals)


def _row(value: bytes | None, era: int) -> ProductSales:
    row: ProductSales | None = decode_row(value) if value else None
    return _Row(era=era) if row is None or row.era < era else row


def _by_hour(fresh: Fresh) -> dict[Hour, Sum]:
    sums: dict[Hour, Sum] = {}
    for record, event in fresh:
        hour = _hour_of(event)
        known = sums.get(hour)
        if known is None:
            known = sums[hour] = Sum(record.offset)
        known.take(record.offset, event)
    return sums


def _hour_of(event: Any) -> Hour:
    at = event.purchased_at
    return at.toordinal() * 24 + at.hour, event.product_id  # ten times as fast as any text


def _by_row(hours: dict[Hour, Sum]) -> dict[str, Sum]:
    rows: dict[str, Sum] = {}
    for hour, added in hours.items():
        for key in _rows_of(hour):
            rows.setdefault(key, Sum(added.first)).add(added)
    return rows


def _rows_of(hour: Hour) -> list[str]:
    number, product_id = hour
    day = date.fromordinal(number // 24).isoformat()
    starts = ("", day, f"{day}T{number % 24:02}")
    return [key_of(period, start, product_id) for period, start in zip(PERIODS, starts, strict=True)]


class _Batch:
    def __init__(self, fresh: Fresh) -> None:
        self._fresh = fresh
        self.sums = _by_row(_by_hour(fresh))

    def after(self, offset: int, key: str) -> Sum | None:
        """The part of a row's sum that comes after this offset; None if there is none."""
        added = self.sums[key]
        if offset < added.first:
            return added
        if offset >= added.last:
            return None
        behind = [pair for pair in self._by_row[key] if pair[0].offset > offset]
        found = Sum(behind[0][0].offset)
        for record, event in behind:
            found.take(record.offset, event)
        return found

    @cached_property
    def _by_row(self) -> dict[str, list[tuple[Any, Any]]]:
        """The purchases of each row; wanted only when a batch that was cut off comes again."""
        rows: dict[str, list[tuple[Any, Any]]] = {}
        for pair in self._fresh:
            for key in _rows_of(_hour_of(pair[1])):
                rows.setdefault(key, []).append(pair)
        return rows
