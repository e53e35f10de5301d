"""Products, their price history, and customers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from functools import cache
from operator import itemgetter

from shopflow.errors import Unavailable

from .connection import BY_ID, FROM_KAFKA, REQUESTS_AT_ONCE, Connection
from .errors import UNENCODABLE, described, is_taken, unencodable
from .rules import newest, no_price_document, price_document, removals, replacement
from .types import BEGINNING, CUSTOMERS, PRICES, PRODUCTS, TIME, Deletion, Document, PriceHistory

#: The fields with the names of products and customers.
_NAMES = {PRODUCTS: ("name",), CUSTOMERS: ("first_name", "last_name")}
#: How long MongoDB looks for a name. There is no index of names: each would slow down every registration, and the ones
#: that ignore case and accents are unknown to some servers.
SEARCH_SECONDS = 2.0
#: Letters that Unicode does not take apart into a letter and an accent.
_STROKES = str.maketrans("łŁđĐøØħĦ", "lLdDoOhH")


class Catalogue(Connection):
    """The collections `products`, `prices` and `customers`."""

    async def upsert_products(self, documents: Sequence[Document]) -> dict[int, str]:
        """Store products and their prices. Returns the indexes of refused products, with the reasons.

        The newest `updated_at` wins, in any order of calls and with any number of workers. Of two equal times the later
        call wins, but within a partition a smaller offset never wins over a larger one.
        """
        with self._measured(PRODUCTS) as outcomes:
            # Prices are written first: a product without a price history counts as always having had its present price.
            # Products that can't be encoded are refused before, so that they leave no price behind.
            refused = unencodable(documents, range(len(documents)))
            for name, made in ((PRICES, price_document), (PRODUCTS, dict)):
                kept = [index for index in range(len(documents)) if index not in refused]
                refused_now = await self._upsert(name, [made(documents[index]) for index in kept])
                refused |= {kept[number]: reason for number, reason in refused_now.items()}
            outcomes |= {"upserted": len(documents) - len(refused), "refused": len(refused)}
        return refused

    async def upsert_customers(self, documents: Sequence[Document]) -> dict[int, str]:
        """Store customers, by the rules of `upsert_products`, with the time `registered_at`."""
        with self._measured(CUSTOMERS) as outcomes:
            refused = await self._upsert(CUSTOMERS, documents)
            outcomes |= {"upserted": len(documents) - len(refused), "refused": len(refused)}
        return refused

    async def delete_products(self, deletions: Sequence[Deletion]) -> None:
        """Delete products, unless a later record of the same partition is stored. They have no price from `at` on."""
        with self._measured(PRODUCTS, deleted=len(deletions)):
            refused = await self._upsert(PRICES, [no_price_document(deletion) for deletion in deletions])
            if refused:  # not the event's fault: another program has set rules for the collection
                raise Unavailable("MongoDB", f"collection {PRICES}: {next(iter(refused.values()))}")
            await self._delete(PRODUCTS, deletions)

    async def delete_customers(self, deletions: Sequence[Deletion]) -> None:
        """Delete customers, unless a later record of the same partition is stored. Their purchases stay."""
        with self._measured(CUSTOMERS, deleted=len(deletions)):
            await self._delete(CUSTOMERS, deletions)

    async def products(self) -> list[Document]:
        """All products, by name."""
        found = await self._read(PRODUCTS, {})
        return sorted(found, key=lambda product: (str(product.get("name", "")), product["_id"]))

    async def after(self, name: str, after: str, limit: int, text: str | None = None) -> list[Document]:
        """At most `limit` products or customers with ids greater than `after`, by id.

        Arguments:
            name: The collection.
            text: Only those with a name in which each word of the text begins a word, whatever the case and accents.

        Raises:
            Slow: MongoDB has not found them within `SEARCH_SECONDS`.
        """
        condition: Document = {"_id": {"$gt": after}}
        if text is None:
            return await self._read(name, condition, sort=BY_ID, limit=limit)
        words = "".join(letter if letter.isprintable() else " " for letter in text).split()
        if not words:
            return []
        begins = [{"$regex": rf"(^|[\s'-]){''.join(map(_alike, word))}"} for word in words]
        condition["$and"] = [{"$or": [{field: one} for field in _NAMES[name]]} for one in begins]
        return await self._read(name, condition, sort=BY_ID, limit=limit, most_ms=int(1_000 * SEARCH_SECONDS))

    async def stocked(self, topic: str, partitions: Collection[int], after: str, limit: int) -> list[Document]:
        """At most `limit` products with a stock, from these partitions, with ids greater than `after`, by id."""
        condition = {
            "stock": {"$gte": 0},
            "_id": {"$gt": after},
            "source.topic": {"$eq": topic},
            "source.partition": {"$in": list(partitions)},
        }
        return await self._read(PRODUCTS, condition, sort=BY_ID, limit=limit)

    async def price_history(self, product_ids: Collection[str]) -> dict[str, PriceHistory]:
        """The price history of each product that has one, by product id.

        A product that another program stored, without a history, has its present price from `BEGINNING` on.
        """
        prices: dict[str, list[tuple[datetime, int | None]]] = {}
        fields = {"_id": 0, "product_id": 1, "since": 1, "price": 1}
        for document in await self._find(PRICES, "product_id", product_ids, fields):
            prices.setdefault(document["product_id"], []).append((document["since"], document["price"]))
        without = [product_id for product_id in product_ids if product_id not in prices]
        for product in await self._find(PRODUCTS, "_id", without, {"price": 1}):
            if isinstance(product.get("price"), int):
                prices[product["_id"]] = [(BEGINNING, product["price"])]
        return {name: PriceHistory(tuple(sorted(found, key=itemgetter(0)))) for name, found in prices.items()}

    async def customer_ids(self, limit: int) -> list[str]:
        """At most `limit` ids of customers, sorted."""
        return [customer["_id"] for customer in await self._read(CUSTOMERS, {}, {"_id": 1}, sort=BY_ID, limit=limit)]

    async def registered(self, customer_ids: Collection[str]) -> set[str]:
        """The ids of those customers that are registered."""
        found = await self._find(CUSTOMERS, "_id", customer_ids, {"_id": 1}, at_once=REQUESTS_AT_ONCE)
        return {customer["_id"] for customer in found}

    def registrations(self) -> AsyncIterator[Document]:
        """`_id`, `city` and `registered_at` of the customers that came from Kafka, in no order."""
        return self._stream(CUSTOMERS, FROM_KAFKA, {"city": 1, "registered_at": 1})

    async def _upsert(self, name: str, documents: Sequence[Document]) -> dict[int, str]:
        """Store each document unless a newer one is stored. Returns the indexes of refused ones, with the reasons."""
        refused: dict[int, str] = {}
        waiting = list(range(len(documents)))
        while waiting:
            chosen = newest(documents, waiting, TIME[name])
            refused_now = await self._put(name, documents, chosen)
            refused |= refused_now
            # A document that lost to a refused one is tried next.
            open_ids = {documents[index]["_id"] for index in refused_now}
            waiting = [index for index in waiting if documents[index]["_id"] in open_ids and index not in refused]
        return refused

    async def _put(self, name: str, documents: Sequence[Document], indexes: Sequence[int]) -> dict[int, str]:
        """Insert these, and replace those that are stored. Most are new; an insert takes a tenth of an upsert's time.

        Returns the refused ones, with the reasons.
        """
        try:
            errors = await self._send("insert", name, [documents[index] for index in indexes])
        except UNENCODABLE:
            return await self._replace(name, documents, indexes)  # it finds out which can't be encoded
        refused = {indexes[error["index"]]: described(error) for error in errors if not is_taken(error)}
        stored = [indexes[error["index"]] for error in errors if is_taken(error)]
        return refused | await self._replace(name, documents, stored)

    async def _replace(self, name: str, documents: Sequence[Document], indexes: Sequence[int]) -> dict[int, str]:
        refused: dict[int, str] = {}
        for _ in range(3):
            if not indexes:
                return refused
            statements = [replacement(documents[index], TIME[name]) for index in indexes]
            try:
                errors = await self._send("update", name, statements)
            except UNENCODABLE:
                if not (found := unencodable(documents, indexes)):
                    raise
                refused |= found
                indexes = [index for index in indexes if index not in found]
                continue
            refused |= {indexes[error["index"]]: described(error) for error in errors if not is_taken(error)}
            # Two workers may insert the same new id at once. The update of the slower one is repeated.
            indexes = [indexes[error["index"]] for error in errors if is_taken(error)]
        if indexes:
            raise Unavailable("MongoDB", f"collection {name}: other workers keep inserting the same documents")
        return refused

    async def _delete(self, name: str, deletions: Sequence[Deletion]) -> None:
        await self._write(name, [operation for deletion in deletions for operation in removals(deletion)])


def _alike(letter: str) -> str:
    """A pattern of all letters that differ from this one in case and accents only."""
    return f"[{_families().get(_plain(letter), letter + letter.swapcase())}]" if letter.isalpha() else re.escape(letter)


@cache
def _families() -> dict[str, str]:
    found: dict[str, str] = {}
    for letter in filter(str.isalpha, map(chr, range(ord("A"), 0x180))):  # Latin, with the letters of Europe
        found[_plain(letter)] = found.get(_plain(letter), "") + letter
    return found


def _plain(letter: str) -> str:
    return unicodedata.normalize("NFD", letter.translate(_STROKES))[0].lower()
