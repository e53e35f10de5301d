"""Steps over a batch that can't be read, and at which a partition stands still: `dead-letters skip`.

The command leaves a mark in the topic of retries. A worker that stands still at a marked batch leaves a dead letter and
goes on behind it. The mark stays: a replay, and the next worker, step over the batch too.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
from aiokafka import TopicPartition

from faust_batches import UnreadableRecord
from shopflow.errors import Refused
from shopflow.kafka import connection, offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import count_partitions
from shopflow.shop.layout import Layout

from .letters import leave_mark


class Place(NamedTuple):
    """A topic of events, one of its partitions, and an offset."""

    topic: str
    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str, shop: Layout) -> Place:
        """Raises:
        Refused: The text is not TOPIC:PARTITION:OFFSET, or the topic has no events.
        """
        found = re.fullmatch(r"(.+):([0-9]{1,10}):([0-9]{1,19})", text)
        if not found:
            raise Refused(f"{text!r} is not TOPIC:PARTITION:OFFSET, as the log and `verify` name it")
        if found[1] not in shop.events:
            raise Refused(f"only {', '.join(shop.events)} can be stepped over, not {found[1]!r}")
        return cls(found[1], int(found[2]), int(found[3]))


class Skip(msgspec.Struct, frozen=True):
    """The value of a mark: up to, not including, which offset is stepped over, and why."""

    end: int
    reason: str


async def look(bootstrap: Bootstrap, shop: Layout, place: Place) -> UnreadableRecord:
    """The batch at which the partition stands still.

    Raises:
        Refused: It does not stand still there.
        Unavailable: Kafka does not answer.
    """
    topic, number, offset = place
    named = f"{topic}[{number}]"
    span = (await offsets.spans(bootstrap, shop.group, [topic])).get(topic, {}).get(number)
    if span is None:
        raise Refused(f"there is no partition {named}")
    if offset < span.done:
        raise Refused(f"{named} does not stand still at offset {offset}: it is committed up to offset {span.done}")
    if span.done >= span.end:
        raise Refused(f"{named} does not stand still at offset {offset}: nothing waits in it")
    partition = TopicPartition(topic, number)
    async with connection.consumer(bootstrap) as reader:
        reader.assign([partition])
        reader.seek(partition, span.done)
        run = await anext(reading.fetched(reader, partition, span.end), None)
    if run is None:
        raise Refused(f"{named} does not stand still at offset {offset}: nothing waits in it")
    first: Any = run[0]
    if not isinstance(first, UnreadableRecord) or not first.batch:
        raise Refused(
            f"{named} does not stand still at offset {offset}: offset {first.offset} is next, and can be read"
        )
    if first.start != offset:
        raise Refused(f"{named} stands still at offset {first.start}, not at {offset}")
    return first


async def mark(bootstrap: Bootstrap, shop: Layout, bad: UnreadableRecord) -> None:
    """Let the workers step over this batch.

    Raises:
        Unavailable: Kafka does not answer.
    """
    value = Skip(bad.offset + 1, bad.reason)
    await leave_mark(bootstrap, shop, f"{bad.topic}:{bad.partition}:{bad.start}", value, bad.partition)


async def skipped(bootstrap: Bootstrap, shop: Layout, place: Place) -> int | None:
    """The offset to go on from, if this one is stepped over.

    Raises:
        Unavailable: Kafka does not answer.
    """
    count = await count_partitions(bootstrap, shop.retries)
    if not count:
        return None
    async with reading.runs(bootstrap, shop.retries, place.partition % count) as runs:
        async for run in runs:
            for record in run:
                if (end := _end(record, place)) is not None:
                    return end
    return None


def _end(record: Any, place: Place) -> int | None:
    topic, _, start = (record.key or b"").decode("utf-8", "replace").rpartition(":")
    if topic != f"{place.topic}:{place.partition}" or not start.isdecimal() or record.value is None:
        return None
    try:
        end = msgspec.json.decode(record.value, type=Skip).end
    except (msgspec.MsgspecError, UnicodeDecodeError):  # another program's
        return None
    return end if int(start) <= place.offset < end else None
