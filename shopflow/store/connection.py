"""MongoDB: what the events become there, and how it is read. The only module that imports pymongo.

Times: MongoDB keeps milliseconds, Python microseconds. `milliseconds` cuts the rest off wherever Python compares times,
as the driver does on the way to the server, so that both come to the same answer. Two changes within one millisecond
are simultaneous to shopflow: their place in the topic decides, and a price counts from the start of its millisecond.
"""

from __future__ import annotations

import asyncio
import re
import warnings
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from operator import itemgetter
from typing import Any, Protocol

import bson
import pymongo
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.errors import BSONError
from bson.int64 import Int64
from pymongo import AsyncMongoClient, DeleteOne, ReadPreference, UpdateOne, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from faust_batches import Outage, retrying
from shopflow.errors import Refused, Unavailable

__all__ = [
    "BEGINNING",
    "REQUESTS_AT_ONCE",
    "Deletion",
    "Document",
    "Inserted",
    "MongoStore",
    "PartSale",
    "PriceHistory",
    "Sold",
    "Span",
    "Store",
    "Totals",
    "Writes",
    "sale_id",
    "when",
]

Document = dict[str, Any]

PRODUCTS, CUSTOMERS, PURCHASES, PRICES = "products", "customers", "purchases", "prices"
#: What was sold, and how far each partition of the purchases is in it.
SALES, SALES_STATE = "sales", "sales_state"
VOUCHERS, ALERTS = "vouchers", "alerts"

#: The field that says which of two documents with one `_id` is the newer.
TIME = {PRODUCTS: "updated_at", CUSTOMERS: "registered_at", PRICES: "since"}

INDEXES = (
    (PURCHASES, [("customer_id", 1), ("purchased_at", 1)]),
    (PURCHASES, [("product_id", 1), ("purchased_at", 1)]),
    (PRICES, [("product_id", 1), ("since", 1)]),
    (SALES, [("period", 1), ("start", 1)]),
    (SALES, [("product_id", 1), ("period", 1), ("start", 1)]),
    (PRODUCTS, [("stock", 1)]),
    (VOUCHERS, [("issued_at", -1), ("_id", 1)]),
    (VOUCHERS, [("customer_id", 1), ("issued_at", -1), ("_id", 1)]),
    (ALERTS, [("at", -1), ("_id", 1)]),
)

#: MongoDB's limit, less what an update has around the document.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024 - 16 * 1024
#: Ids asked for at once: some servers compare every document with every id of a `$in`.
IDS_AT_ONCE = 100
#: Requests under way at once where many documents are read by their ids.
REQUESTS_AT_ONCE = 4
CUSTOMERS_AT_ONCE = 100
#: Documents at once where a whole collection is read in its order.
PAGE_SIZE = 2_000
#: A sum over all purchases, or their order, sends nothing until it is done: the socket's timeout is too short for it.
SUM_SECONDS = 3_600.0

#: What the URI may set otherwise.
_DEFAULTS = {
    "appname": "shopflow",
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 30_000,
}

_WRITE_CONCERN = WriteConcern("majority", j=True)

#: Less than any server's maxMessageSizeBytes (48,000,000), and the most that a purchase has beside its three texts.
_MAX_MESSAGE_BYTES = 32_000_000
_MOST_REST_BYTES = 1_000

_DUPLICATE_KEY = 11000
_AUTHENTICATION = {18, 8000}
_OTHER_INDEX = {85, 86}
#: Errors of single documents that say nothing about the document: no rights, timeouts, conflicts, elections, shutdowns,
#: a full disk, no memory. Anything else that the server says about one document, it will say again.
_NOT_THE_DOCUMENT = {
    *(
        6,
        7,
        13,
        18,
        24,
        43,
        46,
        50,
        64,
        74,
        79,
        89,
        91,
        100,
        112,
        133,
        134,
        136,
        146,
        175,
        189,
        202,
        225,
        234,
        237,
        246,
    ),
    *(251, 262, 290, 317, 358, 391, 402, 463, 9001, 10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436, 14031),
}


@dataclass(frozen=True)
class Inserted:
    """What became of the purchases of one call; the rest of them are stored, now or by an earlier try of the same."""

    duplicates: frozenset[int] = frozenset()
    """Indexes of those whose `_id` is taken by another event: sent twice, or written by `--direct`."""

    refused: dict[int, str] = field(default_factory=dict)
    """Indexes of those that MongoDB will never take, each with the reason."""

    differing: dict[int, Document] = field(default_factory=dict)
    """Indexes of those that an earlier try has stored, but not as they are now; each with what is stored."""


@dataclass(frozen=True)
class Deletion:
    """A product or customer that is no more since `at` (UTC); `source` is where that was said."""

    id: str
    at: datetime
    source: Document


@dataclass(frozen=True)
class Totals:
    """Sums over the purchases that came from Kafka."""

    purchases: int = 0
    items: int = 0
    spent: int = 0
    """Grosze."""

    customers: int = 0
    """Those who bought something."""


@dataclass(frozen=True)
class PartSale:
    """What one partition of the purchases sold of a product in a period, up to a position."""

    period: str
    """total, day or hour."""

    start: datetime | None
    """When the period begins, UTC; None: the total."""

    product_id: str
    purchases: int
    units: int
    revenue: int
    """Grosze."""

    position: tuple[int, int]
    """Era and offset: what has a larger one is the later."""


@dataclass(frozen=True)
class PriceHistory:
    """Every price that a product ever had."""

    prices: tuple[tuple[datetime, int | None], ...]
    """`(since, grosze)`, oldest first; None: from then on it was not for sale."""

    def at(self, time: datetime) -> int | None:
        """The price in grosze in force at `time`; None if it was deleted then, or never had one.

        Before the first one, the first known price counts: events may come a little late.
        """
        position = bisect_right(self.prices, milliseconds(time), key=itemgetter(0))
        if position:
            return self.prices[position - 1][1]
        return self.first

    @property
    def first(self) -> int | None:
        """The first known price, which counts before it was known; None if there never was one."""
        return next((price for _, price in self.prices if price is not None), None)


#: From when on, and until when; None: without a limit.
Span = tuple[datetime | None, datetime | None]


@dataclass(frozen=True)
class Sold:
    """What was sold of a product, in Kafka's purchases and in direct ones, from a time on."""

    since: datetime | None
    """None: from the first purchase on."""

    units: int
    revenue: int
    """Grosze, as the purchases say."""


