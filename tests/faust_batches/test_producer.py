"""The producer sends nothing without a valid lease."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, NotLeaderForPartitionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from faust_batches.lease import Lease
from faust_batches.producer import LeaseProducer, Undecided, acknowledged


class Transport:
    """A connection's transport that notes whether it was reset."""

    def __init__(self) -> None:
        self.aborted = False

    def get_extra_info(self, name: str) -> Any:
        return SimpleNamespace(setsockopt=lambda *option: None)

    def abort(self) -> None:
        self.aborted = True


class Client:
    """A client with given answers. An exception is raised, a function is called."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.sent: list[Any] = []
        self.transport: Any = Transport()
        self.connect: Callable[[], None] = lambda: None

    async def _get_conn(self, node_id: int) -> Any:
        self.connect()
        return SimpleNamespace(connected=lambda: True, _writer=SimpleNamespace(transport=self.transport))

    async def send(self, node_id: int, request: Any, **options: Any) -> Any:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return await answer() if callable(answer) else answer


def producer_with(lease: Lease) -> LeaseProducer:
    """A producer that was not started."""
    made = LeaseProducer.__new__(LeaseProducer)
    made.app = SimpleNamespace(lease=lease)  # type: ignore[assignment]
    made._under_way = set()
    return made


def produce() -> ProduceRequest:
    return ProduceRequest(transactional_id=None, required_acks=-1, timeout=1, topics=[])


def test_a_producer_that_slept_sends_nothing_without_a_lease() -> None:
    """After a sleep its partitions may belong to other workers. aiokafka must not repeat a failed request either."""
    clock = [100.0]
    lease = Lease(30.0, lambda: clock[0])
    lease.renew(100.0)
    client = Client("sent", KafkaConnectionError("cut"), "metadata")
    guarded = producer_with(lease)._guarded(client)
    assert asyncio.run(guarded(1, produce())) == "sent"
    assert not client.transport.aborted
    with pytest.raises(KafkaError) as cut:
        asyncio.run(guarded(1, produce()))
    assert not cut.value.retriable
    assert client.transport.aborted, "else the kernel may deliver it later"
    clock[0] = 140.0
    with pytest.raises(KafkaError) as slept:
        asyncio.run(guarded(1, produce()))
    assert not slept.value.retriable
    assert asyncio.run(guarded(1, MetadataRequest([]))) == "metadata"
    assert len(client.sent) == 3


def test_the_lease_is_checked_after_a_connection_that_took_long() -> None:
    """A network that was cut lets connect when it is whole again: then the partition has another owner."""
    clock = [100.0]
    lease = Lease(30.0, lambda: clock[0])
    lease.renew(100.0)
    client = Client("sent")
    client.connect = lambda: clock.__setitem__(0, 140.0)
    with pytest.raises(Undecided, match="lease"):
        asyncio.run(producer_with(lease)._guarded(client)(1, produce()))
    assert client.sent == []


def test_what_was_not_delivered_when_the_lease_ends_never_is() -> None:
    """The kernel would deliver it when the network works again, after the records of the partition's next owner."""
    request = b"x" * (16 << 20)  # more than both sides' buffers hold

    async def run() -> int:
        clock = [100.0]
        lease = Lease(30.0, lambda: clock[0])
        lease.renew(100.0)
        producer = producer_with(lease)
        with socket.create_server(("127.0.0.1", 0)) as server:
            reader, writer = await asyncio.open_connection(*server.getsockname())
            broker = server.accept()[0]

            async def answer() -> Any:
                writer.write(request)
                assert await reader.read(1) == b"", "closed"
                raise KafkaConnectionError("closed")

            client = Client(answer)
            client.transport = writer.transport
            sending = asyncio.ensure_future(producer._guarded(client)(1, produce()))
            await asyncio.sleep(0.05)
            producer.recall_without_lease()
            assert not writer.transport.is_closing(), "the lease is valid"
            clock[0] = 127.0
            producer.recall_without_lease()
            with pytest.raises(Undecided, match="closed"):
                await asyncio.wait_for(sending, 10)
        with broker:
            broker.settimeout(10)
            return await asyncio.to_thread(_received, broker)

    assert asyncio.run(run()) < len(request)


def _received(broker: socket.socket) -> int:
    """Bytes that came before the reset."""
    count = 0
    while True:
        try:
            piece = broker.recv(1 << 20)
        except ConnectionResetError:
            return count
        assert piece, "closed in order: the kernel would have delivered the rest"
        count += len(piece)


def test_an_answer_after_which_it_would_be_sent_again_is_an_error() -> None:
    """The record may be in the log: the broker was the leader when it wrote it, and not when it answered."""
    lease = Lease(30.0)
    lease.renew(lease.clock())
    producer = producer_with(lease)

    def answered(*codes: int) -> Any:
        answer = SimpleNamespace(topics=[("letters", [(number, code, 5, -1, 0) for number, code in enumerate(codes)])])
        guarded = producer._guarded(Client(answer))
        assert asyncio.run(guarded(1, produce())) is answer

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
