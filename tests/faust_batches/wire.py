"""Kafka's record batches, built byte by byte: good ones, and odd ones of every kind that was thought of."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from aiokafka.record.util import calc_crc32c

CONTROL, TRANSACTIONAL, GZIP = 0x20, 0x10, 1


def varint(number: int) -> bytes:
    """A zigzag number, as Kafka writes it."""
    left = (number << 1) ^ (number >> 63)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


def chunk(data: bytes | None) -> bytes:
    """A length and that many bytes; None is -1."""
    return varint(-1) if data is None else varint(len(data)) + data


def record(
    delta: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[bytes | None, bytes | None]] = (),
    *,
    timestamp: int = 0,
    count: int | None = None,
) -> bytes:
    """A record without its length. `count` is what it says of its headers."""
    said = varint(len(headers) if count is None else count)
    pairs = b"".join(chunk(name) + chunk(content) for name, content in headers)
    return b"\0" + varint(timestamp) + varint(delta) + chunk(key) + chunk(value) + said + pairs


def batch(
    base: int,
    records: Sequence[bytes],
    *,
    last: int | None = None,
    count: int | None = None,
    attributes: int = 0,
    timestamp: int = 1_750_000_000_000,
    producer: int = -1,
    magic: int = 2,
    framed: bool = False,
) -> bytes:
    """A batch of today's format with a right checksum.

    Arguments:
        last: The delta of its last offset.
        count: How many records it says to have.
        attributes: Bits; with `GZIP` in them the records are compressed.
        framed: The records have their lengths already.
    """
    body = b"".join(records if framed else map(chunk, records))
    if attributes & 7 == GZIP:
        body = gzip.compress(body)
    last = len(records) - 1 if last is None else last
    said = len(records) if count is None else count
    summed = struct.pack(">hiqqqhii", attributes, last, timestamp, timestamp, producer, 0, 0, said) + body
    return sealed(struct.pack(">qiibI", base, len(summed) + 9, 0, magic, 0) + summed)


def sealed(data: bytes) -> bytes:
    """The batch with the right checksum for its bytes."""
    return data[:17] + struct.pack(">I", calc_crc32c(data[21:])) + data[21:]


def message(offset: int, key: bytes, value: bytes, *, magic: int, length: int | None = None, codec: int = 0) -> bytes:
    """A message of the formats 0 and 1. `length` is what it says of its value."""
    content = struct.pack(">bb", magic, codec) + (struct.pack(">q", 1_700_000_000_000) if magic else b"")
    content += struct.pack(">i", len(key)) + key + struct.pack(">i", len(value) if length is None else length) + value
    return struct.pack(">qiI", offset, len(content) + 4, zlib.crc32(content)) + content


@dataclass
class Log:
    """A partition: batches one after the other, and what a reader must make of them."""

    random: Random
    batches: list[tuple[int, int, bytes]] = field(default_factory=list)  #: first offset, end, bytes
    good: dict[int, bytes] = field(default_factory=dict)  #: offset -> value, of the records that must come
    odd: set[int] = field(default_factory=set)  #: offsets that must come as unreadable records
    bad: set[int] = field(default_factory=set)  #: first offsets of batches that can't be read

    @property
    def end(self) -> int:
        return self.batches[-1][1] if self.batches else 0

    def fetched(self, offset: int) -> bytes:
        """As Kafka answers: from the batch on that has this offset, two to all batches, often a part of one more.

        A batch comes alone only if it is very large.
        """
        following = [data for _, end, data in self.batches if end > offset]
        some = following[: self.random.randint(2, max(2, len(following)))]
        left = following[len(some) :]
        cut = left[0][: self.random.randrange(len(left[0]))] if left and self.random.random() < 0.5 else b""
        return b"".join(some) + cut

    def add(self, data: bytes, size: int) -> None:
        self.batches.append((self.end, self.end + size, data))

    def value(self, offset: int) -> bytes:
        return b'{"n": %d, "x": "%s"}' % (offset, b"x" * self.random.choice([0, 3, 70, 9_000]))

    def add_good(self) -> None:
        """A batch in which all is well, of one of the formats."""
        base, count, random = self.end, self.random.choice([1, 1, 2, 5, 40]), self.random
        if random.random() < 0.1:
            self.good[base] = self.value(base)
            self.add(message(base, b"k", self.good[base], magic=random.choice([0, 1])), 1)
            return
        made = []
        for delta in range(count):
            value = self.good[base + delta] = self.value(base + delta)
            headers = [(b"h" * random.randint(1, 9), random.choice([None, b"", b"v"]))] * random.choice([0, 0, 2])
            made.append(record(delta, random.choice([None, b"", b"k"]), value, headers))
        self.add(batch(base, made, attributes=random.choice([0, 0, GZIP])), count)

    def add_odd_record(self) -> None:
        """A batch with one odd record among good ones; those before and behind it can be read."""
        base, random = self.end, self.random
        count = random.choice([1, 2, 5, 40])
        place = random.randrange(count)
        made = []
        for delta in range(count):
            value = self.value(base + delta)
            if delta == place:
                made.append(random.choice(ODD_RECORDS)(delta, value))
                self.odd.add(base + delta)
            else:
                self.good[base + delta] = value
                made.append(record(delta, b"k", value, [(b"h", b"v")]))
        self.add(batch(base, made, attributes=random.choice([0, GZIP])), count)

    def add_lost_rest(self) -> None:
        """A batch whose records can be read up to one: the next one's length is wrong, or there is none."""
        base, random, count = self.end, self.random, self.random.choice([2, 5, 40])
        kept = random.randint(1, count - 1)
        values = [self.value(base + delta) for delta in range(kept)]
        made = [chunk(record(delta, b"k", value)) for delta, value in enumerate(values)]
        self.good |= {base + delta: value for delta, value in enumerate(values)}
        rest = random.choice([b"", varint(1_000_000) + b"x" * 30, varint(-5) + b"x", b"\xff" * 30, b"\x80"])
        self.odd.add(base + count - 1)
        self.add(batch(base, [*made, rest], last=count - 1, count=count, framed=True), count)

    def add_control(self) -> None:
        """A control batch of a kind and version that nobody knows, or a broken one: it has no records for a reader."""
        key = self.random.choice([b"", None, b"\0\0", b"\0\7\0\x63", b"\0\0\0\1", b"x" * 90])
        records = [record(0, key, b"?")] if self.random.random() < 0.8 else []
        control = CONTROL | self.random.choice([0, TRANSACTIONAL])
        self.add(batch(self.end, records, attributes=control, last=0, producer=self.random.choice([-1, 7])), 1)

    def add_bad_batch(self) -> None:
        """A batch that can't be read at all."""
        base, random, count = self.end, self.random, self.random.choice([1, 2, 40])
        whole = batch(base, [record(delta, b"k", self.value(base + delta)) for delta in range(count)])
        self.bad.add(base)
        self.add(random.choice(BAD_BATCHES)(whole, random), count)

    def fill(self, batches: int) -> None:
        """Add so many batches of all kinds, and end with a good one."""
        kinds = [self.add_odd_record, self.add_lost_rest, self.add_control, self.add_bad_batch]
        for _ in range(batches):
            self.random.choice([*kinds, self.add_good, self.add_good])()
        self.add_good()


