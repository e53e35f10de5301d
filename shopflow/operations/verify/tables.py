"""Reads a table from its changelog, as a worker's recovery does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from faust_batches import TOTALS_KEY, Position, position_of
from shopflow.kafka import reading
from shopflow.kafka.security import Bootstrap
from shopflow.models import PartitionTotals, PurchaseCount
from shopflow.shop.counts import Totals, decode_count, decode_totals

#: Purchases, items (of sales: units) and spent in grosze (of sales: the revenue).
Counts = tuple[int, int, int]


class Tables:
    """The rows and the totals of `purchase_counts` or `product_sales`, by partition."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self._rows: list[dict[bytes, PurchaseCount]] = [{} for _ in range(partitions)]
        self._totals: dict[int, PartitionTotals] = {}

    @classmethod
    async def read(cls, bootstrap: Bootstrap, changelog: str, partitions: int) -> Tables:
        """Read all partitions of a changelog.

        Raises:
            Unavailable: Kafka does not answer.
        """
        tables = cls(partitions)
        for partition in range(partitions):
            async with reading.runs(bootstrap, changelog, partition) as runs:
                async for run in runs:
                    tables.take(partition, run)
        return tables

    def take(self, partition: int, records: Iterable[Any]) -> None:
        """Add a run of records. Of two values of a key the one with the later position stays."""
        rows = self._rows[partition]
        for record in records:
            try:
                position = position_of(record.value)
            except (msgspec.MsgspecError, TypeError):
                continue
            if record.key is None:
                continue
            if record.key == TOTALS_KEY:
                known = self._totals.get(partition)
                if known is None or position >= Position(known.era, known.offset):
                    self._totals[partition] = decode_totals(record.value)
            elif (count := rows.get(record.key)) is None or position >= Position(count.era, count.offset):
                rows[record.key] = decode_count(record.value)

    def counts(self, partition: int) -> Mapping[bytes, PurchaseCount]:
        """The rows of a partition, without those of an earlier era than its totals."""
        era = self.totals(partition).era
        return {key: count for key, count in self._rows[partition].items() if count.era >= era}

    def totals(self, partition: int) -> PartitionTotals:
        return self._totals.get(partition) or Totals()

    def by_key(self) -> dict[str, Counts]:
        """The rows, added up over all partitions by key."""
        sums: dict[str, Counts] = {}
        for partition in range(self.partitions):
            for key, count in self.counts(partition).items():
                name = key.decode("utf-8", "backslashreplace")
                purchases, items, spent = sums.get(name, (0, 0, 0))
                sums[name] = (purchases + count.purchases, items + count.items, spent + count.spent)
        return sums

    def sums(self) -> dict[str, int]:
        """The totals, added up over all partitions: customers, purchases, items, spent, duplicates, rejected."""
        names = ("customers", "purchases", "items", "spent", "duplicates", "rejected")
        return {name: sum(getattr(totals, name) for totals in self._totals.values()) for name in names}


def counts_of(row: PurchaseCount | PartitionTotals | None) -> Counts | None:
    """The three numbers of a row or of totals."""
    return None if row is None else (row.purchases, row.items, row.spent)


def in_words(counts: Counts | None, pieces: str = "items") -> str:
    """Format counts for the detail of a check."""
    return "nothing" if counts is None else f"{counts[0]} purchases, {counts[1]} {pieces}, {counts[2]} grosze"
