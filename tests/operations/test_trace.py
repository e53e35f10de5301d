"""`trace`: what is told of a purchase, and what is said not to be known."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from shopflow.kafka import offsets, reading
from shopflow.kafka.offsets import Span
from shopflow.operations import letters, steps
from shopflow.operations.letters import Became, Id, Mark
from shopflow.operations.steps import Rows, Step
from shopflow.operations.trace import Trace, Tracer
from shopflow.shop.counts import advance
from shopflow.shop.text import later
from shopflow.store.types import PriceHistory
from tests.operations.test_letters import SHOP, dead, letter
from tests.support.events import purchase, record, unpriced
from tests.support.fakes import FakeRecord, FakeTopics, numbered

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
SOURCE = {"topic": "shop.purchases", "partition": 0, "offset": 7}
DOCUMENT = {"_id": "b-1", "quantity": 2, "price": 100, "value": 200, "purchased_at": NOON}


def changelog(*batches: list[tuple[int, str, int, int]], era: int = 0) -> list[FakeRecord]:
    """The changelog of the counts after these batches of purchases: offset, customer, items, spent."""
    table: dict[bytes, bytes] = {}
    records: list[FakeRecord] = []
    for batch in batches:
        rows = advance(table.get, batch, start=batch[0][0], end=batch[-1][0] + 1).rows()
        table |= rows
        records += [FakeRecord(key, value, timestamp=1_700_000_000_000 + len(records)) for key, value in rows]
    return numbered(records)


def taken(rows: Rows, records: list[FakeRecord]) -> Rows:
    for one in records:
        if rows.take(one):
            break
    return rows


THREE_BATCHES = (
    [(0, "anna", 1, 10), (1, "ola", 1, 10)],
    [(2, "anna", 2, 20), (3, "ola", 1, 10), (4, "anna", 3, 30)],
    [(5, "anna", 1, 10)],
)


def test_the_rows_have_the_batch_and_the_counts() -> None:
    """The last purchase of a customer in a batch has its exact counts in the changelog; so has no earlier one."""
    records = changelog(*THREE_BATCHES)
    last = taken(Rows(b"anna", 4, 0), records)
    assert (last.counted, last.batch, last.row.purchases, last.row.items) == (True, (2, 4), 3, 6)
    told = last.count_step({"quantity": 3, "value": 30}, (9, 9, 9))
    assert told.facts["before"] == {"purchases": 2, "items": 3, "spent": 30}
    assert (
        told.text
        == "purchases 2 → 3, items 3 → 6, spent 0,30\N{NO-BREAK SPACE}zł → 0,60\N{NO-BREAK SPACE}zł; from the changelog"
    )
    assert told.time is not None
    earlier = taken(Rows(b"anna", 2, 0), records).count_step({"quantity": 2, "value": 20}, (1, 1, 10))
    assert earlier.facts["after"] == {"purchases": 2, "items": 3, "spent": 30}
    assert earlier.text.endswith("computed from the documents, as the changelog's row counts later purchases, too")


def test_what_compaction_removed_is_not_known() -> None:
    """The batch is not guessed when rows are missing, and the counts come from the documents."""
    records = changelog(*THREE_BATCHES)
    kept = [row for number, row in enumerate(records) if row.key not in {one.key for one in records[number + 1 :]}]
    rows = taken(Rows(b"ola", 1, 0), kept)
    assert (rows.counted, rows.batch, rows.time) == (True, None, None)
    assert not rows.batch_step().known
    assert "compaction" in rows.batch_step().text
    assert rows.count_step({"quantity": 1, "value": 10}, (0, 0, 0)).facts["after"] == {
        "purchases": 1, "items": 1, "spent": 10,
    }  # fmt: skip


def test_what_no_batch_has_finished_is_not_counted() -> None:
    """A purchase behind the last totals, or of a replay that has not come so far, is not called counted."""
    rows = taken(Rows(b"anna", 6, 0), changelog(*THREE_BATCHES))
    assert (rows.batch_step().text, rows.count_step(DOCUMENT, (0, 0, 0)).text) == (
        "it is not finished yet",
        "not counted yet",
    )
    assert not taken(Rows(b"anna", 2, era=5), changelog(*THREE_BATCHES)).counted
    junk = [FakeRecord(b"anna", b"{", 0), FakeRecord(b"anna", None, 1), FakeRecord(None, b"[]", 2)]
    assert not taken(Rows(b"anna", 2, 0), junk).counted


@pytest.mark.parametrize("length", [0, 1, 2, 30, 257])
def test_a_place_in_a_partition_is_found_by_few_reads(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Reading begins `before` offsets ahead of the first record that has reached the number, holes or not."""
    records = [FakeRecord(b"", b"%d" % number, offset=number * 3 + 5) for number in range(length)]
    topics = FakeTopics(monkeypatch, lambda topic: [records])
    bootstrap: Any = "kafka:1"

    async def found(wanted: int, before: int) -> list[int]:
        around = reading.around(bootstrap, "t", 0, lambda row: int(row.value) >= wanted, before=before)
        async with around as places:
            return [int(row.value) async for row in places]

    for wanted in {0, 1, length // 2, length - 1, length, length + 5}:
        assert asyncio.run(found(wanted, 0)) == list(range(max(wanted, 0), length))
        assert asyncio.run(found(wanted, 3)) == list(range(max(min(wanted, length) - 1, 0), length))
    assert {read[1:] for read in topics.read} == {("t", 0)}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (b'{"purchase_id":"b-1"}', True),
        (b'{"purchase_id":"b-12"}', False),
        (b'{"other":"b-1","purchase_id":"x"}', False),
        (b'{"purchase_id":"\\u0062-1"}', True),
        (b'{"purchase_id":"b-1",', True),
        (b'["b-1"]', False),
        (b"\xffb-1", True),
        (None, False),
    ],
)
def test_a_record_is_found_by_its_id_and_not_by_another(value: bytes | None, named: bool) -> None:
    assert steps.names(value, "b-1") is named


