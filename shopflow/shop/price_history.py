"""Prices over time: every price that a product had, since when, until when, and what was sold at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from shopflow.store import MongoStore
from shopflow.store.types import BEGINNING, PriceHistory, Sold

#: Up to so long, what was sold is shown by the minute, where that is wanted.
_BY_THE_MINUTE = timedelta(hours=2)
#: Up to so long, what was sold is shown by the hour; beyond, by the day.
_BY_THE_HOUR = timedelta(days=4)
#: The shortest time that is shown.
_SHORTEST = timedelta(hours=1)


@dataclass(frozen=True)
class Period:
    """A time in which one price was in force."""

    since: datetime | None
    """None: as far back as purchases go."""

    until: datetime | None
    """None: it is in force, or the last that is known."""

    price: int | None
    """Grosze; None: not for sale."""

    units: int = 0
    revenue: int = 0
    """Grosze, as the purchases say: they may have brought prices of their own."""


@dataclass(frozen=True)
class Prices:
    """Every price of a product, oldest first."""

    product_id: str
    name: str | None
    """None: it is deleted."""

    prices: tuple[Period, ...]


@dataclass(frozen=True)
class Course:
    """What was sold between two times, to be shown below the prices."""

    start: datetime
    end: datetime
    bucket: str
    """`minute`, `hour` or `day`, in UTC."""

    sold: tuple[Sold, ...]
    """By time; without those in which nothing was sold."""

    @property
    def width(self) -> timedelta:
        return timedelta(**{f"{self.bucket}s": 1})


def periods(history: PriceHistory) -> list[Period]:
    """The times between the changes of price; a price that was only said again is no change.

    The first one is what counts before any price is known: the first known price.
    """
    changes: list[tuple[datetime | None, int | None]] = [(None, history.first)]
    for since, price in history.prices:
        if price != changes[-1][1] or (len(changes) == 1 and since > BEGINNING):
            changes.append((since, price))
    return [Period(since, until, price) for (since, price), (until, _) in pairwise([*changes, (None, None)])]


async def read(
    store: MongoStore, product_id: str, since: datetime | None = None, most: int | None = None
) -> Prices | None:
    """The prices of a product; None if nobody ever offered it.

    What was sold before the first price is a period of its own, without a `since`, if anything was.

    Arguments:
        since: Only prices that were in force then or later; each with all that was sold at it.
        most: Only so many, the last; None: all.

    Raises:
        Unavailable: MongoDB does not answer.
    """
    history = (await store.price_history([product_id])).get(product_id)
    if history is None:
        return None
    product = (await store.documents("products", [product_id])).get(product_id, {})
    wanted = [one for one in periods(history) if since is None or one.until is None or one.until > since]
    wanted = wanted if most is None else wanted[-most:]
    sold = await store.units_in(product_id, [(one.since, one.until) for one in wanted])
    found = [
        Period(one.since, one.until, one.price, sums.units, sums.revenue)
        for one, sums in zip(wanted, sold, strict=True)
        if one.since is not None or one.until is None or sums.units
    ]
    name = product.get("name")
    return Prices(product_id, name if isinstance(name, str) else None, tuple(found))


async def course(
    store: MongoStore,
    product_id: str,
    prices: Sequence[Period],
    now: datetime,
    since: datetime | None = None,
    *,
    by_the_minute: bool = False,
) -> Course:
    """What was sold of a product up to now, by the hour or by the day.

    Arguments:
        prices: Its prices, as `read` gives them.
        since: Where it begins, but not before the first price, or the first purchase if that is unknown.
        by_the_minute: Where it is short, by the minute.

    Raises:
        Unavailable: MongoDB does not answer.
    """
    known = next((one.since for one in prices if one.since), None)
    if known is None:
        by_day = await store.units_over_time(product_id, None, now, "day")
        known = by_day[0].since if by_day else None
    start = min(max(since or BEGINNING, known or now), now - _SHORTEST)
    bucket = "hour" if now - start <= _BY_THE_HOUR else "day"
    bucket = "minute" if by_the_minute and now - start <= _BY_THE_MINUTE else bucket
    return Course(start, now, bucket, tuple(await store.units_over_time(product_id, start, now, bucket)))
