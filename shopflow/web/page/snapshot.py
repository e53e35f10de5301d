"""The whole shop as one worker sees it: asked of the other workers, Kafka and MongoDB, each in bounded time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Generic, TypeVar

import msgspec
from aiokafka.errors import KafkaError
from yarl import URL

from shopflow import topics
from shopflow.app import app, config, connected_kafka, store
from shopflow.bootstrap import parts
from shopflow.errors import BatchError, Refused, Unavailable
from shopflow.kafka import offsets
from shopflow.kafka.lag import Standing
from shopflow.kafka.offsets import Span
from shopflow.operations import letters
from shopflow.operations.letters import Letter
from shopflow.shop.counts import summed
from shopflow.shop.recent_sales import Snapshot, merged
from shopflow.tables import purchase_counts
from shopflow.web import peers
from shopflow.web.client import reason

from .warnings import Condition, Learned, Report, Totals, Waiting, WorkerState

__all__ = ["Kept", "condition", "report", "sales"]

T = TypeVar("T")

#: How old an answer may be until it is asked for anew.
_BOARDS_SECONDS = 0.9
_SERVERS_SECONDS = 2.0
_LEARNED_SECONDS = 5.0
_REST = 9.0
#: How long one may take; until then, or until it is there, the page shows the one before.
_MOST_SECONDS = 5.0
_WAIT_SECONDS = 1.0
#: Dead letters that are shown.
_LETTERS = 20
#: Products that sold best, vouchers, and alerts, that are shown.
_BESTSELLERS, _VOUCHERS, _ALERTS = 10, 8, 5
#: How many measurements are kept to tell a trend.
_TREND = 60


class Kept(Generic[T]):
    """An answer that is asked for anew when it is wanted and too old; by one at a time, however many want it.

    Arguments:
        ask: Gets it; may raise `Unavailable`.
        seconds: How old it may be.
        first: What counts until there is one.
        rest: It is left alone for so many times as long as the last answer took.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[T]],
        seconds: float,
        first: T,
        clock: Callable[[], float] = time.monotonic,
        *,
        rest: float = 0.0,
    ) -> None:
        self._ask = ask
        self._seconds = self._pause = seconds
        self._rest = rest
        self._clock = clock
        self._asked: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.answer = first
        self.failure: str | None = None
        """Why there is no new answer; empty when there is one; None: it was never asked for."""

    async def get(self, patience: float = _WAIT_SECONDS) -> T:
        """The answer: a fresh one if it comes in time, else the one before."""
        if self._task is None and (self._asked is None or self._clock() - self._asked >= self._pause):
            self._task = asyncio.create_task(self._refresh())
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=patience)
        return self.answer

    async def _refresh(self) -> None:
        began = self._clock()
        try:
            self.answer = await asyncio.wait_for(self._ask(), _MOST_SECONDS)
            self.failure = ""
        except (Refused, BatchError, KafkaError) as error:
            self.failure = str(error) or type(error).__name__
        except asyncio.TimeoutError:
            self.failure = f"no answer within {_MOST_SECONDS:g} s"
        finally:
            self._asked, self._task = self._clock(), None
            self._pause = max(self._seconds, self._rest * (self._asked - began))


@dataclass(frozen=True)
class _Log:
    """What Kafka says."""

    spans: Mapping[str, Mapping[int, Span]] | None = None
    letters: list[Letter] = field(default_factory=list)
    dead: int = 0


@dataclass(frozen=True)
class _Names:
    products: Mapping[str, str] = field(default_factory=dict)
    customers: Mapping[str, str] = field(default_factory=dict)


def report() -> Report:
    """What this worker says of itself."""
    assigned: dict[str, list[int]] = {}
    for tp in app.assignor.assigned_actives():
        assigned.setdefault(tp.topic, []).append(tp.partition)
    return Report(
        serving=app.serving,
        assigned={topic: sorted(numbers) for topic, numbers in assigned.items() if topic in topics.KEYS},
        totals=Totals(**summed(purchase_counts.reader, purchase_counts.owned_partitions() if app.serving else ())),
        board=parts.board.snapshot(),
        mongodb_away=parts.mongodb_outage.seconds,
        kafka_away=app.kafka_outage.seconds,
        stopped=parts.limit.stopped,
    )


async def _ask_worker(host: URL) -> WorkerState:
    try:
        status, body = await peers.ask(host, "/board/")
        if status != 200:
            return WorkerState(str(host), None, reason(body, status))
        return WorkerState(str(host), msgspec.json.decode(body, type=Report))
    except Unavailable as error:
        return WorkerState(str(host), None, str(error))
    except msgspec.MsgspecError as error:
        return WorkerState(str(host), None, f"not the answer of a worker: {error}")


