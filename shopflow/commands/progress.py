"""Shows the progress of long work, and the state of endless work: rewritten on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from textwrap import wrap
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


class Activity:
    """What a command does before its own output begins. A terminal shows it, with the seconds so far, on its last line.

    Arguments:
        say: Prints a line. `Activity.say` prints it above what the terminal shows.
        stream: The stream of `say`.
    """

    def __init__(self, text: str, say: Callable[[str], None], stream: TextIO | None = None) -> None:
        self.say = say
        self._text = text
        self._stream = stream or sys.stdout
        self._stack = ExitStack()
        self.loading: Callable[[str, int], AbstractContextManager[Callable[[int], None]]] | None = None

    def __enter__(self) -> Activity:
        if self._stream.isatty():
            from rich import console, live, progress

            screen = console.Console(file=self._stream)
            text = progress.TextColumn("{task.description}", markup=False)
            doing = progress.Progress(progress.SpinnerColumn(), text, progress.TimeElapsedColumn())
            self._bytes = progress.Progress(text, progress.BarColumn(20), progress.DownloadColumn())
            doing.add_task(self._text, total=None)
            shown = console.Group(self._bytes, doing)
            self._stack.enter_context(live.Live(shown, console=screen, transient=True, refresh_per_second=8))
            self.say = partial(screen.print, markup=False, highlight=False, soft_wrap=True)
            self.loading = self._load
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextmanager
    def _load(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        task = self._bytes.add_task(what, total=total)
        yield lambda count: self._bytes.advance(task, count)
        self._bytes.remove_task(task)


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


def fitted(line: str, columns: int | None = None) -> str:
    """The line, broken between words if it is longer than the terminal; nothing with a no-break space is broken.

    Arguments:
        columns: None: those of the terminal; a stdout that is none has no end.
    """
    if columns is None:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(line) + 1
    if len(line) <= columns:
        return line
    return "\n".join(wrap(line, max(columns, 20), subsequent_indent="    ", break_on_hyphens=False))


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

            def rewrite(lines: Sequence[str]) -> None:
                whole = [fitted(line, screen.console.width) for line in (*fixed, *lines)]
                screen.update(text.Text("\n".join(whole)), refresh=True)

            yield rewrite
        return
    print(*fixed, sep="\n", file=stream, flush=True)
    due = monotonic()

    def show(lines: Sequence[str]) -> None:
        nonlocal due
        if monotonic() >= due:
            print(*lines, sep="\n", file=stream, flush=True)
            due = monotonic() + _STATE_SECONDS

    yield show
