"""What a rule would have given, over the past that is in MongoDB: by the code that the workers run, writing nothing."""

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

#: Purchases or registrations between two steps of the progress.
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
    """How much there is to look at, about."""
    return (await store.sizes())["customers" if isinstance(rule, City) else "purchases"]


async def try_rule(store: MongoStore, rule: Rule, advance: Callable[[int], None]) -> Trial:
    """Try it; whether it is switched on does not matter.

    Arguments:
        advance: Called with how many more were looked at.

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
            yield sorted(of_one, key=_place)
            of_one = []
        of_one.append(purchase)
    if of_one:
        yield sorted(of_one, key=_place)


def _place(purchase: Document) -> tuple[str, int, int]:
    source = purchase["source"]
    return source["topic"], source["partition"], source["offset"]


def _earned(rules: Rules, purchases: list[Document], types: Mapping[str, str | None]) -> Iterator[Earned]:
    """What one customer would have had. They have a window for each partition, as the workers keep it."""
    now = int(time() * 1000)
    windows: dict[tuple[str, int], Window] = {}
    for purchase in purchases:
        topic, partition, offset = _place(purchase)
        product_id, at = purchase["product_id"], purchase["purchased_at"]
        bought = Bought(offset, at, purchase["value"], product_id, types.get(product_id), now)
        window = windows.setdefault((topic, partition), Window())
        yield from rules.buy(window, purchase["customer_id"], bought)


def _looked_at(trial: Trial, number: int, advance: Callable[[int], None]) -> None:
    before = trial.looked_at // _STEP
    trial.looked_at += number
    if steps := trial.looked_at // _STEP - before:
        advance(steps * _STEP)
