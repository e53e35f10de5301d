"""Open transactions that hold up readers of committed records: of which producer, and since when.

Kafka gives such readers no record at or after the last stable offset, which is where the oldest open transaction of the
partition begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from time import monotonic, time

from faust_batches import Troubles

from .offsets import Partition, Span
from .producers import ENDING, ONGOING, Producer

#: A transaction may be open for so long in normal work. After that it is a trouble.
PATIENCE_SECONDS = 10.0
#: The kind of the trouble.
KIND = "open-transaction"


@dataclass(frozen=True)
class Hold:
    """A partition that an open transaction holds up.

    Attributes:
        records: How many offsets no reader of committed records can get.
        since: Unix time in seconds.
    """

    topic: str
    partition: int
    records: int
    since: float
    producer: Producer

    @property
    def subject(self) -> str:
        return f"{self.topic}[{self.partition}]"

    @property
    def text(self) -> str:
        """One sentence without a full stop."""
        found = self.producer
        offsets = "1 offset" if self.records == 1 else f"{self.records} offsets"
        are = "is" if self.records == 1 else "are"
        held = f"{offsets} of {self.subject} {are} held up since {_clock(self.since)} by an open transaction"
        if not found.transactional_id:
            known = "" if found.producer_id is None else f" with the producer id {found.producer_id}"
            return f"{held} of an unknown producer{known}; find it and abort it with Kafka's kafka-transactions.sh"
        held += f" of the producer {found.transactional_id}"
        if found.state in ENDING:
            return f"{held}; Kafka is ending it"
        if found.state != ONGOING:
            return f"{held}, which Kafka will not end by itself; abort it with Kafka's kafka-transactions.sh"
        until = f" at {_clock(found.ends)}" if found.ends else ""
        return f"{held}; look after that producer, or wait until Kafka aborts the transaction{until}"


Describe = Callable[[Collection[Partition]], Awaitable[Mapping[Partition, Producer]]]


class HeldUp:
    """Finds the partitions that the same transaction has held up for `PATIENCE_SECONDS`.

    The time is measured from look to look, so the brokers' clocks don't matter. As long as the last stable offset stays
    the same and records are behind it, the same transaction is open.

    Arguments:
        describe: Returns the producers whose transactions are the oldest in these partitions.
    """

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        #: When a last stable offset with records behind it was seen first: monotonic, Unix.
        self._first: dict[tuple[Partition, int], tuple[float, float]] = {}
        #: True if a transaction was open at the last look, and is not known to be open for long.
        self.undecided = False

    async def look(self, spans: Mapping[Partition, Span]) -> list[Hold]:
        """Take new spans. Kafka's answers are waited for, but nothing is raised if there are none."""
        now = monotonic(), time()
        held = {partition: span for partition, span in spans.items() if span.held}
        self._first = {
            (partition, span.end): self._first.get((partition, span.end), now) for partition, span in held.items()
        }
        lasting = {
            partition: span
            for partition, span in held.items()
            if now[0] - self._first[partition, span.end][0] >= PATIENCE_SECONDS
        }
        self.undecided = len(lasting) < len(held)
        producers = await self._describe(lasting) if lasting else {}
        return [
            Hold(*partition, span.held, _earlier(found.began, self._first[partition, span.end][1]), found)
            for partition, span in sorted(lasting.items(), key=lambda item: item[0])
            for found in [producers.get(partition, Producer())]
        ]


class Watch:
    """Records the open transactions that hold up this worker's partitions as its troubles.

    Arguments:
        spans: Returns the present spans.
        ours: Returns the partitions that this worker answers for.
        events: The topics whose events the workers handle: they stand still.
    """

    def __init__(
        self,
        troubles: Troubles,
        describe: Describe,
        *,
        spans: Callable[[], Mapping[Partition, Span]],
        ours: Callable[[], Collection[Partition]],
        events: Collection[str],
    ) -> None:
        self._troubles, self._held_up = troubles, HeldUp(describe)
        self._spans, self._ours, self._events = spans, ours, events

    async def looked(self) -> None:
        """Take the present spans."""
        spans, ours = self._spans(), set(self._ours())
        holds = await self._held_up.look({tp: span for tp, span in spans.items() if tp in ours})
        for hold in holds:
            stops = hold.topic in self._events
            self._troubles.begin(KIND, hold.subject, hold.text, stops=stops, since=hold.since)
        self._troubles.end_others(KIND, {hold.subject for hold in holds})


def _earlier(began: float | None, seen: float) -> float:
    return seen if began is None else min(began, seen)


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
