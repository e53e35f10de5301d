"""The page's charts, by Bokeh: it comes with the extra `page`, and is imported when the first chart is made."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from .render import CHART_SECONDS

__all__ = ["available", "document", "product", "script"]

#: How often the browser fetches the columns, in ms.
_POLL_MS = 1_000
_PRODUCT_POLL_MS = 5_000
_HEIGHT, _PRODUCT_HEIGHT = 220, 300
#: Paper, ink, faint lines, and the colours of the two charts; all have contrast enough on the page's background.
_LIGHT = ("#ffffff", "#3d4752", "#e3e7eb", "#0f6cbd", "#0b7a55")
_DARK = ("#1a2027", "#c3cdd6", "#2d3640", "#5eb0ef", "#3fc796")


def script() -> Path | None:
    """Bokeh's own script for the browser; None when it is not installed."""
    try:
        found = importlib.util.find_spec("bokeh")
    except ValueError:  # somebody has put something else in its place
        return None
    if found is None or not found.origin:
        return None
    path = Path(found.origin).parent / "server" / "static" / "js" / "bokeh.min.js"
    return path if path.is_file() else None


def available() -> bool:
    """Is the extra installed?"""
    return script() is not None


@cache
def document(*, dark: bool, wide: bool) -> dict[str, Any]:
    """The charts, for `Bokeh.embed.embed_item`; side by side where it is wide.

    The first time takes a second, for Bokeh is imported: use a thread.
    """
    from bokeh.embed import json_item  # noqa: PLC0415 - an extra, and slow to import
    from bokeh.layouts import column, row  # noqa: PLC0415
    from bokeh.models import AjaxDataSource  # noqa: PLC0415

    paper, ink, faint, blue, green = _DARK if dark else _LIGHT
    source = AjaxDataSource(
        data_url="/page/series.json",
        method="GET",
        polling_interval=_POLL_MS,
        mode="replace",
        data={"ago": [], "purchases": [], "money": []},
        name="sales",
    )
    charts = [
        _chart(source, "purchases", "Purchases a second", "0", (paper, ink, faint, blue)),
        _chart(source, "money", "zł a minute", "0,0", (paper, ink, faint, green)),
    ]
    target: Any = "charts"
    side = row if wide else column
    return dict(json_item(side(charts, sizing_mode="stretch_width"), target))


def product(url: str, *, dark: bool) -> dict[str, Any]:
    """The chart of a product, for `Bokeh.embed.embed_item`: prices as steps, units sold as bars, over one time.

    Arguments:
        url: Where its columns are fetched.
    """
    from bokeh.embed import json_item  # noqa: PLC0415
    from bokeh.models import (  # noqa: PLC0415
        AjaxDataSource,
        BasicTicker,
        DataRange1d,
        LinearAxis,
        NoOverlap,
        NumeralTickFormatter,
    )
    from bokeh.plotting import figure  # noqa: PLC0415

    paper, ink, faint, blue, green = _DARK if dark else _LIGHT
    names = ("x0", "y0", "x1", "y1", "left", "right", "units")
    source = AjaxDataSource(
        data_url=url,
        method="GET",
        polling_interval=_PRODUCT_POLL_MS,
        mode="replace",
        data={name: [] for name in names},
        name="course",
    )
    prices, units = (DataRange1d(start=0, min_interval=least, range_padding=0.15) for least in (1, 4))
    chart: Any = figure(
        height=_PRODUCT_HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_axis_type="datetime",
        x_range=DataRange1d(range_padding=0.02, min_interval=60_000),
        y_range=prices,
        background_fill_color=paper,
        border_fill_color=paper,
        outline_line_color=None,
        name="product",
    )
    chart.extra_y_ranges = {"units": units}
    bars = chart.quad(
        left="left", right="right", bottom=0, top="units", source=source, y_range_name="units",
        fill_color=green, fill_alpha=0.3, line_color=green, line_alpha=0.5,
    )  # fmt: skip
    steps = chart.segment(
        x0="x0", y0="y0", x1="x1", y1="y1", source=source, line_color=blue, line_width=3, line_cap="round"
    )
    prices.renderers, units.renderers = [steps], [bars]
    chart.add_layout(LinearAxis(y_range_name="units", axis_label="Units sold"), "right")
    chart.yaxis[0].axis_label = "Price, zł"
    left, right = chart.yaxis
    left.ticker, left.formatter = BasicTicker(desired_num_ticks=5), NumeralTickFormatter(format="0.00")
    right.ticker, right.formatter = BasicTicker(desired_num_ticks=5, min_interval=1), NumeralTickFormatter(format="0,0")
    left.axis_label_text_color, right.axis_label_text_color = blue, green
    left.axis_label_text_font_style = right.axis_label_text_font_style = "bold"
    chart.xaxis.ticker.desired_num_ticks = 5
    chart.xaxis.major_label_policy = NoOverlap(min_distance=12)  # on a phone
    _style(chart, ink, faint)
    target: Any = "product-chart"
    return dict(json_item(chart, target))


def _chart(source: Any, field: str, title: str, numbers: str, colours: tuple[str, str, str, str]) -> Any:
    from bokeh.models import BasicTicker, DataRange1d, FixedTicker, NumeralTickFormatter, Range1d  # noqa: PLC0415
    from bokeh.plotting import figure  # noqa: PLC0415

    paper, ink, faint, colour = colours
    chart: Any = figure(
        title=title,
        height=_HEIGHT,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_range=Range1d(start=-CHART_SECONDS, end=0),
        y_range=DataRange1d(start=0, min_interval=4, range_padding=0.1),
        background_fill_color=paper,
        border_fill_color=paper,
        outline_line_color=None,
        min_border_right=24,
        name=field,
    )
    chart.varea(x="ago", y1=0, y2=field, source=source, fill_color=colour, fill_alpha=0.18)
    chart.line(x="ago", y=field, source=source, line_color=colour, line_width=2)
    minutes = range(0, CHART_SECONDS + 1, 60)
    chart.xaxis.ticker = FixedTicker(ticks=[-second for second in minutes])
    chart.xaxis.major_label_overrides = {
        -second: f"{second // 60} min ago" if second == CHART_SECONDS else f"{second // 60} min" if second else "now"
        for second in minutes
    }
    chart.yaxis.ticker = BasicTicker(min_interval=1, desired_num_ticks=5)
    chart.yaxis.formatter = NumeralTickFormatter(format=numbers)
    chart.title.text_color = ink
    chart.title.text_font_size = "14px"
    _style(chart, ink, faint)
    return chart


def _style(chart: Any, ink: str, faint: str) -> None:
    for axis in chart.axis:
        axis.axis_line_color = axis.major_tick_line_color = faint
        axis.minor_tick_line_color = None
        axis.major_label_text_color = ink
        axis.major_label_text_font_size = "12px"
    chart.grid.grid_line_color = faint
    chart.xgrid.grid_line_color = None
