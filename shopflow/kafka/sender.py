"""A producer for the events that come over HTTP: started when it is needed, shared, replaced when it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from aiokafka.errors import KafkaError, KafkaTimeoutError

from faust_batches import acknowledged
from shopflow.errors import Unavailable

#: Sent before others get their turn.
_SLICE = 100
_CLOSE_SECONDS = 2.0


class Sender:
    """Sends keys and values, each to the partition of its key as Java's producers choose it.

    Not Faust's producer: that one sends nothing without a valid lease, and an event that comes over HTTP needs none.

    Arguments:
        connect: Starts a producer, as an async context manager; raises `Unavailable`.
    """

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._connect = connect
        self._current: _Connection | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def send(self, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Send records, and return when Kafka has acknowledged all. May be cancelled at any time.

        Raises:
            Unavailable: Some may be in the log.
        """
        connection = self._connection()
        client = await asyncio.shield(connection.client)
        try:
            for start in range(0, len(records), _SLICE):
                await acknowledged(client.send(topic, value, key) for key, value in records[start : start + _SLICE])
        except KafkaError as error:
            if not isinstance(error, KafkaTimeoutError):
                self._leave(connection)  # one that failed for good fails for ever
            raise Unavailable("Kafka", str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Send nothing more. What is under way gets some seconds."""
        self._closed = True
        if self._current is not None:
            self._leave(self._current)
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

    def _leave(self, connection: _Connection) -> None:
        connection.over.set()
        if self._current is connection:
            self._current = None


class _Connection:
    """A producer, and the task that started it and will stop it: no request does, since each may be cancelled."""

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
            self.client.exception()  # nobody may be left who waits for it
