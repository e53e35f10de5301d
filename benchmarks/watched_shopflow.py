"""shopflow's worker as it is, and a task in its event loop that sees how long the loop is held. For measurements only.

What it saw is in the file SEEN, in the working directory, when the worker has stopped.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.watching import Watch

# By its name in full: `shopflow.app` is the application, not the module.
composition: Any = importlib.import_module("shopflow.app")

SEEN = "loop.json"


async def watch() -> None:
    """Until the worker stops."""
    watching = Watch()
    try:
        await watching.run()
    finally:
        watching.write(Path(SEEN))


if __name__ == "__main__":
    composition.app.task(watch)
    composition.app.main()
