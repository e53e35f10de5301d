"""The heart and its tests stand alone: another application can take both."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import faust_batches

TESTS = Path(__file__).parent
#: All but `conftest.py`, which imports the code that starts the servers.
FILES = sorted(path for path in TESTS.glob("*.py") if path.name != "conftest.py")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_test_of_the_heart_uses_nothing_of_the_shop(path: Path) -> None:
    """The tests import neither shopflow nor the shop's fakes."""
    assert {name for name in imported(path) if name.startswith(("shopflow", "tests", ".."))} == set()


def test_the_heart_loads_nothing_but_faust(tmp_path: Path) -> None:
    """An import of `faust_batches` loads no shop, no database driver and no web page."""
    code = (
        "import sys, faust_batches, faust_batches.testing; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    root = Path(faust_batches.__file__).parents[1]
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={"PYTHONPATH": str(root)}, check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert "faust_batches" in loaded
    assert {"shopflow", "pymongo", "bson", "bokeh", "jinja2", "prometheus_client", "rich", "faker"}.isdisjoint(loaded)
