"""One agent per topic: a batch of its records goes to the store, and for purchases to the counts.

An actor per partition, so that each partition's batches are handled in order while the partitions' writes overlap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from aiokafka.errors import KafkaError

from faust_batches.attempts import Attempts, repeated
from faust_batches.consumer import Batch
from faust_batches.ledger import Ledger
from faust_batches.table import CountTable

from . import topics
from .app import app, board, bootstrap, config, kafka_outage, limit, metrics, mongodb_outage, store
from .errors import PartitionLost, Unavailable
from .kafka import connection as kafka
from .shop.activity import Activity, Sales
from .shop.dead_letters import DeadLetters, Headers
from .shop.price_log import PriceLog
from .shop.prices import Pricing
from .shop.promotions.vouchers import Promotions, VoucherLog
from .shop.purchases import Processing
from .shop.sales_mirror import Mirror
from .shop.stock import AlertLog, Watch
from .tables import customer_windows, product_sales, purchase_counts, rules
from .web.monitoring.metrics import MeteredStore

__all__ = ["customers", "mirror_sales", "processing", "products", "purchases", "watch_stock"]

#: How often the sales in MongoDB are brought up to date.
_MIRROR_SECONDS = 0.5
#: How many times as long as that took MongoDB it rests.
_MIRROR_RESTS = 3
#: How often it is looked whether a stock has fallen to its limit.
_STOCK_SECONDS = 1.0

_OUTAGES = {outage.service: outage for outage in (mongodb_outage, kafka_outage)}


def _ledger(table: CountTable) -> Ledger:
    async def publish(partition: int, rows: Sequence[tuple[bytes, bytes]]) -> int:
        return await app.publish(table.changelog_topic_name, partition, rows)

    return Ledger(table, attempts, publish)


async def _send(topic: str, key: bytes | None, value: bytes | None, partition: int, headers: Headers) -> Awaitable[Any]:
    return await app.send_record(topic, partition, key, value, headers)


async def _read_since(topic: str, partition: int, since: int, *, values: bool = False) -> list[Any]:
    try:
        return await kafka.read_since(bootstrap(), topic, partition, since, values=values)
    except Unavailable as error:
        raise KafkaError(str(error)) from error


dead_letters = DeadLetters(topics.DEAD_LETTERS, config.topics.partitions, config.app_id, _send, _read_since)


async def _send_prices(topic: str, partition: int, value: bytes) -> None:
    await (await app.send_record(topic, partition, None, value, []))


async def _read_prices(topic: str, partition: int, since: int) -> list[bytes]:
    return [record.value for record in await _read_since(topic, partition, since, values=True) if record.value]


price_log = PriceLog(topics.PRICES, _send_prices, _read_prices)


async def _read_values(topic: str, partition: int, since: int) -> list[Any]:
    return await _read_since(topic, partition, since, values=True)


alert_log = AlertLog(topics.ALERTS, topics.products.get_topic_name(), app.publish, _read_values)
voucher_log = VoucherLog(topics.VOUCHERS, app.publish, _read_values)


@app.on_partitions_assigned.connect
async def _forget(*args: Any, **kwargs: Any) -> None:
    dead_letters.forget()
    price_log.forget()
    sales_mirror.forget()
    voucher_log.forget()
    stock_watch.forget()


def _going() -> bool:
    return not app.should_stop


def _products_owned() -> list[int]:
    ours = app.owned if app.serving and _going() else []
    return [tp.partition for tp in ours if tp.topic == alert_log.products]


def _sales_owned() -> list[int]:
    return product_sales.partitions_owned() if app.serving and _going() else []


attempts = Attempts(store, mongodb_outage, kafka_outage)

pricing = Pricing(
    store,
    purchase_counts,
    attempts,
    price_log,
    rejected_before=dead_letters.before,
    wait_seconds=config.batching.product_wait_seconds,
)

sales_mirror = Mirror(product_sales, store, _sales_owned, mongodb_outage)
stock_watch = Watch(store, alert_log, _products_owned, lambda: app.session.sure)
windows = None if customer_windows is None else _ledger(customer_windows)
promotions = Promotions(rules, store, attempts, voucher_log, windows)

processing = Processing(
    MeteredStore(store, metrics),
    _ledger(purchase_counts),
    attempts,
    pricing,
    dead_letters,
    max_event_bytes=config.batching.max_event_bytes,
    limit=limit,
    on_rejected=metrics.rejected,
    sold=board.sold,
    followers=[
        Sales(_ledger(product_sales), sales_mirror.changed),
        Activity(attempts, lambda partition, rows: app.publish(topics.ACTIVITY, partition, rows)),
        *([promotions] if rules.about_purchases else []),
    ],
    registrars=[promotions] if rules.about_registrations else [],
)

_take_products = metrics.observed(processing.products)
_take_customers = metrics.observed(processing.customers)
_take_purchases = metrics.observed(processing.purchases)


@app.batch_agent(topics.products, takes_turn=True)
async def products(batch: Batch) -> None:
    """Products offered: into `products` and `prices`."""
    await _take_products(batch)


@app.batch_agent(topics.customers, takes_turn=True)
async def customers(batch: Batch) -> None:
    """Customers registered: into `customers`."""
    await _take_customers(batch)


@app.batch_agent(topics.purchases, takes_turn=True)
async def purchases(batch: Batch) -> None:
    """Purchases made: into `purchases` and the counts."""
    await _take_purchases(batch)


async def _bring_up() -> float:
    took = await sales_mirror.bring_up()
    # A backlog of many days is many rows: they must not keep MongoDB from the purchases.
    return max(_MIRROR_SECONDS, _MIRROR_RESTS * took)


async def _look() -> float:
    try:
        asked = await stock_watch.look()
    except Unavailable as error:
        _OUTAGES[error.service].failed(error, stock_watch)
        if error.service == kafka_outage.service:  # it is asked last: MongoDB has answered
            mongodb_outage.succeeded(stock_watch)
    except PartitionLost:  # the next owner looks; what is ours then, we look at anew
        stock_watch.forget()
    else:
        for outage in _OUTAGES.values() if asked else ():
            outage.succeeded(stock_watch)
    return _STOCK_SECONDS


@app.task  # type: ignore[untyped-decorator]
async def mirror_sales() -> None:
    """Bring the sales in MongoDB up to date while the worker runs."""
    await repeated("The sales in MongoDB", _bring_up, _going)


@app.task  # type: ignore[untyped-decorator]
async def watch_stock() -> None:
    """Tell of products whose stock has fallen to its limit, while the worker runs."""
    await repeated("The stock", _look, _going)
