"""The batch: a run of records of one partition, as an agent gets it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from faust.types import TP

from .errors import PartitionLost
from .outage import retrying_kafka

if TYPE_CHECKING:
    from .consumer import BatchConsumer

T = TypeVar("T")

_LEASE_CHECK_SECONDS = 0.05
#: For this long, a batch that waits for its actor is extended by the runs that follow it.
_GATHER_SECONDS = 1.0


class Batch:
    """A run of records of one partition: all records from offset `start` up to, not including, `end`."""

    __slots__ = ("_consumer", "_gathers_until", "end", "epoch", "generation", "records", "removed", "start", "tp")

    def __init__(self, consumer: BatchConsumer, records: list[Any], tp: TP, start: int, epoch: int) -> None:
        self._consumer = consumer
        self.records = records  #: aiokafka's `ConsumerRecord`s, in order: `key`, `value`, `offset`, `timestamp` (ms)
        self.tp = tp
        self.start = start
        self.removed = 0  #: how many offsets from `start` on Kafka removed before they were read
        self.end: int = records[-1].offset + 1
        self.generation = consumer.app.consumer_generation_id
        self.epoch = epoch
        self._gathers_until = time.monotonic() + _GATHER_SECONDS

    def gather(self, batch: Batch, limit: int) -> bool:
        """Append the following batch while this one waits for its actor, up to `limit` records. True if appended."""
        fits = len(self.records) + len(batch.records) <= limit and time.monotonic() < self._gathers_until
        fits = fits and not batch.removed
        mine, its = (self.end, self.epoch, self.generation), (batch.start, batch.epoch, batch.generation)
        if not fits or mine != its:
            return False
        self.records += batch.records
        self.end = batch.end
        return True

    def freeze(self) -> None:
        """Add no more records to this batch: its actor starts on it."""
        self._consumer.freeze(self)

    @property
    def owned(self) -> bool:
        """False after a rebalance or a seek back: the partition's owner reads the records again."""
        return self._consumer.owns(self)

    def check_owned(self) -> None:
        """Check that the batch is still ours.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        if not self.owned:
            raise PartitionLost(f"{self.tp} was revoked, or is read again from an offset up to {self.start}")

    async def wait_for_lease(self) -> None:
        """Wait until the lease on this partition is confirmed; normally immediate.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        self.check_owned()
        while not self._consumer.app.lease.valid:
            await asyncio.sleep(_LEASE_CHECK_SECONDS)
            self.check_owned()

    async def with_kafka(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Retry `attempt` until Kafka has acknowledged it; see `outage.retrying_kafka`.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        return await retrying_kafka(self._consumer.app.kafka_outage, self, attempt)

    def require_next(self) -> None:
        """Check that the batch is the next in its partition's chain.

        Raises:
            PartitionLost: The batch is not the next in the chain, or no longer ours.
        """
        self._consumer.require_next(self)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold the partition's tables exclusively. The batch is finished when the body ends without an error.

        Raises:
            PartitionLost: The batch is not the next in the chain, or no longer ours. Unfinished records are fetched
                again.
        """
        async with self._consumer.lock(self.tp):
            self._consumer.require_next(self)
            yield
            self._consumer.finish(self)
