"""Stock: what is left of each product, and an alert, once for each stocking, when it has fallen to its limit.

What is left is the stock less the units sold since the product's `updated_at`, by the purchases' own times, so a late
purchase counts. `sales` has the units by hours; from the hour in which the stocking falls, what was bought before it is
taken off. `sales` comes after the purchases, so what is taken off is never too little: an alert may come a moment late,
never wrongly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timezone

from aiokafka.errors import KafkaError
from faust.types import TP

from faust_batches import Outage, SendOnce
from shopflow.errors import PartitionLost, Unavailable
from shopflow.store import MongoStore
from shopflow.store.connection import REQUESTS_AT_ONCE
from shopflow.store.types import Document

from .announcements import ALERTS, Publish
from .dead_letters import ReadSince

log = logging.getLogger(__name__)

#: How often it is looked whether a stock has fallen to its limit.
_ROUND_SECONDS = 1.0
#: Products of a round.
AT_ONCE = 500


# -- pure


def stocked(product: Document) -> bool:
    """Does the product carry a stock? Other programs may have written anything."""
    return type(product.get("stock")) is int and isinstance(product.get("updated_at"), datetime)


def alert_id(product: Document) -> str:
    """The id of the alert for this stocking; the time has a fixed width, so no two stockings have the same."""
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


def _limit(product: Document) -> int:
    limit = product.get("stock_limit")
    return limit if type(limit) is int else 0


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


# -- with MongoDB


async def left_of(store: MongoStore, products: Sequence[Document]) -> dict[str, int]:
    """What is left of each of these that carries a stock, by id.

    Raises:
        Unavailable: MongoDB is away.
    """
    places = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def ask(product: Document) -> tuple[str, int]:
        async with places:
            units = await store.sold_from(product["_id"], _hour(product["updated_at"]))
            return product["_id"], product["stock"] - max(0, units - await _before(store, product) if units else 0)

    return dict(await asyncio.gather(*map(ask, filter(stocked, products))))


async def _before(store: MongoStore, product: Document) -> int:
    """Units bought in the hour of the stocking, but before it."""
    since = product["updated_at"]
    return await store.units_from_kafka(product["_id"], _hour(since), since) if since > _hour(since) else 0


# -- with Kafka


class AlertLog:
    """The topic of the alerts: what was told, by the workers before us too.

    Arguments:
        topic: With as many partitions as that of the products, an alert in the one with the number of its product's.
        products: The topic of the products.
        publish: `App.publish`.
        read_since: Reads what a partition of the topic holds since a time.
    """

    def __init__(self, topic: str, products: str, publish: Publish, read_since: ReadSince) -> None:
        self.products = products
        self._topic = topic
        self._publish = publish
        self._read_since = read_since
        self._once: SendOnce[str, Document] = SendOnce(self._sent_before, lambda document: str(document["_id"]))

    def forget(self) -> None:
        """Forget what is known. Call it after a rebalance: other workers may have published meanwhile."""
        self._once.forget()

    async def put(self, partition: int, document: Document, check: Callable[[], None]) -> bool:
        """Send it unless it is there. Was it sent?

        Arguments:
            check: Called right before it is sent; what it raises goes through.

        Raises:
            KafkaError: It may be there or not; do it again.
        """

        async def send(made: Sequence[Document]) -> None:
            check()
            await self._publish(
                self._topic, partition, [(one["product_id"].encode(), ALERTS.event(one)) for one in made]
            )

        return bool(await self._once.send(TP(self.products, partition), None, [document], send))

    async def _sent_before(self, tp: TP, since: int) -> set[str]:
        return {found["_id"] for found in ALERTS.documents(await self._read_since(self._topic, tp.partition, since))}


@dataclass
class _Look:
    """What is known of a stocking since we last looked at it."""

    alert_id: str
    units: int = -1
    """Sold of the product ever, when what was sold since the stocking was last looked up."""

    before: int = 0
    """Units bought before the stocking in its hour, at least."""

    told: bool = False


@dataclass(eq=False)
class Watch:
    """Looks at the products of this worker's partitions, some at a time, and tells of those that have fallen.

    1. The alert is in MongoDB's journal, 2. Kafka has acknowledged its event. Cut off in between, the next worker finds
    the document and tells the same. The worker that has the partition of `products` in which a product's key is tells
    of it: of the purchases it may have none.

    Arguments:
        owned: The partitions of the products that are ours now; none in a rebalance.
        sure: True while the lease is valid.
        outages: Those of MongoDB and Kafka, by service.
        now: The clock.
    """

    store: MongoStore
    alerts: AlertLog
    owned: Callable[[], Sequence[int]]
    sure: Callable[[], bool]
    _: KW_ONLY
    outages: Mapping[str, Outage]
    now: Callable[[], datetime] = lambda: datetime.now(timezone.utc)

    def __post_init__(self) -> None:
        self._looks: dict[str, _Look] = {}
        self._met: dict[str, _Look] = {}
        self._after = ""
        self._assignment = 0

    def forget(self) -> None:
        """Forget what is known. Call it after a rebalance: other workers may have published meanwhile."""
        self.alerts.forget()
        self._assignment += 1
        self._looks, self._met, self._after = {}, {}, ""

    async def round(self) -> float:
        """Look, and tell the outages how it ended. Returns the seconds to wait before the next round."""
        try:
            asked = await self.look()
        except Unavailable as error:
            self.outages[error.service].failed(error, self)
            if error.service == "Kafka":  # it is asked last: MongoDB has answered
                self.outages["MongoDB"].succeeded(self)
        except PartitionLost:  # the next owner looks; what is ours then, we look at anew
            self.forget()
        else:
            for outage in self.outages.values() if asked else ():
                outage.succeeded(self)
        return _ROUND_SECONDS

    async def look(self) -> bool:
        """One round: at most `AT_ONCE` products; the next round goes on behind them. Was anything ours to look at?

        Raises:
            Unavailable: MongoDB or Kafka is away. A later round tells what this one could not.
            PartitionLost: Our partitions went to others.
        """
        assignment, owned = self._assignment, self.owned()
        if not owned:
            return False
        page = await self.store.stocked(self.alerts.products, owned, self._after, AT_ONCE)
        # The total before the hours: it is written after them, so what it has, they have.
        totals = await self.store.sold_ever([product["_id"] for product in page])
        for product in filter(stocked, page):
            self._check(assignment)
            look = self._known(product)
            if not look.told and look.units != totals.get(product["_id"], 0):
                left = await self._fallen(product, look)
                if left is not None:
                    await self._tell(product, left, assignment)
                    look.told = True
                look.units = totals.get(product["_id"], 0)
        self._check(assignment)
        self._turn_page(page)
        return True

    def _known(self, product: Document) -> _Look:
        name = product["_id"]
        look = self._looks.get(name)
        if look is None or look.alert_id != alert_id(product):
            look = _Look(alert_id(product))
        self._looks[name] = self._met[name] = look
        return look

    def _turn_page(self, page: Sequence[Document]) -> None:
        if len(page) < AT_ONCE:  # the end: what was not met carries no stock any more
            self._looks, self._met, self._after = self._met, {}, ""
        else:
            self._after = page[-1]["_id"]

    async def _fallen(self, product: Document, look: _Look) -> int | None:
        """What is left, if it has fallen to the limit.

        What was bought before the stocking may be much to look through; it only grows, so what is known of it rules
        out most.
        """
        sold = await self.store.sold_from(product["_id"], _hour(product["updated_at"]))
        least = product["stock"] - _limit(product)
        if sold - look.before < least:
            return None
        look.before = await _before(self.store, product)
        units = max(0, sold - look.before)
        return product["stock"] - units if units >= least else None

    async def _tell(self, product: Document, left: int, assignment: int) -> None:
        found = alert_document(product, left, self.now())
        document = await self.store.insert_alert(found)  # also by a worker before us: then it is told as it was found
        self._check(assignment)
        try:
            sent = await self.alerts.put(product["source"]["partition"], document, lambda: self._check(assignment))
        except KafkaError as error:
            self._check(assignment)
            raise Unavailable("Kafka", error) from error
        if sent:
            log.warning("Stock of %r: %d left of %d", product["_id"], document["left"], document["stock"])

    def _check(self, assignment: int) -> None:
        """Raises:
        PartitionLost: What we know is not for now.
        """
        if assignment != self._assignment or not self.owned() or not self.sure():
            raise PartitionLost("the products' partitions may have gone to other workers")
