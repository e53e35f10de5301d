"""The log of a worker in an outage: one line at its beginning and one at its end, however long it lasts."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Shop, Worker, own_servers, purchase, until

from .crew import Server

pytestmark = pytest.mark.servers

#: Seconds without an event after which Faust takes a stream for stuck; 300 by default. So seconds stand for an hour.
FAUSTS_PATIENCE_SECONDS = 1
_OUTAGE_SECONDS = 8.0
_BACK_SECONDS = 90.0


class Own:
    """A shop with a Kafka and a MongoDB of its own."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.servers = {kind: Server(shop, kind) for kind in ("kafka", "mongodb")}
        for variable in ("STREAM_PROCESSING_TIMEOUT", "BROKER_COMMIT_LIVELOCK_SOFT_TIMEOUT"):
            shop.environment[variable] = str(FAUSTS_PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def own(open_shop: OpenShop) -> Iterator[Own]:
    """One shop for all tests of the module. Each test has a worker of its own."""
    with open_shop(**own_servers("kafka", "mongodb")) as shop:
        yield Own(shop)


@pytest.fixture
def worker(own: Own) -> Iterator[Worker]:
    """A worker that has stored a purchase and has logged nothing."""
    started = own.shop.start_worker(level="warn").ready()
    own.shop.sell(purchase())
    own.shop.drain(_BACK_SECONDS)
    yield started
    started.kill()


def told(worker: Worker, before: int) -> list[str]:
    """The lines that the worker wrote since `before`, without times, and without what a signal prints."""
    lines = [line for line in worker.output[before:].splitlines() if "-INT-" not in line and "\x1b" not in line]
    return [line.rpartition("] ")[2] for line in lines]


@contextmanager
def killed(server: Server) -> Iterator[None]:
    """Kill the server before the body, and start it again afterwards."""
    server.kill()
    try:
        yield
    finally:
        server.restart()


@pytest.mark.parametrize(
    ("kinds", "gone"),
    [(("mongodb",), Server.frozen), (("kafka",), killed), (("kafka", "mongodb"), Server.frozen)],
    ids=["mongodb", "kafka-killed", "kafka-mongodb"],
)
def test_a_long_outage_is_two_lines(
    own: Own, worker: Worker, kinds: tuple[str, ...], gone: Callable[[Server], AbstractContextManager[None]]
) -> None:
    """Each server has two lines, though two hundred events wait and Faust takes each of their streams for stuck.

    A worker that is stopped in an outage logs no more than that.
    """
    names = [{"kafka": "Kafka", "mongodb": "MongoDB"}[kind] for kind in kinds]
    away, back = [f"{name} is away; " for name in names], [f"{name} is back after " for name in names]
    before = len(worker.output)

    def says(*beginnings: str) -> bool:
        """True if the worker's lines are these, in any order."""
        lines = told(worker, before)
        assert len(lines) <= len(beginnings), f"{len(lines)} lines: {lines[:20]}"
        return all(any(line.startswith(beginning) for line in lines) for beginning in beginnings)

    def outage(stack: ExitStack) -> None:
        own.shop.sell(*(purchase() for _ in range(200)))
        for kind in kinds:
            stack.enter_context(gone(own.servers[kind]))

    with ExitStack() as stack:
        outage(stack)
        until(lambda: says(*away), "the outage is told", 60)
        deadline = time.monotonic() + _OUTAGE_SECONDS
        while time.monotonic() < deadline:  # more waits in each partition than a batch, so some records are not fetched
            assert says(*away)
            if "kafka" not in kinds:
                own.shop.sell(*(purchase() for _ in range(20)))
            time.sleep(0.5)
    until(lambda: says(*away, *back), "the end of the outage is told", 60)
    own.shop.drain(_BACK_SECONDS)
    assert says(*away, *back)
    before = len(worker.output)
    with ExitStack() as stack:
        outage(stack)
        until(lambda: says(*away), "the next outage is told", 60)
        worker.send(signal.SIGINT)
        status = worker.wait(60)
        unstopped = "not stopped within 5 s; ended. The next worker gets unfinished batches again."
        assert (status, says(*away)) == (0, True) if status == 0 else says(*away, f"Error: {unstopped}")
