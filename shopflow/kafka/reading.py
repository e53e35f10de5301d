"""Reading a topic from outside the worker's own consumer, up to the end it has when the reading begins."""

from __future__ import annotations

import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from aiokafka import TopicPartition

from . import connection
from .security import Bootstrap

#: What is fetched of one partition at once where several are read side by side.
_FETCH_BYTES = 4 * 1024 * 1024


async def size(bootstrap: Bootstrap, topic: str, count: int) -> int:
    """How many offsets there are in a topic with so many partitions: at least as many as records.

    Raises:
        Unavailable: Kafka does not answer.
    """
    places = [TopicPartition(topic, number) for number in range(count)]
    async with connection.consumer(bootstrap) as client:
        starts, ends = await client.beginning_offsets(places), await client.end_offsets(places)
        return sum(ends[place] - starts[place] for place in places)


async def runs(client: Any, place: TopicPartition, end: int) -> AsyncIterator[list[Any]]:
    """The runs of records from where the client stands up to `end`."""
    while await client.position(place) < end:
        for run in (await client.getmany(place, timeout_ms=1_000)).values():
            yield run


async def read_partition(
    bootstrap: Bootstrap, topic: str, partition: int, take: Callable[[int, list[Any]], None]
) -> None:
    """Read a partition from its start to its present end, and pass each run of records on."""
    place = TopicPartition(topic, partition)
    async with connection.consumer(bootstrap, enable_auto_commit=False) as client:
        client.assign([place])
        await client.seek_to_beginning(place)
        async for run in runs(client, place, (await client.end_offsets([place]))[place]):
            take(partition, run)


async def by_time(bootstrap: Bootstrap, topic: str, count: int, *, values: bool = True) -> AsyncGenerator[Any, None]:
    """The records of a topic with so many partitions up to its present end, oldest first; a run of each in memory.

    Those of one partition stay in their order, whatever time they say they have.

    Arguments:
        values: False: without their values.
    """
    options: dict[str, Any] = {} if values else {"value_deserializer": lambda _: None}
    places = [TopicPartition(topic, number) for number in range(count)]
    async with (
        connection.consumer(
            bootstrap, enable_auto_commit=False, max_partition_fetch_bytes=_FETCH_BYTES, **options
        ) as client,
        AsyncExitStack() as stack,
    ):
        client.assign(places)
        await client.seek_to_beginning(*places)
        ends = await client.end_offsets(places)
        streams = [await stack.enter_async_context(aclosing(_each(client, one, ends[one]))) for one in places]
        async for record in _merged(streams):
            yield record


async def _each(client: Any, place: TopicPartition, end: int) -> AsyncGenerator[Any, None]:
    async for run in runs(client, place, end):
        for record in run:
            if record.offset < end:
                yield record


async def _merged(streams: Sequence[AsyncIterator[Any]]) -> AsyncIterator[Any]:
    heads: list[tuple[int, int, Any]] = []
    for number, stream in enumerate(streams):
        if (record := await anext(stream, None)) is not None:
            heads.append((record.timestamp or 0, number, record))
    heapq.heapify(heads)
    while heads:
        _, number, record = heads[0]
        yield record
        if (following := await anext(streams[number], None)) is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following.timestamp or 0, number, following))


async def tail(bootstrap: Bootstrap, topic: str, count: int, most: int, *, values: bool = True) -> list[Any]:
    """The last records of each partition of a topic with so many partitions, in no order.

    Arguments:
        most: Offsets that are looked at in each partition, from its present end.
        values: False: without their values.
    """
    places = [TopicPartition(topic, number) for number in range(count)]
    options: dict[str, Any] = {} if values else {"value_deserializer": lambda _: None}
    found: list[Any] = []
    async with connection.consumer(bootstrap, enable_auto_commit=False, **options) as client:
        starts, ends = await client.beginning_offsets(places), await client.end_offsets(places)
        for place in places:
            client.assign([place])
            client.seek(place, max(starts[place], ends[place] - most))
            async for run in runs(client, place, ends[place]):
                found += [record for record in run if record.offset < ends[place]]
    return found


async def read_places(bootstrap: Bootstrap, topic: str, places: Iterable[tuple[int, int]]) -> AsyncGenerator[Any, None]:
    """The record at each partition and offset; None where there is none (any more)."""
    async with connection.consumer(bootstrap, enable_auto_commit=False) as client:
        for partition, offset in places:
            place = TopicPartition(topic, partition)
            client.assign([place])
            start, end = (await client.beginning_offsets([place]))[place], (await client.end_offsets([place]))[place]
            yield await _first(client, place, offset) if start <= offset < end else None


async def _first(client: Any, place: TopicPartition, offset: int) -> Any:
    client.seek(place, offset)
    async with aclosing(_each(client, place, offset + 1)) as found:
        return await anext(found, None)


async def each_run(
    bootstrap: Bootstrap,
    topic: str,
    partition: int,
    end: int,
    handle: Callable[[list[Any]], Awaitable[None]],
    **options: Any,
) -> None:
    """Read a partition from its start up to `end`, and wait for each run of records to be handled: few are in memory.

    Arguments:
        options: The consumer's, over the usual ones.
    """
    place = TopicPartition(topic, partition)
    async with connection.consumer(bootstrap, enable_auto_commit=False, **options) as client:
        client.assign([place])
        await client.seek_to_beginning(place)
        async for run in runs(client, place, end):
            await handle([record for record in run if record.offset < end])


async def count_records(bootstrap: Bootstrap, topic: str, partitions: int) -> int:
    """How many records a topic holds: what was aborted and the ends of transactions are none. Reads them all."""
    total = 0

    def count(partition: int, run: list[Any]) -> None:
        nonlocal total
        total += len(run)

    for partition in range(partitions):
        await read_partition(bootstrap, topic, partition, count)
    return total


async def read_since(
    bootstrap: Bootstrap, topic: str, partition: int, since: int, *, values: bool = False
) -> list[Any]:
    """The records of a partition since this time (Unix, ms) up to its present end; their values only if wanted."""
    place = TopicPartition(topic, partition)
    options = {} if values else {"value_deserializer": lambda _: None}
    async with connection.consumer(bootstrap, enable_auto_commit=False, **options) as client:
        client.assign([place])
        end = (await client.end_offsets([place]))[place]
        found = (await client.offsets_for_times({place: since}))[place]
        client.seek(place, end if found is None else found.offset)
        return [record async for run in runs(client, place, end) for record in run]
