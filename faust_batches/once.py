"""Records that are made of other records, each sent once, also when those come again after a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import Any, Generic, TypeVar

from faust.types import TP

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

#: A record has our clock's time, the one it is made of its producer's.
_CLOCKS_DIFFER_MS = 600_000
#: So many keys may be held before those that are no longer needed are dropped.
_FEW = 1_000


def since(first: Any) -> int:
    """From when on (Unix, ms) to look for what was made of this record and those after it; None: from the start."""
    return max((0 if first is None else first.timestamp or 0) - _CLOCKS_DIFFER_MS, 0)


class SendOnce(Generic[K, T]):
    """Sends what was not sent before.

    Arguments:
        find: Looks up the keys of what was made of the records of a partition since a time (Unix, ms; 0: all).
        key: The key of one: two with the same key are the same.
    """

    def __init__(self, find: Callable[[TP, int], Awaitable[set[K]]], key: Callable[[T], K]) -> None:
        self._find = find
        self._key = key
        self._known: dict[TP, set[K]] = {}
        self._enough: dict[TP, int] = {}

    def forget(self) -> None:
        """Forget what is known. Call it after a rebalance: other workers may have sent meanwhile."""
        self._known = {}

    async def known(self, tp: TP, first: Any) -> Collection[K]:
        """The keys of what was made of this partition's records, from the record `first` on.

        Raises:
            KafkaError: They can't be looked up now.
        """
        known = self._known  # `forget` puts another there: what is learned here is not for the time after it
        if tp not in known:
            known[tp] = await self._find(tp, since(first))
        return known[tp]

    async def send(
        self, tp: TP, first: Any, made: Sequence[T], send: Callable[[Sequence[T]], Awaitable[object]]
    ) -> list[T]:
        """Send those that are not there yet, and wait until Kafka has acknowledged all. Returns which were sent.

        Arguments:
            first: The first of the records that they are made of, or one before it; None: all are looked at.
            send: Sends them; done when Kafka has acknowledged all.

        Raises:
            KafkaError: Not all are there; do it again.
        """
        every = self._known
        known = every.pop(tp, None)  # not known again until all are acknowledged
        if known is None:
            known = await self._find(tp, since(first))
        new = [one for one in made if self._key(one) not in known]
        if new:
            await send(new)
        known.update(self._key(one) for one in new)
        every[tp] = known
        return new

    def drop(self, tp: TP, unwanted: Callable[[K], bool]) -> None:
        """Drop keys that are no longer needed, once more than a threshold are held."""
        known = self._known.get(tp, set())
        if len(known) > self._enough.get(tp, _FEW):
            known = self._known[tp] = {key for key in known if not unwanted(key)}
            self._enough[tp] = max(_FEW, 2 * len(known))  # so that they are looked through seldom
