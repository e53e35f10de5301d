"""Copies the events of another shop into the topics of this one, which has more partitions: `repartition`.

A record's key chooses its new partition, so a customer's events stay in order. Only events that the other shop's
workers have finished are copied, with what they decided: prices, dead letters and the marks of retried ones. One Kafka
transaction has the copies, the decisions, and how far the old partition is copied. So each event is copied once, also
if this is killed and begins again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import msgspec
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from faust_batches import UnreadableRecord, acknowledged
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import group, offsets, reading, transactions
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import count_partitions
from shopflow.shop.announcements import ALERTS, VOUCHERS
from shopflow.shop.dead_letters import PREFIX, Headers, origin_of
from shopflow.shop.layout import Layout
from shopflow.shop.prices import Entry, prices_in
from shopflow.store import MongoStore
from shopflow.store.types import PURCHASES

from .letters import Id, mark_in, marked
from .replay import check_counts, restore

Origin = tuple[str, int, int]
#: Called with the number of offsets copied since the last call.
Advance = Callable[[int], None]


class _Copied(msgspec.Struct, frozen=True):
    """The value of a record in the topic of retries: up to, not including, which offset a partition is copied."""

    end: int


class _Place(NamedTuple):
    """A partition of the other shop, and the topic that its records go to."""

    topic: str
    partition: int
    to: str

    @property
    def key(self) -> bytes:
        return f"copied:{self.topic}:{self.partition}".encode()


class _Letter(NamedTuple):
    """A dead letter to be published: the other shop's one without its value, the partition, and its content."""

    old: Any
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class Outcome:
    """The result of a copy."""

    copied: int = 0  #: records
    waiting: int = 0  #: events that the other shop's workers had not finished at the end
    unreadable: int = 0  #: records that can't be read, and so not be copied; their dead letters are


async def repartition(
    bootstrap: Bootstrap,
    store: MongoStore,
    old: Layout,
    new: Layout,
    progress: Callable[[int], AbstractContextManager[Advance]],
    *,
    lose_counts: bool,
) -> Outcome:
    """Copy what the old shop's workers have finished, and was not copied yet. The old shop is not changed.

    Arguments:
        store: The new shop's MongoDB. It gets the vouchers and alerts as the old shop published them.
        lose_counts: Copy also if Kafka no longer has all purchases that the old shop has counted.

    Raises:
        Refused: The old shop does not exist, or has lost purchases; or the new one runs, or has the old one's database.
        Unavailable: Kafka or MongoDB does not answer. What was copied until then stays, and is not copied again.
    """
    await _check(bootstrap, store, old, new)
    done = await _progress(bootstrap, new)
    topics = dict(zip((*old.events, old.vouchers, old.alerts), (*new.events, new.vouchers, new.alerts), strict=True))
    found = await offsets.spans(bootstrap, old.group, topics)
    spans = {(topic, number): span for topic, partitions in found.items() for number, span in partitions.items()}
    if not done and not lose_counts:
        instead = "With --lose-counts the others are not in the new shop's counts"
        await check_counts(bootstrap, store, old, spans, instead)
    ends = {
        _Place(topic, number, topics[topic]): span.done if topic in old.events else span.end
        for (topic, number), span in spans.items()
    }
    total = sum(max(end - done.get(place.key, 0), 0) for place, end in ends.items())
    with progress(total) as advance:
        copy = _Copy(bootstrap, new, await _decisions(bootstrap, old), advance)
        await copy.run(ends, done)
    for topic, kind in ((new.vouchers, VOUCHERS), (new.alerts, ALERTS)):
        await restore(bootstrap, store, new, topic, kind)
    copy.outcome.waiting = sum(
        lag.all_waiting for lag in (await offsets.lags(bootstrap, old.group, old.events)).values()
    )
    return copy.outcome


async def _check(bootstrap: Bootstrap, store: MongoStore, old: Layout, new: Layout) -> None:
    if old.group == new.group or old.purchases == new.purchases:
        raise Refused("app_id, topics.prefix: must be others than those of the shop that is copied")
    if (await group.group_of(bootstrap, new.group)).members:
        raise Refused(f"app_id: workers of {new.group} run; stop them until the copy is done")
    async for _, source in store.sources(PURCHASES):
        if source.get("topic") == old.purchases:
            raise Refused("mongodb.database: has purchases of the shop that is copied; this one needs another database")
        break


async def _progress(bootstrap: Bootstrap, new: Layout) -> dict[bytes, int]:
    """How far each partition is copied, by `_Place.key`."""
    found = {}
    async with aclosing(reading.by_time(bootstrap, new.retries)) as records:
        async for record in records:
            if record.key and record.key.startswith(b"copied:") and record.value is not None:
                found[record.key] = msgspec.json.decode(record.value, type=_Copied).end
    return found


@dataclass
class _Decisions:
    """What the old shop's workers decided, by the place of the event."""

    letters: dict[Origin, Any] = field(default_factory=dict)  #: records of the dead letters, without values
    marks: dict[Id, Any] = field(default_factory=dict)  #: records of the retried dead letters' marks
    prices: dict[Origin, int] = field(default_factory=dict)


