"""Makes MongoDB documents from events."""

from __future__ import annotations

from typing import Any

from shopflow.models import Customer, Product, Purchase
from shopflow.store.types import Document


def source_of(record: Any) -> Document:
    """The document's field `source`: topic, partition and offset of its record."""
    return {"origin": "kafka", "topic": record.topic, "partition": record.partition, "offset": record.offset}


def product_document(record: Any, event: Product) -> Document:
    units = {"stock": event.stock, "stock_limit": event.stock_limit} if event.stock is not None else {}
    return {
        "_id": event.product_id,
        "name": event.name,
        "type": event.type,
        "price": event.price,
        "updated_at": event.updated_at,
        **{name: number for name, number in units.items() if number is not None},
        "source": source_of(record),
    }


def customer_document(record: Any, event: Customer) -> Document:
    return {
        "_id": event.customer_id,
        "first_name": event.first_name,
        "last_name": event.last_name,
        "address": event.address,
        "city": event.city,
        "registered_at": event.registered_at,
        "source": source_of(record),
    }


def purchase_document(record: Any, event: Purchase) -> Document:
    """Make a document of `purchases`. The event must have a price."""
    price = event.price
    assert price is not None  # noqa: S101 - priced before
    return {
        "_id": event.purchase_id,
        "customer_id": event.customer_id,
        "product_id": event.product_id,
        "quantity": event.quantity,
        "price": price,
        "value": event.quantity * price,
        "purchased_at": event.purchased_at,
        "source": source_of(record),
    }
