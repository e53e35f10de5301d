"""Lets a consumer bear whatever it fetches: what can't be taken apart is a record of its own kind in the run.

aiokafka raises at the first odd byte: a header key that is not UTF-8, a length that is too large, a wrong checksum. Its
consumer then ends, or reads the same bytes again for ever. Here the good path is aiokafka's, one batch at a time. Only
a batch at which it fails is taken apart again in Python, byte by byte.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Generator, Iterator
from functools import partial
from types import FunctionType
from typing import Any

from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from .unreadable import KEPT_BYTES, MAGIC_AT, NEWEST, OVERHEAD, OddBatch, UnreadableRecord, consumer_record

#: Between two fetches of a batch at which a partition stands still: another broker may have a good copy.
PAUSE_SECONDS = 2.0
#: Where a batch of the newest format has its last offset, relative to the first.
_LAST_DELTA_AT = 23

#: In the place of the records of a partition that Kafka itself can't read, and why it gave none.
_NOTHING = bytes(1)
KAFKA_FAILED = "Kafka can't read its own log there"

#: Called with an `UnreadableRecord` for a batch, in the consumer's event loop. True: the partition stands still before
#: the batch, which is fetched again every `PAUSE_SECONDS`. False: the record is put into the run.
Stops = Callable[[UnreadableRecord], bool]
#: Yields records, and returns whether to read on.
_Outcome = Generator[Any, None, bool]


def bear(consumer: Any, stops: Stops = lambda bad: False) -> None:
    """Let a started `AIOKafkaConsumer` bear whatever it fetches: nothing in a partition makes it raise."""
    fetcher: Fetcher = consumer._fetcher
    fetcher._client = _Client(fetcher)
    records = partial(_Records, fetcher, stops, {})
    names = {**vars(aiokafka_fetcher), "MemoryRecords": _Bytes, "PartitionRecords": records}
    proc: Any = Fetcher._proc_fetch_request
    fetch = FunctionType(proc.__code__, names).__get__(fetcher)

    async def cancellable(*request: Any) -> Any:
        try:
            return await fetch(*request)
        except asyncio.CancelledError:  # aiokafka knows of it in the request, but not in the pause after a failed one
            return False

    fetcher._proc_fetch_request = cancellable


class _Client:
    """aiokafka's client. A partition that Kafka itself can't read is an answer with `_NOTHING` instead of an error.

    At that error aiokafka would ask again, for ever and without a pause.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher, self._client = fetcher, fetcher._client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node: Any, request: Any) -> Any:
        response = await self._client.send(node, request)
        if response.API_KEY == FetchRequest.API_KEY:
            response.topics = [(topic, [self._answer(topic, *one) for one in some]) for topic, some in response.topics]
        return response

    def _answer(self, topic: str, partition: int, code: int, highwater: int, *rest: Any) -> tuple[Any, ...]:
        if code != CorruptRecordException.errno:
            return (partition, code, highwater, *rest)
        subscription = self._fetcher._subscriptions.subscription
        assignment = subscription and subscription.assignment
        state = assignment and assignment.state_value(TopicPartition(topic, partition))
        end = (state and state.highwater) or 0  # the answer has none
        return (partition, 0, end, end, *rest[1:-1], _NOTHING)


