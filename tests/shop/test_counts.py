"""Counts: each purchase is counted once, wherever a worker crashes; compared with a model that counts unique ids."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from faust_batches import TOTALS_KEY, Position, position_of
from faust_batches.audit import Audit
from shopflow.shop.counts import (
    Counted,
    advance,
    counted_topics,
    current,
    decode_count,
    decode_totals,
    handled,
    new_era_totals,
)

Rows = dict[bytes, bytes]


def audited(rows: Rows) -> Audit:
    """The audit of a partition with these rows."""
    audit = Audit(("purchases", "items", "spent"), "customers")
    for key, value in sorted(rows.items()):
        audit.add(key, value)
    return audit


def test_a_purchase_at_or_below_the_offset_is_not_counted_again() -> None:
    """A redelivered purchase has an offset at or below that of the customer's row."""
    rows: Rows = {}
    batch = [(0, "anna", 2, 600), (3, "anna", 1, 100)]
    for _ in range(2):
        rows.update(advance(rows.get, batch, end=4).rows())
    count = decode_count(rows[b"anna"])
    assert (count.purchases, count.items, count.spent, count.first, count.offset) == (2, 3, 700, 0, 3)
    totals = decode_totals(rows[TOTALS_KEY])
    assert (totals.customers, totals.purchases, totals.items, totals.spent, totals.offset) == (1, 2, 3, 700, 3)


def test_unchanged_customers_are_written_again() -> None:
    """After a crash the changelog may lack rows that RocksDB has. The redelivery publishes them."""
    rows: Rows = dict(advance({}.get, [(0, "anna", 1, 1)], end=1).rows())
    again = advance(rows.get, [(0, "anna", 1, 1)], end=1).rows()
    assert dict(again) == rows


def test_the_sums_come_last() -> None:
    """Totals in the changelog must never count customers whose rows are not there yet."""
    rows = advance({}.get, [(0, "a", 1, 1), (1, "b", 1, 1)], end=2).rows()
    assert [key for key, _ in rows] == [b"a", b"b", TOTALS_KEY]


def test_repeated_and_rejected_records_are_in_the_sums() -> None:
    """The totals account for every record of the topic."""
    rows = dict(advance({}.get, [(1, "a", 1, 1)], end=5, duplicates=[2, 4], rejected=[0, 3]).rows())
    totals = decode_totals(rows[TOTALS_KEY])
    assert (totals.purchases, totals.duplicates, totals.rejected, totals.offset) == (1, 2, 2, 4)


def test_handled_says_what_was_decided_before() -> None:
    """The offset of the customer's row, or of the totals, is at or after the record's."""
    rows: Rows = dict(advance({}.get, [(1, "a", 1, 1)], end=5).rows())
    assert [handled(rows.get, "a", offset) for offset in (1, 4, 5)] == [True, True, False]
    del rows[TOTALS_KEY]
    assert [handled(rows.get, "a", offset) for offset in (1, 2)] == [True, False]
    assert not handled(rows.get, "b", 0)


def test_a_customer_and_the_sums_are_judged_each_by_their_own_offset() -> None:
    """A crash can leave a row ahead of the totals, or behind them. Neither counts a purchase twice or misses one."""
    first = dict(advance({}.get, [(0, "anna", 1, 10)], end=1).rows())
    batch = [(1, "anna", 2, 20), (2, "bob", 3, 30)]
    second = dict(advance(first.get, batch, end=3).rows())
    customers_ahead = {**second, TOTALS_KEY: first[TOTALS_KEY]}
    sums_ahead = {**first, TOTALS_KEY: second[TOTALS_KEY]}
    for rows in (customers_ahead, sums_ahead):
        assert dict(advance(rows.get, batch, end=3).rows()) == second


