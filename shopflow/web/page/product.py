"""A product on the page: its prices and the sales at each, as texts and as the columns of a chart.

MongoDB is asked for a product every few seconds at most, however many pages show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import lru_cache, partial
from itertools import pairwise
from time import time

import msgspec

from shopflow.app import store
from shopflow.models import MAX_ID_LENGTH
from shopflow.shop import price_history, stock
from shopflow.shop.price_history import Period, Prices, SalesOverTime
from shopflow.shop.text import day_and_time, decimal, grouped, money, visible
from shopflow.web.cached import Cached

from .render import Cell, Rows, moment, row, short

#: Older answers are requested again.
_SECONDS = 5.0
#: After a request, MongoDB is left alone for this many times as long as the request took.
_REST = 9.0
_PATIENCE_SECONDS = 3.0
#: Products in the cache; the latest prices that are shown; how far back sales are read.
_PRODUCTS, _PRICES, _BACK = 32, 30, timedelta(days=365)
_HOUR = timedelta(hours=1)
#: Units an hour: fewer are shown as "< 0,1", more without a decimal.
_FEW, _MANY = 0.1, 10


@dataclass(frozen=True)
class Picture:
    """A product.

    Arguments:
        prices: The latest prices.
        course: The sales up to now.
        stock: The quantity left, and of how many; None: stock is not tracked.
    """

    prices: Prices
    course: SalesOverTime
    stock: tuple[int, int] | None = None


class Product(msgspec.Struct):
    product_id: str
    name: str = ""
    facts: dict[str, str] = {}
    prices: Rows = []
    problems: list[str] = []
    moment: Cell = Cell("")  #: of the facts and prices


class Columns(msgspec.Struct):
    """The columns of the chart: lines from (x0, y0) to (x1, y1), and bars; times in ms, as the axis has them.

    All have one length. The last line is repeated; bars are filled up with bars of no size, since a repeated bar
    would be less transparent.
    """

    x0: list[float] = []
    y0: list[float] = []
    x1: list[float] = []
    y1: list[float] = []
    left: list[float] = []
    right: list[float] = []
    units: list[int] = []


async def shown(product_id: str) -> Product | None:
    """The texts of a product; None without an id."""
    if not product_id:
        return None
    if len(product_id) > MAX_ID_LENGTH:
        return product(product_id, None, [f"A product's id has at most {MAX_ID_LENGTH} characters."])
    cached = _watched(product_id)
    found = await cached.get(_PATIENCE_SECONDS)
    problems = ["There is no product with this name or id."] if found is None and cached.age.known(time()) else []
    made = product(product_id, found, problems)
    made.moment = moment(time(), "MongoDB", cached.age)
    return made


async def course(product_id: str) -> Columns:
    """The columns of the product's chart."""
    if not 0 < len(product_id) <= MAX_ID_LENGTH:
        return Columns()
    return columns(await _watched(product_id).get(_PATIENCE_SECONDS))


@lru_cache(maxsize=_PRODUCTS)
def _watched(product_id: str) -> Cached[Picture | None]:
    return Cached(partial(_ask, product_id), _SECONDS, None, rest=_REST)


async def _ask(product_id: str) -> Picture | None:
    now = datetime.now(timezone.utc)
    prices = await price_history.read(store, product_id, most=_PRICES)
    if prices is None:
        return None
    course = await price_history.sales_over_time(store, product_id, prices.prices, now, now - _BACK)
    documents = await store.documents("products", [product_id])
    left = await stock.left_of(store, list(documents.values()))
    return Picture(prices, course, (left[product_id], documents[product_id]["stock"]) if left else None)


def product(product_id: str, found: Picture | None, problems: Sequence[str]) -> Product:
    """The texts of a product.

    Arguments:
        problems: Sentences that say why something is missing.
    """
    shown = Product(visible(product_id, 200), problems=[visible(problem) for problem in problems])
    if found is None:
        return shown
    now, prices, rows = found.course.end, found.prices.prices, found.prices.rows(newest_first=True)
    shown.name = short(found.prices.name or "")
    shown.facts = {
        "Price now": _price(next((one for one in reversed(prices) if one.since is None or one.since <= now), None)),
        "Units sold at these prices": grouped(sum(one.units for one, _ in rows)),
        "Revenue at these prices": money(sum(one.revenue for one, _ in rows)),
        "Each bar shows": f"one {found.course.bucket}",
    }
    if found.stock:
        shown.facts["In stock"] = stock.in_words(*found.stock)
    shown.prices = [_row(one, other, now) for one, other in rows]
    return shown


def _row(one: Period, other: bool, now: datetime) -> list[Cell]:
    since = "before" if one.since is None else day_and_time(one.since)
    until = "now" if one.until is None else day_and_time(one.until)
    price = Cell(_price(one), level="" if one.price is not None else "warn")
    if other:
        since, until, price = "at another price", "", Cell("several") if one.price is None else price
    return row(since, until, price, grouped(one.units), money(one.revenue), _an_hour(one, now))


def _price(period: Period | None) -> str:
    return "not for sale" if period is None or period.price is None else money(period.price)


def _an_hour(period: Period, now: datetime) -> str:
    length = min(period.until or now, now) - period.since if period.since else timedelta()
    if length <= timedelta():
        return "-"
    rate = period.units / (length / _HOUR)
    if 0 < rate < _FEW:
        return f"<\N{NO-BREAK SPACE}{decimal(_FEW)}"
    return grouped(round(rate)) if rate >= _MANY else decimal(rate)


def columns(found: Picture | None) -> Columns:
    """The columns of the chart; empty without a product."""
    if found is None:
        return Columns()
    course = found.course
    lines = list(_lines(found.prices.prices, course.start, course.end)) or [(_axis(course.end), 0.0) * 2]
    bars = [
        (_axis(start), _axis(start + course.width), sold.units)
        for sold in course.sold
        for start in [sold.since or course.start]
    ] or [(_axis(course.start), _axis(course.start), 0)]
    length = max(len(lines), len(bars))
    lines += [lines[-1]] * (length - len(lines))
    end = bars[-1][1]
    bars += [(end, end, 0)] * (length - len(bars))
    x0, y0, x1, y1 = (list(column) for column in zip(*lines, strict=True))
    left, right, units = zip(*bars, strict=True)
    return Columns(x0, y0, x1, y1, list(left), list(right), list(units))


def _lines(prices: Sequence[Period], start: datetime, end: datetime) -> Iterator[tuple[float, float, float, float]]:
    """A step for each price, and a line up or down to the next one."""
    steps = [
        (max(one.since or start, start), min(one.until or end, end), one.price / 100)
        for one in prices
        if one.price is not None and (one.since or start) < end and (one.until or end) > start
    ]
    for since, until, price in steps:
        yield _axis(since), price, _axis(until), price
    for (_, until, before), (since, _, price) in pairwise(steps):
        if until == since:
            yield _axis(since), before, _axis(since), price


def _axis(at: datetime) -> float:
    """A time on the axis, in ms, such that Bokeh, which shows UTC, shows local time."""
    return at.astimezone().replace(tzinfo=timezone.utc).timestamp() * 1_000
