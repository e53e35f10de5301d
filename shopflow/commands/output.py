"""Forms of output, as lines: aligned columns under a header, and JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from shopflow.store.types import Document

NOTHING_YET = "none yet"
#: Between two columns.
_GAP = "  "


class Column(NamedTuple):
    """A column; numbers stand at its right."""

    name: str
    number: bool = False


def width() -> int | None:
    """The columns of the terminal; None if stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def aligned(columns: Sequence[Column], rows: Iterable[Sequence[str]], terminal: int | None) -> Iterator[str]:
    """The lines of the header and the rows. Nothing is broken: columns that don't fit are on a second line.

    Arguments:
        terminal: Its width; None: the lines may be as long as they are.
    """
    from rich.cells import cell_len

    table = [[column.name for column in columns], *rows]
    widths = [max(map(cell_len, cells)) for cells in zip(*table, strict=True)]
    ends = accumulate(width + len(_GAP) for width in widths)
    fit = len(widths) if terminal is None else max(sum(end - len(_GAP) <= terminal for end in ends), 1)
    for row in table:
        cells = []
        for column, width, cell in zip(columns, widths, row, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if column.number else cell + space)
        yield _GAP.join(cells[:fit]).rstrip()
        if cells[fit:]:
            yield f"    {_GAP.join(cells[fit:])}".rstrip()


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
