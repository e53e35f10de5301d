"""Losses: told once each, with the time, until they are mended or a day old; nothing that was read is a loss."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from faust_batches import Troubles
from faust_batches.losses import AGAIN_SECONDS, MOVED, REMOVED, TOLD_SECONDS, TOO_SHORT, Losses
from faust_batches.membership import COMMITTED_BY, SET_BACK_BY

SOLD = TP("sold", 0)


class Case:
    """The losses of a worker, and a clock."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.troubles = Troubles()
        app: Any = SimpleNamespace(troubles=self.troubles, advice={TOO_SHORT: "; mend {topic}:{partition}"})
        self.losses = Losses(app, lambda: self.now)

    @property
    def told(self) -> dict[str, str]:
        """Kind -> text."""
        return {trouble.kind: trouble.text for trouble in self.troubles.present}


def test_a_loss_is_a_warning_with_its_time_that_ends_after_a_day() -> None:
    """Nobody can mend it, so it makes no worker unready, and is not told for ever."""
    case = Case()
    case.losses.removed(SOLD, 5, 7)
    case.losses.removed(SOLD, 5, 7)  # the records are fetched again
    assert case.told[REMOVED].startswith(
        "sold[0]: Kafka removed the records at offsets 5 to 6 before a worker read them; they are lost (2 offsets, "
        "found at 2027-01-15 08:00 UTC)"
    )
    assert [one.stops for one in case.troubles.present] == [False]
    case.now += TOLD_SECONDS + 1
    case.losses.look_again([SOLD])
    assert case.told == {}


def test_a_loss_that_grows_is_logged_again_and_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    """With a retention that is too short, Kafka deletes records again and again."""
    case = Case()
    for start in range(0, 400, 4):
        case.losses.removed(SOLD, start, start + 2)
        case.now += 1
    case.losses.look_again([SOLD])
    assert "between 0 and 397 before a worker read them; they are lost (200 offsets" in case.told[REMOVED]
    assert len(caplog.records) == 1 + 100 // AGAIN_SECONDS
    case.now += AGAIN_SECONDS
    for _ in range(3):
        case.losses.look_again([SOLD])
    assert "(200 offsets" in caplog.messages[-1]
    assert len(caplog.records) == 2 + 100 // AGAIN_SECONDS
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_what_was_read_is_no_loss() -> None:
    """The tables are ahead of the commit after a crash; a replay has reset the offset."""
    case = Case()
    case.losses.look(SOLD, read=9, start=4, earliest=7, end=20)
    case.losses.removed(SOLD, 4, 7)
    assert case.told == {}
    case.losses.look(SOLD, read=9, start=9, earliest=12, end=20)
    assert "offsets 9 to 11 before" in case.told[REMOVED]


def test_a_partition_that_is_too_short_is_told_until_it_is_long_enough_or_anothers() -> None:
    """A worker is not ready meanwhile; one that lost the partition can't know."""
    case = Case()
    case.losses.look(SOLD, read=9, start=9, earliest=0, end=5)
    assert case.told[TOO_SHORT].endswith("new records are not read until they reach offset 9; mend sold:0")
    assert [one.stops for one in case.troubles.present] == [True]
    case.losses.long_enough(SOLD)
    assert case.told == {}
    case.losses.too_short(SOLD, 5, 9)
    case.losses.look_again([SOLD])
    assert set(case.told) == {TOO_SHORT}
    case.losses.look_again([])
    assert case.told == {}


def test_an_offset_that_something_else_set_is_told_until_it_is_set_back() -> None:
    """Or for a day: the worker can't know whether somebody has read the skipped records otherwise."""
    case = Case()
    case.losses.started(SOLD, 8, COMMITTED_BY, None, 0)
    assert case.told == {}
    case.losses.started(SOLD, 8, "by hand", None, 0)
    assert case.told[MOVED].startswith("The committed offset of sold[0] was set to 8 by 'by hand'; records before it")
    case.losses.started(SOLD, 0, SET_BACK_BY, None, 0)
    assert case.told == {}
    case.losses.started(SOLD, 3, "", None, 3)
    assert case.told[MOVED].endswith("it is read again from its first record on: nothing is skipped")
    case.losses.started(SOLD, 8, "", None, 3)
    case.now += TOLD_SECONDS + 1
    case.losses.look_again([SOLD])
    assert case.told == {}
