"""Products, the prices that they had, and customers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from operator import itemgetter

from shopflow.errors import Unavailable

from .connection import BY_ID, FROM_KAFKA, REQUESTS_AT_ONCE, Connection
from .errors import UNENCODABLE, described, is_taken, unencodable, written
from .rules import newest, no_price_document, price_document, removals, replacement
from .types import BEGINNING, CUSTOMERS, PRICES, PRODUCTS, TIME, Deletion, Document, PriceHistory


class Catalogue(Connection):
    """What is in `products`, `prices` and `customers`."""

    async def upsert_products(self, documents: Sequence[Document]) -> dict[int, str]:
        """Store products, and every price that they bring. Returns what was refused, by index, with the reason.

        The newest `updated_at` wins, whatever the order of the calls and however many workers make them; of equal ones
        the later, except that one partition's smaller offset never wins over its larger.
        """
        with self._measured(PRODUCTS) as outcomes:
            # The prices first: a product without its price history would be taken for one that always had its newest
            # price. Hence a product that can't be sent is found before: its price must not stay behind.
            refused = unencodable(documents, range(len(documents)))
            for name, made in ((PRICES, price_document), (PRODUCTS, dict)):
                kept = [index for index in range(len(documents)) if index not in refused]
                refused_now = await self._upsert(name, [made(documents[index]) for index in kept])
                refused |= {kept[position]: why for position, why in refused_now.items()}
            outcomes |= {"upserted": len(documents) - len(refused), "refused": len(refused)}
        return refused

    async def upsert_customers(self, documents: Sequence[Document]) -> dict[int, str]:
        """Store customers; as `upsert_products`, the time being `registered_at`."""
        with self._measured(CUSTOMERS) as outcomes:
            refused = await self._upsert(CUSTOMERS, documents)
            outcomes |= {"upserted": len(documents) - len(refused), "refused": len(refused)}
        return refused

    async def delete_products(self, deletions: Sequence[Deletion]) -> None:
        """Delete products, unless what is stored came later in the same partition. They have no price from `at` on."""
        with self._measured(PRODUCTS, deleted=len(deletions)):
            refused = await self._upsert(PRICES, [no_price_document(deletion) for deletion in deletions])
            if refused:  # not the event's fault: somebody else's rules for our collection
                raise Unavailable("MongoDB", f"collection {PRICES}: {next(iter(refused.values()))}")
            await self._delete(PRODUCTS, deletions)

    async def delete_customers(self, deletions: Sequence[Deletion]) -> None:
        """Delete customers, unless what is stored came later in the same partition. Their purchases stay."""
        with self._measured(CUSTOMERS, deleted=len(deletions)):
            await self._delete(CUSTOMERS, deletions)

    async def products(self) -> list[Document]:
        """All products, by name."""
        found = await self._read(PRODUCTS, {})
        return sorted(found, key=lambda product: (str(product.get("name", "")), product["_id"]))

    async def products_after(self, after: str, limit: int) -> list[Document]:
        """At most `limit` products, by id, those behind this id ("": from the first on)."""
        return await self._read(PRODUCTS, {"_id": {"$gt": after}}, sort=BY_ID, limit=limit)

    async def stocked(self, topic: str, partitions: Collection[int], after: str, limit: int) -> list[Document]:
        """At most `limit` products that carry a stock and came from these partitions, by id, those behind this id."""
        condition = {
            "stock": {"$gte": 0},
            "_id": {"$gt": after},
            "source.topic": {"$eq": topic},
            "source.partition": {"$in": list(partitions)},
        }
        return await self._read(PRODUCTS, condition, sort=BY_ID, limit=limit)

    async def price_history(self, product_ids: Collection[str]) -> dict[str, PriceHistory]:
        """The prices of those products that are known.

        A product that another program put there, without a history, has the price that it has.
        """
        prices: dict[str, list[tuple[datetime, int | None]]] = {}
        fields = {"_id": 0, "product_id": 1, "since": 1, "price": 1}
        for document in await self._find(PRICES, "product_id", product_ids, fields):
            prices.setdefault(document["product_id"], []).append((document["since"], document["price"]))
        without = [product_id for product_id in product_ids if product_id not in prices]
        for product in await self._find(PRODUCTS, "_id", without, {"price": 1}):
            if isinstance(product.get("price"), int):
                prices[product["_id"]] = [(BEGINNING, product["price"])]
        return {name: PriceHistory(tuple(sorted(known, key=itemgetter(0)))) for name, known in prices.items()}

    async def customer_ids(self, limit: int) -> list[str]:
        """At most `limit` ids, in their order."""
        return [customer["_id"] for customer in await self._read(CUSTOMERS, {}, {"_id": 1}, sort=BY_ID, limit=limit)]

    async def registered(self, customer_ids: Collection[str]) -> set[str]:
        """Which of these customers are registered."""
        found = await self._find(CUSTOMERS, "_id", customer_ids, {"_id": 1}, at_once=REQUESTS_AT_ONCE)
        return {customer["_id"] for customer in found}

    def registrations(self) -> AsyncIterator[Document]:
        """`_id`, `city` and `registered_at` of the customers that came from Kafka, in no order."""
        return self._stream(CUSTOMERS, FROM_KAFKA, {"city": 1, "registered_at": 1})

    async def _upsert(self, name: str, documents: Sequence[Document]) -> dict[int, str]:
        """Store each document unless a newer one is stored; returns which were refused and why."""
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
                errors = await written(self._collection(name).bulk_write(operations, ordered=False))
            except UNENCODABLE:
                if not (found := unencodable(documents, indexes)):
                    raise
                refused |= found
                indexes = [index for index in indexes if index not in found]
                continue
            refused |= {indexes[error["index"]]: described(error) for error in errors if not is_taken(error)}
            # Two workers may store a new id at the same moment; the one that lost compares again.
            indexes = [indexes[error["index"]] for error in errors if is_taken(error)]
        if indexes:
            raise Unavailable("MongoDB", f"collection {name}: others keep writing the same documents")
        return refused

    async def _delete(self, name: str, deletions: Sequence[Deletion]) -> None:
        await self._write(name, [operation for deletion in deletions for operation in removals(deletion)])
