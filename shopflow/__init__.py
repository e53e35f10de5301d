"""An event-driven shop: Kafka to MongoDB with Faust, every event stored and counted exactly once."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, cast

from .errors import Refused

if TYPE_CHECKING:
    from faust_batches import App

    app: App

__all__ = ["app"]


class _Package(ModuleType):
    """Makes `shopflow.app` the Faust application, which is built at the first access.

    Python binds an imported submodule to its package. Without this class, `shopflow.app` would be the module.
    """

    @property
    def app(self) -> App:
        """The application. A bad configuration prints one line on stderr and ends the process with status 2."""
        try:
            return cast("App", import_module(f"{__name__}.app").app)
        except Refused as refused:
            print(f"Error: {refused}", file=sys.stderr)
            raise SystemExit(refused.exit_code) from None

    @app.setter
    def app(self, module: ModuleType) -> None:
        """Ignore Python's binding of the submodule."""


sys.modules[__name__].__class__ = _Package
