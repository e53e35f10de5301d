"""shopflow's worker without the steps after the counts: no sales, no customer activity. For measurements only.

The difference to a complete worker is the cost of these steps.
"""

from __future__ import annotations

import importlib
from typing import Any

# Imported by name: the attribute `shopflow.app` is the application, not the module.
composition: Any = importlib.import_module("shopflow.app")

if __name__ == "__main__":
    bootstrap: Any = importlib.import_module("shopflow.bootstrap")
    bootstrap.parts.purchases.followers = ()
    composition.app.main()
