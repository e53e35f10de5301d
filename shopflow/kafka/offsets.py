"""The start and end offsets of partitions, and the consumer group's committed offsets and lag.

A partition has two ends: the last stable offset, where readers of committed records stop, and the high watermark. They
differ while a transaction is open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition

from faust_batches import UnreadableRecord

from . import connection
from .connection import within
from .group import coordinated
from .reading import fetched
from .security import Bootstrap
from .topics import partitions_of

#: A topic and a partition number.
Partition = tuple[str, int]

#: How long reading one partition may take, for the page and for a command.
_EMPTY_SECONDS = 5.0
_READ_SECONDS = 40.0
#: The isolation level of a consumer that also gets the records of open transactions.
_ALL = "read_uncommitted"


@dataclass(frozen=True)
class Lag:
    """The group's lag in one topic, in offsets."""

    records: int  #: from the topic's start to its end
    waiting: int  #: from the committed offset to the end; a partition with no record in between counts 0
    spans: Mapping[int, Span] = field(default_factory=dict, compare=False)  #: by partition

    @property
    def all_waiting(self) -> int:
        """The lag with the offsets that an open transaction holds up."""
        return self.waiting + sum(span.held for span in self.spans.values())


@dataclass(frozen=True)
class Span:
    """The offsets of a partition. Records behind an open transaction (`held`) are not compared by `==`."""

    start: int  #: of the first record that Kafka still has
    done: int  #: committed by the group, or `start` if that is larger
    end: int  #: the last stable offset: readers of committed records get no record from here on
    held: int = field(default=0, compare=False)  #: from there to the high watermark: behind an open transaction

    @property
    def high(self) -> int:
        """The high watermark: the offset of the next record to be written."""
        return self.end + self.held


async def spans(bootstrap: Bootstrap, group: str, topics: Iterable[str]) -> dict[str, dict[int, Span]]:
    """The span of each partition, by topic. Topics that do not exist are left out.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with (
        connection.admin(bootstrap) as client,
        connection.consumer(bootstrap) as reader,
        connection.consumer(bootstrap, isolation_level=_ALL) as outsider,
    ):
        return await _spans(client, reader, outsider, group, topics)


@asynccontextmanager
async def asking_spans(
    bootstrap: Bootstrap, group: str, topics: Iterable[str], seconds: float
) -> AsyncIterator[Callable[[], Awaitable[dict[str, dict[int, Span]]]]]:
    """Give a function that asks Kafka for the spans at each call. The connections stay open.

    Arguments:
        seconds: The time limit of one call.

    Raises:
        Unavailable: Kafka does not answer.
    """
    names, limit = list(topics), int(seconds * 1000)
    async with (
        connection.admin(bootstrap, request_timeout_ms=limit) as client,
        connection.consumer(bootstrap, request_timeout_ms=limit) as reader,
        connection.consumer(bootstrap, request_timeout_ms=limit, isolation_level=_ALL) as outsider,
    ):
        yield lambda: within(seconds, _spans(client, reader, outsider, group, names))


async def _spans(
    client: Any, reader: Any, outsider: Any, group: str, topics: Iterable[str]
) -> dict[str, dict[int, Span]]:
    """The spans. `reader` reads committed records only, `outsider` all."""
    counts = await partitions_of(client, topics)
    partitions = [TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)]
    starts = await reader.beginning_offsets(partitions)
    # The high watermark first: a record that arrives in between must not look like one behind an open transaction.
    highs, ends = await outsider.end_offsets(partitions), await reader.end_offsets(partitions)
    committed = await coordinated(client.list_consumer_group_offsets, group)
    found: dict[str, dict[int, Span]] = {topic: {} for topic in counts}
    for one in partitions:
        done = max(committed[one].offset if one in committed else -1, starts[one])
        found[one.topic][one.partition] = Span(starts[one], done, ends[one], max(highs[one] - ends[one], 0))
    return found


async def lags(bootstrap: Bootstrap, group: str, topics: Iterable[str]) -> dict[str, Lag]:
    """The group's lag in each topic that exists.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found = await spans(bootstrap, group, topics)
    behind = {
        (topic, number): span
        for topic, partitions in found.items()
        for number, span in partitions.items()
        if span.done < span.end
    }
    waiting = behind.keys() - await empty(bootstrap, behind, _READ_SECONDS)
    return {
        topic: Lag(
            records=sum(span.end - span.start for span in partitions.values()),
            waiting=sum(span.end - span.done for number, span in partitions.items() if (topic, number) in waiting),
            spans=partitions,
        )
        for topic, partitions in found.items()
    }


async def empty(
    bootstrap: Bootstrap, spans: Mapping[Partition, Span], seconds: float = _EMPTY_SECONDS
) -> set[Partition]:
    """The partitions without a record between the committed offset and the end. The end of a transaction is no record.

    Arguments:
        seconds: The time limit for each partition.

    Raises:
        Unavailable: Kafka does not answer in time.
    """
    wanted = {TopicPartition(*partition): span for partition, span in spans.items()}
    if not wanted:
        return set()
    async with connection.consumer(bootstrap, request_timeout_ms=int(seconds * 1000)) as reader:
        reader.assign(list(wanted))
        for partition, span in wanted.items():
            reader.seek(partition, span.done)
        return {
            partition
            for partition, span in wanted.items()
            if await within(seconds, anext(fetched(reader, partition, span.end), None)) is None
        }


async def times(bootstrap: Bootstrap, spans: Mapping[Partition, Span]) -> dict[Partition, float]:
    """The time of the first record after each committed offset, Unix in seconds. Partitions without one are left out.

    Raises:
        Unavailable: Kafka does not answer in time.
    """
    found: dict[Partition, float] = {}
    wanted = {TopicPartition(*partition): span for partition, span in spans.items()}
    if not wanted:
        return found
    async with connection.consumer(bootstrap, values=False) as reader:
        reader.assign(list(wanted))
        for partition, span in wanted.items():
            reader.seek(partition, span.done)
            records = await within(_EMPTY_SECONDS, anext(fetched(reader, partition, span.end), []))
            if readable := [one for one in records if not isinstance(one, UnreadableRecord)]:
                found[partition] = readable[0].timestamp / 1000
    return found
