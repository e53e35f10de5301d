"""Documents as MongoDB has them, and times for all tests. `events` builds the same as events."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from shopflow.store.types import Document

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

#: The source of a document that `--direct` wrote.
DIRECT = {"origin": "direct"}


def kafka(offset: int, partition: int = 0, topic: str = "t") -> Document:
    """The source of a document that came from Kafka."""
    return {"origin": "kafka", "topic": topic, "partition": partition, "offset": offset}


def purchase(name: str, source: Document | None = None, customer: str = "anna", **fields: Any) -> Document:
    base = {"customer_id": customer, "product_id": "milk", "quantity": 2, "price": 300, "value": 600}
    return {"_id": name, **base, "purchased_at": NOON, "source": source or kafka(0), **fields}


def product(
    price: int, at: datetime = NOON, source: Document | None = None, name: str = "milk", **fields: Any
) -> Document:
    base = {"name": name.title(), "type": "dairy", "price": price}
    return {"_id": name, **base, "updated_at": at, "source": source or kafka(0), **fields}


def customer(name: str, at: datetime = NOON, source: Document | None = None, **fields: Any) -> Document:
    base = {"first_name": "Anna", "last_name": "Żak", "address": "ul. Długa 1, 00-001 Łódź", "city": "Łódź"}
    return {"_id": name, **base, "registered_at": at, "source": source or kafka(0), **fields}


def voucher(
    name: str,
    source: Document | None = None,
    customer: str = "anna",
    at: datetime = NOON,
    worth: Document | None = None,
    **fields: Any,
) -> Document:
    """A voucher; `worth` is what it gives, by default 5% off butter."""
    base = {"rule": "bread", "customer_id": customer, **(worth or {"text": "butter", "percent": 5})}
    return {"_id": name, **base, "issued_at": at, "valid_until": at + DAY, "source": source or kafka(0), **fields}


def alert(name: str, left: int, at: datetime = NOON, **fields: Any) -> Document:
    return {"_id": name, "kind": "stock", "product_id": "milk", "left": left, "since": NOON, "at": at, **fields}
