"""What the offsets of a partition say about records that no worker reads: deleted, skipped, or cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from faust.types import TP

from .membership import COMMITTED_BY, SET_BACK_BY

if TYPE_CHECKING:
    from .app import App

#: The kinds of troubles.
REMOVED, MOVED, TOO_SHORT = "records-removed", "offset-moved", "partition-too-short"
#: What nobody can mend is told for this long.
TOLD_SECONDS = 86_400.0
#: A loss that goes on is logged again after this time.
AGAIN_SECONDS = 60.0


@dataclass
class _Gap:
    """The offsets of a partition that Kafka deleted unread: `count` of those from `start` up to, not including, `end`.

    Arguments:
        at: Unix time of the last loss; `logged` is the time of the last log line, `told` the count in it.
    """

    start: int
    end: int
    count: int
    at: float
    logged: float = 0.0
    told: int = 0


class Losses:
    """Tells of the partitions whose records are missing, or whose offset something else than a worker has set.

    Arguments:
        clock: Returns Unix time in seconds.
    """

    def __init__(self, app: App, clock: Callable[[], float] = time.time) -> None:
        self._app, self._clock = app, clock
        self._gaps: dict[TP, _Gap] = {}
        self._moved: dict[TP, float] = {}  # when it was found
        self._short: set[TP] = set()
        self._read: dict[TP, int] = {}

    def look(self, tp: TP, read: int, start: int, earliest: int, end: int) -> None:
        """Compare what was read of a partition with where it starts and ends.

        Arguments:
            read: The offset up to which a worker has read it, by the commit or by the tables.
            start: The offset at which this worker starts.
        """
        self._read[tp] = read
        self.removed(tp, read, earliest)
        if end < start:
            self.too_short(tp, end, start)
        else:
            self.long_enough(tp)

    def removed(self, tp: TP, start: int, end: int) -> None:
        """Record that Kafka deleted the offsets from `start` up to, not including, `end` before a worker read them.

        Offsets that were read, or recorded before, do not count.
        """
        start = max(start, self._read.get(tp, start))
        gap = self._gaps.get(tp) or _Gap(start, start, 0, self._clock())
        new = end - max(start, gap.end)
        if new > 0:
            gap.end, gap.count, gap.at = end, gap.count + new, self._clock()
            self._gaps[tp] = gap
            self._tell(tp, gap)

    def _tell(self, tp: TP, gap: _Gap) -> None:
        whole = gap.count == gap.end - gap.start
        offsets = f"at offsets {gap.start} to {gap.end - 1}" if whole else f"between {gap.start} and {gap.end - 1}"
        count = "1 offset" if gap.count == 1 else f"{gap.count} offsets"
        at = time.strftime("%Y-%m-%d %H:%M", time.gmtime(gap.at))
        text = (
            f"{_name(tp)}: Kafka removed the records {offsets} before a worker read them; they are lost ({count}, "
            f"found at {at} UTC) unless their producer sends them again: the workers stood still for longer than the "
            "topic's retention, which retention.ms sets, or somebody deleted them"
        )
        if gap.told < gap.count and self._clock() - gap.logged >= AGAIN_SECONDS:
            self._app.troubles.end(REMOVED, _name(tp), mended=False)  # so that it is logged, with its time
            gap.logged, gap.told = self._clock(), gap.count
        self._app.troubles.begin(REMOVED, _name(tp), text, stops=False, since=gap.at)

    def look_again(self, assigned: Collection[TP]) -> None:
        """Log losses that have grown, and forget what was told for a day. Call it every few seconds.

        Arguments:
            assigned: This worker's partitions. Only their owner knows whether others are still too short.
        """
        for tp in self._short - set(assigned):
            self._short.remove(tp)
            self._app.troubles.end(TOO_SHORT, _name(tp), mended=False)
        now = self._clock()
        for tp, gap in list(self._gaps.items()):
            if now - gap.at > TOLD_SECONDS:
                del self._gaps[tp]
                self._app.troubles.end(REMOVED, _name(tp), mended=False)
            elif gap.told < gap.count:
                self._tell(tp, gap)
        for tp, found in list(self._moved.items()):
            if now - found > TOLD_SECONDS:
                self._settled(tp, mended=False)

    def too_short(self, tp: TP, end: int, done: int) -> None:
        """Record that a partition ends before the offset up to which it was read."""
        self._short.add(tp)
        text = (
            f"{_name(tp)} ends at offset {end}, but was read up to offset {done}: Kafka has lost its end, or somebody "
            f"has set the offset too high; new records are not read until they reach offset {done}"
            f"{self._advice(TOO_SHORT, tp)}"
        )
        self._app.troubles.begin(TOO_SHORT, _name(tp), text, stops=True)

    def long_enough(self, tp: TP) -> None:
        """Record that a partition reaches the offset up to which it was read."""
        if tp in self._short:
            self._short.remove(tp)
            self._app.troubles.end(TOO_SHORT, _name(tp))

    def started(self, tp: TP, committed: int, metadata: str, counted: int | None, earliest: int) -> None:
        """Record where a partition starts: was its offset committed by a worker?

        Arguments:
            metadata: What is committed beside the offset; other programs write other text or none.
            counted: The offset up to which the partition's tables have counted; None: it has none.
            earliest: The offset of the first record that Kafka has.
        """
        if metadata == SET_BACK_BY:
            self._settled(tp, mended=True)
        if metadata.startswith(COMMITTED_BY) or committed == counted:
            return
        by = f"by {metadata!r}" if metadata else "by another program than a worker (kafka-consumer-groups.sh, say)"
        if counted is None and committed <= earliest:
            means = "it is read again from its first record on: nothing is skipped"
        elif counted is None:
            means = f"records before it that no worker had read are skipped{self._advice(MOVED, tp)}"
        elif counted < committed:
            means = f"the tables have counted up to offset {counted}; the worker goes on from there: nothing is lost"
        else:
            means = f"the records up to offset {counted} come again, and are neither stored nor counted twice"
        text = f"The committed offset of {_name(tp)} was set to {committed} {by}; {means}"
        self._moved[tp] = self._clock()
        self._app.troubles.begin(MOVED, _name(tp), text, stops=False)

    def caught_up(self, tp: TP) -> None:
        """Record that a worker has committed an offset of a partition with tables: nothing was lost by a moved one."""
        self._settled(tp, mended=True)

    def _settled(self, tp: TP, *, mended: bool) -> None:
        if self._moved.pop(tp, None) is not None:
            self._app.troubles.end(MOVED, _name(tp), mended=mended)

    def _advice(self, kind: str, tp: TP) -> str:
        return self._app.advice.get(kind, "").format(topic=tp.topic, partition=tp.partition)


def _name(tp: TP) -> str:
    return f"{tp.topic}[{tp.partition}]"
