"""How long this worker's partitions are certainly its own."""

from __future__ import annotations

import time
from collections.abc import Callable


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """The time for which Kafka has certainly not given our partitions to other workers.

    Kafka does so when it has heard nothing of us for the session timeout. It counts from when it got our last
    heartbeat; we count from when we sent it, so our lease ends first. A process that slept through it learns that it
    lost its partitions only from the answer to its next heartbeat. Until then it must send nothing, because Kafka
    takes records from anybody.

    Arguments:
        timeout: The session timeout, in seconds.
        clock: Seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = _now) -> None:
        self._timeout = timeout
        self.clock = clock
        self._renewed: float | None = None
        self._paused = False

    def pause(self) -> None:
        """End the lease: our partitions are revoked, and what was under way is flushed."""
        self._paused = True

    def resume(self) -> None:
        """Begin a lease: partitions are assigned, so Kafka has just heard of us."""
        self._paused = False
        self.renew(self.clock())

    def renew(self, sent: float) -> None:
        """Kafka has answered a heartbeat that was sent at this time."""
        self._renewed = sent if self._renewed is None else max(self._renewed, sent)

    @property
    def valid(self) -> bool:
        """True while our partitions are certainly ours; also before any was assigned, when there is none to lose."""
        recent = self._renewed is None or self.clock() - self._renewed < self._timeout
        return recent and not self._paused
