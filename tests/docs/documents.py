"""The documents, and the parts of them that are tested."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "faust_batches" / "README.md"])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

#: Commands that no test runs, by the words that they begin with, and why. An entry that no document uses is stale.
NOT_RUN = {
    "cp .env.example": "belongs to docker compose",
    "docker compose": "needs a Docker engine; tests/docs/test_compose.py checks the file",
    "make bench": "takes many minutes",
    "make demo": "installs packages; its command is run instead",
    "make lint": "installs packages",
    "make test": "would run this test again",
    ".venv/bin/python -m pytest": "would run tests in a test",
}


@dataclass(frozen=True)
class Block:
    """A shell block and, if a text block follows before the next one of another language, what it shows."""

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
    """Whether the line is one of those that no test runs."""
    return any(line.startswith(start) for start in NOT_RUN)


def shape(line: str) -> str:
    """A line without what differs in each run: numbers, ids, times; of a voucher its rule."""
    line = re.sub(r"\b[0-9a-f]{32}\b|\b[0-9a-f]+…", "ID", line.rstrip())
    return re.sub(r"\d+", "0", line.partition("voucher: ")[0] if "newest voucher" in line else line)


def shows(shown: str, output: str) -> bool:
    """Whether the output has every line that is shown, in this order."""
    lines = iter([shape(line) for line in output.splitlines()])
    return all(shape(line) in lines for line in shown.splitlines())
