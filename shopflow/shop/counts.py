"""What a batch of purchases makes of the counts: pure, so that it can be tested without Kafka, MongoDB or RocksDB.

The counts of a customer, and the sums of a partition, are a function of the log alone: of the purchases that were
accepted up to an offset. Each value carries that offset. So a purchase at or below it is a redelivery, and of two
values the one with the larger offset is the later one, in whatever order they arrive. Whoever wants to count anew from
the start begins a new era (`rebuilt`): values of earlier ones are outdone, and count no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import msgspec

from faust_batches import TOTALS_KEY, position_of
from shopflow.models import PartitionTotals, PurchaseCount

from .decoding import struct_of

V = TypeVar("V")

Count = struct_of(PurchaseCount)
Totals = struct_of(PartitionTotals)

decode_count = msgspec.json.Decoder(Count).decode
decode_totals = msgspec.json.Decoder(Totals).decode
_encode = msgspec.json.Encoder().encode


def rebuilt(era: int, now: float) -> bytes:
    """The totals with which a partition begins to count anew: empty, and of an era after this one.

    Arguments:
        now: The time (Unix, in seconds): it is the new era, so that it is also after one that the changelog has lost.
    """
    return _encode(Totals(era=max(era + 1, int(now))))


#: An accepted purchase, as far as the counts care: offset, customer, items, and what was spent (grosze).
#: A plain tuple: there is one of them for each purchase.
Counted: TypeAlias = tuple[int, str, int, int]


@dataclass(frozen=True)
class Changes(Generic[V]):
    """What is to be written for one batch: every row that it touches and the totals, also those that did not change."""

    values: dict[str, V]
    totals: PartitionTotals

    def rows(self) -> list[tuple[bytes, bytes]]:
        """Keys and values as they stand in RocksDB and in the changelog; the totals last."""
        rows = [(key.encode(), _encode(value)) for key, value in self.values.items()]
        rows.append((TOTALS_KEY, _encode(self.totals)))
        return rows


def current(get: Callable[[bytes], bytes | None], customer_id: str) -> PurchaseCount | None:
    """A customer's counts; None if there are none of the partition's era."""
    value, totals = get(customer_id.encode()), get(TOTALS_KEY)
    if not value:
        return None
    count: PurchaseCount = decode_count(value)
    return None if totals and count.era < position_of(totals).era else count


def summed(reader: Callable[[int], Callable[[bytes], bytes | None]], partitions: Iterable[int]) -> dict[str, int]:
    """Customers, purchases, items and spent over these partitions."""
    sums = dict.fromkeys(("customers", "purchases", "items", "spent"), 0)
    for partition in partitions:
        if value := reader(partition)(TOTALS_KEY):
            totals = decode_totals(value)
            for name in sums:
                sums[name] += getattr(totals, name)
    return sums


def handled(get: Callable[[bytes], bytes | None], customer_id: str, offset: int) -> bool:
    """True if a purchase at this offset was counted before, or left out for good."""
    count, totals = current(get, customer_id), get(TOTALS_KEY)
    return max(count.offset if count else -1, position_of(totals).offset if totals else -1) >= offset


def advance(
    get: Callable[[bytes], bytes | None],
    accepted: Iterable[Counted],
    *,
    end: int,
    duplicates: Iterable[int] = (),
    rejected: Iterable[int] = (),
) -> Changes[PurchaseCount]:
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
    customers_new = purchases_new = items_new = spent_new = 0
    for offset, customer_id, items, spent in accepted:
        count = counts.get(customer_id)
        if count is None:
            value = get(customer_id.encode())
            count = decode_count(value) if value else None
            if count is None or count.era < totals.era:
                count = Count(era=totals.era)
            counts[customer_id] = count
        if offset > count.offset:
            if count.first < 0:
                count.first = offset
            count.purchases += 1
            count.items += items
            count.spent += spent
            count.offset = offset
        if offset > seen:
            customers_new += offset == count.first
            purchases_new += 1
            items_new += items
            spent_new += spent
    totals.customers += customers_new
    totals.purchases += purchases_new
    totals.items += items_new
    totals.spent += spent_new
    totals.duplicates += sum(offset > seen for offset in duplicates)
    totals.rejected += sum(offset > seen for offset in rejected)
    totals.offset = max(seen, end - 1)
    totals.settled = end - 1
    return Changes(counts, totals)
