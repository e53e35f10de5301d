"""The views of the counts: a worker's sums, one customer from any worker, a partition's customers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from yarl import URL

from faust_batches import TOTALS_KEY
from shopflow.config.settings import Config, Web
from shopflow.errors import Unavailable
from shopflow.shop.counts import Counted, advance, new_era_totals
from shopflow.web import answers, peers
from shopflow.web.access import Refusal, as_json, refusal
from shopflow.web.api import counts as views

ME, NEAR, FAR = URL("http://127.0.0.1:6066"), URL("http://127.0.0.1:6067"), URL("http://127.0.0.1:6068")


class Peers:
    """The other workers' answers about one customer, by port."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[int, dict[str, Any]]] = {}
        self.asked: list[URL] = []

    @asynccontextmanager
    async def get(self, url: URL, timeout: Any, headers: dict[str, str]) -> Any:
        self.headers = headers
        self.asked.append(url)
        status, body = self.answers[url.port or 0]

        async def read() -> bytes:
            return json.dumps(body).encode()

        yield SimpleNamespace(status=status, read=read)


class Worker:
    """The worker that gets the request."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = {0: {}, 2: {}}
        self.slices: list[int] = []
        self.peers = Peers()
        self.serving = True
        self.http_client = self.peers
        self.conf = SimpleNamespace(canonical_url=ME)
        self.first = FAR
        self.router = SimpleNamespace(
            tables_metadata=lambda: {ME: {}, NEAR: {}, FAR: {}}, key_store=lambda table, key: self.first
        )

    def reader(self, partition: int) -> Callable[[bytes], bytes | None]:
        return self.rows[partition].get

    def owned_partitions(self) -> list[int]:
        return sorted(self.rows)

    def scan(self, partition: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        self.slices.append(limit)
        return sorted(row for row in self.rows[partition].items() if row[0] and row[0] > after)[:limit]

    name = "purchase_counts"

    def sell(self, partition: int, *purchases: Counted) -> None:
        self.rows[partition].update(advance(self.reader(partition), purchases, end=9).rows())


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker that owns partitions 0 and 2."""
    made = Worker()
    monkeypatch.setattr(views, "app", made)
    monkeypatch.setattr(answers, "app", made)
    monkeypatch.setattr(views, "purchase_counts", made)
    monkeypatch.setattr(peers, "app", made)
    return made


Handler = Callable[..., Coroutine[Any, Any, tuple[int, Any]]]


async def get(handler: Handler, *arguments: Any) -> tuple[int, Any]:
    """Status and body of an answer."""
    try:
        answer = as_json(*await handler(*arguments))
    except (Refusal, Unavailable) as error:
        answer = refusal(error, "").answer()
    assert isinstance(answer.body, bytes)
    return answer.status, json.loads(answer.body)


def sums() -> tuple[int, Any]:
    """GET /counts/"""
    return asyncio.run(get(views.counts, None))


def one(customer_id: str, query: str = "") -> tuple[int, Any]:
    """GET /counts/{customer_id}/"""
    return asyncio.run(get_one(customer_id, query))


async def get_one(customer_id: str, query: str = "") -> tuple[int, Any]:
    """GET /counts/{customer_id}/"""
    request = SimpleNamespace(url=ME / "counts" / customer_id / "", query=dict.fromkeys(filter(None, [query]), "1"))
    return await get(views.count, request, customer_id)


def test_the_sums_are_those_of_the_partitions_that_are_ours(worker: Worker) -> None:
    """The sums come from one totals row for each partition, however many customers there are."""
    worker.sell(0, (0, "anna", 2, 600), (1, "bob", 1, 100))
    worker.sell(2, (0, "eve", 1, 5))
    expected = {"partitions": [0, 2], "customers": 3, "purchases": 3, "items": 4, "spent": 705}
    assert sums() == (200, expected)


def test_a_worker_without_purchases_has_sums_of_zero(worker: Worker) -> None:
    assert sums() == (200, {"partitions": [0, 2], "customers": 0, "purchases": 0, "items": 0, "spent": 0})


def test_a_rebalance_is_waited_for(worker: Worker) -> None:
    """It is over in about a second, so customers need not ask again."""
    worker.sell(0, (0, "anna", 2, 600))

    async def asked() -> list[int]:
        worker.serving = False
        asking = [asyncio.ensure_future(get(views.counts, None)), asyncio.ensure_future(get_one("anna"))]
        await asyncio.sleep(0.1)
        assert not any(each.done() for each in asking)
        worker.serving = True
        return [status for status, _ in await asyncio.gather(*asking)]

    assert asyncio.run(asked()) == [200, 200]


