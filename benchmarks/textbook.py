"""The same job as the Faust documentation teaches it, for a comparison by `benchmarks/faults.py`.

It has one agent for one event at a time, a table, an upsert, and Faust's acknowledgements. It reads shopflow's topics.
"""

from __future__ import annotations

import os
from typing import Any

import faust
from pymongo import AsyncMongoClient

app = faust.App(
    os.environ.get("SHOPFLOW_APP_ID", "textbook"),
    broker=os.environ.get("SHOPFLOW_BROKER", "kafka://127.0.0.1:19092"),
    store="rocksdb://?driver=rocksdict",
    topic_partitions=int(os.environ.get("SHOPFLOW_TOPICS_PARTITIONS", "4")),
    broker_session_timeout=int(os.environ.get("SHOPFLOW_BATCHING_SESSION_TIMEOUT_SECONDS", "60")),
    broker_heartbeat_interval=2,
    broker_commit_interval=float(os.environ.get("SHOPFLOW_BATCHING_COMMIT_INTERVAL_SECONDS", "2.8")),
    web_host="127.0.0.1",
)


class Purchase(faust.Record, serializer="json"):
    """A customer bought a product."""

    purchase_id: str
    customer_id: str
    product_id: str
    quantity: int
    price: int
    purchased_at: str


purchases_topic = app.topic(
    os.environ.get("SHOPFLOW_TOPICS_PREFIX", "shop.") + "purchases", key_type=str, value_type=Purchase
)
purchase_counts = app.Table("purchase_counts", default=int)
_client: list[AsyncMongoClient[dict[str, Any]]] = []


@app.task  # type: ignore[untyped-decorator]
async def connect() -> None:
    """Create the client in the worker's event loop."""
    _client.append(AsyncMongoClient(os.environ.get("SHOPFLOW_MONGODB_URI", "mongodb://127.0.0.1:27117")))


@app.agent(purchases_topic)
async def store(purchases: Any) -> None:
    """Upsert each purchase in MongoDB, and count it."""
    async for purchase in purchases:
        documents = _client[0][os.environ.get("SHOPFLOW_MONGODB_DATABASE", "textbook")].purchases
        await documents.update_one({"_id": purchase.purchase_id}, {"$set": purchase.asdict()}, upsert=True)
        purchase_counts[purchase.customer_id] += 1


@app.page("/counts/{customer_id}/")
@app.table_route(table=purchase_counts, match_info="customer_id")
async def count(web: Any, _request: Any, customer_id: str) -> Any:
    """The number of a customer's purchases."""
    return web.json({"customer_id": customer_id, "purchases": purchase_counts[customer_id]})
