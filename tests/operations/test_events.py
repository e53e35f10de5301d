"""`verify --deep`: each event is compared with its document, and each document with its event."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from faust_batches.testing import FakeBatch, FakeTable
from shopflow.errors import Rejected
from shopflow.kafka.offsets import Span
from shopflow.operations.verify import events as deep
from shopflow.operations.verify.events import verify_deep
from shopflow.operations.verify.report import Check, Report
from shopflow.shop.dead_letters import headers_of
from tests.conftest import Run
from tests.support import events
from tests.support.documents import DIRECT, kafka, purchase
from tests.support.fake_shop import FakeWorker
from tests.support.fakes import FakeOutlet, FakeRecord, FakeTopics, layout
from tests.support.stores import ByHand, ObservedStore

LAYOUT = layout(2)
KINDS = ("products", "customers", "purchases")
BOUGHT_AT = "2026-05-01T12:00:00.123456+02:00"
ENDS = "2026-05-01T12:0{}:00Z"


class DeepShop:
    """Topics with records, and the documents and dead letters that a worker makes of them."""

    def __init__(self, store: ObservedStore, by_hand: ByHand, run: Run) -> None:
        self.store, self.by_hand, self.run = store, by_hand, run
        self.topics: dict[str, dict[int, list[FakeRecord]]] = {
            name: {0: [], 1: []} for name in (*KINDS, "dead-letters")
        }
        self.starts: dict[tuple[str, int], int] = {}
        self.committed: dict[tuple[str, int], int] = {}
        self.report = Report(status=0)
        self.progress: dict[str, tuple[int, list[int]]] = {}
        self.before_spans: Callable[[], None] = lambda: None
        self.outlet = FakeOutlet()
        self.prices: list[FakeRecord] = []
        self.worker = FakeWorker(
            self.store, FakeTable(), outlet=self.outlet, price_log=self.prices, max_event_bytes=1_000
        )

    # -- what happened

    def send(self, kind: str, name: str | None, value: Any = "", partition: int = 0, **fields: Any) -> FakeRecord:
        """Send a record: an event with these fields, or this value under this key."""
        records = self.topics[kind][partition]
        key = fields.get("customer_id", "anna") if kind == "purchases" and value == "" else name
        if value == "":
            event = {name: given for name, given in _event(kind, name or "", fields).items() if given is not None}
            value = json.dumps(event).encode()
        offset = records[-1].offset + 1 if records else self.starts.get((kind, partition), 0)
        record = FakeRecord((key or "").encode(), value, offset, partition, kind)
        records.append(record)
        return record

    def work(self) -> None:
        """Handle all records that were sent, as a worker does."""
        for kind, partitions in self.topics.items():
            for records in partitions.values():
                if records and kind in KINDS:
                    self.run(getattr(self.worker, kind)(FakeBatch(records)))
        for _, key, value, partition, headers in self.outlet.got:
            letters = self.topics["dead-letters"][partition]
            letters.append(FakeRecord(key, value, len(letters), partition, "dead-letters", headers=tuple(headers)))
        self.outlet.got.clear()

    # -- what verify sees of Kafka

    async def spans(self, bootstrap: str, group: str, topics: Sequence[str]) -> dict[str, dict[int, Span]]:
        self.before_spans()
        assert (bootstrap, group) == ("kafka:1", "shop")
        return {
            topic: {number: self._span(topic, number, records) for number, records in self.topics[topic].items()}
            for topic in topics
            if topic in self.topics
        }

    def _span(self, topic: str, partition: int, records: list[FakeRecord]) -> Span:
        start = self.starts.get((topic, partition), 0)
        end = records[-1].offset + 1 if records else start
        return Span(start, self.committed.get((topic, partition), end), end)

    def partitions(self, topic: str) -> list[list[FakeRecord]]:
        if topic == "prices":
            return [[record for record in self.prices if record.partition == number] for number in (0, 1)]
        return [
            [record for record in records if record.offset >= self.starts.get((topic, number), 0)]
            for number, records in self.topics[topic].items()
        ]

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        steps: list[int] = []
        self.progress[what] = (total, steps)
        yield steps.append

    # -- what it says

    def checks(self) -> dict[str, Check]:
        """The checks of `verify --deep`, by collection."""
        self.report = Report(status=0)
        self.run(verify_deep("kafka:1", self.store, LAYOUT, self.report, self.bar))  # type: ignore[arg-type]
        return {check.name.removeprefix("each of "): check for check in self.report.checks}

    def wrong(self, kind: str) -> str:
        """The difference in this collection. All others must be good."""
        checks = self.checks()
        assert {name for name, check in checks.items() if check.good is not True} == {kind}, checks
        assert self.report.status == 1
        return checks[kind].detail

    def good(self) -> dict[str, dict[str, int]]:
        """The numbers of a shop without differences, without zeros."""
        checks = self.checks()
        assert [check for check in checks.values() if check.good is not True] == []
        assert self.report.status == 0
        return {
            kind: {name: number for name, number in numbers.items() if number}
            for kind, numbers in self.report.deep.items()
        }


def _event(kind: str, name: str, fields: events.Event) -> events.Event:
    if kind == "purchases":
        return events.purchase(name, **{"purchased_at": BOUGHT_AT, **fields})
    if kind == "customers":
        return events.customer(name, **{"city": None, **fields})
    return events.product(**{"price": 399, "name": name, **fields})


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, store: ObservedStore, by_hand: ByHand, run: Run) -> DeepShop:
    """A shop without events."""
    made = DeepShop(store, by_hand, run)
    monkeypatch.setattr(deep.offsets, "spans", made.spans)
    FakeTopics(monkeypatch, made.partitions)
    return made


@pytest.fixture
def busy(shop: DeepShop) -> DeepShop:
    """A shop without differences that has every kind of record."""
    shop.send("products", "milk")
    shop.send("products", "sugar", partition=1)
    shop.send("customers", "anna", city="Łódź")
    shop.send("customers", "bob")
    for number in range(5):
        shop.send("purchases", f"p{number}", quantity=number + 1)
    shop.send("purchases", "q", partition=1, price=None, purchased_at="2026-05-01T12:00:01Z")
    shop.work()
    return shop


def test_a_shop_in_order_agrees(busy: DeepShop) -> None:
    """The report has the numbers of each collection."""
    assert busy.good() == {"products": {"stored": 2}, "customers": {"stored": 2}, "purchases": {"stored": 6}}
    assert {name: check.detail for name, check in busy.checks().items()} == {
        "products": "2 stored as sent, 0 superseded by newer ones, 0 deletions, 0 dead letters",
        "customers": "2 stored as sent, 0 superseded by newer ones, 0 deletions, 0 dead letters",
        "purchases": "6 stored as sent, 0 sent again, 0 dead letters",
    }


def test_an_empty_shop_agrees(shop: DeepShop) -> None:
    """The topic of the dead letters may be missing."""
    del shop.topics["dead-letters"]
    assert shop.good() == {"products": {}, "customers": {}, "purchases": {}}


# -- purchases


def test_a_purchase_that_is_gone_is_named(busy: DeepShop) -> None:
    """The message has its partition and offset."""
    busy.by_hand.remove("purchases", "p3")
    assert busy.wrong("purchases") == (
        "1 differ: p3 (partition 0, offset 3): neither in MongoDB nor in the dead letters"
    )


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("customer_id", "bob", "customer_id: stored 'bob', sent 'anna'"),
        ("product_id", "x", "product_id: stored 'x', sent 'milk'"),
        ("quantity", 7, "quantity: stored 7, sent 3"),
        ("price", 1, "price: stored 1, sent 300"),
        ("value", 1, "value: stored 1, sent 900"),
        ("purchased_at", None, "purchased_at: stored None, sent 2026-05-01T10:00:00.123000+00:00"),
    ],
)
def test_a_purchase_that_was_changed_is_named(busy: DeepShop, field: str, value: Any, said: str) -> None:
    """The message has the stored value and the sent one. Times are compared in milliseconds, as MongoDB stores them."""
    busy.by_hand.change("purchases", "p2", **{field: value})
    assert busy.wrong("purchases") == f"1 differ: p2 (partition 0, offset 2): {said}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"price": -1, "value": -2}, "price: stored -1, must be a whole number, 0 or more"),
        ({"price": 2.5}, "price: stored 2.5, must be"),
        ({"price": 400}, "value: stored 798, sent 800"),
    ],
)
def test_a_purchase_without_a_price_has_any_and_its_value(busy: DeepShop, fields: Any, said: str) -> None:
    """Neither the event nor the price log has a price. Any price is right, if the value fits it."""
    busy.prices.clear()
    busy.by_hand.change("purchases", "q", price=0, value=0)
    assert busy.good()["purchases"] == {"stored": 6}
    busy.by_hand.change("purchases", "q", **{"price": 399, "value": 798, **fields})
    assert said in busy.wrong("purchases")


def test_the_price_given_to_a_purchase_without_one_is_known(busy: DeepShop) -> None:
    """The price log has it, so a price changed by hand is found."""
    assert busy.good()["purchases"] == {"stored": 6}
    busy.by_hand.change("purchases", "q", price=1, value=2)
    assert "price: stored 1, sent 399, value: stored 2, sent 798" in busy.wrong("purchases")


def test_a_purchase_sent_twice_is_no_difference(busy: DeepShop) -> None:
    """A repeated purchase is no difference, nor is one that `--direct` stored before it was sent."""
    busy.send("purchases", "p1", quantity=2)
    busy.send("purchases", "p1", quantity=2, partition=1)
    busy.by_hand.put("purchases", purchase("d", DIRECT))
    busy.send("purchases", "d", quantity=3)
    busy.work()
    assert busy.good()["purchases"] == {"stored": 6, "repeated": 3}


def test_a_bad_record_must_be_in_the_dead_letters(busy: DeepShop) -> None:
    """A record that can't be decoded, has an unknown product, is too large or has no value must be a dead letter."""
    busy.send("purchases", "anna", b"no JSON")
    busy.send("purchases", "u", product_id="?", price=None, partition=1)
    busy.send("purchases", "large", note="x" * 1_000)
    busy.send("purchases", "anna", None)
    busy.work()
    assert busy.good()["purchases"] == {"stored": 6, "dead_lettered": 4}
    busy.topics["dead-letters"] = {0: [], 1: []}
    said = busy.wrong("purchases")
    assert said.startswith("4 differ: ")
    for name in (
        "partition 0, offset 5: can't be accepted (not JSON",
        "u (partition 1, offset 1): neither in MongoDB",
        "large (partition 0, offset 6): neither in MongoDB",
        "partition 0, offset 7: can't be accepted (no value",
    ):
        assert name in said


