"""`dead-letters`: what a dead letter says, and that each is retried exactly once."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError, MessageSizeTooLargeError

from shopflow.errors import Refused, Rejected, Unavailable
from shopflow.operations import letters, retry
from shopflow.operations.letters import Id, Letter
from shopflow.operations.retry import Outcome, Retry, headers_back
from shopflow.shop.dead_letters import headers_of
from tests.support.fakes import FakeKafka, FakeRecord, FakeTopics, layout
from tests.support.iterators import each

WHY = Rejected("unknown product", "product_id 'x' was never offered – zażółć")
SHOP = replace(
    layout(4),
    products="shop.products",
    purchases="shop.purchases",
    dead_letters="shop.dead-letters",
    retries="shop.retries",
)


def dead(
    offset: int = 0, partition: int = 0, *, topic: str = "shop.purchases", headers: Any = (), value: bytes | None = b"v"
) -> FakeRecord:
    """A dead letter as a worker writes it, of a record with these headers."""
    was = FakeRecord(b"anna", value, 100 + offset, partition, topic, headers=tuple(headers))
    return FakeRecord(
        b"anna", value, offset, partition, "shop.dead-letters", headers=tuple(headers_of(was, WHY, "shopflow"))
    )


def letter(offset: int = 0, partition: int = 0, **fields: Any) -> Letter:
    """A dead letter, as it is read."""
    return Letter.of(dead(offset, partition, **fields))


# -- one of them


def test_a_dead_letter_says_where_it_came_from_and_why() -> None:
    """The headers that the worker wrote have origin and reason."""
    found = letter(5, 3)
    assert (found.id, str(found.id)) == (Id(3, 5), "3:5")
    assert (found.topic, found.partition, found.offset) == ("shop.purchases", 3, 105)
    assert (found.reason, found.label) == (str(WHY), "unknown product")
    assert found.time == datetime.fromtimestamp(1_700_000_000, timezone.utc)
    assert (found.retries, found.history) == (0, ())


@pytest.mark.parametrize(
    "record",
    [
        FakeRecord(None, None),
        FakeRecord(None, None, timestamp=-1),
        FakeRecord(None, None, timestamp=2**62),
        FakeRecord(b"\xff", b"\xff", headers=(("__connect.errors.exception.message", b"\xff"),)),
        FakeRecord(None, None, headers=(("__connect.errors.exception.message", None),)),  # type: ignore[arg-type]
        FakeRecord(None, None, headers=(("shopflow.retry.history", None), ("shopflow.retry.count", None))),  # type: ignore[arg-type]
        FakeRecord(None, None, headers=(("shopflow.retry.history", b"{"), ("shopflow.retry.count", b"\xb2"))),
        FakeRecord(None, None, headers=(("shopflow.retry.history", b"[{}]"), ("shopflow.retry.count", b"9" * 5000))),
        FakeRecord(None, None, headers=(("shopflow.retry.history", b'["\xff"]'),)),
        FakeRecord(None, None, headers=(("shopflow.retry.history", b'[{"x":' + b"[" * 100_000),)),
    ],
)
def test_whatever_another_program_wrote_can_be_read(record: FakeRecord) -> None:
    """Such a record has no origin and no retries. Nothing is raised."""
    found = Letter.of(record)
    assert (found.topic, found.retries, found.history) == ("", 0, ())


@pytest.mark.parametrize(
    "text", ["", "1", "1:", ":1", "-1:0", "1:-1", "1:2:3", "a:b", " 1:2", "1:2\n", "٣:٤", "1" * 11 + ":1"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    """The error is one line with the text and the form of an id."""
    with pytest.raises(Refused, match="PARTITION:OFFSET") as caught:
        Id.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_is_read_as_it_is_shown() -> None:
    """Ids up to the largest offset are parsed."""
    for one in (Id(0, 0), Id(9999, 2**63 - 1)):
        assert Id.parse(str(one)) == one


def test_a_retried_record_has_its_own_headers_and_its_history() -> None:
    """The headers of the dead letter are removed. The record's own keep their order, also if a name comes twice."""
    own = [("trace", b"\xff"), ("a", b"1"), ("trace", b"2"), ("empty", None)]
    *kept, count, history = headers_back(letter(5, 3, headers=own))
    assert kept == own
    assert count == ("shopflow.retry.count", b"1")
    assert history[0] == "shopflow.retry.history"
    assert json.loads(history[1]) == [
        {
            "dead_letter": "3:5",
            "topic": "shop.purchases",
            "partition": 3,
            "offset": 105,
            "reason": str(WHY),
            "time": "2023-11-14T22:13:20.000+00:00",
        }
    ]


