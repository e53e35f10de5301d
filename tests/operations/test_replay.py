"""`replay`: its progress, and restored vouchers."""

from __future__ import annotations

from typing import Any

import pytest

from shopflow.kafka import offsets
from shopflow.kafka.offsets import Span
from shopflow.operations import replay as rebuild
from shopflow.operations.replay import Work
from shopflow.operations.verify.announcements import compare_announcements
from shopflow.shop.announcements import VOUCHERS
from tests.conftest import Run
from tests.support.documents import kafka, voucher
from tests.support.fakes import FakeRecord, FakeTopics, layout, numbered
from tests.support.stores import ByHand, ObservedStore

ENDS = {("shop.purchases", 0): 100, ("shop.purchases", 1): 50, ("shop.products", 0): 0}


def test_only_what_the_topics_still_have_is_read_again() -> None:
    """Offsets that retention removed from a partition don't count as work."""
    starts = {("shop.purchases", 0): 40, ("shop.purchases", 1): 0, ("shop.products", 0): 0}
    work = Work(starts, ENDS)
    assert work.total == 110
    assert work.done({}) == 0
    assert work.done(starts) == 0
    assert work.done({("shop.purchases", 0): 60, ("shop.purchases", 1): 50}) == 70


def test_what_arrives_meanwhile_does_not_count() -> None:
    """New events don't count as work, so that the progress of a replay in a busy shop reaches its end."""
    work = Work(dict.fromkeys(ENDS, 0), ENDS)
    assert work.done({tp: end + 1_000 for tp, end in ENDS.items()}) == work.total == 150


def test_of_a_voucher_published_twice_the_first_event_counts(
    monkeypatch: pytest.MonkeyPatch, store: ObservedStore, by_hand: ByHand, run: Run
) -> None:
    """MongoDB had lost the voucher, and it was published again for another event. `verify` does the same."""

    def published(offset: int, percent: int) -> FakeRecord:
        made = voucher("v", kafka(offset, topic="customers"), worth={"text": "butter", "percent": percent})
        return FakeRecord(b"anna", VOUCHERS.event(made))

    records = numbered([published(5, 10), published(50, 20), published(60, 30)])

    async def spans(bootstrap: str, group: str, topics: Any) -> dict[str, dict[int, Span]]:
        return {topic: {0: Span(0, 0, 3)} for topic in topics}

    monkeypatch.setattr(offsets, "spans", spans)
    FakeTopics(monkeypatch, lambda topic: [records])
    shop = layout(1)
    run(rebuild.restore("kafka:1", store, shop, shop.vouchers, VOUCHERS))
    assert by_hand.find("vouchers", "v")["percent"] == 10
    check = run(compare_announcements("kafka:1", shop.group, shop.vouchers, VOUCHERS, store))
    assert (check.good, check.detail) == (True, "1 published, each in MongoDB as it was published, 2 repeats")