def test_a_batch_from_before_takes_nothing_back() -> None:
    """A redelivered batch with other limits may end before what was counted."""
    rows: Rows = dict(advance({}.get, [(n, "anna", 1, 1) for n in range(5)], end=6, rejected=[5]).rows())
    again = advance(rows.get, [(0, "anna", 1, 1)], end=2, duplicates=[1]).rows()
    settled = decode_totals(dict(again)[TOTALS_KEY])
    assert (settled.offset, settled.settled) == (5, 1)
    settled.settled = 5
    assert {**rows, **dict(again), TOTALS_KEY: msgspec.json.encode(settled)} == rows


def test_sums_that_reach_further_than_the_batch_say_so() -> None:
    """The first part of a batch comes again. Its totals include the second part, whose rows the changelog lacks."""
    rows: Rows = dict(advance({}.get, [(0, "anna", 1, 1), (1, "bob", 1, 1)], end=2).rows())
    part = dict(advance(rows.get, [(0, "anna", 1, 1)], end=1).rows())
    assert (decode_totals(part[TOTALS_KEY]).offset, decode_totals(part[TOTALS_KEY]).settled) == (1, 0)
    assert audited(part).agrees
    assert not audited(part).conclusive
    rest = dict(advance((rows | part).get, [(1, "bob", 1, 1)], end=2).rows())
    assert {**part, **rest} == rows


def test_only_our_values_have_a_position() -> None:
    """A value of another program in the changelog raises an error."""
    assert position_of(b'{"offset":7,"purchases":1}') == Position(0, 7)
    with pytest.raises(msgspec.MsgspecError):
        position_of(b"not a count")


def test_a_new_era_outdoes_every_offset_of_the_one_before() -> None:
    """Records that a worker still sends from before a replay must not win."""
    assert Position(1, -1) > Position(0, 10**12)
    assert Position(1, 2) > Position(1, 1)


def test_a_new_era_is_after_all_that_is_known_and_after_those_that_were_lost() -> None:
    """An era is the time, but at least one more than the last one: clocks may be wrong, and changelogs may be lost."""
    assert position_of(new_era_totals(0, now=1_800_000_000.5)) == Position(1_800_000_000, -1)
    assert position_of(new_era_totals(2_000_000_000, now=1_800_000_000)) == Position(2_000_000_001, -1)


def test_totals_keep_the_topic_that_they_count_until_a_new_era() -> None:
    """A worker that starts on a topic that was made anew must not write that topic's id over the old one."""
    rows = dict(advance({}.get, [(0, "anna", 1, 10)], end=1).rows())
    for topic_id, recorded in (("a", "a"), ("b", "a"), ("", "a")):
        rows |= dict(advance(rows.get, [(1, "anna", 1, 10)], end=2, topic_id=topic_id).rows())
        assert decode_totals(rows[TOTALS_KEY]).topic_id == recorded
    rows[TOTALS_KEY] = new_era_totals(0, 1.0, "b")
    rows |= dict(advance(rows.get, [], end=2, topic_id="a").rows())
    assert counted_topics(lambda _: rows.get, [0]) == {"b"}
    assert counted_topics(lambda _: {}.get, [0]) == set()


def test_in_a_new_era_all_is_counted_again() -> None:
    """Counting begins at the start of the topic. Rows of the earlier era count for nothing."""
    batch = [(0, "anna", 2, 600), (3, "anna", 1, 100)]
    rows: Rows = dict(advance({}.get, [*batch, (4, "bob", 1, 1)], end=5).rows())
    before = rows.copy()
    rows[TOTALS_KEY] = new_era_totals(0, now=1)
    assert current(rows.get, "anna") is None
    assert not handled(rows.get, "anna", 0)
    for _ in range(2):
        rows.update(advance(rows.get, batch, end=4).rows())
    counts, totals = current(rows.get, "anna"), decode_totals(rows[TOTALS_KEY])
    assert counts is not None
    assert (counts.purchases, counts.items, counts.spent, counts.first, counts.offset) == (2, 3, 700, 0, 3)
    assert (totals.customers, totals.purchases, totals.spent, totals.era, totals.offset) == (1, 2, 700, 1, 3)
    assert current(rows.get, "bob") is None, "he bought nothing in this era so far"
    assert current(before.get, "bob") is not None
    assert audited(rows).agrees
    assert not audited(rows).ahead


