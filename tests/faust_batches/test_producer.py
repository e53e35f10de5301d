"""The producer: nothing is sent by who may have lost its partitions."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, NotLeaderForPartitionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from faust_batches.lease import Lease
from faust_batches.producer import LeaseProducer, Undecided


class Connection:
    """A client that answers what it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_a_sleeper_had_in_hand_is_not_sent_when_it_wakes_up() -> None:
    """Its partitions may be others' by now. Nor is anything sent a second time behind our back."""
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
    """The broker may have it: it was the leader when it wrote it, and no longer when it answered."""
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
