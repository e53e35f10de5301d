"""Where a partition stands, and whether it is still ours. Pure, but for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

from shopflow.errors import PartitionLost

__all__ = ["Chain", "Cursor", "Session"]


class Cursor:
    """Where the next run of a partition must start. Pure."""

    __slots__ = ("_doubted", "next")

    def __init__(self, offset: int) -> None:
        self.next = offset
        self._doubted: int | None = None

    def admits(self, first: int) -> bool:
        """May a run that starts at this offset pass? If not, fetch again from `next`.

        A run from elsewhere was fetched before a seek, or one before it was lost on the way. When the fetch from `next`
        brings the same run again, there is nothing before it: a hole that compaction, retention or a transaction left.
        """
        if first in {self.next, self._doubted}:
            self._doubted = None
            return True
        self._doubted = first if first > self.next else None
        return False


class Chain:
    """How far a partition is done: the end of an unbroken chain of finished batches. Pure."""

    __slots__ = ("committed", "done", "epoch")

    def __init__(self, committed: int, epoch: int) -> None:
        self.committed = committed  #: what Kafka has confirmed
        self.done = committed  #: everything before this offset is finished: the only offset that is ever committed
        self.epoch = epoch  #: how often the consumer went back; batches of an earlier epoch no longer count

    def continues(self, start: int) -> bool:
        """Does a batch that starts here continue the chain?"""
        return start == self.done

    def finish(self, start: int, end: int) -> None:
        """A batch is finished: the chain ends where it ends.

        Raises:
            PartitionLost: It did not continue the chain; nothing changed.
        """
        if not self.continues(start):
            raise PartitionLost(f"a batch from {start} does not continue the chain, which ends at {self.done}")
        self.done = end


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Session:
    """How long it is sure that Kafka has not given our partitions to others. Pure, but for the clock.

    Kafka does so when it has heard nothing for the session timeout. It counts from when it got our last heartbeat, we
    from when we sent it: so ours ends first. A process that slept through it learns that it lost its partitions only
    from the answer to its next heartbeat; until then it must send nothing that Kafka would take from anybody.

    Arguments:
        timeout: The session timeout, in seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = _now) -> None:
        self._timeout = timeout
        self.clock = clock
        self._renewed: float | None = None
        self._paused = False

    def pause(self) -> None:
        """We gave our partitions up, and flushed what was under way: nothing may follow until we have new ones."""
        self._paused = True

    def resume(self) -> None:
        """We have partitions: Kafka has just heard of us."""
        self._paused = False
        self.renewed(self.clock())

    def renewed(self, sent: float) -> None:
        """Kafka has answered a heartbeat that was sent then."""
        self._renewed = sent if self._renewed is None else max(self._renewed, sent)

    @property
    def sure(self) -> bool:
        """Is what was ours a heartbeat ago still ours? Also true of who never had anything."""
        recent = self._renewed is None or self.clock() - self._renewed < self._timeout
        return recent and not self._paused
