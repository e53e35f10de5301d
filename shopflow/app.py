"""The Faust application: its settings, and the addresses of its servers. Importing it connects to nothing.

A bad configuration prints one line on stderr and ends the process with status 2.
"""

from __future__ import annotations

import sys
from functools import cache

from aiohttp import web_server
from faust.transport.drivers.aiokafka import Transport, server_list

from faust_batches import App

from .config.loading import load
from .errors import Refused
from .kafka import security
from .kafka.security import Bootstrap, Security
from .servers.servers import Addresses
from .store import MongoStore
from .web.access import Connection, Guard

web_server.RequestHandler = Connection  # type: ignore[attr-defined]  # aiohttp has no setting for it
try:
    config = load()
    security.check(config)
except Refused as refused:
    print(f"Error: {refused}", file=sys.stderr)
    raise SystemExit(refused.exit_code) from None

store = MongoStore(config.mongodb.database)

#: What a worker has beside the commands.
_AGENTS_AND_VIEWS = (
    "shopflow.agents",
    "shopflow.web.api.counts",
    "shopflow.web.api.sales",
    "shopflow.web.page.views",
    "shopflow.web.page.trace",
    "shopflow.web.page.letters",
    "shopflow.web.api.events",
    "shopflow.web.api.collections",
    "shopflow.web.api.openapi",
    "shopflow.web.monitoring.views",
)

guard = Guard(config.web, lambda: (app.conf.web_bind, app.conf.web_host), lambda: app.tables)
app: App = App(
    config.app_id,
    broker="kafka://" if config.embeds_kafka else config.broker,
    store="rocksdb://?driver=rocksdict",
    origin="shopflow",
    # An explicit list: with autodiscover=True, Faust warns if a module fails to import, and runs without its agents.
    autodiscover=[
        f"shopflow.commands.{name}" for name in ("worker", "workers", "faust", "seed", "show", "operate", "demo")
    ],
    # Each worker on a machine needs its own. The command `worker` changes it for another web port or --datadir.
    datadir=str(config.data_path / f"worker-{config.web.port}"),
    topic_partitions=config.topics.partitions,
    topic_replication_factor=config.topics.replication,
    broker_max_poll_records=config.batching.max_records,
    batch_commit_interval=config.batching.commit_interval_seconds,
    broker_session_timeout=config.batching.session_timeout_seconds,
    # Faust wants it no shorter than the session timeout; 90 s is its default.
    broker_request_timeout=max(90.0, config.batching.session_timeout_seconds),
    broker_heartbeat_interval=config.batching.session_timeout_seconds / 40,
    producer_linger=0.0,  # records are sent in whole batches already
    producer_max_batch_size=256 * 1024,
    producer_max_request_size=17 * 1024 * 1024,
    web_bind=config.web.bind,
    web_port=config.web.port,
    web_host=config.web.host or ("127.0.0.1" if config.web.bind in {"127.0.0.1", "localhost"} else None),
    web_application_options={
        "middlewares": [guard.middleware],
        "client_max_size": config.web.max_body_bytes,
    },
)


def discover() -> None:
    """Import the agents, tables and views. Faust imports the commands only, so that those without need start fast."""
    app.discover(*_AGENTS_AND_VIEWS)


@cache
def _security() -> Security:
    return security.load(config)


def connect(addresses: Addresses) -> None:
    """Set the addresses of the servers in the application and the store. No I/O."""
    connect_kafka(addresses)
    store.connect(addresses.mongodb)


def connect_kafka(addresses: Addresses) -> None:
    """Set the address of Kafka in the application. No I/O."""
    broker = ";".join(f"kafka://{server}" for server in addresses.kafka.split(";"))
    app.reconfigure(broker=broker, broker_consumer=broker, broker_producer=broker, broker_credentials=_security().faust)


def kafka_at(addresses: Addresses) -> Bootstrap:
    """Kafka's address and security settings.

    Raises:
        Refused: A certificate that the configuration names is missing or invalid.
    """
    return Bootstrap(addresses.kafka, _security())


def connected_kafka() -> Bootstrap:
    """Kafka's address and security settings, after `connect` or `connect_kafka`."""
    return Bootstrap(";".join(server_list(app.conf.broker, Transport.default_port)), _security())
