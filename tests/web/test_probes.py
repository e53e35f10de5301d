"""Health: what makes a worker dead or not ready, and what must not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from faust_batches import Outage, Troubles
from shopflow.errors import Refusal, Unavailable
from shopflow.kafka import lag as lag_module
from shopflow.kafka.lag import Lags
from shopflow.kafka.offsets import Span
from shopflow.web import cached
from shopflow.web.monitoring import probes as module
from shopflow.web.monitoring.probes import STUCK_TURNS, Health, Progress, Pulse

PLACE = TP("shop.purchases", 0)
AWAY = Unavailable("MongoDB", "mongodb://anna:secret@host does not answer")


async def has_records(places: Mapping[tuple[str, int], Span]) -> set[tuple[str, int]]:
    return set()


class Case:
    """A worker's health, with a fake application, store and limit. At first all is well."""

    def __init__(self) -> None:
        self.serving = self.joined = self.sure = True
        self.owned = [PLACE]
        self.stopped: list[str] = []
        self.error: Unavailable | None = None
        self.troubles = Troubles()
        self.mongodb, self.kafka = (Outage(name, troubles=self.troubles) for name in ("MongoDB", "Kafka"))
        self.activity: Counter[tuple[str, int]] = Counter()
        self.lags = Lags(lambda: None, has_records)  # type: ignore[arg-type, return-value]
        here: Any = self
        self.health = Health(here, here, mongodb=self.mongodb, lags=self.lags, limit=here, activity=self.activity)
        self.lags.looked = self.health.looked

    @property
    def kafka_outage(self) -> Outage:
        return self.kafka

    @property
    def lease(self) -> Any:
        return SimpleNamespace(valid=self.sure, confirmed=self.sure)

    async def ping(self) -> None:
        if self.error is not None:
            raise self.error

    def look(self, times: int = 1, *, done: int = 5, end: int = 9) -> None:
        """Take the offsets of Kafka this many times."""

        async def looking() -> None:
            for _ in range(times):
                await self.lags.take({PLACE[0]: {PLACE[1]: Span(0, done, end)}})

        asyncio.run(looking())

    def ready(self) -> list[str]:
        return asyncio.run(self.health.ready())


#: The number of looks without progress after which an actor counts as stuck.
MANY = round(module.STUCK_SECONDS / lag_module.LOOK_SECONDS) + 5


def test_a_well_worker_is_live_and_ready() -> None:
    case = Case()
    case.look(MANY, done=9)
    assert (case.health.live(), case.ready()) == ([], [])


def test_who_owns_no_partition_is_ready() -> None:
    """A worker beyond the number of partitions waits as a spare."""
    case = Case()
    case.owned = []
    case.look(MANY)
    assert (case.health.live(), case.ready()) == ([], [])


def test_a_stuck_actor_is_found_by_what_waits() -> None:
    case = Case()
    case.look(MANY)
    (reason,) = case.health.live()
    assert reason == "events wait in partition 0 of shop.purchases, and none was processed for 300 s"
    assert case.ready() == [reason]


def no_progress_but(change: Callable[[Case], None]) -> Case:
    """A case in which events wait for long and none is processed, with a change that explains it."""
    case = Case()
    change(case)
    case.look(MANY)
    return case


def set_to(name: str, value: Any) -> Callable[[Case], None]:
    return lambda case: setattr(case, name, value)


@pytest.mark.parametrize(
    "change",
    [
        set_to("error", AWAY),
        set_to("serving", False),
        set_to("owned", []),
        set_to("stopped", [PLACE[0]]),
        lambda case: case.mongodb.failed(AWAY, "batch"),
        lambda case: case.kafka.failed(AWAY, case),
        lambda case: case.mongodb.failed(Refusal("MongoDB", "MongoDB sales", "a validator"), case),
        lambda case: case.kafka.failed(Refusal("Kafka", "shop.purchases", "too large"), case),
        lambda case: case.troubles.begin("unreadable-batch", "shop.purchases[0]", "it stands still", stops=True),
    ],
    ids=["mongodb", "recovery", "not ours", "stopped", "mongodb away", "kafka", "validator", "too large", "unreadable"],
)
def test_a_worker_that_waits_with_a_reason_is_live(change: Callable[[Case], None]) -> None:
    """A worker that waits for a server, a recovery or a rebalance stays live: a restart would not help."""
    assert no_progress_but(change).health.live() == []


