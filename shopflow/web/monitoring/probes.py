"""Whether a worker is live (a restart would not help) and ready (it does its share of the work)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from faust_batches import App, Outage
from faust_batches.membership import CLIENT_ENDED, NOT_IN_GROUP
from faust_batches.outage import REFUSED
from faust_batches.quotas import THROTTLED
from shopflow.errors import Refusal
from shopflow.kafka.lag import LOOK_SECONDS, Lags
from shopflow.kafka.offsets import Partition
from shopflow.shop.failure_limit import Limit
from shopflow.store import MongoStore
from shopflow.store.pace import KIND as SLOW
from shopflow.web.cached import Cached

#: The time limit of a ping, and how long its answer counts.
PING_SECONDS = 1.0
_PING_COUNTS_SECONDS = 1.0
#: The consumer's thread is stuck when it does not run during this many turns of the worker's loop, one a second.
STUCK_TURNS = 60
#: An actor is stuck when its partition has lag for this long, no batch is tried, and there is no outage.
STUCK_SECONDS = 300.0


class Pulse:
    """Whether a thread runs. Counted in turns of our loop, so that a sleep of the machine does not count."""

    def __init__(self) -> None:
        self.missed = 0  #: turns of our loop since the thread was called without an answer
        self._asked = self._begun = False

    def turn(self, ask: Callable[[Callable[[], None]], None]) -> None:
        """Count a turn of our loop. `ask` runs a callback in the thread."""
        if self._asked:
            self.missed += self._begun
            return
        self._asked = True
        try:
            ask(self._answer)
        except RuntimeError:  # the thread has not begun, or it has ended
            self._asked = False

    def _answer(self) -> None:
        self._begun = True
        self._asked = False
        self.missed = 0

    @property
    def stuck(self) -> bool:
        return self.missed >= STUCK_TURNS


class Progress:
    """The partitions that have lag and stand still. Counted in looks, so that a sleep of the machine does not count.

    Arguments:
        looks: A partition stands still after this many looks without a change.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._seen: dict[Partition, tuple[Any, int]] = {}

    def look(self, waiting: Mapping[Partition, Any]) -> None:
        """Record the progress of every partition that has lag."""
        self._seen = {
            tp: (state, self._seen[tp][1] + 1 if self._seen.get(tp, (None,))[0] == state else 0)
            for tp, state in waiting.items()
        }

    @property
    def suspected(self) -> bool:
        """True if a partition has not moved since the last look."""
        return any(times for _, times in self._seen.values())

    @property
    def still(self) -> list[Partition]:
        return sorted(tp for tp, (_, times) in self._seen.items() if times >= self._looks)


class Health:
    """The answers of the probes.

    Arguments:
        mongodb: The worker's outage of MongoDB.
        limit: Has the topics that were stopped on purpose.
        activity: Counts the batches begun and finished in each partition.
        patience: How long a batch may wait in normal work, in seconds.
    """

    def __init__(
        self,
        app: App,
        store: MongoStore,
        *,
        mongodb: Outage,
        lags: Lags,
        limit: Limit,
        activity: Counter[Partition],
        patience: float = 0.0,
    ) -> None:
        self.pulse = Pulse()
        self._app = app
        self._store, self._mongodb = store, mongodb
        self._pinged: Cached[None] = Cached(self._ping, _PING_COUNTS_SECONDS, None)
        self._lags, self._limit, self._activity = lags, limit, activity
        self._seconds = STUCK_SECONDS + patience
        self._looks_out = 0  #: answers of Kafka in a row while this worker was not in the group
        self.progress = Progress(round(self._seconds / LOOK_SECONDS))

    async def looked(self) -> None:
        """Take new lags: record which partitions stand still without a reason."""
        out = not self._app.lease.confirmed and not self._kept_out
        self._looks_out = self._looks_out + 1 if out else 0
        stopped = self._limit.stopped
        told = {trouble.subject for trouble in self._app.troubles.present if trouble.stops}
        waiting: dict[Partition, tuple[int, int]] = {
            tp: (self._lags.spans[tp].done, self._activity[tp])
            for tp in self._app.owned
            if tp.topic not in stopped and f"{tp.topic}[{tp.partition}]" not in told and self._lags.waiting(tp)
        }
        self.progress.look({} if self._excused() else waiting)
        if self.progress.suspected and not await self.mongodb_answers():
            self.progress.look({})

    @property
    def _is_out(self) -> bool:
        return self._looks_out * LOOK_SECONDS >= STUCK_SECONDS

    @property
    def _kept_out(self) -> bool:
        """True while a person must mend what keeps this worker out of the group: a restart would not help."""
        return any(trouble.kind in {NOT_IN_GROUP, REFUSED} for trouble in self._app.troubles.present)

    def _excused(self) -> bool:
        away = self._mongodb.seconds is not None or self._app.kafka_outage.seconds is not None
        slow = any(trouble.kind in {SLOW, THROTTLED} for trouble in self._app.troubles.present)
        refused = self._mongodb.refuses or self._app.kafka_outage.refuses
        return away or refused or slow or not self._app.serving or not self._app.lease.valid

    def live(self) -> list[str]:
        """Why a restart would help; empty when it would not. Any answer means that the event loop runs."""
        ended = [trouble for trouble in self._app.troubles.present if trouble.kind == CLIENT_ENDED]
        out = ["Kafka answers, but the consumer group has not known this worker for too long"] * self._is_out
        return (
            ["the thread that talks to Kafka is stuck"] * self.pulse.stuck
            + out
            + [trouble.text for trouble in ended]
            + [
                f"events wait in partition {partition} of {topic}, and none was processed for {self._seconds:g} s"
                for topic, partition in self.progress.still
            ]
        )

    async def ready(self) -> list[str]:
        """Why the worker does not do its share of the work; empty when it does."""
        reasons = list(self._worker_reasons())
        if not await self.mongodb_answers():
            reasons += ["MongoDB does not answer"] * (not self._mongodb.refuses_all)
        elif self._mongodb.seconds is not None:
            reasons.append("MongoDB is away, or refuses to write")
        reasons += [trouble.text for trouble in self._app.troubles.present if trouble.stops]
        return reasons + self.live()

    async def mongodb_answers(self) -> bool:
        """True if MongoDB answers within a second, or has answered within the last one."""
        await self._pinged.get(PING_SECONDS)
        return self._pinged.failure == "" and not self._pinged.asking

    async def _ping(self) -> None:
        try:
            await self._store.ping()
        except Refusal as error:  # without events, nothing else would find it
            self._mongodb.failed(error, self._store)
            raise
        self._mongodb.succeeded(self._store)  # without events, only this ends an outage

    def _worker_reasons(self) -> Iterator[str]:
        if not self._app.joined:
            yield "no partitions were assigned yet"
        elif not self._app.serving:
            yield "partitions change hands, or their tables are being recovered"
        if self._app.kafka_outage.seconds is not None:
            yield "Kafka is away"
        elif self._lags.answers is False and not self._app.kafka_outage.refuses_all:
            yield "Kafka does not answer"
        elif self._app.serving and not self._app.lease.valid:
            yield "Kafka has not answered for so long that the partitions may be another worker's by now"