def test_in_a_long_recovery_counts_are_refused(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum over a table that is still recovering would be too small, and be believed. The answer is 503."""
    monkeypatch.setattr(answers, "_REBALANCE_SECONDS", 0.1)
    worker.serving = False
    assert sums() == one("anna") == (503, {"error": "the counts are being recovered"})
    assert worker.peers.asked == []


def test_a_customer_of_an_owned_partition_needs_no_request(worker: Worker) -> None:
    """All owned partitions are searched: producers choose partitions by different hashes."""
    worker.sell(2, (0, "anna", 2, 600))
    assert one("anna") == (200, {"customer_id": "anna", "purchases": 1, "items": 2, "spent": 600})
    assert worker.peers.asked == []


def test_the_worker_that_the_router_names_is_asked_first(worker: Worker) -> None:
    """The others are asked next, because a producer with another hash uses another partition."""
    anna = {"customer_id": "anna", "purchases": 7, "items": 9, "spent": 11}
    worker.peers.answers = {6067: (200, anna), 6068: (404, {})}
    assert one("anna") == (200, anna)
    assert [url.port for url in worker.peers.asked] == [6068, 6067]
    assert all(url.path == "/counts/anna/" and "local" in url.query for url in worker.peers.asked)


def test_who_never_bought_is_not_found(worker: Worker) -> None:
    """The answer is 404 only after all other workers were asked."""
    worker.peers.answers = {6067: (404, {}), 6068: (404, {})}
    assert one("nobody")[0] == 404
    assert len(worker.peers.asked) == 2


def test_a_worker_that_is_asked_by_another_asks_nobody(worker: Worker) -> None:
    """`?local` keeps two workers from asking each other for ever."""
    assert one("nobody", "local")[0] == 404
    assert worker.peers.asked == []


def test_a_peer_that_can_not_say_is_no_answer(worker: Worker) -> None:
    """A worker that answers 503 may have the customer, so the answer is 503, not 404."""
    worker.peers.answers = {6067: (404, {}), 6068: (503, {})}
    assert one("anna")[0] == 503


def test_a_peer_is_shown_the_read_token(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `web.read_token`, workers refuse each other's requests without it."""
    monkeypatch.setattr(peers, "config", Config(web=Web(read_token="t0ken")))  # noqa: S106
    worker.peers.answers[6067] = 404, {}
    worker.peers.answers[6068] = 404, {}
    one("anna")
    assert worker.peers.asked
    assert worker.peers.headers == {"Authorization": "Bearer t0ken"}


@pytest.mark.parametrize("error", [aiohttp.ClientConnectionError("refused"), asyncio.TimeoutError()])
def test_a_peer_that_does_not_answer_is_no_answer(worker: Worker, error: Exception) -> None:
    """A worker that can't be reached may have the customer, so the answer is 503 and names it."""

    def fails(url: URL, timeout: Any, headers: Any) -> Any:
        raise error

    worker.peers.get = fails  # type: ignore[assignment]
    status, body = one("anna")
    assert status == 503
    assert body["error"] == f"{FAR}: does not answer: {str(error) or 'TimeoutError'}"


def test_before_the_router_knows_the_table_all_are_asked(worker: Worker) -> None:
    """A new worker's router has no entry for the table yet. The other workers are asked in a fixed order."""

    def unknown(table: str, key: str) -> URL:
        raise KeyError(table)

    worker.router.key_store = unknown
    worker.peers.answers = {6067: (404, {}), 6068: (404, {})}
    assert one("nobody")[0] == 404
    assert [url.port for url in worker.peers.asked] == [6067, 6068]


def test_a_customer_of_two_of_our_partitions_is_one_customer(worker: Worker) -> None:
    """Producers with different hashes put a customer into two partitions. The counts are added up."""
    worker.sell(0, (0, "anna", 2, 600))
    worker.sell(2, (3, "anna", 1, 100))
    assert one("anna") == (200, {"customer_id": "anna", "purchases": 2, "items": 3, "spent": 700})


def test_who_is_not_found_is_named(worker: Worker) -> None:
    """The 404 of a customer has a reason and the customer's id, as JSON."""
    assert one("nobody", "local") == (
        404,
        {"error": "this customer never bought anything", "customer_id": "nobody"},
    )


def test_when_the_router_names_us_the_others_are_still_asked(worker: Worker) -> None:
    """A producer with another hash put the customer into another worker's partition."""
    worker.first = ME
    anna = {"customer_id": "anna", "purchases": 1, "items": 1, "spent": 1}
    worker.peers.answers = {6067: (404, {}), 6068: (200, anna)}
    assert one("anna") == (200, anna)
    assert [url.port for url in worker.peers.asked] == [6067, 6068]


def test_the_only_worker_asks_nobody(worker: Worker) -> None:
    """The only worker answers 404 without a request to itself."""
    worker.router.tables_metadata = lambda: {ME: {}}
    worker.first = ME
    assert one("nobody")[0] == 404
    assert worker.peers.asked == []


@pytest.mark.parametrize("name", ["Żółć", "a b", "a%2Fb", "a?b", "a#b"])
def test_a_peer_is_asked_for_the_very_same_customer(worker: Worker, name: str) -> None:
    """Letters, spaces and reserved characters of an id reach the other worker unchanged."""
    worker.peers.answers = {6067: (404, {}), 6068: (404, {})}
    one(name)
    assert {url.parts for url in worker.peers.asked} == {("/", "counts", name, "")}
    assert all(dict(url.query) == {"local": "1"} for url in worker.peers.asked)


def test_a_worker_that_owns_nothing_says_so(worker: Worker) -> None:
    """With more workers than partitions, a worker without any answers sums of 0."""
    worker.rows = {}
    status, body = sums()
    assert (status, body["partitions"], body["purchases"]) == (200, [], 0)


def page(partition: str, **query: str) -> tuple[int, Any]:
    """GET /counts/partitions/{partition}/"""
    request = SimpleNamespace(query=query)
    return asyncio.run(get(views.partition_counts, request, partition))


def test_the_customers_of_a_partition_come_in_pages_by_id(worker: Worker) -> None:
    """Every page has the partition's totals. The last page has no `next`, also when it is full."""
    worker.sell(2, *((offset, name, 2, 600) for offset, name in enumerate(["eve", "anna", "żółć", "bob"])))
    status, first = page("2", limit="2")
    assert (status, first["partition"], first["next"]) == (200, 2, "bob")
    assert first["customers"] == [["anna", 1, 2, 600], ["bob", 1, 2, 600]]
    sums = {"customers": 4, "purchases": 4, "items": 8, "spent": 2400, "duplicates": 0, "rejected": 0, "offset": 8}
    assert first["totals"].items() >= sums.items()
    status, last = page("2", limit="2", after="bob")
    assert ([row[0] for row in last["customers"]], last["next"]) == (["eve", "żółć"], None)


def test_an_empty_partition_has_an_empty_page(worker: Worker) -> None:
    status, found = page("0")
    assert (status, found["customers"], found["next"], found["totals"]["purchases"]) == (200, [], None, 0)


@pytest.mark.parametrize("limit", ["0", "-1", "10001", "x", "", "1.5", "１", "9" * 5000])
def test_a_bad_limit_is_said_with_its_name(worker: Worker, limit: str) -> None:
    """A wrong `limit` gets 400 before any row is read."""
    status, found = page("0", limit=limit)
    problem = {"field": "limit", "message": "must be a whole number from 1 to 10000"}
    assert (status, found) == (400, {"error": "The query is wrong.", "fields": [problem]})
    assert worker.slices == []


@pytest.mark.parametrize("partition", ["1", "7", "x", "-1", "", "²"])
def test_a_partition_that_is_not_ours_is_not_found(worker: Worker, partition: str) -> None:
    """A partition of another worker, and a text that is no partition, get 404."""
    status, found = page(partition)
    assert (status, found["partition"]) == (404, partition)


def test_during_a_rebalance_pages_are_refused(worker: Worker) -> None:
    """A page of a table that is still recovering would miss customers. The answer is 503."""
    worker.serving = False
    assert page("0")[0] == 503


def test_a_long_page_lets_others_have_their_turn(worker: Worker) -> None:
    """A page is read in slices between other coroutines. If the partition is revoked meanwhile, the answer is 404."""
    worker.sell(0, *((offset, f"c{offset:05}", 1, 1) for offset in range(9_999)))

    async def both(leave: bool) -> tuple[int, Any, int]:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while not asked.done():
                turns += 1
                if leave:
                    worker.rows = {2: {}}
                await asyncio.sleep(0)

        request = SimpleNamespace(query={"limit": "10000"})
        asked = asyncio.ensure_future(get(views.partition_counts, request, "0"))
        await other()
        status, found = await asked
        return status, found, turns

    status, found, turns = asyncio.run(both(leave=False))
    assert (status, len(found["customers"]), found["next"]) == (200, 9_999, None)
    assert max(worker.slices) <= 1_000
    assert turns >= 10
    assert asyncio.run(both(leave=True))[0] == 404


def test_what_was_counted_before_the_tables_were_rebuilt_is_in_no_page(worker: Worker) -> None:
    """Rows of before a `replay` are still in RocksDB. A page skips them, and `next` leads to the rows after them."""
    worker.sell(0, *((offset, name, 1, 1) for offset, name in enumerate(["a", "b", "c"])))
    worker.rows[0][TOTALS_KEY] = new_era_totals(0, 5)
    worker.sell(0, (2, "c", 7, 70))
    status, first = page("0", limit="2")
    assert (status, first["customers"], first["next"], first["totals"]["era"]) == (200, [], "b", 5)
    assert page("0", limit="2", after="b")[1]["customers"] == [["c", 1, 7, 70]]
