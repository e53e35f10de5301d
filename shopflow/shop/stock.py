"""Stock: the units left of each product, and one alert for each stocking, when they have fallen to the limit.

A product event with a `stock` is a stocking. The units left are its stock minus the units sold since its `updated_at`,
by the purchases' own times, so late purchases count. `sales` has the units by hour; from the first hour, the purchases
before `updated_at` are subtracted. `sales` is written after `purchases`, so never too few are subtracted: an alert may
be a moment late, but is never wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timezone
from itertools import chain
from time import monotonic
from typing import Any

from aiokafka.errors import KafkaError
from faust.types import TP

from faust_batches import Outage, SendOnce
from shopflow.errors import PartitionLost, Slow, Unavailable
from shopflow.store import MongoStore
from shopflow.store.connection import REQUESTS_AT_ONCE
from shopflow.store.types import Document

from .announcements import ALERTS, Publish
from .dead_letters import ReadSince
from .text import grouped, whole

log = logging.getLogger(__name__)

#: Pause between two rounds. While purchases wait, it is at least so many times as long as the round took.
_ROUND_SECONDS = 1.0
_WAITING_FACTOR = 20
#: Products that are checked in a round.
AT_ONCE = 500


# -- without I/O


def stocked(product: Document) -> bool:
    """True if the product has a valid stock. Other programs may have written anything."""
    return type(product.get("stock")) is int and isinstance(product.get("updated_at"), datetime)


def alert_id(product: Document) -> str:
    """The id of the alert for this stocking. The time has a fixed width, so each stocking has its own id."""
    since = product["updated_at"].astimezone(timezone.utc)
    return f"{product['_id']}@{since.isoformat(timespec='milliseconds')}"


def alert_document(product: Document, left: int, at: datetime) -> Document:
    return {
        "_id": alert_id(product),
        "kind": "stock",
        "product_id": product["_id"],
        "left": left,
        "limit": _limit(product),
        "stock": product["stock"],
        "since": product["updated_at"],
        "at": at,
    }


def in_words(left: Any, of: Any = None) -> str:
    """The units left, and of how many. More than the stock can be ordered: then `left` is below 0."""
    known = whole(left)
    if known is None or known > 0:
        return grouped(left) if of is None else f"{grouped(left)} of {grouped(of)}"
    return f"sold out, {grouped(-known)} ordered beyond it" if known else "sold out"


def _limit(product: Document) -> int:
    limit = product.get("stock_limit")
    return limit if type(limit) is int else 0


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


# -- with MongoDB


async def left_of(store: MongoStore, products: Sequence[Document]) -> dict[str, int]:
    """The units left of each product that has a stock, by product_id.

    Raises:
        Unavailable: MongoDB is away.
    """
    slots = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def ask(product: Document) -> tuple[str, int]:
        async with slots:
            units = await store.sold_from(product["_id"], _hour(product["updated_at"]))
            sold = max(0, units - await _units_before(store, product) if units else 0)
            return product["_id"], product["stock"] - sold

    return dict(await asyncio.gather(*map(ask, filter(stocked, products))))


async def _units_before(store: MongoStore, product: Document) -> int:
    """The units bought in the hour of the stocking, but before it."""
    since = product["updated_at"]
    return await store.units_from_kafka(product["_id"], _hour(since), since) if since > _hour(since) else 0


# -- with Kafka


class AlertLog:
    """The topic of the alerts, of this worker and earlier ones.

    Arguments:
        topic: An alert is in the partition with its product's number.
        products: The topic of the products.
        publish: `App.publish`.
        read_since: Reads a partition's records since a time.
    """

    def __init__(self, topic: str, products: str, publish: Publish, read_since: ReadSince) -> None:
        self.products = products
        self._topic = topic
        self._publish = publish
        self._read_since = read_since
        self._once: SendOnce[str, Document] = SendOnce(self._sent_before, lambda document: str(document["_id"]))

    def forget(self) -> None:
        """Clear the cache. Call it after a rebalance: other workers may have published meanwhile."""
        self._once.forget()

    async def put(self, partition: int, document: Document, check: Callable[[], None]) -> bool:
        """Publish the alert unless the topic has it. Returns True if it was published.

        Arguments:
            check: Called right before publishing. May raise.

        Raises:
            KafkaError: The topic may have it or not. Call it again.
        """

        async def send(made: Sequence[Document]) -> None:
            check()
            await self._publish(
                self._topic, partition, [(one["product_id"].encode(), ALERTS.event(one)) for one in made]
            )

        return bool(await self._once.send(TP(self.products, partition), None, [document], send))

    async def _sent_before(self, tp: TP, since: int) -> set[str]:
        def ids(record: Any) -> list[str]:
            return [found["_id"] for found in ALERTS.documents([record])]

        return set(chain.from_iterable(await self._read_since(self._topic, tp.partition, since, of=ids)))


@dataclass
class _Stocking:
    """The cached state of a stocking."""

    alert_id: str
    units: int = -1
    """The product's total sales when the stocking was last checked."""

    before: int = 0
    """A lower bound of the units bought before the stocking in its hour."""

    published: bool = False


