"""Plots: where one is drawn, and what it shows."""

from __future__ import annotations

import io
import os
from time import monotonic

import pytest

from shopflow.commands.plots import Bar, Paper, Step, paper, price_and_units
from tests.support.documents import DAY, NOON

#: The letters of which a plot is drawn.
BLOCKS = frozenset("▀▄█▌▐▖▗▘▝▙▛▜▟▞▚")


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 100 columns."""
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((100, 24)))


def test_a_plot_needs_a_terminal_that_can_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a pipe, a simple or narrow terminal or one without block characters gets the plain lines only."""
    assert paper(Terminal(), {}) == Paper(100, True)
    assert paper(io.StringIO(), {}) is None
    assert paper(Terminal(), {"TERM": "dumb"}) is None
    assert paper(Terminal("ascii"), {}) is None
    assert paper(Terminal("iso-8859-2"), {}) is None
    for columns, width in ((59, None), (60, 60), (500, 140)):
        monkeypatch.setattr("shutil.get_terminal_size", lambda columns=columns: os.terminal_size((columns, 24)))
        on = paper(Terminal(), {})
        assert (on and on.width) == width


def test_no_color_means_no_color() -> None:
    """The variable `NO_COLOR` counts if it is not empty, as https://no-color.org says."""
    assert paper(Terminal(), {"NO_COLOR": "1"}) == Paper(100, False)
    assert paper(Terminal(), {"NO_COLOR": ""}) == Paper(100, True)


def drawn(prices: list[Step], units: list[Bar], days: int = 10, width: int = 80) -> tuple[list[str], list[str]]:
    """The lines of the price and of the units, without colors."""
    lines = list(price_and_units(Paper(width, False), NOON, NOON + days * DAY, prices, units, bucket="day"))
    assert all(len(line) <= width for line in lines)
    middle = lines.index("Units sold per day")
    assert lines[0] == "Price, zł"
    return lines[1:middle], lines[middle + 1 :]


def ink(lines: list[str], columns: slice) -> int:
    """How many blocks are drawn in these columns."""
    return sum(letter in BLOCKS for line in lines for letter in line[columns])


def test_prices_are_steps_with_a_gap_where_it_was_not_for_sale() -> None:
    """A higher price is drawn higher, and the axis is labelled with the prices."""
    start, third, half = NOON, NOON + 3 * DAY, NOON + 5 * DAY
    price, _ = drawn([(start, third, 299), (third, half, None), (half, NOON + 10 * DAY, 419)], [])
    assert "4,19┤" in price[0]
    assert "2,99┤" in price[-3]
    assert ink(price[:1], slice(45, 80)) > 30
    assert ink(price[:1], slice(0, 40)) == 0
    assert ink(price[-3:-2], slice(6, 25)) > 15
    assert ink(price, slice(30, 40)) == 0


def test_units_are_bars_over_the_same_time() -> None:
    """Both axes begin in the same column, however long their labels are. Days without sales have no bar."""
    price, units = drawn([(NOON, NOON + 10 * DAY, 100_000)], [(NOON + 5 * DAY, NOON + 6 * DAY, 7)])
    assert price[0].index("┤") == units[0].index("┤")
    assert price[-2].index("└") == units[-2].index("└")
    assert "7┤" in units[0]
    assert ink(units[:-3], slice(45, 52)) > 20
    assert ink(units[:-3], slice(8, 43)) == ink(units[:-3], slice(54, 80)) == 0


def test_times_are_shown_with_the_fields_that_differ() -> None:
    """The labels show the day and hour, the date, or the year, depending on the span."""
    for days, form in ((1, "05-01 "), (10, "05-0"), (900, "2027-")):
        price, units = drawn([(NOON, NOON + days * DAY, 1)], [], days)
        assert form in price[-1]
        assert price[-1] == units[-1]


def test_there_is_a_plot_whatever_there_is_to_draw() -> None:
    """Missing, zero and very large values give a plot of the same height."""
    heights = {
        tuple(map(len, drawn(prices, units)))
        for prices in ([], [(NOON, NOON + DAY, None)], [(NOON, NOON + DAY, 0)], [(NOON, NOON + DAY, 10**15)])
        for units in ([], [(NOON, NOON + DAY, 0)], [(NOON, NOON + DAY, 10**12)])
    }
    assert len(heights) == 1


def test_ten_thousand_prices_and_days_are_drawn_in_a_moment() -> None:
    """Of the values that fall on one point, the last price and the largest number of units are drawn."""
    days = 10_000
    prices: list[Step] = [(NOON + n * DAY, NOON + (n + 1) * DAY, n) for n in range(days)]
    units: list[Bar] = [(NOON + n * DAY, NOON + (n + 1) * DAY, 99 if n == 7_777 else 1) for n in range(days)]
    before = monotonic()
    _, sold = drawn(prices, units, days)
    assert monotonic() - before < 10
    assert ink(sold[:1], slice(0, 80)) == 1


def test_colors_are_asked_for() -> None:
    """Escape sequences are written only if colors are wanted."""
    lines = list(price_and_units(Paper(80, True), NOON, NOON + DAY, [(NOON, NOON + DAY, 5)], [], bucket="hour"))
    assert any("\x1b[38;5;" in line for line in lines)
    assert lines[0] == "Price, zł"
