"""A headless Chromium, its pages with their errors, and pictures of them if they are wanted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.support.shop import Worker
from tests.support.text import plain

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: The variable that names a folder for pictures of the pages.
_PICTURES = "SHOPFLOW_TEST_PICTURES"


def check_for_everybody(page: Page) -> None:
    """axe finds nothing on the page."""
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]})
    assert found.violations_count == 0, found.generate_report()


class Tab:
    """A page of a worker in the browser, and its errors.

    Attributes:
        page: Playwright's page.
        errors: Errors and warnings of the console, and exceptions of scripts.
        foreign: URLs that the page requested from others than the worker.
    """

    def __init__(self, page: Page, worker: Worker) -> None:
        self.page = page
        self.origin = f"http://127.0.0.1:{worker.port}"
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("console", lambda said: self.errors.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._requested)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:")):
            self.foreign.append(request.url)

    def open(self, path: str = "/") -> Page:
        """Open this path of the worker."""
        self.page.goto(self.origin + path)
        return self.page

    def table(self, name: str) -> list[list[str]]:
        """The texts of a table's cells, as people read them."""
        rows: list[list[str]] = self.page.eval_on_selector_all(
            f'[data-table="{name}"] tbody tr', "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return [plain(row) for row in rows]

    def number(self, name: str) -> str:
        """One of the page's numbers."""
        return str(plain(self.page.locator(f'[data-number="{name}"]').inner_text()))

    def note(self, name: str) -> str:
        """The note beside a number, or about a source: of which moment it is, or why it is not known."""
        return self.page.locator(f'[data-note="{name}"]').first.text_content() or ""

    def empty(self, name: str) -> str:
        """The sentence that a table without rows shows."""
        return self.page.locator(f'[data-empty="{name}"]').inner_text()

    def sentences(self) -> str:
        """The text of the warnings, or that all is well."""
        return self.page.locator("#condition").inner_text()

    def column(self, name: str, source: str = "sales") -> list[float]:
        """A column of a chart's data in Bokeh; empty while there are no charts."""
        found: list[float] = self.page.evaluate(
            "([name, source]) => [...((globalThis.Bokeh?.documents ?? [])"
            ".map(each => each.get_model_by_name(source)).find(each => each)?.data[name] ?? [])]",
            [name, source],
        )
        return found

    def width(self) -> int:
        """The width of the content in pixels. If it is more than the window's, the page scrolls sideways."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth")
        return found

    def keep(self, name: str, *, whole: bool = True) -> None:
        """Keep a picture, if the variable names a folder."""
        if folder := os.environ.get(_PICTURES):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=whole)


OpenTab = Callable[..., Tab]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The Chromium that is installed on the machine."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.fail(f"none of {', '.join(_PROGRAMS)} is installed; on Debian and Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_tab(chromium: Browser) -> Iterator[OpenTab]:
    """Opens a tab for a worker, each with a storage of its own; takes the options of Playwright's `new_context`."""
    contexts = []

    def opened(worker: Worker, **options: Any) -> Tab:
        contexts.append(chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        return Tab(contexts[-1].new_page(), worker)

    yield opened
    for context in contexts:
        context.close()