class Writes(Protocol):
    """The writing part of `Store`, which says more."""

    async def insert_purchases(self, documents: Sequence[Document]) -> Inserted:
        """Store purchases. One whose `_id` is stored already changes nothing; one that is refused stops no other.

        Of several with one `_id` in a call the first is stored, the others are duplicates.
        """

    async def restore_purchases(self, documents: Sequence[Document]) -> None:
        """Give stored purchases of the same `source` the fields of these; fields of others' in them stay."""

    async def upsert_products(self, documents: Sequence[Document]) -> dict[int, str]:
        """Store products, and every price that they bring. Returns what was refused, by index, with the reason.

        The newest `updated_at` wins, whatever the order of the calls and however many workers make them; of equal ones
        the later, except that one partition's smaller offset never wins over its larger.
        """

    async def upsert_customers(self, documents: Sequence[Document]) -> dict[int, str]:
        """Store customers; as `upsert_products`, the time being `registered_at`."""

    async def delete_products(self, deletions: Sequence[Deletion]) -> None:
        """Delete products, unless what is stored came later in the same partition. They have no price from `at` on."""

    async def delete_customers(self, deletions: Sequence[Deletion]) -> None:
        """Delete customers, unless what is stored came later in the same partition. Their purchases stay."""


class Store(Writes, Protocol):
    """What shopflow needs of its database.

    Every coroutine and iterator raises `Unavailable` when the server is away, refuses the login or could not confirm a
    write. The same call can be made again, any number of times: all writes are idempotent. When a write returns, its
    documents are in the journal of a majority of the servers. Documents are those of the contract, times in UTC;
    they are not changed.
    """

    async def prepare(self) -> None:
        """Create the indexes that are missing.

        Raises:
            Refused: An index of that name exists, and it is another.
        """

    async def ping(self) -> None:
        """Return when the server answers."""

    async def close(self) -> None:
        """Close the connections. May be called twice."""

    async def price_history(self, product_ids: Collection[str]) -> dict[str, PriceHistory]:
        """The prices of those products that are known.

        A product that another program put there, without a history, has the price that it has.
        """

    async def units_over_time(
        self, product_id: str, since: datetime | None, until: datetime | None, bucket: str
    ) -> list[Sold]:
        """What was sold of the product from `since` on and before `until`, by time.

        Arguments:
            bucket: `hour` or `day`, in UTC; those in which nothing was sold are left out.
        """

    async def units_in(self, product_id: str, spans: Sequence[Span]) -> list[Sold]:
        """What was sold of the product in each of these spans: from its first time on, before its second."""

    async def purchase_prices(self, purchase_ids: Collection[str]) -> dict[str, int]:
        """The prices, in grosze, of those purchases that are stored."""

    async def products(self) -> list[Document]:
        """All products, by name."""

    async def product_ids(self, limit: int) -> list[str]:
        """At most `limit` ids, in their order."""

    async def customer_ids(self, limit: int) -> list[str]:
        """At most `limit` ids, in their order."""

    async def products_after(self, after: str, limit: int) -> list[Document]:
        """At most `limit` products, by id, those behind this id ("": from the first on)."""

    async def purchases_after(self, customer_id: str, after: tuple[datetime, str] | None, limit: int) -> list[Document]:
        """At most `limit` purchases of a customer, by time and id, those behind this time and id (None: all)."""

    def customers(self, limit: int | None = None) -> AsyncIterator[Document]:
        """Customers by id, each with `purchases`, oldest first, each of these with `product_name` if it is known.

        No more than 100 customers are in memory at once.
        """

    async def totals(self) -> Totals:
        """Sums over all purchases that came from Kafka. Takes long when there are many."""

    def sold(self) -> AsyncIterator[tuple[str, int, int, int]]:
        """`(product_id, purchases, units, revenue)` of the purchases that came from Kafka, in no order."""

    def counts(self) -> AsyncIterator[tuple[str, int, int, int]]:
        """`(customer_id, purchases, items, spent)` of the purchases that came from Kafka, in no order."""

    async def registered(self, customer_ids: Collection[str]) -> set[str]:
        """Which of these customers are registered."""

    async def last_purchases(self, customer_id: str, limit: int) -> list[Document]:
        """At most `limit` purchases of a customer, newest first, each with `product_name` if it is known."""

    async def documents(self, collection: str, ids: Collection[str]) -> dict[str, Document]:
        """The documents of `products`, `customers` or `purchases` that have these ids, by id, as they are."""

    def sources(self, collection: str) -> AsyncIterator[tuple[str, Document]]:
        """`_id` and `source` of each document of a collection that came from Kafka, in no order."""

    def pages(self, collection: str, after: str = "") -> AsyncIterator[list[Document]]:
        """The documents of a collection by `_id`, as they are, some at a time; those behind the id `after`.

        After `Unavailable`, which may also mean that the reader paused for longer than MongoDB keeps a cursor, one can
        go on from the last id. Only those whose `_id` is a string, as shopflow's are.
        """

    async def sizes(self) -> dict[str, int]:
        """How many documents each collection has: products, customers, purchases, prices."""

    async def insert_vouchers(self, documents: Sequence[Document]) -> frozenset[int]:
        """Store vouchers; one whose `_id` is stored already changes nothing.

        Returns:
            Indexes of those that another event had before: their `_id` is stored with another `source`.
        """

    def vouchers(self, customer_id: str | None = None, limit: int | None = None) -> AsyncGenerator[Document, None]:
        """At most `limit` vouchers, of all customers or of this one, the newest first."""

    def buyers(self) -> AsyncIterator[Document]:
        """The purchases that came from Kafka, those of a customer one after the other: in the order of the ids.

        Each has `customer_id`, `product_id`, `value`, `purchased_at` and `source`.
        """

    def registrations(self) -> AsyncIterator[Document]:
        """`_id`, `city` and `registered_at` of the customers that came from Kafka, in no order."""

    async def put_sales(self, partition: int, sales: Sequence[PartSale]) -> None:
        """Bring the sales of a partition up to date. What is known at a later position stays."""

    async def sales_position(self, partition: int) -> tuple[int, int]:
        """Up to which era and offset the sales of a partition are all there; (-1, -1): nothing is known."""

    async def reached_sales(self, partition: int, position: tuple[int, int]) -> None:
        """Say that the sales of a partition are all there, up to this position. A later one stays."""

    def sales(self, period: str, since: datetime | None = None) -> AsyncIterator[Document]:
        """What was sold in the periods of this length that begin at `since` or later, over all partitions, by start.

        Documents with `product_id`, `period`, `start`, `purchases`, `units`, `revenue`.
        """

    async def best_sellers(self, period: str, start: datetime | None, limit: int) -> list[Document]:
        """The products of which most units were sold in this one period, the most first; documents as of `sales`."""

    async def clear_sales(self) -> None:
        """Forget all sales: they are counted anew."""

    async def sold_ever(self, product_ids: Collection[str]) -> dict[str, int]:
        """Units of `sales`, in total, of those products that have any."""

    async def sold_from(self, product_id: str, hour: datetime) -> int:
        """Units of `sales` of a product in this hour (its beginning, UTC) and all later ones."""

    async def units_from_kafka(self, product_id: str, since: datetime, until: datetime) -> int:
        """Units of the product's purchases that came from Kafka, of `since` or later and before `until`."""

    async def stocked(self, topic: str, partitions: Collection[int], after: str, limit: int) -> list[Document]:
        """At most `limit` products that carry a stock and came from these partitions, by id, those behind this id."""

    async def insert_alert(self, document: Document) -> Document:
        """Store an alert, unless one with its `_id` is stored. Returns the one that is."""

    async def put_back(self, collection: str, documents: Sequence[Document]) -> None:
        """Make documents what they were, and those that are gone anew; fields that only the stored one has stay."""

    async def alerts(self, limit: int) -> list[Document]:
        """At most `limit` alerts, the newest first."""


