"""What the log of a worker leaves out."""

from __future__ import annotations

import asyncio
import logging

import pytest

from shopflow.commands.worker import KafkaNoise, is_news


@pytest.mark.parametrize("verbose", [False, True])
def test_aiokafkas_lines_become_a_suspicion(verbose: bool) -> None:
    """It says several a second while Kafka is away; with -l debug they are all there."""
    noise = KafkaNoise(verbose=verbose)
    text = "Unable connect to node with id 1"
    line = logging.LogRecord("aiokafka.conn", logging.ERROR, "", 0, text, (), None)
    other = logging.LogRecord("aiokafka.conn", logging.WARNING, "", 0, "Rebalancing", (), None)
    assert [noise.filter(each) for each in [line] * 50 + [other]] == [verbose] * 51
    assert noise.suspicion() == text
    assert noise.suspicion() is None


def test_cancelled_actors_are_no_news() -> None:
    """Each rebalance cancels those that have a batch in hand; Faust writes a traceback for each."""
    lines = [
        logging.LogRecord("faust.agents.actor", logging.ERROR, "", 0, "Crashed reason=%r", (reason,), None)
        for reason in (asyncio.CancelledError(), ValueError("a fault"))
    ]
    assert [is_news(line) for line in lines] == [False, True]
