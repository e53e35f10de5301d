"""The sales in MongoDB, for other programs: brought up to date now and then, not with every batch.

What is written are values, not differences, each with how far it counts; so it may be written late, twice, or by a
worker that was asleep, and nothing is lost with the process: MongoDB knows how far each partition is, and whoever gets
the partition next writes what is newer than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from .counting import TOTALS_KEY, Position, decode_count, decode_totals, position_of
from .errors import PartitionLost
from .sales import sale_of
from .store import PartSale, Store

__all__ = ["Mirror"]

#: Rows looked at before other coroutines get a turn, and sales of one write.
_SLICE = 1_000
_AT_ONCE = 500

Row = tuple[bytes, bytes]


class Table(Protocol):
    """What is needed of the table `product_sales`."""

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]:
        """Reads raw values of one partition."""

    def customers_after(self, partition: int, after: bytes, limit: int) -> list[Row]:
        """At most `limit` raw rows of a partition behind this key."""


class Mirror:
    """Writes to MongoDB what changed in the table of sales.

    Arguments:
        owned: The partitions whose rows this worker may read now.
    """

    def __init__(self, table: Table, store: Store, owned: Callable[[], Sequence[int]]) -> None:
        self._table = table
        self._store = store
        self._owned = owned
        #: By partition, the rows that MongoDB does not have yet; one that is not here has to be looked through.
        self._waiting: dict[int, dict[bytes, bytes]] = {}

    def changed(self, partition: int, rows: Sequence[Row]) -> None:
        """These rows were entered in the table."""
        if partition in self._waiting:
            self._waiting[partition].update(rows)

    def forget(self) -> None:
        """After a rebalance: what others entered and wrote meanwhile is not known."""
        self._waiting = {}

    async def bring_up(self) -> None:
        """Write what MongoDB does not have yet.

        Raises:
            Unavailable: MongoDB is away. The next call writes it.
        """
        for partition in self._owned():
            if partition not in self._waiting:
                try:
                    await self._look_through(partition)
                except PartitionLost:
                    continue
            await self._write(partition)

    async def _look_through(self, partition: int) -> None:
        known = Position(*await self._store.sales_position(partition))
        self._check(partition)
        rows = self._waiting[partition] = {}
        totals = self._table.getter(partition)(TOTALS_KEY)
        era = position_of(totals).era if totals else 0
        after, found = b"", [(TOTALS_KEY, totals)] if totals else []
        try:
            while True:
                for key, value in found:
                    if (position := position_of(value)) > known and position.era >= era:
                        rows.setdefault(key, value)  # what was entered meanwhile is newer
                self._check(partition)
                found = self._table.customers_after(partition, after, _SLICE)
                if not found:
                    return
                after = found[-1][0]
                await asyncio.sleep(0)
        except PartitionLost:
            self._waiting.pop(partition, None)
            raise

    def _check(self, partition: int) -> None:
        if partition not in self._owned():
            raise PartitionLost(f"partition {partition} of the sales went to another worker")

    async def _write(self, partition: int) -> None:
        waiting = self._waiting.get(partition)
        if not waiting:
            return
        rows = dict(waiting)
        totals = decode_totals(rows[TOTALS_KEY]) if TOTALS_KEY in rows else None
        sales = [_part(key, value) for key, value in rows.items() if key != TOTALS_KEY]
        # The totals last: who sees one that has changed finds the days and hours changed already.
        for some in ([one for one in sales if one.start], [one for one in sales if not one.start]):
            for start in range(0, len(some), _AT_ONCE):
                await self._store.put_sales(partition, some[start : start + _AT_ONCE])
        if totals is not None:
            await self._store.reached_sales(partition, (totals.era, totals.offset))
        for key, value in rows.items():
            if waiting.get(key) == value:
                del waiting[key]


def _part(key: bytes, value: bytes) -> PartSale:
    sale, count = sale_of(key, decode_count(value)), decode_count(value)
    return PartSale(*sale, position=(count.era, count.offset))
