"""A transactional producer whose transaction stays open until the test ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer

T = TypeVar("T")


class Transactional:
    """A transactional producer, whose methods any thread may call."""

    def __init__(self, kafka: str, transactional_id: str, timeout_seconds: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._producer = self._run(self._started(kafka, transactional_id, timeout_seconds))

    def begin(self) -> None:
        """Begin a transaction. Kafka learns of it with its first record."""
        self._run(self._producer.begin_transaction())

    def send(self, topic: str, partition: int, *values: bytes, key: bytes | None = None) -> list[int]:
        """Send records in the transaction; returns their offsets."""

        async def all_sent() -> list[int]:
            return [(await self._producer.send_and_wait(topic, value, key, partition)).offset for value in values]

        return self._run(all_sent())

    def commit(self) -> None:
        self._run(self._producer.commit_transaction())

    def abort(self) -> None:
        self._run(self._producer.abort_transaction())

    def leave(self) -> None:
        """Close the producer. An open transaction stays open."""
        if self._loop.is_running():
            self._run(self._producer.stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    @staticmethod
    async def _started(kafka: str, transactional_id: str, timeout_seconds: float) -> Any:
        producer = AIOKafkaProducer(
            bootstrap_servers=kafka.split(";"),
            transactional_id=transactional_id,
            transaction_timeout_ms=int(timeout_seconds * 1000),
        )
        await producer.start()
        return producer


@contextmanager
def transactional(kafka: str, transactional_id: str, timeout_seconds: float = 300.0) -> Iterator[Transactional]:
    """A producer, which is closed after the block. An open transaction stays open."""
    producer = Transactional(kafka, transactional_id, timeout_seconds)
    try:
        yield producer
    finally:
        producer.leave()
