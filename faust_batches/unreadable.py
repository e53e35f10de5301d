"""What can't be taken apart: a record of its own kind, never an exception. And one odd batch, taken apart in Python."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.legacy_records import _LegacyRecordBatchPy
from aiokafka.structs import ConsumerRecord, TopicPartition

from .errors import BatchError

#: The most bytes that are kept of something unreadable.
KEPT_BYTES = 1024 * 1024
#: Bytes of a batch before those that its length counts.
OVERHEAD = 12
#: Where a batch has its format (magic), and the newest one.
MAGIC_AT, NEWEST = 16, 2

_SMALLEST = {0: 26, 1: 34, NEWEST: 61}  #: bytes of a batch, by its format


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


def consumer_record(
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
    magic = data[MAGIC_AT] if len(data) > MAGIC_AT else -1
    if magic == -1 or len(data) < _SMALLEST.get(magic, 0):
        raise ValueError("it is cut off")
    if magic not in _SMALLEST:
        raise ValueError(f"its format {magic} is unknown")
    (length,) = struct.unpack_from(">i", data, 8)
    if length + OVERHEAD != len(data):
        raise ValueError(f"its length is {length}, but {len(data) - OVERHEAD} bytes are there")
    batch: Any = _DefaultRecordBatchPy(data) if magic == NEWEST else _LegacyRecordBatchPy(data, magic)
    if not batch.validate_crc():
        raise ValueError("its checksum is wrong")
    return batch


class OddBatch:
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
                self.found.append(consumer_record(self._tp, one.offset, key=one.key, value=one.value, **kind))
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
        rest = consumer_record(
            self._tp, offset, timestamp=timestamp, timestamp_type=batch.timestamp_type,
            key=read.key, value=read.value, headers=tuple(read.headers),
        )  # fmt: skip
        self._previous = offset
        self.found.append(UnreadableRecord(rest, reason, raw, offset, whole=read.whole) if reason else rest)

    def _add_rest(self, reason: str, raw: bytes) -> None:
        """Add one record for all offsets that are left."""
        rest = consumer_record(self._tp, self.last)
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
