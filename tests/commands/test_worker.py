"""Lines that are left out of a worker's log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shopflow.commands.worker import KafkaNoise, is_news


@pytest.mark.parametrize("verbose", [False, True])
def test_aiokafkas_lines_become_a_suspicion(verbose: bool) -> None:
    """aiokafka logs several lines a second while Kafka is away. They become one suspicion; `-l debug` logs them all."""
    noise = KafkaNoise(verbose=verbose)
    text = "Unable connect to node with id 1"
    line = logging.LogRecord("aiokafka.conn", logging.ERROR, "", 0, text, (), None)
    other = logging.LogRecord("aiokafka.conn", logging.WARNING, "", 0, "Rebalancing", (), None)
    assert [noise.filter(each) for each in [line] * 50 + [other]] == [verbose] * 51
    assert noise.suspicion() == text
    assert noise.suspicion() is None


def test_cancelled_actors_are_no_news() -> None:
    """Faust logs a traceback for each actor that a rebalance cancels. Only other crashes stay in the log."""
    lines = [
        logging.LogRecord("faust.agents.actor", logging.ERROR, "", 0, "Crashed reason=%r", (reason,), None)
        for reason in (asyncio.CancelledError(), ValueError("a fault"))
    ]
    assert [is_news(line) for line in lines] == [False, True]