def test_counts_and_totals_of_a_batch_agree() -> None:
    """The audit accepts a batch that a crash cut off, before and after it comes again. It finds a missing row."""
    first: Rows = dict(advance({}.get, [(0, "anna", 2, 600), (1, "bob", 1, 1)], end=2).rows())
    assert audited(first).agrees
    batch = [(2, "anna", 1, 1), (3, "eve", 1, 1)]
    second = dict(advance(first.get, batch, end=4).rows())
    cut_off = {**first, b"anna": second[b"anna"]}
    assert audited(cut_off).ahead
    again = {**cut_off, **dict(advance(cut_off.get, batch, end=4).rows())}
    assert again == second | {b"bob": first[b"bob"]}
    assert audited(again).conclusive
    assert audited(again).agrees
    assert decode_totals(again[TOTALS_KEY]).customers == 3
    del again[b"bob"]
    assert not audited(again).agrees


# -- the model


class Step(IntEnum):
    """How far a worker gets with a batch before it fails."""

    STORING = 0  #: some of the documents are stored
    STORED = 1
    WRITTEN = 2  #: in RocksDB
    PUBLISHING = 3  #: some of the rows are in the changelog
    PUBLISHED = 4
    ACKNOWLEDGED = 5  #: RocksDB knows how far the changelog is in it
    COMMITTED = 6


@dataclass
class Sent:
    """A record of the log; `purchase` is None for a bad one."""

    purchase: str | None
    customer: str = ""
    items: int = 0


@dataclass
class Directory:
    """The table of a partition on a worker's disk."""

    rows: Rows = field(default_factory=dict)
    persisted: int = -1  #: the offset of the last changelog record that is in it

    def recover(self, changelog: list[tuple[bytes, bytes]]) -> None:
        """Apply the changelog records after `persisted`. Of two values of a key the larger position stays."""
        for key, value in changelog[self.persisted + 1 :]:
            if key not in self.rows or position_of(value) >= position_of(self.rows[key]):
                self.rows[key] = value
        self.persisted = max(self.persisted, len(changelog) - 1)

    def acknowledged(self, last: int, rows: int) -> None:
        """Like `Table._acknowledged`: `persisted` moves only if these rows follow it in the changelog."""
        if last - rows == self.persisted:
            self.persisted = last


@dataclass
class Partition:
    """A partition of the purchases, its changelog, and its tables in two workers' directories."""

    records: list[Sent] = field(default_factory=list)
    committed: int = 0
    changelog: list[tuple[bytes, bytes]] = field(default_factory=list)
    directories: list[Directory] = field(default_factory=lambda: [Directory(), Directory()])
    owner: int = 0
    #: Rows that Kafka has not written yet. It may write them at any time, also after those of a successor.
    late: list[tuple[Directory, list[tuple[bytes, bytes]]]] = field(default_factory=list)

    @property
    def mine(self) -> Directory:
        """The owner's directory."""
        return self.directories[self.owner]

    def recover(self) -> None:
        """Recover the owner's table, as at its start or its assignment."""
        self.mine.recover(self.changelog)

    def replay(self) -> None:
        """Begin a new era, and let the owner count from the start of the topic."""
        eras = [position_of(value).era for key, value in self.changelog if key == TOTALS_KEY]
        self.changelog.append((TOTALS_KEY, new_era_totals(max(eras, default=0), now=0)))
        self.committed = 0
        self.recover()

    def arrive_late(self) -> None:
        """Kafka writes late rows of a worker, which still believes that it owns the partition."""
        directory, rows = self.late.pop(0)
        self.changelog += rows
        directory.acknowledged(len(self.changelog) - 1, len(rows))


