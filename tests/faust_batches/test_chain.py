"""Where a partition stands: runs that don't fit do not pass, only an unbroken chain moves what is done."""

from __future__ import annotations

import pytest

from faust_batches.chain import Chain, Cursor
from faust_batches.lease import Lease
from shopflow.errors import PartitionLost


class TestCursor:
    """Where the next run must start."""

    def test_only_the_next_run_passes(self) -> None:
        """A run from before a seek, or from behind a lost one, must not move the reader on."""
        cursor = Cursor(10)
        assert cursor.admits(10)
        assert not cursor.admits(7)
        assert not cursor.admits(12)

    def test_a_hole_passes_when_the_fetch_from_its_start_ends_behind_it_again(self) -> None:
        """Compaction and transactions leave holes; a lost run would have been brought back."""
        cursor = Cursor(10)
        assert not cursor.admits(12)
        assert cursor.admits(12)

    def test_two_different_runs_are_no_hole(self) -> None:
        """Each must come twice in a row."""
        cursor = Cursor(10)
        assert [cursor.admits(first) for first in (12, 13, 12, 9, 12)] == [False] * 5
        assert cursor.admits(12)

    def test_an_older_run_never_passes(self) -> None:
        """However often it comes."""
        cursor = Cursor(10)
        assert [cursor.admits(7) for _ in range(3)] == [False] * 3


class TestChain:
    """What may be committed."""

    def test_it_grows_by_batches_that_continue_it(self) -> None:
        """One after the other."""
        chain = Chain(5, epoch=0)
        chain.finish(5, 9)
        chain.finish(9, 20)
        assert chain.done == 20

    @pytest.mark.parametrize("start", [0, 4, 6, 9])
    def test_nothing_else_moves_it(self, start: int) -> None:
        """Neither a batch from before nor one with something missing before it."""
        chain = Chain(5, epoch=0)
        with pytest.raises(PartitionLost):
            chain.finish(start, 30)
        assert chain.done == 5


def test_a_session_is_sure_until_its_timeout_counted_from_the_heartbeat_that_was_sent() -> None:
    """The broker counts from when it came, so it gives our partitions away later than that."""
    clock = [100.0]
    lease = Lease(30.0, lambda: clock[0])
    assert lease.valid, "nothing to lose"
    lease.renew(95.0)
    assert lease.valid
    clock[0] = 125.0
    assert not lease.valid
    lease.renew(120.0)
    lease.renew(110.0)  # an answer that came late
    assert lease.valid


def test_nothing_is_sent_between_the_loss_of_partitions_and_the_next_assignment() -> None:
    """The producer was flushed; what an actor adds then would arrive behind its successor's."""
    lease = Lease(30.0, lambda: 100.0)
    lease.renew(100.0)
    lease.pause()
    lease.renew(100.0)  # a heartbeat in the middle of a rebalance
    assert not lease.valid
    lease.resume()
    assert lease.valid
