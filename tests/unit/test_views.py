"""The views: sums of this worker, one customer's counts from whoever has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from yarl import URL

from shopflow import views
from shopflow.counting import Counted, advance

ME, NEAR, FAR = URL("http://127.0.0.1:6066"), URL("http://127.0.0.1:6067"), URL("http://127.0.0.1:6068")


class Peers:
    """Other workers: what each answers to the question for one customer."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[int, dict[str, Any]]] = {}
        self.asked: list[URL] = []

    @asynccontextmanager
    async def get(self, url: URL, timeout: Any) -> Any:
        self.asked.append(url)
        status, body = self.answers[url.port or 0]

        async def read() -> dict[str, Any]:
            return body

        yield SimpleNamespace(status=status, json=read)


class Worker:
    """The worker that is asked."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = {0: {}, 2: {}}
        self.peers = Peers()
        self.serving = True
        self.http_client = self.peers
        self.conf = SimpleNamespace(canonical_url=ME)
        self.first = FAR
        self.router = SimpleNamespace(
            tables_metadata=lambda: {ME: {}, NEAR: {}, FAR: {}}, key_store=lambda table, key: self.first
        )

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]:
        return self.rows[partition].get

    def partitions_owned(self) -> list[int]:
        return sorted(self.rows)

    name = "purchase_counts"

    def sell(self, partition: int, *purchases: Counted) -> None:
        self.rows[partition].update(advance(self.getter(partition), purchases, end=9).rows())


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker that owns partitions 0 and 2."""
    made = Worker()
    monkeypatch.setattr(views, "app", made)
    monkeypatch.setattr(views, "purchase_counts", made)
    return made


WEB = SimpleNamespace(json=lambda body, status=200, headers=None: (status, body))


def sums() -> tuple[int, Any]:
    """GET /counts/"""
    answer: tuple[int, Any] = asyncio.run(views.counts.get(WEB, None))
    return answer


def one(customer_id: str, query: str = "") -> tuple[int, Any]:
    """GET /counts/{customer_id}/"""
    request = SimpleNamespace(url=ME / "counts" / customer_id / "", query=dict.fromkeys(filter(None, [query]), "1"))
    answer: tuple[int, Any] = asyncio.run(views.count.get(WEB, request, customer_id))
    return answer


def test_the_sums_are_those_of_the_partitions_that_are_ours(worker: Worker) -> None:
    """However many customers there are, one row a partition is read."""
    worker.sell(0, Counted(0, "anna", 2, 600), Counted(1, "bob", 1, 100))
    worker.sell(2, Counted(0, "eve", 1, 5))
    expected = {"partitions": [0, 2], "customers": 3, "purchases": 3, "items": 4, "spent": 705}
    assert sums() == (200, expected)


def test_a_worker_without_purchases_has_sums_of_zero(worker: Worker) -> None:
    """Not an error."""
    assert sums() == (200, {"partitions": [0, 2], "customers": 0, "purchases": 0, "items": 0, "spent": 0})


def test_while_partitions_change_hands_nothing_is_said(worker: Worker) -> None:
    """A number that is too small would be believed."""
    worker.serving = False
    assert sums()[0] == 503
    assert one("anna")[0] == 503
    assert worker.peers.asked == []


def test_a_customer_of_ours_is_answered_without_asking(worker: Worker) -> None:
    """In whichever of our partitions they are: producers differ in how they choose one."""
    worker.sell(2, Counted(0, "anna", 2, 600))
    assert one("anna") == (200, {"customer_id": "anna", "purchases": 1, "items": 2, "spent": 600})
    assert worker.peers.asked == []


def test_the_worker_that_the_router_names_is_asked_first(worker: Worker) -> None:
    """Then the others, for a customer who is elsewhere."""
    anna = {"customer_id": "anna", "purchases": 7, "items": 9, "spent": 11}
    worker.peers.answers = {6067: (200, anna), 6068: (404, {})}
    assert one("anna") == (200, anna)
    assert [url.port for url in worker.peers.asked] == [6068, 6067]
    assert all(url.path == "/counts/anna/" and "local" in url.query for url in worker.peers.asked)


def test_who_never_bought_is_not_found(worker: Worker) -> None:
    """When all have been asked."""
    worker.peers.answers = {6067: (404, {}), 6068: (404, {})}
    assert one("nobody")[0] == 404
    assert len(worker.peers.asked) == 2


