"""Vouchers and alerts: written to MongoDB, then published to a topic."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from datetime import datetime

from shopflow.errors import Unavailable

from .connection import BY_ID, REQUESTS_AT_ONCE, Connection
from .errors import described, failure, is_taken
from .rules import upsert, without_id
from .types import ALERTS, VOUCHERS, Document


class Announcements(Connection):
    """The collections `vouchers` and `alerts`."""

    async def insert_vouchers(self, documents: Sequence[Document]) -> frozenset[int]:
        """Insert vouchers. A voucher whose `_id` is stored already changes nothing.

        Returns:
            Indexes of those whose `_id` is stored with another `source`: another event was given the voucher before.
        """
        if not documents:
            return frozenset()
        errors = await self._send("insert", VOUCHERS, documents)
        if others := [error for error in errors if not is_taken(error)]:  # not the event's fault
            raise failure(others[0].get("code"), described(others[0]), VOUCHERS)
        existing = {error["index"]: documents[error["index"]] for error in errors}
        ids = {document["_id"] for document in existing.values()}
        found = await self._find(VOUCHERS, "_id", ids, {"source": 1}, at_once=REQUESTS_AT_ONCE)
        stored = {document["_id"]: document.get("source") for document in found}
        if not ids <= set(stored):
            raise Unavailable("MongoDB", "vouchers are deleted while they are written")
        return frozenset(index for index, document in existing.items() if stored[document["_id"]] != document["source"])

    async def vouchers_from(
        self, topic: str, partition: int, start: int, end: int | None = None, limit: int | None = None
    ) -> list[Document]:
        """At most `limit` vouchers that were given for records from offset `start` on, before `end`, by offset."""
        offsets = {"$gte": start} if end is None else {"$gte": start, "$lt": end}
        condition = {"source.topic": topic, "source.partition": partition, "source.offset": offsets}
        return await self._read(VOUCHERS, condition, sort=[("source.offset", 1)], limit=limit)

    def vouchers(self, customer_id: str | None = None, limit: int | None = None) -> AsyncGenerator[Document, None]:
        """At most `limit` vouchers (None: all) of one customer (None: of all customers), newest first."""
        condition = {} if customer_id is None else {"customer_id": customer_id}
        return self._stream(VOUCHERS, condition, sort=[("issued_at", -1), ("_id", 1)], limit=limit)

    async def insert_alert(self, document: Document) -> Document:
        """Store an alert, unless its `_id` is stored already. Returns the stored document."""
        operation = upsert({"_id": document["_id"]}, {"$setOnInsert": without_id(document)})
        await self._write(ALERTS, [operation])
        found = await self._find(ALERTS, "_id", [document["_id"]])
        if not found:
            raise Unavailable("MongoDB", "alerts are deleted while they are written")
        return found[0]

    async def unpublished_alerts(self, partitions: Collection[int]) -> list[Document]:
        """The alerts whose `unpublished`, the partition of the topic that may lack them, is one of these."""
        return await self._read(ALERTS, {"unpublished": {"$in": list(partitions)}}, sort=BY_ID)

    async def alert_published(self, alert_id: str) -> None:
        """Remove the field `unpublished` of an alert."""
        await self._write(ALERTS, [{"q": {"_id": alert_id}, "u": {"$unset": {"unpublished": ""}}}])

    async def alerts(self, limit: int) -> list[Document]:
        """At most `limit` alerts, newest first."""
        return await self._read(ALERTS, {}, sort=[("at", -1), ("_id", 1)], limit=limit)

    async def alert_since(self, product_id: str, since: datetime) -> Document | None:
        """The product's first alert at this time or later."""
        condition = {"product_id": {"$eq": product_id}, "at": {"$gte": since}}
        found = await self._read(ALERTS, condition, sort=[("at", 1)], limit=1)
        return found[0] if found else None

    async def restore(self, collection: str, documents: Sequence[Document]) -> None:
        """Set these fields in stored documents, and store missing documents. Other fields of stored documents stay.

        Arguments:
            collection: `vouchers` or `alerts`.
        """
        operations = [upsert({"_id": document["_id"]}, {"$set": without_id(document)}) for document in documents]
        await self._write(collection, operations)
