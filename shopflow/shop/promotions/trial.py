"""Tries a rule on the purchases or registrations in MongoDB, with the workers' code. Writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from time import time
from typing import Any

from shopflow.config.promotions import City, Rule
from shopflow.store import MongoStore
from shopflow.store.types import Document

from .windows import Bought, Earned, Rules, Window

#: Purchases or registrations between two updates of the progress.
_STEP = 1_000


@dataclass
class Trial:
    rule: str
    of_registrations: bool
    looked_at: int = 0
    """Purchases, or registrations."""

    vouchers: int = 0
    customers: set[str] = field(default_factory=set)
    first: datetime | None = None
    last: datetime | None = None

    def add(self, earned: Iterable[Earned]) -> None:
        for one in earned:
            self.vouchers += 1
            self.customers.add(one.customer_id)
            self.first = one.at if self.first is None else min(self.first, one.at)
            self.last = one.at if self.last is None else max(self.last, one.at)

    def as_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "looked_at": self.looked_at,
            "vouchers": self.vouchers,
            "customers": len(self.customers),
            "first": self.first,
            "last": self.last,
        }


async def size(store: MongoStore, rule: Rule) -> int:
    """About how many purchases or registrations a trial of this rule reads."""
    return (await store.sizes())["customers" if isinstance(rule, City) else "purchases"]


async def try_rule(store: MongoStore, rule: Rule, advance: Callable[[int], None]) -> Trial:
    """Try a rule, whether it is switched on or not.

    Arguments:
        advance: Called with the number of purchases or registrations read since the last call.

    Raises:
        Unavailable: MongoDB does not answer.
    """
    trial, rules = Trial(rule.name, isinstance(rule, City)), Rules([rule])
    if isinstance(rule, City):
        async for customer in store.registrations():
            if isinstance(customer.get("city"), str):
                trial.add(rules.register(customer["_id"], customer["city"], customer["registered_at"]))
            _looked_at(trial, 1, advance)
    else:
        types = {product["_id"]: product.get("type") for product in await store.products()}
        async for purchases in _by_customer(store.buyers()):
            trial.add(_earned(rules, purchases, types))
            _looked_at(trial, len(purchases), advance)
    advance(trial.looked_at % _STEP)
    return trial


async def _by_customer(purchases: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    of_one: list[Document] = []
    async for purchase in purchases:
        if of_one and of_one[0]["customer_id"] != purchase["customer_id"]:
            yield sorted(of_one, key=_origin)
            of_one = []
        of_one.append(purchase)
    if of_one:
        yield sorted(of_one, key=_origin)


def _origin(purchase: Document) -> tuple[str, int, int]:
    source = purchase["source"]
    return source["topic"], source["partition"], source["offset"]


def _earned(rules: Rules, purchases: list[Document], types: Mapping[str, str | None]) -> Iterator[Earned]:
    """The vouchers that one customer would have had. There is a window for each partition, as in the workers."""
    now = int(time() * 1000)
    windows: dict[tuple[str, int], Window] = {}
    for purchase in purchases:
        topic, partition, offset = _origin(purchase)
        product_id, at = purchase["product_id"], purchase["purchased_at"]
        bought = Bought(offset, at, purchase["value"], product_id, types.get(product_id), now)
        window = windows.setdefault((topic, partition), Window())
        yield from rules.buy(window, purchase["customer_id"], bought)


def _looked_at(trial: Trial, number: int, advance: Callable[[int], None]) -> None:
    before = trial.looked_at // _STEP
    trial.looked_at += number
    if steps := trial.looked_at // _STEP - before:
        advance(steps * _STEP)