def sale_id(period: str, start: datetime | None, product_id: str) -> str:
    """The `_id` of a sale: no two have the same, and it says what it is."""
    digits = 10 if period == "day" else 13
    return f"{period} {start.isoformat()[:digits] if start else ''} {product_id}"


class MongoStore:
    """The Store in a MongoDB database. `connect` comes first.

    Arguments:
        database: The database's name.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._client: AsyncMongoClient[Document] | None = None

    def connect(self, uri: str) -> None:
        """Say where MongoDB is. Does no I/O: the first call of another method does.

        Raises:
            Refused: The URI is malformed; the message names `mongodb.uri` and never holds a password.
        """
        self._client = _client(uri)

    async def prepare(self) -> None:
        for name, keys in INDEXES:
            collection = self._collection(name)
            with _translated():
                if any(index["key"] == keys for index in (await collection.index_information()).values()):
                    continue
                try:
                    await collection.create_index(keys)
                except OperationFailure as error:
                    if error.code in _OTHER_INDEX:
                        raise Refused(f"MongoDB: collection {name}: {_reason(error)}") from error
                    raise

    async def ping(self) -> None:
        with _translated():
            await self._connected.admin.command("ping")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    # -- sales

    async def put_sales(self, partition: int, sales: Sequence[PartSale]) -> None:
        await self._update(SALES, [_part_update(partition, sale) for sale in sales])

    async def sales_position(self, partition: int) -> tuple[int, int]:
        with _translated():
            found = await self._collection(SALES_STATE).find_one({"_id": partition})
        return (found["era"], found["offset"]) if found else (-1, -1)

    async def reached_sales(self, partition: int, position: tuple[int, int]) -> None:
        document = {"_id": partition, "era": position[0], "offset": position[1]}
        later = _not_before({"era": "$era", "offset": "$offset"}, position)
        update = [{"$replaceWith": {"$cond": [later, {"$literal": document}, "$$ROOT"]}}]
        await self._update(SALES_STATE, [UpdateOne({"_id": partition}, update, upsert=True)])

    async def sales(self, period: str, since: datetime | None = None) -> AsyncIterator[Document]:
        found = {"period": period} if since is None else {"period": period, "start": {"$gte": since}}
        cursor = self._collection(SALES).find(found, {"parts": 0}).sort("start", 1)
        async for document in _each(cursor):
            yield _without_id(document)

    async def best_sellers(self, period: str, start: datetime | None, limit: int) -> list[Document]:
        found = self._collection(SALES).find({"period": period, "start": start}, {"parts": 0})
        cursor = found.sort([("units", -1), ("product_id", 1)]).limit(limit)
        return [_without_id(document) async for document in _each(cursor)]

    async def clear_sales(self) -> None:
        for name in (SALES, SALES_STATE):
            with _translated():
                await self._collection(name).delete_many({})

    async def sold_ever(self, product_ids: Collection[str]) -> dict[str, int]:
        ids = [sale_id("total", None, product_id) for product_id in product_ids]
        found = await self._find_at_once(SALES, ids, {"product_id": 1, "units": 1})
        return {document["product_id"]: int(document["units"]) for document in found}

    async def sold_from(self, product_id: str, hour: datetime) -> int:
        # Days where there are whole ones: of hours there would be more each day that a stock lasts.
        hours: Document = {"$gte": hour}
        spans = [("hour", hours)]
        if (day := hour.replace(hour=0)).date() < datetime.max.date():
            hours["$lt"] = day + timedelta(days=1)
            spans.append(("day", {"$gte": hours["$lt"]}))
        units = 0
        for period, span in spans:
            condition = {"product_id": {"$eq": product_id}, "period": period, "start": span}
            with _translated():
                found = await self._collection(SALES).find(condition, {"units": 1}).to_list()
            units += sum(int(document["units"]) for document in found)
        return units

    async def units_from_kafka(self, product_id: str, since: datetime, until: datetime) -> int:
        stages = [_sold_in(product_id, (since, until)), _FROM_KAFKA, {"$group": {"_id": None, **_SOLD}}]
        return sum([int(sums["units"]) async for sums in self._aggregate(stages)])

    async def stocked(self, topic: str, partitions: Collection[int], after: str, limit: int) -> list[Document]:
        condition = {
            "stock": {"$gte": 0},
            "_id": {"$gt": after},
            "source.topic": {"$eq": topic},
            "source.partition": {"$in": list(partitions)},
        }
        return await self._sorted(PRODUCTS, condition, [("_id", 1)], limit)

    async def insert_alert(self, document: Document) -> Document:
        operation = UpdateOne({"_id": document["_id"]}, {"$setOnInsert": _without_id(document)}, upsert=True)
        await self._update(ALERTS, [operation])
        found = await self._find_at_once(ALERTS, [document["_id"]], {})
        if not found:
            raise Unavailable("MongoDB", "alerts are deleted while they are written")
        return found[0]

    async def put_back(self, collection: str, documents: Sequence[Document]) -> None:
        operations = [
            UpdateOne({"_id": document["_id"]}, {"$set": _without_id(document)}, upsert=True) for document in documents
        ]
        await self._update(collection, operations)

    async def alerts(self, limit: int) -> list[Document]:
        return await self._sorted(ALERTS, {}, [("at", -1), ("_id", 1)], limit)

    async def _update(self, name: str, operations: Sequence[UpdateOne]) -> None:
        """Do all of these, which can be done again."""
        if not operations:
            return
        errors = await _written(self._collection(name).bulk_write(operations, ordered=False))
        if errors:  # two that put a new one there at once, for one: the next try finds it there
            raise Unavailable("MongoDB", f"collection {name}: {_said(errors[0])}")

    # -- writing

    async def insert_purchases(self, documents: Sequence[Document]) -> Inserted:
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

    async def restore_purchases(self, documents: Sequence[Document]) -> None:
        if not documents:
            return
        operations = [
            UpdateOne({"_id": document["_id"], "source": document["source"]}, {"$set": _without_id(document)})
            for document in documents
        ]
        errors = await _written(self._collection(PURCHASES).bulk_write(operations, ordered=False))
        if errors:  # they were stored once: not the events' fault
            raise Unavailable("MongoDB", f"collection {PURCHASES}: {_said(errors[0])}")

    async def upsert_products(self, documents: Sequence[Document]) -> dict[int, str]:
        # The prices first: a product without its price history would be taken for one that always had its newest price.
        # Hence a product that can't be sent is found before: its price must not stay behind.
        refused = unencodable(documents, range(len(documents)))
        for name, made in ((PRICES, price_document), (PRODUCTS, dict)):
            kept = [index for index in range(len(documents)) if index not in refused]
            refused_now = await self._upsert(name, [made(documents[index]) for index in kept])
            refused |= {kept[position]: reason for position, reason in refused_now.items()}
        return refused

    async def upsert_customers(self, documents: Sequence[Document]) -> dict[int, str]:
        return await self._upsert(CUSTOMERS, documents)

    async def delete_products(self, deletions: Sequence[Deletion]) -> None:
        refused = await self._upsert(PRICES, [no_price_document(deletion) for deletion in deletions])
        if refused:  # not the event's fault: somebody else's rules for our collection
            raise Unavailable("MongoDB", f"collection {PRICES}: {next(iter(refused.values()))}")
        await self._delete(PRODUCTS, deletions)

    async def delete_customers(self, deletions: Sequence[Deletion]) -> None:
        await self._delete(CUSTOMERS, deletions)

    async def insert_vouchers(self, documents: Sequence[Document]) -> frozenset[int]:
        if not documents:
            return frozenset()
        errors = await _written(self._collection(VOUCHERS).insert_many(documents, ordered=False))
        if others := [error for error in errors if not _is_taken(error)]:  # not the event's fault
            raise Unavailable("MongoDB", f"collection {VOUCHERS}: {_said(others[0])}")
        existing = {error["index"]: documents[error["index"]] for error in errors}
        found = await self._find_at_once(VOUCHERS, {document["_id"] for document in existing.values()}, {"source": 1})
        stored = {document["_id"]: document.get("source") for document in found}
        if any(document["_id"] not in stored for document in existing.values()):
            raise Unavailable("MongoDB", "vouchers are deleted while they are written")
        return frozenset(index for index, document in existing.items() if stored[document["_id"]] != document["source"])

    # -- reading

    async def vouchers(
        self, customer_id: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[Document, None]:
        if limit == 0:
            return
        condition: Document = {} if customer_id is None else {"customer_id": customer_id}
        with _translated():
            cursor = self._collection(VOUCHERS).find(condition).sort([("issued_at", -1), ("_id", 1)]).limit(limit or 0)
        async for document in _each(cursor):
            yield document

    async def buyers(self) -> AsyncIterator[Document]:
        fields = {"_id": 0, "customer_id": 1, "product_id": 1, "value": 1, "purchased_at": 1, "source": 1}
        with _translated():
            cursor = self._collection(PURCHASES).find(_FROM_KAFKA["$match"], fields).sort("customer_id", 1)
        async for document in _each(cursor):
            yield document

    async def registrations(self) -> AsyncIterator[Document]:
        with _translated():
            cursor = self._collection(CUSTOMERS).find(_FROM_KAFKA["$match"], {"city": 1, "registered_at": 1})
        async for document in _each(cursor):
            yield document

    async def price_history(self, product_ids: Collection[str]) -> dict[str, PriceHistory]:
        prices: dict[str, list[tuple[datetime, int | None]]] = {}
        fields = {"_id": 0, "product_id": 1, "since": 1, "price": 1}
        async for document in self._find(PRICES, "product_id", product_ids, fields):
            prices.setdefault(document["product_id"], []).append((document["since"], document["price"]))
        without = [product_id for product_id in product_ids if product_id not in prices]
        async for product in self._find(PRODUCTS, "_id", without, {"price": 1}):
            if isinstance(product.get("price"), int):
                prices[product["_id"]] = [(BEGINNING, product["price"])]
        return {name: PriceHistory(tuple(sorted(known, key=itemgetter(0)))) for name, known in prices.items()}

    async def units_over_time(
        self, product_id: str, since: datetime | None, until: datetime | None, bucket: str
    ) -> list[Sold]:
        start = {"$dateTrunc": {"date": "$purchased_at", "unit": bucket}}
        stages = [_sold_in(product_id, (since, until)), {"$group": {"_id": start, **_SOLD}}, {"$sort": {"_id": 1}}]
        return [_sold(sums["_id"], sums) async for sums in self._aggregate(stages)]

    async def units_in(self, product_id: str, spans: Sequence[Span]) -> list[Sold]:
        # A request each, by the index: some servers compare every purchase with every boundary of a `$bucket`.
        places = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def ask(span: Span) -> Sold:
            stages = [_sold_in(product_id, span), {"$group": {"_id": None, **_SOLD}}]
            async with places:
                found = [sums async for sums in self._aggregate(stages)]
            return _sold(span[0], found[0] if found else {})

        return list(await asyncio.gather(*map(ask, spans)))

    async def purchase_prices(self, purchase_ids: Collection[str]) -> dict[str, int]:
        found = self._find(PURCHASES, "_id", purchase_ids, {"price": 1})
        return {purchase["_id"]: purchase["price"] async for purchase in found}

    async def products(self) -> list[Document]:
        with _translated():
            found = await self._collection(PRODUCTS).find().to_list()
        return sorted(found, key=lambda product: (str(product.get("name", "")), product["_id"]))

    async def product_ids(self, limit: int) -> list[str]:
        return await self._ids(PRODUCTS, limit)

    async def customer_ids(self, limit: int) -> list[str]:
        return await self._ids(CUSTOMERS, limit)

    async def products_after(self, after: str, limit: int) -> list[Document]:
        return await self._sorted(PRODUCTS, {"_id": {"$gt": after}}, [("_id", 1)], limit)

    async def purchases_after(self, customer_id: str, after: tuple[datetime, str] | None, limit: int) -> list[Document]:
        # The index has the time, not the id. So the many of later times are read in the index's order, and only those
        # of one moment, where a page begins or ends, are put in the order of their ids.
        of_customer: Document = {"customer_id": {"$eq": customer_id}}

        async def of_moment(time: datetime, behind: Document, most: int) -> list[Document]:
            return await self._sorted(PURCHASES, {**of_customer, "purchased_at": time, **behind}, [("_id", 1)], most)

        found, later = [], of_customer
        if after is not None:
            found = await of_moment(after[0], {"_id": {"$gt": after[1]}}, limit)
            later = {**of_customer, "purchased_at": {"$gt": after[0]}}
        if (rest := limit - len(found)) < 1:
            return found
        more = await self._sorted(PURCHASES, later, [("purchased_at", 1)], rest)
        if len(more) == rest:
            last = more[-1]["purchased_at"]
            more = [purchase for purchase in more if purchase["purchased_at"] != last]
            more.sort(key=itemgetter("purchased_at", "_id"))
            return [*found, *more, *await of_moment(last, {}, rest - len(more))]
        return [*found, *sorted(more, key=itemgetter("purchased_at", "_id"))]

    async def customers(self, limit: int | None = None) -> AsyncIterator[Document]:
        # By ranges of ids, not by one cursor: that would be gone when the reader pauses for some minutes.
        condition: Document = {}
        while limit is None or limit > 0:
            size = CUSTOMERS_AT_ONCE if limit is None else min(limit, CUSTOMERS_AT_ONCE)
            with _translated():
                page = await self._collection(CUSTOMERS).find(condition).sort("_id", 1).limit(size).to_list()
            purchases = await self._purchases_of([customer["_id"] for customer in page])
            for customer in page:
                yield {**customer, "purchases": purchases.get(customer["_id"], [])}
            if len(page) < size:
                return
            condition = {"_id": {"$gt": page[-1]["_id"]}}
            limit = None if limit is None else limit - size

    async def totals(self) -> Totals:
        by_customer = {"$group": {"_id": "$customer_id", **_SUMS}}
        altogether = {"$group": {"_id": None, "customers": {"$sum": 1}, **_SUMS_OF_SUMS}}
        found = [sums async for sums in self._aggregate([_FROM_KAFKA, by_customer, altogether])]
        return Totals(**{name: int(found[0][name]) for name in (*_SUMS, "customers")}) if found else Totals()

    async def sold(self) -> AsyncIterator[tuple[str, int, int, int]]:
        async for sums in self._sums_by("product_id"):
            yield sums

    async def counts(self) -> AsyncIterator[tuple[str, int, int, int]]:
        async for sums in self._sums_by("customer_id"):
            yield sums

    async def _sums_by(self, name: str) -> AsyncIterator[tuple[str, int, int, int]]:
        async for sums in self._aggregate([_FROM_KAFKA, {"$group": {"_id": f"${name}", **_SUMS}}]):
            yield sums["_id"], int(sums["purchases"]), int(sums["items"]), int(sums["spent"])

    async def registered(self, customer_ids: Collection[str]) -> set[str]:
        found = await self._find_at_once(CUSTOMERS, customer_ids, {"_id": 1})
        return {document["_id"] for document in found}

    async def last_purchases(self, customer_id: str, limit: int) -> list[Document]:
        with _translated():
            found = self._collection(PURCHASES).find({"customer_id": {"$eq": customer_id}})
            sort = [("purchased_at", -1), ("_id", -1)]
            purchases: list[Document] = await found.sort(sort).limit(limit).to_list()
        await self._add_names(purchases)
        return purchases

    async def documents(self, collection: str, ids: Collection[str]) -> dict[str, Document]:
        return {document["_id"]: document for document in await self._find_at_once(collection, ids, {})}

    async def sources(self, collection: str) -> AsyncIterator[tuple[str, Document]]:
        with _translated():
            cursor = self._collection(collection).find(_FROM_KAFKA["$match"], {"source": 1})
        async for document in _each(cursor):
            yield document["_id"], document["source"]

    async def pages(self, collection: str, after: str = "") -> AsyncIterator[list[Document]]:
        with _translated():
            found = self._collection(collection).find({"_id": {"$gt": after}}, batch_size=PAGE_SIZE).sort("_id", 1)
        async with found:
            await self.ping()  # as in `_aggregate`
            with _translated(), pymongo.timeout(SUM_SECONDS):  # some servers sort all before they send the first
                page = await found.to_list(PAGE_SIZE)
            while page:
                yield page
                with _translated():
                    page = await found.to_list(PAGE_SIZE)

    async def sizes(self) -> dict[str, int]:
        found = {}
        for name in (PRODUCTS, CUSTOMERS, PURCHASES, PRICES):
            await self.ping()  # as in `_aggregate`
            with _translated(), pymongo.timeout(SUM_SECONDS):
                found[name] = await self._collection(name).count_documents({})  # the estimate is wrong after a crash
        return found

    # -- how

    @property
    def _connected(self) -> AsyncMongoClient[Document]:
        if self._client is None:
            raise RuntimeError("MongoStore.connect has not been called")
        return self._client

    def _collection(self, name: str) -> AsyncCollection[Document]:
        # The guarantee doesn't depend on what the URI says. Majority: what a primary has alone may be taken back when
        # another server is elected, and what rests on it (a duplicate isn't counted, a price is kept) could not be.
        # The primary: a secondary may not have yet what was written a moment ago.
        database = self._connected.get_database(
            self._database,
            read_preference=ReadPreference.PRIMARY,
            write_concern=_WRITE_CONCERN,
            read_concern=ReadConcern("majority"),
        )
        return database[name]

    async def _insert(self, documents: Sequence[Document], indexes: Sequence[int]) -> tuple[dict[int, str], list[int]]:
        """Insert these; returns which were refused and why, and which met a document with their `_id`."""
        refused: dict[int, str] = {}
        if not indexes:
            return refused, []
        chosen = [documents[index] for index in indexes]
        try:
            errors = await self._insert_all(chosen)
        except _UNENCODABLE:
            if not (refused := unencodable(documents, indexes)):
                raise
            # Some may be stored by now; these are met again as their own.
            good = [index for index in indexes if index not in refused]
            more, existing = await self._insert(documents, good)
            return refused | more, existing
        existing = []
        for error in errors:
            if _is_taken(error):
                existing.append(indexes[error["index"]])
            else:
                refused[indexes[error["index"]]] = _said(error)
        return refused, existing

    async def _insert_all(self, purchases: Sequence[Document]) -> list[Document]:
        """Returns the errors of single documents.

        `insert_many` splits what is too much for one message, for which it looks at each document in Python; that takes
        as long as encoding it. What surely fits is sent as the one command that it is.
        """
        if _most_bytes(purchases) > _MAX_MESSAGE_BYTES:
            return await _written(self._collection(PURCHASES).insert_many(purchases, ordered=False))
        command = {"insert": PURCHASES, "documents": purchases, "ordered": False}
        with _translated():
            database = self._connected.get_database(self._database)
            reply = await database.command({**command, "writeConcern": _WRITE_CONCERN.document})
        return _errors(reply.get("writeErrors", []), reply.get("writeConcernError"))

    async def _stored(self, ids: Iterable[str]) -> dict[str, Document]:
        """The stored purchases with these ids.

        A majority has what is read here. The server confirmed the insert, failed as it was, only when a majority had
        all that it met. So the read sees it, and no election takes it back after we called a purchase a duplicate
        and didn't count it.
        """
        return {document["_id"]: document async for document in self._find(PURCHASES, "_id", set(ids), {})}

    async def _upsert(self, name: str, documents: Sequence[Document]) -> dict[int, str]:
        """Put each document there unless there is a newer one; returns which were refused and why."""
        refused: dict[int, str] = {}
        waiting = list(range(len(documents)))
        while waiting:
            chosen = newest(documents, waiting, TIME[name])
            refused_now = await self._replace(name, documents, chosen)
            refused |= refused_now
            # What was outdone by a document that is refused gets its turn.
            open_ids = {documents[index]["_id"] for index in refused_now}
            waiting = [index for index in waiting if documents[index]["_id"] in open_ids and index not in refused]
        return refused

    async def _replace(self, name: str, documents: Sequence[Document], indexes: Sequence[int]) -> dict[int, str]:
        refused: dict[int, str] = {}
        for _ in range(3):
            if not indexes:
                return refused
            operations = [replacement(documents[index], TIME[name]) for index in indexes]
            try:
                errors = await _written(self._collection(name).bulk_write(operations, ordered=False))
            except _UNENCODABLE:
                if not (found := unencodable(documents, indexes)):
                    raise
                refused |= found
                indexes = [index for index in indexes if index not in found]
                continue
            refused |= {indexes[error["index"]]: _said(error) for error in errors if not _is_taken(error)}
            # Two workers may put a new id there at the same moment; the one that lost compares again.
            indexes = [indexes[error["index"]] for error in errors if _is_taken(error)]
        if indexes:
            raise Unavailable("MongoDB", f"collection {name}: others keep writing the same documents")
        return refused

    async def _delete(self, name: str, deletions: Sequence[Deletion]) -> None:
        if not deletions:
            return
        operations = [operation for deletion in deletions for operation in removals(deletion)]
        errors = await _written(self._collection(name).bulk_write(operations, ordered=False))
        if errors:
            raise Unavailable("MongoDB", f"collection {name}: {_said(errors[0])}")

    async def _find(
        self, name: str, key: str, values: Collection[str], fields: Mapping[str, int]
    ) -> AsyncIterator[Document]:
        wanted = list(values)
        for start in range(0, len(wanted), IDS_AT_ONCE):
            some = wanted[start : start + IDS_AT_ONCE]
            with _translated():
                found = await self._collection(name).find({key: {"$in": some}}, fields).to_list()
            for document in found:
                yield document

    async def _find_at_once(self, name: str, ids: Collection[str], fields: Mapping[str, int]) -> list[Document]:
        """Documents by their `_id`; several requests at a time, since each asks for some ids only."""
        wanted = list(ids)
        places = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def ask(some: list[str]) -> list[Document]:
            async with places:
                with _translated():
                    return await self._collection(name).find({"_id": {"$in": some}}, fields).to_list()

        parts = [wanted[start : start + IDS_AT_ONCE] for start in range(0, len(wanted), IDS_AT_ONCE)]
        answers = await asyncio.gather(*(ask(some) for some in parts))
        return [document for answer in answers for document in answer]

    async def _ids(self, name: str, limit: int) -> list[str]:
        if limit < 1:
            return []
        with _translated():
            found = await self._collection(name).find({}, {"_id": 1}).sort("_id", 1).limit(limit).to_list()
        return [document["_id"] for document in found]

    async def _sorted(self, name: str, condition: Document, by: list[tuple[str, int]], limit: int) -> list[Document]:
        if limit < 1:
            return []
        with _translated():
            found: list[Document] = await self._collection(name).find(condition).sort(by).limit(limit).to_list()
        return found

    async def _purchases_of(self, customer_ids: Sequence[str]) -> dict[str, list[Document]]:
        """The purchases of each, oldest first, with the products' names."""
        purchases: dict[str, list[Document]] = {}
        every = []
        async for purchase in self._find(PURCHASES, "customer_id", customer_ids, {}):
            purchases.setdefault(purchase["customer_id"], []).append(purchase)
            every.append(purchase)
        await self._add_names(every)
        for of_one in purchases.values():
            of_one.sort(key=when)
        return purchases

    async def _add_names(self, purchases: Sequence[Document]) -> None:
        """To each the name that its product has now, as `product_name`; None: it has none."""
        product_ids = {name for one in purchases if isinstance(name := one.get("product_id"), str)}
        found = self._find(PRODUCTS, "_id", product_ids, {"name": 1})
        names = {product["_id"]: product.get("name") async for product in found}
        for purchase in purchases:
            purchase["product_name"] = names.get(str(purchase.get("product_id")))

    async def _aggregate(self, stages: Sequence[Document]) -> AsyncIterator[Document]:
        await self.ping()  # `pymongo.timeout` is also how long the driver would wait for a server that is away
        with _translated(), pymongo.timeout(SUM_SECONDS):
            cursor = await self._collection(PURCHASES).aggregate(stages, allowDiskUse=True)
        async for document in _each(cursor):
            yield document


