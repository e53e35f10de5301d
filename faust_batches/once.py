"""Records that are made of other records, each sent once: also when what they are made of comes again after a crash."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["Once", "Place", "Publish", "ReadSince"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

#: Topic and partition of the records that something is made of.
Place = tuple[str, int]

#: topic, partition, Unix time in ms -> its records since then
ReadSince = Callable[[str, int, int], Awaitable[list[Any]]]

#: topic, partition, keys and values: sends them, and is done when Kafka has acknowledged all
Publish = Callable[[str, int, Sequence[tuple[bytes, bytes]]], Awaitable[object]]

#: A record has our clock's time, the one it is made of its producer's.
_CLOCKS_DIFFER_MS = 600_000
#: So many may be known without looking for those that are not needed any more.
_FEW = 1_000


class Once(Generic[K, T]):
    """Sends what was not sent before.

    Arguments:
        find: Looks in the topic for what was made of the records of a place since a time (Unix, ms; 0: all).
        key: Tells what is the same.
    """

    def __init__(self, find: Callable[[Place, int], Awaitable[set[K]]], key: Callable[[T], K]) -> None:
        self._find = find
        self._key = key
        self._known: dict[Place, set[K]] = {}
        self._enough: dict[Place, int] = {}

    def forget(self) -> None:
        """After a rebalance: what others sent meanwhile is not known."""
        self._known = {}

    async def known(self, place: Place, first: Any) -> Collection[K]:
        """What is there of the records of this place, from the record `first` on.

        Raises:
            KafkaError: It can't be told now.
        """
        known = self._known  # `forget` puts another there: what is learned here is not for the time after it
        if place not in known:
            known[place] = await self._find(place, _since(first))
        return known[place]

    async def send(
        self, place: Place, first: Any, made: Sequence[T], send: Callable[[Sequence[T]], Awaitable[object]]
    ) -> list[T]:
        """Send those that are not there yet, and wait until Kafka has acknowledged all. Returns which were sent.

        Arguments:
            first: The first of the records that they are made of, or one before it.
            send: Sends them; done when Kafka has all.

        Raises:
            KafkaError: Not all are there; do it again.
        """
        every = self._known
        known = every.pop(place, None)  # not known again until all are acknowledged
        if known is None:
            known = await self._find(place, _since(first))
        new = [one for one in made if self._key(one) not in known]
        if new:
            await send(new)
        known.update(self._key(one) for one in new)
        every[place] = known
        return new

    def drop(self, place: Place, unwanted: Callable[[K], bool]) -> None:
        """What of this place will not be asked for again, until partitions change hands; when it has become much."""
        known = self._known.get(place, set())
        if len(known) > self._enough.get(place, _FEW):
            known = self._known[place] = {key for key in known if not unwanted(key)}
            self._enough[place] = max(_FEW, 2 * len(known))  # so that it is looked through seldom


def _since(first: Any) -> int:
    return max((first.timestamp or 0) - _CLOCKS_DIFFER_MS, 0)
