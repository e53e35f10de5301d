"""Stores that record their requests, and are away for some of them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

from pymongo.database import Database

from shopflow.errors import Unavailable
from shopflow.store import MongoStore
from shopflow.store.types import Document


class Interrupted:
    """A store that records its requests and can be away.

    Attributes:
        calls: The names of the requests that were answered.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._away = 0

    def away(self, calls: int) -> None:
        """Raise `Unavailable` for this many requests."""
        self._away = calls

    def _called(self, name: str) -> None:
        if self._away > 0:
            self._away -= 1
            raise Unavailable("MongoDB", "away")
        self.calls.append(name)


class ObservedStore(Interrupted):
    """A real `MongoStore` whose requests are recorded."""

    def __init__(self, store: MongoStore) -> None:
        super().__init__()
        self._store = store

    def __getattr__(self, name: str) -> Any:
        request = getattr(self._store, name)

        async def answered(*arguments: Any, **options: Any) -> Any:
            self._called(name)
            return await request(*arguments, **options)

        async def streamed(*arguments: Any, **options: Any) -> AsyncIterator[Any]:
            self._called(name)
            async for one in request(*arguments, **options):
                yield one

        return answered if inspect.iscoroutinefunction(request) else streamed


class ByHand:
    """Changes by another program in the shop's database."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database

    def find(self, collection: str, name: str) -> Document:
        found = self._database[collection].find_one({"_id": name})
        assert found is not None
        return found

    def put(self, collection: str, document: Document) -> None:
        """Insert the document, or replace the one with its `_id`."""
        self._database[collection].replace_one({"_id": document["_id"]}, document, upsert=True)

    def change(self, collection: str, name: str, /, **fields: Any) -> None:
        """Set these fields of an existing document."""
        assert self._database[collection].update_one({"_id": name}, {"$set": fields}).matched_count

    def remove(self, collection: str, name: str) -> Document:
        """Delete an existing document; returns it."""
        removed: Document | None = self._database[collection].find_one_and_delete({"_id": name})
        assert removed is not None
        return removed

    def clear(self, *collections: str) -> None:
        """Delete all documents of these collections."""
        for collection in collections:
            self._database[collection].delete_many({})
