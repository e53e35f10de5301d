"""The texts of a product on the page, and the columns of its chart."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest

from shopflow.shop.price_history import Period, Prices, SalesOverTime
from shopflow.shop.text import visible
from shopflow.store.types import Sold
from shopflow.web.page.product import Columns, Picture, columns, product
from tests.support.documents import HOUR, NOON
from tests.support.text import plain

HOSTILE = "<img src=x>\x1b[2J"


def picture(*prices: Period, sold: tuple[Sold, ...] = (), bucket: str = "hour", **fields: Any) -> Picture:
    """Milk with these prices, and its sales in the two hours after noon."""
    return Picture(Prices("milk", **{"name": "Milk", **fields}, prices=prices),
                   SalesOverTime(NOON, NOON + 2 * HOUR, bucket, sold))  # fmt: skip


def at(ms: float) -> datetime:
    """The time at a position of the chart's axis, which has local time."""
    return datetime.fromtimestamp(ms / 1_000, timezone.utc).replace(tzinfo=None).astimezone()


def test_each_price_with_what_was_sold_at_it() -> None:
    """The newest price is first. Units an hour make periods of different lengths comparable."""
    found = product("milk", picture(
        Period(None, NOON, 300, 2, 600), Period(NOON, NOON + HOUR, 300, 5, 1_500),
        Period(NOON + HOUR, NOON + 1.5 * HOUR, None), Period(NOON + 1.5 * HOUR, None, 250, 600, 150_000),
    ), [])  # fmt: skip
    assert plain([cell.text for cell in row][1:] for row in found.prices[1:3]) == [
        [found.prices[0][0].text, "not for sale", "0", "0,00 zł", "0,0"],
        [found.prices[1][0].text, "3,00 zł", "5", "15,00 zł", "5,0"],
    ]
    first, last = (plain(cell.text for cell in found.prices[number]) for number in (0, -1))
    assert first[1:] == ["now", "2,50 zł", "600", "1 500,00 zł", "1 200"]
    assert (last[0], last[-1]) == ("before", "-")
    seldom = product("milk", picture(Period(NOON - 99 * HOUR, None, 300, 1, 300)), [])
    assert plain(seldom.prices[0][-1].text) == "< 0,1"
    assert plain(found.facts) == {
        "Price now": "2,50 zł", "Units sold at these prices": "607", "Revenue at these prices": "1 521,00 zł",
        "Each bar shows": "one hour",
    }  # fmt: skip


def test_sales_at_another_price_are_rows_below_the_price_in_force() -> None:
    """Purchases may be sent with a price. Units times price is the revenue in each row."""
    others = (Period(NOON, NOON + HOUR, 333, 527, 175_491), Period(NOON, NOON + HOUR, None, 1, 5))
    prices = (Period(NOON, NOON + HOUR, 415, 2, 830), Period(NOON + HOUR, None, 400, 1, 400))
    found = product("milk", picture(*prices, other_prices=others), [])
    assert plain([cell.text for cell in row][2:5] for row in found.prices) == [
        ["4,00 zł", "1", "4,00 zł"], ["4,15 zł", "2", "8,30 zł"], ["3,33 zł", "527", "1 754,91 zł"],
        ["several", "1", "0,05 zł"],
    ]  # fmt: skip
    assert plain([cell.text for cell in found.prices[2]][:2]) == ["at another price", ""]
    assert plain(found.facts["Units sold at these prices"]) == "531"


def test_what_is_left_of_a_stock() -> None:
    """The page shows what is left of a stock. A product whose stock is not tracked has no such line."""
    found = replace(picture(Period(NOON, None, 300)), stock=(1_234, 2_000))
    assert plain(product("milk", found, []).facts["In stock"]) == "1 234 of 2 000"
    for left, words in ((0, "sold out"), (-1_333, "sold out, 1 333 ordered beyond it")):
        assert plain(product("milk", replace(found, stock=(left, 300)), []).facts["In stock"]) == words
    assert "In stock" not in product("milk", picture(Period(NOON, None, 300)), []).facts


def test_a_price_of_the_future_is_not_the_one_of_now() -> None:
    """A price that begins later is listed without sales. A deleted product is not for sale."""
    found = product("milk", picture(Period(NOON, NOON + 9 * HOUR, 300), Period(NOON + 9 * HOUR, None, 1)), [])
    assert plain(found.facts["Price now"]) == "3,00 zł"
    assert found.prices[0][-1].text == "-"
    gone = product("milk", picture(Period(NOON, NOON + HOUR, 300), Period(NOON + HOUR, None, None)), [])
    assert gone.facts["Price now"] == "not for sale"


def test_names_and_ids_are_only_texts() -> None:
    """Escape sequences in names and ids are shown, and long names are cut."""
    found = product(HOSTILE, picture(name=HOSTILE * 9), [HOSTILE])
    assert found.product_id == found.problems[0] == visible(HOSTILE)
    assert found.name == visible(HOSTILE * 9, 60)
    assert product("x", picture(name=None), []).name == ""
    assert product("x", None, ["why"]).prices == []


def test_steps_and_bars_are_equally_many() -> None:
    """Bokeh needs columns of one length. The last line is repeated; missing bars have no width, so none is darker."""
    bars = tuple(Sold(NOON + number * HOUR, number + 1, 1) for number in range(2))
    found = columns(picture(Period(None, NOON + HOUR, 300), Period(NOON + HOUR, None, 250), sold=bars))
    assert [at(each) for each in found.x0] == [NOON, NOON + HOUR, NOON + HOUR]
    assert [at(each) for each in found.x1] == [NOON + HOUR, NOON + 2 * HOUR, NOON + HOUR]
    assert (found.y0, found.y1) == ([3.0, 2.5, 3.0], [3.0, 2.5, 2.5])
    assert found.units == [1, 2, 0]
    assert [at(each) for each in found.left] == [NOON, NOON + HOUR, NOON + 2 * HOUR]
    assert [at(each) for each in found.right] == [NOON + HOUR, NOON + 2 * HOUR, NOON + 2 * HOUR]


def test_while_it_was_not_for_sale_there_is_no_line() -> None:
    """A product that was deleted for a time has a gap in its line of prices."""
    found = columns(picture(
        Period(NOON, NOON + HOUR / 2, 300), Period(NOON + HOUR / 2, NOON + HOUR, None), Period(NOON + HOUR, None, 300),
    ))  # fmt: skip
    assert [at(each) for each in found.x0] == [NOON, NOON + HOUR]
    assert found.y0 == found.y1 == [3.0, 3.0]


@pytest.mark.parametrize(
    "prices",
    [(), (Period(None, None, None),), (Period(NOON + 9 * HOUR, None, 5),), (Period(NOON - 9 * HOUR, NOON, 5),)],
)
def test_a_chart_without_anything_has_columns(prices: tuple[Period, ...]) -> None:
    """Without a price in its span, a chart has a line of no length. Without a product, it has empty columns."""
    found = columns(picture(*prices))
    assert (found.y0, found.y1, found.units) == ([0.0], [0.0], [0])
    assert columns(None) == Columns()
