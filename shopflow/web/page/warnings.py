"""The state of the whole shop at a moment, and what is wrong with it, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shopflow.kafka.offsets import Span
from shopflow.operations.letters import Letter
from shopflow.shop.recent_sales import Snapshot

#: Dead letters of the last so many seconds are news.
NEWS_SECONDS = 900.0
#: The lag must have grown, or not have moved, for so long before there is a warning.
_TREND_SECONDS = 30.0
_SHORT = 160
#: A smaller lag is not warned of when it grows.
_FEW = 1_000


class Report(msgspec.Struct):
    serving: bool
    """True while its counts are complete: not during their recovery or a rebalance."""

    assigned: dict[str, list[int]]
    """Topic -> the partitions that it owns."""

    totals: dict[str, int]  #: of its partitions: customers, purchases, items, spent (grosze)
    board: Snapshot
    mongodb_away: float | None = None
    """Seconds since it last reached MongoDB; None while it reaches it."""

    kafka_away: float | None = None
    stopped: dict[str, str] = {}
    """Topic -> why it takes nothing more from it."""


@dataclass(frozen=True)
class WorkerState:
    """A worker, and what it says of itself; None: it does not answer."""

    url: str
    report: Report | None

    @property
    def name(self) -> str:
        return self.url.partition("://")[2] or self.url


@dataclass(frozen=True)
class Waiting:
    """How many events waited at a time (Unix, seconds), and how many had been processed."""

    at: float
    events: int
    done: int


@dataclass(frozen=True)
class Learned:
    """What MongoDB knows beyond the last minutes.

    Arguments:
        ever, today: The products of which most was sold, as documents, the most first; today begins at 0:00 UTC.
        vouchers, alerts: The latest, as documents, newest first.
    """

    ever: Sequence[Mapping[str, Any]] = ()
    today: Sequence[Mapping[str, Any]] = ()
    vouchers: Sequence[Mapping[str, Any]] = ()
    alerts: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class ShopState:
    """The shop at a moment.

    Arguments:
        at: When (Unix, in seconds).
        topics: The events' topics: those of which every partition needs a worker.
        spans: Topic -> partition -> its offsets; None: not known.
        trend: The events that waited in the last minutes, oldest first.
        kafka, mongodb: Why it does not answer; empty when it does; None: not known yet.
        letters: The latest dead letters, newest first; `dead` is how many there are.
        products, customers: Their names, by id, as far as they are known.
    """

    at: float
    workers: Sequence[WorkerState]
    board: Snapshot
    topics: Sequence[str] = ()
    partitions: int = 0
    spans: Mapping[str, Mapping[int, Span]] | None = None
    trend: Sequence[Waiting] = ()
    kafka: str | None = None
    mongodb: str | None = None
    letters: Sequence[Letter] = ()
    dead: int = 0
    products: Mapping[str, str] = field(default_factory=dict)
    customers: Mapping[str, str] = field(default_factory=dict)
    learned: Learned = field(default_factory=Learned)

    @property
    def reports(self) -> list[Report]:
        return [worker.report for worker in self.workers if worker.report]

    def owners(self, topic: str) -> dict[int, WorkerState]:
        """The worker of each partition of a topic, as far as they answer."""
        return {
            partition: worker
            for worker in self.workers
            if worker.report
            for partition in worker.report.assigned.get(topic, ())
        }

    @property
    def waiting(self) -> int | None:
        """Events that wait in Kafka; None: not known."""
        if self.spans is None:
            return None
        return sum(span.end - span.done for name in self.topics for span in self.spans.get(name, {}).values())


@dataclass(frozen=True)
class Warning:
    """Something that somebody should know."""

    level: str  #: "warn" or "bad"
    text: str


def warnings(now: ShopState) -> list[Warning]:
    """What is wrong, the worst first; empty when all is well."""
    found = [*_servers(now), *_workers(now), *_partitions(now), *_lag(now), *_letters(now)]
    return sorted(found, key=lambda warning: warning.level != "bad")


def _servers(now: ShopState) -> Iterator[Warning]:
    mongodb_away = [report.mongodb_away for report in now.reports]
    kafka_away = [report.kafka_away for report in now.reports]
    for name, why, away, meanwhile in (
        ("MongoDB", now.mongodb, mongodb_away, "New events wait in Kafka, nothing is lost."),
        ("Kafka", now.kafka, kafka_away, "Nothing new comes in until it is back."),
    ):
        longest = max((seconds for seconds in away if seconds is not None), default=None)
        if why or longest is not None:
            since = f" for {_duration(longest)}" if longest is not None and longest >= 10 else ""
            silence = f"has not answered{since}" if since else "does not answer"
            yield Warning("bad", f"{name} {silence}. {meanwhile}")


def _workers(now: ShopState) -> Iterator[Warning]:
    for worker in now.workers:
        if worker.report is None:
            yield Warning("bad", f"The worker {worker.name} does not answer. What it knows is missing here.")
            continue
        if not worker.report.serving:
            yield Warning("warn", f"The worker {worker.name} is getting its partitions or recovering their counts.")
        for topic, why in worker.report.stopped.items():
            yield Warning("bad", f"The worker {worker.name} has stopped taking {topic}: {why}.")


def _partitions(now: ShopState) -> Iterator[Warning]:
    # A worker that is silent may have them; and while they are shared out, that is what is said.
    if any(worker.report is None or not worker.report.serving for worker in now.workers):
        return
    for topic in now.topics:
        owned = now.owners(topic)
        if missing := [str(number) for number in range(now.partitions) if number not in owned]:
            what = "partition" if len(missing) == 1 else "partitions"
            yield Warning("bad", f"No worker has {what} {', '.join(missing)} of {topic}.")


def _lag(now: ShopState) -> Iterator[Warning]:
    if not now.trend or not now.trend[-1].events:
        return
    last = now.trend[-1]
    before = [one for one in now.trend if last.at - one.at >= _TREND_SECONDS]
    since = [one for one in now.trend if before and one.at >= before[-1].at]
    if not since:
        return
    if all(one.events > 0 for one in since) and last.done == since[0].done:
        yield Warning("bad", f"{last.events} events wait in Kafka, and none was processed for {_TREND_SECONDS:g} s.")
    elif last.events > _FEW and last.events > since[0].events * 1.1:
        more = "and they become more: they come faster than they are processed"
        yield Warning("warn", f"{last.events} events wait in Kafka, {more}.")


def _letters(now: ShopState) -> Iterator[Warning]:
    recent = [letter for letter in now.letters if now.at - letter.time.timestamp() < NEWS_SECONDS]
    if recent:
        many = len(recent) == len(now.letters) < now.dead
        count = f"At least {len(recent)}" if many else f"{len(recent)}"
        records = "record" if len(recent) == 1 else "records"
        yield Warning(
            "warn",
            f"{count} {records} could not be accepted in the last {NEWS_SECONDS / 60:.0f} minutes. "
            f"The last reason: {recent[0].reason[:_SHORT] or 'none given'}",
        )


def _duration(seconds: float) -> str:
    whole = int(seconds) // 10 * 10  # it is read aloud when it changes
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7_200 else f"{whole // 3_600} h"