async def _each(cursor: Any) -> AsyncIterator[Document]:
    """The documents of a cursor, which is closed afterwards."""
    async with cursor:
        while True:
            with _translated():
                try:
                    document = await cursor.next()
                except StopAsyncIteration:
                    return
            yield document


#: Since when a product of another program has its price.
BEGINNING = datetime.min.replace(tzinfo=timezone.utc)
_FROM_KAFKA: Document = {"$match": {"source.origin": "kafka"}}
_SUMS: Document = {"purchases": {"$sum": 1}, "items": {"$sum": "$quantity"}, "spent": {"$sum": "$value"}}
_SUMS_OF_SUMS: Document = {name: {"$sum": f"${name}"} for name in _SUMS}
_SOLD: Document = {"units": {"$sum": "$quantity"}, "revenue": {"$sum": "$value"}}


def _sold_in(product_id: str, span: Span) -> Document:
    """The stage that finds them; a purchase of another program may have no time."""
    limits = {name: time for name, time in zip(("$gte", "$lt"), span, strict=True) if time is not None}
    return {"$match": {"product_id": product_id, "purchased_at": limits or {"$type": "date"}}}


def _sold(since: datetime | None, sums: Document) -> Sold:
    return Sold(since, int(sums.get("units", 0)), int(sums.get("revenue", 0)))


