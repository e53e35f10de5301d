"""How far a replay has come."""

from __future__ import annotations

from shopflow.rebuild import Work

PLACES = {("shop.purchases", 0): 100, ("shop.purchases", 1): 50, ("shop.products", 0): 0}


def test_only_what_the_topics_still_have_is_read_again() -> None:
    """One of them begins late."""
    starts = {("shop.purchases", 0): 40, ("shop.purchases", 1): 0, ("shop.products", 0): 0}
    work = Work(starts, PLACES)
    assert work.total == 110
    assert work.done({}) == 0
    assert work.done(starts) == 0
    assert work.done({("shop.purchases", 0): 60, ("shop.purchases", 1): 50}) == 70


def test_what_arrives_meanwhile_does_not_count() -> None:
    """Else it would never be over in a busy shop."""
    work = Work(dict.fromkeys(PLACES, 0), PLACES)
    assert work.done({place: end + 1_000 for place, end in PLACES.items()}) == work.total == 150
