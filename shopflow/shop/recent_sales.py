"""The sales of the last minutes in a worker's partitions: as it handled them, and from MongoDB for what came before."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import takewhile
from typing import Any

import msgspec

from faust_batches import TOTALS_KEY, Batch, Table, position_of
from shopflow.errors import Unavailable
from shopflow.models import Purchase
from shopflow.store import MongoStore

from .sales import key_of, start_of

#: How long sales are kept.
KEPT_SECONDS = 660
#: How many of the newest purchases are listed.
LATEST = 20
#: With more products in these minutes, MongoDB is not asked for what came before: it is one request for each.
_MOST_PRODUCTS = 500
#: The pause before the next look, and after a failure.
_PAUSE_SECONDS, _FAILED_SECONDS = 1.0, 5.0


class Sale(msgspec.Struct, frozen=True):
    """A purchase that was stored."""

    at: float  #: when it was stored, or, if it is from MongoDB, made (Unix, in seconds)
    purchase_id: str
    customer_id: str
    product_id: str
    quantity: int
    value: int  #: grosze


class Snapshot(msgspec.Struct):
    """The contents of a board. Workers request it from each other."""

    seconds: dict[int, tuple[int, int]] = {}
    """Unix time -> purchases and grosze of this second. Seconds without purchases are left out."""

    latest: list[Sale] = []
    """Newest first."""

    since: dict[int, float] = {}
    """Partition -> the Unix time since which its sales are known, in seconds."""


@dataclass
class _Part:
    """The sales of a partition.

    Records from offset `first` on, before `end`, were handled here: their sales are those of the second in which they
    were stored. Sales of earlier records come from MongoDB, which has the time of purchase.

    Arguments:
        since: Since when the sales are known (Unix, in seconds).
    """

    first: int
    end: int
    since: float
    seconds: dict[int, tuple[int, int]] = field(default_factory=dict)

    def forget(self, oldest: float) -> None:
        self.seconds = {second: sums for second, sums in self.seconds.items() if second >= oldest}


class Board:
    """Adds up finished batches by partition, and drops old sales."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        #: Partition -> its sales.
        self.parts: dict[int, _Part] = {}
        self._latest: list[Sale] = []

    def sold(self, batch: Batch, fresh: Sequence[tuple[Any, Purchase]]) -> None:
        """Add a finished batch's purchases, which were stored and counted. Those of a redelivery are not added again.

        Arguments:
            fresh: (record, purchase) by offset.
        """
        now, part = self.clock(), self.parts.get(batch.tp.partition)
        if part is None or batch.start > part.end or batch.end < part.first:
            part = self.begin(batch.tp.partition, batch.start)
        if batch.start < part.end:
            fresh = [pair for pair in fresh if pair[0].offset >= part.end]
        part.end = max(part.end, batch.end)
        if fresh:
            money = sum([event.quantity * (event.price or 0) for _, event in fresh])
            _add(part.seconds, {int(now): (len(fresh), money)})
            self.list_latest([_sale(now, event) for _, event in reversed(fresh[-LATEST:])])
        if len(part.seconds) > 2 * KEPT_SECONDS:
            part.forget(now - KEPT_SECONDS)

    def begin(self, partition: int, first: int) -> _Part:
        """Begin with the record at this offset. What came before is not known."""
        part = self.parts[partition] = _Part(first, first, self.clock())
        return part

    def list_latest(self, sales: Iterable[Sale]) -> None:
        """Put these, newest first, into the list of the latest. One that is listed already stays as it is."""
        known = {sale.purchase_id: sale for sale in (*sales, *self._latest)}
        self._latest = sorted(known.values(), key=lambda sale: sale.at, reverse=True)[:LATEST]

    def snapshot(self, partitions: Collection[int]) -> Snapshot:
        """The sales of these partitions."""
        oldest = self.clock() - KEPT_SECONDS
        found = Snapshot(latest=[sale for sale in self._latest if sale.at >= oldest])
        for partition, part in self.parts.items():
            part.forget(oldest)
            if partition in partitions:
                found.since[partition] = part.since
                _add(found.seconds, part.seconds)
        return found


