"""The filter of Faust's and aiokafka's log lines: which lines pass."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import aiokafka
import faust
import mode
import pytest

from faust_batches import noise
from faust_batches.errors import ChangelogUnusable
from faust_batches.noise import REPEAT_SECONDS, Noise

_CONNECT = "Unable connect to node with id %s: %s"


def line(
    text: str, *arguments: Any, name: str = "aiokafka", level: int = logging.ERROR, error: BaseException | None = None
) -> logging.LogRecord:
    """A line of a library's log."""
    return logging.LogRecord(name, level, "", 0, text, arguments, (type(error), error, None) if error else None)


@pytest.mark.parametrize("verbose", [False, True])
def test_a_lost_connection_becomes_a_suspicion(verbose: bool) -> None:
    """While Kafka is away, the line comes several times a second. It is kept as a suspicion; `-l debug` logs it too."""
    found = Noise(verbose=verbose)
    assert [found.filter(line(_CONNECT, 1, "refused")) for _ in range(50)] == [verbose] * 50
    assert found.suspicion() == "Unable connect to node with id 1: refused"
    assert found.suspicion() is None


def test_what_is_not_known_is_news_but_not_each_second() -> None:
    """An unknown line passes, whichever logger has it. The same text again passes only ten minutes later."""
    now = 0.0
    found = Noise(clock=lambda: now)
    for name in ("aiokafka.consumer.fetcher", "faust.app.base", "mode.threads"):
        assert [found.filter(line("Lost %s", what, name=name)) for what in "aaba"] == [True, False, True, False]
    now = REPEAT_SECONDS
    assert found.filter(line("Lost %s", "a", name="mode.threads"))
    assert found.suspicion() is None


@pytest.mark.parametrize(
    ("record", "passes"),
    [
        (line("Timer %s is overlapping (interval=%r runtime=%r)", "commit", 1, 2, name="mode.timers"), False),
        (line("Timer %s is overlapping (interval=%r runtime=%r)", "commit", 1, 2, name="faust.consumer"), False),
        (line("[^--C]: Timer %s is overlapping (interval=%r runtime=%r)", "commit", 1, 2, name="faust_batches"), False),
        (line("[^Worker]: We experienced a crash! Reraising original exception...", name="faust.worker"), False),
        (line("[^Table]: a fault", name="faust_batches.table"), True),
        (line("Crashed reason=%r", ChangelogUnusable("gone"), name="faust_batches.app"), True),
        (line("[^-App]: Crashed reason=%r", ChangelogUnusable("gone"), name="faust_batches.app"), False),
        (line("[^-C]: Error while stopping child %r: %r", 1, 2, name="mode", error=RuntimeError("closed")), False),
        (line("Crashed reason=%r", asyncio.CancelledError(), name="faust.agents.actor"), False),
        (line("Error: %r", None, name="mode.worker", error=asyncio.CancelledError()), False),
        (line("Crashed reason=%r", ValueError("a fault"), name="faust.agents.actor"), True),
        (line("(Re-)joining group %s", "shop", level=logging.INFO), False),
        (line("Ready", name="faust.worker", level=logging.INFO), True),
        (line("Future exception was never retrieved", name="asyncio", error=ConnectionResetError()), False),
        (line("Future exception was never retrieved", name="asyncio", error=ValueError("a fault")), True),
    ],
)
def test_a_line_is_judged_by_what_it_says(record: logging.LogRecord, passes: bool) -> None:
    """Lines of normal work, of cancelled actors and of lost connections that were given up don't pass."""
    assert Noise().filter(record) == passes


def test_lines_of_others_are_not_judged() -> None:
    """An application may say the same as often as it likes."""
    assert [Noise().filter(line("Sold out", name="shopflow.shop")) for _ in range(2)] == [True, True]


def test_each_template_is_one_of_the_libraries() -> None:
    """If a new version words a line differently, the filter must follow."""
    sources = " ".join(
        " ".join(path.read_text(encoding="utf-8").split()).replace('" "', "")
        for library in (aiokafka, faust, mode)
        for path in Path(library.__file__ or "").parent.rglob("*.py")
    )
    assert [
        one for one in sorted(noise.NORMAL | noise.TOLD | noise.SUSPICIOUS) if " ".join(one.split()) not in sources
    ] == []
