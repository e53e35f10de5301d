"""The table of counts as the shop uses it: its rows and totals agree, and a worker that slept recovers it whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from faust.types import TP

from faust_batches import TOTALS_KEY, App
from faust_batches.audit import Audit
from faust_batches.testing import FakeBatch
from shopflow.models import PurchaseCount
from shopflow.shop.counts import Counted, advance, decode_count, decode_totals
from shopflow.shop.decoding import encode
from tests.support.fakes import FakeRecord, FakeStore, FakeWorker

CHANGELOG = TP("test-purchase_counts-changelog", 0)
SUMS = ("purchases", "items", "spent")
OPTIONS = {"write_buffer_size": 1 << 20, "block_cache_size": 1 << 20, "max_write_buffer_number": 2}


class Worker:
    """One of several workers, each with a folder of its own, and the changelog that they share."""

    def __init__(self, folder: Path, changelog: list[FakeRecord]) -> None:
        self.changelog = changelog
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        app = App("test", broker="kafka://127.0.0.1:1", store="rocksdb://?driver=rocksdict", datadir=str(folder))
        app.publish = self.publish  # type: ignore[method-assign]
        app.assignor.assigned_actives = lambda: {CHANGELOG}
        self.table = app.exactly_once_table(
            "purchase_counts",
            value=PurchaseCount,
            source="shop.purchases",
            sums=SUMS,
            count="customers",
            options=OPTIONS,
        )
        self.table.events = []  # type: ignore[attr-defined]
        self.worker = FakeWorker(FakeStore(), self.table)

    async def publish(self, topic: str, partition: int, rows: Any) -> int:
        if self.meanwhile:
            await self.meanwhile()
        self.changelog += [FakeRecord(*row, len(self.changelog) + n, 0, topic) for n, row in enumerate(rows)]
        return len(self.changelog) - 1

    async def start(self) -> None:
        """Recover, as Faust does: from the record behind the persisted offset on."""
        persisted = self.table.persisted_offset(CHANGELOG)
        if run := self.changelog[0 if persisted is None else persisted + 1 :]:
            self.table.recover(0, run)
        await self.table.on_recovery_completed({CHANGELOG}, set())

    async def buy(self, *offsets: int) -> None:
        """A batch of purchases at these offsets, each of a customer of its own."""
        base = {"product_id": "milk", "quantity": 1, "price": 1, "purchased_at": "2026-05-01T12:00:00Z"}
        events = [{"purchase_id": f"p{n}", "customer_id": f"c{n}", **base} for n in offsets]
        batch = FakeBatch([FakeRecord(f"c{n}".encode(), encode(e), n) for n, e in zip(offsets, events, strict=True)])
        await self.worker.purchases(batch)

    def count(self, customer_id: str) -> tuple[int, int]:
        """How many purchases, and the offset of the last one."""
        count = decode_count(self.table.reader(0)(customer_id.encode()) or b"{}")
        return count.purchases, count.offset


def test_a_worker_that_slept_through_its_loss_recovers_what_its_successor_counted(tmp_path: Path) -> None:
    """Its rows arrive behind the successor's: RocksDB then lacks what lies before them in the changelog."""
    changelog: list[FakeRecord] = []
    sleeper, successor = (Worker(tmp_path / name, changelog) for name in ("sleeper", "successor"))

    async def successor_goes_on() -> None:
        await successor.start()
        for offset in range(3):
            await successor.buy(offset)

    async def story() -> None:
        await sleeper.start()
        sleeper.meanwhile = successor_goes_on
        await sleeper.buy(0)  # frozen while its rows are under way; it does not know yet that it lost the partition
        sleeper.meanwhile = None
        await sleeper.start()  # it gets the partition back

    asyncio.run(story())
    assert [sleeper.count(f"c{number}") for number in range(3)] == [(1, 0), (1, 1), (1, 2)]


def rows_after(
    *purchases: Counted, end: int, get: Callable[[bytes], bytes | None] = lambda key: None
) -> dict[bytes, bytes]:
    """The rows of a batch."""
    return dict(advance(get, purchases, end=end).rows())


def audited(rows: dict[bytes, bytes]) -> Audit:
    """The audit of a partition with these rows."""
    audit = Audit(SUMS, "customers")
    for key, value in rows.items():
        audit.add(key, value)
    return audit


def test_the_counts_of_a_batch_agree_with_their_totals() -> None:
    """Also those of a batch that a crash cut off and that is counted again."""
    first = rows_after((0, "anna", 2, 600), (1, "bob", 1, 1), end=2)
    assert audited(first).agrees
    second = rows_after((2, "anna", 1, 1), (3, "eve", 1, 1), end=4, get=first.get)
    cut_off = {**first, b"anna": second[b"anna"]}
    assert audited(cut_off).ahead
    again = {**cut_off, **rows_after((2, "anna", 1, 1), (3, "eve", 1, 1), end=4, get=cut_off.get)}
    assert again == second | {b"bob": first[b"bob"]}
    assert audited(again).conclusive
    assert audited(again).agrees
    assert decode_totals(again[TOTALS_KEY]).customers == 3
    del again[b"bob"]
    assert not audited(again).agrees
