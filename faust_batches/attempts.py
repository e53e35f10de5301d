"""How a batch's work gets done while servers come and go: tried again until they answer or the partition is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from aiokafka.errors import KafkaError

from shopflow.errors import Unavailable
from shopflow.store.connection import Store

from .outage import Outage, retrying

__all__ = ["Attempts", "Owned", "repeated"]

log = logging.getLogger(__name__)

#: Pause after what should not have been raised.
RETRY_SECONDS = 1.0

T = TypeVar("T")


class Owned(Protocol):
    """What is needed of `batching.Batch`."""

    def check_owned(self) -> None:
        """Raises:
        PartitionLost: It is no longer ours.
        """

    async def session(self) -> None:
        """Return when it is sure that the partition is ours.

        Raises:
            PartitionLost: It is not.
        """


class Attempts:
    """Tries what it is given, for as long as it takes.

    Arguments:
        mongodb, kafka: Whether they are away, as all of the worker see it.
    """

    def __init__(self, store: Store, mongodb: Outage, kafka: Outage) -> None:
        self._store = store
        self._prepared = False
        self._mongodb = mongodb
        self._kafka = kafka

    async def with_mongodb(self, batch: Owned, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until MongoDB answers. `attempt` must be idempotent.

        Raises:
            PartitionLost: The batch is no longer ours.
        """

        async def prepared() -> T:
            if not self._prepared:
                await self._store.prepare()
                self._prepared = True
            return await attempt()

        return await retrying(self._mongodb, batch.check_owned, prepared)

    async def with_kafka(self, batch: Owned, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until Kafka has taken it, and only while it is sure that the partition is ours.

        Kafka does not refuse records of a worker that lost the partition and does not know it yet, since it slept; so
        nothing is sent while the session may have run out. `attempt` must be idempotent.

        Raises:
            PartitionLost: The batch is no longer ours.
        """

        async def translated() -> T:
            await batch.session()
            try:
                return await attempt()
            except KafkaError as error:
                await batch.session()  # we slept: it is not Kafka that was away
                raise Unavailable("Kafka", error) from error

        return await retrying(self._kafka, batch.check_owned, translated)


async def repeated(what: str, work: Callable[[], Awaitable[float]], going: Callable[[], bool]) -> None:
    """Do it again and again. A fault of the program in it is said once, and tried again.

    Arguments:
        what: What it is about, for the log.
        work: Returns the seconds to wait before the next time.
        going: Asked before each time whether there is to be one.
    """
    said: str | None = None
    while going():
        try:
            pause, said = await work(), None
        except Exception as error:
            if repr(error) != said:
                said = repr(error)
                log.exception("%s: failed; trying again", what)
            pause = RETRY_SECONDS
        await asyncio.sleep(pause)
