"""What the listing commands print: pure, from documents to lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from .store import Document
from .verification import Report

__all__ = ["customers", "money", "products", "report"]

_NOTHING_YET = "none yet"


def money(grosze: int) -> str:
    """As people in Poland write it: 1234 -> "12,34 zł"."""
    return f"{grosze // 100},{grosze % 100:02} zł"


def _json(document: Any) -> str:
    return msgspec.json.encode(document).decode()


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def products(documents: Sequence[Document], *, as_json: bool) -> Iterator[str]:
    """A line a product; as JSON one array."""
    if as_json:
        yield _json([_public(document, "product_id") for document in documents])
        return
    if not documents:
        yield f"Products: {_NOTHING_YET}."
    width = max((len(document["name"]) for document in documents), default=0)
    for document in documents:
        price = f"{money(document['price']):>12}"
        yield f"{document['name']:<{width}} {price}  {document['type']}  ({document['_id']})"


async def customers(documents: AsyncIterator[Document], *, as_json: bool) -> AsyncIterator[str]:
    """A customer and below it a line a purchase; as JSON one array, a customer a line."""
    separator, found = "[", False
    async for document in documents:
        found = True
        if as_json:
            yield separator + _json(_public_customer(document))
            separator = ","
        else:
            for line in _customer(document):
                yield line
    if as_json:
        yield "]" if found else "[]"
    elif not found:
        yield f"Customers: {_NOTHING_YET}."


def _customer(document: Document) -> Iterator[str]:
    purchases = document["purchases"]
    yield f"{document['first_name']} {document['last_name']}, {document['address']}  ({document['_id']})"
    for purchase in purchases:
        name = purchase.get("product_name") or purchase["product_id"]
        price, value = money(purchase["price"]), money(purchase["value"])
        yield f"    {_time(purchase['purchased_at'])}  {purchase['quantity']} x {name}, {price} each = {value}"
    if not purchases:
        yield "    nothing bought yet"
    else:
        yield f"    {len(purchases)} purchases, {money(sum(purchase['value'] for purchase in purchases))}"


def _public_customer(document: Document) -> Document:
    purchases = [_public(purchase, "purchase_id") for purchase in document["purchases"]]
    return {**_public(document, "customer_id"), "purchases": purchases}


def _public(document: Document, key: str) -> Document:
    return {
        key: document["_id"],
        **{name: value for name, value in document.items() if name not in {"_id", "purchases"}},
    }


_VERDICTS = {
    0: "Kafka, MongoDB and the tables agree.",
    1: "Kafka, MongoDB and the tables do NOT agree.",
    2: "Could not tell.",
}


def report(found: Report, *, as_json: bool) -> Iterator[str]:
    """What `verify` found."""
    if as_json:
        yield _json(found.as_json())
        return
    yield (
        f"Purchases: {found.kafka.get('purchases', 0)} in Kafka, {found.mongodb.get('purchases', 0)} in MongoDB, "
        f"{found.tables.get('purchases', 0)} in the tables ({found.tables.get('duplicates', 0)} sent twice, "
        f"{found.tables.get('rejected', 0)} not accepted). Dead letters: {found.kafka.get('dead_letters', 0)}."
    )
    for check in found.checks:
        yield f"{'ok ' if check.good else 'NOT'} {check.name}: {check.detail}"
    yield _VERDICTS[found.status]
