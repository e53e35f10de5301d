"""Takes fetched bytes apart. What can't be taken apart is a record of its own kind in the run, never an exception.

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
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.legacy_records import _LegacyRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord, TopicPartition

from .errors import BatchError

#: Between two fetches of a batch at which a partition stands still: another broker may have a good copy.
PAUSE_SECONDS = 2.0
#: The most bytes that are kept of something unreadable.
KEPT_BYTES = 1024 * 1024

_OVERHEAD = 12  # bytes before those that a batch's length counts
_MAGIC_AT, _LAST_DELTA_AT = 16, 23
_SMALLEST = {0: 26, 1: 34, 2: 61}  #: bytes of a batch, by its format (magic)
_NEWEST = 2


class Unreadable(BatchError):  # noqa: N818 - named by what it says
    """The key or the value of an `UnreadableRecord` was asked for. The record will never be readable.

    Attributes:
        record: The `UnreadableRecord`.
    """

    def __init__(self, record: UnreadableRecord) -> None:
        super().__init__(record.reason)
        self.record = record


class UnreadableRecord:
    """In a run in the place of a record, or of a whole batch, that can't be taken apart.

    It has the attributes of aiokafka's `ConsumerRecord`. Reading `key` or `value` raises `Unreadable`, so that no
    handler takes it for a record by mistake.

    Attributes:
        rest: A `ConsumerRecord` with what could be read. Names of headers that are not UTF-8 have `\\xe9` for a byte.
        whole: True if key and value of `rest` are the record's. False: they are None, and only `raw` is known.
        raw: The bytes of the record, or of the batch; at most `KEPT_BYTES`.
        reason: What is wrong, in a few words.
        start: The first offset that it stands for. `offset` is the last one.
        batch: True if it stands for a batch none of whose records can be read.
    """

    __slots__ = ("batch", "raw", "reason", "rest", "start", "whole")

    def __init__(
        self, rest: ConsumerRecord[Any, Any], reason: str, raw: bytes, start: int, *, whole: bool, batch: bool = False
    ) -> None:
        self.rest = rest
        self.reason = reason
        self.raw = raw[:KEPT_BYTES]
        self.start = start
        self.whole = whole
        self.batch = batch

    @property
    def offsets(self) -> str:
        """For messages: `offset 17`, or `offsets 17 to 19`."""
        return f"offset {self.start}" if self.start == self.offset else f"offsets {self.start} to {self.offset}"

    @property
    def key(self) -> Any:
        raise Unreadable(self)

    @property
    def value(self) -> Any:
        raise Unreadable(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rest, name)


#: Called with an `UnreadableRecord` for a batch, in the consumer's event loop. True: the partition stands still before
#: the batch, which is fetched again every `PAUSE_SECONDS`. False: the record is put into the run.
Stops = Callable[[UnreadableRecord], bool]
#: Yields records, and returns whether to read on.
_Outcome = Generator[Any, None, bool]


def bear(consumer: Any, stops: Stops = lambda bad: False) -> None:
    """Let a started `AIOKafkaConsumer` bear whatever it fetches: nothing in a partition makes it raise."""
    fetcher: Fetcher = consumer._fetcher
    names = {**vars(aiokafka_fetcher), "MemoryRecords": _Bytes, "PartitionRecords": partial(_Records, fetcher, stops)}
    proc: Any = Fetcher._proc_fetch_request
    fetcher._proc_fetch_request = FunctionType(proc.__code__, names).__get__(fetcher)


class _Bytes:
    """The fetched bytes of a partition, until `_Records` takes them apart."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def has_next(self) -> bool:
        return bool(self.data)

    def size_in_bytes(self) -> int:
        return len(self.data)


