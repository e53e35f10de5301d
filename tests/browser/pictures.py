"""Makes docs/faults.gif: the page of `demo --faults`, while MongoDB is stopped and a worker is frozen.

    .venv/bin/python -m tests.browser.pictures

It starts a demo of its own in a temporary folder, and takes about two minutes.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.support.shop import Process, free_port, until

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "docs" / "faults.gif"
DEMO = ("demo", "--customers", "50", "--purchases", "500", "--rate", "0", "--faults")
SIZE = {"width": 800, "height": 860}
#: Between two pictures, how long each is shown, and how long the last one is.
PAUSE_SECONDS, SHOWN_MS, LAST_MS = 1.0, 400, 4_000
COLORS = 48


def record(page: Page, button: str, frames: list[Image.Image]) -> None:
    """Press a button, and take pictures until its verdict is there. Equal ones that follow each other are one."""
    verdict = page.locator("#verdict").inner_text()
    page.get_by_role("button", name=button).click()
    deadline = time.monotonic() + 120
    while page.locator("#verdict").inner_text() == verdict:
        assert time.monotonic() < deadline, f"no verdict after {button!r}"
        frames.append(picture(page))
        page.wait_for_timeout(PAUSE_SECONDS * 1_000)
    frames.append(picture(page))


def picture(page: Page) -> Image.Image:
    """The page as it is now, in few colors."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)


def main() -> None:
    """Start the demo, break it, and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "demo.log"
        settings = {"SHOPFLOW_DATA_DIR": f"{folder}/data", "SHOPFLOW_WEB_PORT": str(free_port())}
        demo = Process([sys.executable, "-m", "shopflow", *DEMO], {**os.environ, **settings}, ROOT, log)
        try:
            found = until(lambda: re.search(r"Break it: (\S+)", demo.output), "the demo is open", 240)
            frames: list[Image.Image] = []
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
                )
                page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
                page.goto(found[1])
                page.wait_for_function("!document.getElementById('worker-2').textContent.includes('answer')")
                for button in ("Stop MongoDB", "Freeze the worker"):
                    record(page, button, frames)
                browser.close()
        finally:
            demo.stop(signal.SIGINT, 60)
    times = [SHOWN_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(TARGET, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
    print(f"{TARGET.relative_to(ROOT)}: {len(frames)} pictures, {TARGET.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
