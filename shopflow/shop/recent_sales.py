"""The sales that a worker handled in the last 15 minutes. Does no I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from shopflow.models import Purchase

#: How long sales are kept.
KEPT_SECONDS = 900
#: How many of the newest purchases are listed.
LATEST = 20
#: The most products counted in a minute. Producers choose the ids, so memory needs a bound.
MOST_PRODUCTS = 1_000
#: Products in a snapshot.
BESTSELLERS = 50
_MINUTE = 60


class Sale(msgspec.Struct, frozen=True):
    """A purchase that was stored."""

    at: float  #: when it was stored (Unix, in seconds)
    purchase_id: str
    customer_id: str
    product_id: str
    quantity: int
    value: int  #: grosze


class Bestseller(msgspec.Struct):
    """Sales of a product."""

    product_id: str
    items: int = 0
    value: int = 0  #: grosze


class Snapshot(msgspec.Struct):
    """The contents of a board. Workers request it from each other."""

    seconds: dict[int, tuple[int, int]] = {}
    """Unix time -> purchases and grosze of this second. Seconds without purchases are left out."""

    latest: list[Sale] = []
    """Newest first."""

    bestsellers: list[Bestseller] = []
    """Products with the most units first."""


class Board:
    """Adds up finished batches, and drops sales older than 15 minutes."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._seconds: dict[int, tuple[int, int]] = {}
        self._minutes: dict[int, dict[str, Bestseller]] = {}
        self._latest: deque[Sale] = deque(maxlen=LATEST)

    def sold(self, purchases: Sequence[Purchase]) -> None:
        """Add a batch's purchases, which were stored and counted."""
        if not purchases:
            return
        now = self._clock()
        sold: dict[str, list[int]] = {}
        for event in purchases:
            quantity = event.quantity
            sums = sold.get(event.product_id)
            if sums is None:
                sums = sold[event.product_id] = [0, 0]
            sums[0] += quantity
            sums[1] += quantity * (event.price or 0)
        total = sum(value for _, value in sold.values())
        products = self._minutes.setdefault(int(now) // _MINUTE, {})
        for name, (items, value) in sold.items():
            found = products.get(name)
            if found is None:
                if len(products) >= MOST_PRODUCTS:
                    continue
                found = products[name] = Bestseller(name)
            found.items += items
            found.value += value
        count, money = self._seconds.get(int(now), (0, 0))
        self._seconds[int(now)] = (count + len(purchases), money + total)
        self._latest.extend(_sale(now, event) for event in purchases[-LATEST:])
        self._forget(now)

    def _forget(self, now: float) -> None:
        # After the clock was set back, entries in the future stay until they are old enough.
        while self._seconds and (oldest := next(iter(self._seconds))) < now - KEPT_SECONDS:
            del self._seconds[oldest]
        while self._minutes and (first := next(iter(self._minutes))) * _MINUTE < now - KEPT_SECONDS - _MINUTE:
            del self._minutes[first]

    def snapshot(self) -> Snapshot:
        self._forget(self._clock())
        sums = _summed(product for products in self._minutes.values() for product in products.values())
        return Snapshot(dict(self._seconds), list(reversed(self._latest)), sums)


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    together = Snapshot({}, [], [])
    sold: list[Bestseller] = []
    for one in snapshots:
        for second, (count, money) in one.seconds.items():
            counted, earned = together.seconds.get(second, (0, 0))
            together.seconds[second] = (counted + count, earned + money)
        together.latest += one.latest
        sold += one.bestsellers
    together.latest = sorted(together.latest, key=lambda sale: sale.at, reverse=True)[:LATEST]
    together.bestsellers = _summed(sold)
    return together


def _sale(now: float, event: Any) -> Sale:
    value = event.quantity * (event.price or 0)
    return Sale(now, event.purchase_id, event.customer_id, event.product_id, event.quantity, value)


def _summed(products: Iterable[Bestseller]) -> list[Bestseller]:
    sums: dict[str, Bestseller] = {}
    for product in products:
        one = sums.setdefault(product.product_id, Bestseller(product.product_id))
        one.items += product.items
        one.value += product.value
    return sorted(sums.values(), key=lambda one: (-one.items, one.product_id))[:BESTSELLERS]
