"""The batch transport: runs that don't fit are fetched again, and only an unbroken chain is committed."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalStateError, KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest
from faust.types import TP
from intervaltree import IntervalTree
from mode.utils.queues import ThrowableQueue

from shopflow import batching
from shopflow.batching import (
    App,
    Batch,
    BatchConsumer,
    Chain,
    Cursor,
    Flow,
    Restarts,
    Session,
    SessionProducer,
    each_batch,
)
from shopflow.errors import PartitionLost, Unavailable

PURCHASES = TP("shop.purchases", 0)
CHANGELOG = TP("shop-counts-changelog", 0)


def run_of(start: int, end: int, tp: TP = PURCHASES) -> list[Any]:
    """Records with the offsets from `start` up to, not including, `end`."""
    fields = {"topic": tp.topic, "partition": tp.partition, "timestamp": 1000, "timestamp_type": 0}
    more = {"key": b"k", "value": b"v", "headers": (), "checksum": None}
    sizes = {"serialized_key_size": 1, "serialized_value_size": 1}
    return [SimpleNamespace(offset=offset, **fields, **more, **sizes) for offset in range(start, end)]


class TestCursor:
    """Where the next run must start."""

    def test_only_the_next_run_passes(self) -> None:
        """A run from before a seek, or from behind a lost one, must not move the reader on."""
        cursor = Cursor(10)
        assert cursor.admits(10)
        assert not cursor.admits(7)
        assert not cursor.admits(12)

    def test_a_hole_passes_when_the_fetch_from_its_start_ends_behind_it_again(self) -> None:
        """Compaction and transactions leave holes; a lost run would have been brought back."""
        cursor = Cursor(10)
        assert not cursor.admits(12)
        assert cursor.admits(12)

    def test_two_different_runs_are_no_hole(self) -> None:
        """Each must come twice in a row."""
        cursor = Cursor(10)
        assert [cursor.admits(first) for first in (12, 13, 12, 9, 12)] == [False] * 5
        assert cursor.admits(12)

    def test_an_older_run_never_passes(self) -> None:
        """However often it comes."""
        cursor = Cursor(10)
        assert [cursor.admits(7) for _ in range(3)] == [False] * 3


class TestChain:
    """What may be committed."""

    def test_it_grows_by_batches_that_continue_it(self) -> None:
        """One after the other."""
        chain = Chain(5, epoch=0)
        chain.finish(5, 9)
        chain.finish(9, 20)
        assert chain.done == 20

    @pytest.mark.parametrize("start", [0, 4, 6, 9])
    def test_nothing_else_moves_it(self, start: int) -> None:
        """Neither a batch from before nor one with something missing before it."""
        chain = Chain(5, epoch=0)
        with pytest.raises(PartitionLost):
            chain.finish(start, 30)
        assert chain.done == 5


class Reader:
    """A table that takes in changelog runs."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, list[int]]] = []

    def recover(self, partition: int, records: list[Any]) -> None:
        self.runs.append((partition, [record.offset for record in records]))


class Consumer(BatchConsumer):
    """The consumer without Kafka: `fetched` is what comes next, `seeks` where it went back to."""

    def __init__(self, app: Any) -> None:  # the real one wants a transport
        self.app = app
        self._chains, self._cursors, self._epochs, self._locks = {}, {}, {}, {}
        self._acked: dict[TP, list[int]] = defaultdict(list)
        self._acked_index: dict[TP, set[int]] = defaultdict(set)
        self._gap: dict[TP, Any] = defaultdict(IntervalTree)
        self._committed_offset: dict[TP, int | None] = defaultdict(lambda: None)
        self._buffered_partitions = set()
        self._read_offset = defaultdict(lambda: None)
        self.flow_active = True
        self.log = batching_log  # type: ignore[assignment]
        self.fetched: dict[TP, list[Any]] | None = {}
        self.seeks: list[tuple[TP, int]] = []
        self._waiting = {}
        self.came: list[bool] = []
        self._thread = SimpleNamespace(  # type: ignore[assignment]
            seek=lambda tp, offset: self.seeks.append((tp, offset)), came=self.came.append
        )
        self.perform_seeks = 0

    def begin(self, tp: TP, offset: int) -> None:
        """As after `perform_seek`."""
        self._chains[tp], self._cursors[tp] = Chain(offset, self._epochs.setdefault(tp, 0)), Cursor(offset)

    should_stop = False  # type: ignore[assignment]

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:
        return self.fetched, None

    async def perform_seek(self) -> None:
        self.perform_seeks += 1

    def highwater(self, tp: TP) -> int:
        return 0


