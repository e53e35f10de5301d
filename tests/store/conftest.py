"""The store on a real server, with its indexes."""

from __future__ import annotations

import pytest

from shopflow.store import MongoStore
from tests.conftest import Run


@pytest.fixture
def store(mongo_store: MongoStore, run: Run) -> MongoStore:
    """A store with an empty database."""
    run(mongo_store.prepare())
    return mongo_store
