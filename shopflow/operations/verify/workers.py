"""Compares the tables of the live workers, over HTTP, with the changelog."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from faust.assignor.client_assignment import ClientMetadata

from faust_batches import Trouble
from faust_batches.losses import REMOVED
from faust_batches.quotas import THROTTLED
from shopflow.errors import Unavailable
from shopflow.kafka.group import group_of
from shopflow.kafka.security import Bootstrap
from shopflow.models import PartitionTotals
from shopflow.operations.surroundings import HARMLESS
from shopflow.store.pace import KIND as SLOW
from shopflow.web import client

from .report import Check, FirstTen
from .tables import Tables, counts_of, in_words

#: The fields that must be equal in a worker's totals of a partition and in the changelog's.
_SUMS = (
    "customers",
    "purchases",
    "items",
    "spent",
    "duplicates",
    "rejected",
    "first",
    "unread",
    "offset",
    "era",
    "topic_id",
)


@dataclass(frozen=True)
class Worker:
    """A worker, and the partitions whose counts it owns."""

    url: str
    partitions: tuple[int, ...]


@dataclass(frozen=True)
class Live:
    """The members of the consumer group."""

    workers: tuple[Worker, ...] = ()
    unclear: str = ""
    """Why the workers or their partitions are unknown; empty if they are known."""


async def live(bootstrap: Bootstrap, group: str, changelog: str) -> Live:
    """The workers in the consumer group, from its coordinator.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found = await group_of(bootstrap, group)
    if found.state in {"Empty", "Dead"}:
        return Live()
    if found.state != "Stable":
        return Live(unclear="the consumer group is rebalancing")
    workers = []
    for member, assignment in found.assignments:
        try:
            workers.append(_worker(assignment, changelog))
        except (zlib.error, ValueError, TypeError, AttributeError):
            return Live(unclear=f"a member of the group is no worker of shopflow: {member}")
    return Live(tuple(sorted(workers, key=lambda worker: worker.url)))


def _worker(assignment: bytes, changelog: str) -> Worker:
    decoded = ConsumerProtocolMemberAssignment.decode(assignment)
    given = ClientMetadata.loads(zlib.decompress(decoded.user_data))
    return Worker(given.url.rstrip("/"), tuple(sorted(given.assignment.actives.get(changelog, ()))))


async def compare_workers(found: Live, tables: Tables, token: str) -> Check:
    """Compare the tables of the live workers with the changelog.

    Arguments:
        token: The token for reading, if the workers need one.
    """
    if found.unclear:
        return Check("workers", None, found.unclear)
    if not found.workers:
        return Check("workers", True, "no worker runs; the next one recovers its tables from the changelog")
    result = await compare(found, tables, partial(client.session, token))
    unasked = f"{result.unasked.count} can't be asked: {result.unasked.listed()}"
    if result.wrong.count:
        also = f"; {unasked}" if result.unasked.count else ""
        return Check("workers", False, result.wrong.differ() + also)
    if result.unasked.count:
        return Check("workers", None, unasked)
    same = f"{result.customers} customers in their tables, all as in the changelog"
    return Check("workers", True, f"{len(found.workers)} live, {same}")


class _Board(msgspec.Struct):
    """The part of an answer of `GET /board/` that is read here."""

    troubles: list[Trouble]


async def troubles(
    found: Live, counted: str, session: Callable[[], AbstractAsyncContextManager[Any]] = client.session
) -> Check:
    """Ask the live workers for their troubles. One that several workers have is listed once.

    Arguments:
        counted: The topic whose lost records are in the totals, which another check judges.
        session: Makes an `aiohttp.ClientSession`.
    """
    texts: dict[tuple[str, str], str] = {}
    unasked = FirstTen()
    async with session() as http:
        for worker in found.workers:
            try:
                status, body = await client.ask(http, worker.url, f"{worker.url}/board/")
                if status != 200:
                    raise Unavailable(worker.url, client.reason(body, status))
                answer = msgspec.json.decode(body, type=_Board)
            except (Unavailable, msgspec.MsgspecError) as error:
                unasked.add(str(error))
                continue
            texts |= {(trouble.kind, trouble.subject): trouble.text for trouble in answer.troubles}
    if texts:
        harmless = all(
            kind in {SLOW, THROTTLED, *HARMLESS} or (kind == REMOVED and subject.startswith(f"{counted}["))
            for kind, subject in texts
        )
        return Check("troubles", harmless, "; ".join(texts.values()))
    if unasked.count:
        return Check("troubles", None, f"{unasked.count} can't be asked: {unasked.listed()}")
    return Check("troubles", True, "no worker reports one")


@dataclass
class Compared:
    """The differences between the workers' tables and the changelog."""

    customers: int = 0
    wrong: FirstTen = field(default_factory=FirstTen)
    unasked: FirstTen = field(default_factory=FirstTen)


async def compare(
    found: Live, tables: Tables, session: Callable[[], AbstractAsyncContextManager[Any]] = client.session
) -> Compared:
    """Compare every customer and the totals of each partition that a live worker owns with the changelog.

    `unasked` has the workers that don't answer and the partitions that no live worker owns.

    Arguments:
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
    for partition in sorted(set(range(tables.partitions)) - owned):
        result.unasked.add(f"partition {partition}: no worker has it")
    return result


async def _compare_partition(http: Any, url: str, partition: int, tables: Tables, result: Compared) -> None:
    counts = tables.counts(partition)
    missing = set(counts)
    first = True
    async for page in client.pages(http, url, partition):
        if first:
            _compare_sums(url, partition, page.totals, tables.totals(partition), result.wrong)
            first = False
        for name, purchases, items, spent in page.customers:
            key, found = name.encode(), (purchases, items, spent)
            missing.discard(key)
            if found != (expected := counts_of(counts.get(key))):
                result.wrong.add(f"{name} at {url}: table {in_words(found)}, changelog {in_words(expected)}")
        result.customers += len(page.customers)
    for key in missing:
        name = key.decode("utf-8", "backslashreplace")
        result.wrong.add(f"{name} at {url}: table nothing, changelog {in_words(counts_of(counts[key]))}")


def _compare_sums(
    url: str, partition: int, found: Mapping[str, Any], expected: PartitionTotals, wrong: FirstTen
) -> None:
    if differing := [name for name in _SUMS if found.get(name) != getattr(expected, name)]:
        table = ", ".join(f"{name} {found.get(name)}" for name in differing)
        changelog = ", ".join(f"{name} {getattr(expected, name)}" for name in differing)
        wrong.add(f"sums of partition {partition} at {url}: table {table}, changelog {changelog}")
