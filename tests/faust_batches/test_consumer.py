"""The consumer: runs that don't follow are fetched again, and only an unbroken chain is committed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from intervaltree import IntervalTree
from mode.utils.queues import ThrowableQueue

from faust_batches import PartitionLost, Troubles, Unavailable
from faust_batches import batch as batching
from faust_batches import consumer as consuming
from faust_batches.batch import Batch
from faust_batches.chain import Chain, Cursor
from faust_batches.consumer import BatchConsumer
from faust_batches.flow import Flow
from faust_batches.lease import Lease
from faust_batches.losses import Losses
from faust_batches.membership import COMMITTED_BY, CommittedThread

from .running import Loop

RECORDS = TP("records", 0)
CHANGELOG = TP("test-counts-changelog", 0)


def run_of(start: int, end: int, tp: TP = RECORDS) -> list[Any]:
    """Records with the offsets from `start` up to, not including, `end`."""
    fields = {"topic": tp.topic, "partition": tp.partition, "timestamp": 1000, "timestamp_type": 0}
    more = {"key": b"k", "value": b"v", "headers": (), "checksum": None}
    sizes = {"serialized_key_size": 1, "serialized_value_size": 1}
    return [SimpleNamespace(offset=offset, **fields, **more, **sizes) for offset in range(start, end)]


log = logging.getLogger("tests.consumer")


class Reader:
    """A fake table, which keeps the changelog runs that it gets."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, list[int]]] = []
        self.source: str | None = None
        self.next: dict[int, int | None] = {}

    def next_offset(self, partition: int) -> int | None:
        return self.next.get(partition)

    def recover(self, partition: int, records: list[Any]) -> None:
        self.runs.append((partition, [record.offset for record in records]))


class Consumer(BatchConsumer):
    """A consumer without Kafka. `fetched` is the next fetch, and `seeks` has its seeks."""

    def __init__(self, app: Any) -> None:  # the real one needs a transport
        self.app = app
        self._chains, self._cursors, self._epochs, self._locks = {}, {}, {}, {}
        self._acked: dict[TP, list[int]] = defaultdict(list)
        self._acked_index: dict[TP, set[int]] = defaultdict(set)
        self._gap: dict[TP, Any] = defaultdict(IntervalTree)
        self._committed_offset: dict[TP, int | None] = defaultdict(lambda: None)
        self._buffered_partitions = set()
        self._read_offset = defaultdict(lambda: None)
        self.flow_active = True
        self.log = log  # type: ignore[assignment]
        self.fetched: dict[TP, list[Any]] | None = {}
        self.seeks: list[tuple[TP, int]] = []
        self._gathering = {}
        self._losses = Losses(app)
        self.end = 1_000
        self.busy: list[bool] = []
        self._thread = SimpleNamespace(  # type: ignore[assignment]
            seek=lambda tp, offset: self.seeks.append((tp, offset)), set_fetch_wait=self.busy.append
        )
        self.perform_seeks = 0
        #: The first offset that Kafka still has; an error if it does not answer.
        self.earliest: int | KafkaError = 0

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        if isinstance(self.earliest, KafkaError):
            raise self.earliest
        return dict.fromkeys(partitions, self.earliest)

    def begin(self, tp: TP, offset: int) -> None:
        """Set the state after a seek to this offset."""
        self._chains[tp], self._cursors[tp] = Chain(offset, self._epochs.setdefault(tp, 0)), Cursor(offset)

    should_stop = False  # type: ignore[assignment]

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        return self.fetched, None

    async def perform_seek(self) -> None:
        self.perform_seeks += 1

    def highwater(self, tp: TP) -> int:
        return self.end


@pytest.fixture
def reader() -> Reader:
    """The table of the changelog."""
    return Reader()


@pytest.fixture
def consumer(reader: Reader) -> Consumer:
    """A consumer of one batched topic and one changelog."""
    app = SimpleNamespace(
        batched_topics={RECORDS.topic},
        readers={CHANGELOG.topic: reader},
        consumer_generation_id=1,
        lease=Lease(30.0),
        serving=True,
        troubles=Troubles(),
        advice={},
        conf=SimpleNamespace(broker_max_poll_records=100),
        monitor=SimpleNamespace(track_tp_end_offset=lambda tp, offset: None),
    )
    return Consumer(app)


def messages(consumer: Consumer, fetched: Mapping[TP, list[Any]]) -> list[Any]:
    """The messages that the consumer makes of a fetch."""
    consumer.fetched = dict(fetched)

    async def collect() -> list[Any]:
        return [message async for _, message in consumer.getmany(timeout=0.1)]

    return asyncio.run(collect())


