"""Partitions that stand still before a batch that can't be read, until a person lets the worker step over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from faust.types import TP

from .unreadable import UnreadableRecord

if TYPE_CHECKING:
    from .app import App

#: The kind of the trouble.
KIND = "unreadable-batch"


class Standstills:
    """The batches at which this worker's partitions stand still, and those that may be stepped over."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._found: dict[TP, UnreadableRecord] = {}
        self._allowed: dict[TP, list[range]] = {}

    def stops(self, bad: UnreadableRecord) -> bool:
        """Decide whether the partition stands still at this batch. Called in the consumer's thread.

        A changelog never does: its table tells what it may lack. A batch that may be stepped over becomes one record.
        """
        tp = TP(bad.topic, bad.partition)
        if tp.topic in self._app.readers:
            return False
        for allowed in self._allowed.get(tp, ()):
            if bad.start in allowed:
                bad.rest = replace(bad.rest, offset=allowed.stop - 1)
                return False
        self._found[tp] = bad
        return True

    async def look(self, positions: Callable[[], Mapping[TP, int | None]]) -> None:
        """Record the partitions that stand still as troubles, and ask whether their batches may be stepped over.

        Arguments:
            positions: Returns the next offset to read of each partition that is ours; None: not known now.
        """
        position = positions() if self._found else {}
        for tp, bad in list(self._found.items()):
            at = position.get(tp, bad.start + 1)
            if at is not None and at > bad.start:
                self._found.pop(tp)
            elif end := await self._app.skipped(tp, bad.start):
                self._allowed.setdefault(tp, []).append(range(bad.start, end))
            else:
                self._app.troubles.begin(KIND, f"{tp.topic}[{tp.partition}]", self._text(tp, bad), stops=True)
        self._app.troubles.end_others(KIND, {f"{tp.topic}[{tp.partition}]" for tp in self._found})

    def _text(self, tp: TP, bad: UnreadableRecord) -> str:
        advice = self._app.advice.get(KIND, "").format(topic=tp.topic, partition=tp.partition, offset=bad.start)
        return (
            f"{tp.topic}[{tp.partition}] stands still: its batch with {bad.offsets} can't be read ({bad.reason}); "
            f"the other partitions go on{advice}"
        )
