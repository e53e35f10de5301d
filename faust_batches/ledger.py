"""A table and its changelog as a batch writes them: RocksDB first, then Kafka, then how far the changelog is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from .attempts import Attempts, Owned

__all__ = ["Ledger", "Partitioned", "Row", "Table"]

#: Key and value, as they stand in RocksDB and in the changelog.
Row = tuple[bytes, bytes]


class Partitioned(Owned, Protocol):
    """What is needed of `batching.Batch`."""

    tp: Any


class Table(Protocol):
    """What is needed of `changelog.CountTable`."""

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]:
        """Reads raw values of one partition."""

    def write(self, partition: int, rows: Iterable[Row]) -> None:
        """Put rows into RocksDB, all or nothing.

        Raises:
            Unavailable: RocksDB can't write now.
        """

    def acknowledged(self, partition: int, last: int, rows: int) -> None:
        """That many rows are in the changelog, the last of them at this offset."""

    async def check_late(self, partition: int) -> None:
        """Check a partition that could not be checked right after its recovery.

        Raises:
            ShopflowError: It does not add up, and was dropped.
        """


class Ledger:
    """Enters what a batch changes in a table.

    Arguments:
        publish: Sends rows to one partition of the table's changelog; returns the offset of the last.
    """

    def __init__(
        self, table: Table, attempts: Attempts, publish: Callable[[int, Sequence[Row]], Awaitable[int]]
    ) -> None:
        self._table = table
        self._with_kafka = attempts.with_kafka
        self._publish = publish

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]:
        """Reads raw values of one partition."""
        return self._table.getter(partition)

    async def enter(self, batch: Partitioned, rows: Sequence[Row]) -> None:
        """Write rows; when it returns, they are in RocksDB and Kafka has acknowledged them.

        Called in the batch's turn, with nothing awaited since what the rows come from was read.

        Raises:
            PartitionLost: The batch is no longer ours.
            Unavailable: RocksDB can't write now.
        """
        partition = batch.tp.partition
        self._table.write(partition, rows)
        if rows:
            last = await self._with_kafka(batch, lambda: self._publish(partition, rows))
            batch.check_owned()  # else the database may be another's by now
            self._table.acknowledged(partition, last, len(rows))
        await self._table.check_late(partition)
