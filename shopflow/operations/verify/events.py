"""`verify --deep`: is every event of the topics in MongoDB as it was sent, or in the dead letters, and nothing else?

Judged is what the group has committed. Few records are in memory at once: of a topic only which of its offsets a
document came from (a bit each), which ids were deleted, and which have a newer document than the record says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from shopflow.kafka import connection as kafka
from shopflow.kafka.connection import Span
from shopflow.kafka.security import Bootstrap
from shopflow.models import Customer, Product, Purchase
from shopflow.shop.dead_letters import ReadSince, origin_of
from shopflow.shop.decoding import DecodedBatch, Decoder, split
from shopflow.shop.documents import customer_document, product_document, purchase_document
from shopflow.shop.layout import Layout
from shopflow.shop.prices import PriceLog
from shopflow.store import MongoStore
from shopflow.store.rules import differences, shown
from shopflow.store.types import CUSTOMERS, PRODUCTS, PURCHASES, TIME, Document, milliseconds

from .report import Check, Named, Report

__all__ = ["Bar", "verify_deep"]

#: How often a topic is read when events arrive meanwhile and something seems wrong.
_ATTEMPTS = 3
#: Documents between two steps of the progress.
_STEP = 1_000

Advance = Callable[[int], None]
#: Shows progress: given what and how many, a context manager of what is called with how many more are done.
Bar = Callable[[str, int], AbstractContextManager[Advance]]


async def verify_deep(bootstrap: Bootstrap, store: MongoStore, shop: Layout, report: Report, bar: Bar) -> None:
    """Compare each event with its document, and each document with its event; adds what was found to the report.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    sizes = await store.sizes()
    for kind in _KINDS:
        for attempt in range(1, 1 + _ATTEMPTS):
            spans = await kafka.spans(bootstrap, shop.group, (*shop.events, shop.dead_letters))
            facts = _Facts(kind, store, shop, spans, partial(kafka.read_since, bootstrap, values=True))
            await facts.read(bootstrap, bar, sizes[facts.collection])
            if not facts.wrong.count:
                break
            again = await kafka.spans(bootstrap, shop.group, (*shop.events, shop.dead_letters))
            if not facts.disturbed(again):
                break
            if attempt == _ATTEMPTS:
                facts.unclear = "events arrive while they are compared, and this may be why: "
        report.deep[facts.collection] = facts.numbers()
        report.add([facts.check()])


