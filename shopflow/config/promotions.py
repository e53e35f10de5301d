"""The rules of promotions in the configuration: their types, limits and meanings."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import msgspec

from .checks import check, in_range

MAX_DAYS = 366
MAX_AMOUNT = 10**12

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,58}[a-z0-9])?")


def _texts(values: tuple[str, ...]) -> bool:
    return all(0 < len(value.strip()) <= 256 for value in values)


class Gift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The discount that a voucher gives."""

    product_type: str = ""
    """The type of the products that it is for. Empty: `text` describes them."""

    text: str = ""
    """A description of the products, for people."""

    percent: int = 0
    """The discount in percent. Set either this or `amount`."""

    amount: int = 0
    """The discount in grosze."""

    valid_days: int = 30
    """How long the voucher is valid, from the time of the event that it is given for."""

    def __post_init__(self) -> None:
        check(len(self.product_type) <= 256, "product_type", "at most 256 characters")
        check(len(self.text) <= 1_000, "text", "at most 1000 characters")
        check(self.product_type != "" or self.text != "", "product_type", "given, or `text`")
        in_range(self, percent=(0, 100), amount=(0, MAX_AMOUNT))
        check((self.percent > 0) != (self.amount > 0), "percent", "given, or else `amount`: one of the two")
        in_range(self, valid_days=(1, 3_660))


class _Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    name: str
    """Unique among the rules: the ids of its vouchers begin with it. Small letters, digits, `-` and `_`."""

    voucher: Gift

    enabled: bool = True
    """False: the rule gives no vouchers, but can be tried."""

    def __post_init__(self) -> None:
        check(_NAME.fullmatch(self.name) is not None, "name", "1 to 60 of a-z, 0-9, '-' and '_', no mark at an end")


class Share(_Rule, tag="share", frozen=True):
    """Some products are more than `percent` of a customer's spending in `days` days. At most once in `days` days."""

    percent: float
    """The share of the amount spent that must be exceeded, in percent."""

    days: int
    """The window: the day of the newest purchase (UTC) and the days before it."""

    product_types: tuple[str, ...] = ()
    """The types of the products. Set either this or `product_ids`."""

    product_ids: tuple[str, ...] = ()
    """The ids of the products."""

    min_spent: int = 0
    """The least amount spent in the window, in grosze. Without it the first purchase has a share of 0% or 100%."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.percent < 100, "percent", "0 to less than 100")
        in_range(self, days=(1, MAX_DAYS))
        check(bool(self.product_types) != bool(self.product_ids), "product_types", "given, or else `product_ids`")
        check(_texts(self.product_types), "product_types", "texts of 1 to 256 characters")
        check(_texts(self.product_ids), "product_ids", "texts of 1 to 256 characters")
        in_range(self, min_spent=(0, MAX_AMOUNT))


class Spent(_Rule, tag="spent", frozen=True):
    """A customer spent at least `amount` in `days` days. At most once in `days` days."""

    amount: int
    """In grosze."""

    days: int
    """The window, as in `Share`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, amount=(1, MAX_AMOUNT), days=(1, MAX_DAYS))


class Nth(_Rule, tag="nth", frozen=True):
    """A customer made the n-th purchase. Once per customer."""

    n: int

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, n=(1, 1_000_000_000))


class City(_Rule, tag="city", frozen=True):
    """A customer in one of these cities registered. Once per customer."""

    cities: tuple[str, ...]
    """Compared without regard to upper and lower case."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.cities) and _texts(self.cities), "cities", "one or more texts of 1 to 256 characters")


Rule: TypeAlias = Share | Spent | Nth | City


def active(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if rule.enabled)


#: One rule of each kind, in the form of the configuration. The demo uses them.
EXAMPLES: tuple[dict[str, Any], ...] = (
    {
        "name": "bread-and-butter",
        "kind": "share",
        "product_types": ["pieczywo"],
        "percent": 25,
        "days": 30,
        "min_spent": 5_000,
        "voucher": {"product_type": "masło", "percent": 20, "valid_days": 14},
    },
    {
        "name": "welcome",
        "kind": "city",
        "cities": ["Warszawa", "Kraków", "Łódź", "Wrocław"],
        "voucher": {"text": "the first purchase", "amount": 1_000, "valid_days": 30},
    },
    {
        "name": "tenth",
        "kind": "nth",
        "n": 10,
        "voucher": {"product_type": "czekolada", "percent": 100, "valid_days": 7},
    },
    {
        "name": "big-month",
        "kind": "spent",
        "amount": 20_000,
        "days": 30,
        "voucher": {"text": "any purchase", "percent": 5, "valid_days": 30},
    },
)
