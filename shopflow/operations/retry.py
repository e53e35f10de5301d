"""Puts dead letters back where they came from, each exactly once.

A dead letter goes back by one transaction of Kafka: the record in its topic and a mark in the topic of retries. Both
are there or neither, so a dead letter with a mark is back, and one without is not. See docs/ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
from aiokafka.errors import BrokerResponseError, KafkaError, ProducerFenced

from faust_batches import acknowledged
from shopflow.errors import Unavailable
from shopflow.kafka import transactions
from shopflow.kafka.security import Bootstrap
from shopflow.shop.dead_letters import PREFIX, Headers
from shopflow.shop.layout import Layout

from .letters import COUNT, HISTORY, KEPT, RETRY, Failure, Id, Letter, Mark, marks

#: Characters that a history keeps of a reason.
_REASON_LENGTH = 500
#: Dead letters of one transaction, and their bytes.
_AT_ONCE = 500
_BYTES_AT_ONCE = 4 * 1024 * 1024

#: Starts the only producer that may put back; what another one had not committed is aborted.
Connect = Callable[[], AbstractAsyncContextManager[transactions.Transactions]]
#: Reads which dead letters were put back.
ReadMarks = Callable[[], Awaitable[Iterable[Id]]]


async def retry(bootstrap: Bootstrap, shop: Layout, letters: AsyncGenerator[Letter, None]) -> Outcome:
    """Put these dead letters back, each exactly once.

    Raises:
        Unavailable: Kafka went away, or another retry has taken over; each dead letter is back or is not marked.
    """
    connect = partial(transactions.transactions, bootstrap, f"{shop.group}-dead-letters")
    return await Retry(connect, partial(marks, bootstrap, shop), shop).run(letters)


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

    def __init__(self, connect: Connect, read_marks: ReadMarks, shop: Layout) -> None:
        self.outcome = Outcome()
        self._connect = connect
        self._read_marks = read_marks
        self._shop = shop
        self._stack = AsyncExitStack()
        self._producer: transactions.Transactions | None = None
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
                    await self._put(chunk)
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
        if letter.id in self._marked:  # also by another one, while this one had no producer
            self.outcome.already += 1
            return False
        if why := _fault(letter, self._shop):
            self.outcome.refused.append((letter.id, why))
            return False
        return True

    async def _put(self, letters: Sequence[Letter]) -> None:
        """Put these back. When Kafka refuses one of them, the others still go: halved until it stands alone."""
        letters = [letter for letter in letters if self._may_go(letter)]
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
            made = [
                Mark(str(letter.id), letter.topic, letter.partition, done.offset)
                for letter, done in zip(letters, sent, strict=True)
            ]
            await acknowledged(
                send(self._shop.retries, letter.id.partition, mark.dead_letter.encode(), msgspec.json.encode(mark), [])
                for letter, mark in zip(letters, made, strict=True)
            )
        self._under_way = False


def _fault(letter: Letter, shop: Layout) -> str:
    """Why the letter can't be put back; empty if it can."""
    if not letter.topic:
        return f"its headers don't say where it came from (no {PREFIX}topic)"
    if letter.topic not in shop.events:
        return f"its headers name the topic {letter.topic!r}, which is none of {', '.join(sorted(shop.events))}"
    if not 0 <= letter.partition < shop.partitions:
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


def headers_back(letter: Letter) -> Headers:
    """The headers that a record goes back with: its own, how often it was put back, and its last failures."""
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
        (HISTORY, msgspec.json.encode([*letter.history, failure][-KEPT:])),
    ]