@dataclass(eq=False)
class Watch:
    """Checks the products of this worker's partitions, some at a time, and publishes alerts.

    1. The alert is in MongoDB's journal, marked as unpublished. 2. Kafka has acknowledged its event. 3. The mark is
    gone. After a crash in between the next worker publishes what is marked, also if the product was stocked again. The
    owner of the product's partition of `products` does all that, even if it owns no partition of `purchases`.

    Arguments:
        owned: Returns the owned partitions of `products`; none during a rebalance.
        lease_valid: Returns True while the lease is valid.
        outages: Those of MongoDB and Kafka, by service.
        now: The clock.
        waits: True while purchases wait: they come first.
    """

    store: MongoStore
    alerts: AlertLog
    owned: Callable[[], Sequence[int]]
    lease_valid: Callable[[], bool]
    _: KW_ONLY
    outages: Mapping[str, Outage]
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)
    waits: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self._stockings: dict[str, _Stocking] = {}
        self._met: dict[str, _Stocking] = {}
        self._after = ""
        self._assignment = 0
        self._rests_until = 0.0
        #: Alerts in MongoDB may not be in the topic.
        self._unpublished = True

    def forget(self) -> None:
        """Clear the cache. Call it after a rebalance: other workers may have published meanwhile."""
        self.alerts.forget()
        self._assignment += 1
        self._unpublished = True
        self._stockings, self._met, self._after = {}, {}, ""

    async def round(self) -> float:
        """Check products, and update the outages. Returns the seconds to wait before the next round."""
        if monotonic() < self._rests_until and self.waits():
            return _ROUND_SECONDS
        began, self._rests_until = monotonic(), 0.0
        try:
            asked = await self.check_products()
        except Slow:  # it answers
            self.outages["MongoDB"].gave_up(self)
        except Unavailable as error:
            self.outages[error.service].failed(error, self)
            if error.service == "Kafka":  # Kafka is used last, so MongoDB has answered
                self.outages["MongoDB"].succeeded(self)
            return _ROUND_SECONDS
        except PartitionLost:  # the next round starts again with the partitions owned then
            self.forget()
        else:
            for outage in self.outages.values() if asked else ():
                outage.succeeded(self)
        ended = monotonic()
        self._rests_until = ended + _WAITING_FACTOR * (ended - began)
        return _ROUND_SECONDS

    async def check_products(self) -> bool:
        """Check at most `AT_ONCE` products; the next call continues after them. Returns False if no partition is owned.

        Raises:
            Unavailable: MongoDB or Kafka is away. A later round publishes what is missing.
            PartitionLost: The owned partitions may have changed.
        """
        assignment, owned = self._assignment, self.owned()
        if not owned:
            return False
        if self._unpublished:
            for document in await self.store.unpublished_alerts(owned):
                await self._publish(document, document["unpublished"], assignment)
            self._unpublished = False
        page = await self.store.stocked(self.alerts.products, owned, self._after, AT_ONCE)
        # Read the total before the hours: it is written after them, so they contain all that it contains.
        totals = await self.store.sold_ever([product["_id"] for product in page])
        for product in filter(stocked, page):
            self._check(assignment)
            stocking = self._stocking(product)
            if not stocking.published and stocking.units != totals.get(product["_id"], 0):
                left = await self._left_at_limit(product, stocking)
                if left is not None:
                    await self._publish_alert(product, left, assignment)
                    stocking.published = True
                stocking.units = totals.get(product["_id"], 0)
        self._check(assignment)
        self._turn_page(page)
        return True

    def _stocking(self, product: Document) -> _Stocking:
        name = product["_id"]
        stocking = self._stockings.get(name)
        if stocking is None or stocking.alert_id != alert_id(product):
            stocking = _Stocking(alert_id(product))
        self._stockings[name] = self._met[name] = stocking
        return stocking

    def _turn_page(self, page: Sequence[Document]) -> None:
        if len(page) < AT_ONCE:  # the last page: products that were not met have no stock any more
            self._stockings, self._met, self._after = self._met, {}, ""
        else:
            self._after = page[-1]["_id"]

    async def _left_at_limit(self, product: Document, stocking: _Stocking) -> int | None:
        """The units left if they have fallen to the limit, else None.

        Units bought before the stocking are slow to query. They only grow, so the cached number excludes most products.
        """
        sold = await self.store.sold_from(product["_id"], _hour(product["updated_at"]))
        least = product["stock"] - _limit(product)
        if sold - stocking.before < least:
            return None
        stocking.before = await _units_before(self.store, product)
        units = max(0, sold - stocking.before)
        return product["stock"] - units if units >= least else None

    async def _publish_alert(self, product: Document, left: int, assignment: int) -> None:
        partition = product["source"]["partition"]
        found = alert_document(product, left, self.now())
        self._unpublished = True  # until it is published: the product may have another stocking by the next round
        document = await self.store.insert_alert({**found, "unpublished": partition})
        await self._publish(document, partition, assignment)  # also an earlier worker's document
        self._unpublished = False

    async def _publish(self, stored: Document, partition: int, assignment: int) -> None:
        document = {name: value for name, value in stored.items() if name != "unpublished"}
        self._check(assignment)
        try:
            sent = await self.alerts.put(partition, document, lambda: self._check(assignment))
        except KafkaError as error:
            self._check(assignment)
            raise Unavailable("Kafka", error) from error
        await self.store.alert_published(document["_id"])
        if sent:
            log.warning("Stock of %r: %s", document["product_id"], in_words(document["left"], document["stock"]))

    def _check(self, assignment: int) -> None:
        """Raises:
        PartitionLost: The owned partitions may have changed since `assignment`.
        """
        if assignment != self._assignment or not self.owned() or not self.lease_valid():
            raise PartitionLost("the products' partitions may have gone to other workers")
