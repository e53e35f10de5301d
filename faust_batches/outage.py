"""Outages of servers: each is logged once, and requests are retried until they succeed or the partition is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError

from .errors import Slow, Unavailable
from .producer import Undecided

if TYPE_CHECKING:
    from .consumer import Batch

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
#: Pause before a batch of records is sent again that a broker did not acknowledge for a passing reason.
UNDECIDED_PAUSE_SECONDS = 0.5
#: Pause of `repeated` after an error.
ERROR_PAUSE_SECONDS = 1.0

T = TypeVar("T")


class Outage:
    """Tracks whether one server is away, over all its callers. Thread-safe.

    The server is back when every caller that failed has succeeded or given up: a server that refuses writes may still
    answer reads.

    Arguments:
        away, back: The words of the log lines, after the service's name.
    """

    def __init__(self, service: str, away: str = "is away", back: str = "is back") -> None:
        self.service = service
        self._away, self._back = away, back
        self.failures = 0  #: failed requests since the start; each is retried
        self._since: float | None = None
        self._failing: set[object] = set()
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float | None:
        """How long the server has been away; None while it is not."""
        since = self._since
        return None if since is None else monotonic() - since

    def failed(self, error: Unavailable, caller: object) -> None:
        """Record a failed request of this caller. The first failure of an outage is logged."""
        with self._lock:
            self.failures += 1
            self._failing.add(caller)
            if self._since is not None:
                return
            self._since = monotonic()
        log.warning(
            "%s %s; nothing is lost, the work goes on when it %s. (%s)", self.service, self._away, self._back, error
        )

    def gave_up(self, caller: object) -> None:
        """Record that this caller stopped retrying. The outage goes on until another request succeeds."""
        with self._lock:
            self._failing.discard(caller)

    def succeeded(self, caller: object) -> None:
        """Record a successful request of this caller. The outage ends, and is logged, when no caller fails any more."""
        if self._since is None:  # the usual case: skip the lock
            return
        with self._lock:
            self._failing.discard(caller)
            if self._failing:
                return
            since, self._since = self._since, None
        if since is not None:
            log.warning("%s %s after %.1f s", self.service, self._back, monotonic() - since)


async def retrying(outage: Outage, check: Callable[[], None], attempt: Callable[[], Awaitable[T]]) -> T:
    """Retry until the server answers, without a limit. Returns the answer.

    Arguments:
        check: Called before each attempt. An error that it raises ends the retries (the partition was lost).
        attempt: Retried when it raises `Unavailable`. It must be idempotent: a failed request may have reached the
            server.
    """
    caller = object()
    pause = FIRST_PAUSE_SECONDS
    try:
        while True:
            check()
            try:
                answer = await attempt()
            except Unavailable as error:
                if not isinstance(error, Slow):
                    outage.failed(error, caller)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                outage.succeeded(caller)
                return answer
    finally:
        outage.gave_up(caller)


async def retrying_kafka(outage: Outage, batch: Batch, attempt: Callable[[], Awaitable[T]]) -> T:
    """Retry until Kafka has acknowledged the attempt. Attempts are made only while the lease is confirmed.

    Kafka also accepts records from a worker that slept, lost the partition and has not noticed yet.

    Arguments:
        attempt: Retried when it raises `KafkaError`. It must be idempotent.

    Raises:
        PartitionLost: The batch is no longer ours.
    """

    async def twice() -> T:
        try:
            return await attempt()
        except Undecided:  # a leader moves, or a connection broke: that alone is no outage
            await asyncio.sleep(UNDECIDED_PAUSE_SECONDS)
            await batch.wait_for_lease()
            return await attempt()

    async def translated() -> T:
        await batch.wait_for_lease()
        try:
            return await twice()
        except KafkaError as error:
            await batch.wait_for_lease()  # raises if the lease expired and the partition was lost: that is no outage
            raise Unavailable(outage.service, error) from error

    return await retrying(outage, batch.check_owned, translated)


async def repeated(subject: str, work: Callable[[], Awaitable[float]], going: Callable[[], bool]) -> None:
    """Call `work` in a loop. After an error it is called again; the same error is logged once.

    Arguments:
        subject: The subject of the work, for the log.
        work: Returns the seconds to wait before the next call.
        going: Called before each round; False ends the loop.
    """
    logged: str | None = None
    while going():
        try:
            pause, logged = await work(), None
        except Exception as error:
            if repr(error) != logged:
                logged = repr(error)
                log.exception("%s: failed; trying again", subject)
            pause = ERROR_PAUSE_SECONDS
        await asyncio.sleep(pause)
