"""The vouchers that a log of purchases earns, found in another and simple way: each purchase reads all earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timezone
from typing import Any, NamedTuple

from shopflow.config.promotions import Nth, Rule, Share, Spent

__all__ = ["Bought", "expected"]


class Bought(NamedTuple):
    """A purchase of the log."""

    customer_id: str
    at: datetime
    spent: int
    product_id: str

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Bought:
        """The purchase of an event with a price."""
        at = datetime.fromisoformat(event["purchased_at"])
        return cls(event["customer_id"], at, event["quantity"] * event["price"], event["product_id"])


def expected(rules: Iterable[Rule], types: Mapping[str, str], log: Iterable[Bought]) -> list[str]:
    """The ids of the vouchers, in the order in which they are earned."""
    found: list[str] = []
    before: dict[str, list[tuple[date, Bought]]] = {}
    last: dict[tuple[str, str], date] = {}
    in_order = sorted(rules, key=lambda rule: not isinstance(rule, Nth))
    for bought in log:
        mine = before.setdefault(bought.customer_id, [])
        mine.append((bought.at.astimezone(timezone.utc).date(), bought))
        today = max(day for day, _ in mine)
        for rule in in_order:
            if isinstance(rule, Nth):
                if len(mine) == rule.n:
                    found.append(f"{rule.name}:{bought.customer_id}:{rule.n}")
            elif isinstance(rule, Share | Spent):
                given = last.get((rule.name, bought.customer_id))
                if (given is None or (today - given).days >= rule.days) and _earned(rule, types, mine, today):
                    last[rule.name, bought.customer_id] = today
                    found.append(f"{rule.name}:{bought.customer_id}:{today.isoformat()}")
    return found


def _earned(rule: Share | Spent, types: Mapping[str, str], mine: list[tuple[date, Bought]], today: date) -> bool:
    recent = [one for day, one in mine if (today - day).days < rule.days]
    spent = sum(one.spent for one in recent)
    if isinstance(rule, Spent):
        return spent >= rule.amount
    part = sum(
        one.spent
        for one in recent
        if one.product_id in rule.product_ids or types.get(one.product_id) in rule.product_types
    )
    return spent >= rule.min_spent and part * 100 > spent * rule.percent
