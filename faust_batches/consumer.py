"""The consumer: each fetched run of records is one event, and no offset beyond an unfinished record is committed.

Faust 0.15 loses records in rebalances. A run can be fetched before the seek to the committed offsets and be dropped
after it. A suspended flow cuts off a delivery. A cancelled actor acknowledges events that it never finished. Faust
takes the dropped records for a gap in the log, and its next commit passes them. Here every run must start where the
last one ended or where a seek went (`Cursor`), every batch knows its start, and only the end of an unbroken chain of
finished batches is committed (`Chain`). docs/ARCHITECTURE.md has the whole argument.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka.errors import IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from mode import Service

from .batch import Batch
from .chain import Chain, Cursor
from .errors import PartitionLost, Unavailable
from .losses import Losses
from .membership import COMMITTED_BY, CommittedThread
from .standstill import Standstills
from .unreadable import Unreadable

if TYPE_CHECKING:
    from .app import App
    from .table import Table

#: Pause before a changelog run that could not be written to the table is fetched again.
RETRY_SECONDS = 1.0
#: Between two looks whether there is a partition to fetch from.
_PARTITIONS_SECONDS = 0.02
#: Between two looks at the partitions that stand still.
_STANDSTILL_SECONDS = 2.0


class BatchConsumer(driver.Consumer):
    """Faust's consumer, with one event per fetched run, and with the chain in place of acknowledgements."""

    app: App
    _thread: CommittedThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._chains: dict[TP, Chain] = {}
        self._cursors: dict[TP, Cursor] = {}
        self._epochs: dict[TP, int] = {}
        self._locks: dict[TP, asyncio.Lock] = {}
        self._gathering: dict[TP, Batch] = {}  # waiting for their actors: the next run can be appended
        self.standstills = Standstills(self.app)
        self._losses = Losses(self.app)

    def _new_consumer_thread(self) -> CommittedThread:
        return CommittedThread(self, loop=self.loop, beacon=self.beacon)

    def call_in_thread(self, callback: Callable[[], None]) -> None:
        """Schedule this on the event loop of the consumer's thread.

        Raises:
            RuntimeError: The thread has ended.
        """
        self._thread.thread_loop.call_soon_threadsafe(callback)

    # -- the offsets to read from

    async def perform_seek(self) -> None:
        """Seek each partition to its committed offset, or to its tables' next offset if smaller. Start its chain there.

        A table's next offset is smaller when its totals were reset: then its records are read again.
        """
        mine = [tp for tp in self.assignment() if tp.topic in self.app.batched_topics]
        for tp in mine:
            self._forget(tp)
        await super().perform_seek()
        if not mine:
            return
        found = await self._thread.committed_with_metadata(mine)
        committed = {tp: one.offset for tp, one in found.items()}
        earliest = await self.earliest_offsets(*mine)
        ends = await self.highwaters(*mine)
        # The tables are read last: their recovery may run during this seek.
        starts = {tp: self._start(tp, committed.get(tp), earliest[tp]) for tp in mine}
        for tp, start in starts.items():
            self._look_for_losses(tp, found.get(tp), start, earliest[tp], ends[tp])
        for tp, offset in starts.items():
            self._forget(tp)  # two seeks may overlap (the recovery's and a fetch's): batches of the other do not count
            self._chains[tp] = Chain(offset, self._epochs[tp])
            self._cursors[tp] = Cursor(offset)
        # Faust is fetching already. Runs that arrived before the cursors were set are dropped: fetch them again.
        for tp, offset in starts.items():
            self._fetch_again(tp, offset)

    def _start(self, tp: TP, committed: int | None, earliest: int) -> int:
        start, counted = earliest if committed is None else committed, self._counted(tp)
        if counted == 0 and committed is not None:  # the totals were reset: what Kafka has removed was read before
            counted = min(committed, earliest)
        return start if counted is None else min(start, counted)

    def _look_for_losses(self, tp: TP, found: OffsetAndMetadata | None, start: int, earliest: int, end: int) -> None:
        counted = self._counted(tp)
        if found is None:
            self._losses.look(tp, counted or start, start, earliest, end)
            return
        metadata = found.metadata or ""
        ours = metadata.startswith(COMMITTED_BY)
        read = found.offset if counted is None else max(found.offset, counted) if ours else counted
        self._losses.look(tp, read, start, earliest, end)
        if counted is not None or not self._tables(tp):  # else the tables are not recovered yet
            self._losses.started(tp, found.offset, metadata, counted, earliest)

    def _counted(self, tp: TP) -> int | None:
        """The offset up to which all tables of the partition have counted; None if it has none."""
        offsets = [offset for table in self._tables(tp) if (offset := table.next_offset(tp.partition)) is not None]
        return min(offsets, default=None)

    def _tables(self, tp: TP) -> list[Table]:
        return [table for table in self.app.readers.values() if table.source == tp.topic]

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seek changelogs, called by the table recovery. Runs that were fetched before no longer pass."""
        await super().seek_wait(partitions)
        for tp, offset in partitions.items():
            self._cursors[tp] = Cursor(offset)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin a new lease."""
        self.app.lease.resume()
        self._thread.joined()
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit the finished batches, then drop these partitions' chains: another worker may continue from there."""
        await super().on_partitions_revoked(revoked)
        self.app.lease.pause()  # Faust has flushed the producer: records that actors send from now on would be too late
        for tp in revoked:
            self._forget(tp)

    def _forget(self, tp: TP) -> None:
        self._chains.pop(tp, None)
        self._cursors.pop(tp, None)
        self._gathering.pop(tp, None)
        self._epochs[tp] = self._epochs.get(tp, 0) + 1

    def _fetch_again(self, tp: TP, offset: int) -> None:
        try:
            self._thread.seek(tp, offset)
        except IllegalStateError:  # revoked meanwhile: the next owner starts at the committed offset
            self._forget(tp)

    def _go_back(self, tp: TP, chain: Chain) -> None:
        """Fetch again from the end of the chain. Batches under way no longer count."""
        chain.epoch = self._epochs[tp] = self._epochs.get(tp, 0) + 1
        self._cursors[tp] = Cursor(chain.done)
        self._fetch_again(tp, chain.done)

    def fetch_unfinished_again(self) -> None:
        """Fetch unfinished records again after the actors' queues were emptied. In a rebalance the seek does it."""
        if not self.flow_active:
            return
        for tp, chain in list(self._chains.items()):
            if self._cursors[tp].next != chain.done:
                self._go_back(tp, chain)

    # -- reading

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Yield a message per fetched run: a `Batch`; for a changelog, its last record after the table has the run."""
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if records is None or self.should_stop:
            return
        self._thread.set_fetch_wait(bool(records) or not self.app.serving)
        if not self.flow_active:
            try:
                await self.perform_seek()
            except (IllegalStateError, KafkaError, Unavailable) as error:  # the rebalance ends with another seek
                self.log.info("The seek failed during a rebalance: %s", error)
            return
        for tp, run in records.items():
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if not run or not (active is None or tp in active or tp in self._buffered_partitions):
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            async for message in self._messages(tp, run):
                if tp in self._cursors:
                    # Faust refuses offsets up to its read offset. A delivery that was suspended during a seek back has
                    # just raised it above records that must be read again. Here the cursor decides.
                    self._read_offset[tp] = None
                yield tp, message

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        """Fetch, as soon as there is a partition to fetch from.

        Faust looks for one once a second: a recovery, or records behind full queues, would wait for that.
        """
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]
        for _ in range(round(1 / _PARTITIONS_SECONDS)):
            if self._get_active_partitions():
                return await super()._wait_next_records(timeout)
            await self.sleep(_PARTITIONS_SECONDS)
        return {}, set()

    async def _messages(self, tp: TP, run: list[Any]) -> AsyncIterator[Any]:
        batched, reader = tp.topic in self.app.batched_topics, self.app.readers.get(tp.topic)
        if not batched and reader is None:
            for message in self._plain_messages(tp, run):
                yield message
            return
        cursor = self._cursors.get(tp)
        if cursor is None:
            return  # fetched before the first seek, which fetches it again
        start = cursor.next
        removed = await self._admitted(tp, cursor, run[0].offset)
        if removed is None:
            return
        if reader is not None:
            try:
                reader.recover(tp.partition, run)
            except Unavailable:  # logged as an outage
                await asyncio.sleep(RETRY_SECONDS)
                self._fetch_again(tp, start)
                return
        cursor.next = run[-1].offset + 1
        if reader is not None:
            yield self._to_message(tp, getattr(run[-1], "rest", run[-1]))
            return
        batch = Batch(self, run, tp, start, self._epochs.setdefault(tp, 0))
        batch.removed = removed
        gathering = self._gathering.get(tp)
        if gathering is None or not gathering.gather(batch, self.app.conf.broker_max_poll_records):
            self._gathering[tp] = batch
            yield self._batch_message(batch)

    async def _admitted(self, tp: TP, cursor: Cursor, first: int) -> int | None:
        """The number of offsets before this run that Kafka has removed unread; None: the run may not pass.

        Other gaps before a run are the ends of transactions, or records that compaction replaced by newer ones.
        """
        start = cursor.next
        if not cursor.admits(first):
            end = self.highwater(tp)  # None: not known in a new assignment
            short = first < start and end is not None and end < start
            if short and cursor.short:
                self._losses.too_short(tp, end, start)  # nothing is there to fetch again
            else:  # the end that came with records may be older than they are
                cursor.short = short
                self._fetch_again(tp, start)
            return None
        cursor.short = False
        self._losses.long_enough(tp)
        if first == start or tp.topic not in self.app.batched_topics:
            return 0
        try:
            (earliest,) = (await self.earliest_offsets(tp)).values()
        except KafkaError:
            self._fetch_again(tp, start)
            return None
        if self._cursors.get(tp) is not cursor:  # a seek meanwhile
            return None
        removed: int = min(earliest, first) - start
        if removed > 0:
            self._losses.removed(tp, start, start + removed)
        return max(0, removed)

    def _plain_messages(self, tp: TP, run: list[Any]) -> Iterator[Any]:
        for record in run:
            try:
                message = self._to_message(tp, record)
            except Unreadable as error:
                self.log.error("%s[%d]: %s can't be read: %s", *tp, error.record.offsets, error)
                if not error.record.whole:
                    continue
                message = self._to_message(tp, error.record.rest)
            yield message

    def freeze(self, batch: Batch) -> None:
        """Add no more records to this batch."""
        if self._gathering.get(batch.tp) is batch:
            del self._gathering[batch.tp]

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

    # -- finishing batches

    def owns(self, batch: Batch) -> bool:
        """True if the batch's partition is ours, and no seek followed the batch."""
        chain = self._chains.get(batch.tp)
        return (
            self.flow_active
            and chain is not None
            and batch.epoch == chain.epoch
            and batch.generation == self.app.consumer_generation_id
        )

    def lock(self, tp: TP) -> asyncio.Lock:
        """The lock on a partition's tables: Faust may restart an actor while the old one still runs."""
        return self._locks.setdefault(tp, asyncio.Lock())

    def require_next(self, batch: Batch) -> None:
        """Check that the batch continues the chain. If it has unfinished records but does not, fetch these again.

        Raises:
            PartitionLost: The batch does not continue the chain, or is no longer ours.
        """
        batch.check_owned()
        chain = self._chains[batch.tp]
        if chain.continues(batch.start):
            return
        if batch.end > chain.done:  # also if it starts before the chain's end: runs can be cut at other offsets
            self._go_back(batch.tp, chain)
        raise PartitionLost(f"{batch.tp}: a batch from {batch.start} does not continue the chain at {chain.done}")

    def finish(self, batch: Batch) -> None:
        """Extend the chain: the batch's end may be committed.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        batch.check_owned()
        self._chains[batch.tp].finish(batch.start, batch.end)

    @Service.task
    async def _look_at_standstills(self) -> None:
        while not self.should_stop:
            await self.sleep(_STANDSTILL_SECONDS)
            await self.standstills.look(self._thread.positions)
            self._losses.look_again(self.assignment())

    # -- committing: the chain's end only, whatever Faust considers acknowledged or skipped

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
        # Faust's own record of committed offsets is wrong after a commit that Kafka refused, or one that was under way
        # during a rebalance. Then the smaller offsets of a replay would never be committed.
        chain = self._chains.get(tp)
        return chain is not None and offset != chain.committed

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        chains = {tp: chain for tp in offsets if (chain := self._chains.get(tp)) is not None}
        committed = await super()._commit_offsets(offsets, start_new_transaction)
        if committed:
            for tp, chain in chains.items():
                chain.committed = offsets[tp]
                if self._tables(tp):
                    self._losses.caught_up(tp)
        return committed

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Leave out our topics: a batch that waits for a server is no stream that stopped, and is told as an outage.

        Faust would log ten lines for each partition, several times a second. Chains take the place of what it checks.
        """
        if tp.topic not in self.app.batched_topics and tp.topic not in self.app.readers:
            super().verify_event_path(now, tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if tp.topic not in self.app.batched_topics:
            await super()._add_gap(tp, offset_from, offset_to)
