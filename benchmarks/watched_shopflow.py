"""shopflow's worker with a task that measures how long its event loop is held. For measurements only.

When the worker has stopped, the measurements are in the file SEEN in the working directory.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks.watching import Watch

# Imported by name: the attribute `shopflow.app` is the application, not the module.
composition: Any = importlib.import_module("shopflow.app")

SEEN = "loop.json"


async def watch() -> None:
    """Measure until the worker stops."""
    watching = Watch()
    try:
        await watching.run()
    finally:
        watching.write(Path(SEEN))


if __name__ == "__main__":
    composition.app.task(watch)
    composition.app.main()
