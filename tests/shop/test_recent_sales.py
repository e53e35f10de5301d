"""What a worker sold in the last minutes, and the sums of several workers."""

from __future__ import annotations

import pytest

from shopflow.models import Purchase
from shopflow.shop import recent_sales as module
from shopflow.shop.recent_sales import Board, Snapshot, merged
from tests.support.events import accepted


class Clock:
    """A clock that stands still until it is set."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def event(number: int, product: str = "milk", quantity: int = 1, price: int | None = 100) -> Purchase:
    """A purchase with a number of its own, by default of one piece."""
    return accepted(product, quantity, price, purchase_id=f"b{number}")


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
    board.sold([event(1, quantity=2), event(2, price=None)])
    board.sold([event(3)])
    clock.now += 2
    board.sold([event(4, price=7)])
    board.sold([])
    assert board.snapshot().seconds == {1_000_000: (3, 300), 1_000_002: (1, 7)}


def test_the_latest_come_first_and_are_few(board: Board) -> None:
    """At most 20 sales are kept, the latest first, however large a batch is."""
    board.sold([event(number) for number in range(1_000)])
    latest = board.snapshot().latest
    assert [sale.purchase_id for sale in latest] == [f"b{number}" for number in range(999, 979, -1)]
    assert latest[0].value == 100


def test_what_is_older_than_fifteen_minutes_is_forgotten(board: Board, clock: Clock) -> None:
    """Old sales are forgotten also if nothing is sold any more."""
    board.sold([event(1, "milk")])
    clock.now += 600
    board.sold([event(2, "tea")])
    clock.now += 400
    assert board.snapshot().seconds == {1_000_600: (1, 100)}
    assert [one.product_id for one in board.snapshot().bestsellers] == ["tea"]
    clock.now += 4_000
    assert board.snapshot().seconds == {}
    assert board.snapshot().bestsellers == []


def test_bestsellers_by_items(board: Board, clock: Clock) -> None:
    """Products are sorted by items, and products with equal items by id."""
    board.sold([event(1, "milk", 3), event(2, "tea", 4), event(3, "ale", 4)])
    clock.now += 70
    board.sold([event(4, "milk", 2, 50)])
    found = [(one.product_id, one.items, one.value) for one in board.snapshot().bestsellers]
    assert found == [("milk", 5, 400), ("ale", 4, 400), ("tea", 4, 400)]


def test_memory_has_a_limit_whatever_producers_call_their_products(
    board: Board, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products beyond the limit are not counted in that minute; the totals include them."""
    monkeypatch.setattr(module, "MOST_PRODUCTS", 10)
    board.sold([event(number, f"p{number}") for number in range(500)])
    assert len(board.snapshot().bestsellers) == 10
    assert board.snapshot().seconds == {1_000_000: (500, 50_000)}


def test_several_workers_together(clock: Clock) -> None:
    """Sums are added, the latest sales are those of all workers, and no worker's snapshot is changed."""
    one, other = Board(clock), Board(clock)
    one.sold([event(1, "milk", 2)])
    clock.now += 1
    other.sold([event(2, "milk", 1), event(3, "tea", 9)])
    one.sold([event(4, "ale", 1)])
    parts = [one.snapshot(), other.snapshot()]
    for _ in range(2):
        whole = merged(parts)
        assert whole.seconds == {1_000_000: (1, 200), 1_000_001: (3, 1_100)}
        assert {sale.purchase_id for sale in whole.latest[:3]} == {"b2", "b3", "b4"}
        assert whole.latest[-1].purchase_id == "b1"
        assert [(sold.product_id, sold.items) for sold in whole.bestsellers] == [("tea", 9), ("milk", 3), ("ale", 1)]
    assert merged([]) == Snapshot({}, [], [])