def test_a_large_event_that_is_stored_was_accepted(busy: DeepShop) -> None:
    """A worker with another `batching.max_event_bytes` stored it."""
    record = busy.send("purchases", "large", note="x" * 1_000)
    kept = busy.by_hand.find("purchases", "p1")
    busy.by_hand.put("purchases", {**kept, "_id": "large", "source": kafka(record.offset, topic="purchases")})
    assert busy.good()["purchases"] == {"stored": 7}


def test_a_record_is_stored_or_a_dead_letter_and_not_both(busy: DeepShop) -> None:
    """A dead letter that was retried and stored is another record."""
    busy.send("purchases", "u", product_id="?", price=None)
    busy.work()
    busy.send("purchases", "u", partition=1)
    busy.work()
    assert busy.good()["purchases"] == {"stored": 7, "dead_lettered": 1}
    record = busy.topics["purchases"][0][2]
    letters = busy.topics["dead-letters"][0]
    headers = tuple(headers_of(record, Rejected("why"), "shop"))  # type: ignore[arg-type]
    letters.append(FakeRecord(record.key, record.value, len(letters), 0, "dead-letters", headers=headers))
    assert busy.wrong("purchases") == "1 differ: p2 (partition 0, offset 2): in the dead letters, and in MongoDB too"


