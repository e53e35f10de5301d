"""Whatever comes over the wire: good records are delivered once, the others are told of, and nothing is raised."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random, SystemRandom
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher
from aiokafka.errors import NodeNotReadyError
from faust.types import TP

from faust_batches import Troubles, Unreadable, UnreadableRecord
from faust_batches import fetching as module
from faust_batches.fetching import _Bytes, _Client, _Records
from faust_batches.standstill import Standstills

from .wire import Log, batch, chunk, message, record, sealed, varint

SEED = int(os.environ.get("SHOPFLOW_TEST_SEED") or SystemRandom().randrange(2**32))
SECONDS = 4.0
PLACE = TopicPartition("sold", 3)


@dataclass
class State:
    """What aiokafka keeps of a partition."""

    highwater: int
    paused: bool = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


@dataclass
class Reader:
    """Reads a log as a consumer does: it asks for the next offset until it has all, or stands still."""

    log: Log
    aborted: list[tuple[int, int]] = field(default_factory=list)
    stops: Callable[[UnreadableRecord], bool] = lambda bad: False
    position: int = 0
    records: list[Any] = field(default_factory=list)
    asked: int = 0
    doubts: dict[TopicPartition, int] = field(default_factory=dict)
    late: bool = False  #: True: each second answer has the end before its records

    def read(self) -> Reader:
        asyncio.run(self._read())
        return self

    async def _read(self) -> None:
        while self.position < self.log.end:
            self.asked, doubted = self.asked + 1, dict(self.doubts)
            state = State(self.position if self.late and self.asked % 2 else self.log.end)
            assignment = SimpleNamespace(state_value=lambda tp, state=state: state)
            fetcher: Any = SimpleNamespace(
                _subscriptions=SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
            )
            data, settings = _Bytes(self.log.fetched(self.position)), (None, None, True, READ_COMMITTED)
            run = _Records(fetcher, self.stops, self.doubts, PLACE, data, list(self.aborted), self.position, *settings)
            self.records += list(run)
            if state.paused:
                self.position = run.next_fetch_offset
                return
            assert run.next_fetch_offset > self.position or self.doubts != doubted, "it would ask for the same for ever"
            self.position = run.next_fetch_offset

    @property
    def good(self) -> dict[int, bytes]:
        return {one.offset: one.value for one in self.records if not isinstance(one, UnreadableRecord)}

    @property
    def odd(self) -> list[UnreadableRecord]:
        return [one for one in self.records if isinstance(one, UnreadableRecord)]


def log_of(*batches: tuple[bytes, int]) -> Log:
    """A log of these batches, each with its number of offsets. One answer has them all."""
    made = Log(Random(1))
    made.fetched = lambda offset: b"".join(data for _, end, data in made.batches if end > offset)  # type: ignore[method-assign]
    for data, size in batches:
        made.add(data, size)
    return made


def good(base: int, *values: bytes) -> tuple[bytes, int]:
    return batch(base, [record(delta, b"k", value) for delta, value in enumerate(values)]), len(values)


def test_what_kafka_itself_can_not_read_stands_for_one_offset() -> None:
    """aiokafka would ask again for ever, without a pause and without a word. Other answers stay as they are."""
    state, taken = State(9), []
    assignment = SimpleNamespace(state_value={PLACE: state}.get)
    subscriptions = SimpleNamespace(subscription=SimpleNamespace(assignment=assignment))
    answer = [
        (3, 2, -1, -1, -1, None, -1, None),
        (4, 2, -1, -1, -1, None, -1, None),
        (5, 1, -1, -1, -1, None, -1, None),
    ]

    async def send(node: int, request: Any) -> Any:
        return SimpleNamespace(API_KEY=request, topics=[("sold", list(answer))])

    async def whole() -> None:
        fetcher: Any = SimpleNamespace(_subscriptions=subscriptions, _client=SimpleNamespace(send=send, other=1))
        client = _Client(fetcher)
        assert client.other == 1
        assert (await client.send(1, 2)).topics == [("sold", answer)]  # no fetch
        ((_, (ours, lost, other)),) = (await client.send(1, 1)).topics
        assert (ours[:4], lost[:4], other) == ((3, 0, 9, 9), (4, 0, 0, 0), answer[2])
        for stops in (False, True):
            run = _Records(
                fetcher, lambda bad, stops=stops: stops, {}, PLACE, _Bytes(ours[-1]), [], 6, None, None, True, 1
            )
            taken.extend(run)
            assert (run.next_fetch_offset, state.paused) == (6 if stops else 7, stops)

    asyncio.run(whole())
    (bad,) = taken
    assert (bad.offsets, bad.batch, bad.reason) == ("offset 6", True, "Kafka can't read its own log there")


def test_a_fetch_that_is_cancelled_after_a_failure_ends_without_an_error() -> None:
    """Ctrl-C while Kafka is away: aiokafka's own error would end the consumer's thread with a traceback."""

    async def scenario() -> bool:
        fetcher: Any = Fetcher.__new__(Fetcher)
        failed = asyncio.Event()

        async def send(node: Any, request: Any) -> None:
            failed.set()
            raise NodeNotReadyError

        fetcher._client, fetcher._retry_backoff = SimpleNamespace(send=send), 60
        fetcher._invalidate_preferred_read_replica_for_node = lambda *_: None
        module.bear(SimpleNamespace(_fetcher=fetcher))
        fetch = asyncio.ensure_future(fetcher._proc_fetch_request(None, 1, SimpleNamespace(topics=[])))
        await failed.wait()
        await asyncio.sleep(0)
        fetch.cancel()
        found: bool = await fetch
        return found

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) is False


def test_whatever_comes_good_records_are_delivered_once() -> None:
    """Batches of all kinds, fetched in pieces of all sizes."""
    deadline, seed = time.monotonic() + SECONDS, SEED
    while time.monotonic() < deadline:
        print("seed:", seed)
        log = Log(Random(seed))
        log.fill(20)
        found = Reader(log).read()
        offsets = [one.offset for one in found.records]
        assert offsets == sorted(set(offsets))
        assert found.good == log.good
        assert {one.offset for one in found.odd if not one.batch} == log.odd
        bad = {offset for one in found.odd if one.batch for offset in range(one.start, one.offset + 1)}
        assert bad == {at for base, end, _ in log.batches if base in log.bad for at in range(base, end)}
        assert found.asked < 10 * len(log.batches) + 200
        seed += 1


def test_any_bytes_may_be_wrong_and_only_their_batch_suffers() -> None:
    """Bytes of some batches are changed at random, and the checksum set right again for most."""
    deadline, seed = time.monotonic() + SECONDS, SEED
    while time.monotonic() < deadline:
        print("seed:", seed)
        random = Random(seed)
        log = Log(random)
        for _ in range(12):
            kept = dict(log.good)
            log.add_good()
            base, end, data = log.batches[-1]
            if data[16] == 2 and random.random() < 0.5:  # an old message has no place for such a checksum
                log.good = kept
                log.batches[-1] = base, end, damaged(data, random)
        log.add_good()
        found = Reader(log).read()
        offsets = [one.offset for one in found.records]
        assert offsets == sorted(set(offsets))
        assert {offset: found.good.get(offset) for offset in log.good} == log.good
        seed += 1


def damaged(data: bytes, random: Random) -> bytes:
    """Some bytes are others. What Kafka itself finds batches by is left: the offsets, the format, mostly the length."""
    made = bytearray(data)
    for _ in range(random.randint(1, 4)):
        made[random.randrange(len(made))] = random.choice([0, 128, 255, random.randrange(256)])
    made[:12], made[16], made[23:27] = data[:12], data[16], data[23:27]
    out = sealed(bytes(made)) if random.random() < 0.8 else bytes(made)
    if random.random() < 0.1:
        wrong = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x20"])
        out = out[:8] + wrong + out[12:]
    return out


@pytest.mark.parametrize(
    ("odd", "reason", "known"),
    [
        (record(1, b"k", b"odd", [(b"caf\xe9", b"v"), (b"h", None)]), "header's key is not UTF-8: b'caf\\xe9'", True),
        (record(1, b"k", b"odd", [(None, b"v")]), "a header has no key", True),
        (record(1, b"k", b"odd", count=-2), "it has -2 headers", True),
        (record(1, b"k", b"odd", count=9), "a number is cut off", True),
        (record(1, b"k", b"odd") + b"more", "it has 4 bytes too many", True),
        (record(900, b"k", b"odd"), "its offset is 900 after the batch's first", True),
        (record(0, b"k", b"odd"), "its offset is 0 after the batch's first", True),
        (b"\0\0" + varint(1) + varint(-7), "its key has the length -7, and 0 bytes are left", False),
        (b"\0\0" + varint(1) + chunk(b"k") + varint(900), "its value has the length 900, and 0 bytes are left", False),
        (b"\0" + b"\xff" * 11, "a number is longer than 64 bits", False),
    ],
)
def test_an_odd_record_keeps_what_could_be_read_and_says_why(odd: bytes, reason: str, known: bool) -> None:
    """Nobody takes it for a record by mistake: to ask for its key or value raises."""
    found = Reader(log_of((batch(0, [record(0, b"k", b"a"), odd, record(2, b"k", b"b")]), 3))).read()
    assert found.good == {0: b"a", 2: b"b"}
    (one,) = found.odd
    assert reason in one.reason
    assert (one.topic, one.partition, one.start, one.offset, one.raw, one.batch) == ("sold", 3, 1, 1, odd, False)
    assert (one.whole, one.rest.key, one.rest.value) == ((True, b"k", b"odd") if known else (False, None, None))
    for name in ("key", "value"):
        with pytest.raises(Unreadable) as raised:
            getattr(one, name)
        assert str(raised.value) == one.reason


def test_a_header_that_is_not_utf_8_is_kept_in_a_readable_form() -> None:
    """A retry of the dead letter then has a header that everybody can read."""
    odd = record(0, b"k", b"v", [(b"caf\xe9", b"1"), (b"h", None)])
    (one,) = Reader(log_of((batch(0, [odd]), 1))).read().odd
    assert one.headers == (("caf\\xe9", b"1"), ("h", None))


def test_a_control_batch_of_any_kind_ends_its_producers_transaction() -> None:
    """After it, that producer's records are good again, however the abort was written."""
    for key in (b"\0\0\0\0", b"\0\7\0\0", b"\0\7\0\x63", b"", None):
        of = {"attributes": 0x10, "producer": 7}
        log = log_of(
            (batch(0, [record(0, b"k", b"aborted")], **of), 1),
            (batch(1, [record(0, key, b"?")], attributes=0x30, producer=7), 1),
            (batch(2, [record(0, b"k", b"good")], **of), 1),
        )
        assert Reader(log, aborted=[(7, 0)]).read().good == {2: b"good"}


