"""Follows one purchase: what Kafka and MongoDB have of it, step by step.

A step that can't be known says so, and why. Single records and small parts of the topics are read, never a whole topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from shopflow.errors import Unavailable
from shopflow.kafka import offsets, reading
from shopflow.kafka.offsets import Span
from shopflow.kafka.security import Bootstrap
from shopflow.models import MAX_ID_LENGTH
from shopflow.shop.announcements import VOUCHERS
from shopflow.shop.layout import Layout
from shopflow.shop.prices import prices_in
from shopflow.shop.text import clock, grouped, later, visible
from shopflow.store import MongoStore
from shopflow.store.rules import sale_id
from shopflow.store.types import PURCHASES, REMOVED, SALES, Document

from . import letters, steps
from .letters import Letter, Mark, time_of
from .steps import Rows, Step

#: The rows that a batch has in the changelog are in no order. These are more.
_BATCH_ROWS = 10_000
#: Dead letters and records of one id that are shown. A producer may send an id for ever.
_MOST = 20
#: The clocks of workers may differ by so much.
_CLOCKS = timedelta(seconds=5)


class Trace(msgspec.Struct):
    """A purchase and its steps.

    Attributes:
        state: `stored`, `direct` (written past Kafka), `waiting`, `rejected`, `lost` (handled, not found), `unknown`.
        verdict: The state in a sentence without a full stop.
        searched: What was read to find it.
    """

    purchase_id: str
    state: str = "unknown"
    verdict: str = ""
    customer_id: str = ""
    product_id: str = ""
    steps: list[Step] = []
    searched: list[str] = []


@dataclass
class Tracer:
    """Follows purchases.

    Arguments:
        search: How many records of a partition are searched at most for those of an id.
    """

    bootstrap: Bootstrap
    store: MongoStore
    shop: Layout
    search: int

    async def trace(self, purchase_id: str) -> Trace:
        """All that is known of this purchase.

        Raises:
            Unavailable: MongoDB does not answer; or Kafka does not, and the purchase is not stored.
        """
        found = Trace(purchase_id)
        if not 0 < len(purchase_id) <= MAX_ID_LENGTH:
            found.verdict = f"A purchase's id has 1 to {MAX_ID_LENGTH} characters"
            return found
        document = await self._document(purchase_id) or await self._search(found)
        if document is not None:
            await self._stored(found, document)
        steps.measure(found.steps)
        return found

    async def _document(self, purchase_id: str) -> Document | None:
        return (await self.store.documents(PURCHASES, [purchase_id])).get(purchase_id)

    # -- stored

    async def _stored(self, found: Trace, document: Document) -> None:
        found.customer_id, found.product_id = (str(document.get(name, "")) for name in ("customer_id", "product_id"))
        source = steps.source_in(document)
        found.state, found.verdict, found.steps = "stored", "It is stored once", [steps.bought(document)]
        if source is None:
            found.state, found.verdict = "direct", "It was written to MongoDB past Kafka, so no count has it"
            found.steps.append(steps.in_mongodb(document))
            return
        if source["origin"] == REMOVED:
            found.verdict = "It is stored, but no count has it: it is set apart, as Kafka no longer has its event"
        try:
            await self._from_kafka(found, document, source)
        except Unavailable as error:
            found.steps += [steps.in_mongodb(document), steps.unknown("the rest", str(error))]

    async def _from_kafka(self, found: Trace, document: Document, source: Document) -> None:
        topic, partition, offset = (source[name] for name in ("topic", "partition", "offset"))
        span = (await offsets.spans(self.bootstrap, self.shop.group, [topic])).get(topic, {}).get(partition)
        if span is None or topic != self.shop.purchases:
            why = f"it came from offset {offset} of {topic}[{partition}], which this shop does not read"
            found.steps += [steps.in_mongodb(document), steps.unknown("in Kafka", why)]
            return
        record = await self._record(topic, partition, offset)
        event = steps.event_of(record, found.purchase_id)
        rows = await self._rows(partition, found.customer_id, offset)
        before = await self.store.bought_before(found.customer_id, source)
        since = rows.time or (time_of(record) if event else None)
        found.steps += [
            *await self._letters(found, [partition], source),
            steps.in_kafka(source, span, record, found.purchase_id),
            rows.batch_step(),
            await self._price(document, event, source),
            steps.in_mongodb(document),
            rows.count_step(document, before),
            *await self._vouchers(source, since),
            await self._alert(document, since),
            await self._sales(document, source),
            steps.committed(span, offset),
            await self._repeats(found.purchase_id, source, span),
        ]
        if source["origin"] != REMOVED:
            found.verdict += " and counted once" if rows.counted else ", and not counted yet"

    async def _record(self, topic: str, partition: int, offset: int) -> Any:
        """The record at this offset, or the changelog's last one if negative; None if there is none."""
        end = offset + 1 if offset >= 0 else None
        async with reading.runs(self.bootstrap, topic, partition, start=offset, end=end) as runs:
            found = [record async for run in runs for record in run]
        return found[0] if found else None

    async def _rows(self, partition: int, customer_id: str, offset: int) -> Rows:
        """What the changelog of the counts has of the purchase at this offset."""
        last = await self._record(self.shop.changelog, partition, -1)
        rows = Rows(customer_id.encode(), offset, steps.position_in(last).era if last else 0)
        wanted = (rows.era, offset)

        def reached(record: Any) -> bool:
            position = steps.position_in(record)
            return (position.era, position.offset) >= wanted

        async with reading.around(
            self.bootstrap, self.shop.changelog, partition, reached, before=_BATCH_ROWS
        ) as records:
            async for record in records:
                if rows.take(record):
                    break
        return rows

    async def _price(self, document: Document, event: Any, source: Document) -> Step:
        offset, logged = source["offset"], None
        if event is None or event.price is None:
            async with reading.around(
                self.bootstrap, self.shop.prices, source["partition"],
                lambda record: steps.last_priced(record) >= offset, before=0,
            ) as records:  # fmt: skip
                async for record in records:
                    prices = dict(prices_in(record))
                    if offset in prices:
                        logged = record, prices[offset]
                    if logged or min(prices, default=-1) > offset:
                        break
        product_id = str(document.get("product_id"))
        histories = await self.store.price_history([product_id])
        return steps.price(document, event, logged, histories.get(product_id))

    async def _sales(self, document: Document, source: Document) -> Step:
        at = document.get("purchased_at")
        if not isinstance(at, datetime):
            return steps.unknown("sales", "the document has no time")
        hour = at.replace(minute=0, second=0, microsecond=0)
        starts = {"hour": hour, "day": hour.replace(hour=0)}
        ids = {period: sale_id(period, start, str(document.get("product_id"))) for period, start in starts.items()}
        rows = await self.store.documents(SALES, list(ids.values()))
        _, reached = await self.store.sales_position(source["partition"])
        return steps.sales(starts, {period: rows.get(name) for period, name in ids.items()}, reached, source["offset"])

    async def _vouchers(self, source: Document, since: datetime | None) -> list[Step]:
        offset = source["offset"]
        given = await self.store.vouchers_from(source["topic"], source["partition"], offset, offset + 1)
        if not given:
            return [Step(name="vouchers", text="none was earned by it")]
        times: dict[str, datetime] = {}
        if since is not None:
            begin, topic, read = int((since - _CLOCKS).timestamp() * 1000), self.shop.vouchers, 0
            async with reading.runs(self.bootstrap, topic, source["partition"], since=begin) as runs:
                async for run in runs:
                    for record in run:
                        times |= {one["_id"]: time_of(record) for one in VOUCHERS.documents([record])}
                    read += len(run)
                    if read >= self.search or all(one["_id"] in times for one in given):
                        break
        return [steps.voucher(one, times.get(one["_id"])) for one in given]

    async def _alert(self, document: Document, since: datetime | None) -> Step:
        if since is None:
            return steps.unknown("alerts", "the time of the purchase in Kafka is not known")
        return steps.alert(await self.store.alert_since(str(document.get("product_id")), since - _CLOCKS))

    async def _repeats(self, purchase_id: str, source: Document, span: Span) -> Step:
        start = max(source["offset"] + 1, span.start)
        end = min(start + self.search, span.end)
        found = self._naming(purchase_id, source["topic"], source["partition"], start, end)
        async with aclosing(found) as records:
            return steps.repeats([record.offset async for record in records], start, end, span.end)

    # -- not stored

    async def _search(self, found: Trace) -> Document | None:
        """Look for it in the dead letters and in the topic. Returns its document, if it was stored meanwhile."""
        topic = self.shop.purchases
        partitions = (await offsets.spans(self.bootstrap, self.shop.group, [topic])).get(topic, {})
        found.steps = await self._letters(found, partitions)
        waiting: list[tuple[Any, Span]] = []
        handled: deque[tuple[Any, Span]] = deque(maxlen=_MOST)
        for number, span in partitions.items():
            start, end = max(span.start, span.done - self.search), min(span.end, span.done + self.search)
            async with aclosing(self._naming(found.purchase_id, topic, number, start, end)) as records:
                async for record in records:
                    if record.offset < span.done:
                        handled.append((record, span))
                    elif len(waiting) < _MOST:
                        waiting.append((record, span))
        found.searched.append(
            f"{topic}: in each partition the last {self.search} handled records, and the first {self.search} that wait"
        )
        if (document := await self._document(found.purchase_id)) is not None:
            return document
        for record, span in [*handled, *waiting]:
            event = steps.event_of(record, found.purchase_id)
            if event is not None:
                found.customer_id, found.product_id = event.customer_id, event.product_id
                found.steps.insert(0, steps.bought(msgspec.structs.asdict(event)))
            source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
            found.steps.append(steps.in_kafka(source, span, record, found.purchase_id))
        _judge(found, handled, waiting)
        return None

    async def _letters(self, found: Trace, partitions: Iterable[int], stored: Document | None = None) -> list[Step]:
        """The dead letters of the purchase among the last ones, and what became of their retries."""
        topic, made = self.shop.dead_letters, list[Step]()
        spans = (await offsets.spans(self.bootstrap, self.shop.group, [topic])).get(topic, {})
        for number in sorted(set(partitions) & spans.keys()):
            span = spans[number]
            start, latest = max(span.start, span.end - self.search), deque[Letter](maxlen=_MOST)
            async with aclosing(self._naming(found.purchase_id, topic, number, start, span.end)) as records:
                async for record in records:
                    latest.append(Letter.of(record))
            for letter in latest:
                made.append(steps.rejected(letter))
                mark = await letters.mark_of(self.bootstrap, self.shop, letter.id)
                made += [] if mark is None else [await self._retried(letter, mark, stored)]
        found.searched.append(f"{topic}: the last {self.search} records of each partition that may have it")
        return made

    async def _retried(self, letter: Letter, retry: tuple[datetime, Mark], stored: Document | None) -> Step:
        mark = retry[1]
        when: datetime | None = retry[0]
        text = f"dead letter {letter.id} became offset {mark.offset} of {mark.topic}[{mark.partition}]"
        if stored and (stored["partition"], stored["offset"]) == (mark.partition, mark.offset):
            when = None  # the record, which comes next, has its own
            text += ", which is stored"
        else:
            became = await letters.became(
                self.bootstrap, self.store, self.shop, letter, retry=retry, search=self.search
            )
            text += f": {became.text}"
        facts = {"topic": mark.topic, "partition": mark.partition, "offset": mark.offset}
        return Step(name="retried", text=text, time=when, facts=facts, letter=str(letter.id))

    async def _naming(
        self, purchase_id: str, topic: str, partition: int, start: int, end: int
    ) -> AsyncGenerator[Any, None]:
        """The records with these offsets whose value is of this purchase."""
        if start < end:
            async with reading.runs(self.bootstrap, topic, partition, start=start, end=end) as runs:
                async for run in runs:
                    for record in run:
                        if steps.names(record.value, purchase_id):
                            yield record


