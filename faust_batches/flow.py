"""The flow of fetched batches to the actors' queues."""

from __future__ import annotations

from collections.abc import Callable

from mode.utils.queues import FlowControlEvent


class Flow(FlowControlEvent):
    """Faust's flow control, which fetches records again after it has emptied the actors' queues.

    Faust empties the queues whenever it resumes the flow. At the end of a recovery the flow is on already: records
    that arrived after the last seek would be missing until the partition's next record arrives.
    """

    def __init__(self, cleared: Callable[[], None]) -> None:
        super().__init__()
        self._cleared = cleared

    def clear(self) -> None:
        """Empty the queues, and call `cleared`, which fetches the lost records again."""
        super().clear()
        for queue in self._queues:
            queue.maybe_endorse_pressure_drop()  # else a partition that was paused for a full queue stays paused
        self._cleared()
