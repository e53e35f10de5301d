"""The composition root: makes the parts of a worker from the settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from faust.types import TP

from faust_batches import App, Outage, Table

from . import topics
from .app import app, config, connected_kafka, store
from .config.settings import Config
from .errors import Unavailable
from .kafka import offsets, producers, reading
from .kafka.held import Watch as HeldWatch
from .kafka.lag import LOOK_SECONDS, Lags
from .models import Customer, Product
from .operations import skip
from .operations.surroundings import Surroundings
from .operations.watch import Ground
from .shop.activity import Activity
from .shop.counts import counted_topics
from .shop.dead_letters import DeadLetters, ReadSince, Rejections
from .shop.decisions import Decisions
from .shop.decoding import Decoder
from .shop.documents import customer_document, product_document
from .shop.failure_limit import Limit
from .shop.prices import PriceLog, Prices
from .shop.promotions.vouchers import Promotions, VoucherLog
from .shop.promotions.windows import Rules
from .shop.purchases import Purchases
from .shop.recent_sales import Board, Past
from .shop.sales import Sales
from .shop.sales_mirror import Mirror
from .shop.stock import AlertLog, Watch
from .shop.upserts import Upserts
from .store import MongoStore
from .store.connection import Patient
from .store.pace import Slowness
from .store.types import CUSTOMERS, PRODUCTS
from .tables import customer_windows, product_sales, purchase_counts, rules
from .web.monitoring.metrics import Metrics, Rebalances
from .web.monitoring.probes import Health
from .web.monitoring.spans import traced

#: What to do about the troubles of the heart.
_ADVICE = {
    "unreadable-batch": "; `faust -A shopflow dead-letters skip {topic}:{partition}:{offset}` steps over it",
    "partition-too-short": "; `faust -A shopflow replay` reads them",
    "offset-moved": "; `faust -A shopflow replay --keep-tables` reads them",
    "changelog-lost": ": `faust -A shopflow replay`",
    "unreadable-changelog": "; `faust -A shopflow replay` counts everything again",
}


class Parts:
    """The parts of a worker, beside Faust, its topics and its tables. Making them connects and starts nothing.

    Arguments:
        read_since: Topic, partition, Unix time in ms -> the partition's records since then.
        counts, sales, windows: The tables; `windows` is None while no rule is about purchases.
        rules: The promotions that are switched on.
    """

    def __init__(
        self,
        config: Config,
        app: App,
        store: MongoStore,
        read_since: ReadSince,
        *,
        counts: Table,
        sales: Table,
        windows: Table | None,
        rules: Rules,
    ) -> None:
        patience, max_bytes = config.batching.product_wait_seconds, config.batching.max_event_bytes
        self.metrics = metrics = Metrics()
        #: Stops a topic with too many bad records.
        self.limit = Limit(config.dead_letters.max_share, config.dead_letters.window)
        #: The sales that this worker handled in the last minutes.
        self.board = Board()
        self.mongodb_outage = Outage("MongoDB", troubles=app.troubles)
        slowness = Slowness(app.troubles, self._mongodb_answers)
        mongodb = Patient(store, self.mongodb_outage, slowness)
        store.on_write = metrics.wrote

        dead_letters = DeadLetters(
            topics.DEAD_LETTERS, config.topics.partitions, config.app_id, app.send_record, read_since
        )
        rejections = Rejections(dead_letters, self.limit, metrics.rejected)
        price_log = PriceLog(topics.PRICES, app.send_record, read_since)
        prices = Prices(mongodb, counts, price_log, wait_seconds=patience)
        voucher_log = VoucherLog(topics.VOUCHERS, app.publish, read_since)
        promotions = Promotions(rules, mongodb, voucher_log, windows)

        def owned_sales() -> list[int]:
            return sales.owned_partitions() if app.serving and not app.should_stop else []

        def owned_products() -> list[int]:
            ours = app.owned if app.serving and not app.should_stop else []
            return [tp.partition for tp in ours if tp.topic == topics.products.get_topic_name()]

        def answered_for() -> set[tuple[str, int]]:
            """Our partitions; of topics that no agent reads those with the numbers of our partitions of purchases."""
            ours = {(tp.topic, tp.partition) for tp in app.owned}
            numbers = [number for topic, number in ours if topic == topics.purchases.get_topic_name()]
            return ours | {(name, number) for name in topics.NAMES if name not in topics.KEYS for number in numbers}

        def waits() -> bool:
            """True if more purchases wait in one of our partitions than one batch takes."""
            ours = [tp for tp in app.owned if tp.topic == topics.purchases.get_topic_name()]
            return any(self.lags.waiting(tp) > config.batching.max_records for tp in ours)

        self.sales_mirror = Mirror(sales, store, owned_sales, self.mongodb_outage, waits)
        self.past = Past(self.board, store, counts, sales, topics.purchases.get_topic_name(), owned_sales, waits)
        alert_log = AlertLog(topics.ALERTS, topics.products.get_topic_name(), app.publish, read_since)
        self.stock_watch = Watch(
            store, alert_log, owned_products, lambda: app.lease.valid,
            outages={outage.service: outage for outage in (self.mongodb_outage, app.kafka_outage)}, waits=waits,
        )  # fmt: skip

        products = Decisions(mongodb, rejections, PRODUCTS, Decoder(Product, "product_id", max_bytes))
        self.products = Upserts(products, product_document, upsert=store.upsert_products, delete=store.delete_products)
        customers = Decisions(mongodb, rejections, CUSTOMERS, Decoder(Customer, "customer_id", max_bytes))
        self.customers = Upserts(
            customers, customer_document,
            upsert=store.upsert_customers, delete=store.delete_customers, follow=promotions.registered,
        )  # fmt: skip
        activity = Activity(topics.ACTIVITY, app.publish)
        followers = [Sales(sales, self.sales_mirror.changed).follow, activity.follow, promotions.follow]
        self.purchases = Purchases(
            mongodb, counts, prices, rejections,
            max_event_bytes=max_bytes, followers=followers, sold=self.board.sold,
            topic_id=lambda: self.ground.topic_id(topics.purchases.get_topic_name()),
        )  # fmt: skip

        self.lags = lags = Lags(
            lambda: offsets.asking_spans(connected_kafka(), config.app_id, topics.NAMES, LOOK_SECONDS),
            lambda spans: offsets.empty(connected_kafka(), spans),
            topics=topics.KEYS,
        )
        self.health = Health(
            app, store, mongodb=self.mongodb_outage, lags=lags, limit=self.limit,
            activity=metrics.activity, patience=patience,
        )  # fmt: skip
        held = HeldWatch(
            app.troubles,
            lambda found: producers.producers(connected_kafka(), found),
            spans=lambda: lags.spans,
            ours=answered_for,
            events=topics.KEYS,
        )

        self.ground, self.surroundings = (
            Ground(app.troubles, connected_kafka, topics.SPECS, partial(_counted, app, counts)),
            Surroundings(app.troubles, lambda: Path(app.conf.datadir), connected_kafka, store),
        )

        async def looked() -> None:
            await self.health.looked()
            await held.looked()
            slowness.look()

        lags.looked = looked
        metrics.watch(app, lags, self.limit, self.mongodb_outage)
        app.sensors.add(Rebalances(metrics))
        app.on_batch = traced(metrics.batch, config.app_id)
        app.skipped, app.advice = _skipped, _ADVICE

        @app.on_partitions_assigned.connect
        async def forget(*args: Any, **kwargs: Any) -> None:
            for part in (dead_letters, price_log, promotions, self.sales_mirror, self.stock_watch, self.past):
                part.forget()

    async def _mongodb_answers(self) -> bool:
        return await self.health.mongodb_answers()


def _counted(app: App, counts: Table) -> dict[str, set[str]]:
    ours = counts.owned_partitions() if app.serving and not app.should_stop else []
    return {topics.purchases.get_topic_name(): counted_topics(counts.reader, ours)}


async def _skipped(tp: TP, offset: int) -> int | None:
    try:
        return await skip.skipped(connected_kafka(), topics.LAYOUT, skip.Place(tp.topic, tp.partition, offset))
    except Unavailable:  # asked again soon
        return None


async def _read_since(topic: str, partition: int, since: int, *, values: bool = True, **options: Any) -> list[Any]:
    return await reading.read_since(connected_kafka(), topic, partition, since, values=values, **options)


parts = Parts(
    config,
    app,
    store,
    _read_since,
    counts=purchase_counts,
    sales=product_sales,
    windows=customer_windows,
    rules=rules,
)
