"""The group's lag, read from Kafka in the background, also while the worker fetches nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic

from aiokafka.errors import KafkaError

from shopflow.errors import Refused, Unavailable

from .offsets import Partition, Span

log = logging.getLogger(__name__)

#: Seconds between two rounds of `Lags`.
LOOK_SECONDS = 5.0
#: After a round without an answer, which takes 5 seconds itself.
_AGAIN_SECONDS = 1.0

#: By topic and partition number.
Spans = Mapping[str, Mapping[int, Span]]
#: Returns those of the partitions that have no record between the committed offset and the end.
Empty = Callable[[Mapping[Partition, Span]], Awaitable[Collection[Partition]]]


class EmptySpans:
    """Finds lag without records: the marker at the end of a transaction takes an offset that is never committed.

    A partition whose span did not change between two rounds is read once.
    """

    def __init__(self) -> None:
        self._spans: dict[Partition, Span] = {}  #: of the last round
        self._empty: dict[Partition, bool] = {}  #: of the partitions whose span did not change

    async def look(self, spans: Mapping[Partition, Span], empty: Empty) -> None:
        """Compare the present spans with those of the last round, and read the partitions that did not change.

        Raises:
            Unavailable: Kafka does not answer. The next round reads these partitions.
        """
        unchanged = {partition for partition, span in spans.items() if self._spans.get(partition) == span}
        self._spans = dict(spans)
        self._empty = {partition: found for partition, found in self._empty.items() if partition in unchanged}
        behind = {partition for partition in unchanged if spans[partition].done < spans[partition].end}
        if wanted := {partition: spans[partition] for partition in behind - self._empty.keys()}:
            found = await empty(wanted)
            self._empty |= {partition: partition in found for partition in wanted}

    def waiting(self, partition: Partition, span: Span) -> int:
        """The lag of a partition with this span up to its last stable offset; 0 if it has no record."""
        if self._spans.get(partition) == span and self._empty.get(partition):
            return 0
        return max(span.end - span.done, 0)


class Lags:
    """The span and the lag of each partition, as of the last answer.

    Arguments:
        connect: Returns a context manager that gives a function; this asks Kafka for the spans.
        empty: Returns the partitions whose span has no record.
        looked: Called after each answer.
        topics: The topics that the group reads; None: all. Of others the offsets are known, and no lag.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[Spans]]]],
        empty: Empty,
        looked: Callable[[], Awaitable[None]] | None = None,
        topics: Collection[str] | None = None,
    ) -> None:
        self._topics = topics
        self._connect = connect
        self._empty = empty
        self.looked = looked
        self._spans: dict[Partition, Span] = {}
        self._empty_spans = EmptySpans()
        self._at: float | None = None
        #: True if Kafka answered the last request; None before the first.
        self.answers: bool | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        return None if self._at is None else monotonic() - self._at

    @property
    def spans(self) -> Mapping[Partition, Span]:
        return self._spans

    def waiting(self, partition: Partition) -> int:
        """The lag of a partition up to its last stable offset, in offsets."""
        span = self._spans.get(partition)
        return 0 if span is None else self._empty_spans.waiting(partition, span)

    async def run(self) -> None:
        """Ask Kafka every 5 seconds, for ever."""
        while True:
            try:
                async with self._connect() as ask:
                    while True:
                        await self.take(await ask())
                        await asyncio.sleep(LOOK_SECONDS)
            except (Unavailable, Refused, KafkaError) as error:
                if self.answers is not False:
                    log.info("The lag of the consumer group can't be read now: %s", error)
                self.answers = False
            except Exception:
                log.exception("The lag of the consumer group can't be read")
                self.answers = False
            await asyncio.sleep(_AGAIN_SECONDS)

    async def take(self, answer: Spans) -> None:
        found = {(topic, number): span for topic, spans in answer.items() for number, span in spans.items()}
        self._spans, self._at, self.answers = found, monotonic(), True
        topics = self._topics
        read = {partition: span for partition, span in found.items() if topics is None or partition[0] in topics}
        await self._empty_spans.look(read, self._empty)
        if self.looked is not None:
            await self.looked()
