"""The state of the shop at a moment, and the warnings that follow from it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from faust_batches import Trouble
from faust_batches.outage import REFUSED
from shopflow.kafka.offsets import Span
from shopflow.operations.letters import Letter
from shopflow.shop.recent_sales import Snapshot
from shopflow.web.cached import UNASKED, Age

#: Dead letters of this many last seconds are warned of.
NEWS_SECONDS = 900.0
#: The lag must grow, or stand still, for this long before there is a warning.
_TREND_SECONDS = 30.0
_SHORT = 160
#: There is no warning of a growing lag up to this one.
_FEW = 1_000


class Report(msgspec.Struct):
    """The report of a worker about itself.

    Arguments:
        serving: False during a rebalance and while the counts are recovered.
        assigned: Topic -> the partitions that it owns.
        recovering: Its partition -> the offsets of the changelogs that are recovered, and all.
        standby: The partitions whose counts it keeps for another worker.
        mongodb_away, kafka_away: Seconds since the server last answered. None: it answers.
        stopped: Topic -> why the worker stopped it.
        troubles: What a person must know or mend.
    """

    serving: bool
    assigned: dict[str, list[int]]
    board: Snapshot
    counted: dict[int, dict[str, int]] = {}  #: its partition -> customers, purchases, items, spent (grosze)
    recovering: dict[int, tuple[int, int]] = {}
    standby: list[int] = []
    mongodb_away: float | None = None
    kafka_away: float | None = None
    stopped: dict[str, str] = {}
    troubles: list[Trouble] = []


@dataclass(frozen=True)
class WorkerState:
    """A worker and its report; None: it does not answer."""

    url: str
    report: Report | None

    @property
    def name(self) -> str:
        return self.url.partition("://")[2] or self.url


@dataclass(frozen=True)
class Waiting:
    """The lag at a time (Unix, in seconds), and the number of events processed up to then."""

    at: float
    events: int
    done: int


@dataclass(frozen=True)
class Learned:
    """Documents of MongoDB.

    Arguments:
        ever, today, hour: The best-selling products first; today starts at 0:00 UTC.
        vouchers, alerts: The latest, newest first.
        since: The start of the hour, in UTC.
    """

    ever: Sequence[Mapping[str, Any]] = ()
    today: Sequence[Mapping[str, Any]] = ()
    hour: Sequence[Mapping[str, Any]] = ()
    vouchers: Sequence[Mapping[str, Any]] = ()
    alerts: Sequence[Mapping[str, Any]] = ()
    since: datetime | None = None


@dataclass(frozen=True)
class ShopState:
    """The shop at a moment.

    Arguments:
        at: Unix time, in seconds.
        topics: The topics of events. Each of their partitions needs a worker.
        spans: Topic -> partition -> its offsets; None: unknown.
        trend: The lag of the last minutes, oldest first.
        asked: How far the answers of the workers are known.
        kafka: How far `spans`, `letters` and `dead` are known. While they are not, they are those of the last answer.
        mongodb: How far it is known that MongoDB answers.
        mirrored: How far `learned` is known.
        letters: The latest dead letters, newest first. `dead` is the number of all.
        products, customers: Names by id, as far as they are known.
    """

    at: float
    workers: Sequence[WorkerState]
    board: Snapshot
    topics: Sequence[str] = ()
    partitions: int = 0
    spans: Mapping[str, Mapping[int, Span]] | None = None
    trend: Sequence[Waiting] = ()
    asked: Age = UNASKED
    kafka: Age = UNASKED
    mongodb: Age = UNASKED
    mirrored: Age = UNASKED
    letters: Sequence[Letter] = ()
    dead: int = 0
    products: Mapping[str, str] = field(default_factory=dict)
    customers: Mapping[str, str] = field(default_factory=dict)
    learned: Learned = field(default_factory=Learned)

    @property
    def reports(self) -> list[Report]:
        return [worker.report for worker in self.workers if worker.report]

    def owners(self, topic: str) -> dict[int, WorkerState]:
        """The worker of each partition of a topic, of those that answer."""
        return {
            partition: worker
            for worker in self.workers
            if worker.report
            for partition in worker.report.assigned.get(topic, ())
        }

    @property
    def counted(self) -> dict[int, dict[str, int]]:
        """The counts of each partition whose worker answers. Of two workers, one has not yet noticed its loss."""
        found: dict[int, dict[str, int]] = {}
        for report in self.reports:
            for partition, sums in report.counted.items():
                found[partition] = max(sums, found.get(partition, sums), key=lambda one: one["purchases"])
        return found

    @property
    def refusing(self) -> set[str]:
        """What refuses the workers' requests: servers, topics, collections."""
        return {one.subject for report in self.reports for one in report.troubles if one.kind == REFUSED}

    @property
    def waiting(self) -> int | None:
        """The lag over all topics, in events, when Kafka last answered; None: it never did."""
        if self.spans is None:
            return None
        return sum(span.high - span.done for name in self.topics for span in self.spans.get(name, {}).values())


