"""The state of the shop, from the other workers, Kafka and MongoDB. Each request has a time limit."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from yarl import URL

from shopflow import topics
from shopflow.app import app, config, connected_kafka, store
from shopflow.bootstrap import parts
from shopflow.errors import Unavailable
from shopflow.kafka import offsets
from shopflow.kafka.lag import EmptySpans
from shopflow.kafka.offsets import Span
from shopflow.operations import letters
from shopflow.operations.letters import Letter
from shopflow.shop.counts import summed
from shopflow.shop.recent_sales import Snapshot, merged
from shopflow.store.types import Document
from shopflow.tables import purchase_counts
from shopflow.web import peers
from shopflow.web.cached import MOST_SECONDS, Cached

from .warnings import Learned, Report, ShopState, Waiting, WorkerState

#: Older answers are requested again.
_BOARDS_SECONDS = 0.9
_SERVERS_SECONDS = 2.0
_LEARNED_SECONDS = 5.0
_REST = 9.0
#: The number of dead letters that are shown.
_LETTERS = 20
#: The number of best-selling products, vouchers and alerts that are shown.
_BESTSELLERS, _VOUCHERS, _ALERTS = 10, 8, 5
_CHANGELOG = purchase_counts.changelog_topic_name
#: The number of measurements that make a trend.
_TREND = 60


@dataclass(frozen=True)
class _Log:
    spans: Mapping[str, Mapping[int, Span]] | None = None
    letters: list[Letter] = field(default_factory=list)
    dead: int = 0


def report() -> Report:
    assigned: dict[str, list[int]] = {}
    for tp in app.assignor.assigned_actives():
        assigned.setdefault(tp.topic, []).append(tp.partition)
    return Report(
        serving=app.serving,
        assigned={topic: sorted(numbers) for topic, numbers in assigned.items() if topic in topics.KEYS},
        board=parts.board.snapshot(assigned.get(topics.purchases.get_topic_name(), ())),
        counted=_counted(),
        recovering=_recovering(),
        standby=sorted(tp.partition for tp in app.assignor.assigned_standbys() if tp.topic == _CHANGELOG),
        mongodb_away=parts.mongodb_outage.seconds,
        kafka_away=app.kafka_outage.seconds,
        stopped=parts.limit.stopped,
        troubles=app.troubles.present,
    )


def _recovering() -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for tp, (done, every) in app.recovering.items():
        before = found.get(tp.partition, (0, 0))
        found[tp.partition] = (before[0] + done, before[1] + every)
    return found


def _counted() -> dict[int, dict[str, int]]:
    found = {}
    for partition in purchase_counts.owned_partitions() if app.serving else ():
        with suppress(Unavailable):  # damaged on disk: it is recovered
            found[partition] = summed(purchase_counts.reader, [partition])
    return found


async def _ask_worker(host: URL) -> WorkerState:
    try:
        return WorkerState(str(host), await peers.fetch(host, "/board/", Report))
    except Unavailable:
        return WorkerState(str(host), None)


async def _ask_workers() -> list[WorkerState]:
    answers = await asyncio.gather(*map(_ask_worker, peers.others()))
    return [WorkerState(str(peers.me()), report()), *answers]


async def _ask_kafka() -> _Log:
    spans = await offsets.spans(connected_kafka(), config.app_id, [*topics.LAYOUT.events, topics.DEAD_LETTERS])
    dead, before = sum(span.end - span.start for span in spans.get(topics.DEAD_LETTERS, {}).values()), _log.answer
    known = before.letters
    if before.spans is None or before.spans.get(topics.DEAD_LETTERS) != spans.get(topics.DEAD_LETTERS):
        known = await letters.latest(connected_kafka(), topics.LAYOUT, _LETTERS) if dead else []
    spans = await _settled(spans)
    events = [span for name in topics.KEYS for span in spans.get(name, {}).values()]
    _trend.append(Waiting(time.time(), sum(span.end - span.done for span in events), sum(span.done for span in events)))
    return _Log(spans, known, dead)


async def _settled(spans: Mapping[str, Mapping[int, Span]]) -> dict[str, dict[int, Span]]:
    """The spans, without the end markers of transactions, which are no events."""
    events = {(topic, number): span for topic in topics.KEYS for number, span in spans.get(topic, {}).items()}
    await _empty_spans.look(events, lambda found: offsets.empty(connected_kafka(), found))
    settled = {topic: dict(partitions) for topic, partitions in spans.items()}
    for (topic, number), span in events.items():
        settled[topic][number] = replace(span, done=span.end - _empty_spans.waiting((topic, number), span))
    return settled


async def _ask_learned() -> Learned:
    this_hour = datetime.now(timezone.utc).replace(minute=0, second=0, microsecond=0)
    hour, today, ever, alerts = await asyncio.gather(
        store.best_sellers("hour", this_hour, _BESTSELLERS),
        store.best_sellers("day", this_hour.replace(hour=0), _BESTSELLERS),
        store.best_sellers("total", None, _BESTSELLERS),
        store.alerts(_ALERTS),
    )
    for longer, shorter in ((today, hour), (ever, today)):
        _include(longer, shorter)
    async with aclosing(store.vouchers(limit=_VOUCHERS)) as found:
        return Learned(ever, today, hour, [voucher async for voucher in found], alerts, this_hour)


def _include(longer: list[Document], shorter: list[Document]) -> None:
    """Count what was sold in the shorter period in the longer one, too: its documents may be written a moment later."""
    known = {one["product_id"]: one for one in shorter}
    for one in longer:
        if part := known.get(one["product_id"]):
            one |= {name: max(one[name], part[name]) for name in ("units", "revenue")}
    longer.sort(key=lambda one: (-one["units"], one["product_id"]))


async def _ask_names() -> tuple[dict[str, str], dict[str, str]]:
    await store.ping()
    seen, learned = _seen(), _learned.answer
    products = {sale.product_id for sale in seen.latest}
    products |= {one["product_id"] for one in (*learned.ever, *learned.today, *learned.hour, *learned.alerts)}
    customers = {sale.customer_id for sale in seen.latest}
    customers |= {voucher["customer_id"] for voucher in learned.vouchers}
    names = _named(await store.documents("products", products), "name")
    return names, _named(await store.documents("customers", customers), "first_name", "last_name")


def _named(documents: Mapping[str, Mapping[str, Any]], *fields: str) -> dict[str, str]:
    return {key: " ".join(str(found.get(name, "")) for name in fields).strip() for key, found in documents.items()}


def _seen() -> Snapshot:
    return merged(worker.report.board for worker in _workers.answer if worker.report)


_empty_spans = EmptySpans()
_trend: deque[Waiting] = deque(maxlen=_TREND)
_workers: Cached[list[WorkerState]] = Cached(_ask_workers, _BOARDS_SECONDS, [])
_log: Cached[_Log] = Cached(_ask_kafka, _SERVERS_SECONDS, _Log())
_learned: Cached[Learned] = Cached(_ask_learned, _LEARNED_SECONDS, Learned(), rest=_REST)
_names: Cached[tuple[dict[str, str], dict[str, str]]] = Cached(_ask_names, _SERVERS_SECONDS, ({}, {}))


async def sales() -> tuple[Snapshot, float]:
    """The sales of the last minutes, over all workers, and when the workers were asked (Unix, in seconds)."""
    await _workers.get(peers.SECONDS + 1)
    return _seen(), _workers.age.at or time.time()


async def shop_state() -> ShopState:
    """The shop now. Takes a few seconds at most, also during an outage."""
    seen, _ = await sales()
    log, (products, customers), learned = await asyncio.gather(_log.get(), _names.get(), _learned.get())
    return ShopState(
        at=time.time(),
        workers=_workers.answer,
        board=seen,
        topics=tuple(topics.KEYS),
        partitions=config.topics.partitions,
        spans=log.spans,
        trend=_recent(_trend),
        asked=_workers.age,
        kafka=_log.age,
        mongodb=_names.age,
        mirrored=_learned.age,
        letters=log.letters,
        dead=log.dead,
        products=products,
        customers=customers,
        learned=learned,
    )


def _recent(trend: Iterable[Waiting]) -> list[Waiting]:
    """The measurements since the last pause: there are none while no page is open."""
    found: list[Waiting] = []
    for one in trend:
        if found and one.at - found[-1].at > 3 * (_SERVERS_SECONDS + MOST_SECONDS):
            found.clear()
        found.append(one)
    return found
