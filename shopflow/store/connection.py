"""The connection to MongoDB: the client, its options, and the base class with all kinds of requests."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import timezone
from time import monotonic
from typing import Any, Generic, TypeVar

import pymongo
from bson.codec_options import TypeDecoder, TypeRegistry
from bson.int64 import Int64
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import NetworkTimeout, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from faust_batches import Batch, Outage, retrying
from shopflow.errors import Refused, Slow, Unavailable

from .errors import (
    MAX_MESSAGE_BYTES,
    OTHER_INDEX,
    described,
    documents_errors,
    failure,
    in_messages,
    one_line,
    reason,
    translated,
)
from .pace import Pace, Slowness
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
    (VOUCHERS, [("source.topic", 1), ("source.partition", 1), ("source.offset", 1)]),
    (ALERTS, [("at", -1), ("_id", 1)]),
)

#: The most ids in one request: some servers compare every document with every id of a `$in`.
IDS_AT_ONCE = 100
#: The most parallel requests while many documents are read by id.
REQUESTS_AT_ONCE = 4
#: Documents of one page while a whole collection is read by id.
PAGE_SIZE = 2_000
#: The time limit for summing or sorting all purchases: the first reply takes longer than the socket timeout.
SUM_SECONDS = 3_600.0

BY_ID = [("_id", 1)]
FROM_KAFKA: Document = {"source.origin": "kafka"}
WRITE_CONCERN = WriteConcern("majority", j=True)

_SOCKET_SECONDS = 30
#: A write's time limit on the server, as a share of the client's timeout.
_LIMIT_SHARE = 0.8
#: Options of the client. The URI may set others.
_DEFAULTS = {
    "appname": "shopflow",
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": 1_000 * _SOCKET_SECONDS,
}

#: The command's field with the documents or statements, by the kind of the write.
_STATEMENTS = {"insert": "documents", "update": "updates", "delete": "deletes"}
#: How long a server may take to answer a ping after a write had no answer.
_ANSWER_SECONDS = 5.0

D = TypeVar("D")
T = TypeVar("T")
Fields = Mapping[str, int] | None
Sort = Sequence[tuple[str, int]]
#: Called with a collection, the seconds that a write took, and how many documents had which outcome.
OnWrite = Callable[[str, float, Mapping[str, int]], None]


class Connection:
    """A MongoDB database, with the requests that are common to all collections. Call `connect` first.

    Attributes:
        on_write: Called after each successful write of products, customers and purchases.

    Arguments:
        database: The database's name.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._client: AsyncMongoClient[Document] | None = None
        self.on_write: OnWrite = lambda collection, seconds, outcomes: None

    def connect(self, uri: str) -> None:
        """Create the client. It connects at the first request.

        Raises:
            Refused: The URI is malformed; the message names `mongodb.uri` and never holds a password.
        """
        self._client = _client(uri)

    async def prepare(self) -> None:
        """Create missing indexes.

        Raises:
            Refused: Another index with the same name exists.
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
        """The documents of a collection with these ids, by id, unchanged."""
        found = await self._find(collection, "_id", ids, at_once=REQUESTS_AT_ONCE)
        return {document["_id"]: document for document in found}

    async def sources(self, collection: str) -> AsyncIterator[tuple[str, Document]]:
        """`_id` and `source` of each document of a collection that came from Kafka, in no order."""
        async for document in self._stream(collection, FROM_KAFKA, {"source": 1}):
            yield document["_id"], document["source"]

    async def pages(self, collection: str, after: str = "") -> AsyncIterator[list[Document]]:
        """The documents of a collection with ids greater than `after`, by `_id`, in pages, unchanged.

        After `Unavailable` the caller can continue from the last id. It is also raised if the caller paused for longer
        than MongoDB keeps a cursor. Documents whose `_id` is not a string are left out; shopflow stores none.
        """
        cursor = self._collection(collection).find({"_id": {"$gt": after}}, sort=BY_ID, batch_size=PAGE_SIZE)
        async with cursor:
            async with self._long_request():  # some servers sort the whole collection before the first reply
                page = await cursor.to_list(PAGE_SIZE)
            while page:
                yield page
                with translated():
                    page = await cursor.to_list(PAGE_SIZE)

    async def sizes(self) -> dict[str, int]:
        """The number of documents in `products`, `customers`, `purchases` and `prices`."""
        found = {}
        for name in (PRODUCTS, CUSTOMERS, PURCHASES, PRICES):
            async with self._long_request():
                found[name] = await self._collection(name).count_documents({})  # an estimate is wrong after a crash
        return found

    # -- requests

    @property
    def _connected(self) -> AsyncMongoClient[Document]:
        if self._client is None:
            raise RuntimeError("MongoStore.connect has not been called")
        return self._client

    def _collection(self, name: str) -> AsyncCollection[Document]:
        # These options override the URI, because the guarantee depends on them. Majority: an election may roll back a
        # write that only the primary has, but nothing undoes decisions based on it (a duplicate is not counted, a price
        # is kept). Primary: a secondary may not have the latest writes yet.
        database = self._connected.get_database(
            self._database,
            read_preference=ReadPreference.PRIMARY,
            write_concern=WRITE_CONCERN,
            read_concern=ReadConcern("majority"),
        )
        return database[name]

    async def _write(self, name: str, operations: Sequence[Document]) -> None:
        """Do idempotent updates or deletions. Any failure is the server's, never a document's: `Unavailable`."""
        if not operations:
            return
        errors = await self._send("delete" if "limit" in operations[0] else "update", name, operations)
        if errors:  # for example two inserts of one id at once: the next attempt finds the document
            raise failure(errors[0].get("code"), described(errors[0]), name)

    async def _send(
        self, kind: str, name: str, statements: Sequence[Document], size: int | None = None
    ) -> list[Document]:
        """Send an `insert`, `update` or `delete`. Returns the errors of single documents or statements.

        The server ends a command that takes longer than `_LIMIT_SHARE` of the client's timeout. So no write goes on
        after it was given up, beside the one that repeats it. The driver's own bulk writes have no such limit.

        Arguments:
            size: An upper limit of the size in bytes, if it is known; else each is measured.

        Raises:
            Slow: It took too long. Any of the documents may be written.
            Unavailable: The write failed or was not confirmed. Any of the documents may be written.
        """
        errors: list[Document] = []
        database = self._connected.get_database(self._database)
        options = self._how_to_write()
        whole = size is not None and size <= MAX_MESSAGE_BYTES
        for start, some in [(0, statements)] if whole else in_messages(statements):
            try:
                with translated():
                    reply = await database.command({kind: name, _STATEMENTS[kind]: some, **options})
            except Unavailable as error:
                if isinstance(error.__cause__, NetworkTimeout) and await self._answers():
                    took = f"it answers, but did not finish a write within {self._timeout:g} s"
                    raise Slow("MongoDB", took) from error
                raise
            found = documents_errors(reply.get("writeErrors", []), reply.get("writeConcernError"))
            errors += [{**one, "index": one["index"] + start} for one in found]
        return errors

    @property
    def _timeout(self) -> float:
        """The client's timeout of a request, in seconds."""
        return self._connected.options.pool_options.socket_timeout or _SOCKET_SECONDS

    def _how_to_write(self) -> Document:
        """The options of every command that writes."""
        limit = int(1_000 * _LIMIT_SHARE * self._timeout)
        return {"ordered": False, "writeConcern": WRITE_CONCERN.document, "maxTimeMS": limit}

    async def _answers(self) -> bool:
        asked = asyncio.ensure_future(self.ping())  # never cancelled: see `errors.translated`
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # also if nobody waits any more
        await asyncio.wait({asked}, timeout=_ANSWER_SECONDS)
        return asked.done() and not asked.cancelled() and asked.exception() is None

    @contextmanager
    def _measured(self, collection: str, **outcomes: int) -> Iterator[dict[str, int]]:
        """Call `on_write` after the body if it raised nothing. The body may add outcomes to the dict that it gets."""
        began = monotonic()
        yield outcomes
        self.on_write(collection, monotonic() - began, outcomes)

    async def _read(
        self,
        name: str,
        condition: Document,
        fields: Fields = None,
        *,
        sort: Sort = (),
        limit: int | None = None,
        most_ms: int | None = None,
    ) -> list[Document]:
        """At most `limit` documents (None: all), in one list. After `most_ms` the server gives up: `Slow`."""
        if limit is not None and limit < 1:
            return []
        with translated():
            found = self._collection(name).find(condition, fields, sort=sort, limit=limit or 0, max_time_ms=most_ms)
            return await found.to_list()

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
        """Documents whose field `key` has one of these values, read by `at_once` parallel requests."""
        wanted = list(values)
        parts = [wanted[start : start + IDS_AT_ONCE] for start in range(0, len(wanted), IDS_AT_ONCE)]
        found: list[Document] = []
        for start in range(0, len(parts), at_once):
            some = parts[start : start + at_once]
            for answer in await asyncio.gather(*(self._read(name, {key: {"$in": part}}, fields) for part in some)):
                found += answer
        return found

    async def _aggregate(
        self, name: str, stages: Sequence[Document], seconds: float = SUM_SECONDS
    ) -> AsyncIterator[Document]:
        """The result of an aggregation. The first document may take up to `seconds`."""
        async with self._long_request(seconds):
            cursor = await self._collection(name).aggregate(stages, allowDiskUse=True)
        with translated():
            async with cursor:
                async for document in cursor:
                    yield document

    @asynccontextmanager
    async def _long_request(self, seconds: float = SUM_SECONDS) -> AsyncIterator[None]:
        """Give the body's requests a time limit, which the server gets, too."""
        await self.ping()  # else the driver would wait as long for a server that is away
        with translated(), pymongo.timeout(seconds):
            yield


