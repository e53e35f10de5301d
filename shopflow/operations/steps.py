"""The steps of a purchase through the shop, made from records and documents. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from faust_batches import TOTALS_KEY, Position, position_of
from shopflow.errors import Rejected
from shopflow.kafka.offsets import Span
from shopflow.models import Purchase
from shopflow.shop.counts import decode_count, decode_totals
from shopflow.shop.decoding import Decoder
from shopflow.shop.prices import prices_in
from shopflow.shop.text import day, day_and_time, gift, grouped, money, visible
from shopflow.store.types import BEGINNING, REMOVED, Document, PriceHistory

from .letters import Letter, is_of_sender, time_of

_LONG = 200
#: Repeats that are named.
_SHOWN = 20

_decode = Decoder(Purchase, "customer_id", 0).of_any_size


class Step(msgspec.Struct, kw_only=True):
    """A thing that happened to the purchase.

    Arguments:
        time: When, by the clock of the program that wrote it: a producer, a broker or a worker.
        seconds: Since the step before that has a time. Clocks differ, so it may be negative.
        known: False: it can't be known, and the text says why.
        facts: The numbers of the text.
        letter: The id of the dead letter that the step is about.
    """

    name: str
    text: str
    time: datetime | None = None
    seconds: float | None = None
    known: bool = True
    facts: dict[str, Any] = {}
    letter: str = ""


def unknown(name: str, why: str) -> Step:
    return Step(name=name, text=f"not known: {why}", known=False)


def measure(steps: Sequence[Step]) -> None:
    """Set the seconds of each step."""
    before: datetime | None = None
    for step in steps:
        if step.time is not None:
            step.seconds = None if before is None else (step.time - before).total_seconds()
            before = step.time


# -- records


def names(value: bytes | None, purchase_id: str) -> bool:
    """True if a record's value is of this purchase. Of a value that is no JSON: if the id is in it."""
    if not value or not (purchase_id.encode() in value or b"\\u" in value):
        return False
    try:
        sent = msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return purchase_id.encode() in value
    return isinstance(sent, dict) and sent.get("purchase_id") == purchase_id


def source_in(document: Document) -> Document | None:
    """The document's `source`; None if it does not name a record, as in a document that came past Kafka."""
    source = document.get("source")
    if not isinstance(source, dict) or source.get("origin") not in {"kafka", REMOVED}:
        return None
    kinds = {"topic": str, "partition": int, "offset": int}
    return source if all(isinstance(source.get(name), kind) for name, kind in kinds.items()) else None


def event_of(record: Any, purchase_id: str) -> Purchase | None:
    """The purchase in a record; None if there is none, or another."""
    try:
        event = None if record is None else _decode(record.key, record.value)
    except Rejected:
        return None
    return event if event is not None and event.purchase_id == purchase_id else None


def position_in(record: Any) -> Position:
    """The position in a record of a changelog; a value of another program is before all."""
    try:
        return position_of(record.value)
    except (msgspec.MsgspecError, TypeError):
        return Position(-1, -1)


def last_priced(record: Any) -> int:
    """The last offset that a record of the price log has a price for."""
    return max((offset for offset, _ in prices_in(record)), default=-1)


# -- the steps, in their order


def bought(found: Mapping[str, Any]) -> Step:
    """The purchase by its own words: of the event or of the document."""
    customer, product = (visible(str(found.get(name, "-")), _LONG) for name in ("customer_id", "product_id"))
    at = found.get("purchased_at")
    text = f"customer {customer} bought {grouped(found.get('quantity'))} of {product}; the time is the event's"
    return Step(name="bought", text=text, time=at if isinstance(at, datetime) else None)


def in_kafka(source: Document, span: Span, record: Any, purchase_id: str) -> Step:
    """The record of the purchase."""
    at = f"offset {source['offset']} of {source['topic']}[{source['partition']}]"
    facts = {name: source[name] for name in ("topic", "partition", "offset")}
    if record is None:
        why = "retention removed it" if source["offset"] < span.start else "Kafka has no record there"
        return Step(name="in Kafka", text=f"{at}; its time is not known: {why}", known=False, facts=facts)
    if not names(record.value, purchase_id):
        return Step(
            name="in Kafka", text=f"{at}, where Kafka has another record now: the topic was made anew", known=False
        )
    clock = "the broker's" if record.timestamp_type == 1 else "the producer's"
    text = f"{at}, {grouped(len(record.value or b''))} bytes; the time is {clock}"
    if event_of(record, purchase_id) is None:
        text += "; it is no valid purchase"
    for name, value in record.headers:
        if is_of_sender(name):
            facts[name] = (value or b"").decode("utf-8", "replace")
            text += f"; {visible(f'{name} {facts[name]}', _LONG)}"
    return Step(name="in Kafka", text=text, time=time_of(record), facts=facts)


