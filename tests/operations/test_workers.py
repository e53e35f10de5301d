"""The live workers: who they are by Kafka's consumer group, and their tables compared with the changelog."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from faust_batches import Trouble
from shopflow.kafka.group import Group
from shopflow.models import PartitionTotals, PurchaseCount
from shopflow.operations.verify import workers
from shopflow.operations.verify.workers import Compared, Live, Worker, compare, live
from shopflow.shop.counts import Totals, advance, decode_count, decode_totals
from shopflow.web import client

URL = "http://127.0.0.1:6066"
OTHER = "http://127.0.0.1:6067"


def assignment(url: str, *partitions: int, standbys: tuple[int, ...] = ()) -> bytes:
    """The assignment of a worker, made by Faust as its leader makes it."""
    metadata = ClientMetadata(
        assignment=ClientAssignment(actives={"log": list(partitions), "shop": [9]}, standbys={"log": list(standbys)}),
        url=url,
        changelog_distribution={},
    )
    given: bytes = ConsumerProtocolMemberAssignment(
        2, [("log", [*partitions, *standbys])], PartitionAssignor._compress(metadata.dumps())
    ).encode()
    return given


def seen(monkeypatch: pytest.MonkeyPatch, group: Group) -> Live:
    """The live workers of a group that Kafka describes so."""

    async def group_of(bootstrap: str, name: str) -> Group:
        assert (bootstrap, name) == ("kafka:1", "shop")
        return group

    monkeypatch.setattr(workers, "group_of", group_of)
    return asyncio.run(live("kafka:1", "shop", "log"))


def test_each_member_says_where_it_is_and_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standby partitions belong to another worker. A worker may have no partition."""
    group = Group(
        "Stable",
        (
            ("b", assignment(f"{OTHER}/", 3, 1, standbys=(0,))),
            ("a", assignment(URL, 0, 2)),
            ("c", assignment("http://c")),
        ),
    )
    assert seen(monkeypatch, group) == Live((Worker(URL, (0, 2)), Worker(OTHER, (1, 3)), Worker("http://c", ())))


@pytest.mark.parametrize("state", ["Empty", "Dead"])
def test_a_group_without_members_is_no_worker(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """Neither a group without members nor one that Kafka doesn't know has workers."""
    assert seen(monkeypatch, Group(state, ())) == Live()


@pytest.mark.parametrize("state", ["PreparingRebalance", "CompletingRebalance"])
def test_in_a_rebalance_nobody_knows_who_has_what(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """The workers are unknown then, which does not mean that none runs."""
    assert "rebalancing" in seen(monkeypatch, Group(state, (("a", b""),))).unclear


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"\0\1",
        ConsumerProtocolMemberAssignment(0, [("log", [1])], b"").encode(),
        ConsumerProtocolMemberAssignment(0, [("log", [1])], b"other").encode(),
        ConsumerProtocolMemberAssignment(0, [("log", [1])], PartitionAssignor._compress(b"{}")).encode(),
    ],
)
def test_a_member_that_is_no_worker_of_ours_is_named(monkeypatch: pytest.MonkeyPatch, given: bytes) -> None:
    """Another program's consumer is in the group, so the owners of the partitions are unknown."""
    found = seen(monkeypatch, Group("Stable", (("ours at /1", assignment(URL, 0)), ("other at /2", given))))
    assert found.unclear == "a member of the group is no worker of shopflow: other at /2"


# -- their tables