def test_a_history_grows_with_each_failure_and_stays_bounded() -> None:
    """The latest ten failures are kept, all are counted, and long reasons are cut."""
    headers: Any = [("trace", b"1")]
    for number in range(25):
        found = letter(number, headers=headers)
        assert found.retries == number
        assert [failure.dead_letter for failure in found.history] == [f"0:{n}" for n in range(number)][-10:]
        headers = headers_back(replace(found, reason="ż" * 10_000))
        assert [name for name, _ in headers] == ["trace", "shopflow.retry.count", "shopflow.retry.history"]
    assert len(headers[2][1]) < 20_000


# -- all of them


class Desk:
    """A shop's dead letters, and the runs that retry them."""

    def __init__(self) -> None:
        self.kafka = FakeKafka()

    async def marks(self) -> dict[Id, int]:
        marked = [
            Id.parse((key or b"").decode()) for topic, _, key, *_ in self.kafka.committed if topic == "shop.retries"
        ]
        assert len(marked) == len(set(marked))
        return dict.fromkeys(marked, 0)

    def retry(self, found: Iterable[Letter]) -> Outcome:
        """Retry these dead letters."""
        return asyncio.run(Retry(self.kafka.connect, self.marks, SHOP).run(each(found)))

    def back(self) -> list[tuple[str, int, bytes | None]]:
        """Topic, partition and value of the retried records."""
        return [
            (topic, number, value) for topic, number, _, value, _ in self.kafka.committed if topic != "shop.retries"
        ]