def test_a_document_that_no_record_made_is_named(busy: DeepShop) -> None:
    """A document's source can be after the end, at another record's offset, in another topic, or without an offset."""
    kept = busy.by_hand.find("purchases", "p1")
    sources: list[Any] = [
        *({"offset": 99}, {"topic": "other"}, {"partition": 7}, {"offset": "x"}, {"partition": None}, {}),
    ]
    for number, source in enumerate(sources):
        busy.by_hand.put("purchases", {**kept, "_id": f"f{number}", "source": {**kept["source"], **source}})
    said = busy.wrong("purchases")
    assert said.startswith("6 differ: ")
    assert all(f"f{number}: not in the topic" in said for number in range(6))


def test_a_document_without_a_record_at_its_offset_is_not_judged(busy: DeepShop) -> None:
    """Kafka compacted the purchases while their policy was wrong. Counted, stored, and not in the log any more."""
    busy.topics["purchases"][0] = [record for record in busy.topics["purchases"][0] if record.offset != 1]
    check = busy.checks()["purchases"]
    assert (check.good, busy.report.status) == (None, 2)
    assert check.detail.startswith(
        "1 documents have no record at their offset, though Kafka has earlier and later ones"
    )


def test_a_purchase_whose_source_is_changed_to_anothers_offset_is_found(busy: DeepShop) -> None:
    """Two documents can't come from one record."""
    busy.by_hand.change("purchases", "p1", source=busy.by_hand.find("purchases", "p4")["source"])
    assert "not in the topic at its partition 0, offset 4" in busy.wrong("purchases")


