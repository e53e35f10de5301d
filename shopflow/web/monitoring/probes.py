"""Is this worker alive, and is it ready? Alive: a restart would not help. Ready: it does its share of the work."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from time import monotonic
from typing import Any

from faust_batches import Outage
from shopflow.errors import Unavailable
from shopflow.kafka.lag import LOOK_SECONDS, Lags
from shopflow.kafka.offsets import Partition

__all__ = ["Activity", "Health", "Ping", "Progress", "Pulse"]

#: How long an answer to a ping is waited for, and how long it counts.
PING_SECONDS = 1.0
_PING_COUNTS_SECONDS = 1.0
#: A ping without an answer for so long is given up, and another one sent.
_PING_GIVEN_UP_SECONDS = 5.0
#: So many turns of the worker's loop, one a second, without one of the consumer's thread: it is stuck.
STUCK_TURNS = 60
#: Events that wait for so long, while nothing is tried and everything else is well: their actor is stuck.
STUCK_SECONDS = 300.0


class Activity:
    """Counts what is done in each partition: a batch begun, a batch done."""

    def __init__(self) -> None:
        self._marks: Counter[Partition] = Counter()

    def mark(self, place: Partition) -> None:
        """Something was done there."""
        self._marks[place] += 1

    def of(self, place: Partition) -> int:
        """How often."""
        return self._marks[place]


class Pulse:
    """Does a thread's loop turn? Counted in turns of our own: after a sleep of the machine nobody looks stuck."""

    def __init__(self) -> None:
        self.missed = 0  #: turns of ours since the thread was asked for one, and did not answer
        self._asked = self._begun = False

    def turn(self, ask: Callable[[Callable[[], None]], None]) -> None:
        """Our loop has turned. `ask` has a callback called in the thread."""
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
        """Did it miss too many?"""
        return self.missed >= STUCK_TURNS


class Progress:
    """Which partitions stand still though events wait. Pure; counted in looks, so that a sleep is not taken for one.

    Arguments:
        looks: So many without a change, and it stands still.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._seen: dict[Partition, tuple[Any, int]] = {}

    def look(self, waiting: Mapping[Partition, Any]) -> None:
        """Note how far each partition is in which events wait, and whose fault it would be if they did so for long."""
        self._seen = {
            place: (state, self._seen[place][1] + 1 if self._seen.get(place, (None,))[0] == state else 0)
            for place, state in waiting.items()
        }

    @property
    def suspected(self) -> bool:
        """Has any not moved since the last look?"""
        return any(times for _, times in self._seen.values())

    @property
    def still(self) -> list[Partition]:
        """Those that did not move for too long."""
        return sorted(place for place, (_, times) in self._seen.items() if times >= self._looks)


class Ping:
    """Whether a server answers within a second. Never more than one ping is under way, and none is waited for longer.

    Arguments:
        ping: Raises `Unavailable` when the server does not answer.
        answered: Called when it did.
    """

    def __init__(self, ping: Callable[[], Awaitable[None]], answered: Callable[[], None] = lambda: None) -> None:
        self._ping = ping
        self._answered = answered
        self._task: asyncio.Task[bool] | None = None
        self._sent = 0.0
        self._known: tuple[float, bool] = (float("-inf"), False)

    async def ok(self) -> bool:
        """Does it answer?"""
        at, answers = self._known
        if monotonic() - at < _PING_COUNTS_SECONDS:
            return answers
        if self._task is not None and not self._task.done() and monotonic() - self._sent > _PING_GIVEN_UP_SECONDS:
            self._task.cancel()
            self._task = None
        if self._task is None or self._task.done():
            self._sent = monotonic()
            self._task = asyncio.ensure_future(self._try())
        task = self._task
        await asyncio.wait([task], timeout=PING_SECONDS)
        answers = task.done() and not task.cancelled() and task.result()
        self._known = (monotonic(), answers)
        return answers

    async def _try(self) -> bool:
        try:
            await self._ping()
        except Unavailable:
            return False
        self._answered()
        return True


class Health:
    """What the probes are told.

    Arguments:
        lags: What waits in Kafka.
        serving: Are the tables of our partitions complete?
        joined: Has the group ever told us which partitions are ours?
        owned: The partitions that are ours.
        stopped: Topics that are held up on purpose.
        session: Is it sure that they are ours?
        ping: MongoDB's.
        mongodb, kafka: Whether they are away, as all of the worker see it.
        patience: How long a batch may rightly wait, in seconds.
    """

    def __init__(
        self,
        *,
        lags: Lags,
        activity: Activity,
        serving: Callable[[], bool],
        joined: Callable[[], bool],
        owned: Callable[[], Collection[Any]],
        stopped: Callable[[], Collection[str]],
        session: Callable[[], bool],
        ping: Ping,
        mongodb: Outage,
        kafka: Outage,
        patience: float = 0.0,
    ) -> None:
        self.pulse = Pulse()
        self._lags = lags
        self._activity = activity
        self._serving, self._joined, self._owned, self._stopped = serving, joined, owned, stopped
        self._session = session
        self._ping = ping
        self._mongodb, self._kafka = mongodb, kafka
        self._seconds = STUCK_SECONDS + patience
        self.progress = Progress(round(self._seconds / LOOK_SECONDS))

    async def looked(self) -> None:
        """The lags are new: note which partitions stand still, unless there is a reason for it."""
        stopped = self._stopped()
        waiting = {
            place: (self._lags.spans[place].done, self._activity.of(place))
            for place in map(_place, self._owned())
            if place[0] not in stopped and self._lags.waiting(place)
        }
        self.progress.look({} if self._excused() else waiting)
        if self.progress.suspected and not await self._ping.ok():
            self.progress.look({})

    def _excused(self) -> bool:
        away = self._mongodb.seconds is not None or self._kafka.seconds is not None
        return away or not self._serving() or not self._session()

    def live(self) -> list[str]:
        """Why a restart would help; nothing when it would not. That this is answered says that the loop turns."""
        reasons = []
        if self.pulse.stuck:
            reasons.append("the thread that talks to Kafka is stuck")
        for topic, partition in self.progress.still:
            reasons.append(
                f"events wait in partition {partition} of {topic}, and for {self._seconds:g} s nothing was done"
            )
        return reasons

    async def ready(self) -> list[str]:
        """Why it does not do its share of the work; nothing when it does."""
        reasons = [*self._group_reasons(), *self._kafka_reasons()]
        mongodb_answers = await self._ping.ok()
        if not mongodb_answers:
            reasons.append("MongoDB does not answer")
        elif self._mongodb.seconds is not None:
            reasons.append("MongoDB is away, or refuses to write")
        return reasons + self.live()

    def _group_reasons(self) -> list[str]:
        if not self._joined():
            return ["no partitions were assigned yet"]
        if not self._serving():
            return ["partitions change hands, or their tables are being recovered"]
        return []

    def _kafka_reasons(self) -> list[str]:
        if self._kafka.seconds is not None:
            return ["Kafka is away"]
        if self._lags.answers is False:
            return ["Kafka does not answer"]
        if self._serving() and not self._session():
            return ["Kafka has not answered for so long that the partitions may be another worker's by now"]
        return []


def _place(tp: Any) -> Partition:
    return tp.topic, tp.partition
