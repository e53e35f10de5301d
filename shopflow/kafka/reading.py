"""Reads topics from outside the worker's own consumer, up to the end offsets at the start of the read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import LeaderNotAvailableError, for_code
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

from faust_batches import UnreadableRecord
from faust_batches.fetching import KAFKA_FAILED
from shopflow.errors import Unavailable

from . import connection
from .security import Bootstrap
from .topics import count_partitions

log = logging.getLogger(__name__)

#: The most bytes of one partition in a fetch, while several partitions are read side by side.
_FETCH_BYTES = 4 * 1024 * 1024
#: The same while a place in a partition is looked for.
_SMALL_BYTES = 64 * 1024
#: The replica id of a consumer, and one that is not a consumer's.
_AS_CONSUMER, _AS_BROKER = -1, 0
#: How long a look-up waits until enough brokers have what it must read.
_COPIES_SECONDS = 5.0
_COPIES_POLL_SECONDS = 0.02


@asynccontextmanager
async def runs(
    bootstrap: Bootstrap,
    topic: str,
    partition: int,
    *,
    start: int = 0,
    since: int | None = None,
    end: int | None = None,
    values: bool = True,
    odd: bool = False,
) -> AsyncIterator[AsyncIterator[list[Any]]]:
    """Read a partition in runs of records, as fetched. Few records are in memory at once, and no run is empty.

    What can't be read is left out, and one line of the log names it.

    Arguments:
        start: The offset to begin at, or the first available one if larger. Negative: counted back from the end.
        since: Begin at the first record of this time (Unix, ms) or later instead.
        end: Stop before this offset, or at the present end if that is smaller. None: stop at the present end.
        values: False: the records come without their values.
        odd: True: an `UnreadableRecord` stands for each record and each batch that can't be read.

    Raises:
        Unavailable: Kafka does not answer.
    """
    wanted = TopicPartition(topic, partition)
    async with connection.consumer(bootstrap, values=values) as client:
        first, last = (await client.beginning_offsets([wanted]))[wanted], (await client.end_offsets([wanted]))[wanted]
        if since is not None:
            at = (await client.offsets_for_times({wanted: since}))[wanted]
            start = last if at is None else at.offset
        elif start < 0:
            start += last
        # Assign only once: aiokafka's consumer may hang if it is stopped right after a second assignment.
        client.assign([wanted])
        client.seek(wanted, max(start, first))
        found = fetched(client, wanted, last if end is None else min(end, last))
        yield found if odd else _readable_runs(found)


async def fetched(client: Any, partition: TopicPartition, end: int) -> AsyncIterator[list[Any]]:
    """The runs of records from a consumer's position in a partition up to, not including, the offset `end`.

    What Kafka itself can't read comes offset by offset, and belongs to the `UnreadableRecord` before it, if any.
    """
    held: Any = None  # a batch that can't be read; Kafka may not find the way on behind it
    while await client.position(partition) < end:
        for run in (await client.getmany(partition, timeout_ms=1_000)).values():
            records = [record for record in run if record.offset < end]
            while records and isinstance(records[0], UnreadableRecord) and records[0].reason == KAFKA_FAILED:
                one = records.pop(0)
                held = one if held is None else held
                held.rest = replace(held.rest, offset=one.offset)
            if records:
                records = records if held is None else [held, *records]
                held = records.pop() if isinstance(records[-1], UnreadableRecord) and records[-1].batch else None
            if records:
                yield records
    if held is not None:
        yield [held]


async def _readable_runs(runs: AsyncIterator[list[Any]]) -> AsyncIterator[list[Any]]:
    async for run in runs:
        if records := _readable(run):
            yield records


def _readable(run: list[Any]) -> list[Any]:
    """The records with a key and a value. What has none is logged."""
    records = []
    for record in run:
        if not isinstance(record, UnreadableRecord):
            records.append(record)
        elif record.whole:
            records.append(record.rest)
        else:
            log.error("%s[%d]: %s can't be read: %s", record.topic, record.partition, record.offsets, record.reason)
    return records


@asynccontextmanager
async def around(
    bootstrap: Bootstrap, topic: str, partition: int, reached: Callable[[Any], bool], *, before: int
) -> AsyncIterator[AsyncIterator[Any]]:
    """Read a partition from `before` offsets ahead of the first record that has reached something, to its end.

    It is found by bisection, with some twenty small reads however long the partition is. Records may be in disorder, as
    long as those farther than `before` offsets apart are not.

    Raises:
        Unavailable: Kafka does not answer.
    """
    wanted = TopicPartition(topic, partition)
    async with connection.consumer(bootstrap, max_partition_fetch_bytes=_SMALL_BYTES, fetch_max_wait_ms=10) as client:
        first, last = (await client.beginning_offsets([wanted]))[wanted], (await client.end_offsets([wanted]))[wanted]
        client.assign([wanted])
        low, high = first, last
        while low < high:
            middle = (low + high) // 2
            client.seek(wanted, middle)
            async with aclosing(_records(client, wanted, high)) as records:
                record = await anext(records, None)
            if record is None or reached(record):
                high = middle
            else:
                low = record.offset + 1
        client.seek(wanted, max(low - before, first))
        async with aclosing(_records(client, wanted, last)) as records:
            yield records


async def read_since(
    bootstrap: Bootstrap,
    topic: str,
    partition: int,
    since: int,
    *,
    values: bool,
    of: Callable[[Any], Any] = lambda record: record,
) -> list[Any]:
    """The records of a partition since this time (Unix, ms), with or without their values, or what `of` makes of each.

    They include those that the leader has now, but gives out only when enough other brokers have them, too.

    Raises:
        Unavailable: Kafka does not answer, or too few brokers have the last records.
    """
    if not await _has_any(bootstrap, TopicPartition(topic, partition), since):
        return []
    async with runs(bootstrap, topic, partition, since=since, values=values) as found:
        return [of(record) async for run in found for record in run]


async def _has_any(bootstrap: Bootstrap, partition: TopicPartition, since: int) -> bool:
    """Wait until the high watermark is at the end that the leader's log has now. True if it has records since then."""
    async with connection.client(bootstrap) as client:
        await client.set_topics({partition.topic})
        end = await _offset(client, partition, OffsetResetStrategy.LATEST, _AS_BROKER)
        deadline = time.monotonic() + _COPIES_SECONDS
        while await _offset(client, partition, OffsetResetStrategy.LATEST, _AS_CONSUMER) < end:
            if time.monotonic() > deadline:
                raise Unavailable("Kafka", f"too few brokers have the last records of {partition}")
            await asyncio.sleep(_COPIES_POLL_SECONDS)
            latest = await _offset(client, partition, OffsetResetStrategy.LATEST, _AS_BROKER)
            end = min(end, latest)  # a new leader may have less
        return await _offset(client, partition, since, _AS_CONSUMER) >= 0


