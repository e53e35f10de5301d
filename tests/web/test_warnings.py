"""The warnings of the page: which state of the shop gives which sentence, and which gives none."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from faust_batches import Trouble
from shopflow.kafka.offsets import Span
from shopflow.operations.letters import Id, Letter
from shopflow.shop.recent_sales import Snapshot
from shopflow.web.cached import UNASKED, Age
from shopflow.web.page.warnings import Report, ShopState, Waiting, WorkerState, warnings

AT = 1_800_000_000.0
FRESH, GONE = Age(AT, ""), Age(AT - 42, "gone")
KNOWN = Snapshot(since={0: 0.0, 1: 0.0})
STUCK = Trouble("open-transaction", "sold[0]", "An open transaction holds 3 events up", stops=True, since=AT - 130)


def report(*partitions: int, **fields: Any) -> Report:
    """The report of a worker that owns these partitions of `sold`."""
    counted = {number: dict.fromkeys(("customers", "purchases", "items", "spent"), 0) for number in partitions}
    given = {"serving": True, "assigned": {"sold": list(partitions)}, "counted": counted, "board": Snapshot()}
    return Report(**{**given, **fields})


def state(port: int, *partitions: int, **fields: Any) -> WorkerState:
    """A worker that answers, and owns these partitions of `sold`."""
    return WorkerState(f"http://h:{port}", report(*partitions, **fields))


def letter(reason: str, ago: float) -> Letter:
    """A dead letter that is `ago` seconds old."""
    time = datetime.fromtimestamp(AT - ago, timezone.utc)
    return Letter(Id(0, 1), time, "sold", 0, 1, reason, None, None, [])


WELL = ShopState(
    AT,
    [state(1, 0), state(2, 1)],
    KNOWN,
    topics=("sold",),
    partitions=2,
    spans={"sold": {0: Span(0, 5, 5), 1: Span(0, 7, 9)}},
    asked=FRESH,
    kafka=FRESH,
    mongodb=FRESH,
    mirrored=FRESH,
)


def said(**changes: Any) -> list[str]:
    """The texts of the warnings about `WELL` with these changes."""
    return [warning.text for warning in warnings(replace(WELL, **changes))]


def waiting(*pairs: tuple[int, int]) -> list[Waiting]:
    """The trend: (lag, events processed) in each pair, ten seconds apart."""
    return [Waiting(AT + 10 * number, events, done) for number, (events, done) in enumerate(pairs)]


def test_nothing_is_said_of_a_shop_that_is_well() -> None:
    """A value that is still unknown (None) gives no warning either."""
    assert said() == []
    assert said(kafka=UNASKED, mongodb=UNASKED, spans=None) == []
    assert WELL.waiting == 2
    assert replace(WELL, spans=None).waiting is None


def test_what_an_open_transaction_holds_up_waits() -> None:
    """Records behind an open transaction count as lag. There is no warning of them: the transaction is a trouble."""
    now = replace(WELL, spans={"sold": {0: Span(0, 5, 5, held=22), 1: Span(0, 7, 9, held=1)}})
    assert (now.waiting, warnings(now)) == (25, [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mongodb": GONE}, "MongoDB does not answer. New events wait in Kafka, nothing is lost."),
        ({"kafka": GONE}, "Kafka does not answer. Nothing new comes in until it is back."),
        (
            {"workers": [state(1, 0, mongodb_away=12.3), state(2, 1, mongodb_away=150.0)]},
            "MongoDB has not answered for 2 min. New events wait in Kafka, nothing is lost.",
        ),
        (
            {"workers": [state(1, 0), WorkerState("http://h:2", None)]},
            "The worker h:2 does not answer. Its numbers are missing here.",
        ),
        (
            {"workers": [state(1, 0), state(2, 1, serving=False)]},
            "The worker h:2 is in a rebalance.",
        ),
        (
            {"workers": [state(1, 0), state(2, 1, serving=False, recovering={0: (9, 10), 1: (53, 90)})]},
            "The worker h:2 recovers its counts: 62 %.",
        ),
        ({"workers": [state(1, 0)]}, "No worker owns partition 1 of sold."),
        ({"workers": [state(1)]}, "No worker owns partitions 0, 1 of sold."),
        (
            {"workers": [state(1, 0, 1, stopped={"sold": "too many are bad"})]},
            "The worker h:1 has stopped taking sold: too many are bad.",
        ),
        (
            {"workers": [state(1, 0, troubles=[STUCK]), state(2, 1, troubles=[STUCK])]},
            "An open transaction holds 3 events up. Since 2 min.",
        ),
        (
            {"letters": [letter("wrong key", 5), letter("old", 2_000)], "dead": 2},
            "1 event was rejected in the last 15 minutes. The last reason: wrong key",
        ),
        (
            {"letters": [letter("", 5), letter("x", 6)], "dead": 9},
            "At least 2 events were rejected in the last 15 minutes. The last reason: none given",
        ),
        (
            {"trend": waiting((3, 10), (3, 10), (4, 10), (9, 10))},
            "9 events wait in Kafka, and none was processed for 30 s.",
        ),
        (
            {"trend": waiting((1_000, 10), (1_200, 20), (1_400, 30), (1_600, 40))},
            "1600 events wait in Kafka, and the lag grows: they arrive faster than they are processed.",
        ),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], expected: str) -> None:
    """Each fault gives exactly one warning, which says what it means for the shop."""
    assert said(**changes) == [expected]


@pytest.mark.parametrize(
    "trend",
    [
        waiting((900, 10), (900, 10)),  # ten seconds are too short to judge
        waiting((0, 10), (9, 10), (9, 10), (9, 10)),  # the lag began 20 s ago
        waiting((5_000, 10), (4_000, 1_010), (3_000, 2_010), (2_000, 3_010)),  # the lag falls
        waiting((10, 10), (20, 20), (300, 30), (400, 40)),  # the lag grows, and is small
        waiting((500, 10), (500, 10), (500, 10), (0, 510)),  # the lag is 0 now
        [],
    ],
)
def test_a_normal_lag_gives_no_warning(trend: list[Waiting]) -> None:
    """A busy shop always has some lag. A lag that moves, falls, or is new or small gives no warning."""
    assert said(trend=trend) == []


def test_a_lag_that_is_not_known_now_gives_no_warning() -> None:
    """While Kafka does not answer, nobody knows how many events wait."""
    stuck = waiting((3, 10), (3, 10), (4, 10), (9, 10))
    assert said(trend=stuck, kafka=GONE) == ["Kafka does not answer. Nothing new comes in until it is back."]


def test_the_worst_comes_first() -> None:
    """The page takes its colour from the first warning."""
    found = warnings(replace(WELL, workers=[state(1, 0, 1, serving=False)], mongodb=GONE))
    assert [warning.level for warning in found] == ["bad", "warn"]


def test_a_reason_from_outside_is_cut() -> None:
    """A dead letter's reason can be kilobytes long. The warning quotes only its beginning."""
    assert len(said(letters=[letter("x" * 5_000, 1)], dead=1)[0]) < 300