@dataclass(eq=False)
class Past:
    """Adds to the board what MongoDB has of the last minutes: what was sold before this worker owned a partition.

    Arguments:
        counts, products: The tables `purchase_counts` and `product_sales`.
        topic: The topic of the purchases.
        owned: Returns the partitions whose rows this worker may read now.
        waits: True while purchases wait: they come first.
    """

    board: Board
    store: MongoStore
    counts: Table
    products: Table
    topic: str
    owned: Callable[[], Sequence[int]]
    waits: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._unchecked: set[int] = set()

    def forget(self) -> None:
        """Call it after a rebalance: other workers may have handled purchases of our partitions meanwhile."""
        self._unchecked = set(self.board.parts)

    async def round(self) -> float:
        """Ask for what is missing. Returns the seconds to wait before the next round."""
        if not (owned := self.owned()):
            return _PAUSE_SECONDS
        for gone in self.board.parts.keys() - owned:
            del self.board.parts[gone]
        now = self.board.clock()
        try:
            for partition in owned:
                self._begin(partition)
            missing = {p: part for p in owned if (part := self.board.parts[p]).since > now - KEPT_SECONDS}
            if missing and not self.waits():
                await self._ask(missing, now - KEPT_SECONDS)
        except Unavailable:  # MongoDB, or the table while it is damaged on disk
            return _FAILED_SECONDS
        return _PAUSE_SECONDS

    def _begin(self, partition: int) -> None:
        """Begin behind what is counted: MongoDB has it. A batch that was not finished then is not added again."""
        part = self.board.parts.get(partition)
        if part is None or partition in self._unchecked:
            totals = self.counts.reader(partition)(TOTALS_KEY)
            counted = position_of(totals).offset + 1 if totals else 0
            if part is None or part.end < counted:
                self.board.begin(partition, counted)
            self._unchecked.discard(partition)

    async def _ask(self, missing: Mapping[int, _Part], since: float) -> None:
        start = datetime.fromtimestamp(since, timezone.utc)
        products = {product_id for partition in missing for product_id in self._sold(partition, start)}
        if len(products) > _MOST_PRODUCTS:
            return
        before = {partition: part.first for partition, part in missing.items()}
        found: dict[int, dict[int, tuple[int, int]]] = {partition: {} for partition in missing}
        latest: list[Sale] = []
        for product_id in products:
            sums, newest = await self.store.recently_sold(product_id, start, self.topic, before, LATEST)
            for partition, second, purchases, money in sums:
                _add(found[partition], {second: (purchases, money)})
            latest += map(_stored, newest)
        for partition, part in missing.items():
            if self.board.parts.get(partition) is part:
                _add(part.seconds, found[partition])
                part.since = since
        self.board.list_latest(sorted(latest, key=lambda sale: sale.at, reverse=True))

    def _sold(self, partition: int, start: datetime) -> set[str]:
        """The products that were sold in this hour or later. One more than allowed is enough."""
        after, found = key_of("hour", start.isoformat()[:13], "").encode(), set[str]()
        while len(found) <= _MOST_PRODUCTS and (rows := self.products.scan(partition, after, _MOST_PRODUCTS)):
            keys = list(takewhile(lambda key: key.startswith(b"hour "), (key for key, _ in rows)))
            found |= {start_of(key.decode())[2] for key in keys}
            if len(keys) < len(rows):
                break
            after = keys[-1]
        return found


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    together, latest = Snapshot(), dict[str, Sale]()
    for one in snapshots:
        _add(together.seconds, one.seconds)
        latest |= {sale.purchase_id: sale for sale in one.latest}
        together.since |= one.since
    together.latest = sorted(latest.values(), key=lambda sale: sale.at, reverse=True)[:LATEST]
    return together


def _add(sums: dict[int, tuple[int, int]], more: Mapping[int, tuple[int, int]]) -> None:
    for second, (purchases, money) in more.items():
        count, earned = sums.get(second, (0, 0))
        sums[second] = (count + purchases, earned + money)


def _sale(now: float, event: Any) -> Sale:
    value = event.quantity * (event.price or 0)
    return Sale(now, event.purchase_id, event.customer_id, event.product_id, event.quantity, value)


def _stored(one: Mapping[str, Any]) -> Sale:
    at = one["purchased_at"].timestamp()
    return Sale(at, one["_id"], one["customer_id"], one["product_id"], one["quantity"], one["value"])
