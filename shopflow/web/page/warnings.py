"""What is known of the whole shop at a moment, and what is wrong with it, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from shopflow.kafka.offsets import Span
from shopflow.operations.letters import Letter
from shopflow.shop.recent_sales import Snapshot

__all__ = ["Condition", "Learned", "Level", "Report", "Sentence", "Totals", "Waiting", "WorkerState", "sentences"]

#: "good", "warn" or "bad".
Level = str

#: Dead letters of the last so many seconds are news.
NEWS_SECONDS = 900.0
#: For so long the events that wait must have grown, or nothing must have moved, to be worth a word.
_TREND_SECONDS = 30.0
_SHORT = 160
#: Fewer events that wait are no news.
_FEW = 1_000


class Totals(msgspec.Struct):
    """Sums over the partitions that a worker owns."""

    customers: int = 0
    purchases: int = 0
    items: int = 0
    spent: int = 0  #: grosze


class Report(msgspec.Struct):
    """What a worker says of itself."""

    serving: bool
    """Are its counts complete? Not while they are recovered or partitions change hands."""

    assigned: dict[str, list[int]]
    """Topic -> the partitions that are its own."""

    totals: Totals
    board: Snapshot
    mongodb_away: float | None = None
    """For how many seconds it has not reached MongoDB."""

    kafka_away: float | None = None
    stopped: dict[str, str] = {}
    """Topic -> why it takes nothing more from it."""


@dataclass(frozen=True)
class WorkerState:
    """A worker, and what it says; or why it says nothing."""

    url: str
    report: Report | None
    silent: str = ""

    @property
    def name(self) -> str:
        """Host and port."""
        return self.url.partition("://")[2] or self.url


@dataclass(frozen=True)
class Waiting:
    """How many events were waiting, and how many had been processed."""

    at: float
    events: int
    done: int


@dataclass(frozen=True)
class Learned:
    """What is known beyond the last minutes.

    Arguments:
        ever, today: The products of which most was sold, as documents, the most first; today begins at 0:00 UTC.
        vouchers, alerts: The latest, as documents, newest first.
    """

    ever: Sequence[Mapping[str, Any]] = ()
    today: Sequence[Mapping[str, Any]] = ()
    vouchers: Sequence[Mapping[str, Any]] = ()
    alerts: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Condition:
    """The shop at a moment.

    Arguments:
        at: When (Unix, in seconds).
        topics: The events' topics: those of which every partition needs a worker.
        spans: Topic -> partition -> what it holds and how far the shop is; None: not known.
        trend: How that was in the last minute, oldest first.
        kafka, mongodb: Why it does not answer; empty when it does; None: not known yet.
        letters: The latest dead letters, newest first; `dead` is how many there are.
        products, customers: Their names, by id, as far as they are known.
        learned: What MongoDB knows of all that was sold, and of the vouchers.
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

    def owners(self, topic: str) -> dict[int, WorkerState]:
        """The worker of each partition of a topic that has one, as far as they answer."""
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
class Sentence:
    """Something that somebody should know."""

    level: Level
    text: str


def sentences(now: Condition) -> list[Sentence]:
    """What is wrong, the worst first; empty when all is well."""
    found = [*_servers(now), *_workers(now), *_partitions(now), *_lag(now), *_letters(now)]
    return sorted(found, key=lambda sentence: sentence.level != "bad")


def _servers(now: Condition) -> Iterator[Sentence]:
    reports = [worker.report for worker in now.workers if worker.report]
    for name, why, away, meanwhile in (
        ("MongoDB", now.mongodb, [one.mongodb_away for one in reports], "New events wait in Kafka, nothing is lost."),
        ("Kafka", now.kafka, [one.kafka_away for one in reports], "Nothing new comes in until it is back."),
    ):
        longest = max((seconds for seconds in away if seconds is not None), default=None)
        if why or longest is not None:
            since = f" for {_duration(longest)}" if longest is not None and longest >= 10 else ""
            yield Sentence("bad", f"{name} has not answered{since}. {meanwhile}" if since else
                           f"{name} does not answer. {meanwhile}")  # fmt: skip


def _workers(now: Condition) -> Iterator[Sentence]:
    for worker in now.workers:
        if worker.report is None:
            yield Sentence("bad", f"The worker {worker.name} does not answer. What it knows is missing here.")
            continue
        if not worker.report.serving:
            yield Sentence("warn", f"The worker {worker.name} is getting its partitions or recovering their counts.")
        for topic, why in worker.report.stopped.items():
            yield Sentence("bad", f"The worker {worker.name} has stopped taking {topic}: {why}.")


def _partitions(now: Condition) -> Iterator[Sentence]:
    # A worker that is silent may have them; and while they are shared out, that is what is said.
    if any(worker.report is None or not worker.report.serving for worker in now.workers):
        return
    for topic in now.topics:
        owned = now.owners(topic)
        if missing := [str(number) for number in range(now.partitions) if number not in owned]:
            what = "partition" if len(missing) == 1 else "partitions"
            yield Sentence("bad", f"No worker has {what} {', '.join(missing)} of {topic}.")


def _lag(now: Condition) -> Iterator[Sentence]:
    if not now.trend or not now.trend[-1].events:
        return
    last = now.trend[-1]
    before = [one for one in now.trend if last.at - one.at >= _TREND_SECONDS]
    since = [one for one in now.trend if before and one.at >= before[-1].at]
    if not since:
        return
    if all(one.events > 0 for one in since) and last.done == since[0].done:
        yield Sentence("bad", f"{last.events} events wait in Kafka, and none was processed for {_TREND_SECONDS:g} s.")
    elif last.events > _FEW and last.events > since[0].events * 1.1:
        yield Sentence("warn", f"{last.events} events wait in Kafka, and they become more: they come faster than "
                       "they are processed.")  # fmt: skip


def _letters(now: Condition) -> Iterator[Sentence]:
    recent = [letter for letter in now.letters if now.at - letter.time.timestamp() < NEWS_SECONDS]
    if recent:
        many = len(recent) == len(now.letters) < now.dead
        count = f"At least {len(recent)}" if many else f"{len(recent)}"
        records = "record" if len(recent) == 1 else "records"
        yield Sentence(
            "warn",
            f"{count} {records} could not be accepted in the last {NEWS_SECONDS / 60:.0f} minutes. "
            f"The last reason: {recent[0].reason[:_SHORT] or 'none given'}",
        )


def _duration(seconds: float) -> str:
    whole = int(seconds) // 10 * 10  # it is read aloud when it changes
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7_200 else f"{whole // 3_600} h"
