"""`verify --deep`: checks that each event is in MongoDB as it was sent, or a dead letter, and that nothing else is.

It compares only events that the group has committed. It keeps few records in memory. For each topic it keeps a bit for
each offset (a document came from it), the deleted ids, and the ids whose document came from another record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any

from faust_batches import UnreadableRecord
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

#: The most comparisons of a topic, if events arrive meanwhile and a difference is found.
_ATTEMPTS = 3
#: Documents between two updates of the progress.
_STEP = 1_000

Advance = Callable[[int], None]
#: Makes a progress bar from a name and a total: a context manager that yields an `Advance`.
Bar = Callable[[str, int], AbstractContextManager[Advance]]


async def verify_deep(bootstrap: Bootstrap, store: MongoStore, shop: Layout, report: Report, bar: Bar) -> None:
    """Compare each event with its document, and each document with its event. Add the results to the report.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    sizes = await store.sizes()
    for collection in _KINDS:
        for attempt in range(1, 1 + _ATTEMPTS):
            spans = await offsets.spans(bootstrap, shop.group, (*shop.events, shop.dead_letters))
            comparison = _Comparison(collection, bootstrap, store, shop, spans)
            await comparison.read(bar, sizes[collection])
            if not comparison.wrong.count:
                break
            if any(span.held for span in spans.get(shop.dead_letters, {}).values()):
                comparison.unclear = "dead letters are held up by an open transaction, which may be the cause: "
                break
            again = await offsets.spans(bootstrap, shop.group, (*shop.events, shop.dead_letters))
            if not comparison.disturbed(again):
                break
            if attempt == _ATTEMPTS:
                comparison.unclear = "events arrived during the comparison, which may be the cause: "
        report.deep[collection] = comparison.numbers()
        report.add([comparison.check()])