class _Records(PartitionRecords):  # type: ignore[misc]
    """aiokafka's iterator over the fetched records of a partition, with an `UnreadableRecord` where that raises."""

    def __init__(self, fetcher: Fetcher, stops: Stops, tp: TopicPartition, records: _Bytes, *args: Any) -> None:
        super().__init__(tp, records, *args)
        self.next_fetch_offset: int
        self._first = self.next_fetch_offset
        self._state = fetcher._subscriptions.subscription.assignment.state_value(tp)
        self._end_of_log = self._state.highwater
        self._stops, self._stopped = stops, False

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
        if _OVERHEAD < len(data) < _OVERHEAD + struct.unpack_from(">i", data, 8)[0]:
            yield from self._unreadable_batch(data, "it is cut off")
        else:
            yield from self._bad(data, self._first, self._first + 1, "it lacks the offset that was asked for")

    def _check(self, batch: Any) -> None:
        if self._check_crcs and not batch.validate_crc():
            raise ValueError("its checksum is wrong")
        if batch.next_offset > self._end_of_log:
            raise ValueError(f"it ends at offset {batch.next_offset}, but the log at {self._end_of_log}")

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
            odd = _Odd(self._tp, bytes(data[: _size(data)]), self._is_skipped)
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
        bad = UnreadableRecord(_consumer_record(self._tp, end - 1), reason, raw, start, whole=False, batch=True)
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
    if len(data) < _OVERHEAD:
        return len(data)
    (length,) = struct.unpack_from(">i", data, 8)
    return min(_OVERHEAD + length, len(data)) if length >= 0 else len(data)


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
    if data[_MAGIC_AT] < _NEWEST:  # the offset of old formats is the last one of the batch
        return base, base + 1
    return base, base + 1 + struct.unpack_from(">i", data, _LAST_DELTA_AT)[0]


def _consumer_record(
    tp: TopicPartition,
    offset: int,
    *,
    timestamp: int | None = -1,
    timestamp_type: int | None = 0,
    key: bytes | None = None,
    value: bytes | None = None,
    headers: tuple[tuple[str, bytes | None], ...] = (),
) -> ConsumerRecord[Any, Any]:
    sizes = (-1 if key is None else len(key), -1 if value is None else len(value))
    return ConsumerRecord(*tp, offset, timestamp, timestamp_type, key, value, None, *sizes, headers)


def _checked(data: bytes) -> Any:
    """One batch, as aiokafka's class in Python, whose bytes are those that were summed.

    Raises:
        ValueError: It can't be read. The message says why.
    """
    magic = data[_MAGIC_AT] if len(data) > _MAGIC_AT else -1
    if magic == -1 or len(data) < _SMALLEST.get(magic, 0):
        raise ValueError("it is cut off")
    if magic not in _SMALLEST:
        raise ValueError(f"its format {magic} is unknown")
    (length,) = struct.unpack_from(">i", data, 8)
    if length + _OVERHEAD != len(data):
        raise ValueError(f"its length is {length}, but {len(data) - _OVERHEAD} bytes are there")
    batch: Any = _DefaultRecordBatchPy(data) if magic == _NEWEST else _LegacyRecordBatchPy(data, magic)
    if not batch.validate_crc():
        raise ValueError("its checksum is wrong")
    return batch


