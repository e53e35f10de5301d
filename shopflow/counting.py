"""What a batch of purchases makes of the counts: pure, so that it can be tested without Kafka, MongoDB or RocksDB.

The counts of a customer, and the sums of a partition, are a function of the log alone: of the purchases that were
accepted up to an offset. Each value carries that offset. So a purchase at or below it is a redelivery, and of two
values the one with the larger offset is the later one, in whatever order they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from .models import PartitionTotals, PurchaseCount, struct_of

__all__ = ["TOTALS_KEY", "Changes", "Counted", "advance", "decode_count", "decode_totals", "handled", "offset_of"]

#: Where a partition's sums stand beside its customers: no customer's id is empty.
TOTALS_KEY = b""

Count = struct_of(PurchaseCount)
Totals = struct_of(PartitionTotals)

decode_count = msgspec.json.Decoder(Count).decode
decode_totals = msgspec.json.Decoder(Totals).decode
_encode = msgspec.json.Encoder().encode


class _Offset(msgspec.Struct, gc=False):
    offset: int = -1


_decode_offset = msgspec.json.Decoder(_Offset).decode


def offset_of(value: bytes) -> int:
    """The offset up to which this value counts.

    Raises:
        msgspec.MsgspecError: It is not one of our values.
    """
    return _decode_offset(value).offset


class Counted(NamedTuple):
    """An accepted purchase, as far as the counts care."""

    offset: int
    customer_id: str
    items: int
    spent: int  # grosze


@dataclass(frozen=True)
class Changes:
    """What is to be written for one batch: every customer in it and the sums, also those that did not change."""

    counts: dict[str, PurchaseCount]
    totals: PartitionTotals

    def rows(self) -> list[tuple[bytes, bytes]]:
        """Keys and values as they stand in RocksDB and in the changelog; the sums last."""
        rows = [(customer_id.encode(), _encode(count)) for customer_id, count in self.counts.items()]
        rows.append((TOTALS_KEY, _encode(self.totals)))
        return rows


def handled(get: Callable[[bytes], bytes | None], customer_id: str, offset: int) -> bool:
    """Was a purchase at this offset counted, or left out for good, before?"""
    count, totals = get(customer_id.encode()), get(TOTALS_KEY)
    return max(offset_of(value) if value else -1 for value in (count, totals)) >= offset


def advance(
    get: Callable[[bytes], bytes | None],
    accepted: Iterable[Counted],
    *,
    end: int,
    duplicates: Iterable[int] = (),
    rejected: Iterable[int] = (),
) -> Changes:
    """The counts after a batch that ends before offset `end`, and that continues what was counted before.

    Customers and sums are judged each by their own offset: a crash can leave one ahead of the other.

    Arguments:
        get: Reads a value of the partition.
        accepted: The purchases that are stored and are no true duplicates, by offset.
        end: The offset after the batch's last record.
        duplicates: Offsets of purchases that were sent before.
        rejected: Offsets of records that went to the dead letters.
    """
    known = get(TOTALS_KEY)
    totals = decode_totals(known) if known else Totals()
    counts: dict[str, PurchaseCount] = {}
    seen = totals.offset
    for offset, customer_id, items, spent in accepted:
        count = counts.get(customer_id)
        if count is None:
            value = get(customer_id.encode())
            count = counts[customer_id] = decode_count(value) if value else Count()
        if offset > count.offset:
            if count.first < 0:
                count.first = offset
            count.purchases += 1
            count.items += items
            count.spent += spent
            count.offset = offset
        if offset > seen:
            totals.customers += offset == count.first
            totals.purchases += 1
            totals.items += items
            totals.spent += spent
    totals.duplicates += sum(offset > seen for offset in duplicates)
    totals.rejected += sum(offset > seen for offset in rejected)
    totals.offset = max(seen, end - 1)
    return Changes(counts, totals)
