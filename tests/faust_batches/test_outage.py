"""Outages are logged once, and retries end only with the partition. Repeated work goes on after errors."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NotLeaderForPartitionError

from faust_batches import Outage, PartitionLost, Troubles, Unavailable, retrying
from faust_batches import outage as outages
from faust_batches.errors import Refusal

AWAY = Unavailable("MongoDB", "no answer")


class Server:
    """Fails this many times, then answers."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def ask(self) -> str:
        if self.failures:
            self.failures -= 1
            raise AWAY
        return "answer"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time here."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(outages.asyncio, "sleep", sleep)
    return waited


def test_the_pause_grows_to_its_limit(pauses: list[float]) -> None:
    """A short failure costs little time, and a long one causes few requests."""
    assert asyncio.run(retrying(Outage("MongoDB"), lambda: None, Server(8).ask)) == "answer"
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0]


def test_one_line_when_it_goes_and_one_when_it_is_back(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """An outage has one line at its beginning and one at its end, however many attempts fail."""
    outage = Outage("MongoDB")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            asyncio.run(retrying(outage, lambda: None, Server(3).ask))
        outage.succeeded(1)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 4
    assert lines[0] == "MongoDB is away; nothing is lost, the work goes on when it is back. (MongoDB: no answer)"
    assert lines[1].startswith("MongoDB is back after ")
    assert outage.seconds is None


def test_the_check_ends_it(pauses: list[float]) -> None:
    """The check is made before each attempt, and its error ends the retries."""
    server = Server(100)

    def check() -> None:
        if server.failures < 98:
            raise PartitionLost("gone")

    with pytest.raises(PartitionLost):
        asyncio.run(retrying(Outage("MongoDB"), check, server.ask))
    assert server.failures == 97


def test_other_errors_are_not_retried(pauses: list[float]) -> None:
    """An error that is no outage is a fault of the program."""

    async def fails() -> None:
        raise ValueError("fault")

    with pytest.raises(ValueError, match="fault"):
        asyncio.run(retrying(Outage("MongoDB"), lambda: None, fails))
    assert pauses == []


def test_an_outage_is_logged_once_with_many_callers(caplog: pytest.LogCaptureFixture) -> None:
    """Several threads may record the outage at the same moment."""
    outage = Outage("Kafka")
    for what in (lambda: outage.failed(Unavailable("Kafka", "away"), 1), lambda: outage.succeeded(1)):
        threads = [threading.Thread(target=what) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [record.getMessage().split(";")[0][:13] for record in caplog.records] == ["Kafka is away", "Kafka is back"]


def test_a_server_that_refuses_to_write_and_still_answers_is_away_until_it_writes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a full disk, reads succeed while writes fail. Only the writers' successes end the outage."""
    outage = Outage("MongoDB")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            outage.failed(AWAY, "one writer")
            outage.failed(AWAY, "another")
            outage.succeeded("a reader")
        outage.succeeded("one writer")
        assert outage.seconds is not None
        outage.succeeded("another")
    assert outage.seconds is None
    assert len(caplog.records) == 2


def test_a_caller_that_lost_its_partition_does_not_prolong_the_outage(pauses: list[float]) -> None:
    """A caller that gave up will never record a success, so another caller's success ends the outage."""
    outage, server, answers = Outage("MongoDB"), Server(9), [None, None]

    def check() -> None:
        if not answers:
            raise PartitionLost("gone")
        answers.pop()

    with pytest.raises(PartitionLost):
        asyncio.run(retrying(outage, check, server.ask))
    assert outage.seconds is not None
    asyncio.run(retrying(outage, lambda: None, Server(0).ask))
    assert outage.seconds is None


def test_no_attempt_is_made_for_a_lost_partition(pauses: list[float]) -> None:
    """The first attempt could write into another worker's partition."""
    server = Server(1)

    def check() -> None:
        raise PartitionLost("gone")

    with pytest.raises(PartitionLost):
        asyncio.run(retrying(Outage("MongoDB"), check, server.ask))
    assert (server.failures, pauses) == (1, [])


def test_the_next_outage_begins_with_a_short_pause(pauses: list[float]) -> None:
    """A long outage does not lengthen the pauses of the next one."""
    outage = Outage("MongoDB")
    for failures in (7, 2):
        asyncio.run(retrying(outage, lambda: None, Server(failures).ask))
    assert pauses[-2:] == [0.1, 0.2]


def test_many_retrying_callers_log_one_outage(caplog: pytest.LogCaptureFixture) -> None:
    """Each partition has an actor that waits; they share the outage."""
    outage = Outage("Kafka")
    with caplog.at_level(logging.INFO):
        for who in range(12):
            outage.failed(AWAY, who)
        for who in range(13):
            outage.succeeded(who)
    assert [record.getMessage().split()[2].strip(";") for record in caplog.records] == ["away", "back"]


def test_repeated_work_logs_an_error_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error in background work must not end the worker."""
    pauses: list[float] = []
    outcomes = [KeyError("a"), KeyError("a"), 0.5, KeyError("a"), ValueError("b"), 0.7]

    async def work() -> float:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(outages.asyncio, "sleep", sleep)
    asyncio.run(outages.repeated("The work", work, lambda: bool(outcomes)))
    assert pauses == [1.0, 1.0, 0.5, 1.0, 1.0, 0.7]
    assert [record.getMessage() for record in caplog.records] == ["The work: failed; trying again"] * 3
    assert all(record.exc_info for record in caplog.records)


LOGIN = Refusal("Kafka", "Kafka", "kafka.username: Kafka refuses the login of 'shop'")
TOO_LARGE = Refusal("Kafka", "sold", "Kafka takes no record of this size for the topic sold")


def test_a_refusal_is_no_outage_and_ends_when_its_caller_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    """It has one line when it begins and one when it is over, however many callers and attempts it has."""
    troubles = Troubles()
    outage = Outage("Kafka", troubles=troubles)
    for caller in (1, 2, 1):
        outage.failed(TOO_LARGE, caller)
    assert (outage.seconds, outage.refuses, outage.refuses_all) == (None, True, False)
    outage.succeeded(1)
    outage.succeeded(3)
    assert [(one.kind, one.subject, one.stops) for one in troubles.present] == [("refused", "sold", True)]
    outage.succeeded(2)
    assert (outage.refuses, troubles.present) == (False, [])
    assert [line.partition(": ")[0] for line in caplog.messages] == [TOO_LARGE.text, "It is over after 0 s"]


def test_a_refused_login_is_no_outage_for_those_who_only_see_that_nothing_works() -> None:
    """Senders get no connection, and not the reason. When the server is away afterwards, that is an outage."""
    troubles = Troubles()
    outage = Outage("Kafka", troubles=troubles)
    outage.failed(AWAY, "sender")
    outage.failed(LOGIN, "watch")
    outage.failed(AWAY, "sender")
    assert (outage.seconds, outage.refuses_all) == (None, True)
    outage.failed(AWAY, "watch")
    assert outage.seconds is not None
    assert (outage.refuses, troubles.present) == (False, [])


def test_a_caller_that_is_refused_something_else_ends_the_first_refusal() -> None:
    """Somebody mends one setting, and the next one is wrong, too."""
    troubles = Troubles()
    outage = Outage("Kafka", troubles=troubles)
    outage.failed(LOGIN, 1)
    outage.failed(TOO_LARGE, 1)
    assert [one.subject for one in troubles.present] == ["sold"]
    outage.gave_up(1)
    assert (outage.refuses, troubles.present) == (False, [])


def test_a_refused_request_is_repeated_less_often(pauses: list[float]) -> None:
    """Somebody must change a setting first."""
    answers = iter([TOO_LARGE, TOO_LARGE, None])

    async def ask() -> str:
        if error := next(answers):
            raise error
        return "answer"

    assert asyncio.run(retrying(Outage("Kafka", troubles=Troubles()), lambda: None, ask)) == "answer"
    assert pauses == [outages.REFUSED_PAUSE_SECONDS] * 2


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("error", [NotLeaderForPartitionError, LeaderNotAvailableError])
def test_a_leader_that_moves_is_no_outage(
    pauses: list[float], caplog: pytest.LogCaptureFixture, error: type[KafkaError], wrapped: bool
) -> None:
    """A broker that wakes up is not yet a leader again: more attempts, and no line."""
    answers: list[Exception | str] = [error(), error(), "read"]

    class OurBatch:
        def check_owned(self) -> None: ...

        async def wait_for_lease(self) -> None: ...

    async def attempt() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            if wrapped:  # as reads do
                raise Unavailable("Kafka", "moved") from answer
            raise answer
        return answer

    batch: Any = OurBatch()
    assert asyncio.run(outages.retrying_kafka(Outage("Kafka"), batch, attempt)) == "read"
    assert caplog.text == ""
