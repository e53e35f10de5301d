"""Reads dead letters, and the marks of those that were retried."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from shopflow.errors import Refused
from shopflow.kafka import connection, offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import count_partitions
from shopflow.shop.dead_letters import PREFIX, origin_of
from shopflow.shop.layout import Layout
from shopflow.shop.times import time_of_milliseconds
from shopflow.store import MongoStore
from shopflow.store.types import CUSTOMERS, PRODUCTS, PURCHASES, Document

#: The headers of a retried record: how often it was retried, and its last failures as JSON.
RETRY = "shopflow.retry."
COUNT = f"{RETRY}count"
HISTORY = f"{RETRY}history"
#: The latest failures, which a history keeps.
KEPT = 10

_LAST_MS = 253_402_300_799_999  # of the year 9999: producers may send any timestamp

#: Called with the number of dead letters read since the last call.
Progress = Callable[[int], None]


class Id(NamedTuple):
    """The partition and offset of a dead letter."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Id:
        """Raises:
        Refused: The text is not PARTITION:OFFSET.
        """
        if not re.fullmatch(r"[0-9]{1,10}:[0-9]{1,19}", text):
            raise Refused(
                f"{text!r} is not a dead letter's id: it must be PARTITION:OFFSET, as `dead-letters list` shows it"
            )
        partition, _, offset = text.partition(":")
        return cls(int(partition), int(offset))


class Missing(Refused):
    """A dead letter that does not exist (any more)."""


class Failure(msgspec.Struct, frozen=True):
    """An earlier dead letter of a retried record."""

    dead_letter: str  #: its id
    topic: str  #: where the record was
    partition: int
    offset: int
    reason: str
    time: str  #: ISO 8601


class Mark(msgspec.Struct, frozen=True):
    """A retried dead letter's id, and the topic, partition and offset of the record that it became."""

    dead_letter: str
    topic: str
    partition: int
    offset: int


async def leave_mark(bootstrap: Bootstrap, shop: Layout, key: str, value: msgspec.Struct, near: int) -> None:
    """Publish a mark of a command in the topic of retries.

    Arguments:
        near: The number of a partition. The mark goes to the same one, or to its remainder if there are fewer.

    Raises:
        Unavailable: Kafka does not answer.
    """
    partition = near % await count_partitions(bootstrap, shop.retries)
    async with connection.producer(bootstrap) as producer:
        await producer.send_and_wait(shop.retries, msgspec.json.encode(value), key.encode(), partition=partition)


@dataclass(frozen=True)
class Letter:
    """A dead letter, with the fields that its headers have."""

    id: Id
    time: datetime
    topic: str  #: of the rejected record; empty if the headers lack it, then `partition` and `offset` are -1
    partition: int
    offset: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    retries: int = 0  #: how often the record was retried before this failure
    history: tuple[Failure, ...] = ()  #: the latest earlier failures, oldest first

    @classmethod
    def of(cls, record: Any) -> Letter:
        """Parse a record of the dead letters' topic. Headers that another program wrote never raise."""
        headers = dict(record.headers)
        topic, partition, offset = origin_of(record)
        history = _history(headers.get(HISTORY))
        count = headers.get(COUNT) or b""
        return cls(
            id=Id(record.partition, record.offset),
            time=time_of(record),
            topic=topic,
            partition=partition,
            offset=offset,
            reason=(headers.get(f"{PREFIX}exception.message") or b"").decode("utf-8", "replace"),
            key=record.key,
            value=record.value,
            headers=record.headers,
            retries=max(int(count), len(history)) if count.isdigit() and len(count) < 10 else len(history),
            history=history,
        )

    @property
    def label(self) -> str:
        """The kind of the reason, without details."""
        return self.reason.partition(": ")[0]

    @property
    def size(self) -> int:
        return len(self.key or b"") + len(self.value or b"")


def is_of_sender(header: str) -> bool:
    """True for the headers of CloudEvents and of W3C Trace Context."""
    return header.startswith("ce_") or header in {"traceparent", "tracestate"}


def time_of(record: Any) -> datetime:
    """The record's timestamp, cut to the years 1970 to 9999."""
    return time_of_milliseconds(min(max(record.timestamp or 0, 0), _LAST_MS))


