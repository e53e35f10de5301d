"""Cached answers: many visitors make one request, and nobody waits long for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime, timezone
from types import SimpleNamespace

import msgspec
import pytest

from shopflow import topics
from shopflow.errors import Unavailable
from shopflow.kafka import offsets
from shopflow.kafka.lag import EmptySpans
from shopflow.kafka.offsets import Span
from shopflow.store.types import PartitionSales
from shopflow.web import cached as cached_module
from shopflow.web import peers
from shopflow.web.cached import Cached
from shopflow.web.page import snapshot
from shopflow.web.page.warnings import Report, WorkerState
from tests.conftest import Run
from tests.support.documents import DAY, alert, voucher
from tests.support.stores import ObservedStore
from tests.web.test_warnings import report


class Server:
    """Counts its requests, and answers while `free` is set."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails: Exception | None = None
        self.free = asyncio.Event()
        self.free.set()
        self.time = 0.0

    async def ask(self) -> int:
        self.asked += 1
        await self.free.wait()
        if self.fails:
            raise self.fails
        return self.asked


def test_many_who_ask_at_once_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty visitors at once cause one request; a fresh answer causes none."""

    async def run() -> None:
        server = Server()
        monkeypatch.setattr(cached_module, "monotonic", lambda: server.time)
        cached = Cached(server.ask, 2.0, 0)
        assert await asyncio.gather(*(cached.get() for _ in range(50))) == [1] * 50
        assert await cached.get() == 1
        server.time = 2.0
        assert await asyncio.gather(*(cached.get() for _ in range(50))) == [2] * 50
        assert (server.asked, cached.failure) == (2, "")

    asyncio.run(run())


def test_a_server_that_is_slow_holds_nobody_up() -> None:
    """The previous answer is returned meanwhile, and no second request is sent."""

    async def run() -> None:
        server = Server()
        cached = Cached(server.ask, 0.0, 0)
        assert await cached.get() == 1
        server.free.clear()
        for _ in range(3):
            assert await cached.get(patience=0.01) == 1
        assert server.asked == 2
        server.free.set()
        assert await cached.get() == 2

    asyncio.run(run())


def test_a_slow_server_gets_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a slow request there is a pause of `rest` times its duration, so that the page never overloads a server.

    There is none after a request that failed: the page must know soon that the server is back.
    """

    async def run() -> None:
        server = Server()

        monkeypatch.setattr(cached_module, "monotonic", lambda: server.time)

        async def slow() -> int:
            server.time += 2.0
            return await server.ask()

        cached = Cached(slow, 1.0, 0, rest=9.0)
        assert await cached.get() == 1
        server.time += 17.9
        assert await cached.get() == 1
        server.time += 0.1
        server.fails = Unavailable("MongoDB", "away")
        assert await cached.get() == 1
        server.time += 1.0
        server.fails = None
        assert await cached.get() == 3
        assert cached.failure == ""

    asyncio.run(run())


def test_what_sold_the_vouchers_and_the_alerts_come_from_mongodb(
    monkeypatch: pytest.MonkeyPatch, store: ObservedStore, run: Run
) -> None:
    """The page gets a bounded number of each; "today" begins at 0:00 UTC."""
    hour = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    sales = [
        PartitionSales(period, start, f"p{number}", 1, number, 3 * number, (0, number))
        for number in range(12)
        for period, start in (("total", None), ("day", day - number * DAY), ("hour", hour - number * DAY))
    ]
    run(store.put_sales(0, sales))
    run(store.insert_vouchers([voucher(f"v{number}", at=day + number * DAY) for number in range(12)]))
    run(store.restore("alerts", [alert(f"a{number}", 1, day + number * DAY) for number in range(9)]))
    monkeypatch.setattr(snapshot, "store", store)
    found = run(snapshot._ask_learned())
    assert [one["units"] for one in found.ever] == list(range(11, 1, -1))
    assert [one["product_id"] for one in (*found.today, *found.hour)] == ["p0", "p0"]
    assert [one["_id"] for one in found.alerts] == ["a8", "a7", "a6", "a5", "a4"]
    assert [one["_id"] for one in found.vouchers] == [f"v{number}" for number in range(11, 3, -1)]


