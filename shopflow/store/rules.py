"""Which document wins, which one is deleted, and what is a duplicate: the rules that need no server."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pymongo import DeleteOne, UpdateOne

from .types import Deletion, Document, milliseconds

#: A purchase without a time is sorted after all others.
_NEVER = datetime.max.replace(tzinfo=timezone.utc)


def outdoes(new: Document, stored: Document, time: str) -> bool:
    """True if `new` replaces `stored`. `replacement` gives the server the same rule.

    Arguments:
        time: The field that says which is newer.
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
    """Of these documents, the one of each `_id` that outdoes the others."""
    chosen: dict[str, int] = {}
    for index in indexes:
        name = documents[index]["_id"]
        if name not in chosen or outdoes(documents[index], documents[chosen[name]], time):
            chosen[name] = index
    return list(chosen.values())


def replacement(document: Document, time: str) -> UpdateOne:
    """The update that stores the document unless one is stored that it does not outdo; atomic.

    The condition is in the update, not in the filter: nothing has to be concluded from a failed upsert, and the server
    finds the document by its `_id` alone (some look through the whole collection for a filter with `$or` or `$nor`).
    """
    newer: Document = {"$gt": [f"${time}", document[time]]}
    if "offset" in document["source"]:
        later = {"$and": [{"$eq": [f"${time}", document[time]]}, _later_than(document["source"])]}
        newer = {"$or": [newer, later]}
    keep_or_replace = {"$cond": [newer, "$$ROOT", {"$literal": document}]}
    return UpdateOne({"_id": document["_id"]}, [{"$replaceWith": keep_or_replace}], upsert=True)


def _later_than(source: Document) -> Document:
    return {
        "$and": [
            {"$eq": ["$source.topic", {"$literal": source["topic"]}]},
            {"$eq": ["$source.partition", source["partition"]]},
            {"$gt": ["$source.offset", source["offset"]]},
        ]
    }


def removals(deletion: Deletion) -> list[DeleteOne]:
    """The operations that delete the document, unless it came later in the same partition.

    One for each of the three ways not to have: another topic, another partition, an offset that isn't larger.
    """
    source = deletion.source
    if "offset" not in source:
        return [DeleteOne({"_id": deletion.id})]
    return [
        DeleteOne({"_id": deletion.id, "source.topic": {"$ne": source["topic"]}}),
        DeleteOne({"_id": deletion.id, "source.partition": {"$ne": source["partition"]}}),
        DeleteOne({"_id": deletion.id, "source.offset": {"$not": {"$gt": source["offset"]}}}),
    ]


def price_document(product: Document) -> Document:
    return _price(product["_id"], product["price"], product["updated_at"], product["source"])


def no_price_document(deletion: Deletion) -> Document:
    return _price(deletion.id, None, deletion.at, deletion.source)


def _price(product_id: str, price: int | None, since: datetime, source: Document) -> Document:
    # The `_id` makes (product_id, since) unique without a second unique index. A string, because documents as `_id` are
    # equal only with their fields in the same order; the time has a fixed width, so no two pairs give the same string.
    since = milliseconds(since.astimezone(timezone.utc))
    name = f"{product_id}@{since.isoformat(timespec='milliseconds')}"
    return {"_id": name, "product_id": product_id, "price": price, "since": since, "source": source}


def duplicates(
    documents: Sequence[Document], existing: Collection[int], refused: Collection[int], stored: Mapping[str, Document]
) -> frozenset[int]:
    """Which of the purchases whose `_id` was taken are not what is stored under it.

    Arguments:
        existing: Indexes of those whose `_id` was taken.
        refused: Indexes of those that are not stored at all.
        stored: The stored documents by `_id`.
    """
    met = set(existing)
    taken = {document["_id"] for index, document in enumerate(documents) if index not in met and index not in refused}
    found = set()
    for index in sorted(met):
        name = documents[index]["_id"]
        if name in taken or stored[name].get("source") != documents[index]["source"]:
            found.add(index)
        else:
            taken.add(name)
    return frozenset(found)


def differs(document: Document, stored: Document) -> bool:
    """True if a field of the document is stored with another value. Fields that only the stored one has don't count."""
    return bool(differences(document, stored))


def differences(document: Document, stored: Document) -> list[str]:
    """The fields of the document that are stored with another value, each in words for people."""
    found = []
    for name, sent in document.items():
        expected = milliseconds(sent) if isinstance(sent, datetime) else sent
        if (there := stored.get(name)) != expected:
            found.append(f"{name}: stored {shown(there)}, sent {shown(expected)}")
    return found


def shown(value: Any) -> str:
    """A field's value in words for people."""
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def without_id(document: Document) -> Document:
    """The document's fields but for `_id`."""
    return {name: value for name, value in document.items() if name != "_id"}


def when(purchase: Document) -> tuple[datetime, str]:
    """The key that sorts purchases by time. One of another program that has no time comes last."""
    time = purchase.get("purchased_at")
    return time if isinstance(time, datetime) else _NEVER, str(purchase["_id"])


def sale_id(period: str, start: datetime | None, product_id: str) -> str:
    """The `_id` of a sale: period, start and product in one text that no other sale has."""
    digits = 10 if period == "day" else 13
    return f"{period} {start.isoformat()[:digits] if start else ''} {product_id}"
