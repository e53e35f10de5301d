"""Retries dead letters: publishes each record to its topic and partition again, exactly once.

One Kafka transaction publishes the record and a mark in the topic of retries. Both are committed or neither is, so a
dead letter was retried if and only if it has a mark. See docs/ARCHITECTURE.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
from aiokafka.errors import BrokerResponseError, KafkaError, ProducerFenced

from faust_batches import acknowledged
from faust_batches.refusals import kafka_failure
from shopflow.errors import Unavailable
from shopflow.kafka import transactions
from shopflow.kafka.security import Bootstrap
from shopflow.shop.dead_letters import PREFIX, RAW, Headers
from shopflow.shop.layout import Layout

from .letters import COUNT, HISTORY, KEPT, RETRY, Failure, Id, Letter, Mark, marks

#: Characters of a reason in a history.
_REASON_LENGTH = 500
#: Dead letters of one transaction, and their bytes.
_AT_ONCE = 500
_BYTES_AT_ONCE = 4 * 1024 * 1024

#: Starts the transactional producer. Kafka aborts the open transaction of an earlier one, and fences it.
Connect = Callable[[], AbstractAsyncContextManager[transactions.Transactions]]
#: Reads the ids of the retried dead letters.
ReadMarks = Callable[[], Awaitable[Iterable[Id]]]


async def retry(bootstrap: Bootstrap, shop: Layout, letters: AsyncGenerator[Letter, None]) -> Outcome:
    """Retry these dead letters, each exactly once.

    Raises:
        Unavailable: Kafka went away, or another retry has taken over. Each dead letter was retried or has no mark.
    """
    connect = partial(transactions.transactions, bootstrap, f"{shop.group}-dead-letters")
    return await Retry(connect, partial(marks, bootstrap, shop), shop).run(letters)


@dataclass
class Outcome:
    """The result of a retry."""

    retried: int = 0
    already: int = 0  #: had been retried before
    refused: list[tuple[Id, str]] = field(default_factory=list)  #: with the reason

    @property
    def status(self) -> int:
        """The exit status: 0, or 1 when some were refused."""
        return 1 if self.refused else 0


class Retry:
    """Retries dead letters, each exactly once, even if other retries run at the same time or were killed.

    The marks are read after the producer has started. From then on no earlier producer can commit, so a dead letter
    without a mark was not retried. If another producer starts, this one can commit nothing more.
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
        """Retry these dead letters.

        Raises:
            Unavailable: Kafka went away, or another retry has taken over. Each dead letter was retried or has no mark.
        """
        try:
            await self._open()
            async with aclosing(letters), aclosing(_chunks(letters)) as chunks:
                async for chunk in chunks:
                    await self._put(chunk)
        except ProducerFenced as error:
            self._under_way = False  # else `_close` would fence the retry that has taken over
            why = "another retry has taken over, or this one stood still for too long"
            raise Unavailable("dead-letters retry", f"{why}; {self._so_far()}") from error
        except KafkaError as error:
            raise Unavailable("Kafka", f"{error or type(error).__name__}; {self._so_far()}") from error
        finally:
            await self._close()
        return self.outcome

    def _so_far(self) -> str:
        return f"{self.outcome.retried} dead letters were retried. Run it again for the others"

    async def _open(self) -> None:
        self._producer = await self._stack.enter_async_context(self._connect())
        self._marked = set(await self._read_marks())

    async def _close(self) -> None:
        await self._stack.aclose()
        if self._under_way:  # Ctrl-C: a new producer aborts the transaction; else workers wait for its timeout
            self._under_way = False
            with suppress(Unavailable):
                async with self._connect():
                    pass

    def _may_retry(self, letter: Letter) -> bool:
        if letter.id in self._marked:  # perhaps by another retry, while this one had no producer
            self.outcome.already += 1
            return False
        if why := fault(letter, self._shop):
            self.outcome.refused.append((letter.id, why))
            return False
        return True

    async def _put(self, letters: Sequence[Letter]) -> None:
        """Retry these. If Kafka refuses a transaction, retry each half of it, until the refused record is alone."""
        letters = [letter for letter in letters if self._may_retry(letter)]
        if not letters:
            return
        try:
            await self._commit(letters)
        except BrokerResponseError as error:
            if error.retriable:
                raise
            await self._stack.aclose()  # a producer that failed can't be used again
            await self._open()
            if len(letters) == 1:
                self.outcome.refused.append((letters[0].id, str(kafka_failure(error, letters[0].topic))))
                return
            middle = len(letters) // 2
            await self._put(letters[:middle])
            await self._put(letters[middle:])
        else:
            self.outcome.retried += len(letters)
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


def fault(letter: Letter, shop: Layout) -> str:
    """Why the dead letter can't be retried; empty if it can."""
    if any(name == RAW for name, _ in letter.headers):
        return "it has only the bytes of what could not be read, so it can't be accepted this time either"
    if not letter.topic:
        return f"its headers don't name its topic (no {PREFIX}topic)"
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
    """The headers of a retried record: its own, the number of retries, and its last failures."""
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
