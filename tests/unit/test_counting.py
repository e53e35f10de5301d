"""Counts: each purchase once, whatever crashes when; held against a model that just counts unique ids."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shopflow.changelog import Audit
from shopflow.counting import TOTALS_KEY, Counted, advance, decode_count, decode_totals, handled, offset_of

Rows = dict[bytes, bytes]


def test_a_purchase_at_or_below_the_offset_is_not_counted_again() -> None:
    """The watermark tells a redelivery."""
    rows: Rows = {}
    batch = [Counted(0, "anna", 2, 600), Counted(3, "anna", 1, 100)]
    for _ in range(2):
        rows.update(advance(rows.get, batch, end=4).rows())
    count = decode_count(rows[b"anna"])
    assert (count.purchases, count.items, count.spent, count.first, count.offset) == (2, 3, 700, 0, 3)
    totals = decode_totals(rows[TOTALS_KEY])
    assert (totals.customers, totals.purchases, totals.items, totals.spent, totals.offset) == (1, 2, 3, 700, 3)


def test_unchanged_customers_are_written_again() -> None:
    """The changelog may lack what RocksDB has: after a crash the redelivery brings it there."""
    rows: Rows = dict(advance({}.get, [Counted(0, "anna", 1, 1)], end=1).rows())
    again = advance(rows.get, [Counted(0, "anna", 1, 1)], end=1).rows()
    assert dict(again) == rows


def test_the_sums_come_last() -> None:
    """So that sums in the changelog never speak of customers who are not there yet."""
    rows = advance({}.get, [Counted(0, "a", 1, 1), Counted(1, "b", 1, 1)], end=2).rows()
    assert [key for key, _ in rows] == [b"a", b"b", TOTALS_KEY]


def test_repeated_and_rejected_records_are_in_the_sums() -> None:
    """Every record of the topic is accounted for."""
    rows = dict(advance({}.get, [Counted(1, "a", 1, 1)], end=5, duplicates=[2, 4], rejected=[0, 3]).rows())
    totals = decode_totals(rows[TOTALS_KEY])
    assert (totals.purchases, totals.duplicates, totals.rejected, totals.offset) == (1, 2, 2, 4)


def test_handled_says_what_was_decided_before() -> None:
    """By the customer's offset or by the sums'."""
    rows: Rows = dict(advance({}.get, [Counted(1, "a", 1, 1)], end=5).rows())
    assert [handled(rows.get, "a", offset) for offset in (1, 4, 5)] == [True, True, False]
    del rows[TOTALS_KEY]
    assert [handled(rows.get, "a", offset) for offset in (1, 2)] == [True, False]
    assert not handled(rows.get, "b", 0)


def test_only_our_values_have_an_offset() -> None:
    """Whatever else is in the changelog must be noticed."""
    assert offset_of(b'{"offset":7,"purchases":1}') == 7
    with pytest.raises(msgspec.MsgspecError):
        offset_of(b"not a count")


# -- the model


@dataclass
class Sent:
    """A record of the log. `purchase` is None: a bad one."""

    purchase: str | None
    customer: str = ""
    items: int = 0


@dataclass
class Log:
    """A partition and what its workers keep of it."""

    records: list[Sent] = field(default_factory=list)
    committed: int = 0
    rocksdb: Rows = field(default_factory=dict)
    changelog: list[tuple[bytes, bytes]] = field(default_factory=list)
    #: Rows that a worker sent and Kafka has not yet taken; it may take them at any time, also after its successor's.
    under_way: list[tuple[bytes, bytes]] = field(default_factory=list)

    def rebuilt(self) -> Rows:
        """From the changelog alone: of two values of a key the one with the larger offset."""
        rows: Rows = {}
        for key, value in self.changelog:
            if key not in rows or offset_of(value) >= offset_of(rows[key]):
                rows[key] = value
        return rows


class Guarantee(RuleBasedStateMachine):
    """Batches of any size, crashes between any two steps, tables lost, workers that wake up late."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = [Log(), Log()]
        self.stored: dict[str, tuple[int, int]] = {}  # purchase -> partition and offset: the document's `source`
        self.random = random.Random()

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        """Which rows get through is drawn from a seed that Hypothesis shows."""
        self.random.seed(seed)

    @rule(partition=st.integers(0, 1), number=st.integers(0, 20), customer=st.integers(0, 1), items=st.integers(1, 5))
    def send(self, partition: int, number: int, customer: int, items: int) -> None:
        """A purchase; often one that was sent before, here or to the other partition."""
        self.logs[partition].records.append(Sent(f"p{number}", f"{partition}-{customer}", items))

    @rule(partition=st.integers(0, 1))
    def send_a_bad_one(self, partition: int) -> None:
        """It will be rejected."""
        self.logs[partition].records.append(Sent(None))

    @rule(partition=st.integers(0, 1), size=st.integers(1, 5), steps=st.integers(0, 4))
    def work(self, partition: int, size: int, steps: int) -> None:
        """A batch from the committed offset on, up to the step before which the worker is killed (4: not killed)."""
        log = self.logs[partition]
        end = min(log.committed + size, len(log.records))
        if end == log.committed or steps == 0:
            return
        accepted, duplicates, rejected = self.store(partition, log.committed, end)
        if steps == 1:
            return
        rows = advance(log.rocksdb.get, accepted, end=end, duplicates=duplicates, rejected=rejected).rows()
        log.rocksdb.update(rows)
        if steps == 2:  # some are in the log, others will be, the rest was never sent
            log.changelog += [row for row in rows if self.random.random() < 0.5]
            log.under_way = [row for row in rows if self.random.random() < 0.5]
            return
        log.changelog += rows
        if steps == 4:
            log.committed = end

    def store(self, partition: int, start: int, end: int) -> tuple[list[Counted], list[int], list[int]]:
        """Insert the documents; those whose id is another's are true duplicates."""
        accepted, duplicates, rejected = [], [], []
        for offset in range(start, end):
            record = self.logs[partition].records[offset]
            if record.purchase is None:
                rejected.append(offset)
            elif self.stored.setdefault(record.purchase, (partition, offset)) != (partition, offset):
                duplicates.append(offset)
            else:
                accepted.append(Counted(offset, record.customer, record.items, record.items * 10))
        return accepted, duplicates, rejected

    @rule(partition=st.integers(0, 1))
    def lose_the_table(self, partition: int) -> None:
        """Another worker, or an empty data directory: recovered from the changelog."""
        self.logs[partition].rocksdb = self.logs[partition].rebuilt()

    @rule(partition=st.integers(0, 1))
    def restart(self, partition: int) -> None:
        """The same directory: what the changelog has beyond it is taken in."""
        log = self.logs[partition]
        for key, value in log.rebuilt().items():
            if key not in log.rocksdb or offset_of(value) >= offset_of(log.rocksdb[key]):
                log.rocksdb[key] = value

    @rule(partition=st.integers(0, 1))
    def wake_up_late(self, partition: int) -> None:
        """A worker that slept: what it had under way arrives behind its successor's."""
        log = self.logs[partition]
        log.changelog += log.under_way
        log.under_way = []

    @invariant()
    def nothing_is_missing_once_all_is_done(self) -> None:
        """Finish a copy of everything and compare it with counting unique ids."""
        logs, stored = self.logs, dict(self.stored)
        for number, log in enumerate(logs):
            for rows in (dict(log.rocksdb), log.rebuilt()):
                self.finish(number, rows)
        self.stored = stored

    def finish(self, number: int, rows: Rows) -> None:
        log, before = self.logs[number], dict(self.stored)
        accepted, duplicates, rejected = self.store(number, log.committed, len(log.records))
        if len(log.records) > log.committed:
            changes = advance(rows.get, accepted, end=len(log.records), duplicates=duplicates, rejected=rejected)
            rows.update(changes.rows())
        expected: dict[str, list[int]] = {}
        for purchase, (partition, offset) in self.stored.items():
            record = log.records[offset] if partition == number else None
            if record is not None:
                assert record.purchase == purchase
                mine = expected.setdefault(record.customer, [0, 0, 0])
                for index, amount in enumerate((1, record.items, record.items * 10)):
                    mine[index] += amount
        counts = {key.decode(): decode_count(value) for key, value in rows.items() if key != TOTALS_KEY}
        assert {name: [c.purchases, c.items, c.spent] for name, c in counts.items()} == expected
        if log.records:
            self.check_sums(log, rows, expected)
        self.stored = before

    @staticmethod
    def check_sums(log: Log, rows: Rows, expected: dict[str, list[int]]) -> None:
        audit = Audit()
        for key, value in rows.items():
            audit.add(key, value)
        assert audit.agrees
        assert not audit.ahead
        totals = audit.totals
        assert totals.customers == len(expected)
        assert totals.purchases == sum(numbers[0] for numbers in expected.values())
        assert totals.purchases + totals.duplicates + totals.rejected == len(log.records)
        assert totals.rejected == sum(record.purchase is None for record in log.records)


TestGuarantee = Guarantee.TestCase
TestGuarantee.settings = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