# -- the rules, without a server


def milliseconds(time: datetime) -> datetime:
    """The time as MongoDB keeps it."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def outdoes(new: Document, stored: Document, time: str) -> bool:
    """Does `new` replace `stored`? The same rule that `replacement` gives to the server.

    Arguments:
        time: The field that says which is newer.
    """
    then = stored.get(time)
    if not isinstance(then, datetime):
        return True
    now, then = milliseconds(new[time]), milliseconds(then)
    return now > then or (now == then and not _came_later(stored.get("source"), new["source"]))


def _came_later(stored: Any, than: Document) -> bool:
    """Is the stored source behind the other in one and the same partition?"""
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
    """The update that puts the document there, unless one that it doesn't outdo is there; atomic.

    The condition is in the update, not in the filter: nothing has to be concluded from a failed upsert, and the server
    finds the document by its `_id` alone (some look through the whole collection for a filter with `$or` or `$nor`).
    """
    newer: Document = {"$gt": [f"${time}", document[time]]}
    if "offset" in document["source"]:
        later = {"$and": [{"$eq": [f"${time}", document[time]]}, _later_than(document["source"])]}
        newer = {"$or": [newer, later]}
    keep_or_replace = {"$cond": [newer, "$$ROOT", {"$literal": document}]}
    return UpdateOne({"_id": document["_id"]}, [{"$replaceWith": keep_or_replace}], upsert=True)


def _part_update(partition: int, sale: PartSale) -> UpdateOne:
    """The update that puts a partition's part there, unless a later one is there, and adds the parts up; atomic."""
    era, offset = sale.position
    part = {"era": era, "offset": offset, **{name: getattr(sale, name) for name in _SALE}}
    place = f"parts.p{partition}"
    known = {"era": f"${place}.era", "offset": f"${place}.offset"}
    parts = {"$objectToArray": "$parts"}
    return UpdateOne(
        {"_id": sale_id(sale.period, sale.start, sale.product_id)},
        [
            {
                "$set": {
                    "product_id": {"$literal": sale.product_id},
                    "period": sale.period,
                    "start": sale.start,
                    place: {"$cond": [_not_before(known, sale.position), {"$literal": part}, f"${place}"]},
                }
            },
            {"$set": {name: {"$sum": {"$map": {"input": parts, "in": f"$$this.v.{name}"}}} for name in _SALE}},
        ],
        upsert=True,
    )