def test_a_worker_whose_membership_has_ended_is_not_live() -> None:
    """Kafka answers, and the group has not known it for minutes: nothing that it waits for will come.

    A worker that is kept out by what a person must mend is live: a restart would not help.
    """
    out = "Kafka answers, but the consumer group has not known this worker for too long"
    assert no_progress_but(set_to("sure", False)).health.live() == [out]

    def kept_out(case: Case) -> None:
        case.sure = False
        case.troubles.begin("not-in-group", "shop", "Another client is in the group", stops=True)

    assert no_progress_but(kept_out).health.live() == []


def test_a_worker_whose_client_has_ended_is_not_live() -> None:
    """Only a restart brings it back."""
    case = Case()
    case.troubles.begin("client-ended", "shop", "The Kafka client has ended", stops=True)
    assert case.health.live() == ["The Kafka client has ended"]


def test_a_login_that_mongodb_refuses_is_told_as_that_without_events_too() -> None:
    """It answers, so it is not away. What refuses is found by the ping."""
    case = Case()
    case.error = Refusal("MongoDB", "MongoDB", "MongoDB refuses requests: correct the password")
    assert case.ready() == ["MongoDB refuses requests: correct the password"]
    assert case.mongodb.seconds is None
    case.error = None
    until_asked_again = module._PING_COUNTS_SECONDS
    case.health._pinged._asked -= until_asked_again  # type: ignore[operator]
    assert case.ready() == []


def test_what_is_tried_again_is_not_stuck() -> None:
    """A batch that always fails is no reason for a restart: it would fail in the next worker too."""
    case = Case()
    for _ in range(MANY):
        case.look()
        case.activity[PLACE] += 1
    assert case.health.live() == []


def test_slow_progress_is_progress() -> None:
    case = Case()
    for done in range(MANY):
        case.look(2, done=done, end=1_000_000)
    assert case.health.live() == []


def test_after_an_outage_the_patience_begins_anew() -> None:
    """Events that waited during a recovery don't count as stuck right after it."""
    case = Case()
    case.look(MANY - 6)
    case.serving = False
    case.look()
    case.serving = True
    case.look(MANY - 6)
    assert case.health.live() == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_to("joined", False), "no partitions were assigned yet"),
        (set_to("serving", False), "partitions change hands, or their tables are being recovered"),
        (set_to("error", AWAY), "MongoDB does not answer"),
        (lambda case: case.mongodb.failed(AWAY, "batch"), "MongoDB is away, or refuses to write"),
        (lambda case: case.kafka.failed(AWAY, case), "Kafka is away"),
        (lambda case: setattr(case.lags, "answers", False), "Kafka does not answer"),
        (
            set_to("sure", False),
            "Kafka has not answered for so long that the partitions may be another worker's by now",
        ),
        (
            lambda case: case.troubles.begin("lost", "sold[0]", "3 events can't be read", stops=True),
            "3 events can't be read",
        ),
    ],
)
def test_why_it_is_not_ready(change: Callable[[Case], None], reason: str) -> None:
    """Each fault gives one reason, without a server's own words, which may hold an address or a password."""
    case = Case()
    change(case)
    assert case.ready() == [reason]
    assert case.health.live() == []


def test_a_trouble_that_stops_nothing_leaves_the_worker_ready() -> None:
    """The worker does its share of the work. The page, the log and the metrics show the trouble."""
    case = Case()
    case.troubles.begin("deleted", "sold[0]", "3 events were deleted unread", stops=False)
    assert case.ready() == []


# -- the consumer's thread


def test_a_thread_that_does_not_turn_is_stuck() -> None:
    pulse, asked = Pulse(), []
    pulse.turn(asked.append)
    asked.pop()()
    for _ in range(STUCK_TURNS + 1):
        assert not pulse.stuck
        pulse.turn(asked.append)
    assert pulse.stuck
    assert len(asked) == 1  # one callback waits, not one for each turn
    asked.pop()()
    assert not pulse.stuck


def test_a_thread_that_has_not_begun_is_not_stuck() -> None:
    """A worker may take long to start."""
    pulse = Pulse()
    for _ in range(3 * STUCK_TURNS):
        pulse.turn(lambda callback: None)
    assert not pulse.stuck


