"""The producer sends nothing without a valid lease."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, NotLeaderForPartitionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from faust_batches.lease import Lease
from faust_batches.producer import LeaseProducer, Undecided, acknowledged


class Connection:
    """A client with a given answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_producer_that_slept_sends_nothing_without_a_lease() -> None:
    """After a sleep its partitions may belong to other workers. aiokafka must not repeat a failed request either."""
    clock = [100.0]
    lease = Lease(30.0, lambda: clock[0])
    lease.renew(100.0)
    producer = LeaseProducer.__new__(LeaseProducer)
    producer.app = SimpleNamespace(lease=lease)  # type: ignore[assignment]
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


def test_an_answer_after_which_it_would_be_sent_again_is_an_error() -> None:
    """The record may be in the log: the broker was the leader when it wrote it, and not when it answered."""
    lease = Lease(30.0)
    lease.renew(lease.clock())
    producer = LeaseProducer.__new__(LeaseProducer)
    producer.app = SimpleNamespace(lease=lease)  # type: ignore[assignment]
    produce = ProduceRequest(transactional_id=None, required_acks=-1, timeout=1, topics=[])

    def answered(*codes: int) -> Any:
        answer = SimpleNamespace(topics=[("letters", [(number, code, 5, -1, 0) for number, code in enumerate(codes)])])
        guarded = producer._guarded(Connection(answer).send)
        assert asyncio.run(guarded(1, produce)) is answer

    answered(0, 0)
    answered(0, MessageSizeTooLargeError.errno)
    with pytest.raises(Undecided, match="letters:1: NotLeaderForPartitionError") as undecided:
        answered(0, NotLeaderForPartitionError.errno)
    assert not undecided.value.retriable
    assert undecided.value.invalid_metadata, "the leader must be asked for"


async def sent(outcome: Any, seconds: float = 0) -> Awaitable[Any]:
    """A record that is acknowledged with this outcome, or fails with it, after some time."""

    async def delivered() -> Any:
        await asyncio.sleep(seconds)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return asyncio.ensure_future(delivered())


async def refused(error: Exception) -> Awaitable[Any]:
    """A record that can't be sent."""
    raise error


def test_all_are_acknowledged_in_their_order() -> None:
    """The results are in the order of the records, whichever is acknowledged first."""
    assert asyncio.run(acknowledged(sent(number, 0.01 / (1 + number)) for number in range(3))) == [0, 1, 2]


def test_the_first_failure_is_raised_after_all_have_ended() -> None:
    """The failure of the earliest record is raised, also if a later record failed first."""
    late = MessageSizeTooLargeError("late")
    with pytest.raises(MessageSizeTooLargeError, match="late"):
        asyncio.run(acknowledged([sent(1), sent(late, 0.01), sent(NotLeaderForPartitionError("early"))]))
    with pytest.raises(MessageSizeTooLargeError, match="late"):
        asyncio.run(acknowledged([sent(late), refused(KafkaConnectionError("cut"))]))
    with pytest.raises(KafkaConnectionError, match="cut"):
        asyncio.run(acknowledged([sent(1), refused(KafkaConnectionError("cut"))]))


def test_failures_that_nobody_waits_for_are_not_complained_about() -> None:
    """If the sender is cancelled, asyncio logs no line for the failures of its records."""
    complaints: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

        async def stuck() -> Awaitable[Any]:
            await asyncio.sleep(60)
            raise AssertionError

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(acknowledged([sent(KafkaConnectionError("cut"), 0.02), stuck()]), 0.01)
        await asyncio.sleep(0.03)
        gc.collect()

    asyncio.run(run())
    assert complaints == []
