"""The documents of the contenders that are written here, which are those of shopflow."""

from __future__ import annotations

from typing import Any

__all__ = ["document"]


def document(purchase: Any, place: Any) -> dict[str, Any]:
    """The document of a purchase.

    Arguments:
        purchase: The decoded event.
        place: Has the record's `topic`, `partition` and `offset`.
    """
    return {
        "_id": purchase.purchase_id,
        "customer_id": purchase.customer_id,
        "product_id": purchase.product_id,
        "quantity": purchase.quantity,
        "price": purchase.price,
        "value": purchase.quantity * purchase.price,
        "purchased_at": purchase.purchased_at,
        "source": {
            "origin": "kafka",
            "topic": place.topic,
            "partition": place.partition,
            "offset": place.offset,
        },
    }