async def _ask_workers() -> list[WorkerState]:
    me = peers.me()
    others = sorted(set(peers.known()) - {me}, key=str)
    answers = await asyncio.gather(*map(_ask_worker, others))
    return [WorkerState(str(me), report()), *answers]


async def _ask_kafka() -> _Log:
    spans = await offsets.spans(connected_kafka(), config.app_id, [*topics.LAYOUT.events, topics.DEAD_LETTERS])
    places = spans.get(topics.DEAD_LETTERS, {}).values()
    dead, before = sum(span.end - span.start for span in places), _log.answer
    known = before.letters
    if before.spans is None or before.spans.get(topics.DEAD_LETTERS) != spans.get(topics.DEAD_LETTERS):
        known = await letters.latest(connected_kafka(), topics.LAYOUT, _LETTERS) if dead else []
    spans = await _settled(spans)
    events = [span for name in topics.KEYS for span in spans.get(name, {}).values()]
    _trend.append(Waiting(time.time(), sum(span.end - span.done for span in events), sum(span.done for span in events)))
    return _Log(spans, known, dead)


async def _settled(spans: Mapping[str, Mapping[int, Span]]) -> dict[str, dict[int, Span]]:
    """Without what only seems to wait."""
    events = {(topic, number): span for topic in topics.KEYS for number, span in spans.get(topic, {}).items()}
    await _standing.look(events, lambda places: offsets.empty(connected_kafka(), places))
    settled = {topic: dict(partitions) for topic, partitions in spans.items()}
    for (topic, number), span in events.items():
        settled[topic][number] = replace(span, done=span.end - _standing.waiting((topic, number), span))
    return settled


async def _ask_learned() -> Learned:
    today = datetime.now(timezone.utc).replace(hour=0, minute=0, second=0, microsecond=0)
    ever, of_today, alerts = await asyncio.gather(
        store.best_sellers("total", None, _BESTSELLERS),
        store.best_sellers("day", today, _BESTSELLERS),
        store.alerts(_ALERTS),
    )
    async with aclosing(store.vouchers(limit=_VOUCHERS)) as found:
        return Learned(ever, of_today, [voucher async for voucher in found], alerts)


async def _ask_mongodb() -> _Names:
    await store.ping()
    seen, learned = _seen(), _learned.answer
    products = {one.product_id for one in seen.bestsellers} | {sale.product_id for sale in seen.latest}
    products |= {one["product_id"] for one in (*learned.ever, *learned.today, *learned.alerts)}
    customers = {sale.customer_id for sale in seen.latest}
    customers |= {voucher["customer_id"] for voucher in learned.vouchers}
    return _Names(
        _named(await store.documents("products", products), "name"),
        _named(await store.documents("customers", customers), "first_name", "last_name"),
    )


def _named(documents: Mapping[str, Mapping[str, Any]], *fields: str) -> dict[str, str]:
    return {key: " ".join(str(found.get(name, "")) for name in fields).strip() for key, found in documents.items()}


def _seen() -> Snapshot:
    return merged(worker.report.board for worker in _workers.answer if worker.report)


_standing = Standing()
_trend: deque[Waiting] = deque(maxlen=_TREND)
_workers: Kept[list[WorkerState]] = Kept(_ask_workers, _BOARDS_SECONDS, [])
_log: Kept[_Log] = Kept(_ask_kafka, _SERVERS_SECONDS, _Log())
_learned: Kept[Learned] = Kept(_ask_learned, _LEARNED_SECONDS, Learned(), rest=_REST)
_names: Kept[_Names] = Kept(_ask_mongodb, _SERVERS_SECONDS, _Names())


async def sales() -> Snapshot:
    """What was sold in the last minutes, by all workers."""
    await _workers.get(peers.SECONDS + 1)
    return _seen()


async def condition() -> Condition:
    """The shop as it is now. Takes at most some seconds, whoever does not answer."""
    seen = await sales()
    log, names, learned = await asyncio.gather(_log.get(), _names.get(), _learned.get())
    return Condition(
        at=time.time(),
        workers=_workers.answer,
        board=seen,
        topics=tuple(topics.KEYS),
        partitions=config.topics.partitions,
        spans=log.spans,
        trend=_recent(_trend),
        kafka=_log.failure,
        mongodb=_names.failure,
        letters=log.letters,
        dead=log.dead,
        products=names.products,
        customers=names.customers,
        learned=learned,
    )


def _recent(trend: Iterable[Waiting]) -> list[Waiting]:
    """Nothing is measured while nobody looks: what was before such a pause tells no trend."""
    found: list[Waiting] = []
    for one in trend:
        if found and one.at - found[-1].at > 3 * (_SERVERS_SECONDS + _MOST_SECONDS):
            found.clear()
        found.append(one)
    return found
