"""An event-driven shop: Kafka to MongoDB with Faust, every event stored and counted exactly once."""

from __future__ import annotations

import sys
from importlib import import_module
from traceback import walk_tb
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, cast

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
        return cast("App", import_module(f"{__name__}.app").app)

    @app.setter
    def app(self, module: ModuleType) -> None:
        """Ignore Python's binding of the submodule."""


def explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An excepthook for Faust's program: one line if its option -A or -W is wrong; else the traceback."""
    frames = [frame for frame, _ in walk_tb(trace)]
    modules = {frame.f_globals.get("__name__", "") for frame in frames} - {"shopflow.__main__"}
    ours = any(name.startswith(("shopflow.", "faust_batches.")) for name in modules)
    inside = {frame.f_code.co_name for frame in frames}
    if not ours and "find_app" in inside and isinstance(error, ImportError | AttributeError):
        print(f"Error: -A: {error}; use -A shopflow", file=sys.stderr)
    elif not ours and "_maybe_import_app" in inside and isinstance(error, OSError):
        print(f"Error: -W: {error.filename}: {error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.modules[__name__].__class__ = _Package
if "faust.cli.base" in sys.modules:  # this is the program `faust`
    sys.excepthook = explain
