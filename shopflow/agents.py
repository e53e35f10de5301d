"""One agent per topic: a batch of its records goes to the store, and for purchases to the counts.

An actor per partition, so that each partition's batches are handled in order while the partitions' writes overlap.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from aiokafka.errors import KafkaError

from . import kafka, topics
from .app import app, board, bootstrap, config, kafka_outage, limit, metrics, mongodb_outage, store
from .attempts import Attempts
from .batching import Restarts, each_batch
from .dead_letters import DeadLetters, Headers
from .errors import Unavailable
from .ledger import Ledger
from .metrics import MeteredStore
from .price_log import PriceLog
from .pricing import Pricing
from .processing import Processing
from .tables import purchase_counts

__all__ = ["customers", "processing", "products", "purchases"]


async def _publish_counts(partition: int, rows: Sequence[tuple[bytes, bytes]]) -> int:
    return await app.publish(purchase_counts.changelog_topic_name, partition, rows)


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


@app.on_partitions_assigned.connect
async def _forget(*args: Any, **kwargs: Any) -> None:
    dead_letters.forget()
    price_log.forget()


attempts = Attempts(store, mongodb_outage, kafka_outage)

pricing = Pricing(
    store,
    purchase_counts,
    attempts,
    price_log,
    rejected_before=dead_letters.before,
    wait_seconds=config.batching.product_wait_seconds,
)

processing = Processing(
    MeteredStore(store, metrics),
    Ledger(purchase_counts, attempts, _publish_counts),
    attempts,
    pricing,
    dead_letters,
    max_event_bytes=config.batching.max_event_bytes,
    limit=limit,
    on_rejected=metrics.rejected,
    sold=board.sold,
)


@app.agent(topics.products, isolated_partitions=True, supervisor_strategy=Restarts)
async def products(stream: Any) -> None:
    """Products offered: into `products` and `prices`."""
    await each_batch(stream, metrics.observed(processing.products))


@app.agent(topics.customers, isolated_partitions=True, supervisor_strategy=Restarts)
async def customers(stream: Any) -> None:
    """Customers registered: into `customers`."""
    await each_batch(stream, metrics.observed(processing.customers))


@app.agent(topics.purchases, isolated_partitions=True, supervisor_strategy=Restarts)
async def purchases(stream: Any) -> None:
    """Purchases made: into `purchases` and the counts."""
    await each_batch(stream, metrics.observed(processing.purchases))