def test_a_worker_that_is_asked_by_another_asks_nobody(worker: Worker) -> None:
    """Else two would ask each other for ever."""
    assert one("nobody", "local")[0] == 404
    assert worker.peers.asked == []


def test_a_peer_that_can_not_say_is_no_answer(worker: Worker) -> None:
    """503, not 404: the customer may be there."""
    worker.peers.answers = {6067: (404, {}), 6068: (503, {})}
    assert one("anna")[0] == 503


@pytest.mark.parametrize("error", [aiohttp.ClientConnectionError("refused"), asyncio.TimeoutError()])
def test_a_peer_that_does_not_answer_is_no_answer(worker: Worker, error: Exception) -> None:
    """It may have the customer."""

    def fails(url: URL, timeout: Any) -> Any:
        raise error

    worker.peers.get = fails  # type: ignore[assignment]
    status, body = one("anna")
    assert status == 503
    assert body["error"].startswith("another worker does not answer")


def test_before_the_router_knows_the_table_all_are_asked(worker: Worker) -> None:
    """In an order that stays."""

    def unknown(table: str, key: str) -> URL:
        raise KeyError(table)

    worker.router.key_store = unknown
    worker.peers.answers = {6067: (404, {}), 6068: (404, {})}
    assert one("nobody")[0] == 404
    assert [url.port for url in worker.peers.asked] == [6067, 6068]


def test_a_customer_of_two_of_our_partitions_is_one_customer(worker: Worker) -> None:
    """Producers differ in how they choose a partition."""
    worker.sell(0, Counted(0, "anna", 2, 600))
    worker.sell(2, Counted(3, "anna", 1, 100))
    assert one("anna") == (200, {"customer_id": "anna", "purchases": 2, "items": 3, "spent": 700})


def answered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The bodies, with status and headers, of what is answered from now on."""
    seen: list[dict[str, Any]] = []

    def answer(body: Any, status: int = 200, headers: Any = None) -> tuple[int, Any]:
        seen.append({"body": body, "status": status, "headers": headers})
        return status, body

    monkeypatch.setattr(WEB, "json", answer)
    return seen


def test_who_is_told_to_come_back_is_told_when(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients and load balancers know `Retry-After`."""
    seen = answered(monkeypatch)
    worker.serving = False
    sums()
    one("anna")
    assert [answer["headers"] for answer in seen] == [{"Retry-After": "1"}] * 2
    assert {answer["body"]["error"] for answer in seen} == {"the counts are being recovered"}


def test_who_is_not_found_is_named(worker: Worker) -> None:
    """With a reason, as JSON like the rest."""
    assert one("nobody", "local") == (
        404,
        {"error": "this customer never bought anything", "customer_id": "nobody"},
    )


def test_when_the_router_names_us_the_others_are_still_asked(worker: Worker) -> None:
    """A producer of another hash put the customer elsewhere."""
    worker.first = ME
    anna = {"customer_id": "anna", "purchases": 1, "items": 1, "spent": 1}
    worker.peers.answers = {6067: (404, {}), 6068: (200, anna)}
    assert one("anna") == (200, anna)
    assert [url.port for url in worker.peers.asked] == [6067, 6068]


def test_a_worker_alone_asks_nobody(worker: Worker) -> None:
    """Itself least of all."""
    worker.router.tables_metadata = lambda: {ME: {}}
    worker.first = ME
    assert one("nobody")[0] == 404
    assert worker.peers.asked == []


@pytest.mark.parametrize("name", ["Żółć", "a b", "a%2Fb", "a?b", "a#b"])
def test_a_peer_is_asked_for_the_very_same_customer(worker: Worker, name: str) -> None:
    """Whatever letters are in the id."""
    worker.peers.answers = {6067: (404, {}), 6068: (404, {})}
    one(name)
    assert {url.parts for url in worker.peers.asked} == {("/", "counts", name, "")}
    assert all(dict(url.query) == {"local": "1"} for url in worker.peers.asked)


def test_a_worker_that_owns_nothing_says_so(worker: Worker) -> None:
    """There may be more workers than partitions."""
    worker.rows = {}
    status, body = sums()
    assert (status, body["partitions"], body["purchases"]) == (200, [], 0)