def test_a_longer_period_has_what_a_shorter_one_has(
    monkeypatch: pytest.MonkeyPatch, store: ObservedStore, run: Run
) -> None:
    """Documents of a total are written after those of its hours. The page shows what both have."""
    day = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    sales = [
        PartitionSales("total", None, "milk", 1, 3, 900, (0, 1)),
        PartitionSales("total", None, "tea", 1, 4, 1, (0, 2)),
        PartitionSales("day", day, "milk", 2, 5, 1_500, (0, 3)),
    ]
    run(store.put_sales(0, sales))
    monkeypatch.setattr(snapshot, "store", store)
    found = run(snapshot._ask_learned())
    assert [(one["product_id"], one["units"], one["revenue"]) for one in found.ever] == [
        ("milk", 5, 1_500),
        ("tea", 4, 1),
    ]


def test_an_answer_has_the_time_at_which_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure leaves the last answer's time. An answer of long ago says nothing about now."""

    async def run() -> None:
        server = Server()
        monkeypatch.setattr(cached_module, "time", lambda: 1_000.0 + server.asked)
        cached = Cached(server.ask, 0.0, 0)
        assert cached.age == cached_module.UNASKED
        await cached.get()
        assert (cached.age.at, cached.age.known(1_001.0), cached.age.known(1_060.0)) == (1_000.0, True, False)
        server.fails = Unavailable("MongoDB", "away")
        await cached.get()
        assert (cached.age.at, cached.age.known(1_001.0)) == (1_000.0, False)

    asyncio.run(run())


def test_why_there_is_no_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """`failure` is None before the first request, then the reason, and empty after a success. The last answer stays."""
    monkeypatch.setattr(cached_module, "MOST_SECONDS", 0.01)

    async def run() -> None:
        server = Server()
        cached = Cached(server.ask, 0.0, 0)
        assert cached.failure is None
        server.fails = Unavailable("MongoDB", "away")
        assert await cached.get() == 0
        assert cached.failure == "MongoDB: away"
        server.free.clear()
        assert await cached.get() == 0
        assert cached.failure == "no answer within 0.01 s"
        server.free.set()
        server.fails = None
        assert await cached.get() == 3
        assert cached.failure == ""

    asyncio.run(run())


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (200, msgspec.json.encode(report(1)), report(1)),
        (503, b'{"error": "busy"}', None),
        (500, b"\xff", None),
        (200, b"{}", None),
    ],
)
def test_a_worker_whose_answer_can_not_be_read_has_no_report(
    status: int, body: bytes, found: Report | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error or a body that can't be decoded counts as no report: the worker may be of another version."""

    async def ask(*_: object, **__: object) -> tuple[int, bytes]:
        return status, body

    monkeypatch.setattr(peers, "app", SimpleNamespace(http_client=None))
    monkeypatch.setattr(peers.client, "ask", ask)
    assert asyncio.run(snapshot._ask_worker(peers.URL("http://h:1"))) == WorkerState("http://h:1", found)


def test_a_pause_ends_a_trend() -> None:
    """The lag is measured only while somebody looks at the page. Measurements of before a pause are dropped."""
    early = [snapshot.Waiting(float(at), 5, 0) for at in range(0, 20, 2)]
    late = [snapshot.Waiting(float(at), 5, 0) for at in range(500, 510, 2)]
    assert snapshot._recent([*early, *late]) == late
    assert snapshot._recent(late) == late


def test_the_end_of_a_transaction_is_no_event_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker of a transaction takes an offset. Spans are checked for markers once, when nothing moves."""
    topic, other = list(topics.KEYS)[:2]
    looked: list[list[tuple[str, int]]] = []

    async def empty(bootstrap: str, places: Mapping[tuple[str, int], Span]) -> set[tuple[str, int]]:
        looked.append(sorted(places))
        return {place for place in places if place[1] == 1}

    monkeypatch.setattr(offsets, "empty", empty)
    monkeypatch.setattr(snapshot, "_empty_spans", EmptySpans())

    def settled(done: int) -> list[int]:
        spans = {topic: {0: Span(0, 3, 9), 1: Span(0, done, 9), 2: Span(0, 9, 9)}, other: {0: Span(0, 0, 0)}}
        found = asyncio.run(snapshot._settled(spans))
        return [span.end - span.done for span in found[topic].values()]

    assert settled(7) == [6, 2, 0]
    assert settled(8) == [6, 1, 0]
    assert settled(8) == [6, 0, 0]
    assert settled(8) == [6, 0, 0]
    assert looked == [[(topic, 0)], [(topic, 1)]]
    assert settled(9) == [6, 0, 0]
