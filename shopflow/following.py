"""What follows the counts of a batch, under the same guarantee."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import sales
from .ledger import Ledger, Partitioned
from .processing import Counting

__all__ = ["Sales"]


class Sales:
    """Enters the sales of each batch of purchases.

    Arguments:
        ledger: The table of sales, and its changelog.
        changed: Told of the rows that were entered: partition, keys and values.
    """

    def __init__(self, ledger: Ledger, changed: Callable[[int, Sequence[tuple[bytes, bytes]]], None]) -> None:
        self._ledger = ledger
        self._changed = changed

    async def follow(self, batch: Partitioned, counting: Counting) -> None:
        """As `processing.Follower`."""
        changes = sales.advance(
            self._ledger.getter(counting.partition),
            counting.fresh,
            end=counting.end,
            duplicates=counting.duplicates,
            rejected=counting.rejected,
        )
        rows = changes.rows()
        await self._ledger.enter(batch, rows)
        self._changed(counting.partition, rows)
