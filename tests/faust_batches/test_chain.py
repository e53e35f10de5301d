"""Cursor and chain: only the next run passes, and only the end of an unbroken chain is committed."""

from __future__ import annotations

import pytest

from faust_batches import PartitionLost
from faust_batches.chain import Chain, Cursor


class TestCursor:
    """The offset at which the next run must start."""

    def test_only_the_next_run_passes(self) -> None:
        """A run from before a seek, or after a lost run, must not move the cursor."""
        cursor = Cursor(10)
        assert cursor.admits(10)
        assert not cursor.admits(7)
        assert not cursor.admits(12)

    def test_a_hole_passes_when_the_fetch_from_its_start_ends_behind_it_again(self) -> None:
        """Compaction and transactions leave gaps in a partition. If the same run comes twice, no record is missing."""
        cursor = Cursor(10)
        assert not cursor.admits(12)
        assert cursor.admits(12)

    def test_two_different_runs_are_no_hole(self) -> None:
        """A run after a gap passes only if it comes twice in a row."""
        cursor = Cursor(10)
        assert [cursor.admits(first) for first in (12, 13, 12, 9, 12)] == [False] * 5
        assert cursor.admits(12)

    def test_an_older_run_never_passes(self) -> None:
        """A run from before the cursor is refused, however often it comes."""
        cursor = Cursor(10)
        assert [cursor.admits(7) for _ in range(3)] == [False] * 3


class TestChain:
    """The offset up to which a partition may be committed."""

    def test_it_grows_by_batches_that_continue_it(self) -> None:
        """Each batch that starts at the chain's end moves the end."""
        chain = Chain(5, epoch=0)
        chain.finish(5, 9)
        chain.finish(9, 20)
        assert chain.done == 20

    @pytest.mark.parametrize("start", [0, 4, 6, 9])
    def test_nothing_else_moves_it(self, start: int) -> None:
        """An older batch, and one with a gap before it, are refused."""
        chain = Chain(5, epoch=0)
        with pytest.raises(PartitionLost):
            chain.finish(start, 30)
        assert chain.done == 5
