"""`verify --deep`: checks that each event is in MongoDB as it was sent, or in the dead letters, and nothing else is.

Only events that the group has committed are judged. Few records are in memory at once: of a topic only which of its
offsets a document came from (a bit each), which ids were deleted, and which have a newer document than the record says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any

from shopflow.kafka import connection, offsets, reading
from shopflow.kafka.offsets import Span
from shopflow.kafka.security import Bootstrap
from shopflow.models import Customer, Product, Purchase
from shopflow.shop.dead_letters import origin_of
from shopflow.shop.decoding import DecodedBatch, Decoder, split
from shopflow.shop.documents import customer_document, product_document, purchase_document, source_of
from shopflow.shop.layout import Layout
from shopflow.shop.prices import PriceLog
from shopflow.store import MongoStore
from shopflow.store.rules import as_text, differences
from shopflow.store.types import CUSTOMERS, PRODUCTS, PURCHASES, TIME, Document, milliseconds

from .report import Check, FirstTen, Report

#: How often a topic is read when events arrive meanwhile and something seems wrong.
_ATTEMPTS = 3
#: Documents between two steps of the progress.
_STEP = 1_000

Advance = Callable[[int], None]
#: Makes a progress bar for so many of something: a context manager that yields an `Advance`.
Bar = Callable[[str, int], AbstractContextManager[Advance]]


async def verify_deep(bootstrap: Bootstrap, store: MongoStore, shop: Layout, report: Report, bar: Bar) -> None:
    """Compare each event with its document, and each document with its event; adds what was found to the report.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    sizes = await store.sizes()
    for collection in _KINDS:
        for attempt in range(1, 1 + _ATTEMPTS):
            spans = await offsets.spans(bootstrap, shop.group, (*shop.events, shop.dead_letters))
            facts = _Facts(collection, bootstrap, store, shop, spans)
            await facts.read(bar, sizes[collection])
            if not facts.wrong.count:
                break
            again = await offsets.spans(bootstrap, shop.group, (*shop.events, shop.dead_letters))
            if not facts.disturbed(again):
                break
            if attempt == _ATTEMPTS:
                facts.unclear = "events arrive while they are compared, and this may be why: "
        report.deep[collection] = facts.numbers()
        report.add([facts.check()])


