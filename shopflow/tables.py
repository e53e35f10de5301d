"""Every table: key, value, partitioning, guarantee."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faust_batches.table import CountTable

from .app import app, bootstrap, config, disk_outage
from .config.promotions import active
from .kafka.connection import read_partition
from .shop.promotions.windows import Rules

__all__ = ["customer_windows", "product_sales", "purchase_counts", "rules"]


async def _read_whole(topic: str, partition: int, take: Callable[[int, list[Any]], None]) -> None:
    await read_partition(bootstrap(), topic, partition, take)


def _table(name: str, help: str, **kwargs: Any) -> CountTable:
    """A table that a worker recovers by itself, in its place among Faust's."""
    table = CountTable(
        app,
        name=name,
        default=None,
        help=help,
        options={"write_buffer_size": 8 << 20, "block_cache_size": 32 << 20, "max_write_buffer_number": 2},
        read_whole=_read_whole,
        disk=disk_outage,
        **kwargs,
    )
    app.tables.add(table)
    app.readers[table.changelog_topic_name] = table
    return table


#: Key customer_id, value `models.PurchaseCount`: what each customer bought so far. Partitioned as the purchases are,
#: so the worker that reads a customer's purchases has their counts. Every purchase that is stored is counted once: the
#: value carries the offset last applied, and a purchase at or below it is a redelivery.
purchase_counts = _table("purchase_counts", "what each customer bought so far: purchases, items, spent (grosze)")

#: Key `sales.key_of`: a product in a period. Value `models.PurchaseCount`: what was sold of it then. Partitioned as the
#: purchases are: a product's sales are the sum over all partitions. The guarantee is that of `purchase_counts`.
product_sales = _table(
    "product_sales",
    "what was sold of each product, ever, by day and by hour: purchases, units (items), revenue (spent, grosze)",
)

#: The promotions that are switched on.
rules = Rules(active(config.promotions))

#: Key customer_id, value `promotions.Window`. Partitioned and guarded as the counts, whose era is also its own: counted
#: anew with them. None while no rule is about purchases: then nothing is kept.
customer_windows = (
    _table(
        "customer_windows",
        "what each customer bought lately, as far as promotions ask for it",
        value_type=None,  # JSON, to Faust
        sums=False,
    )
    if rules.about_purchases
    else None
)
