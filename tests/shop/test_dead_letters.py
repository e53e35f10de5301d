"""Dead letters: unchanged records with their origin and reason, each once."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from shopflow.errors import Rejected
from shopflow.shop.dead_letters import DeadLetters, headers_of, origin_of
from tests.support.fakes import FakeOutlet, FakeRecord

WHY = Rejected("invalid event", "price: Expected `int` >= 0 – zażółć")


def test_the_headers_are_kafka_connects() -> None:
    """Tools that know Kafka Connect's headers can read the dead letters. The record's own headers stay."""
    record = FakeRecord(
        b"k", b"v", 42, 3, "shop.purchases", headers=(("trace", b"1"), ("__connect.errors.topic", b"?"))
    )
    assert headers_of(record, WHY, "shopflow") == [
        ("trace", b"1"),
        ("__connect.errors.topic", b"shop.purchases"),
        ("__connect.errors.partition", b"3"),
        ("__connect.errors.offset", b"42"),
        ("__connect.errors.connector.name", b"shopflow"),
        ("__connect.errors.stage", b"TASK_PUT"),
        ("__connect.errors.exception.class.name", b"shopflow.errors.Rejected"),
        ("__connect.errors.exception.message", str(WHY).encode()),
    ]


def test_a_reason_that_is_not_unicode_can_be_sent() -> None:
    """A lone surrogate from a producer's JSON does not stop the worker."""
    headers = dict(headers_of(FakeRecord(None, None), Rejected("x", "\ud800"), "a"))
    assert headers["__connect.errors.exception.message"] == b"x: \\ud800"


@pytest.mark.parametrize("key", [None, b"", b"\xff"])
@pytest.mark.parametrize("value", [None, b"", b"\x00\xff"])
def test_key_and_value_are_as_they_came(key: bytes | None, value: bytes | None) -> None:
    """Key and value have the same bytes as in the record."""
    outlet = FakeOutlet()
    letters = DeadLetters("dead", 4, "shopflow", outlet.send)
    asyncio.run(letters.put([(FakeRecord(key, value, 1, 6), WHY)]))
    assert [one[:4] for one in outlet.got] == [("dead", key, value, 2)]


class Log:
    """The topic with the dead letters of earlier workers."""

    def __init__(self, *records: FakeRecord) -> None:
        self.records = [
            FakeRecord(r.key, r.value, 0, 0, "dead", headers=tuple(headers_of(r, WHY, "x"))) for r in records
        ]
        self.asked: list[tuple[str, int, int]] = []

    async def read_since(self, topic: str, partition: int, since: int, *, of: Any) -> list[Any]:
        self.asked.append((topic, partition, since))
        return list(map(of, self.records))


def put(letters: DeadLetters, *records: FakeRecord) -> None:
    """Reject these records."""
    asyncio.run(letters.put([(record, WHY) for record in records]))


def test_what_a_worker_before_us_sent_is_not_sent_again() -> None:
    """A worker died after it sent dead letters and before it committed. Its batch comes again."""
    one, two, three = (FakeRecord(b"k", b"v", offset, 1) for offset in (1, 2, 3))
    elsewhere = FakeRecord(b"k", b"v", 3, 2)
    log, outlet = Log(one, two, elsewhere), FakeOutlet()
    letters = DeadLetters("dead", 4, "shopflow", outlet.send, log.read_since)
    put(letters, one, two)
    put(letters, three)
    assert [origin_of(FakeRecord(None, None, headers=tuple(got[4])))[2] for got in outlet.got] == [3]
    assert log.asked == [("dead", 1, one.timestamp - 600_000)]


def test_after_a_rebalance_the_log_is_asked_again() -> None:
    """Another worker may have sent dead letters meanwhile."""
    one = FakeRecord(b"k", b"v", 1)
    log, outlet = Log(), FakeOutlet()
    letters = DeadLetters("dead", 4, "shopflow", outlet.send, log.read_since)
    put(letters, one)
    put(letters, one)
    assert len(outlet.got) == 1
    letters.forget()
    put(letters, one)
    assert len(log.asked) == 2


def test_what_was_not_acknowledged_is_looked_up_again() -> None:
    """After an error, some dead letters may be in the topic."""
    one = FakeRecord(b"k", b"v", 1)
    log, outlet = Log(), FakeOutlet()
    outlet.failures = [KafkaConnectionError("away")]
    letters = DeadLetters("dead", 4, "shopflow", outlet.send, log.read_since)
    with pytest.raises(KafkaConnectionError):
        put(letters, one)
    put(letters, one)
    assert len(log.asked) == 2
    assert len(outlet.got) == 1


def test_headers_of_another_program_have_no_origin() -> None:
    """Unknown records in the topic do not stop the worker."""
    assert origin_of(FakeRecord(None, None)) == ("", -1, -1)
    assert origin_of(FakeRecord(None, None, headers=(("__connect.errors.offset", b"x"),))) == ("", -1, -1)


def test_failures_of_one_reason_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio would write a traceback for each failed send that nobody awaited."""

    async def send(*args: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(KafkaConnectionError("away"))
        return future

    letters = DeadLetters("dead", 4, "shopflow", send)
    with pytest.raises(KafkaConnectionError):
        put(letters, *(FakeRecord(b"k", b"v", offset) for offset in range(3)))
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize(("partition", "expected"), [(0, 0), (3, 3), (4, 0), (7, 3)])
def test_a_dead_letter_goes_to_the_partition_of_its_number(partition: int, expected: int) -> None:
    """Dead letters of one partition stay in order, also if their topic has more partitions."""
    outlet = FakeOutlet()
    letters = DeadLetters("dead", 4, "shopflow", outlet.send)
    put(letters, *(FakeRecord(b"k", b"v", offset, partition) for offset in range(3)))
    assert [one[3] for one in outlet.got] == [expected] * 3
    assert [dict(one[4])["__connect.errors.offset"] for one in outlet.got] == [b"0", b"1", b"2"]


def test_headers_that_are_there_twice_stay_twice_and_in_their_order() -> None:
    """Kafka allows a header's name twice, and a header without a value."""
    own: Any = (("a", b"1"), ("b", None), ("a", b"2"))
    assert headers_of(FakeRecord(b"k", b"v", headers=own), WHY, "shopflow")[:3] == list(own)


def test_a_dead_letter_that_is_one_again_says_where_it_was_last() -> None:
    """All headers of the earlier failure are replaced, so that a reader does not see parts of both."""
    first = headers_of(FakeRecord(b"k", b"v", 1, 2, "shop.purchases"), WHY, "shopflow")
    again = FakeRecord(b"k", b"v", 5, 2, "shop.retries", headers=(("trace", b"1"), *first))
    assert headers_of(again, WHY, "shopflow") == [
        ("trace", b"1"),
        *headers_of(FakeRecord(b"k", b"v", 5, 2, "shop.retries"), WHY, "shopflow"),
    ]


def test_nothing_is_sent_for_nothing() -> None:
    """Without bad records nothing is sent, and the topic is not read."""
    log, outlet = Log(), FakeOutlet()
    asyncio.run(DeadLetters("dead", 4, "shopflow", outlet.send, log.read_since).put([]))
    assert (outlet.got, log.asked) == ([], [])
