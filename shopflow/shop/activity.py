"""What follows the counts of a batch, under the same guarantee."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from faust_batches.attempts import Attempts
from faust_batches.ledger import Ledger, Partitioned, Row
from shopflow.models import CustomerActivity, encode, struct_of

from . import sales
from .purchases import Counting

__all__ = ["Activity", "Sales"]

_Activity = struct_of(CustomerActivity)


class Activity:
    """Tells other systems the counts of the customers who bought something.

    At least once after each change, in the order of the log; a batch that comes again tells the same again.

    Arguments:
        publish: Sends rows to one partition of the topic; done when Kafka has acknowledged them.
    """

    def __init__(self, attempts: Attempts, publish: Callable[[int, Sequence[Row]], Awaitable[object]]) -> None:
        self._with_kafka = attempts.with_kafka
        self._publish = publish

    async def follow(self, batch: Partitioned, counting: Counting) -> None:
        """As `processing.Follower`."""
        rows = [
            (
                customer_id.encode(),
                encode(
                    _Activity(
                        customer_id=customer_id,
                        purchases=count.purchases,
                        items=count.items,
                        spent=count.spent,
                        offset=count.offset,
                    )
                ),
            )
            for customer_id, count in counting.changes.counts.items()
        ]
        if rows:
            await self._with_kafka(batch, lambda: self._publish(counting.partition, rows))


class Sales:
    """Enters the sales of each batch of purchases.

    Arguments:
        ledger: The table of sales, and its changelog.
        changed: Told of the rows that were entered: partition, keys and values.
    """

    def __init__(self, ledger: Ledger, changed: Callable[[int, Sequence[tuple[bytes, bytes]]], None]) -> None:
        self._ledger = ledger
        self._changed = changed

    async def follow(self, batch: Partitioned, counting: Counting) -> None:
        """As `processing.Follower`."""
        changes = sales.advance(
            self._ledger.getter(counting.partition),
            counting.fresh,
            end=counting.end,
            duplicates=counting.duplicates,
            rejected=counting.rejected,
        )
        rows = changes.rows()
        await self._ledger.enter(batch, rows)
        self._changed(counting.partition, rows)