def price(
    document: Document, event: Purchase | None, logged: tuple[Any, int] | None, history: PriceHistory | None
) -> Step:
    """The price of a unit, and where it came from.

    Arguments:
        event: None: Kafka no longer has it.
        logged: The record of the price log with the decided price, and that price.
        history: The product's prices.
    """
    paid, at = document.get("price"), document.get("purchased_at")
    facts = {"price": paid}
    if event is not None and event.price is not None:
        return Step(name="price", text=f"{money(paid)} a unit, from the event", facts={**facts, "from": "event"})
    text = f"{money(paid)} a unit, the product's price at that time"
    if history is not None and isinstance(at, datetime):
        since = max((since for since, _ in history.prices if since <= at), default=BEGINNING)
        if history.at(at) != paid:
            text += f"; by now the product's history says {money(history.at(at))} for it"
        elif since > BEGINNING:
            text += f", in force since {day_and_time(since)}"
    if logged is not None:
        text += "; a worker decided it and published it"
        return Step(name="price", text=text, time=time_of(logged[0]), facts={**facts, "from": "price in force"})
    if event is not None:
        return Step(name="price", text=f"{text}; the price log no longer has it", facts=facts, known=False)
    return Step(name="price", text=f"{money(paid)} a unit; where it came from is not known", facts=facts, known=False)


def in_mongodb(document: Document) -> Step:
    at = visible(str(document["_id"]), _LONG)
    text = f"purchases/{at}, value {money(document.get('value'))}; MongoDB keeps no time of writing"
    return Step(name="document", text=text, facts={"value": document.get("value")})


@dataclass
class Rows:
    """Finds the rows of the changelog that count the purchase at an offset.

    Arguments:
        key: The customer's.
        era: Of the present counts.
    """

    key: bytes
    offset: int
    era: int
    time: datetime | None = None  #: of the count, by the worker's clock
    counted: bool = False
    row: Any = None
    batch: tuple[int, int] | None = None  #: its first and last offset
    _row_at: datetime | None = None
    _before: int | None = None  #: the last offset of the batch before
    _from_start: bool = True  #: every record of the changelog was taken
    _next: int = 0  #: the offset in the changelog

    def take(self, record: Any) -> bool:
        """Take the next record. Returns True if no further one is needed."""
        if record.offset != self._next:  # compaction has removed rows: the end of the batch before may be among them
            self._before, self._from_start = None, False
        self._next = record.offset + 1
        if position_in(record).era != self.era:
            return False
        if record.key == TOTALS_KEY:
            return self._take_totals(record)
        if record.key == self.key and self.row is None and position_in(record).offset >= self.offset:
            self.row, self._row_at = decode_count(record.value), time_of(record)
        return False

    def _take_totals(self, record: Any) -> bool:
        totals = decode_totals(record.value)
        if totals.offset < self.offset:
            self._before = totals.offset
            return False
        self.counted = True
        if totals.settled >= self.offset and (self._before is not None or self._from_start):
            self.batch = (totals.first if self._before is None else self._before + 1, totals.settled)
        if self.row is not None and (self.batch or self.row.offset == self.offset):
            self.time = self._row_at
        return True

    def batch_step(self) -> Step:
        if not self.counted:
            return Step(name="batch", text="it is not finished yet")
        if self.batch is None:
            return unknown("batch", "compaction removed the changelog's rows of that time")
        first, last = self.batch
        text = f"offsets {first} to {last} were handled as one batch" if last > first else "it was a batch by itself"
        return Step(name="batch", text=text, facts={"first": first, "last": last})

    def count_step(self, document: Document, before: tuple[int, int, int]) -> Step:
        """The customer's counts before and after the purchase.

        Arguments:
            before: The sums of the customer's documents with smaller offsets: purchases, items, spent.
        """
        if not self.counted:
            return Step(name="count", text="not counted yet")
        this = (1, document.get("quantity") or 0, document.get("value") or 0)
        after = tuple(was + more for was, more in zip(before, this, strict=True))
        how = "computed from the documents, as the changelog's row "
        if self.row is not None and self.row.offset == self.offset:
            after = self.row.purchases, self.row.items, self.row.spent
            before = (after[0] - this[0], after[1] - this[1], after[2] - this[2])
            how = "from the changelog"
        elif self.row is None:
            how += "was compacted away"
        else:
            how += "counts later purchases, too"
        keys = ("purchases", "items", "spent")
        texts = [f"{name} {grouped(was)} → {grouped(now)}" for name, was, now in zip(keys, before, after, strict=True)][
            :2
        ]
        texts.append(f"spent {money(before[2])} → {money(after[2])}")
        facts = {"before": dict(zip(keys, before, strict=True)), "after": dict(zip(keys, after, strict=True))}
        return Step(name="count", text=f"{', '.join(texts)}; {how}", time=self.time, facts=facts)


