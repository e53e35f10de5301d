"""The charts of the page, and a page without them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shopflow.web.page import charts


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_the_charts_fetch_from_the_worker_and_bring_no_script(dark: bool, wide: bool) -> None:
    """The data comes from the worker. A callback in JavaScript would be refused by the page's policy."""
    pytest.importorskip("bokeh")
    document = json.dumps(charts.document(dark=dark, wide=wide))
    assert '"/page/series.json"' in document
    assert "CustomJS" not in document
    assert "http" not in document
    assert ("#1a2027" in document) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_the_chart_of_a_product_has_two_axes(dark: bool) -> None:
    """Prices have the left axis and units the right one, so that large numbers of one don't flatten the other."""
    pytest.importorskip("bokeh")
    document = json.dumps(charts.product("/page/course.json?product=a%26b", dark=dark))
    assert '"/page/course.json?product=a%26b"' in document
    assert document.count('"LinearAxis"') == 2
    assert "CustomJS" not in document
    assert "http" not in document
    assert ("#1a2027" in document) == dark


def test_a_worker_that_shows_no_charts_does_not_import_bokeh() -> None:
    """Importing Bokeh takes a second and 60 MB."""
    code = "import sys, shopflow.web.page.views; sys.exit('bokeh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_bokeh_there_are_no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without Bokeh works, and has no charts."""
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert charts.script() is None
    assert not charts.available()
