"""The rules of promotions: vouchers follow the events' times in any order, and windows have an end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shopflow.config.promotions import EXAMPLES, Rule, active
from shopflow.shop.promotions.windows import Bought, Earned, Rules, Window, decode_window, encode_window
from tests.support import vouchers as oracle
from tests.support.documents import DAY

START = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
TYPES = {"rye": "bread", "wheat": "bread", "milk": "dairy"}
GIFT = {"text": "butter", "percent": 5}


def rule(kind: str, **fields: Any) -> Rule:
    """A rule of this kind, named after it."""
    return msgspec.convert({"name": kind, "kind": kind, "voucher": GIFT, **fields}, Rule)


SHARE = rule("share", product_types=["bread"], percent=25, days=30)
SPENT = rule("spent", amount=1_000, days=7)
NTH = rule("nth", n=3)
CITY = rule("city", cities=["Łódź", " KRAKÓW"])
ALL = (SHARE, SPENT, NTH)


def buy(rules: Rules, window: Window, *purchases: tuple[float, int, str], start: int = 0) -> list[str]:
    """Buy on these days; returns the ids of the vouchers."""
    found: list[Earned] = []
    for offset, (day, spent, product) in enumerate(purchases, start):
        bought = Bought(offset, START + day * DAY, spent, product, TYPES.get(product))
        found += rules.buy(window, "anna", bought)
    return [one.id for one in found]


def test_more_than_the_share_earns_a_voucher_and_exactly_the_share_does_not() -> None:
    rules = Rules([SHARE])
    assert buy(rules, Window(), (0, 75, "milk"), (0, 25, "rye")) == []
    assert buy(rules, Window(), (0, 74, "milk"), (0, 25, "rye")) == ["share:anna:2026-01-01"]
    assert buy(rules, Window(), (0, 0, "rye")) == []


def test_a_share_waits_until_enough_was_spent() -> None:
    """Without `min_spent` the first purchase alone would decide."""
    rules = Rules([rule("share", product_types=["bread"], percent=25, days=30, min_spent=100)])
    assert buy(rules, Window(), (0, 99, "rye"), (1, 1, "milk")) == ["share:anna:2026-01-02"]


def test_a_share_may_be_of_products_by_their_ids() -> None:
    rules = Rules([rule("share", product_ids=["milk"], percent=50, days=30)])
    assert buy(rules, Window(), (0, 10, "rye"), (0, 11, "milk")) == ["share:anna:2026-01-01"]


def test_a_voucher_is_given_once_in_the_days_of_the_rule() -> None:
    """The next one is given `days` days later, and not a day before."""
    rules = Rules([SPENT])
    days = [(float(day), 1_000, "milk") for day in range(15)]
    assert buy(rules, Window(), *days) == [f"spent:anna:2026-01-{day:02}" for day in (1, 8, 15)]


def test_what_is_older_than_the_window_counts_no_more() -> None:
    rules = Rules([SPENT])
    assert buy(rules, Window(), (0, 600, "milk"), (7, 400, "milk")) == []
    assert buy(rules, Window(), (0, 600, "milk"), (6, 400, "milk")) == ["spent:anna:2026-01-07"]


def test_each_rule_has_its_own_window() -> None:
    """Purchases that a longer window keeps do not count in a shorter one."""
    rules = Rules([SPENT, rule("share", product_types=["bread"], percent=50, days=8)])
    assert buy(rules, Window(), (0, 600, "milk"), (7, 400, "milk")) == []
    assert buy(rules, Window(), (0, 300, "rye"), (7, 200, "milk"), (8, 100, "milk")) == ["share:anna:2026-01-01"]
    assert buy(rules, Window(), (0, 300, "milk"), (7, 200, "rye"), (8, 100, "milk")) == ["share:anna:2026-01-09"]


def test_a_late_purchase_counts_for_its_own_day() -> None:
    """A late purchase may complete a window that ends with a later purchase."""
    rules = Rules([SPENT])
    assert buy(rules, Window(), (6, 600, "milk"), (0, 400, "milk")) == ["spent:anna:2026-01-07"]
    assert buy(rules, Window(), (7, 600, "milk"), (0, 400, "milk")) == []


def test_the_nth_purchase_earns_once() -> None:
    assert buy(Rules([NTH]), Window(), *[(0.0, 1, "milk")] * 7) == ["nth:anna:3"]


def test_a_purchase_dated_ahead_moves_no_window() -> None:
    """One purchase with a time far ahead must not end the customer's promotions for years."""
    rules, window = Rules([SPENT, rule("nth", n=1)]), Window()
    sent = int(START.timestamp() * 1000)
    ahead = Bought(0, START + 2 * DAY, 5_000, "milk", sent=sent)
    assert [one.id for one in rules.buy(window, "anna", ahead)] == ["nth:anna:1"]
    assert not window.days
    assert buy(rules, window, (0, 1_000, "milk"), start=1) == ["spent:anna:2026-01-01"]


@pytest.mark.parametrize(("city", "earns"), [("łódź", True), (" Kraków ", True), ("Gdynia", False), (None, False)])
def test_a_registration_from_a_city_earns_a_welcome(city: str | None, earns: bool) -> None:
    """Case, and blanks around the city's name, make no difference."""
    found = list(Rules([CITY, *ALL]).register("a:b", city, START))
    assert [one.id for one in found] == ["city:a:b:registration"] * earns
    assert all(one.valid_until == START + 30 * DAY for one in found)


