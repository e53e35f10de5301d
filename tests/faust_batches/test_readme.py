"""The README of `faust_batches` agrees with its code and its example."""

from __future__ import annotations

import re
from pathlib import Path

import faust_batches

HEART = Path(faust_batches.__file__).parent
README = (HEART / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_application_is_that_of_the_example() -> None:
    """The README shows lines of examples/page_views.py, in their order."""
    example = (HEART.parent / "examples/page_views.py").read_text(encoding="utf-8")
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]
    found = [line for line in example.splitlines() if line in lines]
    assert found == lines


def test_the_example_of_a_handler_test_runs() -> None:
    """The README's test of a handler runs with the fakes that it names."""
    exec(compile(BLOCKS[1], "README.md", "exec"), {})  # noqa: S102 - it is ours


def test_every_class_in_the_table_of_replacements_exists() -> None:
    """The table of replaced parts of Faust names existing classes."""
    source = "".join(path.read_text(encoding="utf-8") for path in HEART.glob("*.py"))
    for name in re.findall(r"`([A-Z]\w+)`", README.partition("## What it replaces")[2].partition("## What was")[0]):
        assert f"class {name}" in source, name
