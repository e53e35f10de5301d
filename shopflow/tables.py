"""Every table: key, value, partitioning, guarantee."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .app import app, bootstrap
from .changelog import CountTable
from .kafka import read_partition

__all__ = ["purchase_counts"]


async def _read_whole(topic: str, partition: int, take: Callable[[int, list[Any]], None]) -> None:
    await read_partition(bootstrap(), topic, partition, take)


#: Key customer_id, value `models.PurchaseCount`: what each customer bought so far. Partitioned as the purchases are,
#: so the worker that reads a customer's purchases has their counts. Every purchase that is stored is counted once: the
#: value carries the offset last applied, and a purchase at or below it is a redelivery.
purchase_counts = CountTable(
    app,
    name="purchase_counts",
    default=None,
    help="what each customer bought so far: purchases, items, spent (grosze)",
    options={"write_buffer_size": 8 << 20, "block_cache_size": 32 << 20, "max_write_buffer_number": 2},
    read_whole=_read_whole,
)
app.tables.add(purchase_counts)
app.readers[purchase_counts.changelog_topic_name] = purchase_counts