def test_the_record_in_kafka_is_told_with_its_clock_and_its_trace() -> None:
    """What retention removed, and a topic that was made anew, are told instead of a time."""
    sent = record(purchase("b-1"), 7, headers=(("traceparent", b"00-ab\n"), ("other", b"x")))
    told = steps.in_kafka(SOURCE, Span(0, 8, 8), sent, "b-1")
    assert told.facts == {**SOURCE, "traceparent": "00-ab\n"}
    assert told.time == letters.time_of(sent)
    assert told.text.endswith("the time is the producer's; traceparent 00-ab\\n")
    gone = steps.in_kafka(SOURCE, Span(8, 8, 8), None, "b-1")
    assert (gone.known, gone.time, "retention" in gone.text) == (False, None, True)
    other = steps.in_kafka(SOURCE, Span(0, 8, 8), sent, "b-2")
    assert (other.known, other.time, "made anew" in other.text) == (False, None, True)
    bad = record(unpriced("b-1", quantity=0), 7)
    assert steps.in_kafka(SOURCE, Span(0, 8, 8), bad, "b-1").text.endswith("it is no valid purchase")


def test_the_price_says_where_it_came_from() -> None:
    """From the event; or the price in force, with the time since when, unless the history says another by now."""
    log = FakeRecord(None, json.dumps({"prices": [[7, 100]]}).encode(), timestamp=1_000)
    history = PriceHistory(((NOON - timedelta(days=1), 90), (NOON - timedelta(hours=1), 100)))
    plain, priced = (steps.event_of(record(event), "b-1") for event in (unpriced("b-1"), purchase("b-1")))
    assert steps.price(DOCUMENT, priced, None, history).text == "1,00\N{NO-BREAK SPACE}zł a unit, from the event"
    told = steps.price(DOCUMENT, plain, (log, 100), history)
    assert (told.facts, told.time) == ({"price": 100, "from": "price in force"}, letters.time_of(log))
    assert "in force since 2026-05-01" in told.text
    late = steps.price(DOCUMENT, plain, (log, 100), PriceHistory(((NOON - timedelta(days=1), 90),)))
    assert "by now the product's history says 0,90\N{NO-BREAK SPACE}zł" in late.text
    assert not steps.price(DOCUMENT, None, None, history).known
    assert not steps.price(DOCUMENT, plain, None, None).known


