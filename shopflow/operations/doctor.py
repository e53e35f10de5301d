"""`doctor`: looks at all that the guarantee needs, and says of each what is good, what is bad, and what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import time

import msgspec

from shopflow.errors import Refused, Unavailable
from shopflow.kafka import brokers, connection, needs, offsets, producers
from shopflow.kafka.held import PATIENCE_SECONDS, Hold
from shopflow.kafka.needs import Found, TopicSpec
from shopflow.kafka.security import Bootstrap
from shopflow.shop.layout import Layout
from shopflow.store import MongoStore
from shopflow.store.features import About
from shopflow.web import client as http

from . import surroundings
from .verify import workers
from .verify.report import Check
from .watch import check_changelog

#: A share of a topic's retention: an older unread record is told.
_OLD_SHARE = 0.5
_HOUR = 3_600.0


def machine(data: Path, ignored: Sequence[str]) -> Iterator[Check]:
    """This machine: Faust's variables, the data directory, its disk.

    Arguments:
        data: The configured `data_dir`.
        ignored: Variables of Faust that are set and have no effect.
    """
    detail = f"{', '.join(ignored)}: ignored, with it records could be lost; take it out of the environment"
    yield Check("variables", not ignored, detail if ignored else "none of Faust's that would break the guarantee")
    wrong = surroundings.folder(data)
    there = f"{data} can be written" if data.exists() else f"{data} is not there yet: the first start makes it"
    yield Check("data directory", not wrong, "; ".join(wrong) or there)
    full = surroundings.disk(data)
    yield Check(
        "disk", not full, "; ".join(one.text for one in full) or f"{surroundings.free(data) >> 20} MiB are free"
    )


async def port(url: str, check: Callable[[], None]) -> Check:
    """The worker's port: free, or a worker of shopflow answers there.

    Arguments:
        check: Raises `Refused` if the port is not free.
    """
    try:
        check()
    except Refused as refused:
        try:
            async with http.session() as session:
                _, body = await http.ask(session, url, f"{url}/health/live")
            if msgspec.json.decode(body)["status"] in {"live", "not live"}:
                return Check("web port", True, f"a worker of shopflow answers at {url}")
        except (Unavailable, msgspec.MsgspecError, KeyError, TypeError):
            pass
        return Check("web port", False, str(refused))
    return Check("web port", True, f"{url} is free")


async def kafka(bootstrap: Bootstrap, specs: Sequence[TopicSpec], shop: Layout) -> AsyncIterator[Check]:
    """Kafka: its brokers, the topics, the consumer group, what waits."""
    try:
        async with connection.client(bootstrap) as client:
            found = await brokers.look(client)
            yield _brokers(found)
            if any(broker.old for broker in found):
                return
            yield _clock("Kafka", await brokers.time(client))
            topics = await needs.look(client, [spec.name for spec in specs])
        for check in _topics(specs, topics, ",".join(bootstrap.hosts)):
            yield check
        yield await _group(bootstrap, shop)
        if all(name in topics for name in shop.events):
            spans = await offsets.spans(bootstrap, shop.group, [*shop.events, *shop.records])
            yield await unread(bootstrap, shop, spans, topics)
            yield await transactions(bootstrap, spans)
            yield await _counts(bootstrap, shop)
    except Refused as refused:
        yield Check("Kafka", False, str(refused))
    except Unavailable as error:
        yield Check("Kafka", False, f"{str(error).removeprefix('Kafka: ')}; what is not listed here can't be looked at")


def _brokers(found: Sequence[brokers.Broker]) -> Check:
    if old := [broker.too_old for broker in found if broker.old]:
        return Check("Kafka", False, "; ".join(old))
    releases = ", ".join(sorted({broker.release for broker in found}))
    number = "1 broker" if len(found) == 1 else f"{len(found)} brokers"
    return Check("Kafka", True, f"{number} of version {releases}: {', '.join(broker.address for broker in found)}")


def _clock(server: str, at: float | None) -> Check:
    name, now = f"clock of {server}", time()
    if at is None:
        return Check(name, True, "not told to this user")
    wrong = surroundings.clocks({server: at}, now)
    return Check(name, not wrong, "; ".join(one.text for one in wrong) or f"{at - now:+.1f} s to this machine's")


def _topics(specs: Sequence[TopicSpec], found: Mapping[str, Found], at: str) -> Iterator[Check]:
    if not found:
        yield Check("topics", True, f"none of the {len(specs)} is there yet: the first start creates them")
        return
    findings = [*needs.judge(specs, found, at), *needs.judge_rights(specs, found)]
    for spec in specs:
        wrong = [one.text for one in findings if one.subject.split(" ")[0] == spec.name]
        topic = found.get(spec.name)
        untold = topic is not None and topic.configs is None
        good = False if wrong else None if untold else True
        yield Check(f"topic {spec.name}", good, "; ".join(wrong) or _described(spec, topic))


def _described(spec: TopicSpec, topic: Found | None) -> str:
    if topic is None:
        return "not there"
    number = "1 partition" if topic.partitions == 1 else f"{topic.partitions} partitions"
    copies = "1 copy" if topic.copies == 1 else f"{topic.copies} copies"
    if topic.configs is None:
        return f"{number}, {copies}; its configuration is not shown to this user"
    least = topic.configs.get("min.insync.replicas", "1")
    written = "" if topic.copies == 1 else f", written when {least} have it"
    kept = topic.configs.get("retention.ms", "-1")
    hours = "for ever" if kept == "-1" else f"for {int(kept) / 1000 / _HOUR:g} hours"
    return f"{number}, {copies}{written}, keeps {'the last record of each key' if spec.compacted else f'all {hours}'}"


async def _group(bootstrap: Bootstrap, shop: Layout) -> Check:
    name = f"group {shop.group}"
    live = await workers.live(bootstrap, shop.group, shop.changelog)
    if live.unclear:
        foreign = "no worker" in live.unclear
        advice = "; give the other program another group, or this shop another app_id" if foreign else ""
        return Check(name, False if foreign else None, live.unclear + advice)
    if not live.workers:
        return Check(name, True, "no worker runs; events wait in Kafka")
    listed = ", ".join(f"{one.url} with {len(one.partitions)} partitions" for one in live.workers)
    return Check(name, True, listed)


async def unread(
    bootstrap: Bootstrap, shop: Layout, spans: Mapping[str, Mapping[int, offsets.Span]], topics: Mapping[str, Found]
) -> Check:
    """Check that Kafka deletes no record soon that is not read yet."""
    waiting = {(topic, number): span for topic in shop.events for number, span in spans.get(topic, {}).items()}
    waiting = {place: span for place, span in waiting.items() if span.done < span.end}
    number = sum(span.end - span.done for span in waiting.values())
    wrong = []
    for (topic, partition), at in (await offsets.times(bootstrap, waiting)).items():
        kept = int((topics[topic].configs or {}).get("retention.ms", "-1")) / 1000
        age = time() - at
        if topics[topic].configs and kept > 0 and not _compacted(topics[topic]) and age > _OLD_SHARE * kept:
            wrong.append(
                f"the oldest unread record of {topic}[{partition}] is {age / _HOUR:.1f} hours old, and Kafka deletes "
                f"it when it is {kept / _HOUR:g} hours old: start workers, or raise topics.retention_hours and the "
                "topic's retention.ms"
            )
    return Check(
        "unread events", not wrong, "; ".join(wrong) or f"{number} offsets wait; Kafka deletes none of them soon"
    )


def _compacted(topic: Found) -> bool:
    return (topic.configs or {}).get("cleanup.policy") == "compact"


async def transactions(bootstrap: Bootstrap, spans: Mapping[str, Mapping[int, offsets.Span]]) -> Check:
    """Check that no open transaction keeps records from their readers for long."""
    held = {(topic, number): span for topic, found in spans.items() for number, span in found.items() if span.held}
    if not held:
        return Check("transactions", True, "none is open")
    found, now = await producers.producers(bootstrap, held), time()
    known = {place: found.get(place, producers.Producer()) for place in sorted(held)}
    holds = [Hold(*place, held[place].held, one.began or now, one) for place, one in known.items()]
    lasting = [hold.since < now - PATIENCE_SECONDS for hold in holds]
    texts = "; ".join(hold.text for hold in holds)
    if any(lasting):
        return Check("transactions", False, texts)
    return Check("transactions", None, f"{texts}; that is normal for some seconds: run this again")


async def _counts(bootstrap: Bootstrap, shop: Layout) -> Check:
    """Check that the counts and sales of the purchases were not deleted; workers begin with them."""
    try:
        for changelog in (shop.changelog, shop.sales_changelog):
            await check_changelog(bootstrap, shop.group, shop.purchases, changelog)
    except Refused as lost:
        return Check("counts", False, str(lost))
    return Check("counts", True, "the changelogs have records wherever purchases were counted")


async def mongodb(store: MongoStore) -> AsyncIterator[Check]:
    """MongoDB: its version, what it can do, how it writes, rights, indexes. The store must be connected."""
    try:
        about = await store.about()
        lacking, why = "", ""
        try:
            lacking = await store.lacking()
        except Unavailable as error:
            why = str(error)
        yield Check(
            "MongoDB", None if why else not lacking, lacking or why or f"{about.named} knows all that is needed"
        )
        yield _clock("MongoDB", about.time)
        yield _writes(about)
        missing = await surroundings.rights(store)
        yield Check("MongoDB rights", not missing, missing or "no right that is needed is known to be missing")
        missing = await surroundings.indexes(store)
        yield Check("MongoDB indexes", not missing, missing or "none is missing on a collection with documents")
    except Unavailable as error:
        yield Check(
            "MongoDB", False, f"{str(error).removeprefix('MongoDB: ')}; what is not listed here can't be looked at"
        )


def _writes(about: About) -> Check:
    if about.sharded:
        where = "a sharded cluster"
    elif about.replica_set:
        where = f"replica set {about.replica_set} with {about.members} members"
    else:
        where = "one server without a replica set: its disk has the only copy"
    return Check("MongoDB writes", True, f"w: majority, j: true; {where}")