def committed(span: Span, offset: int) -> Step:
    if span.done > offset:
        return Step(name="committed", text=f"the group's committed offset is {span.done}")
    return Step(name="committed", text=f"not yet: the group's committed offset is {span.done}")


def sales(starts: Mapping[str, datetime], rows: Mapping[str, Document | None], reached: int, offset: int) -> Step:
    """The rows of `sales` that the purchase falls in.

    Arguments:
        reached: The offset up to which `sales` is complete in this partition.
    """
    texts, facts = [], {}
    for period, start in starts.items():
        row = rows[period]
        shown = f"{start:%Y-%m-%d %H}:00 UTC" if period == "hour" else f"{start:%Y-%m-%d}"
        sums = "no row" if row is None else f"{grouped(row.get('units'))} units, {money(row.get('revenue'))} so far"
        texts.append(f"{period} {shown}: {sums}")
        facts[period] = start
    if reached < offset:
        texts.append("this purchase is not in them yet")
    return Step(name="sales", text="; ".join(texts), facts=facts)


def voucher(document: Document, at: datetime | None) -> Step:
    """A voucher that the purchase earned.

    Arguments:
        at: When it was published; None: not found.
    """
    rule = visible(str(document.get("rule", "-")), _LONG)
    text = f"rule {rule}: {visible(gift(document), _LONG)}, until {day(document.get('valid_until'))}"
    text += "; published" if at is not None else "; when it was published is not known"
    return Step(name="voucher", text=text, time=at, facts={"voucher_id": document["_id"]})


def alert(document: Document | None) -> Step:
    """The stock alert after the purchase. No alert names a purchase."""
    if document is None:
        return Step(name="alerts", text="no stock alert of its product followed")
    left, stock = grouped(document.get("left")), grouped(document.get("stock"))
    text = f"the next stock alert of its product, which names no purchase: {left} left of {stock}"
    return Step(name="alert", text=text, time=document["at"], facts={"alert_id": document["_id"]})


def repeats(found: Sequence[int], start: int, end: int, last: int) -> Step:
    """The same purchase at later offsets.

    Arguments:
        start, end: The offsets that were searched.
        last: The partition's end.
    """
    searched = f"offsets {start} to {end - 1} were searched" if start < end else "no later record"
    rest = f", not those from {end} to {last - 1}" if end < last else ""
    if not found:
        return Step(name="repeats", text=f"none ({searched}{rest})", facts={"offsets": []})
    at = ", ".join(map(str, found[:_SHOWN])) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    text = f"sent again at offset {at}: counted once all the same ({searched}{rest})"
    return Step(name="repeats", text=text, facts={"offsets": list(found)})


def rejected(letter: Letter) -> Step:
    text = f"dead letter {letter.id}: {visible(letter.reason, _LONG) or 'no reason given'}"
    if letter.topic:
        text += f"; it was offset {letter.offset} of {visible(letter.topic)}[{letter.partition}]"
    return Step(name="rejected", text=text, time=letter.time, letter=str(letter.id), facts={"reason": letter.reason})
