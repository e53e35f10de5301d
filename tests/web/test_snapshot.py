"""An answer that many want is asked for once, in bounded time."""

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
    """Counts what it is asked, and answers when it is let."""

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
    """And none while the answer is fresh."""

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
    """The answer before counts meanwhile, and no second request is sent."""

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


def test_who_takes_long_has_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many times as long as the answer took, and never less than all answers are cached."""

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
        assert await cached.get() == 2

    asyncio.run(run())


def test_what_sold_the_vouchers_and_the_alerts_come_from_mongodb(
    monkeypatch: pytest.MonkeyPatch, store: ObservedStore, run: Run
) -> None:
    """Ever, and of the day that began at 0:00 UTC; bounded."""
    day = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    sales = [
        PartitionSales(period, start, f"p{number}", 1, number, 3 * number, (0, number))
        for number in range(12)
        for period, start in (("total", None), ("day", day - number * DAY))
    ]
    run(store.put_sales(0, sales))
    run(store.insert_vouchers([voucher(f"v{number}", at=day + number * DAY) for number in range(12)]))
    run(store.restore("alerts", [alert(f"a{number}", 1, day + number * DAY) for number in range(9)]))
    monkeypatch.setattr(snapshot, "store", store)
    found = run(snapshot._ask_learned())
    assert [one["units"] for one in found.ever] == list(range(11, 1, -1))
    assert [one["product_id"] for one in found.today] == ["p0"]
    assert [one["_id"] for one in found.alerts] == ["a8", "a7", "a6", "a5", "a4"]
    assert [one["_id"] for one in found.vouchers] == [f"v{number}" for number in range(11, 3, -1)]


def test_why_there_is_no_answer_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """None before it was ever asked; empty when it is there again. The answer before stays."""
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
def test_whatever_another_worker_answers(
    status: int, body: bytes, found: Report | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of another version, or be no worker at all."""

    async def ask(*_: object, **__: object) -> tuple[int, bytes]:
        return status, body

    monkeypatch.setattr(peers, "app", SimpleNamespace(http_client=None))
    monkeypatch.setattr(peers.client, "ask", ask)
    assert asyncio.run(snapshot._ask_worker(peers.URL("http://h:1"))) == WorkerState("http://h:1", found)


def test_a_pause_ends_a_trend() -> None:
    """Nothing is measured while nobody looks at the page; what was before tells nothing of the time between."""
    early = [snapshot.Waiting(float(at), 5, 0) for at in range(0, 20, 2)]
    late = [snapshot.Waiting(float(at), 5, 0) for at in range(500, 510, 2)]
    assert snapshot._recent([*early, *late]) == late
    assert snapshot._recent(late) == late


def test_the_end_of_a_transaction_is_no_event_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead letters are put back by transactions. It is looked once where a partition stands still."""
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
