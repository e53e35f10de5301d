"""The limit on failing records: at which record it is passed, and what waits then."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

import pytest
from faust.types import TP

from shopflow.errors import PartitionLost
from shopflow.shop import failure_limit as limits
from shopflow.shop.failure_limit import FailureShare, Limit
from tests.support.fakes import FakeRecord


def add(share: FailureShare, good: str, *, partition: int = 0, start: int = 0) -> bool:
    """Add a batch, a letter a record: `.` is good, others are reasons of bad ones. True if the limit was passed."""
    records = [FakeRecord(None, None, start + number, partition) for number in range(len(good))]
    share.add(partition, records, [(start + number, letter) for number, letter in enumerate(good) if letter != "."])
    return share.passed


@pytest.mark.parametrize(
    ("batch", "passed"),
    [
        ("xxxxx", False),
        ("xxxxxx", True),
        ("xxxxx.....x", False),
        ("xxxxx....x", True),
        ("xxxxxx" + "." * 50, True),
        ("." * 50 + "x.x.x.x.x.x.x.x.x.x.", False),
        ("." * 50 + "xx.x.x.x.x.x", True),
    ],
)
def test_more_than_the_share_of_the_window_is_too_much(batch: str, passed: bool) -> None:
    """The limit is passed at the same record, wherever it is in a batch."""
    assert add(FailureShare(0.5, 10), batch) is passed


def test_how_records_are_cut_into_batches_makes_no_difference() -> None:
    """The result is compared with a count of each window."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(300):
        window, share = chance.randint(1, 12), chance.choice([0, 0.25, 0.5, 0.9, 1])
        text = "".join(chance.choice("..x") for _ in range(chance.randint(1, 40)))
        most = max(text[max(0, end - window) : end].count("x") for end in range(1, len(text) + 1))
        found, at = FailureShare(share, window), 0
        while at < len(text):
            size = chance.randint(1, 10)
            add(found, text[at : at + size], start=at)
            at += size
        assert found.passed is (most > share * window), (window, share, text)


def test_a_small_topic_may_be_all_bad() -> None:
    """A few bad records are dead letters, however large their share is."""
    assert not add(FailureShare(0.5, 1000), "x" * 500)


def test_a_share_of_1_is_never_passed_and_one_of_0_by_the_first() -> None:
    """A share of 1 switches the limit off. A share of 0 stops at the first bad record."""
    assert not add(FailureShare(1, 10), "x" * 100)
    assert add(FailureShare(0, 10), "x")


def test_a_batch_that_comes_again_counts_once() -> None:
    """A redelivered batch may be longer. Each partition has its own window."""
    share = FailureShare(0.5, 10)
    for _ in range(5):
        assert not add(share, "xxx")
    assert not add(share, "xxxx")
    assert not add(share, "..", partition=1)
    assert not add(share, "x", partition=1, start=2)
    assert add(share, "x", start=4)


def test_missing_offsets_are_not_counted() -> None:
    """Compaction and transactions leave holes between offsets. The window is of records."""
    share = FailureShare(0.5, 4)
    records = [FakeRecord(None, None, offset) for offset in (10, 50, 900)]
    share.add(0, records, [(record.offset, "x") for record in records])
    assert share.passed


def test_it_knows_how_many_and_why() -> None:
    """When the limit is passed, the number of records, the number of failures and the most common reason are known."""
    share = FailureShare(0.5, 100)
    add(share, "." * 10 + "aab" * 30)
    assert (share.failures, share.records, share.reason) == (90, 100, "a")
    share = FailureShare(0.5, 100)
    add(share, "z" * 60)
    assert (share.failures, share.records, share.reason) == (60, 60, "z")


def test_memory_is_bounded_by_the_window() -> None:
    """A topic may fail for ever with a share of 1."""
    share = FailureShare(1, 10)
    for number in range(100):
        add(share, "x" * 100, start=100 * number)
    assert len(share._failed) == 10


def test_it_says_which_topics_are_stopped() -> None:
    """The page shows them. Nothing is shown while no batch waits."""
    limit = Limit(0.5, 4)
    assert hold(limit, "..x.") == 0
    assert limit.stopped == {}
    assert hold(limit, "xxx", start=4) == 3
    assert limit.stopped == {"shop.purchases": "3 of its last 4 records can't be accepted, most often: why"}


def hold(limit: Limit, good: str, *, topic: str = "shop.purchases", start: int = 0, looks: int = 3) -> int:
    """Offer a batch, which is lost at check number `looks`. Returns the number of checks."""
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == looks:
            raise PartitionLost("lost")

    records = [FakeRecord(None, None, start + number, 0, topic) for number in range(len(good))]
    failed = [(start + number, "why") for number, letter in enumerate(good) if letter == "x"]
    try:
        asyncio.run(asyncio.wait_for(limit.hold(TP(topic, 0), records, failed, check), 10))
    except PartitionLost:
        return asked
    assert asked == 0
    return 0


def said(caplog: pytest.LogCaptureFixture) -> Iterable[str]:
    """The errors in the log."""
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def test_a_batch_is_held_until_it_is_lost(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Only the loss of its partition ends the hold, which is logged once. Other topics go on."""
    monkeypatch.setattr(limits, "_CHECK_SECONDS", 0)
    limit = Limit(0.5, 10)
    assert hold(limit, "xxxxx") == 0
    assert list(limit.stopped) == []
    assert hold(limit, "x", start=5, looks=7) == 7
    assert list(limit.stopped) == ["shop.purchases"]
    assert hold(limit, "x", start=5) == 3
    assert hold(limit, "." * 100, start=6) == 3
    assert hold(limit, "xxxxx", topic="shop.products") == 0
    (line,) = said(caplog)
    for word in ("shop.purchases", "6 of the last 6", "0.5 of 10", "why", "restart", "dead_letters.max_share"):
        assert word in line
    assert "\n" not in line
