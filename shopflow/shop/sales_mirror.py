"""The sales in MongoDB, for other programs: brought up to date now and then, not with every batch.

What is written are values, not differences, each with how far it counts; so it may be written late, twice, or by a
worker that was asleep, and nothing is lost with the process: MongoDB knows how far each partition is, and whoever gets
the partition next writes what is newer than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar

from faust_batches import TOTALS_KEY, Outage, Position, Table, position_of, retrying
from shopflow.errors import PartitionLost
from shopflow.store import MongoStore
from shopflow.store.types import PartitionSales

from .counts import decode_totals
from .sales import decode_row, sale_of

#: How often the sales in MongoDB are brought up to date.
_SECONDS = 0.5
#: How many times as long as that took MongoDB it rests.
_RESTS = 3
#: Rows looked at before other coroutines get a turn, and sales of one write.
_SLICE = 1_000
_AT_ONCE = 500

Row = tuple[bytes, bytes]
T = TypeVar("T")


@dataclass(eq=False)
class Mirror:
    """Writes to MongoDB what changed in the table of sales.

    Arguments:
        owned: The partitions whose rows this worker may read now.
        mongodb: Whether it is away, as all of the worker see it.
    """

    table: Table
    store: MongoStore
    owned: Callable[[], Sequence[int]]
    mongodb: Outage

    def __post_init__(self) -> None:
        self._took = 0.0
        #: By partition, the rows that MongoDB does not have yet; one that is not here has to be looked through.
        self._waiting: dict[int, dict[bytes, bytes]] = {}

    def changed(self, partition: int, rows: Sequence[Row]) -> None:
        """These rows were written to the table."""
        if partition in self._waiting:
            self._waiting[partition].update(rows)

    def forget(self) -> None:
        """Forget what is known. Call it after a rebalance: other workers may have written meanwhile."""
        self._waiting = {}

    async def round(self) -> float:
        """Bring MongoDB up to date. Returns the seconds to wait before the next round."""
        # A backlog of many days is many rows: they must not keep MongoDB from the purchases.
        return max(_SECONDS, _RESTS * await self.bring_up())

    async def bring_up(self) -> float:
        """Write what MongoDB does not have yet; while it is away, try again. Returns the seconds that it took MongoDB.

        Those in which it did not answer are not among them.
        """
        self._took = 0.0
        for partition in self.owned():
            try:
                if partition not in self._waiting:
                    await self._look_through(partition)
                await self._write(partition)
            except PartitionLost:
                continue
        return self._took

    async def _answered(self, partition: int, ask: Callable[[], Awaitable[T]]) -> T:
        async def timed() -> T:
            began = monotonic()
            answer = await ask()
            self._took += monotonic() - began
            return answer

        return await retrying(self.mongodb, lambda: self._check(partition), timed)

    async def _look_through(self, partition: int) -> None:
        known = Position(*await self._answered(partition, lambda: self.store.sales_position(partition)))
        self._check(partition)
        rows = self._waiting[partition] = {}
        totals = self.table.reader(partition)(TOTALS_KEY)
        era = position_of(totals).era if totals else 0
        after, found = b"", [(TOTALS_KEY, totals)] if totals else []
        try:
            while True:
                for key, value in found:
                    if (position := position_of(value)) > known and position.era >= era:
                        rows.setdefault(key, value)  # what was entered meanwhile is newer
                self._check(partition)
                found = self.table.scan(partition, after, _SLICE)
                if not found:
                    return
                after = found[-1][0]
                await asyncio.sleep(0)
        except PartitionLost:
            self._waiting.pop(partition, None)
            raise

    def _check(self, partition: int) -> None:
        if partition not in self.owned():
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
                put = partial(self.store.put_sales, partition, some[start : start + _AT_ONCE])
                await self._answered(partition, put)
        if totals is not None:
            # Not up to `offset`: sums of a batch that was done again in part reach further than the rows beside them.
            reached = partial(self.store.reached_sales, partition, (totals.era, totals.settled))
            await self._answered(partition, reached)
        for key, value in rows.items():
            if waiting.get(key) == value:
                del waiting[key]


def _part(key: bytes, value: bytes) -> PartitionSales:
    row = decode_row(value)
    return PartitionSales(*sale_of(key, row), position=(row.era, row.offset))