def _swapped(data: bytes, at: int, what: bytes) -> bytes:
    return data[:at] + what + data[at + len(what) :]


#: Offset delta and value -> a record of which key and value may be readable, but not all of it.
ODD_RECORDS: list[Any] = [
    lambda delta, value: record(delta, b"k", value, [(b"caf\xe9", b"v")]),
    lambda delta, value: record(delta, b"k", value, [(b"\xff\xfe", None), (b"good", b"v")]),
    lambda delta, value: record(delta, b"k", value, [(b"\xed\xa0\x80", b"")]),  # half a surrogate pair
    lambda delta, value: record(delta, b"k", value, [(None, b"v")]),
    lambda delta, value: record(delta, b"k", value, count=-1),
    lambda delta, value: record(delta, b"k", value, count=3),
    lambda delta, value: record(delta, b"k", value, count=2**31 - 1),
    lambda delta, value: record(delta, b"k", value, [(b"h", b"v")], count=0),
    lambda delta, value: record(delta, b"k", value) + b"more",
    lambda delta, value: record(delta, b"k", value)[:-1],
    lambda delta, value: record(delta, b"k", value)[: 4 + len(value) // 2],
    lambda delta, value: b"\0" + varint(0) + varint(delta) + varint(2**31 - 1) + b"k" + chunk(value) + varint(0),
    lambda delta, value: b"\0" + varint(0) + varint(delta) + chunk(b"k") + varint(len(value) + 99) + value,
    lambda delta, value: b"\0" + b"\xff" * 11 + chunk(value),
    lambda delta, value: b"\0",
    lambda delta, value: b"",
    lambda delta, value: record(2**31 - 1, b"k", value),
    lambda delta, value: record(-1, b"k", value),
]

#: A whole batch -> one that can't be read at all. Its length is right but for the last ones'.
BAD_BATCHES: list[Any] = [
    lambda data, random: _swapped(data, random.randrange(21, len(data)), b"\xa5\x5a")[: len(data)],  # the checksum
    lambda data, random: _swapped(data, 17, b"\1\2\3\4"),
    lambda data, random: sealed(_swapped(data, 22, bytes([random.choice([1, 2, 3, 4, 5, 6, 7])]))),  # not compressed so
]
