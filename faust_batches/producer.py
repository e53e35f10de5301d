"""The producer: it sends nothing without a valid lease, and nothing twice by itself."""

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
    """The records may be in the log or not, or they are not ours to send: whoever sends them must find out."""

    retriable = False
    invalid_metadata = True


class LeaseProducer(driver.Producer):
    """Faust's producer, which sends nothing without a valid lease, and nothing twice by itself.

    aiokafka sends again what was not acknowledged when the connection went, or when the answer was an error that may
    pass. But it may be in the log: a broker that has it may lose the partition before it says so, and then answers that
    it is not the leader. A dead letter would be there twice. And what a process had in hand when it was put to sleep
    goes out when it wakes up, after its partitions were given to others. All of that becomes an error here, so that the
    batch is looked at again.
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
                raise Undecided("the lease on our partitions may have run out")
            try:
                answer = await send(node_id, request, **options)
            except KafkaError as error:
                raise Undecided(str(error) or type(error).__name__) from error
            if passing := next(_retriable_errors(answer), None):
                raise Undecided(passing)
            return answer

        return guarded


def _retriable_errors(answer: Any) -> Iterator[str]:
    """The errors in a produce response after which aiokafka would send the same again."""
    for topic, partitions in getattr(answer, "topics", ()):
        for number, code, *_ in partitions:
            error = for_code(code)
            if code and error.retriable:
                yield f"{topic}:{number}: {error.__name__}"


async def acknowledged(sends: Iterable[Awaitable[Awaitable[T]]]) -> list[T]:
    """Send one after the other, and wait until Kafka has acknowledged all.

    Raises:
        KafkaError: The first that failed. None of the others is left behind to be complained about later.
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
        for left in deliveries:
            left.add_done_callback(_seen)
        raise
    results = await asyncio.gather(*deliveries, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    if first := next(iter(failures), failure):
        raise first
    return cast("list[T]", results)


def _seen(delivery: asyncio.Future[Any]) -> None:
    if not delivery.cancelled():
        delivery.exception()
