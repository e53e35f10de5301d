"""The requests of a batch to the store: each test runs on the fake and on a real MongoDB-protocol server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shopflow.store.errors import unencodable
from shopflow.store.types import Document
from tests.support.fakes import FakeStore

Stored = Callable[[str], dict[str, Document]]
Put = Callable[[str, Document], None]


@pytest.fixture(params=["fake", pytest.param("mongodb", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest) -> Any:
    """The fake, then MongoDB with a database of the test's own."""
    if request.param == "mongodb":
        return request.getfixturevalue("mongo_store")
    fake = FakeStore()
    fake.refuses = lambda document: unencodable([document], [0]).get(0)
    return fake


@pytest.fixture
def stored(store: Any, request: pytest.FixtureRequest) -> Stored:
    """Returns the documents of a collection by their ids, as another program finds them."""
    if isinstance(store, FakeStore):
        return lambda collection: dict(sorted(store.collections[collection].items()))
    database = request.getfixturevalue("database")
    return lambda collection: {one["_id"]: one for one in database[collection].find(sort=[("_id", 1)])}


@pytest.fixture
def put(store: Any, request: pytest.FixtureRequest) -> Put:
    """Inserts a document as another program does."""
    if isinstance(store, FakeStore):
        return lambda collection, document: store.collections[collection].update({document["_id"]: document})
    database = request.getfixturevalue("database")
    return lambda collection, document: database[collection].insert_one(dict(document))