async def _offset(client: Any, partition: TopicPartition, at: int, replica_id: int) -> int:
    """The offset of the first record since this time (Unix, ms), -1 if there is none.

    LATEST: the latest offset that the leader gives to consumers, the high watermark, or to brokers, the end of its log.
    """
    leader = client.cluster.leader_for_partition(partition)
    if leader is None or leader < 0:
        raise LeaderNotAvailableError(partition)
    answer = await client.send(leader, OffsetRequest(replica_id, 0, [(partition.topic, [(partition.partition, at)])]))
    ((_, ((_, code, _, offset),)),) = answer.topics
    if code:
        raise for_code(code)(partition)
    return int(offset)


async def tail(bootstrap: Bootstrap, topic: str, most: int, *, values: bool = True) -> list[Any]:
    """The records at the last offsets of each partition, in no order; none if the topic does not exist.

    Arguments:
        most: The number of offsets to read in each partition.
        values: False: the records come without their values.

    Raises:
        Unavailable: Kafka does not answer.
    """
    records: list[Any] = []
    for partition in range(await count_partitions(bootstrap, topic)):
        async with runs(bootstrap, topic, partition, start=-most, values=values) as found:
            records += [record async for run in found for record in run]
    return records


async def by_time(bootstrap: Bootstrap, topic: str, *, values: bool = True) -> AsyncGenerator[Any, None]:
    """The records of a topic, oldest first; none if the topic does not exist. One run per partition is in memory.

    Records of one partition stay in the order of their offsets, even if their timestamps are not.

    Arguments:
        values: False: the records come without their values.

    Raises:
        Unavailable: Kafka does not answer.
    """
    partitions = [TopicPartition(topic, number) for number in range(await count_partitions(bootstrap, topic))]
    if not partitions:
        return
    async with connection.consumer(bootstrap, values=values, max_partition_fetch_bytes=_FETCH_BYTES) as client:
        starts, ends = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
        client.assign(partitions)
        for partition, start in starts.items():
            client.seek(partition, start)
        streams = [_records(client, partition, ends[partition]) for partition in partitions]
        heads = {stream: head for stream in streams if (head := await anext(stream, None)) is not None}
        while heads:
            oldest = min(heads, key=lambda stream: (heads[stream].timestamp or 0, heads[stream].partition))
            yield heads.pop(oldest)
            if (following := await anext(oldest, None)) is not None:
                heads[oldest] = following


async def _records(client: Any, partition: TopicPartition, end: int) -> AsyncGenerator[Any, None]:
    async for run in fetched(client, partition, end):
        for record in _readable(run):
            yield record
