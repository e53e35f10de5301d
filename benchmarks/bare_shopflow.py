"""shopflow's worker with nothing that follows the counts: no sales, no customer activity. For measurements only.

Beside the worker as it is, it shows what these cost.
"""

from __future__ import annotations

import importlib
from typing import Any

# By its name in full: `shopflow.app` is the application, not the module.
composition: Any = importlib.import_module("shopflow.app")

if __name__ == "__main__":
    bootstrap: Any = importlib.import_module("shopflow.bootstrap")
    bootstrap.parts.purchases.followers = ()
    composition.app.main()
