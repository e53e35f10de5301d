"""One agent per topic: it writes batches of records to MongoDB, and those of purchases also to the tables.

Each partition has its own actor: it handles the partition's batches in order, while the partitions' writes overlap.
"""

from __future__ import annotations

from faust_batches import Batch
from faust_batches.outage import repeated

from . import topics
from .app import app
from .bootstrap import parts


@app.batch_agent(topics.products, finish="in_handler")
async def products(batch: Batch) -> None:
    """Write offered products to the collections `products` and `prices`."""
    await parts.products.handle(batch)


@app.batch_agent(topics.customers, finish="in_handler")
async def customers(batch: Batch) -> None:
    """Write registered customers to the collection `customers`."""
    await parts.customers.handle(batch)


@app.batch_agent(topics.purchases, finish="in_handler")
async def purchases(batch: Batch) -> None:
    """Write purchases to the collection `purchases`, and count them."""
    await parts.purchases.handle(batch)


@app.task  # type: ignore[untyped-decorator]
async def mirror_sales() -> None:
    """Write changed sales to MongoDB while the worker runs."""
    await repeated("The sales in MongoDB", parts.sales_mirror.round, lambda: not app.should_stop)


@app.task  # type: ignore[untyped-decorator]
async def watch_stock() -> None:
    """Publish an alert for each product whose stock has fallen to its limit, while the worker runs."""
    await repeated("The stock", parts.stock_watch.round, lambda: not app.should_stop)


@app.task  # type: ignore[untyped-decorator]
async def remember_sales() -> None:
    """Learn from MongoDB what was sold in the last minutes before this worker owned a partition."""
    await repeated("The sales of the last minutes", parts.past.round, lambda: not app.should_stop)


async def watch_ground() -> None:
    """Look at what the guarantee stands on, while the worker runs."""
    await repeated("The check of the topics", parts.ground.round, lambda: not app.should_stop)


async def watch_surroundings() -> None:
    """Look at disk, clock and MongoDB, while the worker runs."""
    await repeated("The check of disk, clock and MongoDB", parts.surroundings.round, lambda: not app.should_stop)


app.background += [watch_ground, watch_surroundings]