class _Claims:
    """Which records of a topic a document came from: a bit for each judged offset."""

    def __init__(self, spans: Mapping[int, Span]) -> None:
        self._spans = spans
        self._bits = {partition: bytearray((span.done - span.start + 7) // 8) for partition, span in spans.items()}

    def mark(self, partition: int, offset: int) -> None:
        """The document of this record was seen."""
        place = offset - self._spans[partition].start
        self._bits[partition][place >> 3] |= 1 << (place & 7)

    def take(self, partition: int, offset: int) -> bool:
        """Was it marked? Only once: of two documents with one source, one can't be the record's."""
        place = offset - self._spans[partition].start
        bit = 1 << (place & 7)
        marked = bool(self._bits[partition][place >> 3] & bit)
        self._bits[partition][place >> 3] &= ~bit
        return marked


@dataclass
class _Tombstones:
    """Where each id of a topic was last deleted, by partition."""

    last: dict[bytes, dict[int, int]] = field(default_factory=dict)

    def take(self, records: Sequence[Any]) -> None:
        """A run of records; of the values only matters whether there is one."""
        for record in records:
            if record.value is None and record.key is not None:
                self.last.setdefault(record.key, {})[record.partition] = record.offset

    def end(self, name: str, record: Any) -> bool:
        """May the deletion of this id have ended this record? Between partitions there is no order."""
        places = self.last.get(name.encode(), {})
        return any(number != record.partition or offset > record.offset for number, offset in places.items())


class _Steps:
    """Progress by offsets: what is no record counts too."""

    def __init__(self, start: int, advance: Advance) -> None:
        self._place = start
        self._advance = advance

    def to(self, offset: int) -> None:
        """All before this offset is done."""
        if offset > self._place:
            self._advance(offset - self._place)
            self._place = offset


@dataclass(frozen=True)
class _Kind:
    """A kind of event.

    Attributes:
        collection: The collection's name, which is the topic's too, but for the prefix.
        decode: The events, of any size: one over `batching.max_event_bytes` is known by its dead letter.
        document: What a record and its event become.
    """

    collection: str
    decode: Decoder[Any]
    document: Callable[[Any, Any], Document]


class _Facts:
    """What was found of one topic and its collection.

    Arguments:
        read_prices: Reads the log of the prices given to purchases without one.
    """

    def __init__(
        self,
        kind: _Kind,
        store: MongoStore,
        shop: Layout,
        spans: Mapping[str, Mapping[int, Span]],
        read_prices: ReadSince,
    ) -> None:
        topics = {PRODUCTS: shop.products, CUSTOMERS: shop.customers, PURCHASES: shop.purchases}
        self.collection = kind.collection
        self.wrong = Named()
        self.unclear = ""
        self._topic, self._decode, self._document = topics[kind.collection], kind.decode, kind.document
        self._store = store
        self._spans = spans[self._topic]
        self._dead_topic = shop.dead_letters
        self._dead_spans = spans.get(shop.dead_letters, {})
        self._dead: set[tuple[int, int]] = set()
        self._prices = PriceLog(shop.prices, _sends_nothing, read_prices)
        self._given: dict[int, int] = {}
        self._claims = _Claims(self._spans)
        self._tombstones = _Tombstones()
        #: Ids that the topic has, though not with the record that their document came from.
        self._elsewhere: set[str] = set()
        self._stored = self._repeated = self._superseded = self._dead_lettered = self._deleted = 0
        self._unknown = self._older = 0

    @property
    def _is_state(self) -> bool:
        """Products and customers: the newest counts, and a record without a value deletes."""
        return self.collection in TIME

    def disturbed(self, now: Mapping[str, Mapping[int, Span]]) -> bool:
        """Did something happen that can make right look wrong? A purchase that is committed stays as it is."""
        after = now.get(self._topic, {})
        if self._is_state:
            return after != self._spans
        return any(number not in after or after[number].done < span.done for number, span in self._spans.items())

    def _upto(self, span: Span) -> int:
        """Where the reading ends: what was not judged yet may still explain a product or customer."""
        return span.end if self._is_state else span.done

    # -- reading

    async def read(self, bootstrap: Bootstrap, bar: Bar, documents: int) -> None:
        """The dead letters, the topic, the collection."""
        for partition, span in self._dead_spans.items():
            await kafka.each_run(
                bootstrap, self._dead_topic, partition, span.end, self._take_dead, value_deserializer=lambda _: None
            )
        if self._is_state:
            await self._each_record(bootstrap, self._take_tombstones, lambda _: None, value_deserializer=_is_there)
        offsets = sum(self._upto(span) - span.start for span in self._spans.values())
        with bar(f"{self.collection} in Kafka", offsets) as advance:
            await self._each_record(bootstrap, self._take, advance)
        with bar(f"{self.collection} in MongoDB", documents) as advance:
            await self._documents(advance)

    async def _each_record(
        self, bootstrap: Bootstrap, take: Callable[[list[Any]], Awaitable[None]], advance: Advance, **options: Any
    ) -> None:
        for partition, span in self._spans.items():
            step = _Steps(span.start, advance)

            async def handle(run: list[Any], step: _Steps = step) -> None:
                await take(run)
                step.to(run[-1].offset + 1 if run else 0)

            await kafka.each_run(bootstrap, self._topic, partition, self._upto(span), handle, **options)
            step.to(self._upto(span))

    async def _take_dead(self, records: list[Any]) -> None:
        for topic, partition, offset in map(origin_of, records):
            if topic == self._topic:
                self._dead.add((partition, offset))

    async def _take_tombstones(self, records: list[Any]) -> None:
        self._tombstones.take(records)

    async def _take(self, records: list[Any]) -> None:
        judged = [record for record in records if record.offset < self._spans[record.partition].done]
        for record in records[len(judged) :]:  # of products and customers only, see `_upto`
            self._elsewhere.add((record.key or b"").decode("utf-8", "replace"))
        parts: DecodedBatch[Any] = split(judged, self._decode, tombstones=self._is_state)
        for record, error in parts.rejected:
            self._judge_rejected(record, str(error))
        made = [(record, event, self._name(event)) for record, event in parts.accepted]
        names = {name for _, _, name in made} | {deletion.id for deletion in parts.deletions}
        documents = await self._store.documents(self.collection, names)
        await self._look_up_prices(parts.accepted)
        for record, event, name in made:
            self._judge(record, event, name, documents.get(name))
        for deletion in parts.deletions:
            self._judge_deletion(deletion.id, deletion.source, documents.get(deletion.id))

    async def _look_up_prices(self, accepted: Sequence[tuple[Any, Any]]) -> None:
        """The prices that were given to those of a run that have none."""
        self._given = {}
        unpriced = [record for record, event in accepted if self.collection == PURCHASES and event.price is None]
        if unpriced:
            first, end = unpriced[0], unpriced[-1].offset + 1
            self._given = await self._prices.prices(first.partition, first, end)
            self._prices.done(first.partition, end)

    def _name(self, event: Any) -> str:
        name: str = getattr(event, f"{self.collection.removesuffix('s')}_id")
        return name

    # -- judging

    def _judge_rejected(self, record: Any, why: str) -> None:
        if (record.partition, record.offset) in self._dead:
            self._dead_lettered += 1
        elif self._letters_are_gone(record):
            self._unknown += 1
        else:
            self.wrong.add(f"{_at(record)}: can't be accepted ({why}) and is not in the dead letters")

    def _letters_are_gone(self, record: Any) -> bool:
        """May the record's dead letter have been removed by retention?"""
        place = self._dead_spans.get(record.partition % max(1, len(self._dead_spans)))
        return place is not None and place.start > 0

    def _judge(self, record: Any, event: Any, name: str, stored: Document | None) -> None:
        source = None if stored is None else stored.get("source")
        mine = source == {"origin": "kafka", **_place(record)}
        if mine:
            self._claims.mark(record.partition, record.offset)
        elif self._is_state:
            self._elsewhere.add(name)
        if (record.partition, record.offset) in self._dead:
            self._dead_lettered += 1
            if mine:
                self.wrong.add(f"{name} ({_at(record)}): in the dead letters, and in MongoDB too")
        elif mine and stored is not None:
            self._stored += 1
            if differences := self._differences(record, event, stored):
                self.wrong.add(f"{name} ({_at(record)}): {', '.join(differences)}")
        elif self._is_state:
            self._judge_outdone(record, event, name, stored)
        elif stored is not None:
            self._repeated += 1
        else:
            self._judge_missing(record, name)

    def _judge_outdone(self, record: Any, event: Any, name: str, stored: Document | None) -> None:
        """The product or customer is gone, or another event's: then it was deleted since, or the other is newer."""
        if self._tombstones.end(name, record):
            self._superseded += 1
            return
        if stored is None:
            self._judge_missing(record, name)
            return
        time = TIME[self.collection]
        sent, then = milliseconds(getattr(event, time)), stored.get(time)
        if isinstance(then, datetime) and then >= sent:
            self._superseded += 1
        else:
            self.wrong.add(f"{name} ({_at(record)}): older in MongoDB: {time} {shown(then)}, sent {shown(sent)}")

    def _judge_missing(self, record: Any, name: str) -> None:
        if self._letters_are_gone(record):
            self._unknown += 1
        else:
            self.wrong.add(f"{name} ({_at(record)}): neither in MongoDB nor in the dead letters")

    def _judge_deletion(self, name: str, source: Document, stored: Document | None) -> None:
        self._deleted += 1
        if stored is None or self._tombstones.last[name.encode()][source["partition"]] != source["offset"]:
            return
        self._elsewhere.add(name)
        kept = stored.get("source") or {}
        same = (kept.get("topic"), kept.get("partition")) == (source["topic"], source["partition"])
        if same and isinstance(kept.get("offset"), int) and kept["offset"] < source["offset"]:
            self.wrong.add(
                f"{name} (partition {source['partition']}, offset {source['offset']}): deleted in Kafka only"
            )

    def _differences(self, record: Any, event: Any, stored: Document) -> list[str]:
        if self.collection == PURCHASES and event.price is None:
            price = self._given.get(record.offset, stored.get("price"))
            if type(price) is not int or price < 0:
                return [f"price: stored {shown(price)}, must be a whole number, 0 or more"]
            event.price = price
        return differences(self._document(record, event), stored)

    async def _documents(self, advance: Advance) -> None:
        """Each document that says it came from Kafka must be that of a record."""
        done = 0
        async for name, source in self._store.sources(self.collection):
            self._judge_source(name, source)
            done += 1
            if done % _STEP == 0:
                advance(_STEP)
        advance(done % _STEP)

    def _judge_source(self, name: str, source: Document) -> None:
        partition, offset = source.get("partition"), source.get("offset")
        span = self._spans.get(partition) if source.get("topic") == self._topic and isinstance(partition, int) else None
        if span is None or not isinstance(partition, int) or not isinstance(offset, int) or offset >= span.end:
            self.wrong.add(f"{name}: not in the topic (its source is {shown(source)})")
        elif offset < span.start:
            self._older += 1
        elif offset < span.done and not self._claims.take(partition, offset) and name not in self._elsewhere:
            self.wrong.add(f"{name}: not in the topic at its partition {partition}, offset {offset}")

    # -- saying

    def numbers(self) -> dict[str, int]:
        """How many records became what, for the report."""
        return {
            "stored": self._stored,
            "repeated": self._repeated,
            "superseded": self._superseded,
            "dead_lettered": self._dead_lettered,
            "deletions": self._deleted,
            "wrong": self.wrong.count,
            "waiting": sum(max(0, span.end - span.done) for span in self._spans.values()),
            "removed": sum(span.start for span in self._spans.values()),
            "unknown": self._unknown,
        }

    def check(self) -> Check:
        """The verdict."""
        name = f"each of {self.collection}"
        if self.wrong.count:
            detail = f"{self.unclear}{self.wrong.count} differ: {self.wrong.listed()}"
            return Check(name, None if self.unclear else False, detail)
        return Check(name, True, "; ".join([self._said(), *self._reservations()]))

    def _said(self) -> str:
        if self._is_state:
            other = f"{self._superseded} outdone by newer ones, {self._deleted} deletions"
        else:
            other = f"{self._repeated} sent again"
        return f"{self._stored} stored as sent, {other}, {self._dead_lettered} dead letters"

    def _reservations(self) -> list[str]:
        numbers = self.numbers()
        said = []
        if numbers["removed"]:
            said.append(
                f"{numbers['removed']} offsets before them were removed from the topic, with {self._older} documents"
            )
        if numbers["waiting"]:
            said.append(f"{numbers['waiting']} offsets behind what is committed were not judged")
        if self._unknown:
            said.append(f"{self._unknown} can't be judged, as dead letters were removed from their topic")
        return said


#: Products first: purchases are long.
_KINDS = (
    _Kind(PRODUCTS, Decoder(Product, "product_id", kafka.MAX_MESSAGE_BYTES), product_document),
    _Kind(CUSTOMERS, Decoder(Customer, "customer_id", kafka.MAX_MESSAGE_BYTES), customer_document),
    _Kind(PURCHASES, Decoder(Purchase, "customer_id", kafka.MAX_MESSAGE_BYTES), purchase_document),
)


async def _sends_nothing(*record: Any) -> Any:
    raise AssertionError("a verification changes nothing")


def _is_there(value: bytes | None) -> bytes | None:
    return None if value is None else b""


def _place(record: Any) -> Document:
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


def _at(record: Any) -> str:
    return f"partition {record.partition}, offset {record.offset}"