def test_a_rule_that_is_switched_off_is_not_active() -> None:
    off = rule("nth", n=1, enabled=False)
    assert active((off, NTH)) == (NTH,)


def test_a_voucher_is_good_to_the_end_of_time_at_the_most() -> None:
    """An event may be dated in the year 9999."""
    last = datetime.max.replace(tzinfo=timezone.utc)
    assert Earned(CITY, "anna", "registration", last).valid_until == last


def test_what_was_given_before_stays_given() -> None:
    """The product's type may have changed since. The rule's days count from the voucher that was given."""
    rules, window = Rules([SHARE]), Window()
    now_dairy = Bought(0, START, 100, "rye", "dairy")
    assert [one.id for one in rules.buy(window, "anna", now_dairy, {"share"})] == ["share:anna:2026-01-01"]
    assert buy(rules, window, (29, 1_000, "rye"), start=1) == []


def test_the_examples_are_rules() -> None:
    rules = msgspec.convert(EXAMPLES, tuple[Rule, ...])
    assert {type(one).__name__ for one in rules} == {"Share", "City", "Nth", "Spent"}


# -- whatever the log

RULES = st.lists(
    st.one_of(
        st.builds(
            lambda percent, days, least: rule(
                "share", product_types=["bread"], percent=percent, days=days, min_spent=least
            ),
            st.integers(0, 99), st.integers(1, 40), st.integers(0, 300),
        ),
        st.builds(lambda least, days: rule("spent", amount=least, days=days), st.integers(1, 900), st.integers(1, 40)),
        st.builds(lambda n: rule("nth", n=n), st.integers(1, 9)),
    ),
    min_size=1, max_size=3, unique_by=lambda one: one.name,
)  # fmt: skip
LOG = st.lists(
    st.builds(
        oracle.Bought,
        st.sampled_from(["anna", "bob"]),
        st.integers(-100, 100).map(lambda half_days: START + half_days * DAY / 2),
        st.integers(0, 300),
        st.sampled_from(["rye", "wheat", "milk", "unknown"]),
    ),
    max_size=40,
)


class Table:
    """The windows of all customers, as the workers keep them."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = Rules(rules)
        self.rows: dict[str, bytes] = {}

    def take(self, log: Sequence[oracle.Bought], start: int = 0) -> list[str]:
        """Apply this part of the log; returns the ids of the vouchers."""
        found = []
        for offset, bought in enumerate(log, start):
            known = self.rows.get(bought.customer_id)
            window = decode_window(known) if known else Window()
            if offset > window.offset:
                one = Bought(offset, bought.at, bought.spent, bought.product_id, TYPES.get(bought.product_id))
                found += self._rules.buy(window, bought.customer_id, one)
                self.rows[bought.customer_id] = encode_window(window)
        return [earned.id for earned in found]


@given(rules=RULES, log=LOG)
def test_any_log_earns_what_the_oracle_says(rules: list[Rule], log: list[oracle.Bought]) -> None:
    """The log has late events, gaps and several customers. No voucher's id comes twice."""
    found = Table(rules).take(log)
    assert found == oracle.expected(rules, TYPES, log)
    assert len(set(found)) == len(found)


@given(rules=RULES, log=LOG, data=st.data())
def test_redelivered_and_cut_anywhere_it_is_the_same(rules: list[Rule], log: list[oracle.Bought], data: Any) -> None:
    """Redelivered purchases earn no other and no further vouchers."""
    table, found, start = Table(rules), [], 0
    for end in [*sorted(data.draw(st.sets(st.integers(0, len(log)), max_size=6))), len(log)]:
        found += table.take(log[start:end], start)
        start = data.draw(st.integers(0, end))
    whole = Table(rules)
    assert found == whole.take(log)
    assert table.rows == whole.rows


@given(log=LOG, data=st.data())
def test_the_windows_do_not_depend_on_the_order(log: list[oracle.Bought], data: Any) -> None:
    """Each purchase counts for its own day, however late it comes."""
    tables = Table([SHARE, SPENT]), Table([SHARE, SPENT])
    tables[0].take(log)
    tables[1].take(data.draw(st.permutations(log)))
    for name in {one.customer_id for one in log}:
        first, second = (decode_window(table.rows[name]) for table in tables)
        assert (first.clock, first.days) == (second.clock, second.days)


@given(log=LOG)
def test_what_is_kept_of_a_customer_has_an_end(log: list[oracle.Bought]) -> None:
    """A customer's row has a sum for each day of the longest window, and the last voucher of each rule."""
    table = Table(ALL)
    table.take(log)
    for row in table.rows.values():
        window = decode_window(row)
        assert len(window.days) <= SHARE.days  # type: ignore[union-attr]
        assert all(set(day.parts) <= {"share"} for day in window.days.values())
        assert set(window.given) <= {"share", "spent"}


@given(rules=RULES, log=LOG)
def test_no_two_vouchers_of_a_window_are_closer_than_its_days(rules: list[Rule], log: list[oracle.Bought]) -> None:
    """A rule gives a customer at most one voucher in its days."""
    found = Table(rules).take(log)
    for one in rules:
        for name in ("anna", "bob"):
            days = [each.rpartition(":")[2] for each in found if each.startswith(f"{one.name}:{name}:")]
            if hasattr(one, "days"):
                dates = [datetime.fromisoformat(day) for day in days]
                assert all((after - before).days >= one.days for before, after in pairwise(dates))