def test_what_is_not_committed_is_not_judged(busy: DeepShop) -> None:
    """A worker may be about to store the record, or may have stored it a moment ago."""
    busy.send("purchases", "p5")
    busy.work()
    busy.send("purchases", "p6")
    busy.send("products", "bread")
    busy.committed = {("purchases", 0): 5, ("products", 0): 1}
    numbers = busy.good()
    assert numbers["purchases"] == {"stored": 6, "waiting": 2}
    assert "2 offsets that are not committed were not compared" in busy.checks()["purchases"].detail
    assert busy.progress["purchases in Kafka"][0] == 6


def test_records_that_retention_removed_are_reported_and_not_compared(busy: DeepShop) -> None:
    """Retention removes records, not their documents. The records that are left are compared."""
    busy.starts["purchases", 0] = 2
    assert busy.good()["purchases"] == {"stored": 4, "removed": 2}
    said = busy.checks()["purchases"].detail
    assert said.endswith("2 offsets before them were removed from the topic, with 2 documents")
    busy.by_hand.change("purchases", "p3", quantity=99)
    assert busy.wrong("purchases").startswith("1 differ: p3")


def test_without_all_dead_letters_some_records_can_not_be_judged(busy: DeepShop) -> None:
    """Retention removed dead letters of one partition. Records that would have gone there are unknown."""
    bad = [busy.send("purchases", "anna", b"no JSON", partition) for partition in (0, 0, 1)]
    busy.work()
    busy.starts["dead-letters", 0] = 1
    assert busy.good()["purchases"] == {"stored": 6, "dead_lettered": 2, "unknown": 1}
    assert "1 can't be compared, because their dead letters may have been removed" in busy.checks()["purchases"].detail
    busy.topics["dead-letters"][1].clear()
    assert f"partition 1, offset {bad[2].offset}: can't be accepted" in busy.wrong("purchases")


# -- products and customers


@pytest.mark.parametrize(
    ("kind", "name", "field", "value"),
    [
        ("products", "milk", "name", "Kefir"),
        ("products", "milk", "type", "x"),
        ("products", "sugar", "price", 1),
        ("products", "sugar", "updated_at", None),
        ("customers", "anna", "city", "Kraków"),
        ("customers", "bob", "city", "Kraków"),
        ("customers", "anna", "last_name", "x"),
    ],
)
def test_a_product_or_customer_that_was_changed_is_named(
    busy: DeepShop, kind: str, name: str, field: str, value: Any
) -> None:
    """The document says from which record it came, and differs from it."""
    busy.by_hand.change(kind, name, **{field: value})
    said = busy.wrong(kind)
    assert said.startswith(f"1 differ: {name} (partition ")
    assert f"{field}: stored {value!r}, sent " in said


def test_a_product_that_is_gone_is_named(busy: DeepShop) -> None:
    """The topic has no deletion of it."""
    busy.by_hand.remove("products", "sugar")
    assert "sugar (partition 1, offset 0): neither in MongoDB" in busy.wrong("products")


def test_only_the_newest_of_a_product_must_be_there(busy: DeepShop) -> None:
    """Older events are superseded, in any order, also by a product that `--direct` stored."""
    busy.send("products", "milk", price=5, updated_at=ENDS.format(5))
    busy.send("products", "milk", price=3, updated_at=ENDS.format(3))
    busy.work()
    assert busy.good()["products"] == {"stored": 2, "superseded": 2}
    kept = busy.by_hand.find("products", "milk")
    busy.by_hand.put("products", {**kept, "price": 1, "source": DIRECT})
    assert busy.good()["products"] == {"stored": 1, "superseded": 3}


def test_a_product_that_is_older_than_the_topic_says_is_named(busy: DeepShop) -> None:
    """An update is missing, or `updated_at` is no time."""
    older = busy.by_hand.find("products", "milk")
    busy.send("products", "milk", price=5, updated_at=ENDS.format(5))
    busy.work()
    busy.by_hand.put("products", older)
    said = busy.wrong("products")
    assert "milk (partition 0, offset 1): older in MongoDB: updated_at 2026-05-01T12:00:00+00:00, sent" in said
    busy.by_hand.put("products", {"_id": "milk", "updated_at": "yesterday"})
    assert "older in MongoDB: updated_at 'yesterday'" in busy.wrong("products")


