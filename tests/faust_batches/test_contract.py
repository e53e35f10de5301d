"""The guarantees for a handler hold for the fakes of `faust_batches.testing` and in a real application.

The real application gets its records from Kafka, and its table is in RocksDB. Each test has a partition of its own.
"""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import count
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError

from faust_batches import TOTALS_KEY, App, PartitionLost
from faust_batches.rocks import Row
from faust_batches.testing import FakeBatch, FakeRecord, FakeTable

from .running import SESSION, Kafka, Loop
from .tally import SUMS, counted, decoded

PARTITIONS = 24


class Side(ABC):
    """A partition with its batches and its table. A test has one batch at a time."""

    table: Any
    partition: int

    @abstractmethod
    async def batch(self, *records: Row) -> Any:
        """The batch of these new records, which follow the earlier ones."""

    @abstractmethod
    async def skip(self, *records: Row) -> Any:
        """The batch of these new records, while the current one is not finished."""

    @abstractmethod
    async def again(self, *more: Row) -> Any:
        """The batch that comes when the current one is lost: its records again, and these new ones after them."""

    @abstractmethod
    async def changelog(self) -> list[Row]:
        """The rows that were published to the table's changelog."""


class Fake(Side):
    """The fakes of `faust_batches.testing`."""

    def __init__(self) -> None:
        self.table = FakeTable()
        self.partition = 3
        self._offsets = count()
        self._hand: Any = None

    async def batch(self, *records: Row) -> Any:
        self._hand = FakeBatch(self._records(records))
        return self._hand

    async def skip(self, *records: Row) -> Any:
        return FakeBatch(self._records(records), early=True)

    async def again(self, *more: Row) -> Any:
        self._hand.lost = True
        self._hand = FakeBatch([*self._hand.records, *self._records(more)])
        return self._hand

    async def changelog(self) -> list[Row]:
        return list(self.table.changelog)

    def _records(self, records: Sequence[Row]) -> list[FakeRecord]:
        return [FakeRecord(key, value, next(self._offsets), self.partition) for key, value in records]


class Application:
    """A real application, whose agent hands each batch to a test and waits until the test is done with it."""

    def __init__(self, broker: str, topic: str, folder: str) -> None:
        self.topic = topic
        self.app = App(
            f"{topic}-app", broker=broker, datadir=folder, web_enabled=False, topic_partitions=PARTITIONS,
            store="rocksdb://?driver=rocksdict", **SESSION,
        )  # fmt: skip
        options = {"write_buffer_size": 1 << 20, "block_cache_size": 1 << 20}
        self.table = self.app.exactly_once_table("tally", value=None, sums=SUMS, source=self.topic, options=options)
        self.inbox: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(PARTITIONS)]
        self.done = [asyncio.Event() for _ in range(PARTITIONS)]
        self.app.batch_agent(self.topic, finish="in_handler")(self.hand_over)
        self.unused = iter(range(PARTITIONS))

    async def hand_over(self, batch: Any) -> None:
        """Give the batch to a test."""
        done = self.done[batch.tp.partition] = asyncio.Event()
        await self.inbox[batch.tp.partition].put(batch)
        await done.wait()


class Real(Side):
    """A partition of the real application."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.table = application.table
        self.partition = next(application.unused)

    async def batch(self, *records: Row) -> Any:
        self.application.done[self.partition].set()
        producer: Any = self.application.app.producer._producer  # type: ignore[attr-defined]
        builder = producer.create_batch()
        for key, value in records:
            assert builder.append(key=key, value=value, timestamp=None)
        await (await producer.send_batch(builder, self.application.topic, partition=self.partition))
        return await self.application.inbox[self.partition].get()

    async def skip(self, *records: Row) -> Any:
        return await self.batch(*records)

    async def again(self, *more: Row) -> Any:
        early = await self.skip(*more)
        with pytest.raises(PartitionLost):
            early.require_next()  # so the consumer seeks back to the unfinished batch
        self.application.done[self.partition].set()
        return await self.application.inbox[self.partition].get()

    async def changelog(self) -> list[Row]:
        rows: list[Row] = []
        await self.application.app.read_partition(
            self.table.changelog_topic_name,
            self.partition,
            lambda partition, run: rows.extend((record.key, record.value) for record in run),
        )
        return rows


@pytest.fixture(scope="module")
def application(kafka: Kafka, loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """A running application for all tests of the module."""
    topic, folder = f"contract-{uuid.uuid4().hex[:12]}", str(tmp_path_factory.mktemp("contract"))
    kafka.create(topic, PARTITIONS)

    async def start() -> Application:
        made = Application(kafka.url, topic, folder)
        made.app.finalize()
        await made.app.start()
        return made

    application = loop.run(start())
    yield application
    loop.run(application.app.stop())
    kafka.delete(topic)


@pytest.fixture(params=["fake", pytest.param("kafka", marks=pytest.mark.servers)])
def side(request: pytest.FixtureRequest) -> Side:
    """A fake partition, then a partition of the real application."""
    return Fake() if request.param == "fake" else Real(request.getfixturevalue("application"))


def contract(test: Callable[[Any], Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test in the event loop of the application."""

    def run(side: Side, loop: Loop) -> None:
        loop.run(test(side))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


