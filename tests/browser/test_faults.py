"""The page of `demo --faults` in a browser: by mouse and by keyboard, with and without scripts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from shopflow.commands.faults import FAULTS, Faults, State
from shopflow.commands.faults_page import serving

from .conftest import check_for_everybody


class Worker:
    """A worker that is never asked."""

    url = "http://127.0.0.1:6066"


class Servers:
    """Both servers are the demo's own."""

    own = ("kafka", "mongodb")


class Opened:
    """The page of faults that only remember which button was pressed."""

    def __init__(self) -> None:
        unused: Any = None
        workers: Any = [Worker(), Worker()]
        servers: Any = Servers()
        self.faults = Faults(unused, workers, servers, unused, lambda _: None)
        self.faults.press = self._press  # type: ignore[method-assign]
        self.pressed: list[str] = []
        self.url = ""
        self._ready, self._loop, self._end = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        async with serving(self.faults) as self.url:
            self._ready.set()
            await self._end.wait()

    def _press(self, name: str) -> bool:
        self.pressed.append(name)
        self.faults.doing = name
        return True

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def opened() -> Iterator[Opened]:
    """A page; it ends with the test."""
    page = Opened()
    yield page
    page.close()


@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [1400, 390])
def test_a_button_works_and_what_happens_is_shown(chromium: Browser, opened: Opened, scripts: bool, width: int) -> None:
    """By keyboard. The page shows what happens without a reload by hand, and never scrolls sideways."""
    context = chromium.new_context(java_script_enabled=scripts, viewport={"width": width, "height": 800})
    try:
        page = context.new_page()
        errors: list[str] = []
        page.on("console", lambda said: errors.append(said.text) if said.type in {"error", "warning"} else None)
        page.goto(opened.url)
        for _ in range(2):  # past the link, to the first button
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#doing")).to_have_text("Kill the worker: under way. One at a time.")
        assert opened.pressed == ["kill-worker"]
        opened.faults.state = State([[], [0, 1, 2, 3]], 1234)
        opened.faults.lines.append("12:00:00  Worker 2 has partitions 0, 1, 2, 3.")
        expect(page.locator("#worker-2")).to_have_text("partitions 0, 1, 2, 3", timeout=10_000)
        expect(page.locator("#waiting")).to_have_text("1\N{NO-BREAK SPACE}234")
        expect(page.locator("#lines li")).to_have_count(1)
        assert page.get_by_role("button").count() == len(FAULTS)
        if scripts:
            assert page.evaluate("document.activeElement.textContent").startswith("Kill the worker")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            check_for_everybody(page)
        assert errors == []
    finally:
        context.close()


def test_the_page_says_that_the_demo_is_gone(chromium: Browser, opened: Opened) -> None:
    """What is on the page is old then."""
    page = chromium.new_page()
    try:
        page.goto(opened.url)
        page.route("**/*", lambda route: route.abort())
        expect(page.locator("#doing")).to_have_text("The demo does not answer.", timeout=10_000)
    finally:
        page.close()
