"""A shop in memory: the handlers of its three topics, over fakes of MongoDB, the tables and Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from faust_batches import TOTALS_KEY, Outage
from faust_batches.testing import FakeBatch, FakeTable
from shopflow.models import Customer, Product
from shopflow.shop.counts import decode_count, decode_totals
from shopflow.shop.dead_letters import DeadLetters, Rejections
from shopflow.shop.decisions import Decisions
from shopflow.shop.decoding import Decoder
from shopflow.shop.documents import customer_document, product_document
from shopflow.shop.failure_limit import Limit
from shopflow.shop.prices import PriceLog, Prices
from shopflow.shop.purchases import Purchases
from shopflow.shop.upserts import Upserts
from shopflow.store.connection import Patient
from shopflow.store.types import CUSTOMERS, PRODUCTS

from . import events
from .fakes import FakeOutlet, FakeRecord, FakeStore


def _late(target: Any, name: str) -> Any:
    """A method that is looked up at each call, because a test may have replaced it."""

    async def call(*arguments: Any) -> Any:
        return await getattr(target, name)(*arguments)

    return call


class FakeWorker:
    """The handlers of a worker's three topics over fakes.

    Arguments:
        price_log: The records of the price log.
        max_event_bytes: A larger record is rejected.
        followers, sold: As for `Purchases`.
        registered: Called with the accepted registrations of a batch.
    """

    def __init__(
        self,
        store: Any,
        counts: Any,
        *,
        outlet: FakeOutlet | None = None,
        price_log: list[FakeRecord] | None = None,
        limit: Limit | None = None,
        wait_seconds: float = 0.0,
        max_event_bytes: int = 10_000,
        dead_letters: str = "dead",
        followers: Sequence[Any] = (),
        registered: Any = None,
        sold: Any = lambda batch, fresh: None,
    ) -> None:
        self.price_records = [] if price_log is None else price_log
        self.events = counts.events
        mongodb: Any = Patient(store, Outage("MongoDB"))
        self.dead_letters = DeadLetters(dead_letters, 4, "shopflow", (outlet or FakeOutlet()).send)
        self.price_log = PriceLog("prices", self._send_price, self._read_prices)
        self.prices = Prices(
            mongodb,
            counts,
            self.price_log,
            wait_seconds=wait_seconds,
        )
        rejections = Rejections(self.dead_letters, limit)
        self.purchases = Purchases(
            mongodb, counts, self.prices, rejections,
            max_event_bytes=max_event_bytes, followers=followers, sold=sold,
        ).handle  # fmt: skip
        products = Decisions(mongodb, rejections, PRODUCTS, Decoder(Product, "product_id", max_event_bytes))
        self.products = Upserts(
            products, product_document,
            upsert=_late(store, "upsert_products"), delete=_late(store, "delete_products"),
        ).handle  # fmt: skip
        customers = Decisions(mongodb, rejections, CUSTOMERS, Decoder(Customer, "customer_id", max_event_bytes))
        self.customers = Upserts(
            customers, customer_document,
            upsert=_late(store, "upsert_customers"), delete=_late(store, "delete_customers"),
            follow=registered,
        ).handle  # fmt: skip

    async def _send_price(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any
    ) -> Awaitable[Any]:
        self.events.append("prices")
        self.price_records.append(FakeRecord(key, value, len(self.price_records), partition, topic))
        return asyncio.sleep(0)

    async def _read_prices(self, topic: str, partition: int, since: int, *, of: Any) -> list[Any]:
        return [of(record) for record in self.price_records if record.partition == partition]

    def rebalance(self) -> None:
        """Forget what was known of topics, as after a rebalance."""
        self.price_log.forget()
        self.dead_letters.forget()


class FakeShop:
    """A worker, and the things that outlive it: store, counts, dead letters and price log.

    Attributes:
        events: The steps of all of these, in their order.

    Arguments:
        options: As for `FakeWorker`.
    """

    def __init__(self, **options: Any) -> None:
        self.events: list[str] = []
        self.store = FakeStore()
        self.store.calls = self.events
        self.counts = FakeTable(self.events)
        self.outlet = FakeOutlet(self.events)
        self.price_log: list[FakeRecord] = []
        self.restart(**options)

    def restart(self, **options: Any) -> None:
        """Replace the worker by a new one."""
        self.worker = FakeWorker(
            self.store,
            self.counts,
            outlet=self.outlet,
            price_log=self.price_log,
            dead_letters="shop.dead-letters",
            **options,
        )

    def batch(self, *sent: Any, start: int = 0, kind: str = "purchases", **fields: Any) -> FakeBatch:
        """A batch of events, of other values, and of records; `fields` are those of the records."""
        records = [
            one if isinstance(one, FakeRecord) else events.record(one, start + number, kind, **fields)
            for number, one in enumerate(sent)
        ]
        return FakeBatch(records, self.events)

    def handle(self, batch: FakeBatch, kind: str = "purchases") -> None:
        """Process a batch."""
        asyncio.run(getattr(self.worker, kind)(batch))

    def count(self, customer_id: str = "anna") -> tuple[int, int, int]:
        """A customer's counted purchases and items, and the sum spent."""
        value = self.counts.rows.get(0, {}).get(customer_id.encode())
        count = decode_count(value) if value else None
        return (count.purchases, count.items, count.spent) if count else (0, 0, 0)

    def totals(self) -> Any:
        """The totals of partition 0."""
        return decode_totals(self.counts.rows[0][TOTALS_KEY])

    def reasons(self) -> list[str]:
        """The reason of each dead letter."""
        return [dict(headers)["__connect.errors.exception.message"].decode() for *_, headers in self.outlet.got]
