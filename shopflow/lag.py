"""How far the group is behind, asked from Kafka in the background: also when nothing is fetched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from time import monotonic

from aiokafka.errors import KafkaError

from .errors import Unavailable
from .kafka import Span

__all__ = ["Lags", "Place", "Spans"]

log = logging.getLogger(__name__)

#: Between two looks, seconds.
LOOK_SECONDS = 5.0

Spans = Mapping[str, Mapping[int, Span]]
Place = tuple[str, int]


class Lags:
    """What each partition holds, and how far the group has come in it, as of the last look.

    Arguments:
        connect: Opens what asks Kafka for the spans.
        any_record: Is there a record in this span of a partition? The end of a transaction takes an offset too.
        looked: Called after each look.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[Spans]]]],
        any_record: Callable[[str, int, Span], Awaitable[bool]],
        looked: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._connect = connect
        self._any_record = any_record
        self.looked = looked
        self._spans: dict[Place, Span] = {}
        #: Spans that hold no record.
        self._empty: dict[Place, Span] = {}
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
        return 0 if span is None or self._empty.get(place) == span else max(span.end - span.done, 0)

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
        before, self._spans, self._at, self.answers = self._spans, found, monotonic(), True
        for place, span in found.items():
            # Where nothing moves there may be nothing to come: it is looked into once.
            still = span.done < span.end and before.get(place) == span and place not in self._empty
            if still and not await self._any_record(*place, span):
                self._empty[place] = span
        self._empty = {place: span for place, span in self._empty.items() if found.get(place) == span}
        if self.looked is not None:
            await self.looked()
