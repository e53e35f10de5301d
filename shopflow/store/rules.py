"""The rules for replacing and deleting documents and for duplicates. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from .types import Deletion, Document, milliseconds

#: The sort key of a purchase without a time: after all others.
_NEVER = datetime.max.replace(tzinfo=timezone.utc)


def outdoes(new: Document, stored: Document, time: str) -> bool:
    """True if `new` replaces `stored`. `replacement` is the same rule as an update of MongoDB.

    Arguments:
        time: The name of the field with the time that decides.
    """
    then = stored.get(time)
    if not isinstance(then, datetime):
        return True
    now, then = milliseconds(new[time]), milliseconds(then)
    return now > then or (now == then and not _came_later(stored.get("source"), new["source"]))


def _came_later(stored: Any, than: Document) -> bool:
    """True if the stored source has a larger offset in the same partition."""
    if not isinstance(stored, dict) or "offset" not in than or "offset" not in stored:
        return False
    same = (stored["topic"], stored["partition"]) == (than["topic"], than["partition"])
    return bool(same and stored["offset"] > than["offset"])


def newest(documents: Sequence[Document], indexes: Iterable[int], time: str) -> list[int]:
    """For each `_id` among these documents, the index of the one that outdoes the others."""
    chosen: dict[str, int] = {}
    for index in indexes:
        name = documents[index]["_id"]
        if name not in chosen or outdoes(documents[index], documents[chosen[name]], time):
            chosen[name] = index
    return list(chosen.values())


def upsert(condition: Document, update: Any) -> Document:
    """The statement of an `update` command that updates one document, or inserts it if there is none."""
    return {"q": condition, "u": update, "upsert": True}


def replacement(document: Document, time: str) -> Document:
    """The atomic update that stores the document unless a stored one is newer.

    The condition is in the update, not in the filter. So a document that loses gives no duplicate key error, and the
    server finds the document by `_id` alone (for `$or` or `$nor` in a filter some servers scan the whole collection).
    """
    newer: Document = {"$gt": [f"${time}", document[time]]}
    if "offset" in document["source"]:
        later = {"$and": [{"$eq": [f"${time}", document[time]]}, _later_than(document["source"])]}
        newer = {"$or": [newer, later]}
    keep_or_replace = {"$cond": [newer, "$$ROOT", {"$literal": document}]}
    return upsert({"_id": document["_id"]}, [{"$replaceWith": keep_or_replace}])


def _later_than(source: Document) -> Document:
    return {
        "$and": [
            {"$eq": ["$source.topic", {"$literal": source["topic"]}]},
            {"$eq": ["$source.partition", source["partition"]]},
            {"$gt": ["$source.offset", source["offset"]]},
        ]
    }


def removals(deletion: Deletion) -> list[Document]:
    """The statements that delete the document, unless it is from a later record of the same partition.

    There is one for each other case: another topic, another partition, an offset that is not larger.
    """
    source = deletion.source
    if "offset" not in source:
        return [{"q": {"_id": deletion.id}, "limit": 1}]
    return [
        {"q": {"_id": deletion.id, "source.topic": {"$ne": source["topic"]}}, "limit": 1},
        {"q": {"_id": deletion.id, "source.partition": {"$ne": source["partition"]}}, "limit": 1},
        {"q": {"_id": deletion.id, "source.offset": {"$not": {"$gt": source["offset"]}}}, "limit": 1},
    ]


def price_document(product: Document) -> Document:
    return _price(product["_id"], product["price"], product["updated_at"], product["source"])


def no_price_document(deletion: Deletion) -> Document:
    return _price(deletion.id, None, deletion.at, deletion.source)


def _price(product_id: str, price: int | None, since: datetime, source: Document) -> Document:
    # The `_id` makes (product_id, since) unique without a second unique index. It is a string, because documents as
    # `_id` are equal only if their fields have the same order. The time's width is fixed: each pair has its own string.
    since = milliseconds(since.astimezone(timezone.utc))
    name = f"{product_id}@{since.isoformat(timespec='milliseconds')}"
    return {"_id": name, "product_id": product_id, "price": price, "since": since, "source": source}


def duplicates(
    documents: Sequence[Document], existing: Collection[int], refused: Collection[int], stored: Mapping[str, Document]
) -> frozenset[int]:
    """The indexes of duplicates: purchases whose `_id` is stored from another record.

    Arguments:
        existing: Indexes of purchases whose `_id` was stored before the insert.
        refused: Indexes of purchases that MongoDB refused.
        stored: The stored documents by `_id`.
    """
    collided = set(existing)
    taken = {one["_id"] for index, one in enumerate(documents) if index not in collided and index not in refused}
    found = set()
    for index in sorted(collided):
        name = documents[index]["_id"]
        if name in taken or stored[name].get("source") != documents[index]["source"]:
            found.add(index)
        else:
            taken.add(name)
    return frozenset(found)


def differs(document: Document, stored: Document) -> bool:
    """True if the stored document has another value in a field of `document`. Its additional fields don't count."""
    return bool(differences(document, stored))


def differences(document: Document, stored: Document) -> list[str]:
    """The fields whose stored value differs from the document's, each with both values as text."""
    found = []
    for name, sent in document.items():
        expected = milliseconds(sent) if isinstance(sent, datetime) else sent
        if (present := stored.get(name)) != expected:
            found.append(f"{name}: stored {as_text(present)}, sent {as_text(expected)}")
    return found


def as_text(value: Any) -> str:
    """A field's value as text, with times in ISO 8601."""
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def without_id(document: Document) -> Document:
    """The document's fields except `_id`."""
    return {name: value for name, value in document.items() if name != "_id"}


def when(purchase: Document) -> tuple[datetime, str]:
    """The key that sorts purchases by time. A purchase without a time (of another program) comes last."""
    time = purchase.get("purchased_at")
    return time if isinstance(time, datetime) else _NEVER, str(purchase["_id"])


def sale_id(period: str, start: datetime | None, product_id: str) -> str:
    """The `_id` of a document in `sales`: period, start and product id, unique together."""
    digits = 10 if period == "day" else 13
    return f"{period} {start.isoformat()[:digits] if start else ''} {product_id}"