def test_old_and_new_formats_are_read_beside_each_other() -> None:
    """A topic that is older than its Kafka has both in one answer."""
    log = log_of(
        (message(0, b"k", b"oldest", magic=0), 1),
        good(1, b"new"),
        (message(2, b"k", b"old", magic=1), 1),
        (message(3, b"k", b"odd", magic=1, length=900), 1),
        good(4, b"newest"),
    )
    found = Reader(log).read()
    assert found.good == {0: b"oldest", 1: b"new", 2: b"old", 4: b"newest"}
    assert [(one.offset, one.batch) for one in found.odd] == [(3, False)]


BROKEN = good(2, b"c", b"d", b"e")[0][:-3] + b"???"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (BROKEN, "its checksum is wrong"),
        (sealed(BROKEN[:22] + b"\5" + BROKEN[23:]), "it can't be decompressed (codec 5): "),
        (sealed(BROKEN[:22] + b"\1" + BROKEN[23:]), "it can't be decompressed (codec 1): "),
        (BROKEN[:8] + b"\x7f\xff\xff\xff" + BROKEN[12:], "it is cut off"),
        (BROKEN[:8] + b"\xff\xff\xff\xff" + BROKEN[12:], "its length is -1, but "),
        ((2**60).to_bytes(8, "big") + good(2, b"c", b"d", b"e")[0][8:], "it ends at offset "),
    ],
)
def test_a_batch_that_cannot_be_read_is_stood_still_before(data: bytes, reason: str) -> None:
    """The records before it come, none behind it, until it may be stepped over."""
    told: list[UnreadableRecord] = []

    def stops(bad: UnreadableRecord) -> bool:
        told.append(bad)
        return True

    log = log_of(good(0, b"a", b"b"), (data, 3), good(5, b"f"))
    for _ in range(2):
        found = Reader(log, stops=stops).read()
        assert (found.good, found.odd, found.position) == ({0: b"a", 1: b"b"}, [], 2)
    assert (told[-1].start, told[-1].batch) == (2, True)
    assert told[-1].reason.startswith(reason)
    over = Reader(log).read()
    assert over.good == {0: b"a", 1: b"b", 5: b"f"}
    assert [(one.start, one.offset) for one in over.odd] == [(2, 4)]


