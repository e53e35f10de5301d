"""Documents as MongoDB has them, and the time at which they were made."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from shopflow.store.types import Document

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


def kafka(offset: int, partition: int = 0, topic: str = "t") -> Document:
    """The source of a document that came from Kafka."""
    return {"origin": "kafka", "topic": topic, "partition": partition, "offset": offset}


def purchase(name: str, source: Document | None = None, customer: str = "anna", **fields: Any) -> Document:
    base = {"customer_id": customer, "product_id": "milk", "quantity": 2, "price": 300, "value": 600}
    return {"_id": name, **base, "purchased_at": NOON, "source": source or kafka(0), **fields}


def product(price: int, at: datetime = NOON, source: Document | None = None, name: str = "milk") -> Document:
    base = {"name": name.title(), "type": "dairy", "price": price}
    return {"_id": name, **base, "updated_at": at, "source": source or kafka(0)}


def customer(name: str, at: datetime = NOON, source: Document | None = None, **fields: Any) -> Document:
    base = {"first_name": "Anna", "last_name": "Żak", "address": "ul. Długa 1, 00-001 Łódź", "city": "Łódź"}
    return {"_id": name, **base, "registered_at": at, "source": source or kafka(0), **fields}
