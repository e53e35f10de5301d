"""Purchases, what each customer bought, and every sum over purchases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from datetime import datetime
from operator import itemgetter

from pymongo import UpdateOne

from shopflow.errors import Unavailable

from .connection import BY_ID, FROM_KAFKA, REQUESTS_AT_ONCE, WRITE_CONCERN, Connection
from .errors import UNENCODABLE, described, documents_errors, is_taken, translated, unencodable, written
from .rules import differs, duplicates, when, without_id
from .types import CUSTOMERS, PRODUCTS, PURCHASES, Document, Inserted, Sold, Span, Totals

CUSTOMERS_AT_ONCE = 100

#: Less than any server's maxMessageSizeBytes (48,000,000), and the most that a purchase has beside its three texts.
_MAX_MESSAGE_BYTES = 32_000_000
_MOST_REST_BYTES = 1_000

_SUMS: Document = {"purchases": {"$sum": 1}, "items": {"$sum": "$quantity"}, "spent": {"$sum": "$value"}}
_SUMS_OF_SUMS: Document = {name: {"$sum": f"${name}"} for name in _SUMS}
_SOLD: Document = {"units": {"$sum": "$quantity"}, "revenue": {"$sum": "$value"}}


class Purchases(Connection):
    """What is in `purchases`."""

    async def insert_purchases(self, documents: Sequence[Document]) -> Inserted:
        """Store purchases. One whose `_id` is stored already changes nothing; one that is refused stops no other.

        Of several with one `_id` in a call the first is stored, the others are duplicates.
        """
        with self._measured(PURCHASES) as outcomes:
            done = await self._insert_and_compare(documents)
            duplicate, refused = len(done.duplicates), len(done.refused)
            inserted = len(documents) - duplicate - refused
            outcomes |= {"inserted": inserted, "duplicate": duplicate, "refused": refused}
        return done

    async def restore_purchases(self, documents: Sequence[Document]) -> None:
        """Give stored purchases of the same `source` the fields of these; fields of others' in them stay."""
        operations = [
            UpdateOne({"_id": document["_id"], "source": document["source"]}, {"$set": without_id(document)})
            for document in documents
        ]
        with self._measured(PURCHASES, restored=len(documents)):
            await self._write(PURCHASES, operations)

    async def purchase_prices(self, purchase_ids: Collection[str]) -> dict[str, int]:
        """The prices, in grosze, of those purchases that are stored."""
        found = await self._find(PURCHASES, "_id", purchase_ids, {"price": 1})
        return {purchase["_id"]: purchase["price"] for purchase in found}

    # -- what a customer bought

    async def customers(self, limit: int | None = None) -> AsyncIterator[Document]:
        """Customers by id, each with `purchases`, oldest first, each of these with `product_name` if it is known.

        No more than 100 customers are in memory at once.
        """
        # By ranges of ids, not by one cursor: that would be gone when the reader pauses for some minutes.
        condition: Document = {}
        while limit is None or limit > 0:
            size = CUSTOMERS_AT_ONCE if limit is None else min(limit, CUSTOMERS_AT_ONCE)
            page = await self._read(CUSTOMERS, condition, sort=BY_ID, limit=size)
            purchases = await self._purchases_of([customer["_id"] for customer in page])
            for customer in page:
                yield {**customer, "purchases": purchases.get(customer["_id"], [])}
            if len(page) < size:
                return
            condition = {"_id": {"$gt": page[-1]["_id"]}}
            limit = None if limit is None else limit - size

    async def last_purchases(self, customer_id: str, limit: int) -> list[Document]:
        """At most `limit` purchases of a customer, newest first, each with `product_name` if it is known."""
        of_customer = {"customer_id": {"$eq": customer_id}}
        purchases = await self._read(PURCHASES, of_customer, sort=[("purchased_at", -1), ("_id", -1)], limit=limit)
        await self._add_names(purchases)
        return purchases

    async def purchases_after(self, customer_id: str, after: tuple[datetime, str] | None, limit: int) -> list[Document]:
        """At most `limit` purchases of a customer, by time and id, those behind this time and id (None: all)."""
        # The index has the time, not the id. So the many of later times are read in the index's order, and only those
        # of one moment, where a page begins or ends, are put in the order of their ids.
        of_customer: Document = {"customer_id": {"$eq": customer_id}}

        async def of_moment(time: datetime, behind: Document, most: int) -> list[Document]:
            return await self._read(PURCHASES, {**of_customer, "purchased_at": time, **behind}, sort=BY_ID, limit=most)

        found, later = [], of_customer
        if after is not None:
            found = await of_moment(after[0], {"_id": {"$gt": after[1]}}, limit)
            later = {**of_customer, "purchased_at": {"$gt": after[0]}}
        if (rest := limit - len(found)) < 1:
            return found
        more = await self._read(PURCHASES, later, sort=[("purchased_at", 1)], limit=rest)
        if len(more) == rest:
            last = more[-1]["purchased_at"]
            more = [purchase for purchase in more if purchase["purchased_at"] != last]
            more.sort(key=itemgetter("purchased_at", "_id"))
            return [*found, *more, *await of_moment(last, {}, rest - len(more))]
        return [*found, *sorted(more, key=itemgetter("purchased_at", "_id"))]

    def buyers(self) -> AsyncIterator[Document]:
        """The purchases that came from Kafka, those of a customer one after the other: in the order of the ids.

        Each has `customer_id`, `product_id`, `value`, `purchased_at` and `source`.
        """
        fields = {"_id": 0, "customer_id": 1, "product_id": 1, "value": 1, "purchased_at": 1, "source": 1}
        return self._stream(PURCHASES, FROM_KAFKA, fields, sort=[("customer_id", 1)])

    # -- sums

    async def totals(self) -> Totals:
        """Sums over all purchases that came from Kafka. Takes long when there are many."""
        by_customer = {"$group": {"_id": "$customer_id", **_SUMS}}
        altogether = {"$group": {"_id": None, "customers": {"$sum": 1}, **_SUMS_OF_SUMS}}
        stages = [{"$match": FROM_KAFKA}, by_customer, altogether]
        found = [sums async for sums in self._aggregate(PURCHASES, stages)]
        return Totals(**{name: int(found[0][name]) for name in (*_SUMS, "customers")}) if found else Totals()

    def sold(self) -> AsyncIterator[tuple[str, int, int, int]]:
        """`(product_id, purchases, units, revenue)` of the purchases that came from Kafka, in no order."""
        return self._sums_by("product_id")

    def counts(self) -> AsyncIterator[tuple[str, int, int, int]]:
        """`(customer_id, purchases, items, spent)` of the purchases that came from Kafka, in no order."""
        return self._sums_by("customer_id")

    async def _sums_by(self, name: str) -> AsyncIterator[tuple[str, int, int, int]]:
        stages = [{"$match": FROM_KAFKA}, {"$group": {"_id": f"${name}", **_SUMS}}]
        async for sums in self._aggregate(PURCHASES, stages):
            yield sums["_id"], int(sums["purchases"]), int(sums["items"]), int(sums["spent"])

    async def units_over_time(
        self, product_id: str, since: datetime | None, until: datetime | None, bucket: str
    ) -> list[Sold]:
        """What was sold of the product from `since` on and before `until`, by time.

        Arguments:
            bucket: `minute`, `hour` or `day`, in UTC; those in which nothing was sold are left out.
        """
        start = {"$dateTrunc": {"date": "$purchased_at", "unit": bucket}}
        stages = [_sold_in(product_id, (since, until)), {"$group": {"_id": start, **_SOLD}}, {"$sort": {"_id": 1}}]
        return [_sold(sums["_id"], sums) async for sums in self._aggregate(PURCHASES, stages)]

    async def units_in(self, product_id: str, spans: Sequence[Span]) -> list[Sold]:
        """What was sold of the product in each of these spans: from its first time on, before its second."""
        # A request each, by the index: some servers compare every purchase with every boundary of a `$bucket`.
        places = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def ask(span: Span) -> Sold:
            stages = [_sold_in(product_id, span), {"$group": {"_id": None, **_SOLD}}]
            async with places:
                found = [sums async for sums in self._aggregate(PURCHASES, stages)]
            return _sold(span[0], found[0] if found else {})

        return list(await asyncio.gather(*map(ask, spans)))

    async def units_from_kafka(self, product_id: str, since: datetime, until: datetime) -> int:
        """Units of the product's purchases that came from Kafka, of `since` or later and before `until`."""
        stages = [_sold_in(product_id, (since, until)), {"$match": FROM_KAFKA}, {"$group": {"_id": None, **_SOLD}}]
        return sum([int(sums["units"]) async for sums in self._aggregate(PURCHASES, stages)])

    # -- how

    async def _insert_and_compare(self, documents: Sequence[Document]) -> Inserted:
        refused, existing = await self._insert(documents, range(len(documents)))
        if not existing:
            return Inserted(frozenset(), refused)
        stored = await self._stored(documents[index]["_id"] for index in existing)
        if vanished := [index for index in existing if documents[index]["_id"] not in stored]:
            # Deleted since the insert met them: then they are not there, and have to be.
            refused_now, existing_now = await self._insert(documents, vanished)
            refused |= refused_now
            existing = [index for index in existing if index not in set(vanished)] + existing_now
            stored |= await self._stored(documents[index]["_id"] for index in existing_now)
            if any(documents[index]["_id"] not in stored for index in existing_now):
                raise Unavailable("MongoDB", "purchases are deleted while they are written")
        repeated = duplicates(documents, existing, refused, stored)
        differing = {
            index: found
            for index in existing
            if index not in repeated and differs(documents[index], found := stored[documents[index]["_id"]])
        }
        return Inserted(repeated, refused, differing)

    async def _insert(self, documents: Sequence[Document], indexes: Sequence[int]) -> tuple[dict[int, str], list[int]]:
        """Insert these; returns which were refused and why, and which met a document with their `_id`."""
        refused: dict[int, str] = {}
        if not indexes:
            return refused, []
        chosen = [documents[index] for index in indexes]
        try:
            errors = await self._insert_all(chosen)
        except UNENCODABLE:
            if not (refused := unencodable(documents, indexes)):
                raise
            # Some may be stored by now; these are met again as their own.
            good = [index for index in indexes if index not in refused]
            more, existing = await self._insert(documents, good)
            return refused | more, existing
        existing = []
        for error in errors:
            if is_taken(error):
                existing.append(indexes[error["index"]])
            else:
                refused[indexes[error["index"]]] = described(error)
        return refused, existing

    async def _insert_all(self, purchases: Sequence[Document]) -> list[Document]:
        """Returns the errors of single documents.

        `insert_many` splits what is too much for one message, for which it looks at each document in Python; that takes
        as long as encoding it. What surely fits is sent as the one command that it is.
        """
        if most_bytes(purchases) > _MAX_MESSAGE_BYTES:
            return await written(self._collection(PURCHASES).insert_many(purchases, ordered=False))
        command = {"insert": PURCHASES, "documents": purchases, "ordered": False}
        with translated():
            database = self._connected.get_database(self._database)
            reply = await database.command({**command, "writeConcern": WRITE_CONCERN.document})
        return documents_errors(reply.get("writeErrors", []), reply.get("writeConcernError"))

    async def _stored(self, ids: Iterable[str]) -> dict[str, Document]:
        """The stored purchases with these ids.

        A majority has what is read here. The server confirmed the insert, failed as it was, only when a majority had
        all that it met. So the read sees it, and no election takes it back after we called a purchase a duplicate
        and didn't count it.
        """
        return {document["_id"]: document for document in await self._find(PURCHASES, "_id", set(ids))}

    async def _purchases_of(self, customer_ids: Sequence[str]) -> dict[str, list[Document]]:
        found = await self._find(PURCHASES, "customer_id", customer_ids)
        await self._add_names(found)
        purchases: dict[str, list[Document]] = {}
        for purchase in sorted(found, key=when):
            purchases.setdefault(purchase["customer_id"], []).append(purchase)
        return purchases

    async def _add_names(self, purchases: Sequence[Document]) -> None:
        """Add to each the name that its product has now, as `product_name`; None: it has none."""
        product_ids = {name for one in purchases if isinstance(name := one.get("product_id"), str)}
        found = await self._find(PRODUCTS, "_id", product_ids, {"name": 1})
        names = {product["_id"]: product.get("name") for product in found}
        for purchase in purchases:
            purchase["product_name"] = names.get(str(purchase.get("product_id")))


def most_bytes(purchases: Sequence[Document]) -> int:
    """A size in BSON that these purchases do not exceed: UTF-8 has at most 4 bytes a character."""
    texts = sum([len(one["_id"]) + len(one["customer_id"]) + len(one["product_id"]) for one in purchases])
    return 4 * texts + _MOST_REST_BYTES * len(purchases)


def _sold_in(product_id: str, span: Span) -> Document:
    """The stage that finds them; a purchase of another program may have no time."""
    limits = {name: time for name, time in zip(("$gte", "$lt"), span, strict=True) if time is not None}
    return {"$match": {"product_id": product_id, "purchased_at": limits or {"$type": "date"}}}


def _sold(since: datetime | None, sums: Document) -> Sold:
    return Sold(since, int(sums.get("units", 0)), int(sums.get("revenue", 0)))
