"""How far the group is behind, asked from Kafka in the background: also when nothing is fetched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic

from aiokafka.errors import KafkaError

from shopflow.errors import Unavailable

from .offsets import Span

__all__ = ["Lags", "Place", "Spans", "Standing"]

log = logging.getLogger(__name__)

#: Between two looks, seconds.
LOOK_SECONDS = 5.0

Spans = Mapping[str, Mapping[int, Span]]
Place = tuple[str, int]


#: Tells which of these spans hold no record.
Empty = Callable[[Mapping[Place, Span]], Awaitable[Collection[Place]]]


class Standing:
    """What only seems to wait: the end of a transaction takes an offset, and nothing is committed behind it.

    Where nothing has moved between two looks, it is looked into, once: what stands still may be that.
    """

    def __init__(self) -> None:
        #: Where each partition stood, and whether nothing waits there; None: not looked into.
        self._seen: dict[Place, tuple[Span, bool | None]] = {}

    async def look(self, spans: Mapping[Place, Span], empty: Empty) -> None:
        """Take in where the partitions stand now.

        Raises:
            Unavailable: Kafka does not answer; what was to be looked into will be at the next look.
        """
        before = self._seen
        self._seen = {
            place: known if (known := before.get(place)) is not None and known[0] == span else (span, None)
            for place, span in spans.items()
        }
        wanted = {
            place: span for place, span in spans.items() if span.done < span.end and before.get(place) == (span, None)
        }
        if wanted:
            nothing = await empty(wanted)
            self._seen |= {place: (span, place in nothing) for place, span in wanted.items()}

    def waiting(self, place: Place, span: Span) -> int:
        """How many records of a partition that stands here wait."""
        return 0 if self._seen.get(place) == (span, True) else max(span.end - span.done, 0)


class Lags:
    """What each partition holds, and how far the group has come in it, as of the last look.

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
        self._spans: dict[Place, Span] = {}
        self._standing = Standing()
        self._at: float | None = None
        #: Did Kafka answer when it was last asked? None: not asked yet.
        self.answers: bool | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the last answer; None: there is none yet."""
        return None if self._at is None else monotonic() - self._at

    @property
    def spans(self) -> Mapping[Place, Span]:
        """Each partition's."""
        return self._spans

    def waiting(self, place: Place) -> int:
        """How many records of a partition are not committed yet."""
        span = self._spans.get(place)
        return 0 if span is None else self._standing.waiting(place, span)

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
        """Kafka has answered."""
        found = {(topic, number): span for topic, spans in answer.items() for number, span in spans.items()}
        self._spans, self._at, self.answers = found, monotonic(), True
        await self._standing.look(found, self._empty)
        if self.looked is not None:
            await self.looked()
