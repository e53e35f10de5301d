"""A producer for as long as a program runs: started at the first event, shared, and replaced after a failure.

A producer of aiokafka does not outlive every failure. A batch that waits for a leader for more than 40 s fails, but its
sequence numbers are used up: Kafka refuses each later record of that partition with OutOfOrderSequenceNumber.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiokafka.errors import KafkaError, KafkaTimeoutError

from faust_batches import acknowledged
from faust_batches.refusals import kafka_failure
from shopflow.errors import Unavailable

#: Records sent before other coroutines may run.
_SLICE = 100
_CLOSE_SECONDS = 2.0


class Sender:
    """Sends keys and values. The key determines the partition, as in Java's producers.

    A worker does not use Faust's producer for events that come over HTTP: it sends nothing without a valid lease, and
    these events need no lease.

    Arguments:
        connect: Returns a producer as an async context manager, whose start raises `Unavailable`.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._connect = connect
        self._current: _Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Send records, and return when Kafka has acknowledged all. It may be cancelled at any time.

        Raises:
            Unavailable: Not all were acknowledged; some may be in the log.
            Refusal: The topic takes one of them only with another configuration.
        """
        connection = self._connection()
        client = await asyncio.shield(connection.client)
        try:
            for start in range(0, len(records), _SLICE):
                await acknowledged(client.send(topic, value, key) for key, value in records[start : start + _SLICE])
        except KafkaError as error:
            if not isinstance(error, KafkaTimeoutError):
                self._release(connection)  # after this error the producer would fail for ever
            raise kafka_failure(error, topic) from error

    async def close(self) -> None:
        """Refuse further sends. Sends under way get 2 seconds."""
        self._closed = True
        if self._current is not None:
            self._release(self._current)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _connection(self) -> _Connection:
        if self._closed:
            raise Unavailable("Kafka", "this worker stops")
        if self._current is None or self._current.failed:
            self._current = _Connection()
            task = asyncio.create_task(self._current.keep(self._connect))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return self._current

    def _release(self, connection: _Connection) -> None:
        connection.over.set()
        if self._current is connection:
            self._current = None


class _Connection:
    """A producer that a task of its own starts and stops. A request can't do that: it may be cancelled."""

    def __init__(self) -> None:
        self.client: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()

    @property
    def failed(self) -> bool:
        return self.client.done() and self.client.exception() is not None

    async def keep(self, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        try:
            async with connect() as client:
                self.client.set_result(client)
                await self.over.wait()
        except (Unavailable, KafkaError) as error:
            self._fail(error if isinstance(error, Unavailable) else Unavailable("Kafka", error))
        finally:
            self._fail(Unavailable("Kafka", "the producer did not start"))

    def _fail(self, error: Unavailable) -> None:
        if not self.client.done():
            self.client.set_exception(error)
            self.client.exception()  # retrieved here, because no request may be waiting for it