def test_records_may_be_behind_the_end_that_comes_with_them() -> None:
    """Kafka looks for the end before it reads: what is appended between is good, and is read with the next answer."""
    log = log_of(good(0, b"a", b"b"), good(2, b"c"), good(3, b"d", b"e"))
    found = Reader(log, stops=lambda bad: True, late=True).read()
    assert (found.good, found.odd, found.asked) == ({at: b"abcde"[at : at + 1] for at in range(5)}, [], 2)


def test_a_standstill_is_told_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """By itself, because another broker had a good copy; because the partition went; or because a person allowed it."""
    allowed: dict[TP, int] = {}

    async def skipped(tp: TP, offset: int) -> int | None:
        assert offset == 2
        return allowed.get(tp)

    app: Any = SimpleNamespace(
        readers={"changelog": None}, troubles=Troubles(), skipped=skipped, advice={"unreadable-batch": "; {offset}!"}
    )
    stands = Standstills(app)
    (bad,) = (one for one in Reader(log_of(good(0, b"a", b"b"), (BROKEN, 3))).read().odd)
    sold = TP("sold", 3)
    positions: dict[TP, int | None] = {sold: 2}

    def look() -> list[str]:
        asyncio.run(stands.look(lambda: positions))
        return [trouble.text for trouble in app.troubles.present]

    text = "sold[3] stands still: its batch with offsets 2 to 4 can't be read (its checksum is wrong); "
    assert look() == []
    for over in ({sold: 5}, {}):
        assert stands.stops(bad)
        positions = {sold: 2}
        assert look() == look() == [text + "the other partitions go on; 2!"]
        positions = {sold: None}
        assert look() != []
        positions = over
        assert look() == []
    assert [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"] == [
        text + "the other partitions go on; 2!"
    ] * 2

    positions, allowed[sold] = {sold: 2}, 7
    assert stands.stops(bad)
    look()
    assert not stands.stops(bad)
    assert bad.offset == 6
    bad.rest = SimpleNamespace(topic="changelog", partition=3, offset=4)  # type: ignore[assignment]
    assert not stands.stops(bad)


def test_what_is_kept_of_a_large_batch_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead letter must fit into its topic."""
    monkeypatch.setattr(module, "KEPT_BYTES", 50)
    (one,) = Reader(log_of((BROKEN.replace(b"\0\0\0\0\0\0\0\2", b"\0\0\0\0\0\0\0\0", 1), 3))).read().odd
    assert len(one.raw) == 50
