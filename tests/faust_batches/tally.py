"""A small exactly-once table for the tests: how often each key was seen, and the sum of its amounts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import faust
import msgspec

from faust_batches import TOTALS_KEY
from faust_batches.rocks import Row

#: The parts of a record that the table needs: offset, key and amount.
Counted = tuple[int, str, int]

SUMS = ("seen", "amount")


class Tally(faust.Record):
    """The row of a key."""

    seen: int = 0
    amount: int = 0
    first: int = -1
    era: int = 0
    offset: int = -1


def decoded(value: bytes | None) -> dict[str, Any]:
    """The fields of a row or of the totals; empty if there is no value."""
    fields: dict[str, Any] = msgspec.json.decode(value or b"{}")
    return fields


def counted(get: Callable[[bytes], bytes | None], records: Iterable[Counted], *, end: int) -> list[Row]:
    """The rows of a batch that ends before the offset `end`, the totals last.

    A crash can leave rows ahead of the totals, or behind them. So a row's own offset decides whether a record counts.
    """
    totals = {"rows": 0, "seen": 0, "amount": 0, "era": 0, "offset": -1, **decoded(get(TOTALS_KEY))}
    settled, rows = totals["offset"], dict[str, dict[str, Any]]()
    for offset, key, amount in records:
        if key not in rows:
            rows[key] = decoded(get(key.encode())) or {"seen": 0, "amount": 0, "first": offset, "era": 0, "offset": -1}
        row = rows[key]
        if offset > row["offset"]:
            row.update(seen=row["seen"] + 1, amount=row["amount"] + amount, offset=offset)
        if offset > settled:
            totals["rows"] += offset == row["first"]
            totals["seen"] += 1
            totals["amount"] += amount
    totals.update(offset=max(settled, end - 1), settled=end - 1)
    return [
        *((key.encode(), msgspec.json.encode(row)) for key, row in rows.items()),
        (TOTALS_KEY, msgspec.json.encode(totals)),
    ]
