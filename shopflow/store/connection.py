"""The connection to MongoDB: the client and its options, and the base through which every request goes."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timezone
from time import monotonic
from typing import Any, Generic, TypeVar

import pymongo
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.int64 import Int64
from pymongo import AsyncMongoClient, DeleteOne, ReadPreference, UpdateOne, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from faust_batches import Batch, Outage, retrying
from shopflow.errors import Refused, Unavailable

from .errors import OTHER_INDEX, described, one_line, reason, translated, written
from .types import ALERTS, CUSTOMERS, PRICES, PRODUCTS, PURCHASES, SALES, VOUCHERS, Document

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

#: Ids asked for in one request: some servers compare every document with every id of a `$in`.
IDS_AT_ONCE = 100
#: Requests under way at once where many documents are read by their ids.
REQUESTS_AT_ONCE = 4
#: Documents at once where a whole collection is read in its order.
PAGE_SIZE = 2_000
#: A sum over all purchases, or their order, sends nothing until it is done: the socket's timeout is too short for it.
SUM_SECONDS = 3_600.0

BY_ID = [("_id", 1)]
FROM_KAFKA: Document = {"source.origin": "kafka"}
WRITE_CONCERN = WriteConcern("majority", j=True)

#: What the URI may set otherwise.
_DEFAULTS = {
    "appname": "shopflow",
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 30_000,
}

T = TypeVar("T")
Fields = Mapping[str, int] | None
Sort = Sequence[tuple[str, int]]
#: Called with a collection, the seconds that a write took, and how many documents had which outcome.
OnWrite = Callable[[str, float, Mapping[str, int]], None]


class Connection:
    """A MongoDB database, and the requests that the collections' methods are made of. `connect` comes first.

    Attributes:
        on_write: Called after each write of products, customers and purchases that ended well.

    Arguments:
        database: The database's name.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._client: AsyncMongoClient[Document] | None = None
        self.on_write: OnWrite = lambda collection, seconds, outcomes: None

    def connect(self, uri: str) -> None:
        """Say where MongoDB is. Does no I/O: the first call of another method does.

        Raises:
            Refused: The URI is malformed; the message names `mongodb.uri` and never holds a password.
        """
        self._client = _client(uri)

    async def prepare(self) -> None:
        """Create the indexes that are missing.

        Raises:
            Refused: An index of that name exists, and it is another.
        """
        for name, keys in INDEXES:
            collection = self._collection(name)
            with translated():
                if any(index["key"] == keys for index in (await collection.index_information()).values()):
                    continue
                try:
                    await collection.create_index(keys)
                except OperationFailure as error:
                    if error.code in OTHER_INDEX.values():
                        raise Refused(f"MongoDB: collection {name}: {reason(error)}") from error
                    raise

    async def ping(self) -> None:
        """Return when the server answers."""
        with translated():
            await self._connected.admin.command("ping")

    async def close(self) -> None:
        """Close the connections. May be called twice."""
        if self._client is not None:
            await self._client.close()

    # -- any collection

    async def documents(self, collection: str, ids: Collection[str]) -> dict[str, Document]:
        """The documents of a collection that have these ids, by id, as they are."""
        found = await self._find(collection, "_id", ids, at_once=REQUESTS_AT_ONCE)
        return {document["_id"]: document for document in found}

    async def sources(self, collection: str) -> AsyncIterator[tuple[str, Document]]:
        """`_id` and `source` of each document of a collection that came from Kafka, in no order."""
        async for document in self._stream(collection, FROM_KAFKA, {"source": 1}):
            yield document["_id"], document["source"]

    async def pages(self, collection: str, after: str = "") -> AsyncIterator[list[Document]]:
        """The documents of a collection by `_id`, as they are, some at a time; those behind the id `after`.

        After `Unavailable`, which may also mean that the reader paused for longer than MongoDB keeps a cursor, one can
        go on from the last id. Only those whose `_id` is a string, as shopflow's are.
        """
        cursor = self._collection(collection).find({"_id": {"$gt": after}}, sort=BY_ID, batch_size=PAGE_SIZE)
        async with cursor:
            async with self._long_request():  # some servers sort all before they send the first
                page = await cursor.to_list(PAGE_SIZE)
            while page:
                yield page
                with translated():
                    page = await cursor.to_list(PAGE_SIZE)

    async def sizes(self) -> dict[str, int]:
        """How many documents each collection has: products, customers, purchases, prices."""
        found = {}
        for name in (PRODUCTS, CUSTOMERS, PURCHASES, PRICES):
            async with self._long_request():
                found[name] = await self._collection(name).count_documents({})  # the estimate is wrong after a crash
        return found

    # -- requests

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
            write_concern=WRITE_CONCERN,
            read_concern=ReadConcern("majority"),
        )
        return database[name]

    async def _write(self, name: str, operations: Sequence[UpdateOne | DeleteOne]) -> None:
        """Do operations whose failure is never a document's fault. They must be idempotent."""
        if not operations:
            return
        errors = await written(self._collection(name).bulk_write(operations, ordered=False))
        if errors:  # two that put a new one there at once, for one: the next try finds it there
            raise Unavailable("MongoDB", f"collection {name}: {described(errors[0])}")

    @contextmanager
    def _measured(self, collection: str, **outcomes: int) -> Iterator[dict[str, int]]:
        """Call `on_write` when the write within has ended well. The write may add outcomes to the dict it gets."""
        began = monotonic()
        yield outcomes
        self.on_write(collection, monotonic() - began, outcomes)

    async def _read(
        self, name: str, condition: Document, fields: Fields = None, *, sort: Sort = (), limit: int | None = None
    ) -> list[Document]:
        """At most `limit` documents (None: all), in one list."""
        if limit is not None and limit < 1:
            return []
        with translated():
            return await self._collection(name).find(condition, fields, sort=sort, limit=limit or 0).to_list()

    async def _stream(
        self, name: str, condition: Document, fields: Fields = None, *, sort: Sort = (), limit: int | None = None
    ) -> AsyncGenerator[Document, None]:
        """At most `limit` documents (None: all), one after the other."""
        if limit is not None and limit < 1:
            return
        with translated():
            async with self._collection(name).find(condition, fields, sort=sort, limit=limit or 0) as cursor:
                async for document in cursor:
                    yield document

    async def _find(
        self, name: str, key: str, values: Collection[str], fields: Fields = None, *, at_once: int = 1
    ) -> list[Document]:
        """Documents whose field `key` has one of these values; some values in a request, `at_once` requests at once."""
        wanted = list(values)
        parts = [wanted[start : start + IDS_AT_ONCE] for start in range(0, len(wanted), IDS_AT_ONCE)]
        found: list[Document] = []
        for start in range(0, len(parts), at_once):
            some = parts[start : start + at_once]
            for answer in await asyncio.gather(*(self._read(name, {key: {"$in": part}}, fields) for part in some)):
                found += answer
        return found

    async def _aggregate(self, name: str, stages: Sequence[Document]) -> AsyncIterator[Document]:
        """The documents that these stages make of a collection. May take long before the first comes."""
        async with self._long_request():
            cursor = await self._collection(name).aggregate(stages, allowDiskUse=True)
        with translated():
            async with cursor:
                async for document in cursor:
                    yield document

    @asynccontextmanager
    async def _long_request(self) -> AsyncIterator[None]:
        """Allow the requests within `SUM_SECONDS`."""
        await self.ping()  # `pymongo.timeout` is also how long the driver would wait for a server that is away
        with translated(), pymongo.timeout(SUM_SECONDS):
            yield


S = TypeVar("S", bound=Connection)


class Patient(Generic[S]):
    """Repeats a batch's request until MongoDB answers or the batch's partition is lost.

    Arguments:
        store: Its missing indexes are created before the first request.
        outage: Whether MongoDB is away, as all of the worker see it.
    """

    def __init__(self, store: S, outage: Outage) -> None:
        self.store = store
        self._outage = outage
        self._prepared = False

    async def __call__(self, batch: Batch, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call `attempt` until it does not raise `Unavailable`; returns its answer. `attempt` must be idempotent.

        Raises:
            PartitionLost: Another worker has the partition.
        """

        async def prepared() -> T:
            if not self._prepared:
                await self.store.prepare()
                self._prepared = True
            return await attempt()

        return await retrying(self._outage, batch.check_owned, prepared)


# -- the client


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
        why = "an option in it is wrong" if unclear else one_line(str(error))
        raise Refused(f"mongodb.uri: {why}") from None  # the cause may hold what the message must not
