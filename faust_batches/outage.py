"""Outages and refusals of servers: each is told once, and requests are retried until they succeed or the partition is
lost.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError, LeaderNotAvailableError, NotLeaderForPartitionError

from .errors import Refusal, Slow, Unavailable
from .producer import Undecided
from .refusals import is_passing, kafka_failure
from .troubles import Troubles

if TYPE_CHECKING:
    from .batch import Batch

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0
#: Pause after a refusal: somebody must change a setting first.
REFUSED_PAUSE_SECONDS = 5.0
#: The kind of the trouble of a refusal.
REFUSED = "refused"
#: After this long, a topic that Kafka does not know is gone, and one without a leader gets none by itself.
PASSING_SECONDS = 15.0
#: How often a request is made before its failure is an outage: a connection broke, or a leader moves, as when a broker
#: wakes up. A failure of another kind is one at once.
_TRIES = ((Undecided, 2), (NotLeaderForPartitionError, 6), (LeaderNotAvailableError, 6))
#: Pause between two of these tries.
_TRY_PAUSE_SECONDS = 0.5
#: Pause of `repeated` after an error.
ERROR_PAUSE_SECONDS = 1.0

T = TypeVar("T")


class Outage:
    """Tracks whether one server is away, over all its callers. Thread-safe.

    The server is back when every caller that failed has succeeded or given up: a server that refuses writes may still
    answer reads.

    A server that refuses is not away: the refusal is a trouble, of the kind `refused`, which ends by the next success
    of a caller that had it.

    Arguments:
        away, back: The words of the log lines, after the service's name.
        troubles: Where refusals are recorded. None: they are told like outages.
    """

    def __init__(
        self, service: str, away: str = "is away", back: str = "is back", troubles: Troubles | None = None
    ) -> None:
        self.service = service
        self._troubles = troubles
        self._refused: dict[object, str] = {}  # caller -> subject
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

    @property
    def refuses(self) -> bool:
        """True while the server refuses requests."""
        return bool(self._refused)

    @property
    def refuses_all(self) -> bool:
        """True while the server refuses every request, like a login. The subject of the refusal is the service."""
        return self.service in self._refused.values()

    def failed(self, error: Unavailable, caller: object) -> None:
        """Record a failed request of this caller. The first failure of an outage or of a refusal is logged."""
        if isinstance(error, Refusal) and self._troubles is not None:
            self._refuse(self._troubles, error, caller)
            return
        self._accepted(caller, mended=False)
        with self._lock:
            self.failures += 1
            if self.refuses_all:
                return
            self._failing.add(caller)
            if self._since is not None:
                return
            self._since = monotonic()
        log.warning(
            "%s %s; nothing is lost, the work goes on when it %s. (%s)", self.service, self._away, self._back, error
        )

    def _refuse(self, troubles: Troubles, error: Refusal, caller: object) -> None:
        with self._lock:
            self.failures += 1
            others = self._refused.get(caller, error.subject) != error.subject
        if others:
            self._accepted(caller, mended=True)
        with self._lock:
            self._refused[caller] = error.subject
            if self.refuses_all:  # so it answers: what failed before was refused, too
                self._failing.clear()
        self._answered(caller)
        troubles.begin(REFUSED, error.subject, error.text, stops=True)

    def gave_up(self, caller: object) -> None:
        """Record that this caller stopped retrying. The outage goes on until another request succeeds."""
        with self._lock:
            self._failing.discard(caller)
        self._accepted(caller, mended=False)

    def succeeded(self, caller: object) -> None:
        """Record a successful request of this caller. The outage ends, and is logged, when no caller fails any more."""
        if self._refused:
            self._accepted(caller, mended=True)
        if self._since is not None:  # usually it is None: skip the lock
            self._answered(caller)

    def _accepted(self, caller: object, *, mended: bool) -> None:
        with self._lock:
            subject = self._refused.pop(caller, None)
            if subject is None or subject in self._refused.values():
                return
        if self._troubles is not None:
            self._troubles.end(REFUSED, subject, mended=mended)

    def _answered(self, caller: object) -> None:
        with self._lock:
            self._failing.discard(caller)
            if self._failing or self._since is None:
                return
            since, self._since = self._since, None
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
                await asyncio.sleep(REFUSED_PAUSE_SECONDS if isinstance(error, Refusal) else pause)
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

    passing_since: float | None = None

    async def patiently() -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return await attempt()
            except (KafkaError, Unavailable) as error:
                cause = _cause(error)
                if tries >= next((most for kind, most in _TRIES if isinstance(cause, kind)), 1):
                    raise
            await asyncio.sleep(_TRY_PAUSE_SECONDS)
            await batch.wait_for_lease()

    async def translated() -> T:
        nonlocal passing_since
        await batch.wait_for_lease()
        try:
            return await patiently()
        except (KafkaError, Unavailable) as error:
            cause = _cause(error)
            if cause is None:
                raise
            await batch.wait_for_lease()  # raises if the lease expired and the partition was lost: that is no outage
            passing_since = (passing_since or monotonic()) if is_passing(cause) else None
            lasting = passing_since is not None and monotonic() - passing_since > PASSING_SECONDS
            raise kafka_failure(cause, batch.tp.topic, lasting=lasting) from cause

    return await retrying(outage, batch.check_owned, translated)


def _cause(error: KafkaError | Unavailable) -> KafkaError | None:
    """Kafka's error; None if `Unavailable` has none."""
    cause = error if isinstance(error, KafkaError) else error.__cause__
    return cause if isinstance(cause, KafkaError) else None


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
