"""One agent per topic: a batch of its records goes to MongoDB, and for purchases to the tables.

An actor per partition, so that each partition's batches are handled in order while the partitions' writes overlap.
"""

from __future__ import annotations

from faust_batches import Batch
from faust_batches.outage import repeated

from . import topics
from .app import app
from .bootstrap import parts


@app.batch_agent(topics.products, finish="in_handler")
async def products(batch: Batch) -> None:
    """Products offered: into `products` and `prices`."""
    await parts.products.handle(batch)


@app.batch_agent(topics.customers, finish="in_handler")
async def customers(batch: Batch) -> None:
    """Customers registered: into `customers`."""
    await parts.customers.handle(batch)


@app.batch_agent(topics.purchases, finish="in_handler")
async def purchases(batch: Batch) -> None:
    """Purchases made: into `purchases` and the counts."""
    await parts.purchases.handle(batch)


@app.task  # type: ignore[untyped-decorator]
async def mirror_sales() -> None:
    """Bring the sales in MongoDB up to date while the worker runs."""
    await repeated("The sales in MongoDB", parts.sales_mirror.round, lambda: not app.should_stop)


@app.task  # type: ignore[untyped-decorator]
async def watch_stock() -> None:
    """Publish an alert for each product whose stock has fallen to its limit, while the worker runs."""
    await repeated("The stock", parts.stock_watch.round, lambda: not app.should_stop)