def test_what_was_deleted_is_not_missed(busy: DeepShop) -> None:
    """An older event after the deletion must be stored, although a newer one came before the deletion."""
    busy.send("products", "milk", price=9, updated_at=ENDS.format(9))
    busy.send("products", "milk", None)
    busy.send("customers", "bob", None)
    busy.work()
    assert busy.good() == {
        "products": {"stored": 1, "superseded": 2, "deletions": 1},
        "customers": {"stored": 1, "superseded": 1, "deletions": 1},
        "purchases": {"stored": 6},
    }
    busy.send("products", "milk", price=5, updated_at=ENDS.format(1))
    busy.work()
    assert busy.good()["products"] == {"stored": 2, "superseded": 2, "deletions": 1}
    busy.by_hand.remove("products", "milk")
    assert "milk (partition 0, offset 3): neither in MongoDB" in busy.wrong("products")


def test_between_partitions_a_deletion_may_come_before_or_after(busy: DeepShop) -> None:
    """A producer chose another partition for the deletion. There is no order between partitions."""
    kept = busy.by_hand.remove("products", "milk")
    busy.send("products", "milk", None, partition=1)
    assert busy.good()["products"] == {"stored": 1, "superseded": 1, "deletions": 1}
    busy.by_hand.put("products", kept)
    assert busy.good()["products"] == {"stored": 2, "deletions": 1}


def test_what_was_deleted_in_kafka_only_is_named(busy: DeepShop) -> None:
    """The deletion was lost, or the document was put back by hand. One that `--direct` stored since is right."""
    kept = busy.by_hand.find("customers", "bob")
    busy.send("customers", "bob", None)
    busy.work()
    busy.by_hand.put("customers", kept)
    assert busy.wrong("customers") == "1 differ: bob (partition 0, offset 2): deleted in Kafka only"
    busy.by_hand.put("customers", {**kept, "source": DIRECT})
    assert busy.good()["customers"] == {"stored": 1, "superseded": 1, "deletions": 1}


def test_a_product_that_nobody_offered_is_named(busy: DeepShop) -> None:
    """No record of the topic has its id."""
    kept = busy.by_hand.find("products", "milk")
    busy.by_hand.put("products", {**kept, "_id": "gold"})
    assert busy.wrong("products") == "1 differ: gold: not in the topic at its partition 0, offset 0"


def test_a_record_that_compaction_removed_is_not_missed(busy: DeepShop) -> None:
    """A later record of its key is there, though its time is earlier, or it is not committed yet."""
    busy.send("products", "milk", updated_at="2020-01-01T00:00:00Z")
    busy.work()
    busy.topics["products"][0].pop(0)
    assert busy.good()["products"] == {"stored": 1, "superseded": 1}
    busy.committed["products", 0] = 1
    assert busy.good()["products"] == {"stored": 1, "waiting": 1}


def test_what_moves_while_it_is_compared_is_looked_at_again(busy: DeepShop) -> None:
    """A worker deleted a product after the topic was read and before MongoDB was."""
    busy.by_hand.remove("products", "milk")
    looks = 0

    def arrives() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            busy.send("products", "milk", None)

    busy.before_spans = arrives
    assert busy.good()["products"] == {"stored": 1, "superseded": 1, "deletions": 1}


def test_a_topic_that_always_changes_can_not_be_checked(busy: DeepShop) -> None:
    """The status is 2, unless a purchase is wrong: stored purchases don't change."""
    busy.by_hand.remove("products", "milk")
    busy.before_spans = lambda: (busy.send("products", "more", b"?"), None)[1]
    checks = busy.checks()
    assert checks["products"].good is None
    assert checks["products"].detail.startswith("events arrived during the comparison, which may be the cause: ")
    assert "milk" in checks["products"].detail
    assert busy.report.status == 2
    busy.before_spans = lambda: (busy.send("purchases", "more"), None)[1]
    busy.by_hand.remove("purchases", "p1")
    assert busy.checks()["purchases"].good is False
    assert busy.report.status == 1


def test_the_progress_gets_to_its_end(busy: DeepShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some offsets have no record. Kafka and MongoDB each have a progress bar."""
    monkeypatch.setattr(deep, "_STEP", 4)
    busy.topics["purchases"][0].pop(2)
    busy.checks()
    assert set(busy.progress) == {f"{kind} in {where}" for kind in KINDS for where in ("Kafka", "MongoDB")}
    for total, steps in busy.progress.values():
        assert sum(steps) == total
    assert busy.progress["purchases in Kafka"][0] == 6
    assert busy.progress["purchases in MongoDB"][1] == [4, 2]
