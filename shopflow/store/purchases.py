"""Purchases: inserts, purchases by customer, and every sum over purchases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter

import pymongo

from shopflow.errors import Unavailable

from .connection import BY_ID, FROM_KAFKA, REQUESTS_AT_ONCE, Connection
from .errors import UNENCODABLE, described, is_taken, unencodable
from .rules import differs, duplicates, when, without_id
from .types import CUSTOMERS, PRODUCTS, PURCHASES, REMOVED, Document, Inserted, Sold, Span, Totals

CUSTOMERS_AT_ONCE = 100

#: The time limit of each request for the sales of the last minutes.
_RECENT_SECONDS = 5.0
#: The most bytes of a purchase without its three texts.
_MOST_REST_BYTES = 1_000

_SUMS: Document = {"purchases": {"$sum": 1}, "items": {"$sum": "$quantity"}, "spent": {"$sum": "$value"}}
_SUMS_OF_SUMS: Document = {name: {"$sum": f"${name}"} for name in _SUMS}
_SOLD: Document = {"units": {"$sum": "$quantity"}, "revenue": {"$sum": "$value"}}


class Purchases(Connection):
    """The collection `purchases`."""

    async def insert_purchases(self, documents: Sequence[Document]) -> Inserted:
        """Insert purchases. A purchase whose `_id` is stored already changes nothing. A refused one stops no other.

        One that is stored is not refused, whatever rules the collection has got since.

        Of several with one `_id` in a call, the first is stored and the others are duplicates.
        """
        with self._measured(PURCHASES) as outcomes:
            done = await self._insert_and_compare(documents)
            duplicate, refused = len(done.duplicates), len(done.refused)
            inserted = len(documents) - duplicate - refused
            outcomes |= {"inserted": inserted, "duplicate": duplicate, "refused": refused}
        return done

    async def restore_purchases(self, documents: Sequence[Document]) -> None:
        """Set the fields of stored purchases with the same `_id` and `source` to these. Their other fields stay."""
        operations = [
            {"q": {"_id": document["_id"], "source": document["source"]}, "u": {"$set": without_id(document)}}
            for document in documents
        ]
        with self._measured(PURCHASES, restored=len(documents)):
            await self._write(PURCHASES, operations)

    async def set_apart(self) -> None:
        """Leave all purchases that came from Kafka out of every sum, each until it comes again."""
        apart = {"$set": {"source.origin": REMOVED}}
        async for page in self.pages(PURCHASES):
            await self._write(PURCHASES, [{"q": {"_id": one["_id"], **FROM_KAFKA}, "u": apart} for one in page])

    async def removed(self) -> int:
        """How many purchases are set apart: Kafka no longer has them, and no count has them."""
        async with self._long_request():
            return await self._collection(PURCHASES).count_documents({"source.origin": REMOVED})

    async def purchase_prices(self, purchase_ids: Collection[str]) -> dict[str, int]:
        """The prices, in grosze, of the stored ones among these purchases, by id."""
        found = await self._find(PURCHASES, "_id", purchase_ids, {"price": 1})
        return {purchase["_id"]: purchase["price"] for purchase in found}

    # -- by customer

    async def customers(self, limit: int | None = None) -> AsyncIterator[Document]:
        """Customers by id, each with `purchases`, oldest first. Each purchase has `product_name`, which may be None.

        At most 100 customers are in memory at once.
        """
        # Ranges of ids, not one cursor: MongoDB drops a cursor if the caller pauses for some minutes.
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
        """At most `limit` purchases of a customer, newest first, each with `product_name`, which may be None."""
        of_customer = {"customer_id": {"$eq": customer_id}}
        purchases = await self._read(PURCHASES, of_customer, sort=[("purchased_at", -1), ("_id", -1)], limit=limit)
        await self._add_names(purchases)
        return purchases

    async def purchases_after(self, customer_id: str, after: tuple[datetime, str] | None, limit: int) -> list[Document]:
        """At most `limit` purchases of a customer, by time and id, after this time and id (None: from the first)."""
        # The index has the time, not the id. So most purchases are read in the index's order. Only those of the same
        # time, at the start and the end of a page, are sorted by id.
        of_customer: Document = {"customer_id": {"$eq": customer_id}}

        async def at_time(time: datetime, ids: Document, most: int) -> list[Document]:
            return await self._read(PURCHASES, {**of_customer, "purchased_at": time, **ids}, sort=BY_ID, limit=most)

        found, later = [], of_customer
        if after is not None:
            found = await at_time(after[0], {"_id": {"$gt": after[1]}}, limit)
            later = {**of_customer, "purchased_at": {"$gt": after[0]}}
        if (rest := limit - len(found)) < 1:
            return found
        more = await self._read(PURCHASES, later, sort=[("purchased_at", 1)], limit=rest)
        if len(more) == rest:
            last = more[-1]["purchased_at"]
            more = [purchase for purchase in more if purchase["purchased_at"] != last]
            more.sort(key=itemgetter("purchased_at", "_id"))
            return [*found, *more, *await at_time(last, {}, rest - len(more))]
        return [*found, *sorted(more, key=itemgetter("purchased_at", "_id"))]

    def buyers(self) -> AsyncIterator[Document]:
        """The purchases that came from Kafka, sorted by customer id.

        Each has `customer_id`, `product_id`, `value`, `purchased_at` and `source`.
        """
        fields = {"_id": 0, "customer_id": 1, "product_id": 1, "value": 1, "purchased_at": 1, "source": 1}
        return self._stream(PURCHASES, FROM_KAFKA, fields, sort=[("customer_id", 1)])

    # -- sums

    async def totals(self) -> Totals:
        """Sums over all purchases that came from Kafka. It reads every purchase, so it may take minutes."""
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

    async def bought_before(self, customer_id: str, source: Document) -> tuple[int, int, int]:
        """`(purchases, items, spent)` of the customer's purchases before this source, in its partition.

        Arguments:
            source: The field `source` of a document that came from Kafka.
        """
        condition = {
            "customer_id": {"$eq": customer_id},
            **FROM_KAFKA,
            "source.topic": source["topic"],
            "source.partition": source["partition"],
            "source.offset": {"$lt": source["offset"]},
        }
        stages = [{"$match": condition}, {"$group": {"_id": None, **_SUMS}}]
        found = [sums async for sums in self._aggregate(PURCHASES, stages)]
        return (int(found[0]["purchases"]), int(found[0]["items"]), int(found[0]["spent"])) if found else (0, 0, 0)

    async def units_over_time(
        self, product_id: str, since: datetime | None, until: datetime | None, bucket: str
    ) -> list[Sold]:
        """Sales of the product from `since` on and before `until`, in buckets, by time.

        Arguments:
            bucket: `minute`, `hour` or `day`, in UTC. Buckets without sales are left out.
        """
        start = {"$dateTrunc": {"date": "$purchased_at", "unit": bucket}}
        stages = [_sold_in(product_id, (since, until)), {"$group": {"_id": start, **_SOLD}}, {"$sort": {"_id": 1}}]
        return [_sold(sums["_id"], sums) async for sums in self._aggregate(PURCHASES, stages)]

    async def sold_at(self, product_id: str, spans: Sequence[Span]) -> list[dict[int | None, Sold]]:
        """Sales of the product in each of these spans, from its first time on, before its second, by the price paid.

        The prices are in grosze; None has the purchases whose price is no whole number, as other programs may write.
        """
        # One request per span, by the index: some servers compare every purchase with every boundary of a `$bucket`.
        slots = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def ask(span: Span) -> dict[int | None, Sold]:
            found: dict[int | None, Sold] = {}
            async with slots:
                async for sums in self._aggregate(
                    PURCHASES, [_sold_in(product_id, span), {"$group": {"_id": "$price", **_SOLD}}]
                ):
                    paid = sums["_id"]
                    price = int(paid) if isinstance(paid, int) and not isinstance(paid, bool) else None
                    before = found.get(price, Sold(span[0], 0, 0))
                    sold = _sold(span[0], sums)
                    found[price] = Sold(span[0], before.units + sold.units, before.revenue + sold.revenue)
            return found

        return list(await asyncio.gather(*map(ask, spans)))

    async def units_from_kafka(self, product_id: str, since: datetime, until: datetime) -> int:
        """Units of the product's purchases that came from Kafka, of `since` or later and before `until`."""
        stages = [_sold_in(product_id, (since, until)), {"$match": FROM_KAFKA}, {"$group": {"_id": None, **_SOLD}}]
        return sum([int(sums["units"]) async for sums in self._aggregate(PURCHASES, stages)])

    # -- the last minutes

    async def recently_sold(
        self, product_id: str, since: datetime, topic: str, before: Mapping[int, int], limit: int
    ) -> tuple[list[tuple[int, int, int, int]], list[Document]]:
        """A product's purchases from Kafka that were made at `since` or later, read within seconds or not at all.

        Arguments:
            before: Partition of the topic -> offset. Only purchases that came before it from that partition count.

        Returns:
            `(partition, Unix time, purchases, revenue)` of each second, in no order; the latest ones, at most `limit`.
        """
        second = {"$dateTrunc": {"date": "$purchased_at", "unit": "second"}}
        by_second = {"_id": {"partition": "$source.partition", "second": second}, "purchases": {"$sum": 1}, **_SOLD}
        places = [{"source.partition": partition, "source.offset": {"$lt": end}} for partition, end in before.items()]
        condition = {**FROM_KAFKA, "source.topic": topic, "$or": places}
        stages = [_sold_in(product_id, (since, None)), {"$match": condition}, {"$group": by_second}]
        sums = [
            (of["partition"], int(of["second"].timestamp()), int(one["purchases"]), int(one["revenue"]))
            async for one in self._aggregate(PURCHASES, stages, _RECENT_SECONDS)
            for of in [one["_id"]]
        ]
        condition |= _sold_in(product_id, (since, None))["$match"]
        with pymongo.timeout(_RECENT_SECONDS):
            return sums, await self._read(PURCHASES, condition, sort=[("purchased_at", -1)], limit=limit)

    # -- inserting

    async def _insert_and_compare(self, documents: Sequence[Document]) -> Inserted:
        refused, existing = await self._insert(documents, range(len(documents)))
        if not existing:
            return Inserted(frozenset(), refused)
        stored = await self._stored(documents[index]["_id"] for index in existing)
        if vanished := [index for index in existing if documents[index]["_id"] not in stored]:
            # Deleted between the insert and this read: insert them again.
            refused_now, existing_now = await self._insert(documents, vanished)
            refused |= refused_now
            existing = [index for index in existing if index not in set(vanished)] + existing_now
            stored |= await self._stored(documents[index]["_id"] for index in existing_now)
            if any(documents[index]["_id"] not in stored for index in existing_now):
                raise Unavailable("MongoDB", "purchases are deleted while they are written")
        await self._take_back(documents, existing, stored)
        repeated = duplicates(documents, existing, refused, stored)
        differing = {
            index: found
            for index in existing
            if index not in repeated
            and index not in refused
            and differs(documents[index], found := stored[documents[index]["_id"]])
        }
        known = set(existing)
        return Inserted(repeated, {index: why for index, why in refused.items() if index not in known}, differing)

    async def _take_back(
        self, documents: Sequence[Document], existing: Sequence[int], stored: dict[str, Document]
    ) -> None:
        """Replace those of the stored ones that are set apart, and read them again: another worker may be faster."""
        apart = {name for name, one in stored.items() if (one.get("source") or {}).get("origin") == REMOVED}
        first = {documents[index]["_id"]: documents[index] for index in sorted(existing, reverse=True)}
        if apart:
            operations = [
                {"q": {"_id": name, "source.origin": REMOVED}, "u": {"$set": without_id(first[name])}} for name in apart
            ]
            await self._write(PURCHASES, operations)
            stored |= await self._stored(apart)

    async def _insert(self, documents: Sequence[Document], indexes: Sequence[int]) -> tuple[dict[int, str], list[int]]:
        """Insert these. Returns the refused ones with the reasons, and those whose `_id` is stored already.

        One may be both: MongoDB got the rule that refuses it after it had stored it.
        """
        refused: dict[int, str] = {}
        if not indexes:
            return refused, []
        chosen = [documents[index] for index in indexes]
        try:
            errors = await self._send("insert", PURCHASES, chosen, most_bytes(chosen))
        except UNENCODABLE:
            if not (refused := unencodable(documents, indexes)):
                raise
            # Some may be inserted by now. The next attempt finds them stored, with the same `source`.
            good = [index for index in indexes if index not in refused]
            more, existing = await self._insert(documents, good)
            return refused | more, existing
        existing = []
        for error in errors:
            if is_taken(error):
                existing.append(indexes[error["index"]])
            else:
                refused[indexes[error["index"]]] = described(error)
        if refused:
            stored = await self._stored(documents[index]["_id"] for index in refused)
            existing += [index for index in refused if documents[index]["_id"] in stored]
        return refused, existing

    async def _stored(self, ids: Iterable[str]) -> dict[str, Document]:
        """The stored purchases with these ids, by id, read with majority read concern.

        The server answers the failed insert only when a majority has the documents that it collided with. So this read
        finds them, and no election rolls them back after a purchase was called a duplicate and not counted.
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
        """Add `product_name` to each purchase: the product's present name, or None if there is none."""
        product_ids = {name for one in purchases if isinstance(name := one.get("product_id"), str)}
        found = await self._find(PRODUCTS, "_id", product_ids, {"name": 1})
        names = {product["_id"]: product.get("name") for product in found}
        for purchase in purchases:
            purchase["product_name"] = names.get(str(purchase.get("product_id")))


def most_bytes(purchases: Sequence[Document]) -> int:
    """An upper limit of these purchases' size in BSON, in bytes. UTF-8 has at most 4 bytes per character.

    To measure each document takes as long as to encode it.
    """
    texts = sum([len(one["_id"]) + len(one["customer_id"]) + len(one["product_id"]) for one in purchases])
    return 4 * texts + _MOST_REST_BYTES * len(purchases)


def _sold_in(product_id: str, span: Span) -> Document:
    """The stage that finds a product's purchases in a span; without those of other programs that have no time."""
    limits = {name: time for name, time in zip(("$gte", "$lt"), span, strict=True) if time is not None}
    return {"$match": {"product_id": product_id, "purchased_at": limits or {"$type": "date"}}}


def _sold(since: datetime | None, sums: Document) -> Sold:
    return Sold(since, int(sums.get("units", 0)), int(sums.get("revenue", 0)))