@dataclass
class System:
    """Two partitions and the documents."""

    partitions: list[Partition] = field(default_factory=lambda: [Partition(), Partition()])
    stored: dict[str, tuple[int, int]] = field(default_factory=dict)  # purchase -> its `source`: partition and offset

    def store(self, number: int, start: int, end: int) -> tuple[list[Counted], list[int], list[int]]:
        """Insert the documents. A purchase whose id another record has is a duplicate."""
        accepted, duplicates, rejected = [], [], []
        for offset in range(start, end):
            record = self.partitions[number].records[offset]
            if record.purchase is None:
                rejected.append(offset)
            elif self.stored.setdefault(record.purchase, (number, offset)) != (number, offset):
                duplicates.append(offset)
            else:
                accepted.append((offset, record.customer, record.items, record.items * 10))
        return accepted, duplicates, rejected

    def store_some(self, number: int, start: int, end: int, which: int) -> None:
        """Insert some of the documents, in any order, as a worker that is killed meanwhile."""
        for offset in range(start, end):
            if which >> (offset - start) & 1:
                self.store(number, offset, offset + 1)

    def work(self, number: int, size: int, until: Step, arrived: list[bool], late: list[bool]) -> None:
        """Handle a batch from the committed offset on as the owner, up to a step."""
        log = self.partitions[number]
        start, end = log.committed, min(log.committed + size, len(log.records))
        if start == end:
            return
        if until == Step.STORING:
            self.store_some(number, start, end, sum(flag << n for n, flag in enumerate(arrived)))
            return
        accepted, duplicates, rejected = self.store(number, start, end)
        if until == Step.STORED:
            return
        rows = advance(log.mine.rows.get, accepted, end=end, duplicates=duplicates, rejected=rejected).rows()
        log.mine.rows.update(rows)
        if until == Step.WRITTEN:
            return
        if until == Step.PUBLISHING:
            there = [row for row, flag in zip(rows, arrived, strict=False) if flag]
            log.changelog += there
            rest = [row for row, flag in zip(rows, late, strict=False) if flag and row not in there]
            log.late.append((log.mine, rest))
            return
        log.changelog += rows
        if until >= Step.ACKNOWLEDGED:
            log.mine.acknowledged(len(log.changelog) - 1, len(rows))
        if until == Step.COMMITTED:
            log.committed = end

    def catch_up(self, size: int) -> None:
        """Handle all records that are left."""
        for number, log in enumerate(self.partitions):
            while log.committed < len(log.records):
                self.work(number, size, Step.COMMITTED, [], [])


PARTITIONS = st.integers(0, 1)
FLAGS = st.lists(st.booleans(), min_size=6, max_size=6)
IN_ORDER = st.integers(0, 6).map(lambda count: [n < count for n in range(6)])


