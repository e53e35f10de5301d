"""Compares the sums over a partition's rows with the totals that are kept beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from .position import TOTALS_KEY


class Audit:
    """Adds up the rows of a partition. No I/O.

    Add the rows by key. The totals come first; rows of an earlier era than theirs do not count.

    Arguments:
        sums: The fields of a row whose sums are in the totals.
        count: The field of the totals that holds the number of rows.
    """

    def __init__(self, sums: Sequence[str], count: str) -> None:
        self._names = tuple(sums)
        self._decode_row, self._decode_totals, empty = _decoders(self._names, count)
        self._count = count
        self.totals: Any = empty
        self.rows = 0
        self.sums = [0] * len(self._names)
        self.furthest = -1  #: the largest offset of a row

    def add(self, key: bytes, value: bytes) -> None:
        if key == TOTALS_KEY:
            self.totals = self._decode_totals(value)
            return
        row = self._decode_row(value)
        if row.era < self.totals.era:
            return
        self.rows += 1
        for number, name in enumerate(self._names):
            self.sums[number] += getattr(row, name)
        self.furthest = max(self.furthest, row.offset)

    @property
    def behind(self) -> bool:
        """True if the totals count a batch whose rows may be missing: after a crash, until the batch is repeated."""
        return bool(self.totals.settled < self.totals.offset)

    @property
    def ahead(self) -> bool:
        """True if rows were written after the totals: after a crash, until the batch is repeated."""
        return bool(self.furthest > self.totals.offset)

    @property
    def conclusive(self) -> bool:
        """True if rows and totals are at the same offset, so that the sums must be equal."""
        return not self.behind and not self.ahead

    @property
    def agrees(self) -> bool:
        """True if the audit finds no row missing. While rows are ahead, the sums may be larger than the totals."""
        if self.behind:
            return True
        found, expected = [self.rows, *self.sums], self.expected
        return all(a >= b for a, b in zip(found, expected, strict=True)) if self.ahead else found == expected

    @property
    def expected(self) -> list[int]:
        """The totals: the number of rows, then each sum."""
        return [getattr(self.totals, name) for name in (self._count, *self._names)]


@lru_cache
def _decoders(sums: tuple[str, ...], count: str) -> tuple[Callable[[bytes], Any], Callable[[bytes], Any], Any]:
    position = [("era", int, 0), ("offset", int, -1)]
    numbers = [(name, int, 0) for name in sums]
    row = msgspec.defstruct("Row", [*numbers, *position], gc=False)
    totals = msgspec.defstruct("Totals", [*numbers, (count, int, 0), *position, ("settled", int, -1)], gc=False)
    return msgspec.json.Decoder(row).decode, msgspec.json.Decoder(totals).decode, totals()
