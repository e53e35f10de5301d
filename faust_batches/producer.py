"""The producer: it sends and delivers nothing without a valid lease, and never resends a batch by itself."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver
from mode import Service

from .connections import notice_cuts, pace_refreshes
from .lease import Lease
from .refusals import InvalidRecordError, name_topic

T = TypeVar("T")

_RECALL_CHECK_SECONDS = 0.05
#: SO_LINGER: a closed connection is reset, and the kernel drops what the other side has not acknowledged.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Undecided(KafkaError):  # type: ignore[misc]  # noqa: N818 - aiokafka's class has no types
    """The records were not sent because the lease is not valid, or they may be in the log: the sender must find out."""

    retriable = False
    invalid_metadata = True

    def __init__(self, reason: str, kind: type[KafkaError] | None = None) -> None:
        super().__init__(reason)
        self.kind = kind  #: the broker's error, if it answered


class LeaseProducer(driver.Producer):
    """Faust's producer, which sends nothing without a valid lease, recalls what is under way, and never resends.

    aiokafka resends a batch after a lost connection or a retriable error. But the batch may be in the log: a broker may
    write it, lose the partition's leadership before it acknowledges, and answer that it is not the leader. A dead
    letter would be in the topic twice. And a process that was frozen sends its pending records when it wakes up, after
    its partitions were assigned to others. Here both are errors, so that the sender checks before it sends again.

    The kernel delivers what a socket has accepted, also minutes later, when a broken network works again. So when the
    lease ends, connections with a produce request under way are reset: the kernel drops what was not delivered.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._under_way: set[asyncio.WriteTransport] = set()

    async def on_start(self) -> None:
        await super().on_start()
        client: Any = self._ensure_producer().client
        notice_cuts(client, self._lease.timeout)
        pace_refreshes(client)
        client.send = self._guarded(client)
        self.app.quotas.heed(client)  # type: ignore[attr-defined]  # before the lease is looked at: it may take long
        if hasattr(signal, "SIGCONT") and threading.current_thread() is threading.main_thread():
            # A process that was frozen recalls before its event loop writes the rest of a request.
            signal.signal(signal.SIGCONT, lambda *_: self.recall_without_lease())

    @property
    def _lease(self) -> Lease:
        return self.app.lease  # type: ignore[attr-defined, no-any-return]

    def _guarded(self, client: Any) -> Callable[..., Awaitable[Any]]:
        send = client.send

        async def guarded(node_id: Any, request: Any, **options: Any) -> Any:
            if not isinstance(request, ProduceRequest):
                return await send(node_id, request, **options)
            connection = await client._get_conn(node_id, **options)  # may take long: only then check the lease
            if connection is None or not connection.connected():
                raise Undecided(f"no connection to broker {node_id}")
            if not self._lease.valid:
                raise Undecided("the lease on our partitions may have expired")
            with self._recallable(connection._writer.transport):
                try:
                    answer = await send(node_id, request, **options)
                except KafkaError as error:
                    raise Undecided(str(error) or type(error).__name__) from error
            for topic, number, kind in _errors(answer):
                undecided = Undecided(f"{topic}:{number}: {kind.__name__}", kind)
                name_topic(undecided, topic)
                raise undecided
            return answer

        return guarded

    @contextmanager
    def _recallable(self, transport: asyncio.WriteTransport) -> Iterator[None]:
        """Reset the connection when the lease ends before the body, or when the body fails."""
        link = transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel gives up by itself, should this process be frozen
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._lease.timeout * 1000))
        self._under_way.add(transport)
        try:
            yield
        except BaseException:
            transport.abort()
            raise
        finally:
            self._under_way.discard(transport)

    @Service.task
    async def _recall_in_time(self) -> None:
        while not self.should_stop:
            await self.sleep(_RECALL_CHECK_SECONDS)
            self.recall_without_lease()

    def recall_without_lease(self) -> None:
        """Reset the connections with a produce request under way, unless the lease is valid."""
        if not self._lease.valid:
            for transport in list(self._under_way):
                transport.abort()


def _errors(answer: Any) -> Iterator[tuple[str, int, type[KafkaError]]]:
    """The errors in a produce response after which aiokafka would resend the batch, and the one that it can't name."""
    for topic, partitions in getattr(answer, "topics", ()):
        for number, code, *_ in partitions:
            error = InvalidRecordError if code == InvalidRecordError.errno else for_code(code)
            if code and (error.retriable or error is InvalidRecordError):
                yield topic, number, error


async def acknowledged(sends: Iterable[Awaitable[Awaitable[T]]]) -> list[T]:
    """Send one record or batch after the other, and wait until Kafka has acknowledged all. Returns their metadata.

    Raises:
        KafkaError: The first failure. The results of all others were retrieved, so asyncio logs nothing about them.
    """
    deliveries: list[asyncio.Future[T]] = []
    failure: BaseException | None = None
    try:
        for send in sends:
            delivery = await send
            deliveries.append(asyncio.ensure_future(delivery))
    except KafkaError as error:
        failure = error
    except asyncio.CancelledError:
        for pending in deliveries:
            pending.add_done_callback(_retrieve)
        raise
    results = await asyncio.gather(*deliveries, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if first := next(iter(failures), failure):
        raise first
    return cast("list[T]", results)


def _retrieve(delivery: asyncio.Future[Any]) -> None:
    if not delivery.cancelled():
        delivery.exception()
