"""The hand-written loop: as fast as we could write it, with no promises but those that these lines keep.

It has shopflow's documents, indexes and write concern; its counts are in a dict. A purchase that comes twice is counted
once. A crash loses the counts. A record that is no purchase ends it, and so does an outage of MongoDB.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from datetime import datetime
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer
from pymongo import AsyncMongoClient, WriteConcern
from pymongo.errors import BulkWriteError

from benchmarks.documents import document
from benchmarks.settings import APP_ID, BROKER, DATABASE, MONGODB, STARTED, TOPIC

MOST_RECORDS = 4_000
#: Writes that MongoDB may have at once, while the next run is decoded.
MOST_WRITES = 4
DUPLICATE_KEY = 11000


class Purchase(msgspec.Struct, gc=False):
    """A customer bought a product."""

    purchase_id: str
    customer_id: str
    product_id: str
    quantity: int
    price: int
    purchased_at: datetime


decode = msgspec.json.Decoder(Purchase).decode

#: Customer -> purchases, items, spent.
counts: dict[str, list[int]] = {}


async def store(collection: Any, run: list[Any]) -> None:
    """Insert a run of one partition, then count it."""
    documents = [document(decode(record.value), record) for record in run]
    repeated: set[int] = set()
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as error:
        if any(each["code"] != DUPLICATE_KEY for each in error.details["writeErrors"]):
            raise
        repeated = {each["index"] for each in error.details["writeErrors"]}
    for number, each in enumerate(documents):
        if number not in repeated:
            count = counts.setdefault(each["customer_id"], [0, 0, 0])
            count[0] += 1
            count[1] += each["quantity"]
            count[2] += each["value"]


async def main() -> None:
    """Consume purchases until the process is ended."""
    # A batch has some 10,000 objects without cycles. Frequent collections would take a third of the time.
    gc.set_threshold(100_000, 20, 100)
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(MONGODB)
    collection = client[DATABASE].get_collection("purchases", write_concern=WriteConcern("majority", j=True))
    consumer = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=BROKER, group_id=APP_ID, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    writes: deque[tuple[Any, int, asyncio.Task[None]]] = deque()
    async with consumer:
        print(STARTED, flush=True)
        while True:
            runs = await consumer.getmany(timeout_ms=100, max_records=MOST_RECORDS)
            for place, run in runs.items():
                writes.append((place, run[-1].offset + 1, asyncio.create_task(store(collection, run))))
            # Awaited in order, so that a commit never passes a purchase that isn't stored.
            stored = {}
            while writes and (len(writes) >= MOST_WRITES or not runs):
                place, end, write = writes.popleft()
                await write
                stored[place] = end
            if stored:
                await consumer.commit(stored)


if __name__ == "__main__":
    asyncio.run(main())
