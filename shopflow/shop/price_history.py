"""A product's price history: each price, when it was in force, and the sales at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

from shopflow.store import MongoStore
from shopflow.store.types import BEGINNING, PriceHistory, Sold

#: The most prices besides the one in force that a period names.
_OTHERS = 5
#: The longest span with sales by the minute.
_BY_THE_MINUTE = timedelta(hours=2)
#: The longest span with sales by the hour. A longer one has sales by the day.
_BY_THE_HOUR = timedelta(days=4)
#: The shortest span that is shown.
_SHORTEST = timedelta(hours=1)


@dataclass(frozen=True)
class Period:
    """A period with one price."""

    since: datetime | None
    """None: from the first purchase on."""

    until: datetime | None
    """None: the price is the latest."""

    price: int | None
    """Grosze; None: not for sale."""

    units: int = 0
    revenue: int = 0
    """Grosze. Units and revenue are of the purchases at this price, so revenue is units times price."""


@dataclass(frozen=True)
class Prices:
    """Every price of a product, oldest first."""

    product_id: str
    name: str | None
    """None: the product is deleted."""

    prices: tuple[Period, ...]

    other_prices: tuple[Period, ...] = ()
    """Sales at another price than the one in force: purchases may be sent with one. None: several, or none at all."""

    def rows(self, *, newest_first: bool = False) -> list[tuple[Period, bool]]:
        """The periods of both, oldest first, and True for those at another price, which come after the one in force."""

        def key(row: tuple[Period, bool]) -> tuple[bool, datetime, bool]:
            return row[0].since is not None, row[0].since or BEGINNING, row[1] != newest_first

        both = [(one, False) for one in self.prices] + [(one, True) for one in self.other_prices]
        return sorted(both, key=key, reverse=newest_first)


@dataclass(frozen=True)
class SalesOverTime:
    """Sales between two times, shown below the prices."""

    start: datetime
    end: datetime
    bucket: str
    """`minute`, `hour` or `day`, in UTC."""

    sold: tuple[Sold, ...]
    """By time. Buckets without sales are left out."""

    @property
    def width(self) -> timedelta:
        return timedelta(**{f"{self.bucket}s": 1})


def periods(history: PriceHistory) -> list[Period]:
    """The periods between changes of the price. A repeated price is no change.

    The first period is before the first known price, and has the same price.
    """
    changes: list[tuple[datetime | None, int | None]] = [(None, history.first)]
    for since, price in history.prices:
        if price != changes[-1][1] or (len(changes) == 1 and since > BEGINNING):
            changes.append((since, price))
    return [Period(since, until, price) for (since, price), (until, _) in pairwise([*changes, (None, None)])]


async def read(
    store: MongoStore, product_id: str, since: datetime | None = None, most: int | None = None
) -> Prices | None:
    """The prices of a product; None if it was never offered.

    Sales before the first price are in a period without `since`. Without such sales that period is left out.

    Arguments:
        since: Only prices that were in force then or later, each with all sales at it.
        most: At most this many prices, the latest; None: all.

    Raises:
        Unavailable: MongoDB does not answer.
    """
    history = (await store.price_history([product_id])).get(product_id)
    if history is None:
        return None
    product = (await store.documents("products", [product_id])).get(product_id, {})
    wanted = [one for one in periods(history) if since is None or one.until is None or one.until > since]
    wanted = wanted if most is None else wanted[-most:]
    found, others = [], []
    for one, sold in zip(
        wanted, await store.sold_at(product_id, [(one.since, one.until) for one in wanted]), strict=True
    ):
        paid = sold.pop(one.price, None) if one.price is not None else None
        if one.since is not None or one.until is None or paid:
            found.append(replace(one, units=paid.units, revenue=paid.revenue) if paid else one)
        others += _others(one, sold)
    name = product.get("name")
    return Prices(product_id, name if isinstance(name, str) else None, tuple(found), tuple(others))


def _others(one: Period, sold: Mapping[int | None, Sold]) -> list[Period]:
    """A period for each price, those with the most units first. From the sixth on they are one, without a price."""
    ranked = sorted(sold.items(), key=lambda pair: (pair[0] is None, -pair[1].units))
    others = [Period(one.since, one.until, price, sums.units, sums.revenue) for price, sums in ranked]
    rest = others[_OTHERS:]
    if len(rest) > 1:
        units, revenue = sum(each.units for each in rest), sum(each.revenue for each in rest)
        others[_OTHERS:] = [Period(one.since, one.until, None, units, revenue)]
    return others


async def sales_over_time(
    store: MongoStore,
    product_id: str,
    prices: Sequence[Period],
    now: datetime,
    since: datetime | None = None,
) -> SalesOverTime:
    """Sales of a product up to `now`: by the minute, by the hour, or by the day if it is long since it was first sold.

    Arguments:
        prices: The result of `read`.
        since: The start, but not before the first price; if that is unknown, not before the first purchase.

    Raises:
        Unavailable: MongoDB does not answer.
    """
    known = next((one.since for one in prices if one.since), None)
    if known is None:
        by_day = await store.units_over_time(product_id, None, now, "day")
        known = by_day[0].since if by_day else None
    start = min(max(since or BEGINNING, known or now), now - _SHORTEST)
    bucket = "hour" if now - start <= _BY_THE_HOUR else "day"
    bucket = "minute" if now - start <= _BY_THE_MINUTE else bucket
    return SalesOverTime(start, now, bucket, tuple(await store.units_over_time(product_id, start, now, bucket)))