class _Bytes:
    """The fetched bytes of a partition, until `_Records` takes them apart."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def has_next(self) -> bool:
        return bool(self.data)

    def size_in_bytes(self) -> int:
        return len(self.data)


class _Records(PartitionRecords):  # type: ignore[misc]
    """aiokafka's iterator over the fetched records of a partition, with an `UnreadableRecord` where that raises.

    Arguments:
        doubts: Partition -> the next offset to read when a batch reached beyond the end of the log. It is kept from
            answer to answer.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        stops: Stops,
        doubts: dict[TopicPartition, int],
        tp: TopicPartition,
        records: _Bytes,
        *args: Any,
    ) -> None:
        super().__init__(tp, records, *args)
        self.next_fetch_offset: int
        self._first = self.next_fetch_offset
        self._state = fetcher._subscriptions.subscription.assignment.state_value(tp)
        self._end_of_log = self._state.highwater
        self._stops, self._stopped = stops, False
        self._doubts = doubts
        if records.data is _NOTHING:
            self._records_iterator = self._bad(b"", self._first, self._first + 1, KAFKA_FAILED)

    def _unpack_records(self) -> Iterator[Any]:
        batches, left, number = MemoryRecords(self._records.data), memoryview(self._records.data), 0
        while True:
            batch, begun = None, self.next_fetch_offset
            try:
                if not batches.has_next():
                    break
                batch = batches.next_batch()
                self._check(batch)
                end = batch.next_offset
                if not self._is_skipped(batch):
                    before = -1 if batch.producer_id is None else batch.base_offset - 1
                    for record in batch:
                        offset = record.offset
                        if not self.next_fetch_offset <= offset < end:
                            if before < offset < self._first == self.next_fetch_offset:
                                before = offset  # the batch begins before the offset that was asked for
                                continue
                            raise ValueError("an offset is out of order")
                        made = self._consumer_record(self._tp, record)
                        self.next_fetch_offset = offset + 1
                        yield made
                self.next_fetch_offset = max(self.next_fetch_offset, end)
                number += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, `_odd_batch` finds what can be read
                left = _after(left, number)
                goes_on = yield from self._odd_batch(left, begun, error)
                if batch is None or not goes_on:
                    return
                left, number = _after(left, 1), 0
        if self.next_fetch_offset == self._first:
            yield from self._nothing(memoryview(self._records.data))

    def _nothing(self, data: memoryview) -> Iterator[Any]:
        """The batches brought no offset that was asked for, so asking again would not help."""
        if OVERHEAD < len(data) < OVERHEAD + struct.unpack_from(">i", data, 8)[0]:
            yield from self._unreadable_batch(data, "it is cut off")
        else:
            yield from self._bad(data, self._first, self._first + 1, "it lacks the offset that was asked for")

    def _check(self, batch: Any) -> None:
        if self._check_crcs and not batch.validate_crc():
            raise ValueError("its checksum is wrong")
        if batch.next_offset > self._end_of_log:
            raise ValueError(f"it ends at offset {batch.next_offset}, but the log at {self._end_of_log}")
        self._doubts.pop(self._tp, None)

    def _is_skipped(self, batch: Any) -> bool:
        """True for control batches, and for batches of aborted transactions.

        Every control batch of a producer ends its transaction, so an aborted one needs no look at the kind of the end.
        """
        if self._isolation_level == READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch:
                self._aborted_producers.discard(batch.producer_id)
            elif batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)

    def _odd_batch(self, data: memoryview, begun: int, error: Exception) -> _Outcome:
        """Yield what is in the first batch of `data`, at which aiokafka failed. Return whether to read on after it.

        Arguments:
            begun: The next offset to read when this batch began.
        """
        try:
            odd = OddBatch(self._tp, bytes(data[: _size(data)]), self._is_skipped)
            if not begun <= odd.last < self._end_of_log:
                raise error
        except Exception as why:  # noqa: BLE001 - whatever it is, the batch can't be read
            return (yield from self._unreadable_batch(data, str(why) or type(why).__name__))
        for record in odd.found:
            if record.offset >= self.next_fetch_offset:
                self.next_fetch_offset = record.offset + 1
                yield record
        self.next_fetch_offset = max(self.next_fetch_offset, odd.last + 1)
        return True

    def _unreadable_batch(self, data: memoryview, reason: str) -> _Outcome:
        """Stop at the first batch of `data`, or yield one record for it. Return whether to read on after it."""
        size = _size(data)
        (base, end), following = _offsets(data), _offsets(data[size:])[0]
        if base < following <= self.next_fetch_offset:
            return True  # it has nothing that was not read already
        if following < 0 and self.next_fetch_offset > self._first:
            return False  # the next answer begins with it, and has the batch behind it, too: that says where it ends
        if end > self._end_of_log and self._doubts.get(self._tp) != self.next_fetch_offset:
            self._doubts[self._tp] = self.next_fetch_offset
            return False  # Kafka looks for the end before it reads: the next answer's end is behind a good batch
        start = base if self.next_fetch_offset <= base < self._end_of_log else self.next_fetch_offset
        if start < following <= self._end_of_log:
            end = following  # rather than the end that the batch itself says: that may be what is damaged
        elif not start < end <= self._end_of_log:
            end = start + 1
        yield from self._bad(data[:size], start, end, reason)
        return not self._stopped and self.next_fetch_offset == following

    def _bad(self, batch: memoryview | bytes, start: int, end: int, reason: str) -> Iterator[Any]:
        """Stop before these offsets, or yield one record for them."""
        raw = bytes(batch[:KEPT_BYTES])
        bad = UnreadableRecord(consumer_record(self._tp, end - 1), reason, raw, start, whole=False, batch=True)
        if self._stops(bad):
            self._stopped = True
            self._state.pause()
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._state.resume)
            self.next_fetch_offset = start
        else:
            self.next_fetch_offset = bad.offset + 1
            yield bad


def _size(data: memoryview) -> int:
    """The bytes of the first batch, as it says; at most all."""
    if len(data) < OVERHEAD:
        return len(data)
    (length,) = struct.unpack_from(">i", data, 8)
    return min(OVERHEAD + length, len(data)) if length >= 0 else len(data)


def _after(data: memoryview, number: int) -> memoryview:
    """The bytes after so many batches."""
    for _ in range(number):
        data = data[_size(data) :]
    return data


def _offsets(data: memoryview) -> tuple[int, int]:
    """The first offset and the end of the first batch, as it says; -1 if it is too short to say."""
    if len(data) < _LAST_DELTA_AT + 4:
        return -1, -1
    (base,) = struct.unpack_from(">q", data)
    if data[MAGIC_AT] < NEWEST:  # the offset of old formats is the last one of the batch
        return base, base + 1
    return base, base + 1 + struct.unpack_from(">i", data, _LAST_DELTA_AT)[0]
