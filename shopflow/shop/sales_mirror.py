"""Writes the sales to MongoDB for other programs, at most twice a second, not with every batch.

It writes values with their positions (era and offset), not differences. So a write may be late, repeated, or from a
worker that was frozen. Nothing is lost with the process: MongoDB has the position of each partition, and the
partition's next owner writes the rows that are later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar

from faust_batches import TOTALS_KEY, Outage, Position, Table, position_of, retrying
from shopflow.errors import PartitionLost, Unavailable
from shopflow.store import MongoStore
from shopflow.store.types import PartitionSales

from .counts import decode_totals
from .sales import decode_row, sale_of

#: The shortest pause between two rounds.
_PAUSE_SECONDS = 0.5
#: A pause is at least so many times as long as MongoDB took for the round; while purchases wait, the longer one.
_PAUSE_FACTOR, _WAITING_FACTOR = 3, 20
#: Rows that are scanned before other coroutines run, and sales in one write.
_SLICE = 1_000
_AT_ONCE = 500

Row = tuple[bytes, bytes]
T = TypeVar("T")


@dataclass(eq=False)
class Mirror:
    """Writes changed rows of the table of sales to MongoDB.

    Arguments:
        owned: Returns the partitions whose rows this worker may read now.
        mongodb: The outage of MongoDB that all of the worker shares.
        waits: True while purchases wait: they come first.
    """

    table: Table
    store: MongoStore
    owned: Callable[[], Sequence[int]]
    mongodb: Outage
    waits: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._took = self._rests_until = 0.0
        #: Partition -> the rows that MongoDB lacks. A partition that is not here must be scanned first.
        self._waiting: dict[int, dict[bytes, bytes]] = {}

    def changed(self, partition: int, rows: Sequence[Row]) -> None:
        """Note rows that were written to the table."""
        if partition in self._waiting:
            self._waiting[partition].update(rows)

    def forget(self) -> None:
        """Clear the cache. Call it after a rebalance: other workers may have written meanwhile."""
        self._waiting = {}

    async def round(self) -> float:
        """Bring MongoDB up to date. Returns the seconds to wait before the next round."""
        if monotonic() < self._rests_until and self.waits():
            return _PAUSE_SECONDS
        # A backlog of many days has many rows. Purchases must not wait for them.
        took = await self.bring_up_to_date()
        self._rests_until = monotonic() + _WAITING_FACTOR * took
        return max(_PAUSE_SECONDS, _PAUSE_FACTOR * took)

    async def bring_up_to_date(self) -> float:
        """Write the rows that MongoDB lacks; while it is away, try again.

        Returns the seconds that MongoDB took, without those in which it did not answer.
        """
        self._took = 0.0
        for partition in self.owned():
            try:
                if partition not in self._waiting:
                    await self._scan(partition)
                await self._write(partition)
            except (PartitionLost, Unavailable):  # the next round tries again
                continue
        return self._took

    async def _timed(self, partition: int, ask: Callable[[], Awaitable[T]]) -> T:
        async def timed() -> T:
            began = monotonic()
            answer = await ask()
            self._took += monotonic() - began
            return answer

        return await retrying(self.mongodb, lambda: self._check(partition), timed)

    async def _scan(self, partition: int) -> None:
        known = Position(*await self._timed(partition, lambda: self.store.sales_position(partition)))
        self._check(partition)
        rows = self._waiting[partition] = {}
        try:
            totals = self.table.reader(partition)(TOTALS_KEY)
            era = position_of(totals).era if totals else 0
            after, found = b"", [(TOTALS_KEY, totals)] if totals else []
            while True:
                for key, value in found:
                    if (position := position_of(value)) > known and position.era >= era:
                        rows.setdefault(key, value)  # a row that a batch wrote meanwhile is newer
                self._check(partition)
                found = self.table.scan(partition, after, _SLICE)
                if not found:
                    return
                after = found[-1][0]
                await asyncio.sleep(0)
        except (PartitionLost, Unavailable):  # unavailable: the table, while it is damaged on disk
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
        sales = [one for key, value in rows.items() if key != TOTALS_KEY and (one := _partition_sales(key, value))]
        # The totals last: a reader that sees a new total sees its days and hours, too.
        for some in ([one for one in sales if one.start], [one for one in sales if not one.start]):
            for start in range(0, len(some), _AT_ONCE):
                put = partial(self.store.put_sales, partition, some[start : start + _AT_ONCE])
                await self._timed(partition, put)
        if totals is not None:
            # `settled`, not `offset`: while a batch is redelivered in parts, `offset` is ahead of the rows.
            reached = partial(self.store.reached_sales, partition, (totals.era, totals.settled))
            await self._timed(partition, reached)
        for key, value in rows.items():
            if waiting.get(key) == value:
                del waiting[key]


def _partition_sales(key: bytes, value: bytes) -> PartitionSales | None:
    """The sales of a row; None if another program wrote it into the changelog: `verify` names it."""
    row = decode_row(value)
    with suppress(ValueError):
        return PartitionSales(*sale_of(key, row), position=(row.era, row.offset))
    return None