class Guarantee(RuleBasedStateMachine):
    """Batches of any size, crashes between any two steps, lost tables, and workers that wake up late.

    The model counts unique ids. After any events, once all records are handled, every count and every sum must be the
    model's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.system = System()

    @rule(partition=PARTITIONS, number=st.integers(0, 9), customer=st.integers(0, 2), items=st.integers(1, 5))
    def send(self, partition: int, number: int, customer: int, items: int) -> None:
        """Send a purchase. Often its id was sent before, to this partition or the other, by this or other customers."""
        self.system.partitions[partition].records.append(Sent(f"p{number}", f"{partition}-{customer}", items))

    @rule(partition=PARTITIONS)
    def send_a_bad_one(self, partition: int) -> None:
        """Send a record that will be rejected."""
        self.system.partitions[partition].records.append(Sent(None))

    @rule(partition=PARTITIONS, size=st.integers(1, 5))
    def work(self, partition: int, size: int) -> None:
        """Handle a batch completely."""
        self.system.work(partition, size, Step.COMMITTED, [], [])

    @rule(
        partition=PARTITIONS,
        size=st.integers(1, 5),
        until=st.sampled_from([step for step in Step if step != Step.COMMITTED]),
        arrived=IN_ORDER | FLAGS,
        late=st.just([True] * 6) | FLAGS,
    )
    def work_and_fail(self, partition: int, size: int, until: Step, arrived: list[bool], late: list[bool]) -> None:
        """Handle a part of a batch: the worker is killed or frozen, or loses the partition.

        Without a recovery afterwards, the same worker gets the batch again, with other limits.
        """
        self.system.work(partition, size, until, arrived, late)

    @rule(partition=PARTITIONS)
    def restart(self, partition: int) -> None:
        """Start the killed worker again, with its directory."""
        self.system.partitions[partition].recover()

    @rule(partition=PARTITIONS)
    def lose_the_directory(self, partition: int) -> None:
        """Start the owner with an empty directory."""
        log = self.system.partitions[partition]
        log.directories[log.owner] = Directory()
        log.recover()

    @rule(partition=PARTITIONS)
    def move(self, partition: int) -> None:
        """Give the partition to the other worker, whose directory may be from an earlier time."""
        log = self.system.partitions[partition]
        log.owner = 1 - log.owner
        log.recover()

    @rule(partition=PARTITIONS)
    def wake_up_late(self, partition: int) -> None:
        """Late rows of a worker arrive, perhaps after those of its successor."""
        log = self.system.partitions[partition]
        if log.late:
            log.arrive_late()

    @rule(drop=st.booleans())
    def replay(self, drop: bool) -> None:
        """Replay all purchases, perhaps into an empty MongoDB."""
        if drop:
            self.system.stored.clear()
        for log in self.system.partitions:
            log.replay()

    @invariant()
    def every_way_on_ends_with_the_right_counts(self) -> None:
        """The counts are right in the end, with the same worker, a restarted or another one, or an empty directory."""
        for way in ("on", "restart", "move", "rebuild"):
            system = deepcopy(self.system)
            for log in system.partitions:
                if way == "move":
                    log.owner = 1 - log.owner
                elif way == "rebuild":
                    log.directories[log.owner] = Directory()
                if way != "on":
                    log.recover()
            system.catch_up(size=3 if way == "restart" else 100)
            self.compare(system)
            for log in system.partitions:
                log.directories[log.owner] = Directory()
                log.recover()
            self.compare(system)

    @staticmethod
    def compare(system: System) -> None:
        sent = [record for log in system.partitions for record in log.records if record.purchase is not None]
        unique = {record.purchase for record in sent}
        assert set(system.stored) == unique
        totals = [decode_totals(value) for log in system.partitions if (value := log.mine.rows.get(TOTALS_KEY))]
        assert sum(one.purchases for one in totals) == len(unique)
        assert sum(one.duplicates for one in totals) == len(sent) - len(unique)
        for number, log in enumerate(system.partitions):
            check_partition(log, [offset for partition, offset in system.stored.values() if partition == number])


def check_partition(log: Partition, stored: list[int]) -> None:
    """Compare the owner's counts with those of the documents that came from these offsets."""
    expected: dict[str, list[int]] = {}
    for record in (log.records[offset] for offset in stored):
        count = expected.setdefault(record.customer, [0, 0, 0])
        for index, amount in enumerate((1, record.items, record.items * 10)):
            count[index] += amount
    found = {key.decode(): current(log.mine.rows.get, key.decode()) for key in log.mine.rows if key != TOTALS_KEY}
    assert {name: [c.purchases, c.items, c.spent] for name, c in found.items() if c is not None} == expected
    audit = audited(log.mine.rows)
    assert audit.agrees
    assert audit.conclusive
    totals = decode_totals(log.mine.rows.get(TOTALS_KEY, b"{}"))
    sums = [sum(count[index] for count in expected.values()) for index in range(3)]
    assert [totals.customers, totals.purchases, totals.items, totals.spent] == [len(expected), *sums]
    assert totals.rejected == sum(record.purchase is None for record in log.records)
    assert totals.purchases + totals.duplicates + totals.rejected == len(log.records)
    assert totals.offset == len(log.records) - 1


TestGuarantee = Guarantee.TestCase
TestGuarantee.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