@pytest.mark.parametrize(
    "source",
    [None, "kafka", {"origin": "direct"}, {"origin": "kafka"}, {"origin": "kafka", **SOURCE, "partition": [0]}],
)
def test_a_source_that_names_no_record_is_none(source: Any) -> None:
    """Another program may have written anything."""
    assert steps.source_in({"source": source}) is None
    good = {"origin": "kafka", **SOURCE}
    assert steps.source_in({"source": good}) == good


def test_repeats_say_what_was_searched() -> None:
    assert steps.repeats([], 8, 8, 8).text == "none (no later record)"
    assert steps.repeats([9], 8, 18, 30).text == (
        "sent again at offset 9: counted once all the same (offsets 8 to 17 were searched, not those from 18 to 29)"
    )


def test_a_producer_that_sends_an_id_for_ever_fills_no_page() -> None:
    told = steps.repeats(range(8, 5_000), 8, 5_000, 5_000)
    assert "26, 27 and 4972 more: counted once" in told.text
    assert len(told.text) < 300


def test_steps_are_measured_from_the_last_that_has_a_time() -> None:
    """A step without a time has no length, and does not break the chain."""
    made = [Step(name=str(at), text="", time=at and NOON + timedelta(seconds=at)) for at in (1, None, 3.5, 3)]
    steps.measure(made)
    assert [one.seconds for one in made] == [None, None, 2.5, -0.5]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0071, "+0.007 s"),
        (-0.105, "-0.105 s"),
        (119.9, "+119.900 s"),
        (120, "+2 min"),
        (7_200, "+2 h"),
        (2e8, "+2315 days"),
    ],
)
def test_long_times_are_shown_coarsely(seconds: float, shown: str) -> None:
    """A purchase from years ago does not break the columns."""
    assert later(seconds) == shown


class Store:
    """MongoDB with the source of one document: its id, and the offset in the topic of its collection."""

    def __init__(self, offset: int | None, collection: str = "purchases", name: str = "b-1") -> None:
        self._offset, self._asked = offset, (collection, [name])

    async def documents(self, collection: str, ids: list[str]) -> Any:
        assert (collection, ids) == self._asked
        source = {"topic": f"shop.{collection}", "partition": 0, "offset": self._offset}
        return {} if self._offset is None else {ids[0]: {"source": source}}


@pytest.mark.parametrize(
    ("stored", "again", "done", "expected"),
    [
        (110, False, 100, Became("stored", "it is stored")),
        (None, True, 200, Became("rejected", "it was rejected again, as dead letter 0:1", Id(0, 1))),
        (None, False, 107, Became("waiting", "it waits: 3 offsets of its partition come before it")),
        (5, False, 200, Became("repeated", "it was handled, and the stored document is of another event with this id")),
        (None, False, 200, None),
    ],
)
def test_what_became_of_a_retry(
    monkeypatch: pytest.MonkeyPatch, stored: int | None, again: bool, done: int, expected: Became | None
) -> None:
    """Stored, rejected again, waiting, or a repeat; where it is unknown, that is said."""
    value = record(purchase("b-1")).value
    later = dead(10, value=value)  # of offset 110 of the purchases
    FakeTopics(monkeypatch, lambda topic: [numbered([dead(0, value=value), *([later] if again else [])])])

    async def spans(*args: Any) -> dict[str, dict[int, Span]]:
        return {"shop.purchases": {0: Span(0, done, 300)}}

    monkeypatch.setattr(letters.offsets, "spans", spans)
    retry = letters.time_of(later), Mark("0:0", "shop.purchases", 0, 110)
    bootstrap: Any = "kafka:1"
    store: Any = Store(stored)
    found = asyncio.run(letters.became(bootstrap, store, SHOP, letter(value=value), retry=retry, search=10))
    assert found == expected if expected else found.state == "unknown"


