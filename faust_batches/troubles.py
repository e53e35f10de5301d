"""The troubles of a worker: what a person must know or mend. Each is logged once, and kept for as long as it lasts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """One thing that is wrong.

    Attributes:
        kind: A fixed name, like `open-transaction`: the same for all of its kind.
        subject: What it is about, like `shop.purchases[2]` for a partition.
        text: One sentence without a full stop, that can stand alone: what is wrong, and what to do.
        stops: True if work stands still until it is mended.
        since: Unix time in seconds.
    """

    kind: str
    subject: str
    text: str
    stops: bool
    since: float


class Troubles:
    """The present troubles, one at most of a kind and subject. Thread-safe."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Trouble] = {}
        self._lock = threading.Lock()

    @property
    def present(self) -> list[Trouble]:
        """All present troubles, the oldest first."""
        with self._lock:
            return sorted(self._found.values(), key=lambda trouble: (trouble.since, trouble.kind, trouble.subject))

    def begin(self, kind: str, subject: str, text: str, *, stops: bool, since: float | None = None) -> None:
        """Record a trouble. It is logged when it begins; another text of the same trouble replaces the old one.

        Arguments:
            since: Unix time in seconds; None: now, or the time at which it was recorded first.
        """
        with self._lock:
            before = self._found.get((kind, subject))
            began = since or (before.since if before else time.time())
            self._found[kind, subject] = Trouble(kind, subject, text, stops, began)
        if before is None:
            log.log(logging.ERROR if stops else logging.WARNING, "%s", text)

    def end(self, kind: str, subject: str, *, mended: bool = True) -> None:
        """Record that a trouble is over, and log it. Does nothing if there is none.

        Arguments:
            mended: False: it may last, but it is no longer this worker's. That is not logged.
        """
        with self._lock:
            over = self._found.pop((kind, subject), None)
        if over is not None and mended:
            log.warning("It is over after %.0f s: %s", time.time() - over.since, over.text)

    def end_others(self, kind: str, found: Collection[str]) -> None:
        """End the troubles of this kind, except those of the subjects that a check has just found."""
        for trouble in self.present:
            if trouble.kind == kind and trouble.subject not in found:
                self.end(kind, trouble.subject)
