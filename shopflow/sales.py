"""Sales by product: what a batch of purchases makes of them, in total, by day and by hour.

They are counts like those of the customers (`counting`), under other keys: each row is a function of the log alone and
says up to which offset. The purchases' topic is partitioned by customer, so each partition has sales of its own for
every product; a product's sales are their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from .counting import TOTALS_KEY, Changes, Count, Totals, decode_count, decode_totals
from .models import PurchaseCount

__all__ = ["PERIODS", "Sale", "advance", "key_of", "sale_of", "start_of"]

#: Every purchase is in a row of each; the sums of a partition have it as often.
PERIODS = ("total", "day", "hour")

#: Characters of an ISO 8601 time that name the period.
_DIGITS = {"total": 0, "day": 10, "hour": 13}

Entry = tuple[int, int, int]  # offset, units, revenue


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


def sale_of(key: bytes, count: PurchaseCount) -> Sale:
    """The row as a sale."""
    period, start, product_id = start_of(key.decode())
    return Sale(period, start, product_id, count.purchases, count.items, count.spent)


def advance(
    get: Callable[[bytes], bytes | None],
    fresh: Iterable[tuple[Any, Any]],
    *,
    end: int,
    duplicates: Collection[int] = (),
    rejected: Collection[int] = (),
) -> Changes:
    """The sales after a batch that ends before offset `end`; the arguments are those of `counting.advance`.

    Rows and sums are judged each by their own offset: a crash can leave one ahead of the other.

    Arguments:
        fresh: Records and purchases, each with its price.
    """
    known = get(TOTALS_KEY)
    totals = decode_totals(known) if known else Totals()
    rows: dict[str, PurchaseCount] = {}
    seen = totals.offset
    for key, entries in _by_row(fresh).items():
        row = rows[key] = _row(get(key.encode()), totals.era)
        for offset, units, revenue in _after(row.offset, entries):
            if row.first < 0 or offset < row.first:
                row.first = offset
            row.purchases += 1
            row.items += units
            row.spent += revenue
        row.offset = max(row.offset, *(entry[0] for entry in entries))
        totals.customers += seen < row.first < end
        for _, units, revenue in _after(seen, entries):
            totals.purchases += 1
            totals.items += units
            totals.spent += revenue
    totals.duplicates += sum(offset > seen for offset in duplicates)
    totals.rejected += sum(offset > seen for offset in rejected)
    totals.offset = max(seen, end - 1)
    totals.settled = end - 1
    return Changes(rows, totals)


def _row(value: bytes | None, era: int) -> PurchaseCount:
    row: PurchaseCount | None = decode_count(value) if value else None
    return Count(era=era) if row is None or row.era < era else row


def _after(offset: int, entries: Sequence[Entry]) -> Iterable[Entry]:
    return entries if offset < min(entries)[0] else [entry for entry in entries if entry[0] > offset]


def _by_row(fresh: Iterable[tuple[Any, Any]]) -> dict[str, list[Entry]]:
    """The purchases of each row that they belong to."""
    by_hour: dict[tuple[str, str], list[Entry]] = {}
    for record, event in fresh:
        entry = (record.offset, event.quantity, event.quantity * event.price)
        by_hour.setdefault((event.purchased_at.isoformat()[:13], event.product_id), []).append(entry)
    rows: dict[str, list[Entry]] = {}
    for (hour, product_id), entries in by_hour.items():
        for period in PERIODS:
            rows.setdefault(key_of(period, hour[: _DIGITS[period]], product_id), []).extend(entries)
    return rows
