"""Looks at what the guarantee stands on while a worker runs, and records what is wrong as troubles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from faust_batches import Troubles
from faust_batches.outage import REFUSED
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection, needs, offsets
from shopflow.kafka.needs import Finding, TopicSpec
from shopflow.kafka.security import Bootstrap

#: Seconds between two looks.
LOOK_SECONDS = 10.0
#: The kinds of troubles that this watch begins and ends.
KINDS = ("topic-missing", "topic-partitions", "topic-config", "topic-copies", "topic-rights", "topic-replaced")


async def check_changelog(bootstrap: Bootstrap, group: str, source: str, changelog: str) -> None:
    """Check at a worker's start that a changelog has records where purchases were counted.

    Raises:
        Refused: They were deleted. A worker would count from the committed offset on, beginning with zero.
        Unavailable: Kafka does not answer.
    """
    for _ in range(2):  # another worker may have counted its first batch between the answers of one look
        spans = await offsets.spans(bootstrap, group, [source, changelog])
        found = spans.get(changelog, {})
        filled = {number for number, span in found.items() if span.high > span.start}
        counted = {number: span.done - span.start for number, span in spans.get(source, {}).items()}
        lost = {number: count for number, count in counted.items() if count and number not in filled}
        if not lost:
            return
    where = f"has no record in partition {', '.join(map(str, sorted(lost)))}" if filled else "is empty"
    raise Refused(
        f"topic {changelog}: {where}, though {sum(lost.values())} purchases were counted: it was deleted, and the "
        "counts with it. `faust -A shopflow replay` counts again what Kafka still has"
    )


async def topics(
    bootstrap: Bootstrap,
    specs: Sequence[TopicSpec],
    seen: dict[str, str] | None = None,
    counted: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> list[Finding]:
    """What the topics lack.

    Arguments:
        seen: Kafka's ids of the topics seen before; those of new ones are added.
        counted: The ids of the topics that the tables count, by name. They outlive a worker, and a replay begins anew.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with connection.client(bootstrap) as client:
        try:
            found = await needs.look(client, [spec.name for spec in specs])
        except Refused as refused:
            return [Finding("topic-rights", "topics", str(refused))]
    seen = {} if seen is None else seen
    for name, topic in found.items():
        seen.setdefault(name, topic.id)
    ids = {name: counted.get(name) or {first} for name, first in seen.items()}
    return [*needs.judge(specs, found), *needs.judge_rights(specs, found), *needs.judge_ids(specs, found, ids)]


def record(troubles: Troubles, findings: Sequence[Finding], *kinds: str) -> None:
    """Let the troubles of these kinds be those that were found."""
    for one in findings:
        troubles.begin(one.kind, one.subject, one.text, stops=one.stops)
    for kind in kinds:
        troubles.end_others(kind, {one.subject for one in findings if one.kind == kind})


class Ground:
    """Looks every 10 seconds.

    Arguments:
        bootstrap: Returns Kafka's address; it is known when the worker starts.
        counted: Returns the ids of the topics that the worker's tables count, by name.
    """

    def __init__(
        self,
        troubles: Troubles,
        bootstrap: Callable[[], Bootstrap],
        specs: Sequence[TopicSpec],
        counted: Callable[[], Mapping[str, Collection[str]]],
    ) -> None:
        self._troubles, self._bootstrap, self._specs, self._counted = troubles, bootstrap, specs, counted
        self._seen: dict[str, str] = {}
        self._short: set[str] = set()  # the topics that lacked copies at the last look

    def topic_id(self, topic: str) -> str:
        """Kafka's id of a topic, as it was seen first; empty before."""
        return self._seen.get(topic, "")

    async def round(self) -> float:
        """Look once. Returns the seconds until the next look. While Kafka is away, the troubles stay as they are."""
        with suppress(Unavailable, Refused):  # a refused login is the worker's trouble as a whole
            self._record(await topics(self._bootstrap(), self._specs, self._seen, self._counted()))
        return LOOK_SECONDS

    def _record(self, findings: Sequence[Finding]) -> None:
        refused = {trouble.subject for trouble in self._troubles.present if trouble.kind == REFUSED}
        short = {one.subject for one in findings if one.kind == "topic-copies"}
        told = []
        for one in findings:
            if one.subject in short - self._short and one.kind == "topic-copies":
                continue  # a broker that starts, or wakes up, has no copy for a moment
            topic = one.subject.removesuffix(" max.message.bytes")
            if topic in refused and (topic != one.subject or one.kind == "topic-missing"):
                self._troubles.end(one.kind, one.subject, mended=False)  # the refusal tells the same, and what waits
            else:
                told.append(one)
        self._short = short
        record(self._troubles, told, *KINDS)
