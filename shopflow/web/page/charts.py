"""The page's charts, by Bokeh, which comes with the extra `page` and is imported for the first chart."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .render import CHART_SECONDS

#: How often the browser fetches the columns, in ms.
_POLL_MS = 1_000
_PRODUCT_POLL_MS = 5_000
_HEIGHT, _PRODUCT_HEIGHT = 220, 300


class _Colours(NamedTuple):
    paper: str
    ink: str
    faint: str
    blue: str
    green: str


_LIGHT = _Colours("#ffffff", "#3d4752", "#e3e7eb", "#0f6cbd", "#0b7a55")
_DARK = _Colours("#1a2027", "#c3cdd6", "#2d3640", "#5eb0ef", "#3fc796")


def script() -> Path | None:
    """Bokeh's own script for the browser; None when it is not installed."""
    try:
        found = importlib.util.find_spec("bokeh")
    except ValueError:  # a test or a tool has replaced the module
        return None
    if found is None or not found.origin:
        return None
    path = Path(found.origin).parent / "server" / "static" / "js" / "bokeh.min.js"
    return path if path.is_file() else None


def available() -> bool:
    return script() is not None


@cache
def document(*, dark: bool, wide: bool) -> dict[str, Any]:
    """The charts for `Bokeh.embed.embed_item`. The first call imports Bokeh for a second: use a thread."""
    from bokeh import embed, layouts  # noqa: PLC0415 - an extra, and slow to import

    colours = _DARK if dark else _LIGHT
    source = _source("sales", "/page/series.json", _POLL_MS, ("ago", "purchases", "money"))
    charts = [
        _shop_chart(source, colours, field="purchases", title="Purchases per second", colour=colours.blue),
        _shop_chart(source, colours, field="money", title="Money per minute, zł", colour=colours.green),
    ]
    target: Any = "charts"
    side = layouts.row if wide else layouts.column
    return dict(embed.json_item(side(charts, sizing_mode="stretch_width"), target))


def product(url: str, *, dark: bool) -> dict[str, Any]:
    """The chart of a product for `Bokeh.embed.embed_item`: prices as steps, units sold as bars.

    Arguments:
        url: The view of the columns.
    """
    from bokeh import embed, models  # noqa: PLC0415

    colours = _DARK if dark else _LIGHT
    source = _source("course", url, _PRODUCT_POLL_MS, ("x0", "y0", "x1", "y1", "left", "right", "units"))
    prices, units = (models.DataRange1d(start=0, min_interval=least, range_padding=0.15) for least in (1, 4))
    chart = _figure(
        colours,
        name="product",
        height=_PRODUCT_HEIGHT,
        x_axis_type="datetime",
        x_range=models.DataRange1d(range_padding=0.02, min_interval=60_000),
        y_range=prices,
    )
    chart.extra_y_ranges = {"units": units}
    bars = chart.quad(
        left="left", right="right", bottom=0, top="units", source=source, y_range_name="units",
        fill_color=colours.green, fill_alpha=0.3, line_color=colours.green, line_alpha=0.5,
    )  # fmt: skip
    steps = chart.segment(
        x0="x0", y0="y0", x1="x1", y1="y1", source=source, line_color=colours.blue, line_width=3, line_cap="round"
    )
    prices.renderers, units.renderers = [steps], [bars]
    chart.add_layout(models.LinearAxis(y_range_name="units", axis_label="Units sold"), "right")
    left, right = chart.yaxis
    left.axis_label = "Price, zł"
    left.ticker = models.BasicTicker(desired_num_ticks=5)
    left.formatter = models.NumeralTickFormatter(format="0,0.00")
    right.ticker = models.BasicTicker(desired_num_ticks=5, min_interval=1)
    right.formatter = models.NumeralTickFormatter(format="0,0")
    left.axis_label_text_color, right.axis_label_text_color = colours.blue, colours.green
    left.axis_label_text_font_style = right.axis_label_text_font_style = "bold"
    chart.xaxis.ticker.desired_num_ticks = 5
    chart.xaxis.major_label_policy = models.NoOverlap(min_distance=12)  # on a phone
    _style(chart, colours)
    target: Any = "product-chart"
    return dict(embed.json_item(chart, target))


def _shop_chart(source: Any, colours: _Colours, *, field: str, title: str, colour: str) -> Any:
    from bokeh import models  # noqa: PLC0415

    chart = _figure(
        colours,
        name=field,
        title=title,
        height=_HEIGHT,
        x_range=models.Range1d(start=-CHART_SECONDS, end=0),
        y_range=models.DataRange1d(start=0, min_interval=4, range_padding=0.1),
        min_border_right=24,
    )
    chart.varea(x="ago", y1=0, y2=field, source=source, fill_color=colour, fill_alpha=0.18)
    chart.line(x="ago", y=field, source=source, line_color=colour, line_width=2)
    minutes = range(0, CHART_SECONDS + 1, 60)
    chart.xaxis.ticker = models.FixedTicker(ticks=[-second for second in minutes])
    chart.xaxis.major_label_overrides = {
        -second: f"{second // 60} min ago" if second == CHART_SECONDS else f"{second // 60} min" if second else "now"
        for second in minutes
    }
    chart.yaxis.ticker = models.BasicTicker(min_interval=1, desired_num_ticks=5)
    chart.yaxis.formatter = models.NumeralTickFormatter(format="0,0")
    chart.title.text_color = colours.ink
    chart.title.text_font_size = "14px"
    _style(chart, colours)
    return chart


def _source(name: str, url: str, poll_ms: int, columns: Sequence[str]) -> Any:
    from bokeh.models import AjaxDataSource  # noqa: PLC0415

    empty: dict[str, list[float]] = {column: [] for column in columns}
    return AjaxDataSource(name=name, data_url=url, method="GET", polling_interval=poll_ms, mode="replace", data=empty)


def _figure(colours: _Colours, **options: Any) -> Any:
    from bokeh.plotting import figure  # noqa: PLC0415

    return figure(
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        background_fill_color=colours.paper,
        border_fill_color=colours.paper,
        outline_line_color=None,
        **options,
    )


def _style(chart: Any, colours: _Colours) -> None:
    for axis in chart.axis:
        axis.axis_line_color = axis.major_tick_line_color = colours.faint
        axis.minor_tick_line_color = None
        axis.major_label_text_color = colours.ink
        axis.major_label_text_font_size = "12px"
    chart.grid.grid_line_color = colours.faint
    chart.xgrid.grid_line_color = None
