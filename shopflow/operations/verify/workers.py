"""The live workers of a shop, and what their tables hold, asked over HTTP."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
import msgspec
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from shopflow.errors import Unavailable
from shopflow.kafka import connection as kafka
from shopflow.kafka.security import Bootstrap
from shopflow.models import PartitionTotals, PurchaseCount
from shopflow.web.access import bearer

from .report import Named

__all__ = ["MOST_ROWS", "Compared", "Live", "Page", "Tables", "Worker", "compare", "live", "pages", "session"]

#: Most customers that a worker tells of at once.
MOST_ROWS = 10_000
#: How long a worker may take for one answer.
_ANSWER_SECONDS = 10.0
#: What must be the same in a worker's sums of a partition and in the changelog's.
_SUMS = ("customers", "purchases", "items", "spent", "duplicates", "rejected", "offset", "era")


@dataclass(frozen=True)
class Worker:
    """A worker, and the partitions whose counts it keeps."""

    url: str
    partitions: tuple[int, ...]


@dataclass(frozen=True)
class Live:
    """The members of the consumer group."""

    workers: tuple[Worker, ...] = ()
    unclear: str = ""
    """Why it is not known who they are or who has which partition; empty when it is."""


class Page(msgspec.Struct):
    """An answer of `GET /counts/partitions/{partition}/`."""

    totals: dict[str, Any]
    customers: list[tuple[str, int, int, int]]
    next: str | None


class _Actives(msgspec.Struct):
    actives: dict[str, list[int]]


class _Metadata(msgspec.Struct):
    """What Faust's group leader gives to each worker, as far as it is needed (`faust.assignor.client_assignment`)."""

    assignment: _Actives
    url: str


async def live(bootstrap: Bootstrap, group: str, changelog: str) -> Live:
    """Who is in the group, by its coordinator.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found = await kafka.group_of(bootstrap, group)
    if found.state in {"Empty", "Dead"}:
        return Live()
    if found.state != "Stable":
        return Live(unclear="the workers are sharing out the partitions")
    workers = []
    for member, assignment in found.assignments:
        try:
            workers.append(_worker(assignment, changelog))
        except (msgspec.MsgspecError, zlib.error, ValueError, TypeError):
            return Live(unclear=f"a member of the group is no worker of shopflow: {member}")
    return Live(tuple(sorted(workers, key=lambda worker: worker.url)))


def _worker(assignment: bytes, changelog: str) -> Worker:
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    metadata = msgspec.json.decode(zlib.decompress(decoded.user_data), type=_Metadata)
    return Worker(metadata.url.rstrip("/"), tuple(sorted(metadata.assignment.actives.get(changelog, ()))))


async def pages(http: Any, url: str, partition: int) -> AsyncIterator[Page]:
    """The customers of a worker's partition, by id.

    Arguments:
        http: An `aiohttp.ClientSession`.

    Raises:
        Unavailable: The worker does not answer, or has not got the partition.
    """
    after = ""
    while True:
        query = {"after": after, "limit": str(MOST_ROWS)}
        try:
            async with http.get(f"{url}/counts/partitions/{partition}/", params=query) as response:
                body = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            raise Unavailable(url, f"does not answer: {str(error) or type(error).__name__}") from error
        if response.status != 200:
            raise Unavailable(url, f"partition {partition}: {reason(body, response.status)}")
        try:
            page = msgspec.json.decode(body, type=Page)
        except msgspec.MsgspecError as error:
            raise Unavailable(url, f"partition {partition}: not the answer of a worker: {error}") from error
        yield page
        if page.next is None:
            return
        if page.next.encode() <= after.encode():
            raise Unavailable(url, f"partition {partition}: its pages do not go on")
        after = page.next


def reason(body: bytes, status: int) -> str:
    """What an answer that is none says of itself."""
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return f"answered {status}"


class Tables(Protocol):
    """The counts as the changelog has them."""

    def counts(self, partition: int) -> Mapping[bytes, PurchaseCount]:
        """The customers of a partition."""

    def totals(self, partition: int) -> PartitionTotals:
        """The sums of a partition."""


@dataclass
class Compared:
    """The workers' tables held against the changelog."""

    customers: int = 0
    wrong: Named = field(default_factory=Named)
    unasked: Named = field(default_factory=Named)


def session(token: str = "") -> AbstractAsyncContextManager[Any]:
    """An `aiohttp.ClientSession` that shows the token to whom it asks."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS), headers=bearer(token))


async def compare(
    found: Live, partitions: int, tables: Tables, session: Callable[[], AbstractAsyncContextManager[Any]] = session
) -> Compared:
    """Compare every customer and the sums of each partition that a live worker owns with the changelog.

    Arguments:
        partitions: How many there are. One that no live worker serves is among the unasked.
        session: Makes an `aiohttp.ClientSession`.
    """
    result = Compared()

    async def one(http: Any, worker: Worker) -> None:
        try:
            for partition in worker.partitions:
                await _compare_partition(http, worker.url, partition, tables, result)
        except Unavailable as error:
            result.unasked.add(str(error))

    async with session() as http:
        await asyncio.gather(*(one(http, worker) for worker in found.workers))
    owned = {partition for worker in found.workers for partition in worker.partitions}
    for partition in sorted(set(range(partitions)) - owned):
        result.unasked.add(f"partition {partition}: no worker has it")
    return result


async def _compare_partition(http: Any, url: str, partition: int, tables: Tables, result: Compared) -> None:
    counts = tables.counts(partition)
    missing = set(counts)
    first = True
    async for page in pages(http, url, partition):
        if first:
            _compare_sums(url, partition, page.totals, tables.totals(partition), result.wrong)
            first = False
        for name, *numbers in page.customers:
            key = name.encode()
            missing.discard(key)
            if numbers != (expected := _numbers(counts.get(key))):
                result.wrong.add(f"{name} at {url}: table {_said(numbers)}, changelog {_said(expected)}")
        result.customers += len(page.customers)
    for key in missing:
        name = key.decode("utf-8", "backslashreplace")
        result.wrong.add(f"{name} at {url}: table nothing, changelog {_said(_numbers(counts[key]))}")


def _compare_sums(url: str, partition: int, found: Mapping[str, Any], expected: PartitionTotals, wrong: Named) -> None:
    if differing := [name for name in _SUMS if found.get(name) != getattr(expected, name)]:
        table = ", ".join(f"{name} {found.get(name)}" for name in differing)
        changelog = ", ".join(f"{name} {getattr(expected, name)}" for name in differing)
        wrong.add(f"sums of partition {partition} at {url}: table {table}, changelog {changelog}")


def _numbers(count: PurchaseCount | None) -> list[int] | None:
    return None if count is None else [count.purchases, count.items, count.spent]


def _said(numbers: list[int] | None) -> str:
    return "nothing" if numbers is None else "{} purchases, {} items, {} grosze".format(*numbers)
