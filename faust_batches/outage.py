"""Servers that are away: said once, and asked again until they answer or the partition is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError

from .errors import Unavailable

if TYPE_CHECKING:
    from .consumer import Batch

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
#: Pause after an error that `repeated` did not expect.
ERROR_PAUSE_SECONDS = 1.0

T = TypeVar("T")


class Outage:
    """Whether one server is away, as seen by all who ask it, in whatever thread.

    It is back when all who failed have succeeded: a server may refuse to write and still answer who only reads.

    Arguments:
        away, back: What the log says of it.
    """

    def __init__(self, service: str, away: str = "is away", back: str = "is back") -> None:
        self.service = service
        self._away, self._back = away, back
        self.failures = 0  #: requests that failed since the start, each of which is made again
        self._since: float | None = None
        self._failing: set[object] = set()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float | None:
        """How long the server has been away; None while it is not."""
        since = self._since
        return None if since is None else monotonic() - since

    def failed(self, error: Unavailable, who: object) -> None:
        """A request of `who` failed. The first failure of an outage is logged."""
        with self._lock:
            self.failures += 1
            self._failing.add(who)
            if self._since is not None:
                return
            self._since = monotonic()
        log.warning(
            "%s %s; nothing is lost, the work goes on when it %s. (%s)", self.service, self._away, self._back, error
        )

    def gave_up(self, who: object) -> None:
        """`who` asks no more, and got no answer."""
        with self._lock:
            self._failing.discard(who)

    def succeeded(self, who: object) -> None:
        """A request of `who` was answered. The last answer that was missing ends the outage, which is logged."""
        if self._since is None:  # nearly always; the lock is for the rest
            return
        with self._lock:
            self._failing.discard(who)
            if self._failing:
                return
            since, self._since = self._since, None
        if since is not None:
            log.warning("%s %s after %.1f s", self.service, self._back, monotonic() - since)


async def retrying(outage: Outage, check: Callable[[], None], attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until the server answers. Never gives up by itself.

    Arguments:
        check: Called before each attempt; what it raises ends the trying (the partition was lost).
        attempt: Raises `Unavailable` to be tried again. An attempt that seemed to fail may have succeeded, so it must
            be idempotent.
    """
    who = object()
    pause = FIRST_PAUSE_SECONDS
    try:
        while True:
            check()
            try:
                answer = await attempt()
            except Unavailable as error:
                outage.failed(error, who)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                outage.succeeded(who)
                return answer
    finally:
        outage.gave_up(who)


async def retrying_kafka(outage: Outage, batch: Batch, attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until Kafka has acknowledged it, and only while the lease on the batch's partition is confirmed.

    Kafka takes records also from a worker that slept, lost the partition and does not know it yet.

    Arguments:
        attempt: Raises `KafkaError` to be tried again. It must be idempotent.

    Raises:
        PartitionLost: The partition is no longer ours.
    """

    async def translated() -> T:
        await batch.wait_for_lease()
        try:
            return await attempt()
        except KafkaError as error:
            await batch.wait_for_lease()  # if we slept, Kafka was not away
            raise Unavailable(outage.service, error) from error

    return await retrying(outage, batch.check_owned, translated)


async def repeated(what: str, work: Callable[[], Awaitable[float]], going: Callable[[], bool]) -> None:
    """Do it again and again. An error in it is logged once, and the work is tried again.

    Arguments:
        what: What the work is about, for the log.
        work: Returns the seconds to wait before the next time.
        going: Asked before each time whether there is to be one.
    """
    said: str | None = None
    while going():
        try:
            pause, said = await work(), None
        except Exception as error:
            if repr(error) != said:
                said = repr(error)
                log.exception("%s: failed; trying again", what)
            pause = ERROR_PAUSE_SECONDS
        await asyncio.sleep(pause)
