"""When too much of a topic fails: stop taking it, before all of it is in the dead letters."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5

_offset = attrgetter("offset")
#: Offset and reason of each record of a batch that failed, in order.
Failed = Sequence[tuple[int, str]]


class FailureShare:
    """How many of a topic's recent records failed, and whether that was too many. Pure.

    Arguments:
        max_share: Of `window`: more than that many failures among the last `window` records are too many. 1: never.
        window: Records. One that comes again counts once.
    """

    def __init__(self, max_share: float, window: int) -> None:
        self._window = window
        self._most = max_share * window
        self._seen = 0
        #: Number (in the order seen) and reason of those that failed among the last `window`.
        self._failed: deque[tuple[int, str]] = deque()
        #: Partition -> the offset up to which its records were seen.
        self._ends: dict[int, int] = {}
        self.failures = 0  #: among the last `window` records, when they were the most; 0: never too many
        self.reason = ""  #: the commonest of them

    @property
    def passed(self) -> bool:
        """Were there ever too many?"""
        return self.failures > 0

    @property
    def records(self) -> int:
        """Those that the share is taken of: the window, or fewer as long as no more were seen."""
        return min(self._seen, self._window)

    def add(self, partition: int, records: Sequence[Any], failed: Failed) -> None:
        """A batch's records were looked at, of which these failed."""
        known = bisect_left(records, self._ends.get(partition, 0), key=_offset)
        if known == len(records):
            return
        before = self._seen - known
        for offset, reason in failed:
            number = bisect_left(records, offset, key=_offset)
            if number >= known:
                self._fail(before + number, reason)
        self._seen += len(records) - known
        self._ends[partition] = records[-1].offset + 1

    def _fail(self, number: int, reason: str) -> None:
        self._failed.append((number, reason))
        while self._failed[0][0] <= number - self._window:
            self._failed.popleft()
        if len(self._failed) <= max(self._most, self.failures):
            return
        if not self.passed:
            ((self.reason, _),) = Counter(reason for _, reason in self._failed).most_common(1)
        self.failures = len(self._failed)


class Limit:
    """Holds up the batches of a topic of which too much fails; `FailureShare` says what its arguments mean."""

    def __init__(self, max_share: float, window: int) -> None:
        self._max_share = max_share
        self._window = window
        self._shares: dict[str, FailureShare] = {}

    @property
    def stopped(self) -> dict[str, str]:
        """The topics of which too much failed, each with what was found."""
        return {
            topic: f"{share.failures} of its last {share.records} records can't be accepted, most often: {share.reason}"
            for topic, share in self._shares.items()
            if share.passed
        }

    async def hold(self, tp: Any, records: Sequence[Any], failed: Failed, check: Callable[[], None]) -> None:
        """Return at once, or when too much of the batch's topic has failed: wait until `check` raises.

        A limit that was passed stays passed until the worker starts anew. Else the good records of other partitions
        would let some of the bad ones through, again and again.

        Arguments:
            tp: Topic and partition of the batch.
            check: Called twice a second; what it raises ends the waiting (the partition was lost).
        """
        share = self._shares.setdefault(tp.topic, FailureShare(self._max_share, self._window))
        if not share.passed:
            share.add(tp.partition, records, failed)
            if not share.passed:
                return
            log.error(
                "%s is stopped: %d of the last %d records can't be accepted, more than dead_letters.max_share allows "
                "(%g of %d); most often: %s. Nothing more of this topic is finished; these are no dead letters yet. "
                "Remove the cause and restart the worker; or restart it with dead_letters.max_share 1 to let them go.",
                *(tp.topic, share.failures, share.records, self._max_share, self._window, share.reason),
            )
        while True:
            check()
            await asyncio.sleep(_LOOK_SECONDS)
