"""What the offsets of a partition say about records that no worker reads: deleted, skipped, or cut off."""

from __future__ import annotations

from faust.types import TP

from .membership import COMMITTED_BY
from .troubles import Troubles

#: The kinds of troubles.
REMOVED, MOVED, TOO_SHORT = "records-removed", "offset-moved", "partition-too-short"


class Losses:
    """Tells of the partitions whose records are missing, or whose offset something else than a worker has set."""

    def __init__(self, troubles: Troubles) -> None:
        self._troubles = troubles
        self._removed: dict[TP, dict[int, int]] = {}  # the first offset of each gap -> the offset behind it

    def look(self, tp: TP, committed: int, earliest: int, end: int) -> None:
        """Compare the committed offset with where the partition starts and ends."""
        if committed < earliest:
            self.removed(tp, committed, earliest)
        if end < committed:
            self.too_short(tp, end, committed)
        else:
            self._troubles.end(TOO_SHORT, _name(tp))

    def removed(self, tp: TP, start: int, end: int) -> None:
        """Record that Kafka deleted the offsets from `start` up to, not including, `end` before a worker read them."""
        gaps = self._removed.setdefault(tp, {})
        gaps[start] = max(end, gaps.get(start, end))
        count, listed = (
            sum(to - at for at, to in gaps.items()),
            ", ".join(f"{at} to {to - 1}" for at, to in gaps.items()),
        )
        text = (
            f"{_name(tp)}: Kafka removed the records at offsets {listed} before a worker read them; they are lost "
            f"({_count(count)}) unless their producer sends them again: the workers stood still for longer than the "
            "topic's retention, which retention.ms sets, or somebody deleted them"
        )
        self._troubles.begin(REMOVED, _name(tp), text, stops=False)

    def too_short(self, tp: TP, end: int, done: int) -> None:
        """Record that a partition ends before the offset up to which it was read."""
        text = (
            f"{_name(tp)} ends at offset {end}, but was read up to offset {done}: Kafka has lost its end; new records "
            f"are not read until they reach offset {done}; set the group's offsets back, which reads them"
        )
        self._troubles.begin(TOO_SHORT, _name(tp), text, stops=True)

    def started(self, tp: TP, committed: int, metadata: str, counted: int | None) -> None:
        """Record where a partition starts: was its offset committed by a worker?

        Arguments:
            metadata: What is committed beside the offset; other programs write other text or none.
            counted: The offset up to which the partition's tables have counted; None: it has none.
        """
        if metadata.startswith(COMMITTED_BY) or committed == counted:
            return
        by = f"by {metadata!r}" if metadata else "by another program than a worker (kafka-consumer-groups.sh, say)"
        if counted is None:
            means = "records before it that no worker had read are skipped; to read them, set it back"
        elif counted < committed:
            means = f"the tables have counted up to offset {counted}; the worker goes on from there: nothing is lost"
        else:
            means = f"the records up to offset {counted} come again, and are neither stored nor counted twice"
        text = f"The committed offset of {_name(tp)} was set to {committed} {by}; {means}"
        self._troubles.begin(MOVED, _name(tp), text, stops=False)

    def caught_up(self, tp: TP) -> None:
        """Record that a worker has committed an offset of a partition with tables: nothing was lost by a moved one."""
        self._troubles.end(MOVED, _name(tp))


def _name(tp: TP) -> str:
    return f"{tp.topic}[{tp.partition}]"


def _count(offsets: int) -> str:
    return "1 offset" if offsets == 1 else f"{offsets} offsets"