class Http:
    """A fake of the workers' web servers, with pages of two customers."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], dict[bytes, bytes]] = {}
        self.fails: dict[str, Exception | tuple[int, bytes]] = {}
        self.troubles: dict[str, list[Trouble]] = {}
        self.asked: list[str] = []

    @asynccontextmanager
    async def get(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        self.asked.append(url)
        if url.endswith("/board/"):
            yield self._board(url.removesuffix("/board/"))
            return
        assert params is not None
        base, _, partition = url.rstrip("/").partition("/counts/partitions/")
        failure = self.fails.get(base)
        if isinstance(failure, Exception):
            raise failure
        status, body = failure or (200, self._page(self.rows[base, int(partition)], params["after"]))

        async def read() -> bytes:
            return body

        yield SimpleNamespace(status=status, read=read)

    def _board(self, base: str) -> Any:
        failure = self.fails.get(base)
        if isinstance(failure, Exception):
            raise failure
        status, body = failure or (200, msgspec.json.encode({"serving": True, "troubles": self.troubles.get(base, [])}))

        async def read() -> bytes:
            return body

        return SimpleNamespace(status=status, read=read)

    def _page(self, rows: dict[bytes, bytes], after: str) -> bytes:
        names = sorted(key for key in rows if key and key > after.encode())
        counts = [(key.decode(), decode_count(rows[key])) for key in names[:2]]
        totals = decode_totals(rows.get(b"", b"{}"))
        page = {
            "partition": 0,
            "totals": {name: getattr(totals, name) for name in workers._SUMS},
            "customers": [[name, count.purchases, count.items, count.spent] for name, count in counts],
            "next": counts[-1][0] if len(names) > 2 else None,
        }
        return json.dumps(page).encode()


class Changelog:
    """The counts in Kafka's changelog."""

    def __init__(self, rows: dict[int, dict[bytes, bytes]]) -> None:
        self.rows = rows
        self.partitions = len(rows)

    def counts(self, partition: int) -> dict[bytes, PurchaseCount]:
        return {key: decode_count(value) for key, value in self.rows[partition].items() if key}

    def totals(self, partition: int) -> PartitionTotals:
        value = self.rows[partition].get(b"")
        return decode_totals(value) if value else Totals()


def rows_of(*customers: str, items: int = 2) -> dict[bytes, bytes]:
    """The rows of a partition in which each customer bought once."""
    bought = [(offset, name, items, 600) for offset, name in enumerate(customers)]
    return dict(advance(lambda key: None, bought, end=len(customers)).rows())


def compared(http: Http, changelog: dict[int, dict[bytes, bytes]], *live_ones: Worker) -> Compared:
    """The comparison with these workers."""

    @asynccontextmanager
    async def session() -> Any:
        yield http

    return asyncio.run(compare(Live(live_ones), Changelog(changelog), session))


def troubles_of(http: Http, *urls: str) -> tuple[bool | None, str]:
    """The check of these workers' troubles."""

    @asynccontextmanager
    async def session() -> Any:
        yield http

    check = asyncio.run(workers.troubles(Live(tuple(Worker(url, ()) for url in urls)), "sold", session))
    return check.good, check.detail


def test_a_trouble_makes_verify_fail_and_is_named_once_though_two_workers_have_it() -> None:
    """A known trouble makes the check fail even when another worker can't be asked."""
    http = Http()
    assert troubles_of(http, URL, OTHER) == (True, "no worker reports one")
    http.fails["http://third"] = (503, b'{"error": "this worker stops"}')
    assert troubles_of(http, URL, "http://third") == (None, "1 can't be asked: http://third: this worker stops")
    stuck = Trouble("open-transaction", "sold[0]", "3 events wait behind an open transaction", stops=True, since=5.0)
    http.troubles = {URL: [stuck], OTHER: [stuck]}
    assert troubles_of(http, URL, OTHER, "http://third") == (False, "3 events wait behind an open transaction")


@pytest.mark.parametrize(("subject", "good"), [("sold[0]", True), ("offers[0]", False)])
def test_a_loss_that_the_totals_have_is_named_and_judged_by_their_check(subject: str, good: bool) -> None:
    """So that it can be acknowledged there. No other check knows of lost offers."""
    http = Http()
    http.troubles = {URL: [Trouble("records-removed", subject, "2 offsets are lost", stops=False, since=5.0)]}
    assert troubles_of(http, URL) == (good, "2 offsets are lost")


