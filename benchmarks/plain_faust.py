"""Plain Faust, made fast: `take`, one insert for many purchases, and a table for the counts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import faust
from pymongo import AsyncMongoClient
from pymongo.errors import BulkWriteError

from benchmarks.documents import document
from benchmarks.settings import APP_ID, BROKER, DATABASE, MONGODB, TOPIC

MOST_RECORDS = 500
DUPLICATE_KEY = 11000

app = faust.App(
    APP_ID,
    broker=f"kafka://{BROKER}",
    store="rocksdb://?driver=rocksdict",
    topic_partitions=4,
    # The most events that wait. With fewer, `take` would wait for records that Faust holds back.
    stream_buffer_maxsize=16_384,
    producer_linger=0.05,
    web_host="127.0.0.1",
)


class Purchase(faust.Record, serializer="json", coerce=True):
    """A customer bought a product."""

    purchase_id: str
    customer_id: str
    product_id: str
    quantity: int
    price: int
    purchased_at: datetime


class Count(faust.Record, serializer="json"):
    """The counts of a customer."""

    purchases: int = 0
    items: int = 0
    spent: int = 0


purchases_topic = app.topic(TOPIC, key_type=str, value_type=Purchase)
purchase_counts = app.Table("purchase_counts", default=Count)
_client: list[AsyncMongoClient[dict[str, Any]]] = []


@app.task  # type: ignore[untyped-decorator]
async def connect() -> None:
    """Create the client in the worker's event loop."""
    _client.append(AsyncMongoClient(MONGODB))


@app.agent(purchases_topic)
async def store(purchases: Any) -> None:
    """Insert many purchases at once. A purchase that is stored already changes nothing."""
    async for events in purchases.take_events(MOST_RECORDS, within=1.0):
        try:
            documents = [document(event.value, event.message) for event in events]
            await _client[0][DATABASE].purchases.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            if any(each["code"] != DUPLICATE_KEY for each in error.details["writeErrors"]):
                raise


# A second agent, because a table can't be written from a batch: that has no current event. It counts repeats twice.
@app.agent(purchases_topic)
async def count(purchases: Any) -> None:
    """Count purchases one at a time."""
    async for purchase in purchases:
        counted = purchase_counts[purchase.customer_id]
        counted.purchases += 1
        counted.items += purchase.quantity
        counted.spent += purchase.quantity * purchase.price
        purchase_counts[purchase.customer_id] = counted
