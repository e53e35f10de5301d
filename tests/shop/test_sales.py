"""Sales by product: the same for any batches, redeliveries and crashes."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faust_batches import TOTALS_KEY
from faust_batches.audit import Audit
from shopflow.models import Purchase
from shopflow.shop import sales as sales_module
from shopflow.shop.counts import decode_count, decode_totals, new_era_totals
from shopflow.shop.sales import PERIODS, Sale, advance, key_of, sale_of, start_of
from tests.support.documents import DAY, HOUR, MINUTE, NOON
from tests.support.events import accepted
from tests.support.fakes import FakeRecord

#: A time in the middle of an hour.
HALF_PAST = NOON + 30 * MINUTE

Fresh = list[tuple[Any, Any]]

purchases = st.lists(
    st.builds(
        accepted,
        product_id=st.sampled_from(["milk", "tea", "$set", "day 2026"]),
        quantity=st.integers(1, 5),
        price=st.integers(0, 900),
        purchased_at=st.sampled_from([HALF_PAST, HALF_PAST + 40 * MINUTE, HALF_PAST - DAY]),
    ),
    min_size=1,
    max_size=30,
)


def numbered(events: list[Purchase]) -> Fresh:
    """Each purchase with a record at its offset."""
    return [(FakeRecord(None, None, offset), event) for offset, event in enumerate(events)]


def enter(rows: dict[bytes, bytes], fresh: Fresh, end: int, only: set[bytes] | None = None) -> None:
    """Handle a batch; with `only`, a crash lets just these rows into the changelog."""
    made = advance(rows.get, fresh, end=end).rows()
    rows.update((key, value) for key, value in made if only is None or key in only)


def whole(events: list[Purchase]) -> dict[bytes, bytes]:
    """Handle all purchases in one batch."""
    rows: dict[bytes, bytes] = {}
    enter(rows, numbered(events), len(events))
    return rows


def sales(rows: dict[bytes, bytes]) -> set[Sale]:
    """The rows as sales."""
    return {sale_of(key, decode_count(value)) for key, value in rows.items() if key != TOTALS_KEY}


def test_a_purchase_is_in_the_total_in_its_day_and_in_its_hour() -> None:
    """Days and hours are in UTC."""
    rows = whole([accepted("milk", 2, 300, HALF_PAST), accepted("milk", 1, 400, HALF_PAST + HOUR)])
    day, hour = HALF_PAST.replace(hour=0, minute=0), HALF_PAST.replace(minute=0)
    assert sales(rows) == {
        Sale("total", None, "milk", 2, 3, 1000),
        Sale("day", day, "milk", 2, 3, 1000),
        Sale("hour", hour, "milk", 1, 2, 600),
        Sale("hour", hour + HOUR, "milk", 1, 1, 400),
    }


@given(purchases)
def test_the_sums_beside_the_rows_are_what_they_add_up_to(events: list[Purchase]) -> None:
    """The audit after a recovery compares the rows with the totals."""
    rows = whole(events)
    audit = Audit(("purchases", "items", "spent"), "customers")
    for key, value in sorted(rows.items()):
        audit.add(key, value)
    assert audit.conclusive
    assert audit.agrees
    assert audit.sums[0] == len(PERIODS) * len(events)
    assert audit.totals.spent == len(PERIODS) * sum(event.quantity * event.price for event in events)


@given(purchases, st.data())
def test_however_it_is_cut_into_batches_the_rows_are_the_same(events: list[Purchase], data: st.DataObject) -> None:
    """Where a batch ends depends on what had arrived by then."""
    rows: dict[bytes, bytes] = {}
    numbers, start = numbered(events), 0
    while start < len(events):
        end = data.draw(st.integers(start + 1, len(events)))
        enter(rows, numbers[start:end], end)
        start = end
    assert rows == whole(events)


@given(purchases, st.data())
def test_what_comes_again_after_a_crash_changes_nothing(events: list[Purchase], data: st.DataObject) -> None:
    """A crash leaves some rows of a batch in the changelog. The batch then comes again with other limits."""
    rows: dict[bytes, bytes] = {}
    numbers = numbered(events)
    cut = data.draw(st.integers(0, len(events)))
    enter(rows, numbers[:cut], cut)
    left = {key for key in whole(events) if data.draw(st.booleans())}
    enter(rows, numbers[cut:], len(events), only=left)
    again = data.draw(st.integers(0, cut))
    second = data.draw(st.integers(again, len(events)))
    for start, end in ((again, second), (second, len(events))):
        if start < end:
            enter(rows, numbers[start:end], end)
    assert sales(rows) == sales(whole(events))
    found, expected = decode_totals(rows[TOTALS_KEY]), decode_totals(whole(events)[TOTALS_KEY])
    assert (found.customers, found.purchases, found.items, found.spent) == (
        *(expected.customers, expected.purchases, expected.items, expected.spent),
    )


def test_a_new_era_counts_from_the_start() -> None:
    """After a replay the rows of the earlier era count for nothing."""
    rows = whole([accepted("milk", 2, 300, HALF_PAST)])
    rows[TOTALS_KEY] = new_era_totals(0, 1000)
    enter(rows, numbered([accepted("milk", 1, 300, HALF_PAST)]), 1)
    assert Sale("total", None, "milk", 1, 1, 300) in sales(rows)
    assert decode_totals(rows[TOTALS_KEY]).purchases == len(PERIODS)


@given(st.sampled_from(PERIODS), st.text(min_size=1))
def test_a_key_says_what_it_is(period: str, product_id: str) -> None:
    """A product's id may look like the key of a row."""
    cut = {"total": "", "day": "2026-05-01", "hour": "2026-05-01T12"}[period]
    start = {"total": None, "day": datetime(2026, 5, 1, tzinfo=timezone.utc), "hour": HALF_PAST.replace(minute=0)}[
        period
    ]
    assert start_of(key_of(period, cut, product_id)) == (period, start, product_id)


def test_a_batch_that_comes_again_is_looked_at_once_and_not_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many products a redelivery would hold up the event loop for minutes."""
    events = [accepted(f"product-{number % 200}", 1, 100, HALF_PAST) for number in range(800)]
    numbers, rows = numbered(events), dict[bytes, bytes]()
    enter(rows, numbers[:400], 400)
    made: list[str] = []
    key = sales_module.key_of
    monkeypatch.setattr(sales_module, "key_of", lambda *parts: made.append("") or key(*parts))
    enter(rows, numbers, 800)
    assert sales(rows) == sales(whole(events))
    assert len(made) <= 3 * len(PERIODS) * len(events)
