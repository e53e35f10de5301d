"""The way back for dead letters: read, choose, put each back where it came from, once.

A dead letter goes back by one transaction of Kafka: the record in its topic and a mark in the topic of retries. Both
are there or neither, so a dead letter with a mark is back, and one without is not. See docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

import msgspec
from aiokafka.errors import BrokerResponseError, KafkaError, ProducerFenced

from faust_batches import acknowledged
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection as kafka
from shopflow.kafka.security import Bootstrap
from shopflow.shop.dead_letters import PREFIX, Headers, origin_of

__all__ = [
    "Failure",
    "Id",
    "Letter",
    "Mark",
    "Outcome",
    "Places",
    "Retry",
    "check",
    "chosen",
    "headers_back",
    "latest",
    "mark_of",
    "marks",
    "read",
    "retry",
]

RETRY = "shopflow.retry."
COUNT = f"{RETRY}count"
HISTORY = f"{RETRY}history"

#: Failures that a history keeps, the latest, and characters of each reason.
_KEPT = 10
_REASON_LENGTH = 500
#: Dead letters of one transaction, and their bytes.
_AT_ONCE = 500
_BYTES_AT_ONCE = 4 * 1024 * 1024
_LAST_MS = 253_402_300_799_999  # of the year 9999: a producer may say any time


class Id(NamedTuple):
    """A dead letter's place in its topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        """As the commands show and take it."""
        return f"{self.partition}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Id:
        """Raises:
        Refused: It does not look like one.
        """
        if not re.fullmatch(r"[0-9]{1,10}:[0-9]{1,19}", text):
            raise Refused(
                f"{text!r} is no dead letter's id: it must be PARTITION:OFFSET, as `dead-letters list` shows it"
            )
        partition, _, offset = text.partition(":")
        return cls(int(partition), int(offset))


class Failure(msgspec.Struct, frozen=True):
    """A time that a record was a dead letter, before it was put back."""

    dead_letter: str  #: its id
    topic: str  #: where the record was
    partition: int
    offset: int
    reason: str
    time: str  #: ISO 8601


class Mark(msgspec.Struct, frozen=True):
    """Says that a dead letter was put back, and where."""

    dead_letter: str
    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Letter:
    """A dead letter, as far as its headers say what it was."""

    id: Id
    time: datetime
    topic: str  #: empty where the headers don't say where it came from; then `partition` and `offset` are -1
    partition: int
    offset: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    retries: int = 0  #: how often it was put back before it failed this time
    history: tuple[Failure, ...] = ()  #: the latest of those, oldest first

    @classmethod
    def of(cls, record: Any) -> Letter:
        """Of a record of the dead letters, whoever wrote it."""
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
        """The reason without what exactly was found: the same for all dead letters with this fault."""
        return self.reason.partition(": ")[0]

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.key or b"") + len(self.value or b"")


def time_of(record: Any) -> datetime:
    """When a record was written, as its producer says."""
    return datetime.fromtimestamp(min(max(record.timestamp or 0, 0), _LAST_MS) / 1000, timezone.utc)


