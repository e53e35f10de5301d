"""Shows the progress of long work, and the state of endless work: rewritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

#: Pause between two plain lines of progress, and of a state.
_LINE_SECONDS, _STATE_SECONDS = 5.0, 30.0


@contextmanager
def progress_bar(
    what: str, total: int, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Callable[[int], None]]:
    """Show the progress on stderr. Yields a function that takes the number done since the last call."""
    stream = stream or sys.stderr
    if quiet:
        yield lambda _: None
    elif stream.isatty():
        from rich import console, progress

        done, left = progress.MofNCompleteColumn(), progress.TimeRemainingColumn()
        columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), done, left)
        with progress.Progress(*columns, console=console.Console(file=stream)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.advance(task, done)
    else:
        yield _PlainLines(what, total, stream)


class _PlainLines:
    def __init__(self, what: str, total: int, stream: TextIO) -> None:
        self._what, self._total, self._stream = what, total, stream
        self._done = 0
        self._next = monotonic() + _LINE_SECONDS

    def __call__(self, done: int) -> None:
        self._done += done
        if monotonic() >= self._next and self._done < self._total:
            print(f"{self._what}: {self._done} of {self._total}", file=self._stream, flush=True)
            self._next = monotonic() + _LINE_SECONDS


@contextmanager
def always_in_sight(fixed: Sequence[str], *, stream: TextIO | None = None) -> Iterator[Callable[[Sequence[str]], None]]:
    """Show lines that stay, and below them lines that change. Yields a function that takes the changed ones.

    A terminal has them at its bottom, until the end. Elsewhere the fixed lines are printed once, and the others now
    and then.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        from rich import console, live, text

        with live.Live(console=console.Console(file=stream), auto_refresh=False, transient=True) as screen:
            yield lambda lines: screen.update(text.Text("\n".join([*fixed, *lines])), refresh=True)
        return
    print(*fixed, sep="\n", file=stream, flush=True)
    due = monotonic()

    def show(lines: Sequence[str]) -> None:
        nonlocal due
        if monotonic() >= due:
            print(*lines, sep="\n", file=stream, flush=True)
            due = monotonic() + _STATE_SECONDS

    yield show