@dataclass(frozen=True)
class Warning:
    level: str  #: "warn" or "bad"
    text: str
    href: str = ""  #: a page with more about it


def warnings(now: ShopState) -> list[Warning]:
    """The worst first; empty when all is well."""
    found = [*_servers(now), *_workers(now), *_troubles(now), *_partitions(now), *_lag(now), *_letters(now)]
    return sorted(found, key=lambda warning: warning.level != "bad")


def _servers(now: ShopState) -> Iterator[Warning]:
    mongodb_away = [report.mongodb_away for report in now.reports]
    kafka_away = [report.kafka_away for report in now.reports]
    for name, why, away, meanwhile in (
        ("MongoDB", now.mongodb.failure, mongodb_away, "New events wait in Kafka, nothing is lost."),
        ("Kafka", now.kafka.failure, kafka_away, "Nothing new comes in until it is back."),
    ):
        longest = max((seconds for seconds in away if seconds is not None), default=None)
        if (why or longest is not None) and name not in now.refusing:
            since = f" for {duration(longest)}" if longest is not None and longest >= 10 else ""
            silence = f"has not answered{since}" if since else "does not answer"
            yield Warning("bad", f"{name} {silence}. {meanwhile}")


def _workers(now: ShopState) -> Iterator[Warning]:
    for worker in now.workers:
        if worker.report is None:
            yield Warning("bad", f"The worker {worker.name} does not answer. Its numbers are missing here.")
            continue
        if not worker.report.serving:
            does = f"recovers its counts: {share(worker.report)} %" if worker.report.recovering else "is in a rebalance"
            yield Warning("warn", f"The worker {worker.name} {does}.")
        for topic, why in worker.report.stopped.items():
            yield Warning("bad", f"The worker {worker.name} has stopped taking {topic}: {why}.")


def _troubles(now: ShopState) -> Iterator[Warning]:
    """Each once: several workers may see the same."""
    found = {(one.kind, one.subject): one for report in now.reports for one in report.troubles}
    for trouble in found.values():
        lasting = now.at - trouble.since
        since = f" Since {duration(lasting)}." if lasting >= 10 else ""
        yield Warning("bad" if trouble.stops else "warn", f"{trouble.text}.{since}")


def _partitions(now: ShopState) -> Iterator[Warning]:
    # A worker that does not answer may own the partitions. During a rebalance there is another warning.
    if any(worker.report is None or not worker.report.serving for worker in now.workers):
        return
    for topic in now.topics:
        owned = now.owners(topic)
        if missing := [str(number) for number in range(now.partitions) if number not in owned]:
            partitions = "partition" if len(missing) == 1 else "partitions"
            yield Warning("bad", f"No worker owns {partitions} {', '.join(missing)} of {topic}.")


def _lag(now: ShopState) -> Iterator[Warning]:
    if not now.kafka.known(now.at) or not now.trend or not now.trend[-1].events:
        return
    last = now.trend[-1]
    before = [one for one in now.trend if last.at - one.at >= _TREND_SECONDS]
    since = [one for one in now.trend if before and one.at >= before[-1].at]
    if not since:
        return
    if all(one.events > 0 for one in since) and last.done == since[0].done:
        yield Warning("bad", f"{last.events} events wait in Kafka, and none was processed for {_TREND_SECONDS:g} s.")
    elif last.events > _FEW and last.events > since[0].events * 1.1:
        more = "and the lag grows: they arrive faster than they are processed"
        yield Warning("warn", f"{last.events} events wait in Kafka, {more}.")


def _letters(now: ShopState) -> Iterator[Warning]:
    recent = [letter for letter in now.letters if now.at - letter.time.timestamp() < NEWS_SECONDS]
    if recent:
        many = len(recent) == len(now.letters) < now.dead
        count = f"At least {len(recent)}" if many else f"{len(recent)}"
        records = "event was" if len(recent) == 1 else "events were"
        yield Warning(
            "warn",
            f"{count} {records} rejected in the last {NEWS_SECONDS / 60:.0f} minutes. "
            f"The last reason: {recent[0].reason[:_SHORT] or 'none given'}",
            "/dead-letters/",
        )


def share(report: Report) -> int:
    """The percentage of the changelogs that is recovered."""
    done, every = map(sum, zip(*report.recovering.values(), strict=True))
    return 100 * done // every


def duration(seconds: float) -> str:
    whole = int(seconds) // 10 * 10  # it is read aloud when it changes
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7_200 else f"{whole // 3_600} h"