def test_what_became_of_a_product_is_looked_up_by_its_key() -> None:
    """Only purchases have an id in their value that is not the key. A mark of another program says nothing."""
    found = letter(topic="shop.products")
    store: Any = Store(9, "products", "anna")
    bootstrap: Any = "kafka:1"

    def became(topic: str) -> Became:
        retry = found.time, Mark("0:0", topic, 0, 9)
        return asyncio.run(letters.became(bootstrap, store, SHOP, found, retry=retry, search=10))

    assert became("shop.products") == Became("stored", "it is stored")
    assert became("").state == "unknown"
    assert became("shop.purchases").state == "unknown"


class Nothing:
    """MongoDB without any document."""

    async def documents(self, collection: str, ids: list[str]) -> Any:
        return {}


class Log:
    """The topics of a shop with one partition, and how far the workers are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.topics: dict[str, list[FakeRecord]] = {SHOP.purchases: [], SHOP.dead_letters: [], SHOP.retries: []}
        self.done = 0
        FakeTopics(monkeypatch, lambda topic: [self.topics[topic]] if topic in self.topics else [])
        monkeypatch.setattr(offsets, "spans", self._spans)

    async def _spans(self, bootstrap: Any, group: str, names: list[str]) -> dict[str, dict[int, Span]]:
        ends = {name: len(self.topics[name]) for name in names}
        return {name: {0: Span(0, min(self.done, end), end)} for name, end in ends.items()}

    def sell(self, *ids: str) -> None:
        self.topics[SHOP.purchases] = numbered([record(purchase(name)) for name in ids])

    def reject(self, *letters: FakeRecord) -> None:
        self.topics[SHOP.dead_letters] = numbered(letters)

    def trace(self, purchase_id: str = "b-1", search: int = 100) -> Trace:
        bootstrap: Any = "kafka:1"
        store: Any = Nothing()
        return asyncio.run(Tracer(bootstrap, store, SHOP, search).trace(purchase_id))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_what_waits_has_its_place_in_the_queue(log: Log) -> None:
    """The first record of the id counts; behind it are those that the workers handle before it."""
    log.sell("a", "b", "c", "b-1", "b-1")
    log.done = 1
    found = log.trace()
    assert (found.state, found.customer_id) == ("waiting", "anna")
    assert (
        found.verdict
        == "It waits in Kafka, at offset 3 of shop.purchases[0]: 2 offsets of its partition come before it"
    )
    assert [step.name for step in found.steps].count("in Kafka") == 2
    log.done = 3
    assert log.trace().verdict.endswith(": it is the next one")


def test_what_was_handled_and_is_nowhere_is_called_lost(log: Log) -> None:
    """Nobody is told that all is well; what was searched is told."""
    log.sell("b-1", "other")
    log.done = 2
    found = log.trace()
    assert found.state == "lost"
    assert "verify --deep" in found.searched[-1]
    assert log.trace("none").state == "unknown"
    assert log.trace("none").steps == []
    assert log.trace("x" * 129).verdict == "A purchase's id has 1 to 128 characters"


def test_a_rejected_purchase_has_its_dead_letters_and_what_became_of_them(log: Log) -> None:
    """An id that was rejected ever so often does not make the trace long."""
    value = record(purchase("b-1")).value
    log.reject(dead(0, value=value))
    found = log.trace()
    assert (found.state, [step.letter for step in found.steps]) == ("rejected", ["0:0"])
    assert "unknown product" in found.verdict
    mark = Mark("0:0", "shop.purchases", 0, 300)
    log.topics[SHOP.retries] = [FakeRecord(b"0:0", msgspec.json.encode(mark), 0)]
    assert log.trace().verdict.startswith(
        "It was rejected: dead letter 0:0 became offset 300 of shop.purchases[0]: it waits"
    )
    log.topics[SHOP.retries] = []
    log.reject(*(dead(number, value=value) for number in range(90)))
    assert [step.letter for step in log.trace().steps] == [f"0:{number}" for number in range(70, 90)]
    assert log.trace(search=5).steps[0].letter == "0:85"
