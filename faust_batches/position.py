"""The position of a table's value: an era, and the offset of the last record applied in that era."""

from __future__ import annotations

import msgspec

#: The key of a partition's totals, which are stored beside its rows. No record's key is empty.
TOTALS_KEY = b""


class Position(msgspec.Struct, order=True, gc=False, frozen=True):
    """The position of a value. Of two values of one key the one with the larger position is the later."""

    era: int = 0
    offset: int = -1


class _Settled(msgspec.Struct, gc=False):
    settled: int | None = None


_decode = msgspec.json.Decoder(Position).decode
_decode_settled = msgspec.json.Decoder(_Settled).decode


def position_of(value: bytes) -> Position:
    """The position in a value: its JSON fields `era` and `offset`; 0 and -1 if they are missing.

    Raises:
        msgspec.MsgspecError: The value is not a JSON object with such fields.
    """
    return _decode(value)


def settled_in(totals: bytes) -> int | None:
    """The last offset of the batch that wrote these totals; -1 if they were reset; None if they have no such field.

    Raises:
        msgspec.MsgspecError: The value is not a JSON object with such a field.
    """
    return _decode_settled(totals).settled
