"""The consumer: a whole fetched run of records is one event, and nothing unfinished is committed past.

Faust 0.15 loses records in rebalances: a run can be fetched before the seek to the committed offsets and be dropped
after it, a suspended flow cuts off a delivery, a cancelled actor acknowledges what it never finished, and what was
dropped then counts as a hole of the log, so that the next commit passes it. Here every run must start where the last
one ended or a seek went (`Cursor`), every batch knows where it starts, and only the end of an unbroken chain of
finished batches is committed (`Chain`). See docs/ARCHITECTURE.md for the whole argument.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.errors import IllegalStateError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode import Service
from mode.utils.queues import FlowControlEvent

from .chain import Chain, Cursor
from .errors import PartitionLost, Unavailable
from .lease import Lease
from .outage import retrying_kafka

if TYPE_CHECKING:
    from .app import App

T = TypeVar("T")

#: Pause before a run of a changelog is fetched again that could not be taken in.
RETRY_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.05
#: How long Kafka may hold a fetch that finds nothing, after records came and while none come. A partition whose records
#: were just taken is in no fetch that is under way, so its next record may wait as long; Faust has 1500 always.
FETCH_WAIT_MS, IDLE_FETCH_WAIT_MS = 10, 500
#: A batch that waits for its actor takes in what comes meanwhile, for so long.
_GATHER_SECONDS = 1.0


class Batch:
    """A run of records of one partition: everything from offset `start` up to, not including, `end`."""

    __slots__ = ("_consumer", "_gathers_until", "end", "epoch", "generation", "records", "start", "tp")

    def __init__(self, consumer: BatchConsumer, records: list[Any], tp: TP, start: int, epoch: int) -> None:
        self._consumer = consumer
        self.records = records  #: aiokafka's `ConsumerRecord`s, in order: `key`, `value`, `offset`, `timestamp` (ms)
        self.tp = tp
        self.start = start
        self.end: int = records[-1].offset + 1
        self.generation = consumer.app.consumer_generation_id
        self.epoch = epoch
        self._gathers_until = time.monotonic() + _GATHER_SECONDS

    def gather(self, batch: Batch, limit: int) -> bool:
        """Take in the batch that follows, while this one waits for its actor, if they have at most `limit` records."""
        fits = len(self.records) + len(batch.records) <= limit and time.monotonic() < self._gathers_until
        mine, its = (self.end, self.epoch, self.generation), (batch.start, batch.epoch, batch.generation)
        if not fits or mine != its:
            return False
        self.records += batch.records
        self.end = batch.end
        return True

    def freeze(self) -> None:
        """Take in no more records: an actor begins with it."""
        self._consumer.frozen(self)

    @property
    def owned(self) -> bool:
        """False after a rebalance or a step back: the partition's owner gets the batch again."""
        return self._consumer.owns(self)

    def check_owned(self) -> None:
        """Go on only if the batch is still ours.

        Raises:
            PartitionLost: It is not.
        """
        if not self.owned:
            raise PartitionLost(f"{self.tp} went to another worker, or back to an offset before {self.start}")

    async def wait_for_lease(self) -> None:
        """Wait until the lease on this partition is confirmed; normally immediate.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        self.check_owned()
        while not self._consumer.app.lease.valid:
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            self.check_owned()

    async def with_kafka(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until Kafka has acknowledged what `attempt` sends or asks; `outage.retrying_kafka` says more.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        return await retrying_kafka(self._consumer.app.kafka_outage, self, attempt)

    def require_next(self) -> None:
        """Go on only if the batch is the next in the chain of its partition.

        Raises:
            PartitionLost: It is not, or it is no longer ours.
        """
        self._consumer.require_next(self)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have the partition's tables alone; the batch is finished when the body ends without an error.

        Raises:
            PartitionLost: The batch is not the next in the chain, or no longer ours. What is missing before it is
                fetched again.
        """
        async with self._consumer.lock(self.tp):
            self._consumer.require_next(self)
            yield
            self._consumer.finish(self)


class CommittedThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, which reads only what producers committed, and renews the lease by its heartbeats."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust sets it for its own transactions only
        return consumer

    def expect(self, soon: bool) -> None:
        """Ask Kafka to answer at once, or to hold a fetch that finds nothing for longer."""
        fetcher: Any = self._ensure_consumer()._fetcher
        fetcher._fetch_max_wait_ms = FETCH_WAIT_MS if soon else IDLE_FETCH_WAIT_MS

    async def on_start(self) -> None:
        await super().on_start()
        coordinator: Any = self._ensure_consumer()._coordinator
        coordinator._do_heartbeat = self._beating(coordinator._do_heartbeat)

    def _beating(self, beat: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
        lease: Lease = self.consumer.app.lease  # type: ignore[attr-defined]

        async def beating() -> bool:
            sent = lease.clock()
            answered = await beat()
            if answered:
                lease.renew(sent)
            return answered

        return beating


class BatchConsumer(driver.Consumer):
    """Faust's consumer, with one event per fetched run and the chain instead of acknowledgements."""

    app: App
    _thread: CommittedThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._chains: dict[TP, Chain] = {}
        self._cursors: dict[TP, Cursor] = {}
        self._epochs: dict[TP, int] = {}
        self._locks: dict[TP, asyncio.Lock] = {}
        self._waiting: dict[TP, Batch] = {}

    def _new_consumer_thread(self) -> CommittedThread:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)

    def call_in_thread(self, callback: Callable[[], None]) -> None:
        """Call this in the consumer's thread, when its loop comes to it.

        Raises:
            RuntimeError: The thread has ended.
        """
        self._thread.thread_loop.call_soon_threadsafe(callback)

    # -- where to read

    async def perform_seek(self) -> None:
        """Seek every partition to what is committed, or to where its tables are, and start its chain there.

        A table is behind what is committed when somebody began its totals anew: then its records are read again.
        """
        mine = [tp for tp in self.assignment() if tp.topic in self.app.batched_topics]
        for tp in mine:
            self._forget(tp)
        await super().perform_seek()
        starts, fresh = {}, []
        for tp in mine:
            committed = await self._thread.call_thread(self._thread._ensure_consumer().committed, tp)
            if committed:
                starts[tp] = committed
            else:
                fresh.append(tp)
        if fresh:
            for found, offset in (await self.earliest_offsets(*fresh)).items():
                starts[TP(found.topic, found.partition)] = offset
        # The tables are asked last: this seek may have begun before their recovery, and end after it.
        starts = {tp: self._where_tables_are(tp, offset) for tp, offset in starts.items()}
        for tp, offset in starts.items():
            self._forget(tp)  # the recovery's seek and that of a fetch overlap: what came by the other's does not count
            self._chains[tp] = Chain(offset, self._epochs[tp])
            self._cursors[tp] = Cursor(offset)
        # Faust fetches already: what came before the cursors were set was dropped, and must come again.
        for tp, offset in starts.items():
            self._fetch_again(tp, offset)

    def _where_tables_are(self, tp: TP, start: int) -> int:
        tables = [table for table in self.app.readers.values() if table.source == tp.topic]
        return min([start, *(offset for table in tables if (offset := table.next_offset(tp.partition)) is not None)])

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seek, as the recovery of tables does; what was fetched before no longer passes."""
        await super().seek_wait(partitions)
        for tp, offset in partitions.items():
            self._cursors[tp] = Cursor(offset)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin a new lease."""
        self.app.lease.resume()
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit what is done, then forget where these partitions stand: another worker may carry on from there."""
        await super().on_partitions_revoked(revoked)
        self.app.lease.pause()  # Faust has flushed the producer: what an actor still adds would come too late
        for tp in revoked:
            self._forget(tp)

    def _forget(self, tp: TP) -> None:
        self._chains.pop(tp, None)
        self._cursors.pop(tp, None)
        self._waiting.pop(tp, None)
        self._epochs[tp] = self._epochs.get(tp, 0) + 1

    def _fetch_again(self, tp: TP, offset: int) -> None:
        try:
            self._thread.seek(tp, offset)
        except IllegalStateError:  # revoked meanwhile: its next owner starts at the committed offset
            self._forget(tp)

    def _go_back(self, tp: TP, chain: Chain) -> None:
        """Fetch again from the end of the chain; batches that are under way no longer count."""
        chain.epoch = self._epochs[tp] = self._epochs.get(tp, 0) + 1
        self._cursors[tp] = Cursor(chain.done)
        self._fetch_again(tp, chain.done)

    def fetch_unfinished_again(self) -> None:
        """Fetch again what was on its way to the actors and was thrown away; after a rebalance the seek does it."""
        if not self.flow_active:
            return
        for tp, chain in list(self._chains.items()):
            if self._cursors[tp].next != chain.done:
                self._go_back(tp, chain)

    # -- what is read

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield one message per fetched run: a `Batch`, or for a changelog, already taken in, its last record."""
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        self._thread.expect(bool(records))
        if not self.flow_active:
            try:
                await self.perform_seek()
            except (IllegalStateError, KafkaError, Unavailable) as error:  # the seek at a rebalance's end counts
                self.log.info("Not sought while partitions change hands: %s", error)
            return
        for tp, run in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if not run or not (active is None or tp in active or tp in self._buffered_partitions):
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            async for message in self._messages(tp, run):
                if tp in self._cursors:
                    # Faust refuses what it takes for read; a delivery that was held up while we sought back has just
                    # told it so of what it must read again. Here the cursor decides.
                    self._read_offset[tp] = None
                yield tp, message

    async def _messages(self, tp: TP, run: list[Any]) -> AsyncIterator[Any]:
        batched, reader = tp.topic in self.app.batched_topics, self.app.readers.get(tp.topic)
        if not batched and reader is None:
            for record in run:
                yield self._to_message(tp, record)
            return
        cursor = self._cursors.get(tp)
        if cursor is None:
            return  # fetched before we knew where to start: the seek to come brings it back
        start = cursor.next
        if not cursor.admits(run[0].offset):
            self._fetch_again(tp, start)
            return
        if reader is not None:
            try:
                reader.recover(tp.partition, run)
            except Unavailable:  # it said so; the run comes again
                await asyncio.sleep(RETRY_SECONDS)
                self._fetch_again(tp, start)
                return
        cursor.next = run[-1].offset + 1
        if reader is not None:
            yield self._to_message(tp, run[-1])
            return
        batch = Batch(self, run, tp, start, self._epochs.setdefault(tp, 0))
        waiting = self._waiting.get(tp)
        if waiting is None or not waiting.gather(batch, self.app.conf.broker_max_poll_records):
            self._waiting[tp] = batch  # the one behind which the next can be taken in
            yield self._batch_message(batch)

    def frozen(self, batch: Batch) -> None:
        """Add no more records to this batch."""
        if self._waiting.get(batch.tp) is batch:
            del self._waiting[batch.tp]

    def _batch_message(self, batch: Any) -> ConsumerMessage:
        last, unknown_size = batch.records[-1], 0
        return ConsumerMessage(
            last.topic,
            last.partition,
            last.offset,
            (last.timestamp or 0) / 1000,
            last.timestamp_type,
            None,
            None,
            batch,
            None,
            unknown_size,
            unknown_size,
            batch.tp,
            generation_id=batch.generation,
        )

    # -- what is done

    def owns(self, batch: Batch) -> bool:
        """True if the batch's partition is ours, and was not fetched again since."""
        chain = self._chains.get(batch.tp)
        return (
            self.flow_active
            and chain is not None
            and batch.epoch == chain.epoch
            and batch.generation == self.app.consumer_generation_id
        )

    def lock(self, tp: TP) -> asyncio.Lock:
        """After a crash Faust may start an actor beside its predecessor; only one may touch the table."""
        return self._locks.setdefault(tp, asyncio.Lock())

    def require_next(self, batch: Batch) -> None:
        """Let only the batch pass that continues the chain; what another has and is not finished is fetched again.

        Raises:
            PartitionLost: It may not pass.
        """
        batch.check_owned()
        chain = self._chains[batch.tp]
        if chain.continues(batch.start):
            return
        if batch.end > chain.done:  # also one that begins before it, cut otherwise than the ones that were finished
            self._go_back(batch.tp, chain)
        raise PartitionLost(f"{batch.tp}: a batch from {batch.start} does not continue the chain at {chain.done}")

    def finish(self, batch: Batch) -> None:
        """The batch is finished: its end may be committed.

        Raises:
            PartitionLost: The partition went while it was worked on.
        """
        batch.check_owned()
        self._chains[batch.tp].finish(batch.start, batch.end)

    # -- what is committed: the chain's end, whatever Faust thinks was acknowledged or skipped

    @Service.task
    async def _commit_batches(self) -> None:
        while not self.should_stop:
            await self.sleep(self.app.batch_commit_interval)
            if self._chains:
                await self.commit(self.app.batched_topics)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        yield from (tp for tp in self._chains if topics is None or tp in topics or tp.topic in topics)
        for tp in super()._filter_tps_with_pending_acks(topics):
            if tp.topic not in self.app.batched_topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic not in self.app.batched_topics:
            offset: int | None = super()._new_offset(tp)
            return offset
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        chain = self._chains.get(tp)
        return None if chain is None else chain.done

    def _should_commit(self, tp: TP, offset: int) -> bool:
        if tp.topic not in self.app.batched_topics:
            return super()._should_commit(tp, offset)
        # Not what Faust has noted: it notes a commit that Kafka refused, too, and one that was under way in a rebalance
        # after it. Then the offsets of a replay, which are smaller, would never be committed.
        chain = self._chains.get(tp)
        return chain is not None and offset != chain.committed

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        chains = {tp: chain for tp in offsets if (chain := self._chains.get(tp)) is not None}
        committed = await super()._commit_offsets(offsets, start_new_transaction)
        if committed:
            for tp, chain in chains.items():
                chain.committed = offsets[tp]
        return committed

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if tp.topic not in self.app.batched_topics:
            await super()._add_gap(tp, offset_from, offset_to)


class Flow(FlowControlEvent):
    """Faust's flow control, that loses nothing: it empties the actors' queues whenever the flow is resumed.

    At the end of a recovery the flow is already on: what comes between the last seek and that moment would be missing
    until the partition's next record comes.
    """

    def __init__(self, cleared: Callable[[], None]) -> None:
        super().__init__()
        self._cleared = cleared

    def clear(self) -> None:
        """Empty the queues, and have what was on its way through them fetched again."""
        super().clear()
        for queue in self._queues:
            queue.maybe_endorse_pressure_drop()  # else a partition that was paused for a full queue stays so
        self._cleared()
