"""What was sold in the last minutes: as a worker handles it, from MongoDB for what came before, and of all workers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import pytest

from faust_batches.testing import FakeBatch, FakeRecord
from shopflow.models import Purchase
from shopflow.shop import recent_sales as module
from shopflow.shop.recent_sales import Board, Past, Snapshot, merged
from tests.conftest import Run
from tests.shop.test_sales import enter, numbered
from tests.shop.test_sales_mirror import Table
from tests.support import documents
from tests.support.documents import kafka
from tests.support.events import accepted
from tests.support.stores import ObservedStore

TOPIC = "shop.purchases"


class Clock:
    """A clock that stands still until it is set."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def ago(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self.now - seconds, timezone.utc)


def event(number: int, product: str = "milk", quantity: int = 1, price: int | None = 100) -> Purchase:
    """A purchase with a number of its own, by default of one piece."""
    return accepted(product, quantity, price, purchase_id=f"b{number}")


def sell(board: Board, start: int, events: Sequence[Purchase], partition: int = 0) -> None:
    """Finish the batch with these events, from this offset on."""
    records = [FakeRecord(None, None, start + number, partition, TOPIC) for number in range(max(1, len(events)))]
    board.sold(FakeBatch(records), list(zip(records, events, strict=False)))  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    """The clock of the board."""
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    """An empty board."""
    return Board(clock)


def test_sums_are_kept_by_the_second(board: Board, clock: Clock) -> None:
    """Batches of one second are one entry. A second without a batch has none."""
    now = int(clock.now)
    sell(board, 0, [event(1, quantity=2), event(2, price=None)])
    sell(board, 2, [event(3)])
    clock.now += 2
    sell(board, 3, [event(4, price=7)])
    sell(board, 4, [])
    assert board.snapshot({0}).seconds == {now: (3, 300), now + 2: (1, 7)}


def test_the_latest_come_first_and_are_few(board: Board) -> None:
    """At most 20 sales are kept, the latest first, however large a batch is."""
    sell(board, 0, [event(number) for number in range(1_000)])
    latest = board.snapshot({0}).latest
    assert [sale.purchase_id for sale in latest] == [f"b{number}" for number in range(999, 979, -1)]
    assert latest[0].value == 100


def test_old_sales_are_forgotten(board: Board, clock: Clock) -> None:
    """They are forgotten also if nothing is sold any more, and if nobody looks."""
    sell(board, 0, [event(1, "milk")])
    clock.now += 600
    sell(board, 1, [event(2, "tea")])
    clock.now += 100
    assert board.snapshot({0}).seconds == {int(clock.now) - 100: (1, 100)}
    assert [one.product_id for one in board.snapshot({0}).latest] == ["tea"]
    for number in range(2_000):
        clock.now += 1
        sell(board, 2 + number, [event(3 + number)])
    assert len(board.parts[0].seconds) <= 2 * module.KEPT_SECONDS


def test_a_redelivered_batch_is_not_added_again(board: Board, clock: Clock) -> None:
    """After a rebalance a batch may come again, cut elsewhere."""
    sell(board, 5, [event(1), event(2)])
    clock.now += 1
    sell(board, 6, [event(2), event(3)])
    sell(board, 6, [event(2)])
    assert board.snapshot({0}).seconds == {int(clock.now) - 1: (2, 200), int(clock.now): (1, 100)}
    assert [sale.purchase_id for sale in board.snapshot({0}).latest] == ["b3", "b2", "b1"]


def test_what_another_worker_handled_meanwhile_is_not_known(board: Board, clock: Clock) -> None:
    """A batch that does not follow the last one begins anew: what came before is asked for again."""
    sell(board, 5, [event(1), event(2)])
    clock.now += 1
    sell(board, 9, [event(3)])
    found = board.snapshot({0})
    assert (found.seconds, found.since) == ({int(clock.now): (1, 100)}, {0: clock.now})


def test_several_workers_together(clock: Clock) -> None:
    """Sums are added, the latest sales are those of all workers, each once, and no worker's snapshot is changed."""
    one, other = Board(clock), Board(clock)
    sell(one, 0, [event(1, "milk", 2)])
    clock.now += 1
    sell(other, 0, [event(2, "milk", 1), event(3, "tea", 9)], partition=1)
    sell(one, 1, [event(4, "ale", 1)])
    sell(other, 2, [event(1, "milk", 2)], partition=1)
    parts = [one.snapshot({0}), other.snapshot({1})]
    now = int(clock.now)
    for _ in range(2):
        whole = merged(parts)
        assert whole.seconds == {now - 1: (1, 200), now: (4, 1_300)}
        assert {sale.purchase_id for sale in whole.latest} == {"b1", "b2", "b3", "b4"}
        assert whole.since == {0: clock.now - 1, 1: clock.now}
    assert one.snapshot({1}).since == {}
    assert merged([]) == Snapshot()


