"""Publishes each customer's counts for other systems."""

from __future__ import annotations

from faust_batches import Batch
from shopflow.models import CustomerActivity

from .announcements import Publish
from .decoding import encode, struct_of
from .purchases import CountedBatch

_Activity = struct_of(CustomerActivity)


class Activity:
    """Publishes a customer's counts at least once after each change, in the order of the log.

    A redelivered batch publishes the same values again.

    Arguments:
        publish: `App.publish`.
    """

    def __init__(self, topic: str, publish: Publish) -> None:
        self._topic = topic
        self._publish = publish

    async def follow(self, batch: Batch, counted: CountedBatch) -> None:
        """Publish the counts that a batch changed (`purchases.Follower`)."""
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
            for customer_id, count in counted.changes.values.items()
        ]
        if rows:
            await batch.with_kafka(lambda: self._publish(self._topic, batch.tp.partition, rows))
