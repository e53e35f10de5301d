"""The producer: it sends nothing without a valid lease, and never resends a batch by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver

from .lease import Lease

T = TypeVar("T")


class Undecided(KafkaError):  # type: ignore[misc]  # noqa: N818 - aiokafka's class has no types
    """The records were not sent because the lease is not valid, or they may be in the log: the sender must find out."""

    retriable = False
    invalid_metadata = True


class LeaseProducer(driver.Producer):
    """Faust's producer, which sends nothing without a valid lease, and never resends a batch by itself.

    aiokafka resends a batch after a lost connection or a retriable error. But the batch may be in the log: a broker may
    write it, lose the partition's leadership before it acknowledges, and answer that it is not the leader. A dead
    letter would be in the topic twice. And a process that was frozen sends its pending records when it wakes up, after
    its partitions were assigned to others. Here both are errors, so that the sender checks before it sends again.
    """

    async def on_start(self) -> None:
        await super().on_start()
        client: Any = self._ensure_producer().client
        client.send = self._guarded(client.send)

    def _guarded(self, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        lease: Lease = self.app.lease  # type: ignore[attr-defined]

        async def guarded(node_id: Any, request: Any, **options: Any) -> Any:
            if not isinstance(request, ProduceRequest):
                return await send(node_id, request, **options)
            if not lease.valid:
                raise Undecided("the lease on our partitions may have expired")
            try:
                answer = await send(node_id, request, **options)
            except KafkaError as error:
                raise Undecided(str(error) or type(error).__name__) from error
            if retriable := next(_retriable_errors(answer), None):
                raise Undecided(retriable)
            return answer

        return guarded


def _retriable_errors(answer: Any) -> Iterator[str]:
    """The errors in a produce response after which aiokafka would resend the batch."""
    for topic, partitions in getattr(answer, "topics", ()):
        for number, code, *_ in partitions:
            error = for_code(code)
            if code and error.retriable:
                yield f"{topic}:{number}: {error.__name__}"


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