@pytest.fixture
def reader() -> Reader:
    """Of the changelog."""
    return Reader()


@pytest.fixture
def consumer(reader: Reader) -> Consumer:
    """A consumer of one batched topic and one changelog."""
    app = SimpleNamespace(
        batched_topics={PURCHASES.topic},
        readers={CHANGELOG.topic: reader},
        consumer_generation_id=1,
        session=Session(30.0),
        conf=SimpleNamespace(broker_max_poll_records=100),
        monitor=SimpleNamespace(track_tp_end_offset=lambda tp, offset: None),
    )
    return Consumer(app)


def messages(consumer: Consumer, fetched: Mapping[TP, list[Any]]) -> list[Any]:
    """What the consumer makes of this fetch."""
    consumer.fetched = dict(fetched)

    async def collect() -> list[Any]:
        return [message async for _, message in consumer.getmany(timeout=0.1)]

    return asyncio.run(collect())


def batches(consumer: Consumer, *runs: tuple[int, int]) -> list[Batch]:
    """The batches that these runs become, each fetched by itself."""
    found = []
    for start, end in runs:
        for message in messages(consumer, {PURCHASES: run_of(start, end)}):
            message.value.take()
            found.append(message.value)
    return found


def test_a_run_becomes_one_batch_that_knows_where_it_starts(consumer: Consumer) -> None:
    """The offset of the event is that of its last record."""
    consumer.begin(PURCHASES, 5)
    (message,) = messages(consumer, {PURCHASES: run_of(5, 9)})
    assert (message.value.start, message.value.end, message.offset) == (5, 9, 8)
    assert message.value.owned


def test_a_batch_begins_where_the_last_one_ended_also_behind_a_hole(consumer: Consumer) -> None:
    """Else the chain would break at every hole."""
    consumer.begin(PURCHASES, 5)
    assert batches(consumer, (7, 9)) == []
    assert consumer.seeks == [(PURCHASES, 5)]
    (batch,) = batches(consumer, (7, 9))
    assert (batch.start, batch.end) == (5, 9)


def test_what_comes_while_a_batch_waits_for_its_actor_is_taken_into_it(consumer: Consumer) -> None:
    """One write for it all, instead of one after the other: what comes last waits least."""
    consumer.begin(PURCHASES, 5)
    (message,) = messages(consumer, {PURCHASES: run_of(5, 9)})
    assert messages(consumer, {PURCHASES: run_of(9, 10)}) == []
    batch: Batch = message.value
    batch.take()
    assert (batch.start, batch.end, [record.offset for record in batch.records]) == (5, 10, [5, 6, 7, 8, 9])
    (later,) = messages(consumer, {PURCHASES: run_of(10, 12)})
    assert (later.value.start, batch.end) == (10, 10)
    take_turn(batch)
    take_turn(later.value)
    assert consumer._new_offset(PURCHASES) == 12


