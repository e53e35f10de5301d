"""Log lines of Faust and aiokafka that are no news: normal work, and what a trouble or an outage reports once.

A line is judged by its template, never by its logger. An unknown line passes, but the same line only once in ten
minutes: several times a second it would hide the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from aiokafka.errors import KafkaError

from .errors import ChangelogUnusable

#: The libraries whose lines are judged. All of them log by templates.
LIBRARIES = {"aiokafka", "asyncio", "faust", "mode"}
#: How a line of a service begins: with its name. Our subclasses of Faust's services have loggers of their own.
_SERVICE = "[^"
REPEAT_SECONDS = 600.0
#: The most lines that are remembered.
_REMEMBERED = 1_000

#: Lines of a rebalance, of a stop, of an end whose reason follows, or of a timer that waited for Kafka.
NORMAL = {
    "Fetcher is ignoring cancel or slow :(",
    "Heartbeat failed for group %s because it is rebalancing",
    "Heartbeat failed for group %s: generation id is not  current.",
    "Heartbeat failed: local member_id was not recognized; resetting and re-joining group",
    "OffsetCommit failed for group %s due to group error (%s), will rejoin",
    "Recovery rebalancing again",
    "Thread keepalive is not responding...",  # /health/live reports it if it lasts
    "We experienced a crash! Reraising original exception...",
    "Timer %s is overlapping (interval=%r runtime=%r)",
    "Topic %s is not available during auto-create initialization",
    "wait_empty: Waiting for tasks %r",
}
#: Lines about what is told as a trouble for as long as it lasts, with what to do.
TOLD = {
    "Attempt to join group failed due to fatal error: %s",
    "Fetch offset %s is out of range for partition %s, resetting offset",
    "Heartbeat failed: %r",
    "Not authorized to read from topic %s.",
    "OffsetCommit failed for group %s - %s",
    "OffsetCommit failed for unauthorized topics %s",
    "Topic %s is not authorized for this client",
    "Unexpected error in join group '%s' response: %s",
}
#: Lines of lost connections and failed requests. If Kafka does not answer a probe either, an outage begins.
SUSPICIOUS = {
    'Unable connect to "%s:%s": %s',
    'Unable to request metadata from "%s:%s": %s',
    "Unable to request metadata from node with id %s: %r",
    "Unable to update metadata from %s",
    "Unable connect to node with id %s: %s",
    "No broker metadata found in MetadataResponse -- ignoring.",
    "Error sending %s to node %s [%s] -- marking coordinator dead",
    "LeaveGroup request failed: %s",
    "OffsetCommit failed before join, ignoring: %s",
    "Marking the coordinator dead (node %s)for group %s.",
    "Group Coordinator Request failed: %s",
    "Failed to commit on finallization: %s",
    "Heartbeat session expired - marking coordinator dead",
    "Heartbeat send request failed: %s. Will retry.",
    "Heartbeat failed for group %s: coordinator (node %s) is either not started or not valid",
    "Failed fetch messages from %s: %s",
    "Failed fetch offsets from %s: %s",
    "Attempt to fetch offsets for partition %s failed due to: %s",
    "FindCoordinator Request failed: %s",
    "Cannot send %r to %s: %r",
    "Could not send %r: %r",
    "Got error produce response: %s",
    "Got error produce response on topic-partition %s, retrying. Error: %s",
}
#: The end of a service whose thread has ended: its loop is closed.
_STOPPING = "Error while stopping child %r: %r"


class Noise(logging.Filter):
    """A filter for the loggers of `LIBRARIES`, and for the lines of services in all loggers.

    Arguments:
        verbose: True: every line passes, as with `-l debug`.
        clock: Returns seconds.
    """

    def __init__(self, *, verbose: bool = False, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._verbose, self._clock = verbose, clock
        self._suspicion: str | None = None
        self._last: dict[tuple[str, str], float] = {}

    def install(self) -> None:
        """Add the filter to the loggers that exist: a logger's filter does not apply to its children."""
        for logger in list(logging.Logger.manager.loggerDict.values()):
            if isinstance(logger, logging.Logger):
                logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """False for noise. A suspicious line is kept for `suspicion`, also if it passes."""
        if record.name.partition(".")[0] not in LIBRARIES and not str(record.msg).startswith(_SERVICE):
            return True
        if _template(record) in SUSPICIOUS:
            self._suspicion = record.getMessage()
        return self._verbose or not (self._is_noise(record) or self._is_repeated(record))

    def suspicion(self) -> str | None:
        """The last suspicious line since the last call; None if there was none."""
        last, self._suspicion = self._suspicion, None
        return last

    @staticmethod
    def _is_noise(record: logging.LogRecord) -> bool:
        template = _template(record)
        if any(template in known for known in (NORMAL, TOLD, SUSPICIOUS)):
            return True
        if record.levelno < logging.WARNING:
            return record.name.startswith("aiokafka")
        error = record.exc_info[1] if record.exc_info else None
        about = (error, *(record.args or ()))
        if any(isinstance(one, ChangelogUnusable) for one in about):  # a critical line has told it
            return True
        if template == _STOPPING and isinstance(error, RuntimeError):
            return True
        if record.name == "asyncio":  # the error of a connection that aiokafka gave up is raised to its user
            return isinstance(error, (OSError, KafkaError)) and "never retrieved" in record.getMessage()
        # Faust cancels the actors in a rebalance, and all that waits when the worker stops.
        return any(isinstance(one, asyncio.CancelledError) for one in about)

    def _is_repeated(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        line, now = (record.name, record.getMessage()), self._clock()
        repeated = now - self._last.get(line, -REPEAT_SECONDS) < REPEAT_SECONDS
        if not repeated:
            if len(self._last) >= _REMEMBERED:
                self._last.clear()
            self._last[line] = now
        return repeated


def _template(record: logging.LogRecord) -> str:
    """The text of a line before its arguments are put in, without the name of a service."""
    text = str(record.msg)
    return text.partition("]: ")[2] if text.startswith(_SERVICE) else text
