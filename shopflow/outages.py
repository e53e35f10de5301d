"""What is said when a server goes away: one line when it goes, one when it is back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from .errors import Unavailable

__all__ = ["Outage", "retrying"]

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0

T = TypeVar("T")


class Outage:
    """Whether one server is away, as all who talk to it have seen, in whatever thread."""

    def __init__(self, service: str) -> None:
        self.service = service
        self._since: float | None = None
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float | None:
        """How long it has been away; None when it is not."""
        since = self._since
        return None if since is None else monotonic() - since

    def failed(self, error: Unavailable) -> None:
        """A request failed."""
        with self._lock:
            if self._since is not None:
                return
            self._since = monotonic()
        log.warning("%s is away; nothing is lost, the work goes on when it is back. (%s)", self.service, error)

    def succeeded(self) -> None:
        """A request was answered."""
        if self._since is None:  # nearly always; the lock is for the rest
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            log.warning("%s is back after %.1f s", self.service, monotonic() - since)


async def retrying(outage: Outage, check: Callable[[], None], attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until the server answers; never gives up by itself.

    Arguments:
        check: Called before each attempt; what it raises ends the trying (the partition was lost).
        attempt: Must be idempotent: an attempt that seemed to fail may have succeeded.
    """
    pause = FIRST_PAUSE_SECONDS
    while True:
        check()
        try:
            answer = await attempt()
        except Unavailable as error:
            outage.failed(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            outage.succeeded()
            return answer
