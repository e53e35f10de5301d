"""Stops a topic when too many of its records fail, before all of them are dead letters."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5

_offset = attrgetter("offset")
#: Offset and reason of each record of a batch that failed, in order.
Failed = Sequence[tuple[int, str]]


class FailureShare:
    """Counts the failures among a topic's last `window` records. Does no I/O.

    Arguments:
        max_share: The limit, as a share of `window`. 1: no limit.
        window: How many records. A redelivered record counts once.
    """

    def __init__(self, max_share: float, window: int) -> None:
        self._window = window
        self._max_failures = max_share * window
        self._seen = 0
        #: The failures among the last `window` records: the record's number in order of arrival, and the reason.
        self._failed: deque[tuple[int, str]] = deque()
        #: Partition -> the offset after its last counted record.
        self._ends: dict[int, int] = {}
        self.failures = 0  #: the most failures over the limit; 0: the limit was never passed
        self.reason = ""  #: the most common one when the limit was passed

    @property
    def passed(self) -> bool:
        """True if the limit was ever passed."""
        return self.failures > 0

    @property
    def records(self) -> int:
        """How many records the failures are among: `window`, or fewer at the start."""
        return min(self._seen, self._window)

    def add(self, partition: int, records: Sequence[Any], failed: Failed) -> None:
        """Count a batch's records and its failures."""
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
        if len(self._failed) <= max(self._max_failures, self.failures):
            return
        if not self.passed:
            ((self.reason, _),) = Counter(reason for _, reason in self._failed).most_common(1)
        self.failures = len(self._failed)


class Limit:
    """Holds the batches of each topic that passed the limit. `FailureShare` describes the arguments."""

    def __init__(self, max_share: float, window: int) -> None:
        self._max_share = max_share
        self._window = window
        self._shares: dict[str, FailureShare] = {}

    @property
    def stopped(self) -> dict[str, str]:
        """The topics that passed the limit, each with a message."""
        return {
            topic: f"{share.failures} of its last {share.records} records can't be accepted, most often: {share.reason}"
            for topic, share in self._shares.items()
            if share.passed
        }

    async def hold(self, tp: Any, records: Sequence[Any], failed: Failed, check: Callable[[], None]) -> None:
        """Return at once while the topic is within the limit. Otherwise wait until `check` raises.

        A limit that was passed stays passed until the worker restarts. Otherwise the good records of other partitions
        would let some of the bad ones through, again and again.

        Arguments:
            tp: Topic and partition of the batch.
            check: Called twice a second. Raises when the partition is lost, which ends the wait.
        """
        share = self._shares.setdefault(tp.topic, FailureShare(self._max_share, self._window))
        if not share.passed:
            share.add(tp.partition, records, failed)
            if not share.passed:
                return
            log.error(
                "%s is stopped: %d of the last %d records can't be accepted, more than dead_letters.max_share allows "
                "(%g of %d); most often: %s. Nothing more of this topic is committed or dead-lettered. Remove the "
                "cause and restart the worker; or restart it with dead_letters.max_share 1 to dead-letter them.",
                *(tp.topic, share.failures, share.records, self._max_share, self._window, share.reason),
            )
        while True:
            check()
            await asyncio.sleep(_CHECK_SECONDS)