_SALE = ("purchases", "units", "revenue")


def _not_before(known: Document, position: tuple[int, int]) -> Document:
    """Is the position the known one or a later? Of what is missing it is: null is less than any number."""
    era, offset = position
    return {
        "$or": [
            {"$lt": [known["era"], era]},
            {"$and": [{"$eq": [known["era"], era]}, {"$lte": [known["offset"], offset]}]},
        ]
    }


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
    """The price that a product brings."""
    return _price(product["_id"], product["price"], product["updated_at"], product["source"])


def no_price_document(deletion: Deletion) -> Document:
    """The end of a product's prices."""
    return _price(deletion.id, None, deletion.at, deletion.source)


def _price(product_id: str, price: int | None, since: datetime, source: Document) -> Document:
    # The `_id` makes (product_id, since) unique without a second unique index. A string, because documents as `_id` are
    # equal only with their fields in the same order; the time has a fixed width, so no two pairs give the same string.
    since = milliseconds(since.astimezone(timezone.utc))
    name = f"{product_id}@{since.isoformat(timespec='milliseconds')}"
    return {"_id": name, "product_id": product_id, "price": price, "since": since, "source": source}


def duplicates(
    documents: Sequence[Document],
    existing: Collection[int],
    refused: Collection[int],
    stored: Mapping[str, Document],
) -> frozenset[int]:
    """Which of the purchases that met their `_id` are not what is stored under it.

    Arguments:
        existing: Indexes of those that met their `_id`.
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
    """Is the stored document not what this one would be? Fields that only the stored one has don't count."""
    return bool(differences(document, stored))


