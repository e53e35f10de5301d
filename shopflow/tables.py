"""Every table: key, value, partitioning, guarantee."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .app import app, bootstrap, config
from .changelog import CountTable
from .kafka import read_partition
from .promotions import Rules
from .rules import active

__all__ = ["customer_windows", "product_sales", "purchase_counts", "rules"]


_OPTIONS = {"write_buffer_size": 8 << 20, "block_cache_size": 32 << 20, "max_write_buffer_number": 2}


async def _read_whole(topic: str, partition: int, take: Callable[[int, list[Any]], None]) -> None:
    await read_partition(bootstrap(), topic, partition, take)


_OPTIONS = {"write_buffer_size": 8 << 20, "block_cache_size": 32 << 20, "max_write_buffer_number": 2}

#: Key customer_id, value `models.PurchaseCount`: what each customer bought so far. Partitioned as the purchases are,
#: so the worker that reads a customer's purchases has their counts. Every purchase that is stored is counted once: the
#: value carries the offset last applied, and a purchase at or below it is a redelivery.
purchase_counts = CountTable(
    app,
    name="purchase_counts",
    default=None,
    help="what each customer bought so far: purchases, items, spent (grosze)",
    options=_OPTIONS,
    read_whole=_read_whole,
)

#: Key `sales.key_of`: a product in a period. Value `models.PurchaseCount`: what was sold of it then. Partitioned as the
#: purchases are: a product's sales are the sum over all partitions. The guarantee is that of `purchase_counts`.
product_sales = CountTable(
    app,
    name="product_sales",
    default=None,
    help="what was sold of each product, ever, by day and by hour: purchases, units (items), revenue (spent, grosze)",
    options=_OPTIONS,
    read_whole=_read_whole,
)

for table in (purchase_counts, product_sales):
    app.tables.add(table)
    app.readers[table.changelog_topic_name] = table

#: The promotions that are switched on.
rules = Rules(active(config.promotions))


def _windows() -> CountTable:
    table = CountTable(
        app,
        name="customer_windows",
        default=None,
        help="what each customer bought lately, as far as promotions ask for it",
        options=_OPTIONS,
        read_whole=_read_whole,
        value_type=None,  # JSON, to Faust
        sums=False,
    )
    app.tables.add(table)
    app.readers[table.changelog_topic_name] = table
    return table


#: Key customer_id, value `promotions.Window`. Partitioned and guarded as the counts, whose era is also its own: counted
#: anew with them. None while no rule is about purchases: then nothing is kept.
customer_windows = _windows() if rules.about_purchases else None
