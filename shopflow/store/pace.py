"""How fast MongoDB is: the size of the next write, and whether it is slow as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

from faust_batches import Troubles
from shopflow.errors import Slow, Unavailable

#: The kind of the trouble.
KIND = "slow"
#: A write that takes longer is halved the next time; one that is faster is doubled.
_SLOW_SECONDS, _QUICK_SECONDS = 2.0, 0.5
_LEAST, _MOST = 50, 4_000
#: A request that takes longer makes MongoDB slow, until there was none for `_CALM_SECONDS`.
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

    Arguments:
        troubles: Where it is recorded.
        ping: Returns when MongoDB answers. Without an answer it is away, which others tell.
    """

    def __init__(self, troubles: Troubles, ping: Callable[[], Awaitable[None]]) -> None:
        self._troubles, self._ping = troubles, ping
        self._began: dict[object, float] = {}
        self._late: tuple[float, float] | None = None  # when the last late request was seen, and its seconds

    @contextmanager
    def request(self) -> Iterator[None]:
        """Time the request in the body."""
        key, began = object(), monotonic()
        self._began[key] = began
        try:
            yield
        except Exception as error:
            if isinstance(error, Slow):
                self._take(began)
            raise
        else:
            self._take(began)
        finally:
            del self._began[key]

    def _take(self, began: float) -> None:
        now = monotonic()
        if now - began > _LATE_SECONDS:
            self._late = now, now - began

    async def look(self) -> None:
        """Begin or end the trouble. Call it every few seconds."""
        late = [began for began in self._began.values() if monotonic() - began > _LATE_SECONDS]
        if late:
            with suppress(Unavailable, asyncio.TimeoutError):
                await asyncio.wait_for(self._ping(), _LATE_SECONDS)
                self._take(min(late))
        if self._late is None or monotonic() - self._late[0] > _CALM_SECONDS:
            self._late = None
            self._troubles.end(KIND, "MongoDB")
        else:
            text = (
                f"MongoDB is slow: it answers, but a request took {self._late[1]:.0f} s; writes are smaller, and sales "
                "and stock are updated less often, until it is faster"
            )
            self._troubles.begin(KIND, "MongoDB", text, stops=False)
