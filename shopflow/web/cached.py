"""Answers of servers, kept for a while: nobody waits long, and no request is made twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic, time
from typing import Generic, TypeVar

from aiokafka.errors import KafkaError

from shopflow.errors import BatchError, Refused

T = TypeVar("T")

#: The time limit of a request.
MOST_SECONDS = 5.0
#: An older answer says nothing about now. A page that nobody opened for hours begins with such answers.
OLD_SECONDS = 60.0


@dataclass(frozen=True)
class Age:
    """How far an answer is known.

    Arguments:
        at: When the last answer was asked for (Unix, in seconds); None: there was none yet.
        failure: Why there is no newer one. Empty: there was no failure. None: there was no request yet.
    """

    at: float | None = None
    failure: str | None = None

    def known(self, now: float) -> bool:
        """True if the last request was answered, and not long before `now`."""
        return self.failure == "" and self.at is not None and now - self.at < OLD_SECONDS


UNASKED = Age()


class Cached(Generic[T]):
    """An answer that `get` requests again when it is too old; one request at a time, however many wait.

    Arguments:
        ask: Makes the request; may raise `Unavailable`.
        seconds: How old the answer may be.
        first: The answer before the first one has arrived.
        rest: After an answer there is no request for this many times as long as it took.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], seconds: float, first: T, *, rest: float = 0.0) -> None:
        self._ask = ask
        self._seconds = self._pause = seconds
        self._rest = rest
        self._asked: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.answer = first
        self._at: float | None = None
        self.failure: str | None = None
        """Why there is no new answer. Empty: there is one. None: there was no request yet."""

    @property
    def age(self) -> Age:
        return Age(self._at, self.failure)

    @property
    def asking(self) -> bool:
        return self._task is not None

    async def get(self, patience: float = 1.0) -> T:
        """The new answer if it arrives within `patience` seconds, else the previous one."""
        if self._task is None and (self._asked is None or monotonic() - self._asked >= self._pause):
            self._task = asyncio.create_task(self._refresh())
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=patience)
        return self.answer

    async def _refresh(self) -> None:
        began, at, failure = monotonic(), time(), "the request failed in the worker"
        try:
            self.answer = await asyncio.wait_for(self._ask(), MOST_SECONDS)
            self._at = at
            failure = ""
        except (Refused, BatchError, KafkaError) as error:
            failure = str(error) or type(error).__name__
        except asyncio.TimeoutError:
            failure = f"no answer within {MOST_SECONDS:g} s"
        finally:
            self.failure = failure
            self._asked, self._task = monotonic(), None
            self._pause = self._seconds if failure else max(self._seconds, self._rest * (self._asked - began))
