"""Applies the rules of promotions to purchases and registrations. Does no I/O, so rules can be tried on the past.

Windows are whole days (UTC) by the time of the events. A customer's clock is the time of their newest purchase; a
window is the clock's day and the days before it. A late purchase counts for its own day, if that day is in the longest
window of the rules. Earlier days are dropped, so the state of a customer is bounded.

A purchase dated more than a day after it was sent would move the clock ahead, and later purchases would be outside all
windows. So it counts as a purchase, but in no window.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import msgspec

from shopflow.config.promotions import MAX_DAYS, City, Nth, Rule, Share, Spent

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECOND = timedelta(milliseconds=1)
_LAST = datetime.max.replace(tzinfo=timezone.utc)


class Day(msgspec.Struct, array_like=True, gc=False):
    """A customer's spending on one day, in grosze."""

    spent: int = 0
    parts: dict[str, int] = {}
    """The part of it that counts for each `Share` rule, by the rule's name."""


class Window(msgspec.Struct, omit_defaults=True):
    """The state of a customer: the value of table `customer_windows`.

    `offset` is that of the last applied purchase: one at or below it is a redelivery. `era` is that of the counts.
    """

    era: int = 0
    offset: int = -1
    purchases: int = 0
    clock: int = 0
    """The time of the newest purchase: milliseconds since 1970."""

    days: dict[int, Day] = {}
    """Key: the days since 1970."""

    given: dict[str, int] = {}
    """The name of a rule -> the day (since 1970) of its last voucher."""


decode_window = msgspec.json.Decoder(Window).decode
encode_window = msgspec.json.Encoder().encode


class Bought(msgspec.Struct, frozen=True, gc=False):
    """The fields of a purchase that rules need. A struct, because a `dataclass` takes 1 us longer for each purchase."""

    offset: int
    at: datetime
    spent: int
    """Grosze."""

    product_id: str
    product_type: str | None = None
    """None: unknown; then the purchase counts for no product type."""

    sent: int | None = None
    """When it was sent, in milliseconds since 1970; None: unknown."""


@dataclass(frozen=True)
class Earned:
    """A voucher that a customer has earned. The same log gives the same vouchers."""

    rule: Rule
    customer_id: str
    window: str
    """Distinguishes the rule's vouchers for one customer: a date, a number or `registration`."""

    at: datetime
    """The time of the event that earned it, in UTC."""

    @property
    def id(self) -> str:
        """Rule, customer and window. Names of rules and windows contain no `:`."""
        return f"{self.rule.name}:{self.customer_id}:{self.window}"

    @property
    def valid_until(self) -> datetime:
        days = timedelta(days=self.rule.voucher.valid_days)
        return self.at + days if self.at < _LAST - days else _LAST


class Rules:
    """The rules that are switched on."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._shares = [rule for rule in rules if isinstance(rule, Share)]
        self._nths: dict[int, list[Nth]] = {}
        for rule in rules:
            if isinstance(rule, Nth):
                self._nths.setdefault(rule.n, []).append(rule)
        self._cities = [
            (rule, frozenset(_folded(city) for city in rule.cities)) for rule in rules if isinstance(rule, City)
        ]
        self._windows: list[Share | Spent] = [rule for rule in rules if isinstance(rule, Share | Spent)]
        self._days = max((rule.days for rule in self._windows), default=0)
        self.about_purchases = bool(self._windows or self._nths)
        """True if a rule needs the table of windows."""

        self.about_registrations = bool(self._cities)
        self.about_types = any(rule.product_types for rule in self._shares)
        """True if a rule needs the products' types."""

    def register(self, customer_id: str, city: str | None, at: datetime) -> Iterator[Earned]:
        for rule, cities in self._cities:
            if city is not None and _folded(city) in cities:
                yield Earned(rule, customer_id, "registration", at)

    def buy(self, window: Window, customer_id: str, bought: Bought, already: Collection[str] = ()) -> list[Earned]:
        """Apply a purchase that is not in the window yet. Returns what it earns.

        Arguments:
            already: Names of the rules that gave a voucher for this purchase before. They give it again.
        """
        window.offset = bought.offset
        window.purchases += 1
        earned = self._earned_by_number(window.purchases, customer_id, bought, already)
        if self._days:
            at = (bought.at - _EPOCH) // _MILLISECOND
            if bought.sent is None or at <= bought.sent + _DAY_MS:
                self._add(window, bought, at)
                earned += self._earned_by_windows(window, customer_id, already)
        return earned

    def _earned_by_number(
        self, number: int, customer_id: str, bought: Bought, already: Collection[str]
    ) -> list[Earned]:
        rules = self._nths.get(number, [])
        if already:
            others = [rule for n, some in self._nths.items() for rule in some if n != number]
            rules = rules + [rule for rule in others if rule.name in already]
        return [Earned(rule, customer_id, str(rule.n), bought.at) for rule in rules]

    def _add(self, window: Window, bought: Bought, at: int) -> None:
        day = at // _DAY_MS
        if at > window.clock or not window.days:
            if day > window.clock // _DAY_MS:
                self._drop_old(window, day)
            window.clock = at
        if day <= window.clock // _DAY_MS - self._days:
            return
        kept = window.days.get(day)
        if kept is None:
            kept = window.days[day] = Day()
        kept.spent += bought.spent
        for rule in self._shares:
            if bought.product_type in rule.product_types or bought.product_id in rule.product_ids:
                kept.parts[rule.name] = kept.parts.get(rule.name, 0) + bought.spent

    def _drop_old(self, window: Window, today: int) -> None:
        oldest = today - self._days
        for day in [day for day in window.days if day <= oldest]:
            del window.days[day]
        for name in [name for name, then in window.given.items() if then <= today - MAX_DAYS]:
            del window.given[name]

    def _earned_by_windows(self, window: Window, customer_id: str, already: Collection[str]) -> Iterator[Earned]:
        today = window.clock // _DAY_MS
        for rule in self._windows:
            last = window.given.get(rule.name)
            if last is not None and today < last + rule.days and rule.name not in already:
                continue
            if _is_earned(rule, window, today) or rule.name in already:
                window.given[rule.name] = today
                at = _EPOCH + window.clock * _MILLISECOND
                yield Earned(rule, customer_id, at.date().isoformat(), at)


def _is_earned(rule: Share | Spent, window: Window, today: int) -> bool:
    name, oldest = rule.name, today - rule.days
    spent = part = 0
    for day, kept in window.days.items():
        if day > oldest:
            spent += kept.spent
            part += kept.parts.get(name, 0)
    if isinstance(rule, Spent):
        return spent >= rule.amount
    return spent >= rule.min_spent and part * 100 > spent * rule.percent


def _folded(city: str) -> str:
    return city.strip().casefold()
