"""Whether a worker is live (a restart would not help) and ready (it does its share of the work)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from faust_batches import App, Outage
from shopflow.kafka.lag import LOOK_SECONDS, Lags
from shopflow.kafka.offsets import Partition
from shopflow.shop.failure_limit import Limit
from shopflow.store import MongoStore
from shopflow.web.cached import Cached

#: How long an answer to a ping is waited for, and how long it counts.
PING_SECONDS = 1.0
_PING_COUNTS_SECONDS = 1.0
#: The consumer's thread is stuck after so many turns of the worker's loop, one a second, without one of its own.
STUCK_TURNS = 60
#: An actor is stuck when its events wait for so long, while nothing is tried and everything else is well.
STUCK_SECONDS = 300.0


class Pulse:
    """Whether a thread's loop turns. Counted in turns of our own: after a sleep of the machine nobody looks stuck."""

    def __init__(self) -> None:
        self.missed = 0  #: turns of ours since the thread was asked for one, and did not answer
        self._asked = self._begun = False

    def turn(self, ask: Callable[[Callable[[], None]], None]) -> None:
        """Count a turn of our loop. `ask` has a callback called in the thread."""
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
        """True if it missed too many turns."""
        return self.missed >= STUCK_TURNS


class Progress:
    """Which partitions stand still though events wait. Counted in looks, so that a sleep of the machine is none.

    Arguments:
        looks: A partition stands still after so many looks without a change.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._seen: dict[Partition, tuple[Any, int]] = {}

    def look(self, waiting: Mapping[Partition, Any]) -> None:
        """Record the progress of every partition that has lag."""
        self._seen = {
            place: (state, self._seen[place][1] + 1 if self._seen.get(place, (None,))[0] == state else 0)
            for place, state in waiting.items()
        }

    @property
    def suspected(self) -> bool:
        """True if a partition has not moved since the last look."""
        return any(times for _, times in self._seen.values())

    @property
    def still(self) -> list[Partition]:
        """The partitions that have not moved for too long."""
        return sorted(place for place, (_, times) in self._seen.items() if times >= self._looks)


class Health:
    """What the probes are told.

    Arguments:
        mongodb: Whether MongoDB is away, as the whole worker sees it.
        limit: Knows the topics that are held up on purpose.
        activity: Counts the batches begun and done in each partition.
        patience: How long a batch may rightly wait, in seconds.
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
        self.progress = Progress(round(self._seconds / LOOK_SECONDS))

    async def looked(self) -> None:
        """Take in new lags: note which partitions stand still, unless there is a reason for it."""
        stopped = self._limit.stopped
        waiting: dict[Partition, tuple[int, int]] = {
            tp: (self._lags.spans[tp].done, self._activity[tp])
            for tp in self._app.owned
            if tp.topic not in stopped and self._lags.waiting(tp)
        }
        self.progress.look({} if self._excused() else waiting)
        if self.progress.suspected and not await self.mongodb_answers():
            self.progress.look({})

    def _excused(self) -> bool:
        away = self._mongodb.seconds is not None or self._app.kafka_outage.seconds is not None
        return away or not self._app.serving or not self._app.lease.valid

    def live(self) -> list[str]:
        """Why a restart would help; empty when it would not. An answer at all says that the loop turns."""
        return ["the thread that talks to Kafka is stuck"] * self.pulse.stuck + [
            f"events wait in partition {partition} of {topic}, and for {self._seconds:g} s nothing was done"
            for topic, partition in self.progress.still
        ]

    async def ready(self) -> list[str]:
        """Why the worker does not do its share of the work; empty when it does."""
        reasons = list(self._worker_reasons())
        if not await self.mongodb_answers():
            reasons.append("MongoDB does not answer")
        elif self._mongodb.seconds is not None:
            reasons.append("MongoDB is away, or refuses to write")
        return reasons + self.live()

    async def mongodb_answers(self) -> bool:
        """True if MongoDB answers within a second, or has answered within the last one."""
        await self._pinged.get(PING_SECONDS)
        return self._pinged.failure == "" and not self._pinged.asking

    async def _ping(self) -> None:
        await self._store.ping()
        self._mongodb.succeeded(self._store)  # without work nobody else would see an outage end

    def _worker_reasons(self) -> Iterator[str]:
        if not self._app.joined:
            yield "no partitions were assigned yet"
        elif not self._app.serving:
            yield "partitions change hands, or their tables are being recovered"
        if self._app.kafka_outage.seconds is not None:
            yield "Kafka is away"
        elif self._lags.answers is False:
            yield "Kafka does not answer"
        elif self._app.serving and not self._app.lease.valid:
            yield "Kafka has not answered for so long that the partitions may be another worker's by now"