def _history(value: bytes | None) -> tuple[Failure, ...]:
    try:
        return tuple(msgspec.json.decode(value or b"[]", type=list[Failure])[-_KEPT:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # another program's
        return ()


def headers_back(letter: Letter) -> Headers:
    """The headers that a record goes back with: its own, and what became of it so far."""
    failure = Failure(
        str(letter.id),
        letter.topic,
        letter.partition,
        letter.offset,
        letter.reason[:_REASON_LENGTH],
        letter.time.isoformat(timespec="milliseconds"),
    )
    return [
        *((name, value) for name, value in letter.headers if not name.startswith((PREFIX, RETRY))),
        (COUNT, str(letter.retries + 1).encode()),
        (HISTORY, msgspec.json.encode([*letter.history, failure][-_KEPT:])),
    ]


@dataclass(frozen=True)
class Places:
    """Where a shop's dead letters are, and where they may go back to.

    Arguments:
        dead_letters: Their topic.
        retries: The topic of the marks.
        topics: Those that records are taken from; each has as many partitions as the two above.
        transactional_id: Of the producer that puts back: there is only one at a time.
    """

    dead_letters: str
    retries: str
    topics: Collection[str]
    partitions: int
    transactional_id: str


# -- reading


#: Told how many more were looked at.
Progress = Callable[[int], None]


def _nobody(_: int) -> None:
    return


async def read(
    bootstrap: Bootstrap,
    places: Places,
    reason: str | None = None,
    *,
    values: bool = True,
    progress: Progress = _nobody,
) -> AsyncGenerator[Letter, None]:
    """All dead letters up to the present end, oldest first; with `reason`: those whose reason has this text in it.

    Raises:
        Unavailable: Kafka does not answer.
    """
    count = (await kafka.partitions(bootstrap, [places.dead_letters])).get(places.dead_letters, 0)
    if not count:  # nothing was ever sent there
        return
    wanted = None if reason is None else reason.casefold()
    async with aclosing(kafka.by_time(bootstrap, places.dead_letters, count, values=values)) as records:
        async for record in records:
            progress(1)
            letter = Letter.of(record)
            if wanted is None or wanted in letter.reason.casefold():
                yield letter


async def latest(bootstrap: Bootstrap, places: Places, limit: int) -> list[Letter]:
    """The dead letters that came last, newest first, without their values. Reads few, however many there are.

    Raises:
        Unavailable: Kafka does not answer.
    """
    count = (await kafka.partitions(bootstrap, [places.dead_letters])).get(places.dead_letters, 0)
    records = await kafka.tail(bootstrap, places.dead_letters, count, limit, values=False)
    found = sorted(map(Letter.of, records), key=lambda letter: (letter.time, letter.id), reverse=True)
    return found[:limit]


async def check(bootstrap: Bootstrap, places: Places, ids: Iterable[Id]) -> None:
    """Are they all there?

    Raises:
        Refused: One is not (any more).
        Unavailable: Kafka does not answer.
    """
    async for _ in chosen(bootstrap, places, ids):
        pass


async def chosen(
    bootstrap: Bootstrap, places: Places, ids: Iterable[Id], *, progress: Progress = _nobody
) -> AsyncGenerator[Letter, None]:
    """These dead letters, each once.

    Raises:
        Refused: One is not there (any more).
        Unavailable: Kafka does not answer.
    """
    ids = list(dict.fromkeys(ids))
    count = (await kafka.partitions(bootstrap, [places.dead_letters])).get(places.dead_letters, 0)
    for one in ids:
        if one.partition >= count:
            raise Refused(f"there is no dead letter {one} in topic {places.dead_letters}")
    async with aclosing(kafka.read_places(bootstrap, places.dead_letters, ids)) as records:
        for one in ids:
            record = await anext(records)
            if record is None:
                raise Refused(f"there is no dead letter {one} in topic {places.dead_letters}")
            progress(1)
            yield Letter.of(record)


async def marks(bootstrap: Bootstrap, places: Places) -> dict[Id, datetime]:
    """Which dead letters were put back, and when.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found: dict[Id, datetime] = {}

    def take(partition: int, records: Iterable[Any]) -> None:
        for record in records:
            with suppress(Refused, UnicodeDecodeError):  # another program's
                letter = Id.parse((record.key or b"").decode())
                if record.value is None:
                    found.pop(letter, None)
                else:
                    found[letter] = time_of(record)

    count = (await kafka.partitions(bootstrap, [places.retries])).get(places.retries, 0)
    for partition in range(count):
        await kafka.read_partition(bootstrap, places.retries, partition, take)
    return found


async def mark_of(bootstrap: Bootstrap, places: Places, letter: Id) -> tuple[datetime, Mark] | None:
    """When and where this dead letter was put back; None: it was not.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found: list[Any] = []

    def take(partition: int, records: Iterable[Any]) -> None:
        found.extend(record for record in records if record.key == str(letter).encode())

    count = (await kafka.partitions(bootstrap, [places.retries])).get(places.retries, 0)
    if letter.partition < count:
        await kafka.read_partition(bootstrap, places.retries, letter.partition, take)
    if not found or found[-1].value is None:
        return None
    try:
        return time_of(found[-1]), msgspec.json.decode(found[-1].value, type=Mark)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # another program's
        return time_of(found[-1]), Mark(str(letter), "", -1, -1)


# -- putting back


class Producer(Protocol):
    """What is needed of `kafka.Transactions`."""

    def transaction(self) -> AbstractAsyncContextManager[None]: ...

    async def send(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> Awaitable[Any]: ...


#: Starts the only producer that may put back; what another one had not committed is aborted.
Connect = Callable[[], AbstractAsyncContextManager[Producer]]
#: Which dead letters were put back.
ReadMarks = Callable[[], Awaitable[Mapping[Id, Any]]]


@dataclass
class Outcome:
    """What became of the dead letters that were to be put back."""

    put_back: int = 0
    already: int = 0  #: had been put back before
    refused: list[tuple[Id, str]] = field(default_factory=list)  #: with the reason

    @property
    def status(self) -> int:
        """The exit status: 0, or 1 when some were refused."""
        return 1 if self.refused else 0


class Retry:
    """Puts dead letters back, each exactly once, whoever else does or did the same and wherever they were cut off.

    The marks are read after the producer has started. From then on no earlier producer can commit anything, so what has
    no mark is not back; and should another one start, this one can commit nothing any more.
    """

    def __init__(self, connect: Connect, read_marks: ReadMarks, places: Places) -> None:
        self.outcome = Outcome()
        self._connect = connect
        self._read_marks = read_marks
        self._places = places
        self._stack = AsyncExitStack()
        self._producer: Producer | None = None
        self._marked: set[Id] = set()
        self._under_way = False

    async def run(self, letters: AsyncGenerator[Letter, None]) -> Outcome:
        """Put these back.

        Raises:
            Unavailable: Kafka went away, or another one has taken over; each one is back or has no mark.
        """
        try:
            await self._open()
            async with aclosing(letters), aclosing(_chunks(letters)) as chunks:
                async for chunk in chunks:
                    await self._put([letter for letter in chunk if self._may_go(letter)])
        except ProducerFenced as error:
            self._under_way = False  # nor may we stop the one that has taken over
            why = "another one has taken over, or this one stood still for too long"
            raise Unavailable("dead-letters retry", f"{why}; {self._so_far()}") from error
        except KafkaError as error:
            raise Unavailable("Kafka", f"{error or type(error).__name__}; {self._so_far()}") from error
        finally:
            await self._close()
        return self.outcome

    def _so_far(self) -> str:
        return f"{self.outcome.put_back} dead letters were put back. Run it again for the others"

    async def _open(self) -> None:
        self._producer = await self._stack.enter_async_context(self._connect())
        self._marked = set(await self._read_marks())

    async def _close(self) -> None:
        await self._stack.aclose()
        if self._under_way:  # Ctrl-C: a new producer ends the transaction, else the workers wait until Kafka does
            self._under_way = False
            with suppress(Unavailable):
                async with self._connect():
                    pass

    def _may_go(self, letter: Letter) -> bool:
        if letter.id in self._marked:
            self.outcome.already += 1
            return False
        if why := _fault(letter, self._places):
            self.outcome.refused.append((letter.id, why))
            return False
        return True

    async def _put(self, letters: Sequence[Letter]) -> None:
        """Put these back. When Kafka refuses one of them, the others still go: halved until it stands alone."""
        wanted, letters = letters, [letter for letter in letters if letter.id not in self._marked]
        self.outcome.already += len(wanted) - len(letters)  # by another one, while this one had none running
        if not letters:
            return
        try:
            await self._commit(letters)
        except BrokerResponseError as error:
            if error.retriable:
                raise
            await self._stack.aclose()  # a producer that failed is of no more use
            await self._open()
            if len(letters) == 1:
                self.outcome.refused.append((letters[0].id, f"Kafka does not take it: {error}"))
                return
            middle = len(letters) // 2
            await self._put(letters[:middle])
            await self._put(letters[middle:])
        else:
            self.outcome.put_back += len(letters)
            self._marked.update(letter.id for letter in letters)

    async def _commit(self, letters: Sequence[Letter]) -> None:
        assert self._producer is not None  # noqa: S101 - `_open` has set it
        send = self._producer.send
        self._under_way = True
        async with self._producer.transaction():
            sent = await acknowledged(
                send(letter.topic, letter.partition, letter.key, letter.value, headers_back(letter))
                for letter in letters
            )
            await acknowledged(
                send(self._places.retries, letter.id.partition, str(letter.id).encode(), _mark(letter, done.offset), [])
                for letter, done in zip(letters, sent, strict=True)
            )
        self._under_way = False


def _mark(letter: Letter, offset: int) -> bytes:
    return msgspec.json.encode(Mark(str(letter.id), letter.topic, letter.partition, offset))


def _fault(letter: Letter, places: Places) -> str:
    """Why it can't be put back; empty: it can."""
    if not letter.topic:
        return f"its headers don't say where it came from (no {PREFIX}topic)"
    if letter.topic not in places.topics:
        return f"its headers name the topic {letter.topic!r}, which is none of {', '.join(sorted(places.topics))}"
    if not 0 <= letter.partition < places.partitions:
        return f"its headers name no partition of {letter.topic}"
    return ""


async def _chunks(letters: AsyncIterator[Letter]) -> AsyncGenerator[list[Letter], None]:
    chunk: list[Letter] = []
    size = 0
    async for letter in letters:
        chunk.append(letter)
        size += letter.size
        if len(chunk) == _AT_ONCE or size >= _BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


async def retry(bootstrap: Bootstrap, places: Places, letters: AsyncGenerator[Letter, None]) -> Outcome:
    """Put these dead letters back, each exactly once.

    Raises:
        Unavailable: Kafka went away, or another retry has taken over; each dead letter is back or is not marked.
    """

    async def read_marks() -> Mapping[Id, Any]:
        return await marks(bootstrap, places)

    def connect() -> AbstractAsyncContextManager[Producer]:
        return kafka.transactions(bootstrap, places.transactional_id)

    return await Retry(connect, read_marks, places).run(letters)
