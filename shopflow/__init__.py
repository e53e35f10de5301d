"""An event-driven shop: Kafka to MongoDB with Faust, every event stored and counted exactly once."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
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


def stop_at_once(*_: object) -> None:
    """A handler of Ctrl-C while a program is imported: nothing runs yet that must be stopped."""
    os.write(2, b"Stopped.\n")
    os._exit(128 + signal.SIGINT)


def _is_program() -> bool:
    """True in `faust`, `shopflow`, `python -m faust` and `python -m shopflow`, but not where this is a library."""
    program = Path(sys.argv[0] if sys.argv else "")
    named = program.name in {"faust", "shopflow"} or program.parts[-2:] == ("faust", "__main__.py")
    return named or (program.name == "-m" and "shopflow" in sys.orig_argv)


if _is_program() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop_at_once)  # a command sets Python's own again
sys.modules[__name__].__class__ = _Package
if "faust.cli.base" in sys.modules:  # this is the program `faust`
    sys.excepthook = explain
