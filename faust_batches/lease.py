"""The lease: for how long this worker's partitions are certainly its own."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Of the session timeout.
_SHARE = 0.9


def _now() -> float:
    """Seconds of a clock that counts while the machine sleeps, on systems that have one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Lease:
    """The time for which Kafka certainly keeps our partitions assigned to us.

    Kafka reassigns them after the session timeout without a heartbeat. Kafka counts from the arrival of the last
    heartbeat; the lease counts from its sending, and ends after 90 % of the timeout. The rest is for what was sent
    before and is still under way: it arrives, or is recalled, before another worker takes over. A process that slept
    past the timeout learns that it lost its partitions only from the answer to its next heartbeat. Until then it must
    send nothing, because Kafka accepts records from anybody.

    Arguments:
        session_timeout: Kafka's session timeout, in seconds.
        clock: Returns seconds.
    """

    def __init__(self, session_timeout: float, clock: Callable[[], float] = _now) -> None:
        self.timeout = _SHARE * session_timeout  #: seconds
        self.clock = clock
        self._renewed: float | None = None
        self._paused = False

    def pause(self) -> None:
        """End the lease: our partitions are revoked, and the producer is flushed."""
        self._paused = True

    def resume(self) -> None:
        """Begin a lease: partitions are assigned, so Kafka has just answered us."""
        self._paused = False
        self.renew(self.clock())

    def renew(self, sent: float) -> None:
        """Extend the lease: Kafka answered a heartbeat that was sent at this time."""
        self._renewed = sent if self._renewed is None else max(self._renewed, sent)

    def renewed_within(self, seconds: float) -> bool:
        """True if Kafka answered a heartbeat that was sent in this time; also before the first assignment."""
        return self._renewed is None or self.clock() - self._renewed < seconds

    @property
    def confirmed(self) -> bool:
        """True if Kafka answered a heartbeat within the timeout; also before the first assignment."""
        return self.renewed_within(self.timeout)

    @property
    def valid(self) -> bool:
        """True while our partitions are certainly ours; also before the first assignment."""
        return self.confirmed and not self._paused
