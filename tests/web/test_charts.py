"""The charts, and that there may be none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shopflow.web.page import charts


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_the_charts_fetch_from_the_worker_and_bring_no_script(dark: bool, wide: bool) -> None:
    """Their data comes from the worker; no callback is JavaScript in a text, which the page's policy would refuse."""
    pytest.importorskip("bokeh")
    document = json.dumps(charts.document(dark=dark, wide=wide))
    assert '"/page/series.json"' in document
    assert "CustomJS" not in document
    assert "http" not in document
    assert ("#1a2027" in document) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_the_chart_of_a_product_has_two_axes(dark: bool) -> None:
    """Prices on the left, units on the right; neither is stretched by the other's numbers. No script comes with it."""
    pytest.importorskip("bokeh")
    document = json.dumps(charts.product("/page/course.json?product=a%26b", dark=dark))
    assert '"/page/course.json?product=a%26b"' in document
    assert document.count('"LinearAxis"') == 2
    assert "CustomJS" not in document
    assert "http" not in document
    assert ("#1a2027" in document) == dark


def test_a_worker_that_shows_no_charts_does_not_import_bokeh() -> None:
    """It takes a second and 60 MB."""
    code = "import sys, shopflow.web.page.views; sys.exit('bokeh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_extra_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, or not what it should be."""
    monkeypatch.setitem(sys.modules, "bokeh", None)
    assert charts.script() is None
    assert not charts.available()
