"""The documents of `documents` as events: as a producer sends them, as records, and decoded.

`shop` builds events with unique ids, for shops on real servers.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from shopflow import models
from shopflow.shop.decoding import struct_of
from shopflow.store.types import Document

from . import documents
from .documents import NOON
from .fakes import FakeRecord

Event = dict[str, Any]

_Purchase = struct_of(models.Purchase)
_KEYS = {"products": "product_id", "customers": "customer_id", "purchases": "customer_id"}


def purchase(name: str, customer: str = "anna", **fields: Any) -> Event:
    return _event("purchase_id", documents.purchase(name, customer=customer), fields)


def unpriced(name: str, customer: str = "anna", **fields: Any) -> Event:
    """A purchase without a price."""
    return {key: value for key, value in purchase(name, customer, **fields).items() if key != "price"}


def product(price: int, at: datetime | str = NOON, name: str = "milk", **fields: Any) -> Event:
    return _event("product_id", documents.product(price, name=name), {"updated_at": at, **fields})


def customer(name: str, **fields: Any) -> Event:
    return _event("customer_id", documents.customer(name), fields)


def _event(key: str, document: Document, fields: Event) -> Event:
    named = {name: value for name, value in document.items() if name not in ("_id", "value", "source")}
    event = {key: document["_id"], **named, **fields}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in event.items()}


def record(event: Event | bytes, offset: int = 0, kind: str = "purchases", **fields: Any) -> FakeRecord:
    """The record of an event under its right key, or of other bytes; `fields` are those of the record."""
    key = event.get(_KEYS[kind], "anna") if isinstance(event, dict) else "anna"
    value = json.dumps(event).encode() if isinstance(event, dict) else event
    return FakeRecord(**{"key": key.encode(), "value": value, "offset": offset, "topic": f"shop.{kind}", **fields})


def accepted(
    product_id: str = "milk",
    quantity: int = 2,
    price: int | None = 300,
    purchased_at: datetime = NOON,
    purchase_id: str = "p",
) -> models.Purchase:
    """A purchase as the decoder returns it."""
    return _Purchase(
        purchase_id=purchase_id,
        customer_id="anna",
        product_id=product_id,
        quantity=quantity,
        price=price,
        purchased_at=purchased_at,
    )
