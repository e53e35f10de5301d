"""The check of `verify` that compares records with counts: old records, lost ones, and what can't be decided."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shopflow.kafka.offsets import Span
from shopflow.operations.verify.accounts import Accepted, compare_accounts
from shopflow.operations.verify.report import Check
from shopflow.operations.verify.tables import Tables
from shopflow.shop.counts import advance
from tests.support.fakes import FakeRecord, FakeTopics

#: The kinds of records: a purchase, a repeated one, a rejected one, and the marker of a transaction.
COUNTED, REPEATED, REJECTED, NONE = "counted", "repeated", "rejected", "none"


def checked(
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
    *,
    start: int = 0,
    counted_to: int | None = None,
    unread: int = 0,
    accepted: Accepted | None = None,
) -> tuple[int, Check]:
    """Check a partition.

    Arguments:
        log: The kind of the record at each offset.
        start: The first offset that Kafka still has.
        counted_to: The end of the last batch.
        unread: The number of offsets at the start that Kafka removed before a worker read them.
        accepted: The loss that was accepted.
    """
    end = len(log) if counted_to is None else counted_to
    at = {kind: [offset for offset in range(unread, end) if log[offset] == kind] for kind in log}
    rows = advance(
        {}.get,
        [(offset, "anna", 1, 1) for offset in at.get(COUNTED, ())],
        end=end,
        removed=unread,
        duplicates=at.get(REPEATED, ()),
        rejected=at.get(REJECTED, ()),
    ).rows()
    tables = Tables(1)
    if end:
        tables.take(0, [FakeRecord(*row) for row in rows])
    records = [FakeRecord(b"anna", b"", offset) for offset in range(start, len(log)) if log[offset] != NONE]
    FakeTopics(monkeypatch, lambda topic: [records])
    bootstrap: Any = "kafka:1"
    spans = {0: Span(start, end, len(log))}

    async def known() -> dict[int, Accepted]:
        return {} if accepted is None else {0: accepted}

    return asyncio.run(compare_accounts(bootstrap, "purchases", spans, tables, accepted=known))


@given(log=st.lists(st.sampled_from([COUNTED, REPEATED, REJECTED, NONE]), min_size=1, max_size=12), data=st.data())
def test_what_is_only_old_agrees_and_what_is_missing_does_not(log: list[str], data: st.DataObject) -> None:
    """For any log, records that were removed after they were counted are no difference. Uncounted and lost ones are."""
    start = data.draw(st.integers(0, len(log)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        sent, check = checked(monkeypatch, log, start=start)
        assert check.good, check.detail
        assert sent == sum(kind != NONE for kind in log[start:])
        assert ("nobody counted" in check.detail) == (NONE in log[:start])
        if start:
            assert f"from offset {start} of partition 0 on" in check.detail
        _, check = checked(monkeypatch, [*log, COUNTED], start=start, counted_to=len(log))
        assert not check.good, check.detail
        lost = data.draw(st.integers(1, len(log)))
        _, check = checked(monkeypatch, log, start=max(start, lost), unread=lost)
        assert not check.good, check.detail
        assert f"partition 0: Kafka removed {lost} offsets before a worker read them" in check.detail
        assert "`faust -A shopflow verify --accept-loss purchases:0` accepts that" in check.detail
        _, check = checked(monkeypatch, log, start=max(start, lost), unread=lost, accepted=Accepted(lost, 0))
        assert check.good, check.detail
        assert f"{lost} offsets that Kafka removed before a worker read them were accepted as lost" in check.detail
        for other in (Accepted(lost - 1, 0), Accepted(lost, 1)):  # more is lost since; of counts before a replay
            _, check = checked(monkeypatch, log, start=max(start, lost), unread=lost, accepted=other)
            assert not check.good, check.detail


def test_what_was_removed_while_no_worker_runs_is_told_before_one_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference is reported if the counts end before the first record that Kafka still has."""
    _, check = checked(monkeypatch, [COUNTED] * 9, start=7, counted_to=4)
    assert (check.good, "Kafka removed 3 offsets before a worker read them" in check.detail) == (False, True)


@pytest.mark.parametrize(("gone", "good"), [([2, 3], None), ([2], None), ([], True)])
def test_records_that_compaction_took_out_of_the_middle_are_not_judged(
    monkeypatch: pytest.MonkeyPatch, gone: list[int], good: bool | None
) -> None:
    """The policy may be `delete` again: nothing but the log shows it. Counted but never sent would look the same."""
    tables = Tables(1)
    tables.take(0, [FakeRecord(*row) for row in advance({}.get, [(n, "anna", 1, 1) for n in range(6)], end=7).rows()])
    FakeTopics(monkeypatch, lambda topic: [[FakeRecord(b"anna", b"", n) for n in range(6) if n not in gone]])
    bootstrap: Any = "kafka:1"
    _, check = asyncio.run(compare_accounts(bootstrap, "purchases", {0: Span(0, 7, 7)}, tables))
    assert check.good is good, check.detail
    assert good or f"{len(gone)} counted events are not in Kafka, which has earlier and later ones" in check.detail


def test_a_log_that_began_before_the_shop_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that were removed before any worker counted are no difference."""
    _, check = checked(monkeypatch, [COUNTED] * 9, start=9, counted_to=0)
    assert check.good, check.detail


def test_counts_without_records_are_found_behind_removed_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts that are larger than the number of offsets are a difference, also if old records were removed."""
    tables = Tables(1)
    rows = advance({}.get, [(offset, "anna", 1, 1) for offset in range(9)], end=5).rows()
    tables.take(0, [FakeRecord(*row) for row in rows])
    FakeTopics(monkeypatch, lambda topic: [[FakeRecord(b"anna", b"", offset) for offset in range(3, 5)]])
    bootstrap: Any = "kafka:1"
    _, check = asyncio.run(compare_accounts(bootstrap, "purchases", {0: Span(3, 5, 5)}, tables))
    assert (check.good, "4 more are counted than were sent" in check.detail) == (False, True)
