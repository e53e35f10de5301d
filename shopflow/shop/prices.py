"""The price of a purchase that came without one: the product's, in force when the purchase was made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from time import monotonic
from typing import Any, Protocol

from faust_batches.attempts import Attempts, Owned
from shopflow.errors import Rejected
from shopflow.models import Purchase, check_value
from shopflow.store.connection import Store

from .counts import handled
from .price_log import PriceLog

__all__ = ["Priced", "Pricing"]

#: How often MongoDB is asked for a product that a purchase waits for.
_LOOK_AGAIN_SECONDS = 0.25
#: Unknown products that are remembered, so that each is waited for once.
_REMEMBERED = 10_000

Pair = tuple[Any, Purchase]
#: The first record in question -> the offsets, from it on, of those that were sent to the dead letters before.
RejectedBefore = Callable[[Any], Awaitable[Collection[int]]]


class BatchLike(Owned, Protocol):
    """What is needed of `batching.Batch`."""

    tp: Any
    records: list[Any]
    end: int


class Counts(Protocol):
    """What is needed of the table `purchase_counts`."""

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]: ...


class Priced:
    """What became of the purchases of a batch that had no price."""

    def __init__(self) -> None:
        self.rejected: dict[int, Rejected] = {}  #: by offset
        self.decided: dict[int, int] = {}  #: prices by offset, all of them
        self.logged: set[int] = set()  #: offsets of those that are in the log of prices already

    @property
    def to_log(self) -> dict[int, int]:
        """Prices that the log doesn't have yet."""
        return {offset: price for offset, price in self.decided.items() if offset not in self.logged}


class Pricing:
    """Gives prices, each once.

    What was decided stays decided, also by a worker that died before it could commit, and in a replay: the log of
    prices comes first, then a stored purchase's price, then the dead letters and the counts, which tell that there was
    none. Only then the history of prices is asked.

    Arguments:
        wait_seconds: How long a purchase waits for a product that nobody offered yet.
    """

    def __init__(
        self,
        store: Store,
        counts: Counts,
        attempts: Attempts,
        log: PriceLog,
        *,
        rejected_before: RejectedBefore,
        wait_seconds: float,
    ) -> None:
        self._store = store
        self._counts = counts
        self._attempts = attempts
        self._log = log
        self._rejected_before = rejected_before
        self._wait_seconds = wait_seconds
        self._unknown: dict[str, float] = {}

    async def price(self, batch: BatchLike, accepted: list[Pair]) -> Priced:
        """Give those without a price their price; those that get none are in `rejected`."""
        priced = Priced()
        unpriced = [(record, event) for record, event in accepted if event.price is None]
        if unpriced:
            waiting = dict(unpriced_by_offset := {record.offset: (record, event) for record, event in unpriced})
            await self._decided_before(batch, waiting, priced)
            await self._look_up(batch, list(waiting.values()), priced)
            priced.decided = {
                offset: event.price for offset, (_, event) in unpriced_by_offset.items() if event.price is not None
            }
            for offset in priced.rejected:
                priced.decided.pop(offset, None)
        return priced

    async def keep(self, batch: BatchLike, priced: Priced) -> None:
        """Put the prices into the log, before the purchases are counted."""
        if new := priced.to_log:
            await self._attempts.with_kafka(batch, lambda: self._log.put(batch.tp.partition, new))
        if priced.decided:
            self._log.done(batch.tp.partition, batch.end)

    async def _decided_before(self, batch: BatchLike, waiting: dict[int, Pair], priced: Priced) -> None:
        """Settle those that were settled before; they are taken out of `waiting`."""
        first = batch.records[0]  # what is read now is all that is known until partitions change hands
        partition = batch.tp.partition
        logged = await self._attempts.with_kafka(batch, lambda: self._log.prices(partition, first, batch.end))
        for offset in waiting.keys() & logged.keys():
            waiting.pop(offset)[1].price = logged[offset]
            priced.logged.add(offset)
        if not waiting:
            return
        ids = {event.purchase_id for _, event in waiting.values()}
        stored = await self._attempts.with_mongodb(batch, lambda: self._store.purchase_prices(ids))
        refused = await self._attempts.with_kafka(batch, lambda: self._rejected_before(first))
        batch.check_owned()
        get = self._counts.getter(partition)
        for offset, (_, event) in list(waiting.items()):
            if event.purchase_id in stored:
                event.price = stored[event.purchase_id]
            elif offset in refused or handled(get, event.customer_id, offset):
                # Accepted now, it would be stored and never counted, or counted and be a dead letter too.
                priced.rejected[offset] = _unknown_product(event.product_id)
            else:
                continue
            del waiting[offset]

    async def _look_up(self, batch: BatchLike, unpriced: list[Pair], priced: Priced) -> None:
        while unpriced:
            wanted = {event.product_id for _, event in unpriced}
            histories = await self._attempts.with_mongodb(batch, partial(self._store.price_history, wanted))
            missing = []
            for record, event in unpriced:
                history = histories.get(event.product_id)
                event.price = None if history is None else history.at(event.purchased_at)
                if event.price is None:
                    missing.append((record, event))
                    continue
                self._unknown.pop(event.product_id, None)
                try:
                    check_value(event.quantity, event.price)
                except Rejected as error:
                    priced.rejected[record.offset] = error
            now = monotonic()
            unpriced = [pair for pair in missing if now < self._deadline(pair[1].product_id, now)]
            waited_for = {pair[0].offset for pair in unpriced}
            for record, event in missing:
                if record.offset not in waited_for:
                    priced.rejected[record.offset] = _unknown_product(event.product_id)
            if unpriced:
                await asyncio.sleep(min(_LOOK_AGAIN_SECONDS, self._wait_seconds))

    def _deadline(self, product_id: str, now: float) -> float:
        """Until when purchases of this unknown product are held up: counted once, from the first of them."""
        if product_id not in self._unknown and len(self._unknown) >= _REMEMBERED:  # those that still wait are kept
            self._unknown = {name: deadline for name, deadline in self._unknown.items() if deadline > now}
        return self._unknown.setdefault(product_id, now + self._wait_seconds)


def _unknown_product(product_id: str) -> Rejected:
    return Rejected("unknown product", f"product_id {product_id!r} was never offered, or is no longer")