def differences(document: Document, stored: Document) -> list[str]:
    """How the stored document is not what this one would be, field by field, to be read by people."""
    found = []
    for name, sent in document.items():
        expected = milliseconds(sent) if isinstance(sent, datetime) else sent
        if (there := stored.get(name)) != expected:
            found.append(f"{name}: stored {shown(there)}, sent {shown(expected)}")
    return found


def shown(value: Any) -> str:
    """A field's value, to be read by people."""
    return value.isoformat() if isinstance(value, datetime) else repr(value)


def _without_id(document: Document) -> Document:
    return {name: value for name, value in document.items() if name != "_id"}


# -- errors

#: Where a purchase without a time is put among others.
_NEVER = datetime.max.replace(tzinfo=timezone.utc)

_UNENCODABLE = (BSONError, OverflowError, UnicodeError)


def unencodable(documents: Sequence[Document], indexes: Iterable[int]) -> dict[int, str]:
    """Which of these documents can't be sent to any MongoDB, and why."""
    faults = ((index, _fault(documents[index])) for index in indexes)
    return {index: fault for index, fault in faults if fault is not None}


def _fault(document: Document) -> str | None:
    try:
        size = len(bson.encode(document))
    except _UNENCODABLE as error:
        return _one_line(str(error))
    return f"too large: {size} bytes, MongoDB takes {MAX_DOCUMENT_BYTES}" if size > MAX_DOCUMENT_BYTES else None


