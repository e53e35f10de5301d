"""What is said when a server goes away: one line when it goes, one when it is back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from shopflow.errors import Unavailable

__all__ = ["Outage", "retrying"]

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

T = TypeVar("T")


class Outage:
    """Whether one server is away, as all who talk to it have seen, in whatever thread.

    It is back when all who failed have succeeded: a server may refuse to write and still answer who only reads.

    Arguments:
        away, back: What is said of it.
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
        """How long it has been away; None when it is not."""
        since = self._since
        return None if since is None else monotonic() - since

    def failed(self, error: Unavailable, who: object) -> None:
        """A request of `who` failed."""
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
        """`who` asks no more, without an answer."""
        with self._lock:
            self._failing.discard(who)

    def succeeded(self, who: object) -> None:
        """A request of `who` was answered."""
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
    """Try until the server answers; never gives up by itself.

    Arguments:
        check: Called before each attempt; what it raises ends the trying (the partition was lost).
        attempt: Must be idempotent: an attempt that seemed to fail may have succeeded.
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