# -- the batch


@contract
async def test_a_batch_is_a_run_of_records_of_one_partition(side: Side) -> None:
    """A batch has its records in order, from `start` up to, not including, `end`, where the next batch starts."""
    first = await side.batch((b"a", b"1"), (b"b", b"2"))
    assert [(record.key, record.value) for record in first.records] == [(b"a", b"1"), (b"b", b"2")]
    assert (first.tp.partition, first.start, first.end) == (side.partition, 0, 2)
    assert [record.offset for record in first.records] == [0, 1]
    assert first.owned
    async with first.turn():
        pass
    second = await side.batch((b"a", b"3"))
    assert (second.start, second.end) == (2, 3)
    second.require_next()


@contract
async def test_a_batch_out_of_turn_is_refused(side: Side) -> None:
    """A batch whose predecessor is not finished gets no turn; both are read again."""
    await side.batch((b"a", b"1"))
    early = await side.skip((b"a", b"2"))
    early.check_owned()
    entered = []
    with pytest.raises(PartitionLost):
        async with early.turn():
            entered.append(early)
    with pytest.raises(PartitionLost):
        early.require_next()
    assert entered == []


@contract
async def test_an_error_in_its_turn_leaves_a_batch_unfinished(side: Side) -> None:
    """After an error the batch is still the next one, and may be tried again."""
    batch = await side.batch((b"a", b"1"))
    for _ in range(2):
        with pytest.raises(ValueError, match="a fault"):
            async with batch.turn():
                raise ValueError("a fault")
    async with batch.turn():
        pass


@contract
async def test_a_finished_batch_has_no_second_turn(side: Side) -> None:
    """The chain's end is past a finished batch, so it must not write again."""
    batch = await side.batch((b"a", b"1"))
    async with batch.turn():
        pass
    with pytest.raises(PartitionLost):
        batch.require_next()
    with pytest.raises(PartitionLost):
        async with batch.turn():
            pass


@contract
async def test_a_lost_batch_can_do_nothing_any_more(side: Side) -> None:
    """Every method of a lost batch raises; the partition's owner reads it again."""
    lost = await side.batch((b"a", b"1"))
    again = await side.again((b"b", b"2"))
    assert (lost.owned, again.owned) == (False, True)
    assert (again.start, again.end) == (lost.start, lost.end + 1)
    asked = []

    async def ask() -> None:
        asked.append(lost)

    for refused in (lost.check_owned, lost.require_next):
        with pytest.raises(PartitionLost):
            refused()
    for waiting in (lost.wait_for_lease(), lost.with_kafka(ask), side.table.write(lost, [(b"a", b'{"offset":0}')])):
        with pytest.raises(PartitionLost):
            await waiting
    with pytest.raises(PartitionLost):
        async with lost.turn():
            await ask()
    assert asked == []
    assert await side.changelog() == []


@contract
async def test_a_batch_that_is_lost_in_its_turn_is_not_finished(side: Side) -> None:
    """The batch that replaces the lost one starts at the same offset, and is the next in the chain."""
    batch = await side.batch((b"a", b"1"))

    async def lose() -> None:
        async with batch.turn():
            turns.append(await side.again((b"b", b"2")))

    turns: list[Any] = []
    with pytest.raises(PartitionLost):
        await lose()
    (again,) = turns
    async with again.turn():
        pass


# -- Kafka


@contract
async def test_kafka_is_asked_until_it_answers(side: Side) -> None:
    """`with_kafka` retries Kafka's errors, and raises others at once."""
    batch = await side.batch((b"a", b"1"))
    outcomes: list[Any] = [
        KafkaConnectionError("away"),
        KafkaConnectionError("away"),
        "acknowledged",
        ValueError("a fault"),
    ]

    async def attempt() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert await batch.with_kafka(attempt) == "acknowledged"
    with pytest.raises(ValueError, match="a fault"):
        await batch.with_kafka(attempt)
    assert outcomes == []