@pytest.mark.parametrize("change", ["many", "long", "sought", "rebalance"])
def test_a_batch_takes_in_no_more_than_it_may(consumer: Consumer, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what does not follow it; and when it does not get to its actor, it must not swallow what comes."""
    consumer.begin(PURCHASES, 0)
    (first,) = messages(consumer, {PURCHASES: run_of(0, 60)})
    if change == "long":
        later = batching.time.monotonic() + 1.5
        monkeypatch.setattr(batching.time, "monotonic", lambda: later)
    elif change == "sought":
        consumer._forget(PURCHASES)
        consumer.begin(PURCHASES, 60)
    elif change == "rebalance":
        consumer.app.consumer_generation_id = 2  # type: ignore[misc]
    (second,) = messages(consumer, {PURCHASES: run_of(60, 101 if change == "many" else 62)})
    assert (first.value.end, second.value.start) == (60, 60)


def test_kafka_holds_an_empty_fetch_only_while_nothing_comes(consumer: Consumer) -> None:
    """A partition whose records were just taken is in no fetch under way: its next record would wait as long."""
    consumer.begin(PURCHASES, 0)
    messages(consumer, {PURCHASES: run_of(0, 1)})
    messages(consumer, {})
    assert consumer.came == [True, False]


def test_a_run_without_a_known_start_is_dropped(consumer: Consumer) -> None:
    """It was fetched before the seek to the committed offset, which brings it back."""
    assert batches(consumer, (0, 3)) == []
    assert consumer.seeks == []


def test_what_is_fetched_in_a_rebalance_is_dropped(consumer: Consumer) -> None:
    """Another worker may have gone on from there."""
    consumer.begin(PURCHASES, 0)
    consumer.flow_active = False
    assert messages(consumer, {PURCHASES: run_of(0, 3)}) == []
    assert consumer.perform_seeks == 1


def test_runs_after_a_change_of_generation_are_dropped(consumer: Consumer) -> None:
    """A rebalance can happen between two runs of one fetch."""
    other = TP(PURCHASES.topic, 1)
    for tp in (PURCHASES, other):
        consumer.begin(tp, 0)
    consumer.fetched = {PURCHASES: run_of(0, 3), other: run_of(0, 3, other)}

    async def collect() -> list[TP]:
        found = []
        async for tp, _ in consumer.getmany(timeout=0.1):
            found.append(tp)
            consumer.app.consumer_generation_id = 2  # type: ignore[misc]
        return found

    assert asyncio.run(collect()) == [PURCHASES]
    assert consumer._cursors[other].next == 0


def test_a_changelog_run_goes_whole_to_its_table_and_its_last_record_to_faust(
    consumer: Consumer, reader: Reader
) -> None:
    """Faust's recovery counts offsets; it need not see each record."""
    consumer._cursors[CHANGELOG] = Cursor(0)
    (message,) = messages(consumer, {CHANGELOG: run_of(0, 4, CHANGELOG)})
    assert reader.runs == [(0, [0, 1, 2, 3])]
    assert message.offset == 3


def test_a_changelog_run_from_before_a_seek_is_not_taken_in(consumer: Consumer, reader: Reader) -> None:
    """It would move the recovery on, and what it then reads again would be refused as seen."""
    assert messages(consumer, {CHANGELOG: run_of(0, 4, CHANGELOG)}) == []
    consumer._cursors[CHANGELOG] = Cursor(10)
    assert messages(consumer, {CHANGELOG: run_of(0, 4, CHANGELOG)}) == []
    assert consumer.seeks == [(CHANGELOG, 10)]
    assert reader.runs == []


def test_other_topics_come_record_by_record(consumer: Consumer) -> None:
    """An application may have plain agents beside these."""
    plain = TP("plain", 0)
    assert [message.offset for message in messages(consumer, {plain: run_of(3, 6, plain)})] == [3, 4, 5]


def take_turn(batch: Batch, body: Callable[[], None] = lambda: None) -> None:
    """Take the batch's turn."""

    async def take() -> None:
        async with batch.turn():
            body()

    asyncio.run(take())


def test_turns_in_order_move_what_is_committed(consumer: Consumer) -> None:
    """The end of the chain, and nothing else, is offered for the commit."""
    consumer.begin(PURCHASES, 0)
    consumer._acked[PURCHASES], consumer._acked_index[PURCHASES] = [99], {99}
    first, second = batches(consumer, (0, 3), (3, 7))
    take_turn(first)
    assert consumer._new_offset(PURCHASES) == 3
    take_turn(second)
    assert consumer._new_offset(PURCHASES) == 7
    assert list(consumer._filter_tps_with_pending_acks()) == [PURCHASES]


def test_a_batch_whose_predecessor_is_missing_makes_the_consumer_go_back(consumer: Consumer) -> None:
    """And every batch that was fetched meanwhile is void: it comes again."""
    consumer.begin(PURCHASES, 0)
    lost, second, third = batches(consumer, (0, 3), (3, 7), (7, 9))
    with pytest.raises(PartitionLost):
        take_turn(second)
    assert consumer.seeks == [(PURCHASES, 0)]
    assert not any(batch.owned for batch in (lost, second, third))
    assert consumer._new_offset(PURCHASES) == 0
    for batch in batches(consumer, (0, 9)):
        take_turn(batch)
    assert consumer._new_offset(PURCHASES) == 9


def test_what_faust_throws_away_when_it_resumes_the_flow_is_fetched_again(consumer: Consumer) -> None:
    """At the end of a recovery it empties the actors' queues, though records come already."""

    async def resume() -> tuple[list[Batch], list[Batch]]:
        flow = Flow(consumer.fetch_unfinished_again)
        queue: Any = ThrowableQueue(maxsize=2, flow_control=flow, clear_on_resume=True)
        flow.resume()
        full: list[str] = []
        consumer.fetched = {PURCHASES: run_of(0, 3)}
        thrown = [message.value async for _, message in consumer.getmany(timeout=0.1)]
        for batch in (*thrown, *thrown):
            queue.put_nowait_enhanced(
                batch, on_pressure_high=lambda: full.append("full"), on_pressure_drop=lambda: full.append("dropped")
            )
        flow.resume()
        assert queue.empty()
        assert full == ["full", "dropped"]
        return thrown, [message.value async for _, message in consumer.getmany(timeout=0.1)]

    consumer.begin(PURCHASES, 0)
    (thrown,), (again,) = asyncio.run(resume())
    assert consumer.seeks == [(PURCHASES, 0)]
    assert (thrown.owned, again.owned) == (False, True)
    take_turn(again)


@pytest.mark.parametrize("change", ["flow", "finished"])
def test_nothing_is_fetched_again_in_a_rebalance_or_for_what_is_finished(consumer: Consumer, change: str) -> None:
    """There the batch that an actor has in hand may still be finished; here none is missing."""
    consumer.begin(PURCHASES, 0)
    (batch,) = batches(consumer, (0, 3))
    if change == "flow":
        consumer.flow_active = False
    else:
        take_turn(batch)
    consumer.fetch_unfinished_again()
    assert consumer.seeks == []


def test_a_batch_that_was_done_already_is_left(consumer: Consumer) -> None:
    """Nothing is fetched again for it."""
    consumer.begin(PURCHASES, 0)
    (batch,) = batches(consumer, (0, 3))
    take_turn(batch)
    with pytest.raises(PartitionLost):
        take_turn(batch)
    assert consumer.seeks == []


def test_an_error_in_a_turn_leaves_the_batch_unfinished(consumer: Consumer) -> None:
    """It is still the next one."""
    consumer.begin(PURCHASES, 0)
    (batch,) = batches(consumer, (0, 3))

    def fails() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        take_turn(batch, fails)
    assert consumer._new_offset(PURCHASES) == 0
    take_turn(batch)
    assert consumer._new_offset(PURCHASES) == 3


@pytest.mark.parametrize("change", ["flow", "generation", "forgotten"])
def test_a_lost_partition_is_neither_touched_nor_committed(consumer: Consumer, change: str) -> None:
    """Its database may be another worker's by now."""
    consumer.begin(PURCHASES, 0)
    (batch,) = batches(consumer, (0, 3))
    if change == "flow":
        consumer.flow_active = False
    elif change == "generation":
        consumer.app.consumer_generation_id = 2  # type: ignore[misc]
    else:
        consumer._forget(PURCHASES)
    touched: list[int] = []
    with pytest.raises(PartitionLost):
        take_turn(batch, lambda: touched.append(1))
    assert touched == []
    assert consumer._new_offset(PURCHASES) in {0, None}


def test_a_partition_lost_during_a_turn_is_not_finished(consumer: Consumer) -> None:
    """Its successor does the batch again."""
    consumer.begin(PURCHASES, 0)
    (batch,) = batches(consumer, (0, 3))
    with pytest.raises(PartitionLost):
        take_turn(batch, lambda: consumer._forget(PURCHASES))


def test_two_actors_of_one_partition_take_turns(consumer: Consumer) -> None:
    """Faust can start an actor beside a predecessor that is not gone yet."""
    consumer.begin(PURCHASES, 0)
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
    """It takes for a hole what it dropped itself."""
    asyncio.run(consumer._add_gap(PURCHASES, 0, 100))


class Stream:
    """A stream of events with these values."""

    def __init__(self, *values: Any) -> None:
        self.enable_acks = True
        self.acked: list[Any] = []
        self.log = batching_log
        self._values = values

    async def events(self) -> AsyncIterator[Any]:
        for value in self._values:
            yield SimpleNamespace(value=value)

    async def ack(self, event: Any) -> None:
        self.acked.append(event.value)


batching_log = logging.getLogger("tests.batching")


def handed(start: int) -> Any:
    """A batch, as far as an agent cares."""
    return SimpleNamespace(start=start, tp=PURCHASES, take=lambda: None)


class Failing:
    """A handler that raises these, one a call."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.handled: list[Any] = []

    async def __call__(self, batch: Any) -> None:
        self.handled.append(batch.start)
        if self.errors:
            raise self.errors.pop(0)


def test_an_agent_never_raises_and_tries_again_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a Faust agent would acknowledge the batch."""
    monkeypatch.setattr(batching, "RETRY_SECONDS", 0)
    one, two = (
        handed(1),
        SimpleNamespace(start=2, tp=PURCHASES, take=lambda: None),
    )
    handle = Failing(ValueError("a fault"), KeyError("another"))
    stream = Stream(one, two)
    asyncio.run(each_batch(stream, handle))
    assert handle.handled == [1, 1, 1, 2]
    assert stream.acked == [one, two]
    assert not stream.enable_acks


def test_what_keeps_failing_is_said_once_and_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the program: a traceback when it begins, not one a second. What is away, its outage says."""
    monkeypatch.setattr(batching, "RETRY_SECONDS", 0)
    for error, said in ((ValueError("a fault"), ["again", "at the try 31"]), (Unavailable("RocksDB", "full"), [])):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            asyncio.run(each_batch(Stream(handed(1)), Failing(*[error] * 30)))
        lines = [record.getMessage() for record in caplog.records]
        assert [line.endswith(end) for line, end in zip(lines, said, strict=True)] == [True] * len(said)


def test_a_run_of_the_changelog_that_can_not_be_taken_in_comes_again(
    consumer: Consumer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in a recovery: neither a hole in the table nor the end of the worker."""
    monkeypatch.setattr(batching, "RETRY_SECONDS", 0)
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


def test_a_session_is_sure_until_its_timeout_counted_from_the_heartbeat_that_was_sent() -> None:
    """The broker counts from when it came, so it gives our partitions away later than that."""
    clock = [100.0]
    session = Session(30.0, lambda: clock[0])
    assert session.sure, "nothing to lose"
    session.renewed(95.0)
    assert session.sure
    clock[0] = 125.0
    assert not session.sure
    session.renewed(120.0)
    session.renewed(110.0)  # an answer that came late
    assert session.sure


def test_a_rebalance_may_restart_all_actors_at_once() -> None:
    """Faust's supervisor allows one in 10 ms, and ends the worker at the next."""

    async def restart() -> int:
        supervisor = Restarts(max_restarts=1, over=1)
        restarted = 0
        for _ in range(1_000):
            async with supervisor._bucket:
                restarted += 1
        return restarted

    assert asyncio.run(restart()) == 1_000


class Connection:
    """A client that answers what it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_a_sleeper_had_in_hand_is_not_sent_when_it_wakes_up() -> None:
    """Its partitions may be others' by now. Nor is anything sent a second time behind our back."""
    clock = [100.0]
    session = Session(30.0, lambda: clock[0])
    session.renewed(100.0)
    producer = SessionProducer.__new__(SessionProducer)
    producer.app = SimpleNamespace(session=session)  # type: ignore[assignment]
    connection = Connection("sent", KafkaConnectionError("cut"), "metadata")
    guarded = producer._guarded(connection.send)
    produce = ProduceRequest(transactional_id=None, required_acks=-1, timeout=1, topics=[])
    assert asyncio.run(guarded(1, produce)) == "sent"
    with pytest.raises(KafkaError) as cut:
        asyncio.run(guarded(1, produce))
    assert not cut.value.retriable
    clock[0] = 140.0
    with pytest.raises(KafkaError) as slept:
        asyncio.run(guarded(1, produce))
    assert not slept.value.retriable
    assert asyncio.run(guarded(1, MetadataRequest([]))) == "metadata"
    assert len(connection.sent) == 3


def test_nothing_is_sent_between_the_loss_of_partitions_and_the_next_assignment() -> None:
    """The producer was flushed; what an actor adds then would arrive behind its successor's."""
    session = Session(30.0, lambda: 100.0)
    session.renewed(100.0)
    session.pause()
    session.renewed(100.0)  # a heartbeat in the middle of a rebalance
    assert not session.sure
    session.resume()
    assert session.sure


def test_what_faust_takes_for_read_is_delivered_again(consumer: Consumer) -> None:
    """A delivery held up by a full queue says after the seek back how far it had read: the rest would be dropped."""
    consumer.begin(PURCHASES, 0)
    consumer._read_offset[PURCHASES] = 9_999
    (message,) = messages(consumer, {PURCHASES: run_of(0, 5)})
    assert message.offset == 4
    assert consumer._read_offset[PURCHASES] is None


def test_a_batch_waits_while_its_session_may_have_run_out(consumer: Consumer) -> None:
    """The worker slept: until Kafka says so, it can't know whether the partition is still its own."""
    clock = [100.0]
    consumer.begin(PURCHASES, 0)
    (batch,) = batches(consumer, (0, 2))
    consumer.app.session = Session(30.0, lambda: clock[0])  # type: ignore[misc]
    consumer.app.session.renewed(100.0)

    async def story() -> None:
        await asyncio.wait_for(batch.session(), 5)
        clock[0] = 140.0
        waiting = asyncio.create_task(batch.session())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        consumer.app.session.renewed(139.0)
        await asyncio.wait_for(waiting, 5)
        clock[0] = 200.0
        waiting = asyncio.create_task(batch.session())
        await asyncio.sleep(0.1)
        consumer.app.consumer_generation_id += 1
        with pytest.raises(PartitionLost):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(story())


def test_an_agent_leaves_a_batch_that_it_lost() -> None:
    """It is another worker's, or comes again."""
    handle = Failing(PartitionLost("gone"))
    asyncio.run(each_batch(Stream(handed(1)), handle))
    assert handle.handled == [1]


class Builder:
    """aiokafka's BatchBuilder for two records of at most 100 bytes."""

    def __init__(self) -> None:
        self.rows: list[tuple[bytes, bytes]] = []

    def append(self, *, key: bytes, value: bytes, timestamp: None) -> object | None:
        if len(self.rows) == 2 or len(value) > 100:
            return None
        self.rows.append((key, value))
        return object()

    def record_count(self) -> int:
        return len(self.rows)


class Producer:
    """A producer that acknowledges."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[bytes, bytes]]] = []

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
        offset = 100 + sum(map(len, self.sent))
        self.sent.append(batch.rows)

        async def acknowledged() -> Any:
            return SimpleNamespace(offset=offset)

        return acknowledged()


@pytest.fixture
def app(tmp_path: Path) -> App:
    """A Faust application that is never started."""
    return App("test", broker="kafka://127.0.0.1:1", datadir=str(tmp_path))


def test_publish_fills_batches_and_says_where_the_last_record_is(app: App) -> None:
    """Few requests instead of one a record."""
    producer = Producer()
    app.producer = SimpleNamespace(_producer=producer)  # type: ignore[assignment]
    rows = [(b"k%d" % number, b"v") for number in range(5)]
    assert asyncio.run(app.publish("topic", 0, rows)) == 104
    assert producer.sent == [rows[:2], rows[2:4], rows[4:]]


def test_publish_refuses_what_no_batch_can_hold(app: App) -> None:
    """Instead of sending empty batches for ever."""
    app.producer = SimpleNamespace(_producer=Producer())  # type: ignore[assignment]
    with pytest.raises(ValueError, match="larger than a Kafka batch"):
        asyncio.run(app.publish("topic", 0, [(b"k", b"v" * 101)]))


def test_the_servers_may_become_known_late(app: App) -> None:
    """The embedded Kafka has its port only when it runs; Faust must neither warn nor keep the old one."""
    before = app.transport
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.reconfigure(broker="kafka://127.0.0.1:2", broker_consumer="kafka://127.0.0.1:2")
    assert app.transport is not before
    assert [url.port for url in app.conf.broker] == [2]


class FailingProducer(Producer):
    """Has sent all, when each of them fails."""

    async def send_batch(self, batch: Builder, topic: str, *, partition: int) -> Awaitable[Any]:
        delivery = asyncio.get_running_loop().create_future()
        delivery.set_exception(KafkaConnectionError("away"))
        self.sent.append(batch.rows)
        return delivery


def test_a_publish_that_fails_is_one_error(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """asyncio writes a traceback for each failure that nobody looked at."""
    app.producer = SimpleNamespace(_producer=FailingProducer())  # type: ignore[assignment]
    with pytest.raises(KafkaConnectionError):
        asyncio.run(app.publish("topic", 0, [(b"k%d" % number, b"v") for number in range(5)]))
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def test_a_seek_that_fails_in_a_rebalance_does_not_stop_the_consumer(consumer: Consumer) -> None:
    """Kafka may be away just then; Faust seeks again before the flow is resumed."""

    async def fails() -> None:
        raise KafkaConnectionError("away")

    consumer.perform_seek = fails  # type: ignore[method-assign]
    consumer.flow_active = False
    assert messages(consumer, {PURCHASES: run_of(0, 3)}) == []


def test_a_partition_that_went_while_it_was_to_be_fetched_again_is_forgotten(consumer: Consumer) -> None:
    """Its next owner starts at what is committed."""
    consumer.begin(PURCHASES, 0)

    def gone(partition: TP, offset: int) -> None:
        raise IllegalStateError("not assigned")

    consumer._thread.seek = gone  # type: ignore[method-assign]
    assert batches(consumer, (3, 5)) == []
    assert consumer._new_offset(PURCHASES) is None
    assert list(consumer._filter_tps_with_pending_acks()) == []


def test_topics_that_come_record_by_record_are_committed_as_faust_does(consumer: Consumer) -> None:
    """The chain is for those in batches only."""
    plain = TP("plain", 0)
    consumer.begin(PURCHASES, 5)
    consumer._acked[plain], consumer._acked_index[plain] = [3, 4, 6], {3, 4, 6}
    assert list(consumer._filter_tps_with_pending_acks()) == [PURCHASES, plain]
    assert list(consumer._filter_tps_with_pending_acks({"plain"})) == [plain]
    assert consumer._new_offset(plain) == 5
    asyncio.run(consumer._add_gap(plain, 10, 12))
    assert [(gap.begin, gap.end) for gap in consumer._gap[plain]] == [(10, 13)]


class Seeking(Consumer):
    """With the real seeks, over a Faust consumer that does nothing."""

    perform_seek = BatchConsumer.perform_seek  # type: ignore[assignment]

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.committed: dict[TP, int | None] = {PURCHASES: 7, TP(PURCHASES.topic, 1): None, TP("plain", 0): 1}
        self._thread.call_thread = self.call  # type: ignore[method-assign, assignment]
        self._thread._ensure_consumer = lambda: SimpleNamespace(committed=None)  # type: ignore[method-assign, assignment]

    async def call(self, method: Any, tp: TP) -> int | None:
        return self.committed[tp]

    def assignment(self) -> set[TP]:
        return set(self.committed)

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        return dict.fromkeys(partitions, 3)


@pytest.fixture
def seeking(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> Seeking:
    """A consumer of two partitions: one has a committed offset, the other none."""

    async def nothing(*args: Any) -> None:
        return

    for name in ("perform_seek", "seek_wait", "on_partitions_revoked"):
        monkeypatch.setattr(batching.driver.Consumer, name, nothing)
    return Seeking(consumer.app)


def test_a_partition_begins_where_it_was_committed_else_where_it_begins(seeking: Seeking) -> None:
    """A topic whose first records are deleted does not begin at 0."""
    asyncio.run(seeking.perform_seek())
    assert {tp: chain.done for tp, chain in seeking._chains.items()} == {PURCHASES: 7, TP(PURCHASES.topic, 1): 3}
    assert {tp: cursor.next for tp, cursor in seeking._cursors.items()} == {PURCHASES: 7, TP(PURCHASES.topic, 1): 3}


def test_what_was_fetched_while_it_was_not_known_where_to_start_is_fetched_again(seeking: Seeking) -> None:
    """Faust reads already: such runs are dropped, and nothing may come after them that would tell of it."""
    dropped: list[Any] = []
    call = seeking.call

    async def slow(method: Any, tp: TP) -> int | None:
        seeking.fetched = {PURCHASES: run_of(7, 9)}
        dropped.append([message async for message in seeking.getmany(timeout=0.1)])
        return await call(method, tp)

    seeking._thread.call_thread = slow
    asyncio.run(seeking.perform_seek())
    assert dropped[0] == []
    assert sorted(seeking.seeks) == [(PURCHASES, 7), (TP(PURCHASES.topic, 1), 3)]
    (batch,) = batches(seeking, (7, 9))
    assert (batch.start, batch.end) == (7, 9)


def test_a_seek_makes_what_was_fetched_before_void(seeking: Seeking) -> None:
    """The same records come again, as another batch; only that one may be finished."""
    asyncio.run(seeking.perform_seek())
    (before,) = batches(seeking, (7, 9))
    asyncio.run(seeking.perform_seek())
    (after,) = batches(seeking, (7, 9))
    assert (before.owned, after.owned) == (False, True)


def test_a_recovery_begins_where_it_seeks(seeking: Seeking, reader: Reader) -> None:
    """Not where the last one ended."""
    seeking._cursors[CHANGELOG] = Cursor(50)
    asyncio.run(seeking.seek_wait({CHANGELOG: 4}))
    assert messages(seeking, {CHANGELOG: run_of(50, 52, CHANGELOG)}) == []
    assert len(messages(seeking, {CHANGELOG: run_of(4, 6, CHANGELOG)})) == 1
    assert reader.runs == [(0, [4, 5])]


def test_a_revoked_partition_has_nothing_to_commit(seeking: Seeking) -> None:
    """Another worker may be further by now."""
    asyncio.run(seeking.perform_seek())
    (batch,) = batches(seeking, (7, 9))
    asyncio.run(seeking.on_partitions_revoked({PURCHASES}))
    assert not batch.owned
    assert seeking._new_offset(PURCHASES) is None
    assert batches(seeking, (9, 11)) == []


def test_one_record_is_sent_with_its_headers(app: App) -> None:
    """Also one with neither key nor value: a dead letter is as it came."""
    sent: list[Any] = []

    class One:
        def append(self, **fields: Any) -> object:
            sent.append(fields)
            return object()

    class OneProducer:
        def create_batch(self) -> One:
            return One()

        async def send_batch(self, batch: One, topic: str, *, partition: int) -> Awaitable[Any]:
            sent.append((topic, partition))
            return asyncio.sleep(0, "acknowledged")

    app.producer = SimpleNamespace(_producer=OneProducer())  # type: ignore[assignment]

    async def send() -> Any:
        return await (await app.send_record("dead", 2, None, None, [("why", b"x")]))

    assert asyncio.run(send()) == "acknowledged"
    assert sent == [{"key": None, "value": None, "timestamp": None, "headers": [("why", b"x")]}, ("dead", 2)]
