"""The prices given to purchases that came without one: in a topic, so that a replay gives them the same ones again.

A record for each batch, in the partition with the number of the purchases': their offsets and prices, in grosze. What
was decided when the purchase came by can't be found out later: the product's price may have been changed since, by an
event about a time before; MongoDB, which has the price, may have been dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

__all__ = ["PriceLog", "ReadSince"]

#: topic, partition, value -> done when Kafka has it.
Send = Callable[[str, int, bytes], Awaitable[None]]
#: topic, partition, Unix time in ms -> the values of its records since then.
ReadSince = Callable[[str, int, int], Awaitable[list[bytes]]]

#: A record has our clock's time, the purchases it is about their producers'.
_CLOCKS_DIFFER_MS = 600_000


class Entry(msgspec.Struct):
    """The value of a record: prices by offset, rising."""

    prices: list[tuple[int, int]]


_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


class PriceLog:
    """What was decided, by the workers before us too.

    Arguments:
        topic: Where it is kept, with as many partitions as the purchases.
    """

    def __init__(self, topic: str, send: Send, read_since: ReadSince) -> None:
        self._topic = topic
        self._send = send
        self._read_since = read_since
        #: By partition, what the log had when it was first asked for: first and last offset, and the record's value.
        self._known: dict[int, list[tuple[int, int, bytes]]] = {}

    def forget(self) -> None:
        """After a rebalance: what others decided meanwhile is not known."""
        self._known = {}

    async def prices(self, partition: int, first: Any, end: int) -> dict[int, int]:
        """The prices given to purchases from the record `first` on up to, not including, offset `end`.

        Raises:
            KafkaError: The log can't be read now.
        """
        known = self._known
        if partition not in known:
            since = max((first.timestamp or 0) - _CLOCKS_DIFFER_MS, 0)
            known[partition] = _ranges(await self._read_since(self._topic, partition, since))
        start = first.offset
        prices: dict[int, int] = {}
        for low, high, value in known[partition]:
            if low < end and high >= start:
                prices.update(_decode(value).prices)
        return {offset: price for offset, price in prices.items() if start <= offset < end}

    async def put(self, partition: int, prices: Mapping[int, int]) -> None:
        """Add prices, and wait until Kafka has them. Of two of one offset the later counts.

        Raises:
            KafkaError: They may be there or not; do it again.
        """
        await self._send(self._topic, partition, _encode(Entry(sorted(prices.items()))))

    def done(self, partition: int, end: int) -> None:
        """What was before this offset will not be asked for again, until partitions change hands."""
        if partition in self._known:
            self._known[partition] = [entry for entry in self._known[partition] if entry[1] >= end]


def _ranges(values: list[bytes]) -> list[tuple[int, int, bytes]]:
    found = []
    for value in values:
        try:
            prices = _decode(value).prices
        except msgspec.MsgspecError:  # not ours
            continue
        if prices:
            found.append((prices[0][0], prices[-1][0], value))
    return found
