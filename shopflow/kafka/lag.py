"""The group's lag, asked from Kafka in the background: also while nothing is fetched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic

from aiokafka.errors import KafkaError

from shopflow.errors import Unavailable

from .offsets import Partition, Span

log = logging.getLogger(__name__)

#: Between two looks, seconds.
LOOK_SECONDS = 5.0

#: By topic and number of the partition.
Spans = Mapping[str, Mapping[int, Span]]
#: Tells which of these partitions have no record behind what is done.
Empty = Callable[[Mapping[Partition, Span]], Awaitable[Collection[Partition]]]


class Standing:
    """Finds what only seems to wait: the end of a transaction takes an offset, and nothing is committed behind it.

    A partition whose span is the same at two looks is looked into, once.
    """

    def __init__(self) -> None:
        self._spans: dict[Partition, Span] = {}  #: at the last look
        self._empty: dict[Partition, bool] = {}  #: what was found in those that stand still

    async def look(self, spans: Mapping[Partition, Span], empty: Empty) -> None:
        """Take in the spans of now.

        Raises:
            Unavailable: Kafka does not answer. What was to be looked into will be at the next look.
        """
        still = {partition for partition, span in spans.items() if self._spans.get(partition) == span}
        self._spans = dict(spans)
        self._empty = {partition: found for partition, found in self._empty.items() if partition in still}
        behind = {partition for partition in still if spans[partition].done < spans[partition].end}
        if wanted := {partition: spans[partition] for partition in behind - self._empty.keys()}:
            found = await empty(wanted)
            self._empty |= {partition: partition in found for partition in wanted}

    def waiting(self, partition: Partition, span: Span) -> int:
        """How many records of a partition with this span wait."""
        if self._spans.get(partition) == span and self._empty.get(partition):
            return 0
        return max(span.end - span.done, 0)


class Lags:
    """The span and the lag of each partition, as of the last look.

    Arguments:
        connect: Opens what asks Kafka for the spans.
        empty: Tells which spans hold no record.
        looked: Called after each look.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[Spans]]]],
        empty: Empty,
        looked: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._connect = connect
        self._empty = empty
        self.looked = looked
        self._spans: dict[Partition, Span] = {}
        self._standing = Standing()
        self._at: float | None = None
        #: Did Kafka answer when it was last asked? None: not asked yet.
        self.answers: bool | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last answer; None: there is none yet."""
        return None if self._at is None else monotonic() - self._at

    @property
    def spans(self) -> Mapping[Partition, Span]:
        return self._spans

    def waiting(self, partition: Partition) -> int:
        """How many records of a partition are not committed yet."""
        span = self._spans.get(partition)
        return 0 if span is None else self._standing.waiting(partition, span)

    async def run(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            try:
                async with self._connect() as ask:
                    while True:
                        await self.take(await ask())
                        await asyncio.sleep(LOOK_SECONDS)
            except (Unavailable, KafkaError) as error:
                if self.answers is not False:
                    log.info("How far the group is behind can't be told now: %s", error)
                self.answers = False
            except Exception:
                log.exception("How far the group is behind can't be told")
                self.answers = False
            await asyncio.sleep(LOOK_SECONDS)

    async def take(self, answer: Spans) -> None:
        found = {(topic, number): span for topic, spans in answer.items() for number, span in spans.items()}
        self._spans, self._at, self.answers = found, monotonic(), True
        await self._standing.look(found, self._empty)
        if self.looked is not None:
            await self.looked()
