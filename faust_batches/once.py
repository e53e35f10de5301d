"""Sends records derived from other records, each once, also if the originals are redelivered after a crash."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import Any, Generic, TypeVar

from faust.types import TP

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

#: The producer's clock dates an original record, ours the derived one. The clocks may differ by this much.
_CLOCK_DIFFERENCE_MS = 600_000
#: Keys of a partition that may be held before unneeded ones are dropped.
_KEYS_TO_HOLD = 1_000


def since(first: Any) -> int:
    """The earliest time (Unix, ms) of anything derived from this record or later ones; 0 if the record does not tell.

    A time that is still to come tells nothing: a producer that sends microseconds dates its records in the year 56000.
    """
    at = 0 if first is None else first.timestamp or 0
    return max(at - _CLOCK_DIFFERENCE_MS, 0) if at <= time.time() * 1000 + _CLOCK_DIFFERENCE_MS else 0


class SendOnce(Generic[K, T]):
    """Sends derived records that were not sent before.

    Arguments:
        find: Looks up the keys already sent for the records of a partition since a time (Unix, ms; 0: all).
        key: The key of a derived record. Records with the same key are the same.
    """

    def __init__(self, find: Callable[[TP, int], Awaitable[set[K]]], key: Callable[[T], K]) -> None:
        self._find = find
        self._key = key
        self._sent: dict[TP, set[K]] = {}
        self._drop_above: dict[TP, int] = {}

    def forget(self) -> None:
        """Forget the keys sent. Call it after a rebalance: other workers may have sent more meanwhile."""
        self._sent = {}

    async def sent_keys(self, tp: TP, first: Any) -> Collection[K]:
        """The keys already sent for this partition's records, from the record `first` on.

        Raises:
            KafkaError: The keys can't be looked up now.
        """
        sent = self._sent  # `forget` replaces the dict: keys found before a rebalance must not be used after it
        if tp not in sent:
            sent[tp] = await self._find(tp, since(first))
        return sent[tp]

    async def send(
        self, tp: TP, first: Any, made: Sequence[T], send: Callable[[Sequence[T]], Awaitable[object]]
    ) -> list[T]:
        """Send those of `made` that were not sent before, wait until Kafka has acknowledged all, and return them.

        Arguments:
            first: The first original record, or one before it. None: look up the keys of the whole partition.
            made: The derived records.
            send: Sends records, and returns when Kafka has acknowledged all.

        Raises:
            KafkaError: Not all are acknowledged. Call it again.
        """
        sent = self._sent
        keys = sent.pop(tp, None)  # after a failure some may be in the log: then look the keys up again
        if keys is None:
            keys = await self._find(tp, since(first))
        new = [one for one in made if self._key(one) not in keys]
        if new:
            await send(new)
        keys.update(self._key(one) for one in new)
        sent[tp] = keys
        return new

    def drop(self, tp: TP, unwanted: Callable[[K], bool]) -> None:
        """Drop keys that are no longer needed, once more than a threshold are held."""
        keys = self._sent.get(tp, set())
        if len(keys) > self._drop_above.get(tp, _KEYS_TO_HOLD):
            keys = self._sent[tp] = {key for key in keys if not unwanted(key)}
            self._drop_above[tp] = max(_KEYS_TO_HOLD, 2 * len(keys))  # going through all keys takes long: do it seldom