class _Odd:
    """One batch, taken apart in Python.

    Attributes:
        found: Its records in order, each with an offset of its own. What can't be read is an `UnreadableRecord`.
        last: The last offset of the batch.

    Raises:
        Exception: None of its records can be read. The message says why.
    """

    def __init__(self, tp: TopicPartition, data: bytes, is_skipped: Callable[[Any], bool]) -> None:
        self.found: list[Any] = []
        self._tp = tp
        batch = _checked(data)
        self.last: int = batch.next_offset - 1
        if is_skipped(batch):
            return
        if isinstance(batch, _LegacyRecordBatchPy):
            self._take_messages(batch, data)
        else:
            self._take_records(batch)

    def _take_messages(self, batch: Any, data: bytes) -> None:
        """Of the old formats: one message, or a compressed set of them.

        aiokafka can't read two formats in one answer. So these need not be odd.
        """
        previous = -1
        try:
            for one in batch:
                if not previous < one.offset <= self.last:
                    raise ValueError(f"it has the offset {one.offset}")
                if not batch._compression_type:  # aiokafka cuts a value that is too short for its length
                    (length,) = struct.unpack_from(">i", data, _SMALLEST[batch._magic] - 4 + len(one.key or b""))
                    if length != (-1 if one.value is None else len(one.value)):
                        raise ValueError(f"its value has the length {length}")
                previous = one.offset
                kind = {"timestamp": one.timestamp, "timestamp_type": one.timestamp_type}
                self.found.append(_consumer_record(self._tp, one.offset, key=one.key, value=one.value, **kind))
        except Exception as error:
            if batch._compression_type and not self.found:
                raise
            self._previous = self.last - 1
            self._add_rest(f"a message can't be read: {error or type(error).__name__}", data)

    def _take_records(self, batch: Any) -> None:
        self._base, self._count = batch.base_offset, batch._num_records
        self._previous = self._base - 1
        if self.last < self._base:
            raise ValueError(f"its last offset is {self.last}, its first {self._base}")
        codec = batch.compression_type
        try:
            batch._maybe_uncompress()
        except Exception as error:
            raise ValueError(f"it can't be decompressed (codec {codec}): {error or type(error).__name__}") from error
        body, at = bytes(batch._buffer), batch._pos
        number = 0
        while at < len(body) and self._previous < self.last:
            try:
                length, start = _varint(body, at, len(body))
                if not 0 <= length <= len(body) - start:
                    raise ValueError(f"a record's length is {length}, and {len(body) - start} bytes are left")
            except ValueError as error:
                self._add_rest(str(error), body[at:])
                return
            at = start + length
            self._add(batch, body[start:at], number)
            number += 1
        if self._previous < self.last and number < self._count:
            self._add_rest(f"the batch says {self._count} records, and has {number}", b"")

    def _add(self, batch: Any, raw: bytes, number: int) -> None:
        read = _Fields(raw)
        reason = read.fault
        offset = self._base + read.delta if read.delta is not None else -1
        if not self._previous < offset <= self.last:
            reason = reason or f"its offset is {read.delta} after the batch's first"
            offset = self._base + number if self._previous < self._base + number <= self.last else self._previous + 1
        timestamp = batch.max_timestamp if batch.timestamp_type else batch.first_timestamp + read.timestamp
        rest = _consumer_record(
            self._tp, offset, timestamp=timestamp, timestamp_type=batch.timestamp_type,
            key=read.key, value=read.value, headers=tuple(read.headers),
        )  # fmt: skip
        self._previous = offset
        self.found.append(UnreadableRecord(rest, reason, raw, offset, whole=read.whole) if reason else rest)

    def _add_rest(self, reason: str, raw: bytes) -> None:
        """Add one record for all offsets that are left."""
        rest = _consumer_record(self._tp, self.last)
        self.found.append(UnreadableRecord(rest, reason, raw, self._previous + 1, whole=False))
        self._previous = self.last


class _Fields:
    """The fields of one record of today's format, as far as they can be read, and the first fault.

    Attributes:
        delta: The offset, relative to the batch's first; None if unknown.
        whole: True if key and value are known.
    """

    def __init__(self, raw: bytes) -> None:
        self.delta: int | None = None
        self.timestamp = 0
        self.key: bytes | None = None
        self.value: bytes | None = None
        self.whole = False
        self.headers: list[tuple[str, bytes | None]] = []
        self.fault = ""
        self._raw = raw
        self._at = 1  # after the attributes
        try:
            self._read()
        except ValueError as error:
            self.fault = self.fault or str(error)

    def _read(self) -> None:
        self.timestamp, self.delta = self._number(), self._number()
        key = self._bytes("key")
        self.value = self._bytes("value")
        self.key, self.whole = key, True
        count = self._number()
        if count < 0:
            raise ValueError(f"it has {count} headers")
        for _ in range(count):
            name = self._bytes("header's key")
            value = self._bytes("header's value")
            if name is None:
                self.fault = self.fault or "a header has no key"
                continue
            try:
                self.headers.append((name.decode(), value))
            except UnicodeDecodeError:
                self.fault = self.fault or f"a header's key is not UTF-8: {name[:100]!r}"
                self.headers.append((name.decode("utf-8", "backslashreplace"), value))
        if self._at != len(self._raw):
            raise ValueError(f"it has {len(self._raw) - self._at} bytes too many")

    def _number(self) -> int:
        number, self._at = _varint(self._raw, self._at, len(self._raw))
        return number

    def _bytes(self, what: str) -> bytes | None:
        length = self._number()
        if length == -1:
            return None
        if not 0 <= length <= len(self._raw) - self._at:
            raise ValueError(f"its {what} has the length {length}, and {len(self._raw) - self._at} bytes are left")
        self._at += length
        return self._raw[self._at - length : self._at]


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The zigzag number at this place, and the place after it.

    Raises:
        ValueError: It has no end, or is longer than 64 bits.
    """
    number = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("a number is cut off")
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
    raise ValueError("a number is longer than 64 bits")
