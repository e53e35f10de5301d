"""How far a table's value counts: an era, and in it the offset of the last record applied."""

from __future__ import annotations

import msgspec

#: The key of a partition's totals, beside its rows: no record's key is empty.
TOTALS_KEY = b""


class Position(msgspec.Struct, order=True, gc=False, frozen=True):
    """How far a value counts. Of two values of one key the one with the larger position is the later."""

    era: int = 0
    offset: int = -1


class _Settled(msgspec.Struct, gc=False):
    settled: int | None = None


_decode = msgspec.json.Decoder(Position).decode
_decode_settled = msgspec.json.Decoder(_Settled).decode


def position_of(value: bytes) -> Position:
    """The position in a value: its JSON fields `era` and `offset`; 0 and -1 where they are missing.

    Raises:
        msgspec.MsgspecError: The value is not a JSON object with such fields.
    """
    return _decode(value)


def settled_in(totals: bytes) -> int | None:
    """The last offset of the batch that a partition's totals came with; -1: they begin anew. None: they don't say it.

    Raises:
        msgspec.MsgspecError: The value is not a JSON object with such a field.
    """
    return _decode_settled(totals).settled