class _Offsets:
    """Some of the committed offsets of a topic: a bit for each."""

    def __init__(self, spans: Mapping[int, Span]) -> None:
        self._spans = spans
        self._bits = {partition: bytearray((span.done - span.start + 7) // 8) for partition, span in spans.items()}

    def mark(self, partition: int, offset: int) -> None:
        byte, bit = self._at(partition, offset)
        self._bits[partition][byte] |= bit

    def has(self, partition: int, offset: int) -> bool:
        byte, bit = self._at(partition, offset)
        return bool(self._bits[partition][byte] & bit)

    def take(self, partition: int, offset: int) -> bool:
        """Remove the mark. True if there was one: of two documents with the same source only the first gets True."""
        byte, bit = self._at(partition, offset)
        marked = self.has(partition, offset)
        self._bits[partition][byte] &= ~bit
        return marked

    def _at(self, partition: int, offset: int) -> tuple[int, int]:
        number = offset - self._spans[partition].start
        return number >> 3, 1 << (number & 7)


class _Comparison:
    """Compares one topic with its collection, and holds the results."""

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
        self._source_offsets = _Offsets(self._spans)  # of the records whose documents were found
        #: The offset of the last deletion of each id, by key and partition.
        self._tombstones: dict[bytes, dict[int, int]] = {}
        #: Ids of records in the topic whose document came from another record.
        self._elsewhere: set[str] = set()
        #: How many records had which result.
        self._numbers: Counter[str] = Counter()
        #: How many documents came from records that retention removed, and how many from offsets without a record.
        self._older = self._gone = 0
        self._read = _Offsets(self._spans)  # the offsets of all records of the topic

    @property
    def _is_state(self) -> bool:
        """True for products and customers: the newest event counts, and a record without a value deletes."""
        return self.collection in TIME

    def disturbed(self, now: Mapping[str, Mapping[int, Span]]) -> bool:
        """True if later events may have caused a difference. A committed purchase never changes."""
        after = now.get(self._topic, {})
        if self._is_state:
            return after != self._spans
        return any(number not in after or after[number].done < span.done for number, span in self._spans.items())

    def _upto(self, span: Span) -> int:
        """The offset where reading ends. Uncommitted records may explain a document of a product or customer."""
        return span.end if self._is_state else span.done

    # -- reading

    async def read(self, bar: Bar, documents: int) -> None:
        """Read the dead letters, the topic, the collection."""
        for partition, span in self._dead_spans.items():
            async with reading.runs(
                self._bootstrap, self._dead_topic, partition, end=span.end, values=False
            ) as letters:
                async for run in letters:
                    self._read_dead_letters(run)
        if self._is_state:
            await self._each_run(self._read_tombstones, lambda _: None)
        total = sum(self._upto(span) - span.start for span in self._spans.values())
        with bar(f"{self.collection} in Kafka", total) as advance:
            await self._each_run(self._compare, advance)
        with bar(f"{self.collection} in MongoDB", documents) as advance:
            await self._check_sources(advance)

    async def _each_run(self, handle: Callable[[list[Any]], Awaitable[None]], advance: Advance) -> None:
        for partition, span in self._spans.items():
            done, end = span.start, self._upto(span)
            async with reading.runs(self._bootstrap, self._topic, partition, end=end, odd=True) as runs:
                async for run in runs:
                    await handle(run)
                    advance(run[-1].offset + 1 - done)
                    done = run[-1].offset + 1
            advance(end - done)  # offsets that are no records

    def _read_dead_letters(self, records: list[Any]) -> None:
        for topic, partition, offset in map(origin_of, records):
            if topic == self._topic:
                self._dead.add((partition, offset))

    async def _read_tombstones(self, records: list[Any]) -> None:
        for record in records:
            if not isinstance(record, UnreadableRecord) and record.value is None and record.key is not None:
                self._tombstones.setdefault(record.key, {})[record.partition] = record.offset

    async def _compare(self, records: list[Any]) -> None:
        committed = [record for record in records if record.offset < self._spans[record.partition].done]
        for record in committed:
            for offset in range(getattr(record, "start", record.offset), record.offset + 1):
                self._read.mark(record.partition, offset)
        for record in records[len(committed) :]:  # of products and customers only, see `_upto`
            key = record.rest.key if isinstance(record, UnreadableRecord) else record.key
            self._elsewhere.add((key or b"").decode("utf-8", "replace"))
        decoded: DecodedBatch[Any] = split(committed, self._decode, tombstones=self._is_state)
        for record, error in decoded.rejected:
            self._compare_rejected(record, str(error))
        made = [(record, event, self._name(event)) for record, event in decoded.accepted]
        names = {name for _, _, name in made} | {deletion.id for deletion in decoded.deletions}
        documents = await self._store.documents(self.collection, names)
        await self._look_up_prices(decoded.accepted)
        for record, event, name in made:
            self._compare_event(record, event, name, documents.get(name))
        for deletion in decoded.deletions:
            self._compare_deletion(deletion.id, deletion.source, documents.get(deletion.id))

    async def _look_up_prices(self, accepted: Sequence[tuple[Any, Any]]) -> None:
        """Look up the decided prices of those purchases that came without one."""
        self._given = {}
        unpriced = [record for record, event in accepted if self.collection == PURCHASES and event.price is None]
        if unpriced:
            first, end = unpriced[0], unpriced[-1].offset + 1
            self._given = await self._prices.prices(first.partition, first, end)
            self._prices.done(first.partition, end)

    def _name(self, event: Any) -> str:
        name: str = getattr(event, f"{self.collection.removesuffix('s')}_id")
        return name

    # -- comparing

    def _compare_rejected(self, record: Any, why: str) -> None:
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

    def _compare_event(self, record: Any, event: Any, name: str, stored: Document | None) -> None:
        mine = stored is not None and stored.get("source") == source_of(record)
        if mine:
            self._source_offsets.mark(record.partition, record.offset)
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
            self._compare_superseded(record, event, name, stored)
        elif stored is not None:
            self._numbers["repeated"] += 1
        else:
            self._add_missing(record, name)

    def _compare_superseded(self, record: Any, event: Any, name: str, stored: Document | None) -> None:
        """Compare an event whose document is missing or another event's. A deletion or a newer event explains that."""
        deletions = self._tombstones.get(name.encode(), {})  # between partitions there is no order
        if any(number != record.partition or offset > record.offset for number, offset in deletions.items()):
            self._numbers["superseded"] += 1
            return
        if stored is None:
            self._add_missing(record, name)
            return
        time = TIME[self.collection]
        sent, then = milliseconds(getattr(event, time)), stored.get(time)
        if isinstance(then, datetime) and then >= sent:
            self._numbers["superseded"] += 1
        else:
            self.wrong.add(f"{name} ({_at(record)}): older in MongoDB: {time} {as_text(then)}, sent {as_text(sent)}")

    def _add_missing(self, record: Any, name: str) -> None:
        if self._letters_are_gone(record):
            self._numbers["unknown"] += 1
        else:
            self.wrong.add(f"{name} ({_at(record)}): neither in MongoDB nor in the dead letters")

    def _compare_deletion(self, name: str, source: Document, stored: Document | None) -> None:
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

    async def _check_sources(self, advance: Advance) -> None:
        """Check that each document whose source is a record of Kafka is that record's."""
        done = 0
        async for name, source in self._store.sources(self.collection):
            self._check_source(name, source)
            done += 1
            if done % _STEP == 0:
                advance(_STEP)
        advance(done % _STEP)

    def _check_source(self, name: str, source: Document) -> None:
        partition, offset = source.get("partition"), source.get("offset")
        span = self._spans.get(partition) if source.get("topic") == self._topic and isinstance(partition, int) else None
        if span is None or not isinstance(partition, int) or not isinstance(offset, int) or offset >= span.end:
            self.wrong.add(f"{name}: not in the topic (its source is {as_text(source)})")
        elif offset < span.start:
            self._older += 1
        elif offset < span.done and not self._source_offsets.take(partition, offset) and name not in self._elsewhere:
            if self.collection == PURCHASES and not self._read.has(partition, offset):
                self._gone += 1
                return
            self.wrong.add(f"{name}: not in the topic at its partition {partition}, offset {offset}")

    # -- reporting

    def numbers(self) -> dict[str, int]:
        """How many records had which result, for the report."""
        became = ("stored", "repeated", "superseded", "dead_lettered", "deletions")
        return {
            **{name: self._numbers[name] for name in became},
            "wrong": self.wrong.count,
            "waiting": sum(max(0, span.high - span.done) for span in self._spans.values()),
            "removed": sum(span.start for span in self._spans.values()),
            "unknown": self._numbers["unknown"],
        }

    def check(self) -> Check:
        name = f"each of {self.collection}"
        if self.wrong.count:
            return Check(name, None if self.unclear else False, self.unclear + self.wrong.differ())
        if self._gone:
            return Check(
                name,
                None,
                f"{self._gone} documents have no record at their offset, though Kafka has earlier and later ones: it "
                f"compacted {self._topic} once, or the documents are wrong; which of the two can't be told any more",
            )
        return Check(name, True, "; ".join([self._summary(), *self._not_compared()]))

    def _summary(self) -> str:
        became = self._numbers
        if self._is_state:
            other = f"{became['superseded']} superseded by newer ones, {became['deletions']} deletions"
        else:
            other = f"{became['repeated']} sent again"
        return f"{became['stored']} stored as sent, {other}, {became['dead_lettered']} dead letters"

    def _not_compared(self) -> Iterator[str]:
        numbers = self.numbers()
        if removed := numbers["removed"]:
            yield f"{removed} offsets before them were removed from the topic, with {self._older} documents"
        if waiting := numbers["waiting"]:
            yield f"{waiting} offsets that are not committed were not compared"
        if unknown := numbers["unknown"]:
            yield f"{unknown} can't be compared, because their dead letters may have been removed"


#: Collection -> the decoder of its events, and the function that makes a document of a record and its event. Events
#: over `batching.max_event_bytes` are decoded, too; they have a dead letter. Products first: purchases take long.
_KINDS: dict[str, tuple[Decoder[Any], Callable[[Any, Any], Document]]] = {
    PRODUCTS: (Decoder(Product, "product_id", connection.MAX_MESSAGE_BYTES), product_document),
    CUSTOMERS: (Decoder(Customer, "customer_id", connection.MAX_MESSAGE_BYTES), customer_document),
    PURCHASES: (Decoder(Purchase, "customer_id", connection.MAX_MESSAGE_BYTES), purchase_document),
}


async def _sends_nothing(*record: Any) -> Any:
    raise AssertionError("verify publishes nothing")


def _at(record: Any) -> str:
    return f"partition {record.partition}, offset {record.offset}"
