"""The consumer of shopflow's proof of concept: it adds each purchase to its customer's document, one at a time.

For each purchase it finds the customer and the product, deletes the customer, and inserts them with one purchase more.
Unlike the original, it has a stable consumer group, and commits after each fetch.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiokafka import AIOKafkaConsumer
from pymongo import MongoClient

from benchmarks.settings import APP_ID, BROKER, DATABASE, MONGODB, STARTED, TOPIC

CUSTOMERS, PRODUCTS = 1_000, 13


def prepare(database: Any) -> None:
    """Insert the customers and products of the purchases."""
    customers = [{"customer_id": f"customer-{number}", "purchases": []} for number in range(CUSTOMERS)]
    database.customers.insert_many(customers)
    database.customers.create_index("customer_id")
    products = [{"product_id": f"product-{number}", "name": "Mleko", "price": 399} for number in range(PRODUCTS)]
    database.products.insert_many(products)
    database.products.create_index("product_id")


def add(database: Any, purchase: dict[str, Any]) -> None:
    """Add a purchase to its customer's document."""
    customer = database.customers.find_one({"customer_id": purchase["customer_id"]})
    product = database.products.find_one({"product_id": purchase["product_id"]})
    bought = {"name": product["name"], "quantity": purchase["quantity"], "price": purchase["price"]}
    customer["purchases"].append(bought)
    database.customers.delete_one({"customer_id": purchase["customer_id"]})
    del customer["_id"]
    database.customers.insert_one(customer)


async def main() -> None:
    """Consume purchases until the process is ended."""
    database = MongoClient[dict[str, Any]](MONGODB)[DATABASE]
    prepare(database)
    consumer = AIOKafkaConsumer(
        TOPIC, bootstrap_servers=BROKER, group_id=APP_ID, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    async with consumer:
        print(STARTED, flush=True)
        while True:
            for run in (await consumer.getmany(timeout_ms=1_000, max_records=500)).values():
                for record in run:
                    add(database, json.loads(record.value))
                await consumer.commit()


if __name__ == "__main__":
    asyncio.run(main())
