"""What the contenders that are written here put into MongoDB: the same documents as shopflow."""

from __future__ import annotations

from typing import Any

__all__ = ["document"]


def document(purchase: Any, place: Any) -> dict[str, Any]:
    """A purchase as it stands in MongoDB.

    Arguments:
        purchase: The decoded event.
        place: What it came with: `topic`, `partition`, `offset`.
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