def test_tables_that_are_as_the_changelog_agree() -> None:
    """Each partition is read in pages from the worker that owns it."""
    http, rows = Http(), {0: rows_of("a", "b", "c", "d", "żółć"), 1: rows_of("e"), 2: rows_of()}
    http.rows = {(URL, 0): rows[0], (OTHER, 1): rows[1], (OTHER, 2): rows[2]}
    found = compared(http, rows, Worker(URL, (0,)), Worker(OTHER, (1, 2)))
    assert (found.customers, found.wrong.count, found.unasked.count) == (6, 0, 0)
    assert http.asked.count(f"{URL}/counts/partitions/0/") == 3


def test_a_customer_whose_count_differs_is_named_with_the_worker() -> None:
    """Customers that only the changelog or only the table has are named too, and so are sums that differ."""
    http, rows = Http(), {0: rows_of("a", "b", "c")}
    other = rows_of("a", "b", "c", items=3)
    http.rows[URL, 0] = {b"": other[b""], b"a": rows[0][b"a"], b"b": other[b"b"], b"eve": other[b"a"]}
    found = compared(http, rows, Worker(URL, (0,)))
    assert found.wrong.count == 4
    assert f"b at {URL}: table 1 purchases, 3 items, 600 grosze, changelog 1 purchases, 2 items" in found.wrong.listed()
    assert f"c at {URL}: table nothing, changelog 1 purchases" in found.wrong.listed()
    assert f"eve at {URL}: table 1 purchases, 3 items, 600 grosze, changelog nothing" in found.wrong.listed()
    assert f"sums of partition 0 at {URL}: table items 9, changelog items 6" in found.wrong.listed()


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (aiohttp.ClientConnectionError("refused"), "does not answer: refused"),
        (asyncio.TimeoutError(), "does not answer: TimeoutError"),
        ((503, b'{"error": "the counts are being recovered"}'), "partition 0: the counts are being recovered"),
        ((404, b"Not found"), "partition 0: answered 404"),
        ((200, b"<html>"), "partition 0: not the answer of a worker"),
        (
            (200, b'{"totals": {}, "customers": [["a", 1, 1, 1]], "next": ""}'),
            "partition 0: the next page does not start after this one",
        ),
    ],
    ids=["refused", "frozen", "recovering", "another server", "not JSON", "in circles"],
)
def test_a_worker_that_can_not_be_asked_is_named_and_the_others_are_compared(
    failure: Exception | tuple[int, bytes], said: str
) -> None:
    """A worker that fails is asked once, not once for each of its partitions."""
    http, rows = Http(), {0: rows_of("a"), 1: rows_of("b"), 2: rows_of("c")}
    http.rows[OTHER, 2] = rows_of("c", items=9)
    http.fails[URL] = failure
    found = compared(http, rows, Worker(URL, (0, 1)), Worker(OTHER, (2,)))
    assert found.unasked.count == 1
    assert found.unasked.listed().startswith(f"{URL}: {said}")
    assert f"c at {OTHER}" in found.wrong.listed()
    assert len([url for url in http.asked if url.startswith(URL)]) == 1


def test_a_partition_that_no_live_worker_has_is_named() -> None:
    """Between two owners no worker can be asked."""
    http, rows = Http(), {0: rows_of("a"), 1: rows_of("b")}
    http.rows[URL, 0] = rows[0]
    assert compared(http, rows, Worker(URL, (0,))).unasked.listed() == "partition 1: no worker has it"


def test_a_count_in_the_changelog_that_no_id_can_have_is_shown() -> None:
    """The key is not UTF-8, and the worker leaves it out."""
    http, rows = Http(), {0: rows_of("a")}
    http.rows[URL, 0] = dict(rows[0])
    rows[0][b"\xff"] = rows[0][b"a"]
    assert compared(http, rows, Worker(URL, (0,))).wrong.listed().startswith("\\xff at ")


def test_a_worker_has_a_limited_time_for_its_answer() -> None:
    """A frozen worker keeps its connections open for ever."""

    async def timeout() -> float | None:
        async with client.session() as http:
            total: float | None = http.timeout.total
            return total

    assert asyncio.run(timeout()) == client.ANSWER_SECONDS
