"""The composition root: settings in, the parts of a worker out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiokafka.errors import KafkaError

from faust_batches import App, Outage, Table

from . import topics
from .app import app, config, connected_kafka, store
from .config.settings import Config
from .errors import Unavailable
from .kafka import offsets, reading
from .kafka.lag import LOOK_SECONDS, Lags
from .models import Customer, Product
from .shop.activity import Activity
from .shop.dead_letters import DeadLetters, ReadSince, Rejections
from .shop.decoding import Decoder
from .shop.documents import customer_document, product_document
from .shop.failure_limit import Limit
from .shop.prices import PriceLog, Prices
from .shop.promotions.vouchers import Promotions, VoucherLog
from .shop.promotions.windows import Rules
from .shop.purchases import Purchases
from .shop.recent_sales import Board
from .shop.sales import Sales
from .shop.sales_mirror import Mirror
from .shop.stock import AlertLog, Watch
from .shop.upserts import Upserts
from .store import MongoStore
from .store.connection import Patient
from .tables import customer_windows, product_sales, purchase_counts, rules
from .web.monitoring.metrics import Metrics, Rebalances
from .web.monitoring.probes import Health


@dataclass(frozen=True)
class Parts:
    """What a worker is made of, beside Faust, its topics and its tables."""

    metrics: Metrics
    lags: Lags
    health: Health
    mongodb_outage: Outage
    limit: Limit
    """When too many records of a topic are bad."""

    board: Board
    """What this worker sold in the last minutes."""

    products: Upserts[Product]
    customers: Upserts[Customer]
    purchases: Purchases
    sales_mirror: Mirror
    stock_watch: Watch


def build(
    config: Config,
    app: App,
    store: MongoStore,
    read_since: ReadSince,
    *,
    counts: Table,
    sales: Table,
    windows: Table | None,
    rules: Rules,
) -> Parts:
    """Put the parts together. Nothing is connected or started.

    Arguments:
        read_since: Topic, partition, Unix time in ms -> the partition's records since then.
        counts, sales, windows: The tables; `windows` is None while no rule is about purchases.
        rules: The promotions that are switched on.
    """
    metrics, mongodb_outage = Metrics(), Outage("MongoDB")
    mongodb = Patient(store, mongodb_outage)
    store.on_write = metrics.wrote
    limit = Limit(config.dead_letters.max_share, config.dead_letters.window)
    board = Board()

    partitions, max_bytes = config.topics.partitions, config.batching.max_event_bytes
    dead_letters = DeadLetters(topics.DEAD_LETTERS, partitions, config.app_id, app.send_record, read_since)
    rejections = Rejections(dead_letters, limit, metrics.rejected)
    price_log = PriceLog(topics.PRICES, app.send_record, read_since)
    prices = Prices(
        store,
        mongodb,
        counts,
        price_log,
        rejected_before=dead_letters.before,
        wait_seconds=config.batching.product_wait_seconds,
    )
    voucher_log = VoucherLog(topics.VOUCHERS, app.publish, read_since)
    promotions = Promotions(rules, store, mongodb, voucher_log, windows)

    def owned_sales() -> list[int]:
        return sales.owned_partitions() if app.serving and not app.should_stop else []

    def owned_products() -> list[int]:
        ours = app.owned if app.serving and not app.should_stop else []
        return [tp.partition for tp in ours if tp.topic == topics.products.get_topic_name()]

    sales_mirror = Mirror(sales, store, owned_sales, mongodb_outage)
    alert_log = AlertLog(topics.ALERTS, topics.products.get_topic_name(), app.publish, read_since)
    outages = {outage.service: outage for outage in (mongodb_outage, app.kafka_outage)}
    stock_watch = Watch(store, alert_log, owned_products, lambda: app.lease.valid, outages=outages)

    lags = Lags(
        lambda: offsets.asking_spans(connected_kafka(), config.app_id, list(topics.KEYS), LOOK_SECONDS),
        lambda places: offsets.empty(connected_kafka(), places),
    )
    health = Health(
        app,
        store,
        mongodb=mongodb_outage,
        lags=lags,
        limit=limit,
        activity=metrics.activity,
        patience=config.batching.product_wait_seconds,
    )
    lags.looked = health.looked
    metrics.watch(app, lags, limit, mongodb_outage)
    app.sensors.add(Rebalances(metrics))
    app.on_batch = metrics.batch

    @app.on_partitions_assigned.connect
    async def forget(*args: Any, **kwargs: Any) -> None:
        for part in (dead_letters, price_log, voucher_log, sales_mirror, stock_watch):
            part.forget()

    return Parts(
        metrics=metrics,
        lags=lags,
        health=health,
        mongodb_outage=mongodb_outage,
        limit=limit,
        board=board,
        products=Upserts(
            mongodb,
            rejections,
            Decoder(Product, "product_id", max_bytes),
            product_document,
            upsert=store.upsert_products,
            delete=store.delete_products,
        ),
        customers=Upserts(
            mongodb,
            rejections,
            Decoder(Customer, "customer_id", max_bytes),
            customer_document,
            upsert=store.upsert_customers,
            delete=store.delete_customers,
            follow=promotions.registered if rules.about_registrations else None,
        ),
        purchases=Purchases(
            store,
            mongodb,
            counts,
            prices,
            rejections,
            max_event_bytes=max_bytes,
            followers=[
                Sales(sales, sales_mirror.changed).follow,
                Activity(topics.ACTIVITY, app.publish).follow,
                *([promotions.follow] if rules.about_purchases else []),
            ],
            sold=board.sold,
        ),
        sales_mirror=sales_mirror,
        stock_watch=stock_watch,
    )


async def _read_since(topic: str, partition: int, since: int, *, values: bool = True) -> list[Any]:
    try:
        return await reading.read_since(connected_kafka(), topic, partition, since, values=values)
    except Unavailable as error:
        raise KafkaError(str(error)) from error


parts = build(
    config,
    app,
    store,
    _read_since,
    counts=purchase_counts,
    sales=product_sales,
    windows=customer_windows,
    rules=rules,
)
