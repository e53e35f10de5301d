"""Forms of output, as lines: aligned columns under a header, and JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from io import StringIO
from typing import Any, NamedTuple

import msgspec

from shopflow.store.types import Document

NOTHING_YET = "none yet"
#: Wider than any table: nothing is broken in a file or a pipe.
_ENDLESS = 100_000


class Column(NamedTuple):
    """A column. Numbers stand at its right, and are never broken. A text is, on a terminal that is too narrow."""

    name: str
    number: bool = False
    whole: bool = False
    """True: a text that is never broken either, like an id."""


def width() -> int | None:
    """The columns of the terminal; None if stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(columns: Sequence[Column], rows: Iterable[Sequence[str]], terminal: int | None) -> list[str]:
    """The lines of the header and the rows.

    Arguments:
        terminal: Its width; None: the lines may be as long as they are.
    """
    from rich import console, table, text

    made = table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for column in columns:
        made.add_column(
            column.name,
            justify="right" if column.number else "left",
            no_wrap=column.number or column.whole,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*map(text.Text, row))
    into = StringIO()
    console.Console(file=into, width=terminal or _ENDLESS, color_system=None).print(made)
    return [line.rstrip() for line in into.getvalue().splitlines()]


def as_one_line(document: Any) -> str:
    """JSON with control characters escaped."""
    text = msgspec.json.encode(document, enc_hook=str).decode()
    return text if text.isprintable() else "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class JsonArray:
    """An array with a line for each element."""

    def __init__(self) -> None:
        self._before = "["

    def line(self, element: Any) -> str:
        before, self._before = self._before, ","
        return before + as_one_line(element)

    def end(self) -> str:
        return "]" if self._before == "," else "[]"


async def one_by_one(
    documents: AsyncIterator[Document],
    public: Callable[[Document], Any] | None,
    lines: Callable[[Document], Iterable[str]],
    what: str,
) -> AsyncIterator[str]:
    """With `public`, a JSON array of its results. Otherwise the lines of each document, or a line if there is none."""
    array, found = JsonArray(), False
    async for document in documents:
        found = True
        for line in [array.line(public(document))] if public else lines(document):
            yield line
    if public:
        yield array.end()
    elif not found:
        yield f"{what}: {NOTHING_YET}."
