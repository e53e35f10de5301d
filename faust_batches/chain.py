"""The next offset to read and the end of the finished batches, for one partition. No I/O."""

from __future__ import annotations

from .errors import PartitionLost


class Cursor:
    """The offset at which the next run of records of a partition must start."""

    __slots__ = ("_refused", "next", "short")

    def __init__(self, offset: int) -> None:
        self.next = offset
        self.short = False  #: True if the log seemed to end before `next` when the last run came
        self._refused: int | None = None

    def admits(self, first: int) -> bool:
        """True if a run that starts at this offset may pass. If not, fetch again from `next`.

        A run with another start was fetched before a seek, or the run before it was lost. If the fetch from `next`
        returns the same run again, no record is before it: compaction, retention or a transaction left a gap.
        """
        if first in {self.next, self._refused}:
            self._refused = None
            return True
        self._refused = first if first > self.next else None
        return False


class Chain:
    """The end of an unbroken chain of finished batches: the only offset of a partition that is ever committed."""

    __slots__ = ("committed", "done", "epoch")

    def __init__(self, committed: int, epoch: int) -> None:
        self.committed = committed  #: the last committed offset that Kafka has confirmed
        self.done = committed  #: every record before this offset is finished
        self.epoch = epoch  #: increased by every seek back; batches of an earlier epoch no longer count

    def continues(self, start: int) -> bool:
        """True if a batch that starts here is the next in the chain."""
        return start == self.done

    def finish(self, start: int, end: int) -> None:
        """Extend the chain by a finished batch.

        Raises:
            PartitionLost: The batch does not continue the chain; nothing changed.
        """
        if not self.continues(start):
            raise PartitionLost(f"a batch from {start} does not continue the chain, which ends at {self.done}")
        self.done = end
