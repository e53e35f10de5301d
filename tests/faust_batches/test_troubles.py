"""Troubles: one log line at the beginning and one at the end; the page, health and metrics see them meanwhile."""

from __future__ import annotations

import logging

import pytest

from faust_batches import Troubles


def test_a_trouble_is_logged_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """A check that finds the same trouble each minute must not fill the log."""
    troubles = Troubles()
    for events in (1, 2, 3):
        troubles.begin("open-transaction", "sold[0]", f"{events} events wait", stops=True)
    [trouble] = troubles.present
    assert (trouble.text, trouble.stops) == ("3 events wait", True)
    troubles.end("open-transaction", "sold[0]")
    troubles.end("open-transaction", "sold[0]")
    assert troubles.present == []
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "1 events wait"),
        (logging.WARNING, "It is over after 0 s: 3 events wait"),
    ]


def test_a_check_ends_what_it_no_longer_finds_and_nothing_else() -> None:
    """Troubles of other kinds belong to other checks. A trouble that lasts keeps the time of its beginning."""
    troubles = Troubles()
    troubles.begin("deleted", "sold[0]", "3 events were deleted unread", stops=False, since=5.0)
    troubles.begin("topic", "sold", "sold is compacted", stops=False)
    troubles.begin("topic", "bought", "bought is missing", stops=False)
    began = {trouble.subject: trouble.since for trouble in troubles.present}
    troubles.begin("topic", "sold", "sold is compacted, still", stops=True)
    troubles.end_others("topic", {"sold"})
    assert [(one.kind, one.subject, one.stops) for one in troubles.present] == [
        ("deleted", "sold[0]", False),
        ("topic", "sold", True),
    ]
    assert troubles.present[1].since == began["sold"]
    troubles.end_others("topic", ())
    assert [one.kind for one in troubles.present] == ["deleted"]
