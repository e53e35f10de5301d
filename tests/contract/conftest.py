"""Each test of the store runs on the fake and on a real MongoDB-protocol server."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shopflow.config.settings import Config
from shopflow.servers.servers import Servers
from shopflow.store import MongoStore
from shopflow.store.errors import unencodable
from shopflow.store.types import Document
from tests.support.fakes import FakeStore

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for the session: the one that SHOPFLOW_TEST_MONGODB_URI names, else the embedded one."""
    if given := os.environ.get("SHOPFLOW_TEST_MONGODB_URI"):
        yield given
        return
    pytest.importorskip("secantus")
    folder: Path = tmp_path_factory.mktemp("mongodb")
    config = msgspec.convert({"broker": "kafka://127.0.0.1:1", "data_dir": str(folder)}, Config)
    with Servers(config, lambda line: None) as servers:
        yield servers.start().mongodb


@pytest.fixture
def run() -> Iterator[Run]:
    """Run a coroutine, all of a test's in one event loop."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture(params=["fake", pytest.param("mongodb", marks=pytest.mark.servers)])
def store(request: pytest.FixtureRequest, run: Run) -> Iterator[MongoStore]:
    """The fake, then MongoDB with a database of the test's own."""
    if request.param == "fake":
        fake = FakeStore()
        fake.refuses = _impossible
        yield fake
        return
    mongodb = MongoStore(f"test-{uuid.uuid4().hex}")
    mongodb.connect(request.getfixturevalue("mongodb_uri"))
    run(mongodb.prepare())
    yield mongodb
    run(_dropped(mongodb))


async def _dropped(store: MongoStore) -> None:
    await store._connected.drop_database(store._database)
    await store.close()


def _impossible(document: Document) -> str | None:
    """Why no MongoDB takes this document."""
    return unencodable([document], [0]).get(0)