def test_a_thread_that_has_ended_is_not_stuck() -> None:
    """The consumer's event loop is closed when the worker stops."""

    def ended(callback: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")

    pulse = Pulse()
    pulse.turn(lambda callback: callback())
    for _ in range(3 * STUCK_TURNS):
        pulse.turn(ended)
    assert not pulse.stuck


def test_progress_forgets_what_no_longer_waits() -> None:
    progress = Progress(2)
    progress.look({PLACE: 1})
    progress.look({PLACE: 1})
    progress.look({})
    progress.look({PLACE: 1})
    progress.look({PLACE: 1})
    assert progress.still == []
    progress.look({PLACE: 1})
    assert progress.still == [PLACE]


# -- the ping


class Pinged(Case):
    """A worker whose MongoDB answers pings as the test says."""

    def __init__(self, ping: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.pong = ping

    async def ping(self) -> None:
        await self.pong()

    async def ok(self) -> bool:
        return await self.health.mongodb_answers()


def test_a_ping_is_not_waited_for_and_not_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen MongoDB gets one ping at a time, and the probe answers in time without it."""
    monkeypatch.setattr(module, "PING_SECONDS", 0.01)
    monkeypatch.setattr(module, "_PING_COUNTS_SECONDS", 0.0)

    async def scenario() -> None:
        sent, thawed = [], asyncio.Event()

        async def ping() -> None:
            sent.append(None)
            await thawed.wait()

        asked = Pinged(ping)
        assert await asyncio.gather(*(asked.ok() for _ in range(5))) == [False] * 5
        assert not await asked.ok()
        assert len(sent) == 1
        thawed.set()
        assert await asked.ok()
        assert await asked.ok()
        assert len(sent) == 2

    asyncio.run(scenario())


def test_a_ping_without_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping on a dead connection ends, so that the next one can find that MongoDB is back."""
    monkeypatch.setattr(module, "_PING_COUNTS_SECONDS", 0.0)
    monkeypatch.setattr(cached, "MOST_SECONDS", 0.01)

    async def scenario() -> None:
        sent = []

        async def ping() -> None:
            sent.append(None)
            if len(sent) == 1:
                await asyncio.Event().wait()

        asked = Pinged(ping)
        assert not await asked.ok()
        assert await asked.ok()

    asyncio.run(scenario())


def test_an_answer_counts_for_a_while() -> None:
    """Frequent probes don't send a ping each."""

    async def scenario() -> None:
        sent = []

        async def ping() -> None:
            sent.append(None)

        asked = Pinged(ping)
        assert [await asked.ok() for _ in range(5)] == [True] * 5
        assert len(sent) == 1

    asyncio.run(scenario())


def test_a_ping_ends_an_outage_that_nobody_works_on() -> None:
    """The batch that saw the outage went to another worker. Without events, only a ping can end it."""
    case = Case()
    case.mongodb.failed(AWAY, "batch")
    case.mongodb.gave_up("batch")
    assert asyncio.run(case.health.mongodb_answers())
    assert case.mongodb.seconds is None


# -- the lag


def test_the_end_of_a_transaction_is_no_lag() -> None:
    """A transaction's marker takes an offset that is never committed. A partition that rests is checked for it once."""
    looked_into = []

    async def empty(places: Mapping[tuple[str, int], Span]) -> set[tuple[str, int]]:
        looked_into.extend(places.values())
        return set(places)

    lags = Lags(lambda: None, empty)  # type: ignore[arg-type, return-value]

    async def scenario() -> list[int]:
        found = []
        for span in (Span(0, 5, 6), Span(0, 5, 6), Span(0, 5, 6), Span(0, 5, 8), Span(0, 8, 8)):
            await lags.take({PLACE[0]: {PLACE[1]: span}})
            found.append(lags.waiting(PLACE))
        return found

    assert asyncio.run(scenario()) == [1, 0, 0, 3, 0]
    assert looked_into == [Span(0, 5, 6)]


def test_the_lag_outlives_a_kafka_that_goes_and_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """During an outage the last lag stays, with its age. A new connection is made after an outage or a fault."""
    monkeypatch.setattr(lag_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(lag_module, "_AGAIN_SECONDS", 0.0)
    errors: list[Exception | None] = [None, AWAY, ValueError("a fault"), None]
    seen: list[bool | None] = []

    async def scenario() -> None:
        over = asyncio.Event()

        async def ask() -> dict[str, dict[int, Span]]:
            if not errors:
                over.set()
                await asyncio.Event().wait()
            error = errors.pop(0)
            if error:
                raise error
            return {PLACE[0]: {PLACE[1]: Span(0, 0, 7)}}

        @asynccontextmanager
        async def connect() -> Any:
            seen.append(lags.answers)
            yield ask

        lags = Lags(connect, has_records)
        assert (lags.age, lags.waiting(PLACE)) == (None, 0)
        running = asyncio.ensure_future(lags.run())
        await asyncio.wait_for(over.wait(), 10)
        running.cancel()
        assert lags.waiting(PLACE) == 7
        assert lags.age is not None
        assert lags.answers

    asyncio.run(scenario())
    assert seen == [None, False, False]
