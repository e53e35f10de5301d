"""Draws plots in the terminal: prices as steps and sales as bars, over one axis of time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import TextIO, TypeVar

#: The least columns for a plot, and the most that it uses.
_NARROWEST, _WIDEST = 60, 140
_ROWS = {"price": 12, "units": 9}
_TIMES, _VALUES = 5, 4
#: A longer span has its ticks at days, not at minutes.
_DAYS = timedelta(days=6)
_MANY_DAYS = timedelta(days=300)

#: Start, end, price in grosze; None: no price.
Step = tuple[datetime, datetime, int | None]
#: Start, end, units.
Bar = tuple[datetime, datetime, int]


@dataclass(frozen=True)
class Paper:
    """A terminal that a plot can be drawn on."""

    width: int
    """Columns."""

    colors: bool


def paper(stream: TextIO, environment: Mapping[str, str]) -> Paper | None:
    """The terminal of the stream; None if it is not a terminal, is too narrow, or lacks block characters."""
    if not stream.isatty() or environment.get("TERM") == "dumb":
        return None
    try:
        "▀▄█│┤".encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return None
    columns = shutil.get_terminal_size().columns
    return Paper(min(columns, _WIDEST), not environment.get("NO_COLOR")) if columns >= _NARROWEST else None


def price_and_units(
    on: Paper, start: datetime, end: datetime, prices: Sequence[Step], units: Sequence[Bar], *, bucket: str
) -> Iterator[str]:
    """The lines of a plot: the price as steps, and below it the units sold in each bucket.

    Arguments:
        bucket: The length of a bucket: `minute`, `hour` or `day`.
    """
    known = [grosze for _, _, grosze in prices if grosze is not None]
    grosze = _ticks(min(known, default=0), max(known, default=0))
    counts = _ticks(0, max((many for _, _, many in units), default=0))
    labels = [f"{each // 100},{each % 100:02}" for each in grosze], [str(each) for each in counts]
    margin = max(len(label) for both in labels for label in both)
    frame = _Frame(on, start, end, margin)
    yield "Price, zł"
    yield from frame.drawn(_steps(frame, prices), (grosze, labels[0]), _ROWS["price"], "blue")
    yield f"Units sold per {bucket}"
    yield from frame.drawn(_bars(frame, units), (counts, labels[1]), _ROWS["units"], "green", filled=True)


Value = TypeVar("Value", int, int | None)
Points = tuple[list[float], list[float | None]]


class _Frame:
    """The time axis that the plots share."""

    def __init__(self, on: Paper, start: datetime, end: datetime, margin: int) -> None:
        self._on, self._start, self._length, self._margin = on, start, end - start, margin

    def at(self, time: datetime) -> float:
        """The time's position on the axis, from 0 to 1."""
        return min(max((time - self._start) / self._length, 0.0), 1.0)

    def point(self, time: datetime) -> int:
        """The number of the plot's point at this time. A column has two points."""
        return int(self.at(time) * 2 * self._on.width)

    def drawn(
        self, points: Points, ticks: tuple[list[int], list[str]], rows: int, color: str, *, filled: bool = False
    ) -> list[str]:
        import plotext

        plotext.clear_figure()
        plotext.theme("clear")
        plotext.limit_size(False, False)
        plotext.plot_size(self._on.width, rows)
        plotext.plot(*points, marker="hd", color=color, fillx=filled)
        plotext.xlim(0, 1)
        plotext.ylim(ticks[0][0], ticks[0][-1])
        plotext.yticks(ticks[0], [label.rjust(self._margin) for label in ticks[1]])
        plotext.xticks(*self._times())
        plotext.xaxes(True, False)
        plotext.yaxes(True, False)
        text: str = plotext.build()
        return (text if self._on.colors else plotext.uncolorize(text)).splitlines()

    def _times(self) -> tuple[list[float], list[str]]:
        form = "%m-%d %H:%M" if self._length < _DAYS else "%m-%d" if self._length < _MANY_DAYS else "%Y-%m-%d"
        ticks = [(number + 0.5) / _TIMES for number in range(_TIMES)]  # at the edges a label has no room
        return ticks, [(self._start + self._length * tick).astimezone().strftime(form) for tick in ticks]


def _ticks(low: int, high: int) -> list[int]:
    """At most four whole numbers, evenly spaced from `low` to `high`."""
    if low == high:
        low, high = max(low - 100, 0), high + 100 if low else high + 1
    return sorted({low + (high - low) * number // (_VALUES - 1) for number in range(_VALUES)})


def _steps(frame: _Frame, prices: Sequence[Step]) -> Points:
    xs: list[float] = [0.0]
    ys: list[float | None] = [None]
    # Of the steps that begin within one point, only the last is drawn.
    for left, right, grosze in {frame.point(step[0]): _on_axis(frame, step) for step in prices}.values():
        xs += [left, right]
        ys += [grosze, grosze]
    return xs, ys


def _bars(frame: _Frame, units: Sequence[Bar]) -> Points:
    xs: list[float] = [0.0]
    ys: list[float | None] = [0]
    # Of the bars that begin within one point, only the highest is drawn.
    highest = {frame.point(bar[0]): _on_axis(frame, bar) for bar in sorted(units, key=itemgetter(2))}
    for left, right, many in sorted(highest.values()):
        xs += [left, left, right, right]
        ys += [0, many, many, 0]
    return xs, ys


def _on_axis(frame: _Frame, span: tuple[datetime, datetime, Value]) -> tuple[float, float, Value]:
    return frame.at(span[0]), frame.at(span[1]), span[2]
