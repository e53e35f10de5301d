"""The composition root: configuration -> application and store. Nothing is connected at import."""

from __future__ import annotations

from functools import cache

from faust_batches.app import App
from faust_batches.outage import Outage

from .config.settings import load
from .kafka import security as credentials
from .kafka.security import Bootstrap, Security
from .servers.servers import Addresses
from .shop.failure_limit import Limit
from .shop.recent_sales import Board
from .store.connection import MongoStore
from .web.access import Guard
from .web.monitoring.metrics import Metrics

__all__ = [
    "app",
    "board",
    "bootstrap",
    "config",
    "connect",
    "connect_kafka",
    "disk_outage",
    "kafka_at",
    "kafka_outage",
    "limit",
    "metrics",
    "mongodb_outage",
    "store",
]

config = load()
credentials.check(config)

store = MongoStore(config.mongodb.database)

mongodb_outage = Outage("MongoDB")
kafka_outage = Outage("Kafka")
#: The disk that all tables share.
disk_outage = Outage("RocksDB", "can't write", "writes again")

metrics = Metrics()
#: What this worker sold in the last minutes.
board = Board()
#: When too many records of a topic are bad.
limit = Limit(config.dead_letters.max_share, config.dead_letters.window)

app: App = App(
    config.app_id,
    broker="kafka://" if config.embeds_kafka else config.broker,
    store="rocksdb://?driver=rocksdict",
    origin="shopflow",
    # An explicit list: autodiscover=True only warns when a module fails to import; the worker runs without its agents.
    autodiscover=[
        "shopflow.agents",
        "shopflow.web.api.counts",
        "shopflow.web.api.sales",
        "shopflow.web.page.views",
        "shopflow.web.api.events",
        "shopflow.web.api.collections",
        "shopflow.web.api.openapi",
        "shopflow.web.monitoring.views",
        "shopflow.commands.operate",
    ],
    # One for each worker of a machine; a worker that is started with another web port, or --datadir, has another.
    datadir=str(config.data_path / f"worker-{config.web.port}"),
    topic_partitions=config.topics.partitions,
    topic_replication_factor=config.topics.replication,
    broker_max_poll_records=config.batching.max_records,
    broker_commit_interval=config.batching.commit_interval_seconds,
    broker_session_timeout=config.batching.session_timeout_seconds,
    # Faust wants it no shorter than the session; 90 s is its default.
    broker_request_timeout=max(90.0, config.batching.session_timeout_seconds),
    broker_heartbeat_interval=config.batching.session_timeout_seconds / 10,
    producer_linger=0.0,  # what is sent comes as whole batches already
    producer_max_batch_size=256 * 1024,
    producer_max_request_size=17 * 1024 * 1024,
    web_bind=config.web.bind,
    web_port=config.web.port,
    web_host=config.web.host or ("127.0.0.1" if config.web.bind in {"127.0.0.1", "localhost"} else None),
    web_application_options={
        "middlewares": [Guard(config.web, lambda: (app.conf.web_bind, app.conf.web_host)).middleware],
        "client_max_size": config.web.max_body_bytes,
    },
)


@cache
def _security() -> Security:
    return credentials.load(config)


def connect(addresses: Addresses) -> None:
    """Tell the application and the store where their servers are. No I/O."""
    connect_kafka(addresses)
    store.connect(addresses.mongodb)


def connect_kafka(addresses: Addresses) -> None:
    """Tell the application where Kafka is. No I/O."""
    broker = ";".join(f"kafka://{server}" for server in addresses.kafka.split(";"))
    app.reconfigure(broker=broker, broker_consumer=broker, broker_producer=broker, broker_credentials=_security().faust)


def kafka_at(addresses: Addresses) -> Bootstrap:
    """Kafka there, and how to get in.

    Raises:
        Refused: A certificate that the configuration names is not what it must be.
    """
    return Bootstrap(addresses.kafka, _security())


def bootstrap() -> Bootstrap:
    """Kafka where the application has been told that it is, and how to get in."""
    return Bootstrap(";".join(f"{url.host}:{url.port}" for url in app.conf.broker), _security())