S = TypeVar("S", bound=Connection)


class Patient(Generic[S]):
    """Retries a batch's request until MongoDB answers or the batch's partition is lost.

    Arguments:
        store: Its missing indexes are created before the first request.
        outage: Tracks MongoDB's outages for the whole worker.
        slowness: Tracks whether it is slow; None: nobody is told.
    """

    def __init__(self, store: S, outage: Outage, slowness: Slowness | None = None) -> None:
        self.store = store
        self._outage = outage
        self._slowness = slowness
        self._prepared = False
        self._paces: dict[str, Pace] = {}

    async def __call__(self, batch: Batch, attempt: Callable[[], Awaitable[T]]) -> T:
        """Retry `attempt` while it raises `Unavailable`, and return its result. `attempt` must be idempotent.

        Raises:
            PartitionLost: The batch is no longer ours.
        """

        async def prepared() -> T:
            if not self._prepared:
                await self.store.prepare()
                self._prepared = True
            with self._slowness.request() if self._slowness else nullcontext():
                return await attempt()

        return await retrying(self._outage, batch.check_owned, prepared)

    async def in_parts(
        self, batch: Batch, name: str, documents: Sequence[D], write: Callable[[Sequence[D]], Awaitable[T]]
    ) -> AsyncIterator[tuple[int, T]]:
        """Write documents in parts, one after the other, each as large as MongoDB takes it in a second or two.

        A part that took too long is repeated in smaller ones. Yields the index of each part's first document, and the
        answer.

        Arguments:
            name: Of the kind of write. Those of one kind have a common pace.
            write: Writes a part. It must be idempotent.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        pace = self._paces.setdefault(name, Pace())
        start = 0

        async def attempt() -> tuple[int, T]:
            part = documents[start : start + pace.size]
            began = monotonic()
            try:
                answer = await write(part)
            except Slow:
                pace.failed(len(part))
                raise
            pace.took(len(part), monotonic() - began)
            return len(part), answer

        while start < len(documents):
            written, answer = await self(batch, attempt)
            yield start, answer
            start += written


# -- the client


class _PlainInt(TypeDecoder):
    """Decodes 64-bit integers as `int`: JSON encoders don't accept the driver's class."""

    bson_type = Int64

    def transform_bson(self, value: Any) -> Any:
        return int(value)


#: Documents of other programs must not stop a reader: a time outside of the years 1 to 9999, or text that is not UTF-8.
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
        # First without the secrets: this error message can't contain them.
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
        fault = "an option in it is wrong" if unclear else one_line(str(error))
        raise Refused(f"mongodb.uri: {fault}") from None  # the cause may contain a secret