async def _written(writing: Awaitable[object]) -> list[Document]:
    """Wait for a bulk write; returns the errors that are single documents' own.

    Raises:
        Unavailable: The others may be written or not.
    """
    with _translated():
        try:
            await writing
        except BulkWriteError as error:
            unconfirmed: list[Document] = error.details.get("writeConcernErrors") or [{}]
            return _errors(error.details["writeErrors"], unconfirmed[0])
    return []


def _errors(errors: list[Document], unconfirmed: Document | None) -> list[Document]:
    """The errors of single documents, if they are the documents' own."""
    if unconfirmed:
        raise Unavailable("MongoDB", f"could not confirm the write: {_said(unconfirmed)}")
    if trouble := [one for one in errors if one.get("code") in _NOT_THE_DOCUMENT]:
        raise Unavailable("MongoDB", _said(trouble[0]))
    return errors


def when(purchase: Document) -> tuple[datetime, str]:
    """Its place among others; one of another program that has no time comes last."""
    time = purchase.get("purchased_at")
    return time if isinstance(time, datetime) else _NEVER, str(purchase["_id"])


def _most_bytes(purchases: Sequence[Document]) -> int:
    """No smaller than they are in BSON: UTF-8 has at most 4 bytes a character."""
    texts = sum([len(one["_id"]) + len(one["customer_id"]) + len(one["product_id"]) for one in purchases])
    return 4 * texts + _MOST_REST_BYTES * len(purchases)


def _is_taken(error: Document) -> bool:
    """Is there a document with this `_id`? (A unique index that somebody else made gives the same code.)"""
    return error.get("code") == _DUPLICATE_KEY and list(error.get("keyPattern") or ["_id"]) == ["_id"]


def _said(error: Document) -> str:
    return f"{_one_line(str(error.get('errmsg', 'no reason given')))} (code {error.get('code')})"


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PyMongoError as error:
        raise Unavailable("MongoDB", _reason(error)) from error


def _reason(error: PyMongoError) -> str:
    """Why, in one line. The driver's messages name servers and commands, never the URI or the password."""
    code = error.code if isinstance(error, OperationFailure) else None
    if code in _AUTHENTICATION:
        return "authentication failed: check the user and the password in mongodb.uri"
    # What follows are the topology, the timeouts, the reply and the command, which holds whole documents.
    text = re.split(r" \(configured timeouts|, Timeout: |, full error: | to execute command", str(error), maxsplit=1)[0]
    return _one_line(text) or type(error).__name__


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."


# -- the connection


class _PlainInt(TypeDecoder):
    """Whole numbers as `int`: JSON encoders don't take the driver's own class for the larger ones."""

    bson_type = Int64

    def transform_bson(self, value: Any) -> Any:
        return int(value)


#: What another program wrote must not end a reader: a time outside of the years 1 to 9999, a text that is no UTF-8.
_DECODING: dict[str, Any] = {
    "tz_aware": True,
    "tzinfo": timezone.utc,
    "type_registry": TypeRegistry([_PlainInt()]),
    "datetime_conversion": "DATETIME_AUTO",
    "unicode_decode_error_handler": "replace",
}


_PART = r"(?:[^:/?#\[\]@%]|%[0-9A-Fa-f]{2})*"
_URI = re.compile(rf"(?P<scheme>mongodb(?:\+srv)?://)(?:(?P<user>{_PART})(?P<password>:{_PART})?@)?(?P<rest>[^@]*)")
_SECRET_OPTION = re.compile(r"(?i)[?&;](authMechanismProperties|[a-z]*password)=")


def _client(uri: str) -> AsyncMongoClient[Document]:
    parts = _URI.fullmatch(uri)
    if parts is None:
        raise Refused(
            "mongodb.uri: must be mongodb://[user:password@]host[:port]/..., with %XX for : / ? # [ ] @ % in a part"
        )
    if parts["user"] is not None:
        # First without the secrets: what is wrong with this one can be told.
        _constructed(f"{parts['scheme']}user{':password' if parts['password'] else ''}@{parts['rest']}")
    return _constructed(uri)


def _constructed(uri: str) -> AsyncMongoClient[Document]:
    given = {option.partition("=")[0].lower() for option in re.split("[&;]", uri.partition("?")[2])}
    defaults: dict[str, Any] = {name: value for name, value in _DEFAULTS.items() if name.lower() not in given}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Unknown option", category=UserWarning)
            return AsyncMongoClient(uri, **_DECODING, **defaults)
    except (PyMongoError, UserWarning, ValueError, TypeError, KeyError, OSError) as error:
        unclear = isinstance(error, KeyError) or _SECRET_OPTION.search(uri)
        reason = "an option in it is wrong" if unclear else _one_line(str(error))
        raise Refused(f"mongodb.uri: {reason}") from None  # the cause may hold what the message must not


class Patient:
    """Asks MongoDB until it answers or the batch's partition is lost."""

    def __init__(self, store: Any, outage: Outage) -> None:
        self._store = store
        self._outage = outage
        self._prepared = False

    async def __call__(self, batch: Any, attempt: Any) -> Any:
        async def prepared() -> Any:
            if not self._prepared:
                await self._store.prepare()
                self._prepared = True
            return await attempt()

        return await retrying(self._outage, batch.check_owned, prepared)