class _Claims:
    """Which records of a topic a document came from: a bit for each judged offset."""

    def __init__(self, spans: Mapping[int, Span]) -> None:
        self._spans = spans
        self._bits = {partition: bytearray((span.done - span.start + 7) // 8) for partition, span in spans.items()}

    def mark(self, partition: int, offset: int) -> None:
        """Note that the document of this record was seen."""
        byte, bit = self._at(partition, offset)
        self._bits[partition][byte] |= bit

    def take(self, partition: int, offset: int) -> bool:
        """True if it was marked, and only once: of two documents with one source, one can't be the record's."""
        byte, bit = self._at(partition, offset)
        marked = bool(self._bits[partition][byte] & bit)
        self._bits[partition][byte] &= ~bit
        return marked

    def _at(self, partition: int, offset: int) -> tuple[int, int]:
        number = offset - self._spans[partition].start
        return number >> 3, 1 << (number & 7)


class _Facts:
    """One topic held against its collection, and what was found."""

    def __init__(
        self,
        collection: str,
        bootstrap: Bootstrap,
        store: MongoStore,
        shop: Layout,
        spans: Mapping[str, Mapping[int, Span]],
    ) -> None:
        self.collection = collection
        self.wrong = FirstTen()
        self.unclear = ""
        self._topic = {PRODUCTS: shop.products, CUSTOMERS: shop.customers, PURCHASES: shop.purchases}[collection]
        self._decode, self._document = _KINDS[collection]
        self._bootstrap = bootstrap
        self._store = store
        self._spans = spans[self._topic]
        self._dead_topic = shop.dead_letters
        self._dead_spans = spans.get(shop.dead_letters, {})
        self._dead: set[tuple[int, int]] = set()
        self._prices = PriceLog(shop.prices, _sends_nothing, partial(reading.read_since, bootstrap, values=True))
        self._given: dict[int, int] = {}
        self._claims = _Claims(self._spans)
        #: The offset of the last deletion of each id, by key and partition.
        self._tombstones: dict[bytes, dict[int, int]] = {}
        #: Ids that the topic has, though not with the record that their document came from.
        self._elsewhere: set[str] = set()
        #: How many records became what.
        self._numbers: Counter[str] = Counter()
        #: Documents of records that retention removed.
        self._older = 0

    @property
    def _is_state(self) -> bool:
        """True of products and customers: the newest event counts, and a record without a value deletes."""
        return self.collection in TIME

    def disturbed(self, now: Mapping[str, Mapping[int, Span]]) -> bool:
        """True if what happened since can make right look wrong. A purchase that is committed stays as it is."""
        after = now.get(self._topic, {})
        if self._is_state:
            return after != self._spans
        return any(number not in after or after[number].done < span.done for number, span in self._spans.items())

    def _upto(self, span: Span) -> int:
        """The offset where reading ends: records that are not judged may still explain a product or customer."""
        return span.end if self._is_state else span.done

    # -- reading

    async def read(self, bar: Bar, documents: int) -> None:
        """Read the dead letters, the topic, the collection."""
        for partition, span in self._dead_spans.items():
            async with reading.runs(
                self._bootstrap, self._dead_topic, partition, end=span.end, values=False
            ) as letters:
                async for run in letters:
                    self._take_dead(run)
        if self._is_state:
            await self._each_run(self._take_tombstones, lambda _: None)
        total = sum(self._upto(span) - span.start for span in self._spans.values())
        with bar(f"{self.collection} in Kafka", total) as advance:
            await self._each_run(self._take, advance)
        with bar(f"{self.collection} in MongoDB", documents) as advance:
            await self._documents(advance)

    async def _each_run(self, take: Callable[[list[Any]], Awaitable[None]], advance: Advance) -> None:
        for partition, span in self._spans.items():
            done, end = span.start, self._upto(span)
            async with reading.runs(self._bootstrap, self._topic, partition, end=end) as runs:
                async for run in runs:
                    await take(run)
                    advance(run[-1].offset + 1 - done)
                    done = run[-1].offset + 1
            advance(end - done)  # offsets that are no records

    def _take_dead(self, records: list[Any]) -> None:
        for topic, partition, offset in map(origin_of, records):
            if topic == self._topic:
                self._dead.add((partition, offset))

    async def _take_tombstones(self, records: list[Any]) -> None:
        for record in records:
            if record.value is None and record.key is not None:
                self._tombstones.setdefault(record.key, {})[record.partition] = record.offset

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
        """Look up the prices that were given to the purchases of a run that came without one."""
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
            self._numbers["dead_lettered"] += 1
        elif self._letters_are_gone(record):
            self._numbers["unknown"] += 1
        else:
            self.wrong.add(f"{_at(record)}: can't be accepted ({why}) and is not in the dead letters")

    def _letters_are_gone(self, record: Any) -> bool:
        """True if retention may have removed the record's dead letter."""
        span = self._dead_spans.get(record.partition % max(1, len(self._dead_spans)))
        return span is not None and span.start > 0

    def _judge(self, record: Any, event: Any, name: str, stored: Document | None) -> None:
        mine = stored is not None and stored.get("source") == source_of(record)
        if mine:
            self._claims.mark(record.partition, record.offset)
        elif self._is_state:
            self._elsewhere.add(name)
        if (record.partition, record.offset) in self._dead:
            self._numbers["dead_lettered"] += 1
            if mine:
                self.wrong.add(f"{name} ({_at(record)}): in the dead letters, and in MongoDB too")
        elif mine and stored is not None:
            self._numbers["stored"] += 1
            if differences := self._differences(record, event, stored):
                self.wrong.add(f"{name} ({_at(record)}): {', '.join(differences)}")
        elif self._is_state:
            self._judge_outdone(record, event, name, stored)
        elif stored is not None:
            self._numbers["repeated"] += 1
        else:
            self._judge_missing(record, name)

    def _judge_outdone(self, record: Any, event: Any, name: str, stored: Document | None) -> None:
        """Judge an event whose document is gone, or another event's: it was deleted since, or the other is newer."""
        deletions = self._tombstones.get(name.encode(), {})  # between partitions there is no order
        if any(number != record.partition or offset > record.offset for number, offset in deletions.items()):
            self._numbers["superseded"] += 1
            return
        if stored is None:
            self._judge_missing(record, name)
            return
        time = TIME[self.collection]
        sent, then = milliseconds(getattr(event, time)), stored.get(time)
        if isinstance(then, datetime) and then >= sent:
            self._numbers["superseded"] += 1
        else:
            self.wrong.add(f"{name} ({_at(record)}): older in MongoDB: {time} {as_text(then)}, sent {as_text(sent)}")

    def _judge_missing(self, record: Any, name: str) -> None:
        if self._letters_are_gone(record):
            self._numbers["unknown"] += 1
        else:
            self.wrong.add(f"{name} ({_at(record)}): neither in MongoDB nor in the dead letters")

    def _judge_deletion(self, name: str, source: Document, stored: Document | None) -> None:
        self._numbers["deletions"] += 1
        if stored is None or self._tombstones[name.encode()][source["partition"]] != source["offset"]:
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
                return [f"price: stored {as_text(price)}, must be a whole number, 0 or more"]
            event.price = price
        return differences(self._document(record, event), stored)

    async def _documents(self, advance: Advance) -> None:
        """Check that each document that names a record of Kafka as its source is that record's."""
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
            self.wrong.add(f"{name}: not in the topic (its source is {as_text(source)})")
        elif offset < span.start:
            self._older += 1
        elif offset < span.done and not self._claims.take(partition, offset) and name not in self._elsewhere:
            self.wrong.add(f"{name}: not in the topic at its partition {partition}, offset {offset}")

    # -- telling

    def numbers(self) -> dict[str, int]:
        """How many records became what, for the report."""
        became = ("stored", "repeated", "superseded", "dead_lettered", "deletions")
        return {
            **{name: self._numbers[name] for name in became},
            "wrong": self.wrong.count,
            "waiting": sum(max(0, span.end - span.done) for span in self._spans.values()),
            "removed": sum(span.start for span in self._spans.values()),
            "unknown": self._numbers["unknown"],
        }

    def check(self) -> Check:
        name = f"each of {self.collection}"
        if self.wrong.count:
            return Check(name, None if self.unclear else False, self.unclear + self.wrong.differ())
        return Check(name, True, "; ".join([self._summary(), *self._reservations()]))

    def _summary(self) -> str:
        became = self._numbers
        if self._is_state:
            other = f"{became['superseded']} outdone by newer ones, {became['deletions']} deletions"
        else:
            other = f"{became['repeated']} sent again"
        return f"{became['stored']} stored as sent, {other}, {became['dead_lettered']} dead letters"

    def _reservations(self) -> Iterator[str]:
        numbers = self.numbers()
        if removed := numbers["removed"]:
            yield f"{removed} offsets before them were removed from the topic, with {self._older} documents"
        if waiting := numbers["waiting"]:
            yield f"{waiting} offsets behind what is committed were not judged"
        if unknown := numbers["unknown"]:
            yield f"{unknown} can't be judged, as dead letters were removed from their topic"


#: By collection: how its events are decoded, of any size (one over `batching.max_event_bytes` is known by its dead
#: letter), and the document that a record and its event become. Products first: purchases are long.
_KINDS: dict[str, tuple[Decoder[Any], Callable[[Any, Any], Document]]] = {
    PRODUCTS: (Decoder(Product, "product_id", connection.MAX_MESSAGE_BYTES), product_document),
    CUSTOMERS: (Decoder(Customer, "customer_id", connection.MAX_MESSAGE_BYTES), customer_document),
    PURCHASES: (Decoder(Purchase, "customer_id", connection.MAX_MESSAGE_BYTES), purchase_document),
}


async def _sends_nothing(*record: Any) -> Any:
    raise AssertionError("a verification changes nothing")


def _at(record: Any) -> str:
    return f"partition {record.partition}, offset {record.offset}"
