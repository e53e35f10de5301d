"""Where partitions start and end, and what the consumer group has committed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition

from . import connection
from .connection import within
from .group import coordinated
from .reading import runs
from .security import Bootstrap
from .topics import partitions_of

_EMPTY_SECONDS = 5.0


async def _committed(client: Any, group: str) -> dict[TopicPartition, Any]:
    """What the group has committed."""
    return await coordinated(client.list_consumer_group_offsets, group)


@dataclass(frozen=True)
class Lag:
    """How far the group has come in one topic."""

    records: int  #: between the start and the end of the topic
    waiting: int  #: between what the group committed and the end


@dataclass(frozen=True)
class Span:
    """What a partition holds, as offsets."""

    start: int  #: what was before it is gone
    done: int  #: what is before it the group has committed; not below the start
    end: int


async def spans(bootstrap: Bootstrap, group: str, topics: Iterable[str]) -> dict[str, dict[int, Span]]:
    """What each partition of each topic that exists holds, and how far the group is.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with connection.admin(bootstrap) as client, connection.consumer(bootstrap) as reader:
        return await _spans(client, reader, group, topics)


async def _spans(client: Any, reader: Any, group: str, topics: Iterable[str]) -> dict[str, dict[int, Span]]:
    counts = await partitions_of(client, list(topics))
    places = [TopicPartition(name, number) for name, count in counts.items() for number in range(count)]
    starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
    committed = await _committed(client, group)
    found: dict[str, dict[int, Span]] = {name: {} for name in counts}
    for place in places:
        done = max(committed[place].offset if place in committed else -1, starts[place])
        found[place.topic][place.partition] = Span(starts[place], done, ends[place])
    return found


@asynccontextmanager
async def asking_spans(
    bootstrap: Bootstrap, group: str, topics: Iterable[str], seconds: float
) -> AsyncIterator[Callable[[], Awaitable[dict[str, dict[int, Span]]]]]:
    """Gives what asks for the spans, as often as it is called, over connections that stay open.

    Arguments:
        seconds: How long one answer may take.

    Raises:
        Unavailable: Kafka does not answer.
    """
    names, options = list(topics), {"request_timeout_ms": int(seconds * 1000)}
    async with connection.admin(bootstrap, **options) as client, connection.consumer(bootstrap, **options) as reader:
        yield lambda: within(seconds, _spans(client, reader, group, names))


async def lags(bootstrap: Bootstrap, group: str, topics: Iterable[str]) -> dict[str, Lag]:
    """The group's lag in each topic that exists.

    Raises:
        Unavailable: Kafka does not answer.
    """
    answer = {}
    async with connection.admin(bootstrap) as client, connection.consumer(bootstrap) as reader:
        for name, partitions in (await _spans(client, reader, group, topics)).items():
            waiting = 0
            for number, span in partitions.items():
                place = TopicPartition(name, number)
                if span.done < span.end and await _any_record(reader, place, span.done, span.end):
                    waiting += span.end - span.done
            answer[name] = Lag(sum(span.end - span.start for span in partitions.values()), waiting)
    return answer


async def empty(
    bootstrap: Bootstrap, places: Mapping[tuple[str, int], Span], seconds: float = _EMPTY_SECONDS
) -> set[tuple[str, int]]:
    """The topics and partitions that have no record between what is done and their end, but for transactions' ends.

    Raises:
        Unavailable: Kafka does not answer, for one of them within so many seconds.
    """
    async with connection.consumer(bootstrap, request_timeout_ms=int(seconds * 1000)) as client:
        return {
            place
            for place, span in places.items()
            if not await within(seconds, _any_record(client, TopicPartition(*place), span.done, span.end))
        }


async def _any_record(client: Any, place: TopicPartition, start: int, end: int) -> bool:
    """Is there a record between these offsets? The end of a transaction takes one, and is none."""
    client.assign([place])
    client.seek(place, start)
    async for _ in runs(client, place, end):
        return True
    return False