@contract
async def test_kafka_is_asked_no_more_when_the_batch_is_lost(side: Side) -> None:
    """`with_kafka` ends when the batch is lost, although Kafka never answers."""
    batch = await side.batch((b"a", b"1"))
    asked = asyncio.Event()

    async def attempt() -> None:
        asked.set()
        raise KafkaConnectionError("away")

    asking = asyncio.ensure_future(batch.with_kafka(attempt))
    await asked.wait()
    await side.again((b"b", b"2"))
    with pytest.raises(PartitionLost):
        await asyncio.wait_for(asking, 10)


# -- the table


@contract
async def test_a_written_row_can_be_read_and_is_in_the_changelog(side: Side) -> None:
    """Rows are in the order of the writes. A later value of a key replaces the earlier one."""
    batch = await side.batch((b"a", b"1"))
    read = side.table.reader(side.partition)
    assert read(b"a") is None
    first, second = (b"a", b'{"n":1,"offset":0}'), (b"b", b'{"n":2,"offset":0}')
    async with batch.turn():
        await side.table.write(batch, [second, first])
        assert (read(b"a"), read(b"b"), read(b"c")) == (first[1], second[1], None)
        assert await side.changelog() == [second, first]
    batch, later = await side.batch((b"a", b"2")), (b"a", b'{"n":3,"offset":1}')
    async with batch.turn():
        await side.table.write(batch, [later])
        await side.table.write(batch, [])
    assert (read(b"a"), read(b"b")) == (later[1], second[1])
    assert await side.changelog() == [second, first, later]
    assert side.partition in side.table.owned_partitions()
    assert side.table.reader((side.partition + 1) % PARTITIONS)(b"b") is None


@contract
async def test_a_scan_pages_in_the_order_of_the_keys_without_the_totals(side: Side) -> None:
    """A scan leaves out the totals and keys that are no UTF-8."""
    batch = await side.batch((b"a", b"1"))
    names = ["a", "a b", "b/c", "zażółć", "\U0001f95b"]
    rows = [(name.encode(), msgspec.json.encode({"n": n, "offset": 0})) for n, name in enumerate(names)]
    others = [(TOTALS_KEY, b'{"settled":0,"offset":0}'), (b"\xc3\x28", b'{"offset":0}')]
    async with batch.turn():
        await side.table.write(batch, [*reversed(rows), *others])
    pages, after = [], b""
    while page := side.table.scan(side.partition, after, 2):
        pages.append(page)
        after = page[-1][0]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [row for page in pages for row in page] == rows
    assert side.table.scan(side.partition, b"b", 1) == [rows[2]], "also after a key that is not there"
    assert side.table.scan(side.partition, b"", 99) == rows


@contract
async def test_a_batch_that_comes_again_counts_nothing_twice(side: Side) -> None:
    """A batch wrote its rows and was lost before its end. Its records come again, with new ones."""
    first = await side.batch((b"a", b"1"), (b"b", b"20"), (b"a", b"300"))

    async def dies() -> None:
        async with first.turn():
            await side.table.write(first, tallied(side, first))
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        await dies()
    again = await side.again((b"b", b"4000"))
    async with again.turn():
        await side.table.write(again, tallied(side, again))
    read = side.table.reader(side.partition)
    found = {key: decoded(read(key)) for key in (b"a", b"b", TOTALS_KEY)}
    assert [(one["seen"], one["amount"]) for one in found.values()] == [(2, 301), (2, 4020), (4, 4321)]
    assert found[TOTALS_KEY]["rows"] == 2
    published = dict(await side.changelog())
    assert published == {key: read(key) for key in published}
    assert set(published) == {b"a", b"b", TOTALS_KEY}


def tallied(side: Side, batch: Any) -> list[Row]:
    """The rows that a batch of amounts makes."""
    records = [(record.offset, record.key.decode(), int(record.value)) for record in batch.records]
    return counted(side.table.reader(side.partition), records, end=batch.end)


@contract
async def test_a_partition_that_is_dropped_is_empty_and_its_changelog_stays(side: Side) -> None:
    """After `drop` the rows can still be recovered from the changelog."""
    batch, row = await side.batch((b"a", b"1")), (b"a", b'{"offset":0}')
    async with batch.turn():
        await side.table.write(batch, [row])
    side.table.drop(side.partition)
    assert side.table.reader(side.partition)(b"a") is None
    assert side.table.scan(side.partition, b"", 9) == []
    assert await side.changelog() == [row]