def batches(consumer: Consumer, *runs: tuple[int, int]) -> list[Batch]:
    """The batches that the consumer makes of these runs, each in a fetch of its own."""
    found = []
    for start, end in runs:
        for message in messages(consumer, {RECORDS: run_of(start, end)}):
            message.value.freeze()
            found.append(message.value)
    return found


def test_a_run_becomes_one_batch_that_knows_where_it_starts(consumer: Consumer) -> None:
    """The batch's event has the offset of its last record."""
    consumer.begin(RECORDS, 5)
    (message,) = messages(consumer, {RECORDS: run_of(5, 9)})
    assert (message.value.start, message.value.end, message.offset) == (5, 9, 8)
    assert message.value.owned


def test_a_batch_begins_where_the_last_one_ended_also_behind_a_hole(consumer: Consumer) -> None:
    """A batch covers the gap before it; otherwise the chain would break at every gap."""
    consumer.begin(RECORDS, 5)
    assert batches(consumer, (7, 9)) == []
    assert consumer.seeks == [(RECORDS, 5)]
    (batch,) = batches(consumer, (7, 9))
    assert (batch.start, batch.end) == (5, 9)


@pytest.mark.parametrize(("earliest", "removed"), [(0, 0), (5, 0), (6, 1), (7, 2), (8, 2)])
def test_a_batch_knows_what_kafka_removed_before_it_was_read(
    consumer: Consumer, earliest: int, removed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Offsets 5 and 6 are missing: ends of transactions, unless the log begins behind them."""
    consumer.begin(RECORDS, 5)
    consumer.earliest = earliest
    assert batches(consumer, (7, 9)) == []
    (batch,) = batches(consumer, (7, 9))
    assert (batch.start, batch.end, batch.removed) == (5, 9, removed)
    told = f"Kafka removed the records at offsets 5 to {4 + removed} before a worker read them; they are lost"
    assert (told in caplog.text) == bool(removed)


def test_a_gap_is_asked_about_until_kafka_answers(consumer: Consumer) -> None:
    """Nothing is taken for removed or for kept while Kafka does not say."""
    consumer.begin(RECORDS, 5)
    consumer.earliest = KafkaError()
    assert [batches(consumer, (7, 9)) for _ in range(2)] == [[], []]
    consumer.earliest = 7
    assert batches(consumer, (7, 9)) == []
    (batch,) = batches(consumer, (7, 9))
    assert batch.removed == 2


def test_a_batch_behind_removed_records_is_not_appended_to_another(consumer: Consumer) -> None:
    """Only the start of a batch says how many records before it were removed from the topic."""
    consumer.begin(RECORDS, 5)
    assert len(messages(consumer, {RECORDS: run_of(5, 9)})) == 1
    consumer.earliest = 11
    assert messages(consumer, {RECORDS: run_of(11, 12)}) == []
    (later,) = messages(consumer, {RECORDS: run_of(11, 12)})
    assert (later.value.start, later.value.removed) == (9, 2)


def test_runs_are_appended_to_a_batch_that_waits_for_its_actor(consumer: Consumer) -> None:
    """Runs that arrive during a write become one batch, so that a slow write makes no queue."""
    consumer.begin(RECORDS, 5)
    (message,) = messages(consumer, {RECORDS: run_of(5, 9)})
    assert messages(consumer, {RECORDS: run_of(9, 10)}) == []
    batch: Batch = message.value
    batch.freeze()
    assert (batch.start, batch.end, [record.offset for record in batch.records]) == (5, 10, [5, 6, 7, 8, 9])
    (later,) = messages(consumer, {RECORDS: run_of(10, 12)})
    assert (later.value.start, batch.end) == (10, 10)
    take_turn(batch)
    take_turn(later.value)
    assert consumer._new_offset(RECORDS) == 12


@pytest.mark.parametrize("change", ["many", "long", "sought", "rebalance"])
def test_a_batch_grows_only_within_its_limits(consumer: Consumer, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes at most the configured number of records, only the run that follows, and only for a short time."""
    consumer.begin(RECORDS, 0)
    (first,) = messages(consumer, {RECORDS: run_of(0, 60)})
    if change == "long":
        later = batching.time.monotonic() + 1.5
        monkeypatch.setattr(batching.time, "monotonic", lambda: later)
    elif change == "sought":
        consumer._forget(RECORDS)
        consumer.begin(RECORDS, 60)
    elif change == "rebalance":
        consumer.app.consumer_generation_id = 2  # type: ignore[misc]
    (second,) = messages(consumer, {RECORDS: run_of(60, 101 if change == "many" else 62)})
    assert (first.value.end, second.value.start) == (60, 60)


def test_kafka_holds_an_empty_fetch_only_while_nothing_comes(consumer: Consumer) -> None:
    """A partition whose records were just taken is in no fetch under way: its next record would wait as long.

    In a recovery the requests for offsets would wait.
    """
    consumer.begin(RECORDS, 0)
    messages(consumer, {RECORDS: run_of(0, 1)})
    messages(consumer, {})
    consumer.app.serving = False  # type: ignore[misc]
    messages(consumer, {})
    assert consumer.busy == [True, False, True]


def test_a_run_without_a_known_start_is_dropped(consumer: Consumer) -> None:
    """A run from before the first seek has no known start. The seek fetches it again."""
    assert batches(consumer, (0, 3)) == []
    assert consumer.seeks == []


def test_runs_fetched_in_a_rebalance_are_dropped(consumer: Consumer) -> None:
    """Another worker may already have continued from the committed offset."""
    consumer.begin(RECORDS, 0)
    consumer.flow_active = False
    assert messages(consumer, {RECORDS: run_of(0, 3)}) == []
    assert consumer.perform_seeks == 1


def test_runs_after_a_change_of_generation_are_dropped(consumer: Consumer) -> None:
    """A rebalance can happen between two runs of one fetch."""
    other = TP(RECORDS.topic, 1)
    for tp in (RECORDS, other):
        consumer.begin(tp, 0)
    consumer.fetched = {RECORDS: run_of(0, 3), other: run_of(0, 3, other)}

    async def collect() -> list[TP]:
        found = []
        async for tp, _ in consumer.getmany(timeout=0.1):
            found.append(tp)
            consumer.app.consumer_generation_id = 2  # type: ignore[misc]
        return found

    assert asyncio.run(collect()) == [RECORDS]
    assert consumer._cursors[other].next == 0


def test_a_changelog_run_goes_whole_to_its_table_and_its_last_record_to_faust(
    consumer: Consumer, reader: Reader
) -> None:
    """Faust's recovery counts offsets, and does not need each record."""
    consumer._cursors[CHANGELOG] = Cursor(0)
    (message,) = messages(consumer, {CHANGELOG: run_of(0, 4, CHANGELOG)})
    assert reader.runs == [(0, [0, 1, 2, 3])]
    assert message.offset == 3


def test_a_changelog_run_from_before_a_seek_is_dropped(consumer: Consumer, reader: Reader) -> None:
    """A run fetched before the seek would make the recovery skip records. It is dropped, and the seek is repeated."""
    assert messages(consumer, {CHANGELOG: run_of(0, 4, CHANGELOG)}) == []
    consumer._cursors[CHANGELOG] = Cursor(10)
    assert messages(consumer, {CHANGELOG: run_of(0, 4, CHANGELOG)}) == []
    assert consumer.seeks == [(CHANGELOG, 10)]
    assert reader.runs == []


def test_other_topics_come_record_by_record(consumer: Consumer) -> None:
    """An application may have Faust's own agents beside batch agents."""
    plain = TP("plain", 0)
    assert [message.offset for message in messages(consumer, {plain: run_of(3, 6, plain)})] == [3, 4, 5]


def take_turn(batch: Batch, body: Callable[[], None] = lambda: None) -> None:
    """Take the batch's turn."""

    async def take() -> None:
        async with batch.turn():
            body()

    asyncio.run(take())


def test_turns_in_order_move_the_committed_offset(consumer: Consumer) -> None:
    """Faust may commit the end of the chain, and nothing else."""
    consumer.begin(RECORDS, 0)
    consumer._acked[RECORDS], consumer._acked_index[RECORDS] = [99], {99}
    first, second = batches(consumer, (0, 3), (3, 7))
    take_turn(first)
    assert consumer._new_offset(RECORDS) == 3
    take_turn(second)
    assert consumer._new_offset(RECORDS) == 7
    assert list(consumer._filter_tps_with_pending_acks()) == [RECORDS]


class Committing(Consumer):
    """A consumer whose commits succeed if `confirms`; `asked` has the commits."""

    in_transaction = False

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.confirms = True
        self.asked: list[dict[TP, int]] = []
        self.log = SimpleNamespace(dev=log.debug, info=log.info)  # type: ignore[assignment]

        async def nothing(*args: Any) -> list[Any]:
            return []

        app.producer = SimpleNamespace(flush=nothing)
        app.tables = SimpleNamespace(on_commit=lambda offsets: None)
        app.monitor.on_tp_commit = lambda offsets: None
        app._attachments = SimpleNamespace(publish_for_tp_offset=nothing)

    def assignment(self) -> set[TP]:
        return set(self._chains)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        self.asked.append(dict(offsets))
        return self.confirms

    def try_commit(self) -> None:
        """Commit as Faust does at intervals."""
        asyncio.run(self._commit_tps(list(self._filter_tps_with_pending_acks()), start_new_transaction=True))


@pytest.fixture
def committing(consumer: Consumer) -> Committing:
    """A consumer whose commits succeed at first."""
    return Committing(consumer.app)


def test_a_confirmed_offset_is_not_committed_again(committing: Committing) -> None:
    """Neither the offset of the first seek nor a confirmed one is committed again."""
    committing.begin(RECORDS, 5)
    committing.try_commit()
    assert committing.asked == []
    take_turn(batches(committing, (5, 9))[0])
    committing.try_commit()
    committing.try_commit()
    assert committing.asked == [{RECORDS: 9}]


def test_a_commit_that_kafka_refused_is_made_again(committing: Committing) -> None:
    """Faust takes the refused commit for done, and would not repeat it before the partition's next record."""
    committing.begin(RECORDS, 5)
    take_turn(batches(committing, (5, 9))[0])
    committing.confirms = False
    committing.try_commit()
    committing.confirms = True
    committing.try_commit()
    committing.try_commit()
    assert committing.asked == [{RECORDS: 9}] * 2


def test_a_replay_commits_offsets_below_those_that_were_committed_before(committing: Committing) -> None:
    """Faust records a commit that was under way during the rebalance, with the old offset."""
    committing.begin(RECORDS, 100)
    take_turn(batches(committing, (100, 109))[0])
    committing.begin(RECORDS, 0)
    committing._committed_offset[RECORDS] = 109
    take_turn(batches(committing, (0, 9))[0])
    committing.try_commit()
    assert committing.asked == [{RECORDS: 9}]


def test_a_commit_that_was_under_way_in_a_rebalance_is_not_the_new_chains(committing: Committing) -> None:
    """A confirmation of the old chain must not keep the new chain from being committed at the same offset."""
    committing.begin(RECORDS, 0)
    take_turn(batches(committing, (0, 9))[0])
    answer = committing._commit

    async def slow(offsets: Mapping[TP, int]) -> bool:
        committing.begin(RECORDS, 0)
        return await answer(offsets)

    committing._commit = slow  # type: ignore[method-assign]
    committing.try_commit()
    committing._commit = answer  # type: ignore[method-assign]
    take_turn(batches(committing, (0, 9))[0])
    committing.try_commit()
    assert committing.asked == [{RECORDS: 9}] * 2


def test_a_batch_whose_predecessor_is_missing_makes_the_consumer_seek_back(consumer: Consumer) -> None:
    """Every batch that was fetched meanwhile is void and is fetched again."""
    consumer.begin(RECORDS, 0)
    lost, second, third = batches(consumer, (0, 3), (3, 7), (7, 9))
    with pytest.raises(PartitionLost):
        take_turn(second)
    assert consumer.seeks == [(RECORDS, 0)]
    assert not any(batch.owned for batch in (lost, second, third))
    assert consumer._new_offset(RECORDS) == 0
    for batch in batches(consumer, (0, 9)):
        take_turn(batch)
    assert consumer._new_offset(RECORDS) == 9


def test_batches_lost_when_faust_empties_the_queues_are_fetched_again(consumer: Consumer) -> None:
    """Faust empties the queues at the end of a recovery, when records arrive already."""

    async def resume() -> tuple[list[Batch], list[Batch]]:
        flow = Flow(consumer.fetch_unfinished_again)
        queue: Any = ThrowableQueue(maxsize=2, flow_control=flow, clear_on_resume=True)
        flow.resume()
        full: list[str] = []
        consumer.fetched = {RECORDS: run_of(0, 3)}
        thrown = [message.value async for _, message in consumer.getmany(timeout=0.1)]
        for batch in (*thrown, *thrown):
            queue.put_nowait_enhanced(
                batch, on_pressure_high=lambda: full.append("full"), on_pressure_drop=lambda: full.append("dropped")
            )
        flow.resume()
        assert queue.empty()
        assert full == ["full", "dropped"]
        return thrown, [message.value async for _, message in consumer.getmany(timeout=0.1)]

    consumer.begin(RECORDS, 0)
    (thrown,), (again,) = asyncio.run(resume())
    assert consumer.seeks == [(RECORDS, 0)]
    assert (thrown.owned, again.owned) == (False, True)
    take_turn(again)


@pytest.mark.parametrize("change", ["flow", "finished"])
def test_nothing_is_fetched_again_in_a_rebalance_or_for_finished_batches(consumer: Consumer, change: str) -> None:
    """In a rebalance an actor may still finish its batch; after finished batches nothing is missing."""
    consumer.begin(RECORDS, 0)
    (batch,) = batches(consumer, (0, 3))
    if change == "flow":
        consumer.flow_active = False
    else:
        take_turn(batch)
    consumer.fetch_unfinished_again()
    assert consumer.seeks == []


def test_a_batch_that_was_done_already_is_left(consumer: Consumer) -> None:
    """A batch that was finished before is dropped without a seek."""
    consumer.begin(RECORDS, 0)
    (batch,) = batches(consumer, (0, 3))
    take_turn(batch)
    with pytest.raises(PartitionLost):
        take_turn(batch)
    assert consumer.seeks == []


def test_a_batch_of_which_a_part_was_done_is_fetched_again_from_there(consumer: Consumer) -> None:
    """If the batch is the partition's last one, no later batch would reveal the missing records."""
    consumer.begin(RECORDS, 0)
    (first,) = batches(consumer, (0, 2))
    consumer._cursors[RECORDS] = Cursor(0)
    (cut_otherwise,) = batches(consumer, (0, 4))
    take_turn(first)
    with pytest.raises(PartitionLost):
        take_turn(cut_otherwise)
    assert consumer.seeks == [(RECORDS, 2)]
    (rest,) = batches(consumer, (2, 4))
    take_turn(rest)
    assert consumer._new_offset(RECORDS) == 4


def test_an_error_in_a_turn_leaves_the_batch_unfinished(consumer: Consumer) -> None:
    """After an error the batch is still the next one of its partition."""
    consumer.begin(RECORDS, 0)
    (batch,) = batches(consumer, (0, 3))

    def fails() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        take_turn(batch, fails)
    assert consumer._new_offset(RECORDS) == 0
    take_turn(batch)
    assert consumer._new_offset(RECORDS) == 3


@pytest.mark.parametrize("change", ["flow", "generation", "forgotten"])
def test_a_lost_partition_is_neither_touched_nor_committed(consumer: Consumer, change: str) -> None:
    """Another worker may already own the partition and write its table."""
    consumer.begin(RECORDS, 0)
    (batch,) = batches(consumer, (0, 3))
    if change == "flow":
        consumer.flow_active = False
    elif change == "generation":
        consumer.app.consumer_generation_id = 2  # type: ignore[misc]
    else:
        consumer._forget(RECORDS)
    touched: list[int] = []
    with pytest.raises(PartitionLost):
        take_turn(batch, lambda: touched.append(1))
    assert touched == []
    assert consumer._new_offset(RECORDS) in {0, None}


def test_a_partition_lost_during_a_turn_is_not_finished(consumer: Consumer) -> None:
    """The partition's next owner handles the batch again."""
    consumer.begin(RECORDS, 0)
    (batch,) = batches(consumer, (0, 3))
    with pytest.raises(PartitionLost):
        take_turn(batch, lambda: consumer._forget(RECORDS))


def test_two_actors_of_one_partition_take_turns(consumer: Consumer) -> None:
    """Faust may restart an actor while the old one still runs."""
    consumer.begin(RECORDS, 0)
    first, second = batches(consumer, (0, 3), (3, 6))
    seen: list[str] = []

    async def actor(batch: Batch, name: str) -> None:
        async with batch.turn():
            seen.append(f"{name} in")
            await asyncio.sleep(0)
            seen.append(f"{name} out")

    async def both() -> None:
        await asyncio.gather(actor(first, "a"), actor(second, "b"))

    asyncio.run(both())
    assert seen == ["a in", "a out", "b in", "b out"]


def test_faust_does_not_fill_gaps_of_batched_topics(consumer: Consumer) -> None:
    """Faust takes records that it dropped itself for a gap, and would commit past them."""
    asyncio.run(consumer._add_gap(RECORDS, 0, 100))


def test_a_changelog_run_that_can_not_be_written_is_fetched_again(
    consumer: Consumer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in a recovery must neither leave out rows nor end the worker."""
    monkeypatch.setattr(consuming, "RETRY_SECONDS", 0)
    consumer.begin(CHANGELOG, 0)
    full = [Unavailable("RocksDB", "full")] * 2
    recover = reader.recover

    def fails(partition: int, records: list[Any]) -> None:
        if full:
            raise full.pop()
        recover(partition, records)

    reader.recover = fails  # type: ignore[method-assign]
    run = run_of(0, 5, CHANGELOG)
    assert [len(messages(consumer, {CHANGELOG: run})) for _ in range(3)] == [0, 0, 1]
    assert consumer.seeks == [(CHANGELOG, 0)] * 2


def test_offsets_that_faust_takes_for_read_are_delivered_again(consumer: Consumer) -> None:
    """A delivery held up by a full queue sets Faust's read offset after the seek back: the records would be dropped."""
    consumer.begin(RECORDS, 0)
    consumer._read_offset[RECORDS] = 9_999
    (message,) = messages(consumer, {RECORDS: run_of(0, 5)})
    assert message.offset == 4
    assert consumer._read_offset[RECORDS] is None


def test_a_batch_waits_while_the_lease_may_have_expired(consumer: Consumer) -> None:
    """A worker that slept learns only from Kafka's next answer whether it still owns the partition."""
    clock = [100.0]
    consumer.begin(RECORDS, 0)
    (batch,) = batches(consumer, (0, 2))
    consumer.app.lease = Lease(30.0, lambda: clock[0])  # type: ignore[misc]
    consumer.app.lease.renew(100.0)

    async def story() -> None:
        await asyncio.wait_for(batch.wait_for_lease(), 5)
        clock[0] = 140.0
        waiting = asyncio.create_task(batch.wait_for_lease())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        consumer.app.lease.renew(139.0)
        await asyncio.wait_for(waiting, 5)
        clock[0] = 200.0
        waiting = asyncio.create_task(batch.wait_for_lease())
        await asyncio.sleep(0.1)
        consumer.app.consumer_generation_id += 1
        with pytest.raises(PartitionLost):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(story())


def test_a_seek_that_fails_in_a_rebalance_does_not_stop_the_consumer(consumer: Consumer) -> None:
    """Kafka may be away just then; Faust seeks again before the flow is resumed."""

    async def fails() -> None:
        raise KafkaConnectionError("away")

    consumer.perform_seek = fails  # type: ignore[method-assign]
    consumer.flow_active = False
    assert messages(consumer, {RECORDS: run_of(0, 3)}) == []


def test_a_partition_that_went_while_it_was_to_be_fetched_again_is_forgotten(consumer: Consumer) -> None:
    """The next owner of the partition starts at the committed offset."""
    consumer.begin(RECORDS, 0)

    def gone(partition: TP, offset: int) -> None:
        raise IllegalStateError("not assigned")

    consumer._thread.seek = gone  # type: ignore[method-assign]
    assert batches(consumer, (3, 5)) == []
    assert consumer._new_offset(RECORDS) is None
    assert list(consumer._filter_tps_with_pending_acks()) == []


class Client:
    """A fake of aiokafka's consumer of two partitions. `seeks` has partition, offset and thread of each seek."""

    def __init__(self) -> None:
        self.assigned = {RECORDS, CHANGELOG}
        self.seeks: list[tuple[TP, int, int]] = []

    def assignment(self) -> set[TP]:
        return self.assigned

    def seek(self, tp: TP, offset: int) -> None:
        if tp not in self.assigned:
            raise IllegalStateError("not assigned")
        self.seeks.append((tp, offset, threading.get_ident()))


def thread_of(client: Client, loop: asyncio.AbstractEventLoop) -> CommittedThread:
    """A consumer's thread with this client, and with this event loop as its own."""
    thread = CommittedThread.__new__(CommittedThread)
    thread._consumer, thread.thread_loop = client, loop  # type: ignore[assignment]
    return thread


def test_a_seek_happens_in_the_consumers_own_thread() -> None:
    """aiokafka's fetcher is not thread-safe: a seek from outside took a partition's records while they were read."""
    client = Client()
    with Loop() as loop:
        thread = thread_of(client, loop._loop)
        thread.seek(RECORDS, 7)
        loop.run(asyncio.sleep(0))  # the seek, scheduled before, has run
        assert client.seeks == [(RECORDS, 7, loop._thread.ident)]
        client.assigned = {CHANGELOG}
        with pytest.raises(IllegalStateError):
            thread.seek(RECORDS, 8)
    with pytest.raises(IllegalStateError):
        thread.seek(CHANGELOG, 8)  # its loop is closed: the worker ends


def test_a_seek_to_a_partition_that_is_revoked_meanwhile_does_nothing() -> None:
    """An error there would end the consumer's thread, and so the worker."""
    client = Client()
    loop = asyncio.new_event_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    thread_of(client, loop).seek(RECORDS, 7)
    client.assigned = set()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert (client.seeks, errors) == ([], [])


def test_topics_that_come_record_by_record_are_committed_as_faust_does(consumer: Consumer) -> None:
    """Only topics with batch agents are committed by the chain."""
    plain = TP("plain", 0)
    consumer.begin(RECORDS, 5)
    consumer._acked[plain], consumer._acked_index[plain] = [3, 4, 6], {3, 4, 6}
    assert list(consumer._filter_tps_with_pending_acks()) == [RECORDS, plain]
    assert list(consumer._filter_tps_with_pending_acks({"plain"})) == [plain]
    assert consumer._new_offset(plain) == 5
    assert consumer._should_commit(plain, 5)
    consumer._committed_offset[plain] = 5
    assert not consumer._should_commit(plain, 5)
    asyncio.run(consumer._add_gap(plain, 10, 12))
    assert [(gap.begin, gap.end) for gap in consumer._gap[plain]] == [(10, 13)]


class Seeking(Consumer):
    """A consumer with the real `perform_seek`, over a Faust consumer that does nothing."""

    perform_seek = BatchConsumer.perform_seek  # type: ignore[assignment]

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.earliest = 3
        self.committed: dict[TP, int | None] = {RECORDS: 7, TP(RECORDS.topic, 1): None, TP("plain", 0): 1}
        self.metadata = COMMITTED_BY
        self._thread.committed_with_metadata = self.found  # type: ignore[method-assign]

    async def found(self, partitions: list[TP]) -> dict[TP, Any]:
        offsets = {tp: self.committed[tp] for tp in partitions}
        return {tp: OffsetAndMetadata(offset, self.metadata) for tp, offset in offsets.items() if offset is not None}

    def assignment(self) -> set[TP]:
        return set(self.committed)

    async def highwaters(self, *partitions: TP) -> dict[TP, int]:
        return dict.fromkeys(partitions, self.end)


@pytest.fixture
def seeking(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> Seeking:
    """A consumer of two partitions: one has a committed offset, the other none."""

    async def nothing(*args: Any) -> None:
        return

    for name in ("perform_seek", "seek_wait", "on_partitions_revoked"):
        monkeypatch.setattr(consuming.driver.Consumer, name, nothing)
    return Seeking(consumer.app)


def test_a_partition_starts_at_its_committed_or_first_offset(seeking: Seeking) -> None:
    """A topic whose first records are deleted does not begin at 0."""
    asyncio.run(seeking.perform_seek())
    assert {tp: chain.done for tp, chain in seeking._chains.items()} == {RECORDS: 7, TP(RECORDS.topic, 1): 3}
    assert {tp: cursor.next for tp, cursor in seeking._cursors.items()} == {RECORDS: 7, TP(RECORDS.topic, 1): 3}


@pytest.mark.parametrize(
    ("next_offset", "start"),
    [(None, 7), (7, 7), (9, 7), (5, 5), (0, 3)],
    ids=["none", "level", "ahead", "behind", "anew"],
)
def test_a_partition_whose_table_is_behind_is_read_from_the_tables_offset(
    seeking: Seeking, reader: Reader, next_offset: int | None, start: int
) -> None:
    """A replay reset the totals, and the worker rejoined before the committed offset was set.

    What Kafka has removed before that was read once: it is not waited for, and is no loss.
    """
    reader.source, reader.next = RECORDS.topic, {0: next_offset}
    asyncio.run(seeking.perform_seek())
    assert seeking._chains[RECORDS].done == seeking._cursors[RECORDS].next == start
    assert (RECORDS, start) in seeking.seeks
    assert seeking._chains[TP(RECORDS.topic, 1)].done == 3
    assert seeking.app.troubles.present == []


def test_the_tables_offset_is_read_last(seeking: Seeking, reader: Reader) -> None:
    """A fetch's seek may begin before the table's recovery and end after it."""
    call, reader.source = seeking.found, RECORDS.topic

    async def slow(partitions: list[TP]) -> dict[TP, Any]:
        reader.next = {0: 2}
        return await call(partitions)

    seeking._thread.committed_with_metadata = slow
    asyncio.run(seeking.perform_seek())
    assert seeking._chains[RECORDS].done == 2


def test_runs_fetched_before_the_first_seek_are_fetched_again(seeking: Seeking) -> None:
    """Such runs are dropped, and no later run may arrive to reveal it."""
    dropped: list[Any] = []
    call = seeking.found

    async def slow(partitions: list[TP]) -> dict[TP, Any]:
        seeking.fetched = {RECORDS: run_of(7, 9)}
        dropped.append([message async for message in seeking.getmany(timeout=0.1)])
        return await call(partitions)

    seeking._thread.committed_with_metadata = slow
    asyncio.run(seeking.perform_seek())
    assert dropped[0] == []
    assert sorted(seeking.seeks) == [(RECORDS, 7), (TP(RECORDS.topic, 1), 3)]
    (batch,) = batches(seeking, (7, 9))
    assert (batch.start, batch.end) == (7, 9)


def test_a_seek_makes_batches_fetched_before_void(seeking: Seeking) -> None:
    """The same records are fetched again as another batch; only that batch may be finished."""
    asyncio.run(seeking.perform_seek())
    (before,) = batches(seeking, (7, 9))
    asyncio.run(seeking.perform_seek())
    (after,) = batches(seeking, (7, 9))
    assert (before.owned, after.owned) == (False, True)


def test_batches_between_two_overlapping_seeks_are_void(seeking: Seeking) -> None:
    """A fetch seeks while the flow is off, and so does the end of the recovery. Each starts a new chain."""
    call, came = seeking.found, list[Batch]()

    async def overlapped(partitions: list[TP]) -> dict[TP, Any]:
        seeking._thread.committed_with_metadata = call
        await seeking.perform_seek()
        seeking.fetched = {RECORDS: run_of(7, 9)}
        came.extend([message.value async for _, message in seeking.getmany(timeout=0.1)])
        return await call(partitions)

    seeking._thread.committed_with_metadata = overlapped
    asyncio.run(seeking.perform_seek())
    assert [batch.owned for batch in came] == [False]
    (after,) = batches(seeking, (7, 9))
    assert after.owned


def test_a_recovery_begins_where_it_seeks(seeking: Seeking, reader: Reader) -> None:
    """A recovery does not continue where the last one ended: changelog records before its seek are dropped."""
    seeking._cursors[CHANGELOG] = Cursor(50)
    asyncio.run(seeking.seek_wait({CHANGELOG: 4}))
    assert messages(seeking, {CHANGELOG: run_of(50, 52, CHANGELOG)}) == []
    assert len(messages(seeking, {CHANGELOG: run_of(4, 6, CHANGELOG)})) == 1
    assert reader.runs == [(0, [4, 5])]


def test_a_revoked_partition_has_nothing_to_commit(seeking: Seeking) -> None:
    """Another worker may already have committed a later offset."""
    asyncio.run(seeking.perform_seek())
    (batch,) = batches(seeking, (7, 9))
    asyncio.run(seeking.on_partitions_revoked({RECORDS}))
    assert not batch.owned
    assert seeking._new_offset(RECORDS) is None
    assert batches(seeking, (9, 11)) == []


def test_a_fetch_begins_as_soon_as_there_is_a_partition(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with nothing to fetch from, the consumer looks around after a second. Faust looks only then."""
    looks = 0

    def active() -> set[TP]:
        nonlocal looks
        looks += 1
        return {RECORDS} if looks == 3 else set()

    async def fetch(self: Any, timeout: float) -> tuple[Any, Any]:
        return {RECORDS: run_of(0, 1)}, {RECORDS}

    monkeypatch.setattr(driver.Consumer, "_wait_next_records", fetch)
    monkeypatch.setattr(consumer, "_get_active_partitions", active)
    monkeypatch.setattr(consumer, "sleep", asyncio.sleep)

    async def story() -> None:
        began = time.monotonic()
        records, partitions = await BatchConsumer._wait_next_records(consumer, 1.0)
        assert (list(records), partitions, looks) == ([RECORDS], {RECORDS}, 3)
        assert time.monotonic() - began < 0.5
        assert await BatchConsumer._wait_next_records(consumer, 1.0) == ({}, set())

    asyncio.run(story())
