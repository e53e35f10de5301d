"""Records that get into Kafka together or not at all, by one producer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError

from shopflow.errors import Unavailable

from .connection import MAX_MESSAGE_BYTES, explained, within
from .security import Bootstrap

#: Kafka aborts a transaction that is open for longer: until then nobody reads what comes behind its records.
_TRANSACTION_SECONDS = 20.0
#: How long a commit, or the start of a producer that has to end its predecessor's transaction, may take.
_COMMIT_SECONDS = 60.0
_STOP_SECONDS = 10.0


class Transactions:
    """A producer whose records get into Kafka together or not at all."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit what is sent in the body when it ends well. Else the next producer of this id aborts it.

        Raises:
            ProducerFenced: Another producer of this id has started, or the transaction was open for too long.
            KafkaError: Another failure. This producer is of no more use.
        """
        await self._client.begin_transaction()
        yield
        await within(_COMMIT_SECONDS, self._client.commit_transaction())

    async def send(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> Awaitable[Any]:
        """Send a record, also one with neither key nor value.

        Returns:
            What is done when Kafka has it: its metadata.
        """
        if key is not None or value is not None:
            sent: Awaitable[Any] = await self._client.send(topic, value, key, partition, headers=list(headers))
            return sent
        batch = self._client.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=list(headers))
        delivery: Awaitable[Any] = await self._client.send_batch(batch, topic, partition=partition)
        return delivery


@asynccontextmanager
async def transactions(bootstrap: Bootstrap, transactional_id: str) -> AsyncIterator[Transactions]:
    """The one producer of this id: an earlier one can do nothing more, and what it had not committed is aborted.

    Raises:
        Unavailable: Kafka does not answer.
    """
    asyncio.get_running_loop().set_exception_handler(_leave_to_caller)
    client = AIOKafkaProducer(
        **bootstrap.options,
        transactional_id=transactional_id,
        transaction_timeout_ms=int(_TRANSACTION_SECONDS * 1000),
        max_batch_size=262_144,
        max_request_size=2 * MAX_MESSAGE_BYTES,  # what is too large for its topic, Kafka refuses
    )
    try:
        try:
            await within(_COMMIT_SECONDS, client.start())
        except KafkaConnectionError as error:
            raise await explained(bootstrap) from error
        except KafkaError as error:
            raise Unavailable("Kafka", str(error) or type(error).__name__) from error
        yield Transactions(client)
    finally:
        with suppress(KafkaError):
            await within(_STOP_SECONDS, client.stop())


def _leave_to_caller(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """When a producer is fenced, aiokafka leaves failed futures that nobody can get at; who waits is told anyway."""
    if not isinstance(context.get("exception"), KafkaError):
        loop.default_exception_handler(context)
