"""The documents, and the parts of them that tests check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "faust_batches" / "README.md"])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

#: Beginnings of commands that no test runs, and why. An entry that no document uses is stale.
NOT_RUN = {
    "docker compose": "needs a Docker engine; make test-containers runs it",
    "make bench": "takes many minutes",
    "make demo": "installs packages; its command is run instead",
    "make lint": "installs packages",
    "make test": "would run this test again",
    ".venv/bin/faust -A shopflow workers": "tests/system/test_workers.py runs it, with other ports",
    ".venv/bin/python -m pip": "installs packages",
    ".venv/bin/python -m pytest tests": "would run tests in a test",
    "python3 -m venv": "installs packages",
}


@dataclass(frozen=True)
class Block:
    """A shell block, and the output that the document shows for it; `shown` is empty without a text block after it."""

    document: str
    lines: tuple[str, ...]
    shown: str

    def __str__(self) -> str:
        return f"{self.document}: {self.lines[0]}"


def text_of(name: str) -> str:
    """A document, by its path in the project."""
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [content for found, content in fences(text) if found == language]


def shell_blocks(name: str, text: str | None = None) -> list[Block]:
    """The shell blocks of a document, or of a part of it, in order."""
    found = [*fences(text_of(name) if text is None else text), ("", "")]
    return [
        Block(name, tuple(content.splitlines()), shown if follows == "text" else "")
        for (language, content), (follows, shown) in pairwise(found)
        if language == "sh"
    ]


def not_run(line: str) -> bool:
    """True if no test runs the line."""
    return any(line.startswith(start) for start in NOT_RUN)


def shape(line: str) -> str:
    """A line without the parts that differ between runs: numbers, ids and times. Of a voucher only the rule stays."""
    line = re.sub(r"\b[0-9a-f]{32}\b|\b[0-9a-f]+…", "ID", line.rstrip())
    line = line.partition("voucher: ")[0] if "newest voucher" in line else line
    return re.sub(r"\d+( \d{3})*", "0", line.replace("\N{NO-BREAK SPACE}", " "))


def shows(shown: str, output: str) -> bool:
    """True if the output has every shown line, in this order."""
    lines = iter([shape(line) for line in output.splitlines()])
    return all(shape(line) in lines for line in shown.splitlines())
