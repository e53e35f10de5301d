"""The mirror: the sales in MongoDB follow the table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from faust_batches import TOTALS_KEY, Outage
from faust_batches.outage import FIRST_PAUSE_SECONDS
from shopflow.errors import Unavailable
from shopflow.models import Purchase
from shopflow.shop import sales_mirror as mirror
from shopflow.shop.counts import decode_totals, new_era_totals
from shopflow.shop.sales import PERIODS
from shopflow.shop.sales_mirror import Mirror
from shopflow.store.rules import sale_id
from shopflow.store.types import PartitionSales
from tests.shop.test_sales import enter, numbered
from tests.support.events import accepted
from tests.support.fakes import FakeStore


class Table:
    """The rows of one partition, in a dict."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def reader(self, partition: int) -> Any:
        return self.rows.get

    def scan(self, partition: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return [row for row in sorted(self.rows.items()) if row[0] > after][:limit]


class Mirrored:
    """A table, its mirror and a store."""

    def __init__(self) -> None:
        self.table, self.store, self.owned = Table(), FakeStore(), [0]
        self.events: list[Purchase] = []
        self.outage = Outage("MongoDB")
        self.mirror = Mirror(self.table, self.store, lambda: self.owned, self.outage)

    def sell(self, units: int, *, noted: bool = True) -> None:
        """Sell milk; `noted` tells the mirror of it."""
        self.events.append(accepted(quantity=units))
        before = dict(self.table.rows)
        enter(self.table.rows, numbered(self.events)[-1:], len(self.events))
        if noted:
            self.mirror.changed(0, [row for row in self.table.rows.items() if before.get(row[0]) != row[1]])

    def bring_up_to_date(self) -> float:
        return asyncio.run(self.mirror.bring_up_to_date())

    def units(self) -> int:
        """The units of milk that were sold ever, by the store."""
        return sum(part.units for part in self.store.parts.get(sale_id("total", None, "milk"), {}).values())


@pytest.fixture
def mirrored() -> Mirrored:
    return Mirrored()


def test_what_was_sold_before_is_found_in_the_table(mirrored: Mirrored) -> None:
    """The worker that wrote the table was killed before it wrote MongoDB."""
    mirrored.sell(2, noted=False)
    mirrored.bring_up_to_date()
    assert mirrored.units() == 2


def test_only_what_changed_is_written(mirrored: Mirrored) -> None:
    """Without a change nothing is written."""
    mirrored.sell(2)
    mirrored.bring_up_to_date()
    mirrored.store.calls.clear()
    mirrored.bring_up_to_date()
    assert mirrored.store.calls == []
    mirrored.sell(1)
    mirrored.bring_up_to_date()
    assert mirrored.units() == 3
    assert mirrored.store.calls == ["put_sales", "put_sales", "reached_sales"]


@pytest.mark.parametrize("use", ["reader", "scan"])
def test_a_table_that_is_damaged_on_disk_is_waited_for(
    mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """When its changelog has been read again, all of it is written, not only what is sold from then on."""

    def damaged(*arguments: Any) -> Any:
        raise Unavailable("RocksDB", "sales: partition 0 is damaged; its changelog is read again")

    mirrored.sell(2, noted=False)
    with monkeypatch.context() as patch:
        patch.setattr(mirrored.table, use, damaged)
        mirrored.bring_up_to_date()
        mirrored.sell(1)
    mirrored.bring_up_to_date()
    assert mirrored.units() == 3


def test_the_totals_are_written_last(mirrored: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sees a new total finds its days and hours, also if the worker is killed in between."""
    written: list[set[str]] = []
    put = mirrored.store.put_sales

    async def put_sales(partition: int, sales: Sequence[PartitionSales]) -> None:
        written.append({sale.period for sale in sales})
        await put(partition, sales)

    monkeypatch.setattr(mirrored.store, "put_sales", put_sales)
    mirrored.sell(2)
    mirrored.bring_up_to_date()
    assert written == [{"day", "hour"}, {"total"}]


@pytest.mark.parametrize("name", ["sales_position", "put_sales", "reached_sales"])
def test_what_could_not_be_written_is_written_when_mongodb_is_back(
    mirrored: Mirrored, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MongoDB may go at any request. The outage ends with the first answer, not when all is written."""
    monkeypatch.setattr(mirror, "_AT_ONCE", 1)
    real, seen = getattr(mirrored.store, name), []

    async def fails(*args: Any) -> Any:
        seen.append(mirrored.outage.seconds)
        if len(seen) <= 2:
            mirrored.store.away(1)
        return await real(*args)

    monkeypatch.setattr(mirrored.store, name, fails)
    mirrored.sell(2, noted=False)
    took = mirrored.bring_up_to_date()
    assert mirrored.units() == 2
    assert [seconds is None for seconds in seen[:4]] == [True, False, False, True][: len(seen)]
    assert mirrored.outage.seconds is None
    assert took < FIRST_PAUSE_SECONDS, "the pauses are not MongoDB's work"


def test_a_partition_that_goes_while_mongodb_is_away_is_left(mirrored: Mirrored) -> None:
    """The mirror stops waiting for MongoDB. The partition's next owner writes its sales."""
    mirrored.sell(2, noted=False)
    owned = iter([[0], [0], [0]])
    mirrored.mirror = Mirror(mirrored.table, mirrored.store, lambda: next(owned, []), mirrored.outage)
    mirrored.store.away(9)
    mirrored.bring_up_to_date()
    assert (mirrored.outage.failures, mirrored.store.calls) == (2, [])
    assert not mirrored.outage._failing


def test_after_a_rebalance_it_is_looked_through_from_where_mongodb_is(mirrored: Mirrored) -> None:
    """Another worker may have owned the partition meanwhile, or own it now."""
    mirrored.sell(2)
    mirrored.bring_up_to_date()
    mirrored.mirror.forget()
    mirrored.sell(1, noted=False)
    mirrored.owned = []
    mirrored.bring_up_to_date()
    assert mirrored.units() == 2
    mirrored.owned = [0]
    mirrored.store.calls.clear()
    mirrored.bring_up_to_date()
    assert mirrored.units() == 3
    assert mirrored.store.calls == ["sales_position", "put_sales", "put_sales", "reached_sales"]


def test_a_row_of_another_program_is_left_out(mirrored: Mirrored) -> None:
    """It came through the changelog. The shop's own rows are written all the same."""
    mirrored.sell(2)
    row = mirrored.table.rows[b"total  milk"]
    foreign = dict.fromkeys((b"anna", b"\xff  ", b"year 2024 milk", b"day 2024-99-01 milk"), row)
    mirrored.table.rows |= foreign
    mirrored.mirror.changed(0, list(foreign.items()))
    mirrored.bring_up_to_date()
    assert mirrored.units() == 2
    assert len(mirrored.store.parts) == len(PERIODS)


def test_a_partition_that_goes_while_it_is_looked_through_is_left(mirrored: Mirrored) -> None:
    """The table's database of a lost partition may be closed or belong to another worker."""
    mirrored.sell(2, noted=False)
    owned = iter([[0], [0], []])
    mirrored.mirror = Mirror(mirrored.table, mirrored.store, lambda: next(owned, []), mirrored.outage)
    mirrored.bring_up_to_date()
    assert mirrored.units() == 0


def test_rows_of_an_era_before_are_not_written(mirrored: Mirrored) -> None:
    """After a replay the table's rows of the earlier era count for nothing."""
    mirrored.sell(2, noted=False)
    mirrored.table.rows[TOTALS_KEY] = new_era_totals(0, 1000)
    mirrored.bring_up_to_date()
    assert mirrored.units() == 0


def test_the_position_stays_before_the_rest_of_a_partly_redelivered_batch(mirrored: Mirrored) -> None:
    """A batch was written to RocksDB and cut off. Its first part came again, then the worker was killed.

    The totals that are in the changelog with the first part reach to the end of the whole batch. The next worker writes
    the first part to MongoDB, counts the rest, and is killed too. The rest must not be taken for written.
    """
    events = [accepted(quantity=1) for _ in range(4)]
    before = dict(mirrored.table.rows)
    enter(mirrored.table.rows, numbered(events), 4)
    sums = mirrored.table.rows[TOTALS_KEY]
    changelog = dict(before)
    enter(changelog, numbered(events)[:2], 2)
    again = dict(mirrored.table.rows)
    enter(again, numbered(events)[:2], 2)
    changelog[TOTALS_KEY] = again[TOTALS_KEY]
    assert decode_totals(sums).offset == decode_totals(changelog[TOTALS_KEY]).offset == 3
    mirrored.table.rows = changelog
    mirrored.bring_up_to_date()
    assert mirrored.units() == 2
    enter(mirrored.table.rows, numbered(events)[2:], 4)
    mirrored.mirror.forget()  # `changed` was not called for the rest
    mirrored.bring_up_to_date()
    assert mirrored.units() == 4


def test_sales_stand_back_while_purchases_wait_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow write is followed by a long pause, which ends when no purchase waits any more."""
    shop, waiting = Mirrored(), [True]
    shop.mirror.waits = lambda: waiting[0]
    monkeypatch.setattr(mirror, "monotonic", lambda: clock[0])
    clock = [100.0]
    put = shop.store.put_sales

    async def slowly(*args: Any) -> None:
        clock[0] += 2
        await put(*args)

    monkeypatch.setattr(shop.store, "put_sales", slowly)
    shop.sell(1, noted=False)
    assert asyncio.run(shop.mirror.round()) == 3 * (clock[0] - 100)
    clock[0] += 3 * (clock[0] - 100)
    shop.sell(2)
    assert (asyncio.run(shop.mirror.round()), shop.units()) == (mirror._PAUSE_SECONDS, 1)
    waiting[0] = False
    asyncio.run(shop.mirror.round())
    assert shop.units() == 3