def several(count: int) -> list[Letter]:
    """Dead letters with different values."""
    return [letter(number // 4, number % 4, value=str(number).encode()) for number in range(count)]


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with five dead letters in a transaction."""
    monkeypatch.setattr(retry, "_AT_ONCE", 5)
    return Desk()


def test_each_is_retried_to_its_topic_and_partition_with_a_mark(desk: Desk) -> None:
    """Key and value are unchanged. The mark says where the record is now. Both are in one transaction."""
    assert desk.retry([letter(7, 3, topic="shop.products", value=b"\x00\xff")]) == Outcome(retried=1)
    record, mark = desk.kafka.committed
    assert record[:4] == ("shop.products", 3, b"anna", b"\x00\xff")
    assert dict(record[4])["shopflow.retry.count"] == b"1"
    assert mark[:3] == ("shop.retries", 3, b"3:7")
    assert json.loads(mark[3] or b"") == {"dead_letter": "3:7", "topic": "shop.products", "partition": 3, "offset": 0}
    assert desk.kafka.commits == 1


def test_none_is_retried_twice(desk: Desk) -> None:
    """Dead letters that were retried before send nothing."""
    found = several(12)
    assert desk.retry(found[:7]) == Outcome(retried=7)
    assert desk.retry(found) == Outcome(retried=5, already=7)
    commits = desk.kafka.commits
    assert desk.retry(found) == Outcome(already=12)
    assert desk.kafka.commits == commits
    assert sorted(value or b"" for *_, value in desk.back()) == sorted(str(number).encode() for number in range(12))


def test_the_order_of_a_partition_stays(desk: Desk) -> None:
    """A customer's events are sent in the order in which they first came."""
    desk.retry(several(23))
    for partition in range(4):
        values = [int(value or b"") for _, number, value in desk.back() if number == partition]
        assert values == list(range(partition, 23, 4))


def test_large_ones_are_not_gathered(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction of many large records would take too much memory and time."""
    monkeypatch.setattr(retry, "_BYTES_AT_ONCE", 10)
    desk.retry([letter(number, value=b"x" * 20) for number in range(4)])
    assert desk.kafka.commits == 4


@pytest.mark.parametrize("at", range(1, 6))
@pytest.mark.parametrize("error", [KafkaConnectionError("away"), KafkaTimeoutError("away"), asyncio.CancelledError()])
def test_what_is_cut_off_is_finished_by_the_next(desk: Desk, at: int, error: BaseException) -> None:
    """The records of an aborted transaction are not in the topic. The next run sends them."""

    def fails(number: int) -> None:
        if number == at:
            raise error

    desk.kafka.before_commit = fails
    found = several(23)
    with pytest.raises((Unavailable, asyncio.CancelledError)) as caught:
        desk.retry(found)
    if isinstance(caught.value, Unavailable):
        assert f"{5 * at - 5} dead letters were retried" in str(caught.value)
    assert len(desk.back()) == 5 * (at - 1)
    assert desk.retry(found) == Outcome(retried=23 - 5 * (at - 1), already=5 * (at - 1))
    assert sorted(desk.back()) == sorted(set(desk.back()))


def test_a_transaction_that_is_cut_off_is_ended_at_once(desk: Desk) -> None:
    """Another producer with its transactional id ends it. Else workers would wait for Kafka's timeout."""
    desk.kafka.before_commit = lambda number: (_ for _ in ()).throw(asyncio.CancelledError)
    with pytest.raises(asyncio.CancelledError):
        desk.retry(several(3))
    assert desk.kafka.started == 2


def test_another_one_takes_over(desk: Desk) -> None:
    """The first run reports it and stops, and does not fence the second in turn. Each letter is retried once."""
    found = several(23)

    async def both() -> tuple[Outcome, Unavailable]:
        loop = asyncio.get_running_loop()
        second: list[asyncio.Task[Outcome]] = []

        def joins(number: int) -> None:
            if number == 3:
                second.append(loop.create_task(Retry(desk.kafka.connect, desk.marks, SHOP).run(each(found))))
                desk.kafka.started += 1  # it has started, as far as Kafka is concerned

        desk.kafka.before_commit = joins
        with pytest.raises(Unavailable, match=r"another retry has taken over.*10 dead letters were retried") as caught:
            await Retry(desk.kafka.connect, desk.marks, SHOP).run(each(found))
        return await second[0], caught.value

    outcome, _ = asyncio.run(both())
    assert outcome == Outcome(retried=13, already=10)
    assert sorted(desk.back()) == sorted(set(desk.back()))
    assert desk.kafka.started == 3


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (Letter.of(FakeRecord(b"k", b"v")), "don't name its topic"),
        (letter(topic="shop.dead-letters"), "'shop.dead-letters'"),
        (letter(topic="elsewhere\x1b"), "elsewhere"),
        (letter(0, 4), "no partition of shop.purchases"),
    ],
)
def test_what_is_not_of_this_shop_is_refused_and_the_others_go(desk: Desk, found: Letter, why: str) -> None:
    """The outcome has its id and the reason."""
    outcome = desk.retry([*several(2), replace(found, id=Id(0, 99)), *several(4)[2:]])
    assert (outcome.retried, outcome.already, outcome.status) == (4, 0, 1)
    ((refused, reason),) = outcome.refused
    assert refused == Id(0, 99)
    assert why in reason
    assert Outcome(retried=1).status == 0


def test_what_kafka_does_not_take_is_refused_and_the_others_go(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record may be too large for its topic. The others of its transaction are sent, in order."""
    monkeypatch.setattr(retry, "_AT_ONCE", 50)

    def check(topic: str, key: bytes | None, value: bytes | None) -> None:
        if value in {b"13", b"30"}:
            raise MessageSizeTooLargeError("too large")

    desk.kafka.check = check
    outcome = desk.retry(several(40))
    assert (outcome.retried, outcome.already) == (38, 0)
    assert [one for one, _ in outcome.refused] == [Id(1, 3), Id(2, 7)]
    assert all("takes no record of this size for the topic" in why for _, why in outcome.refused)
    values = [int(value or b"") for *_, value in desk.back()]
    assert values == [number for number in range(40) if number not in {13, 30}]


def test_a_dead_letter_that_another_retry_has_retried_is_not_retried_again(desk: Desk) -> None:
    """Another run retried it after this one's producer failed and before the next producer started."""
    found = several(4)
    connect = desk.kafka.connect

    @asynccontextmanager
    async def connected() -> AsyncIterator[Any]:
        if desk.kafka.started == 1:  # ours has just failed
            desk.kafka.check = lambda topic, key, value: None
            assert await Retry(connect, desk.marks, SHOP).run(each(found[2:])) == Outcome(retried=2)
        async with connect() as producer:
            yield producer

    def check(topic: str, key: bytes | None, value: bytes | None) -> None:
        raise MessageSizeTooLargeError("for now")

    desk.kafka.check = check
    outcome = asyncio.run(Retry(connected, desk.marks, SHOP).run(each(found)))
    assert outcome == Outcome(retried=2, already=2)
    assert len(desk.back()) == 4


def test_each_is_retried_once_whatever_fails(desk: Desk) -> None:
    """Runs are cut off, fenced or refused at random, until one succeeds."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(50):
        desk.kafka = FakeKafka()
        found = several(chance.randint(1, 40))
        chance.shuffle(found)
        disturb(desk.kafka, chance)
        for _ in range(100):
            try:
                outcome = desk.retry(found)
            except Unavailable:
                continue
            assert outcome.retried + outcome.already == len(found)
            break
        assert sorted(desk.back()) == sorted((one.topic, one.partition, one.value) for one in found)


def disturb(fake: FakeKafka, chance: random.Random) -> None:
    """At random, Kafka is away at a commit, or another producer starts before it."""

    def before_commit(_: int) -> None:
        what = chance.random()
        if what < 0.15:
            raise KafkaConnectionError("away")
        if what < 0.3:
            fake.started += 1

    fake.before_commit = before_commit


# -- read


def in_kafka(monkeypatch: pytest.MonkeyPatch, **topics: Sequence[FakeRecord]) -> None:
    """Topics of four partitions with these records."""
    found = {f"shop.{name.replace('_', '-')}": records for name, records in topics.items()}

    def partitions(topic: str) -> list[list[FakeRecord]]:
        numbers = range(4 if topic in found else 0)
        return [[record for record in found[topic] if record.partition == number] for number in numbers]

    FakeTopics(monkeypatch, partitions)


def collected(found: AsyncGenerator[Letter, None]) -> list[Letter]:
    """All dead letters of an iterator."""

    async def collect() -> list[Letter]:
        return [one async for one in found]

    return asyncio.run(collect())


def test_those_with_a_reason_are_read_whatever_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """All dead letters are read, and those whose reason has the text are returned."""
    foreign = FakeRecord(None, None, 9, 1)
    later = replace(dead(1), timestamp=foreign.timestamp + 1)
    in_kafka(monkeypatch, dead_letters=[dead(0), foreign, later])
    looked: list[int] = []
    for reason, expected in ((None, [0, 9, 1]), ("PRODUCT_ID 'X'", [0, 1]), ("Zażółć", [0, 1]), ("nothing", [])):
        looked.clear()
        found = collected(letters.read("kafka:1", SHOP, reason, progress=looked.append))
        assert [one.id.offset for one in found] == expected
        assert sum(looked) == 3


def test_ids_are_read_once_each_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead letters are returned in the order of the given ids."""
    in_kafka(monkeypatch, dead_letters=[dead(0), dead(1), dead(1, 3)])
    ids = [Id(3, 1), Id(0, 1), Id(3, 1)]
    assert [one.id for one in collected(letters.chosen("kafka:1", SHOP, ids))] == [Id(3, 1), Id(0, 1)]
    for missing in (Id(0, 2), Id(4, 0), Id(10**9, 0)):
        with pytest.raises(Refused, match=f"there is no dead letter {missing} in topic shop.dead-letters"):
            asyncio.run(letters.check("kafka:1", SHOP, [Id(0, 0), missing]))


def test_a_shop_without_the_topics_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, and no topic is created."""
    in_kafka(monkeypatch)
    assert collected(letters.read("kafka:1", SHOP)) == []
    assert asyncio.run(letters.marks("kafka:1", SHOP)) == {}
    assert asyncio.run(letters.mark_of("kafka:1", SHOP, Id(0, 0))) is None
    with pytest.raises(Refused):
        asyncio.run(letters.check("kafka:1", SHOP, [Id(0, 0)]))


def test_the_latest_come_first_and_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead letters of all partitions are sorted by time, the latest first. Without the topic there are none."""
    times = [(0, 0, 5), (1, 0, 9), (0, 1, 7), (1, 1, 1), (2, 1, 8)]
    in_kafka(monkeypatch, dead_letters=[replace(dead(*letter_id), timestamp=1_000 * at) for *letter_id, at in times])
    found = asyncio.run(letters.latest("kafka:1", SHOP, 3))
    assert [str(one.id) for one in found] == ["0:1", "1:2", "1:0"]
    in_kafka(monkeypatch)
    assert asyncio.run(letters.latest("kafka:1", SHOP, 3)) == []


def test_marks_are_those_that_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark that was deleted by hand counts no more. A record of another program is no mark, or has no origin."""
    mark = b'{"dead_letter":"1:5","topic":"shop.purchases","partition":1,"offset":77}'
    in_kafka(
        monkeypatch,
        retries=[
            FakeRecord(b"1:5", mark, 0, 1),
            FakeRecord(b"2:6", mark, 0, 2),
            FakeRecord(b"2:6", None, 1, 2),
            FakeRecord(b"nonsense", mark, 0, 0),
            FakeRecord(b"\xff", mark, 1, 0),
            FakeRecord(None, mark, 2, 0),
            FakeRecord(b"0:9", b"\xff", 3, 0),
        ],
    )
    time = datetime.fromtimestamp(1_700_000_000, timezone.utc)
    assert asyncio.run(letters.marks("kafka:1", SHOP)) == {Id(1, 5): time, Id(0, 9): time}

    def mark_of(one: Id) -> Any:
        return asyncio.run(letters.mark_of("kafka:1", SHOP, one))

    assert mark_of(Id(1, 5)) == (time, letters.Mark("1:5", "shop.purchases", 1, 77))
    assert mark_of(Id(0, 9)) == (time, letters.Mark("0:9", "", -1, -1))
    assert [mark_of(one) for one in (Id(2, 6), Id(0, 0), Id(9, 9))] == [None] * 3