def lines_of(found: Trace) -> Iterator[str]:
    """The state, and a line for each step with its time and the seconds since the one before."""
    yield f"Purchase {visible(found.purchase_id)}: {visible(found.verdict)}."
    for step in found.steps:
        time = clock(step.time) if step.time else ""
        seconds = "" if step.seconds is None else later(step.seconds)
        yield f"{step.name:<10} {time:<23} {seconds:>12}  {step.text}"
    yield from (f"Searched: {text}." for text in found.searched)


def _judge(found: Trace, handled: Collection[Any], waiting: list[tuple[Any, Span]]) -> None:
    """Set the state of a purchase that is not stored."""
    rejected = [step for step in found.steps if step.letter]
    if waiting:
        record, span = waiting[0]
        before = record.offset - span.done
        found.state = "waiting"
        ahead = "it is the next one" if not before else f"{grouped(before)} offsets of its partition come before it"
        found.verdict = f"It waits in Kafka, at offset {record.offset} of {record.topic}[{record.partition}]: {ahead}"
    elif rejected:
        found.state = "rejected"
        found.verdict = f"It was rejected: {rejected[-1].text}"
    elif handled:
        found.state = "lost"
        found.verdict = (
            "The workers have handled it, but it is neither stored nor in the dead letters that were searched"
        )
        found.searched.append("`faust -A shopflow verify --deep` compares every event with its document")
    else:
        found.verdict = "It is not known: it is neither in MongoDB nor in what was searched"
