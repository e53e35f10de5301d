"""Computes the counts after a batch of purchases. Does no I/O, so tests need no Kafka, MongoDB or RocksDB.

The counts of a customer and the totals of a partition depend on the log alone: on the purchases that were accepted up
to an offset. Each value carries that offset. So a purchase at or below it is a redelivery, and of two values the one
with the larger offset is the later one, in whatever order they arrive. Counting from zero begins a new era
(`new_era_totals`): values of earlier eras no longer count.
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


def new_era_totals(era: int, now: float, topic_id: str = "") -> bytes:
    """Empty totals of an era after this one. A partition with them counts from zero.

    Arguments:
        now: Unix time in seconds. It becomes the era, so the era is also later than one that the changelog has lost.
        topic_id: Kafka's id of the topic that is counted; empty: not known.
    """
    return _encode(Totals(era=max(era + 1, int(now)), topic_id=topic_id))


#: An accepted purchase: offset, customer_id, items, spent (grosze). A plain tuple is fast: there is one per purchase.
Counted: TypeAlias = tuple[int, str, int, int]


@dataclass(frozen=True)
class Changes(Generic[V]):
    """The values to write after a batch: each row that its purchases belong to, changed or not, and the totals."""

    values: dict[str, V]
    totals: PartitionTotals

    def rows(self) -> list[tuple[bytes, bytes]]:
        """Keys and values for RocksDB and the changelog. The totals are last."""
        rows = [(key.encode(), _encode(value)) for key, value in self.values.items()]
        rows.append((TOTALS_KEY, _encode(self.totals)))
        return rows


def current(get: Callable[[bytes], bytes | None], customer_id: str) -> PurchaseCount | None:
    """A customer's counts; None if there are none in the partition's era."""
    value, totals = get(customer_id.encode()), get(TOTALS_KEY)
    if not value:
        return None
    count: PurchaseCount = decode_count(value)
    return None if totals and count.era < position_of(totals).era else count


def summed(reader: Callable[[int], Callable[[bytes], bytes | None]], partitions: Iterable[int]) -> dict[str, int]:
    """The sums of customers, purchases, items and spent over these partitions."""
    sums = dict.fromkeys(("customers", "purchases", "items", "spent"), 0)
    for partition in partitions:
        if value := reader(partition)(TOTALS_KEY):
            totals = decode_totals(value)
            for name in sums:
                sums[name] += getattr(totals, name)
    return sums


def counted_topics(reader: Callable[[int], Callable[[bytes], bytes | None]], partitions: Iterable[int]) -> set[str]:
    """Kafka's ids of the topics whose records these partitions count. There is one, unless the topic was replaced."""
    totals = [decode_totals(value) for partition in partitions if (value := reader(partition)(TOTALS_KEY))]
    return {found.topic_id for found in totals} - {""}


def handled(get: Callable[[bytes], bytes | None], customer_id: str, offset: int) -> bool:
    """True if the purchase at this offset was counted, was rejected or is a duplicate."""
    count, totals = current(get, customer_id), get(TOTALS_KEY)
    return max(count.offset if count else -1, position_of(totals).offset if totals else -1) >= offset


def advance(
    get: Callable[[bytes], bytes | None],
    accepted: Iterable[Counted],
    *,
    start: int = 0,
    end: int,
    removed: int = 0,
    duplicates: Iterable[int] = (),
    rejected: Iterable[int] = (),
    topic_id: str = "",
) -> Changes[PurchaseCount]:
    """Compute the counts after the partition's next batch: the records from `start` up to, not including, `end`.

    Customers and totals are each compared by their own offset, because a crash can leave one ahead of the other.

    Arguments:
        get: Reads a value of the partition.
        accepted: The stored purchases without duplicates, by offset.
        removed: How many offsets at the batch's start Kafka removed before they were read.
        duplicates: Offsets of purchases that their producer had sent before.
        rejected: Offsets of records that went to the dead letters.
        topic_id: Kafka's id of the topic; empty: not known. It is recorded once: only a new era counts another topic.
    """
    known = get(TOTALS_KEY)
    totals = decode_totals(known) if known else Totals(first=start)
    totals.topic_id = totals.topic_id or topic_id
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
    totals.unread += max(0, start + removed - max(start, seen + 1))
    totals.offset = max(seen, end - 1)
    totals.settled = end - 1
    return Changes(counts, totals)