async def _decisions(bootstrap: Bootstrap, old: Layout) -> _Decisions:
    """All of them. They are in memory during the copy."""
    found = _Decisions()
    async with aclosing(reading.by_time(bootstrap, old.dead_letters, values=False)) as records:
        async for record in records:
            found.letters[origin_of(record)] = record
    for partition in range(await count_partitions(bootstrap, old.retries)):
        found.marks |= await marked(bootstrap, old, partition)
    async with aclosing(reading.by_time(bootstrap, old.prices)) as records:
        async for record in records:
            for offset, price in prices_in(record):
                found.prices[old.purchases, record.partition, offset] = price
    return found


class _Copy:
    """Copies partitions, one after the other."""

    def __init__(self, bootstrap: Bootstrap, new: Layout, decisions: _Decisions, advance: Advance) -> None:
        self.outcome = Outcome()
        self._bootstrap, self._new, self._decisions, self._advance = bootstrap, new, decisions, advance

    async def run(self, ends: dict[_Place, int], done: dict[bytes, int]) -> None:
        """Copy each partition from where it is copied to, up to its end."""
        connect = partial(transactions.transactions, self._bootstrap, f"{self._new.group}-repartition")
        try:
            async with connect() as self._producer:
                for place, end in ends.items():
                    start = done.get(place.key, 0)
                    async with reading.runs(
                        self._bootstrap, place.topic, place.partition, start=start, end=end, odd=True
                    ) as runs:
                        async for run in runs:
                            await self._commit(place, run)
        except KafkaError as error:
            why = f"{error or type(error).__name__}; what is copied stays: run it again for the rest"
            raise Unavailable("Kafka", why) from error

    async def _commit(self, place: _Place, run: Sequence[Any]) -> None:
        readable = [record for record in run if not isinstance(record, UnreadableRecord)]
        unreadable = [record for record in run if isinstance(record, UnreadableRecord)]
        end = run[-1].offset + 1
        lost = [letter async for letter in self._letters_of(unreadable)]
        async with self._producer.transaction():
            sent = await acknowledged(self._send_copy(place, record) for record in readable)
            pairs = list(zip(readable, sent, strict=True))
            await self._send_prices(pairs)
            await self._send_letters([*self._renamed_letters(pairs), *lost])
            await self._send_marks({place.key: (place.partition, msgspec.json.encode(_Copied(end)), None)})
        self.outcome.copied += len(readable)
        self.outcome.unreadable += len(unreadable)
        self._advance(end - getattr(run[0], "start", run[0].offset))

    async def _send_copy(self, place: _Place, record: Any) -> Awaitable[Any]:
        number = place.partition if record.key is None else (murmur2(record.key) & 0x7FFFFFFF) % self._new.partitions
        return await self._producer.send(
            place.to, number, record.key, record.value, record.headers, timestamp=record.timestamp
        )

    async def _send_prices(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        decided: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for record, copy in pairs:
            price = self._decisions.prices.get(_origin(record))
            if price is not None:
                decided[copy.partition].append((copy.offset, price))
        await acknowledged(
            self._producer.send(self._new.prices, number, None, msgspec.json.encode(Entry(sorted(prices))), [])
            for number, prices in decided.items()
        )

    def _renamed_letters(self, pairs: Iterable[tuple[Any, Any]]) -> Iterator[_Letter]:
        """The dead letters of copied records. They name the copies."""
        for record, copy in pairs:
            letter = self._decisions.letters.get(_origin(record))
            if letter is not None:
                place = {"topic": copy.topic, "partition": copy.partition, "offset": copy.offset}
                renamed = {PREFIX + name: str(value).encode() for name, value in place.items()}
                headers = [(name, renamed.get(name, value)) for name, value in letter.headers]
                yield _Letter(letter, copy.partition, record.key, record.value, headers)

    async def _letters_of(self, records: Iterable[UnreadableRecord]) -> AsyncIterator[_Letter]:
        """The dead letters of records that can't be copied. They still name the other shop's topic."""
        for record in records:
            for offset in range(record.start, record.offset + 1):
                letter = self._decisions.letters.get((record.topic, record.partition, offset))
                if letter is not None:
                    at = {"start": letter.offset, "end": letter.offset + 1}
                    async with reading.runs(self._bootstrap, letter.topic, letter.partition, **at) as runs:
                        (whole,) = [found async for run in runs for found in run]
                    yield _Letter(letter, record.partition, whole.key, whole.value, whole.headers)

    async def _send_letters(self, letters: Sequence[_Letter]) -> None:
        send, topic, count = self._producer.send, self._new.dead_letters, self._new.partitions
        sent = await acknowledged(
            send(topic, one.partition % count, one.key, one.value, one.headers, timestamp=one.old.timestamp)
            for one in letters
        )
        marks = {}
        for one, copy in zip(letters, sent, strict=True):
            mark = self._decisions.marks.get(Id(one.old.partition, one.old.offset))
            if mark is not None:
                new = Id(copy.partition, copy.offset)
                # It still says where in the other shop the record was put back.
                value = msgspec.structs.replace(mark_in(new, mark), dead_letter=str(new))
                marks[str(new).encode()] = new.partition, msgspec.json.encode(value), mark.timestamp
        await self._send_marks(marks)

    async def _send_marks(self, marks: Mapping[bytes, tuple[int, bytes, int | None]]) -> None:
        """Publish marks: key -> partition, value, timestamp."""
        await acknowledged(
            self._producer.send(self._new.retries, number % self._new.partitions, key, value, [], timestamp=time)
            for key, (number, value, time) in marks.items()
        )


def _origin(record: Any) -> Origin:
    return record.topic, record.partition, record.offset