class Worker:
    """A worker with a board, and the tables of a partition that counts `sold`."""

    def __init__(self, store: ObservedStore, clock: Clock) -> None:
        self.board, self.table, self.owned, self.busy = Board(clock), Table(), [0], False
        self.past = Past(
            self.board, store, self.table, self.table, TOPIC, lambda: self.owned, lambda: self.busy  # type: ignore[arg-type]
        )  # fmt: skip

    def count(self, *events: Purchase) -> None:
        enter(self.table.rows, numbered(list(events)), len(events))


@pytest.fixture
def worker(store: ObservedStore, clock: Clock, run: Run) -> Worker:
    """A worker that owns a partition with three counted purchases, the last of them a minute ago."""
    made = Worker(store, clock)
    bought = [(0, "milk", 700), (1, "milk", 65), (2, "tea", 60)]
    stored = [
        documents.purchase(f"b{offset}", product=name, quantity=2, value=500, purchased_at=clock.ago(ago),
                           source=kafka(offset, topic=TOPIC))
        for offset, name, ago in bought
    ]  # fmt: skip
    others = [kafka(3, topic=TOPIC), kafka(0, topic="other"), kafka(0, 1, topic=TOPIC), {"origin": "direct"}]
    stored += [documents.purchase(f"x{number}", value=9, purchased_at=clock.ago(9), source=source)
               for number, source in enumerate(others)]  # fmt: skip
    run(store.insert_purchases(stored))
    made.count(*(accepted(name, purchased_at=clock.ago(ago)) for _, name, ago in bought))
    return made


def test_what_was_sold_before_comes_from_mongodb(worker: Worker, clock: Clock, run: Run) -> None:
    """A worker that starts has the last minutes of its partitions: each counted purchase once, none of others.

    A batch that was counted but not committed comes again; it is not added again.
    """
    run(worker.past.round())
    now = int(clock.now)
    found = worker.board.snapshot({0})
    assert found.seconds == {now - 65: (1, 500), now - 60: (1, 500)}
    assert [(sale.purchase_id, sale.at) for sale in found.latest] == [("b2", now - 60), ("b1", now - 65)]
    assert found.since == {0: clock.now - module.KEPT_SECONDS}
    sell(worker.board, 2, [event(2), event(3)])
    assert worker.board.snapshot({0}).seconds == {**found.seconds, now: (1, 100)}


def test_a_batch_may_come_before_mongodb_was_asked(worker: Worker, clock: Clock, run: Run) -> None:
    """Purchases from its start on are added by the batch, the ones before by MongoDB."""
    sell(worker.board, 2, [event(2), event(3)])
    run(worker.past.round())
    assert worker.board.snapshot({0}).seconds == {int(clock.now) - 65: (1, 500), int(clock.now): (2, 200)}


def test_since_when_it_is_known_is_told_while_mongodb_is_away(
    worker: Worker, store: ObservedStore, clock: Clock, run: Run
) -> None:
    """The board begins when the worker took the partition over. The rest comes when MongoDB is back."""
    began = clock.now
    store.away(1)
    assert run(worker.past.round()) > 1.0
    clock.now += 5
    assert worker.board.snapshot({0}).since == {0: began}
    worker.busy = True
    run(worker.past.round())
    assert store.calls.count("recently_sold") == 0, "purchases that wait come first"
    worker.busy = False
    run(worker.past.round())
    assert sum(count for count, _ in worker.board.snapshot({0}).seconds.values()) == 2
    asked = len(store.calls)
    run(worker.past.round())
    assert len(store.calls) == asked, "it is asked once"


def test_a_partition_that_was_elsewhere_is_asked_for_again(worker: Worker, clock: Clock, run: Run) -> None:
    """After a rebalance, a partition that another worker counted meanwhile begins anew; the others stay as they are."""
    run(worker.past.round())
    sell(worker.board, 3, [event(3)])
    worker.past.forget()
    run(worker.past.round())
    assert worker.board.parts[0].first == 3, "nobody else counted"
    worker.count(*(accepted("tea", purchased_at=clock.ago(60)) for _ in range(9)))
    worker.past.forget()
    run(worker.past.round())
    assert (worker.board.parts[0].first, worker.board.parts[0].since) == (9, clock.now - module.KEPT_SECONDS)
    worker.owned = []
    run(worker.past.round())
    assert 0 in worker.board.parts, "in a rebalance it stays"
    worker.owned = [1]
    run(worker.past.round())
    assert list(worker.board.parts) == [1]


def test_mongodb_is_not_asked_for_very_many_products(
    worker: Worker, store: ObservedStore, clock: Clock, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one request for each product. With too many the board begins when the worker took the partition over."""
    monkeypatch.setattr(module, "_MOST_PRODUCTS", 1)
    run(worker.past.round())
    assert worker.board.snapshot({0}).since == {0: clock.now}
    assert "recently_sold" not in store.calls
