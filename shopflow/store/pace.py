"""How fast MongoDB is: the size of the next write, and whether it is slow as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from faust_batches import Troubles

#: The kind of the trouble.
KIND = "slow"
#: A write that takes longer is halved the next time; one that is faster is doubled.
_SLOW_SECONDS, _QUICK_SECONDS = 2.0, 0.5
_LEAST, _MOST = 50, 4_000
#: A request that takes longer, beside a ping that is answered in time, makes MongoDB slow, until there was none for
#: `_CALM_SECONDS`.
_LATE_SECONDS, _CALM_SECONDS = 5.0, 10.0


class Pace:
    """The number of documents of the next write: it shrinks while writes are slow, and grows again."""

    def __init__(self) -> None:
        self.size = _MOST

    def took(self, documents: int, seconds: float) -> None:
        """Take the time of a write. A small write that was quick says nothing about a larger one."""
        if seconds > _SLOW_SECONDS:
            self.size = max(_LEAST, documents // 2)
        elif seconds < _QUICK_SECONDS and documents >= self.size:
            self.size = min(_MOST, 2 * self.size)

    def failed(self, documents: int) -> None:
        """Take a write that the server ended, because it took too long."""
        self.size = max(_LEAST, documents // 4)


class Slowness:
    """Finds out whether MongoDB is slow: it answers, but requests take long. Slow is not away, and stops nothing.

    A request that waits for a MongoDB that was away or frozen takes long too. So a request counts only if MongoDB
    answers a ping at once while the request is late.

    Arguments:
        troubles: Where it is recorded.
        answers: True if MongoDB answers a ping within a second.
    """

    def __init__(self, troubles: Troubles, answers: Callable[[], Awaitable[bool]]) -> None:
        self._troubles, self._answers = troubles, answers
        self._late: tuple[float, float] | None = None  # when a request was last found late, and its seconds until then

    @contextmanager
    def request(self) -> Iterator[None]:
        """Watch the request in the body."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        began = monotonic()
        while True:
            await asyncio.sleep(_LATE_SECONDS)
            if await self._answers():
                self._late = monotonic(), monotonic() - began

    def look(self) -> None:
        """Begin or end the trouble. Call it every few seconds."""
        if self._late is None or monotonic() - self._late[0] > _CALM_SECONDS:
            self._late = None
            self._troubles.end(KIND, "MongoDB")
        else:
            text = (
                f"MongoDB is slow: it answers, but a request took more than {int(self._late[1])} s; until it is "
                "faster, writes are smaller, and sales and stock are updated less often"
            )
            self._troubles.begin(KIND, "MongoDB", text, stops=False)
