"""Where the next run of a partition must start, and how far its batches are finished. No I/O."""

from __future__ import annotations

from .errors import PartitionLost


class Cursor:
    """Where the next run of records of a partition must start."""

    __slots__ = ("_doubted", "next")

    def __init__(self, offset: int) -> None:
        self.next = offset
        self._doubted: int | None = None

    def admits(self, first: int) -> bool:
        """True if a run that starts at this offset may pass. If not, fetch again from `next`.

        A run from elsewhere was fetched before a seek, or the run before it was lost on the way. When the fetch from
        `next` brings the same run again, nothing is before it: compaction, retention or a transaction left a hole.
        """
        if first in {self.next, self._doubted}:
            self._doubted = None
            return True
        self._doubted = first if first > self.next else None
        return False


class Chain:
    """The end of an unbroken chain of finished batches: the only offset of a partition that is ever committed."""

    __slots__ = ("committed", "done", "epoch")

    def __init__(self, committed: int, epoch: int) -> None:
        self.committed = committed  #: the offset that Kafka has confirmed
        self.done = committed  #: every record before this offset is finished
        self.epoch = epoch  #: how often the consumer went back; batches of an earlier epoch no longer count

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