def _history(value: bytes | None) -> tuple[Failure, ...]:
    try:
        return tuple(msgspec.json.decode(value or b"[]", type=list[Failure])[-KEPT:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # another program's
        return ()


async def read(
    bootstrap: Bootstrap,
    shop: Layout,
    reason: str | None = None,
    *,
    values: bool = True,
    progress: Progress = lambda _: None,
) -> AsyncGenerator[Letter, None]:
    """All dead letters up to the present end, oldest first. With `reason`: those whose reason contains this text.

    Raises:
        Unavailable: Kafka does not answer.
    """
    wanted = None if reason is None else reason.casefold()
    async with aclosing(reading.by_time(bootstrap, shop.dead_letters, values=values)) as records:
        async for record in records:
            progress(1)
            letter = Letter.of(record)
            if wanted is None or wanted in letter.reason.casefold():
                yield letter


async def latest(bootstrap: Bootstrap, shop: Layout, limit: int) -> list[Letter]:
    """The last `limit` dead letters, newest first, without their values. Reads only the end of each partition.

    Raises:
        Unavailable: Kafka does not answer.
    """
    records = await reading.tail(bootstrap, shop.dead_letters, limit, values=False)
    found = sorted(map(Letter.of, records), key=lambda letter: (letter.time, letter.id), reverse=True)
    return found[:limit]


async def check(bootstrap: Bootstrap, shop: Layout, ids: Iterable[Id]) -> None:
    """Check that all of these dead letters exist.

    Raises:
        Missing: One does not exist (any more).
        Unavailable: Kafka does not answer.
    """
    async for _ in chosen(bootstrap, shop, ids):
        pass


async def chosen(
    bootstrap: Bootstrap, shop: Layout, ids: Iterable[Id], *, progress: Progress = lambda _: None
) -> AsyncGenerator[Letter, None]:
    """Read these dead letters, each once.

    Raises:
        Missing: One does not exist (any more).
        Unavailable: Kafka does not answer.
    """
    ids, topic = list(dict.fromkeys(ids)), shop.dead_letters
    count = await count_partitions(bootstrap, topic)
    for one in ids:
        if one.partition >= count:
            raise Missing(f"there is no dead letter {one} in topic {topic}")
    for one in ids:
        async with reading.runs(bootstrap, topic, one.partition, start=one.offset, end=one.offset + 1) as runs:
            found = [record async for run in runs for record in run]
        if not found:
            raise Missing(f"there is no dead letter {one} in topic {topic}")
        progress(1)
        yield Letter.of(found[0])


async def marks(bootstrap: Bootstrap, shop: Layout) -> dict[Id, datetime]:
    """The retried dead letters, and the times of the retries.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found: dict[Id, datetime] = {}
    for partition in range(await count_partitions(bootstrap, shop.retries)):
        found_here = await marked(bootstrap, shop, partition)
        found |= {letter: time_of(record) for letter, record in found_here.items()}
    return found


async def mark_of(bootstrap: Bootstrap, shop: Layout, letter: Id) -> tuple[datetime, Mark] | None:
    """The time and the mark of this dead letter's retry; None: it was not retried.

    Raises:
        Unavailable: Kafka does not answer.
    """
    if letter.partition >= await count_partitions(bootstrap, shop.retries):
        return None
    record = (await marked(bootstrap, shop, letter.partition)).get(letter)
    if record is None:
        return None
    return time_of(record), mark_in(letter, record)


def mark_in(letter: Id, record: Any) -> Mark:
    """The mark of this dead letter in a record; if another program wrote it, the mark names no topic."""
    try:
        return msgspec.json.decode(record.value, type=Mark)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Mark(str(letter), "", -1, -1)


class Became(NamedTuple):
    """What became of a retried dead letter: `stored`, `rejected`, `waiting`, `repeated`, or `unknown`."""

    state: str
    text: str
    letter: Id | None = None  #: the new dead letter, if it was rejected again


async def became(
    bootstrap: Bootstrap, store: MongoStore, shop: Layout, letter: Letter, *, retry: tuple[datetime, Mark], search: int
) -> Became:
    """What became of a dead letter that was retried at this time.

    Arguments:
        retry: The time and the mark of the retry.
        search: How many dead letters that came later are searched at most.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    when, mark = retry
    origin = (mark.topic, mark.partition, mark.offset)
    if mark.topic not in shop.events or letter.topic != mark.topic:
        return Became("unknown", "its mark names no record, so another program wrote it")
    source = await _source_of(store, shop, letter)
    if source and (source.get("topic"), source.get("partition"), source.get("offset")) == origin:
        return Became("stored", "it is stored")
    since = int(when.timestamp() * 1000)
    async with reading.runs(bootstrap, shop.dead_letters, letter.id.partition, since=since) as runs:
        async for run in runs:
            for record in run:
                if origin_of(record) == origin:
                    again = Letter.of(record)
                    return Became("rejected", f"it was rejected again, as dead letter {again.id}", again.id)
            search -= len(run)
            if search <= 0:
                break
    spans = await offsets.spans(bootstrap, shop.group, [mark.topic])
    span = spans.get(mark.topic, {}).get(mark.partition)
    if span is not None and mark.offset >= span.done:
        return Became("waiting", f"it waits: {mark.offset - span.done} offsets of its partition come before it")
    if source:
        return Became("repeated", "it was handled, and the stored document is of another event with this id")
    return Became("unknown", "it was handled, but it is neither stored nor among the dead letters that were searched")


async def _source_of(store: MongoStore, shop: Layout, letter: Letter) -> Document | None:
    """The `source` of the document with the dead letter's id; None if there is none."""
    collection = {shop.products: PRODUCTS, shop.customers: CUSTOMERS, shop.purchases: PURCHASES}[letter.topic]
    id_ = purchase_id_of(letter) if collection == PURCHASES else (letter.key or b"").decode("utf-8", "replace")
    found: Document | None = (await store.documents(collection, [id_])).get(id_, {}).get("source")
    return found


class _Purchase(msgspec.Struct):
    purchase_id: str


def purchase_id_of(letter: Letter) -> str:
    """The id of the purchase in a dead letter's value; empty if it has none."""
    try:
        return msgspec.json.decode(letter.value or b"", type=_Purchase).purchase_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


async def marked(bootstrap: Bootstrap, shop: Layout, partition: int) -> dict[Id, Any]:
    """The last mark of each dead letter in a partition of the marks, as a record. Deleted marks are left out.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found: dict[Id, Any] = {}
    async with reading.runs(bootstrap, shop.retries, partition) as runs:
        async for run in runs:
            for record in run:
                with suppress(Refused, UnicodeDecodeError):  # another program's
                    found[Id.parse((record.key or b"").decode())] = record
    return {letter: record for letter, record in found.items() if record.value is not None}
