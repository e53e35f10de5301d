"""Kafka transactions: records that are committed together or not at all, by one producer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError

from faust_batches.connections import pace_refreshes
from faust_batches.refusals import name_topic
from shopflow.errors import Unavailable

from .connection import MAX_MESSAGE_BYTES, explained, within
from .security import Bootstrap

#: Kafka aborts a transaction that is open for longer. Until then consumers wait before its records.
_TRANSACTION_SECONDS = 20.0
#: How long a commit may take, or the start of a producer: Kafka ends its predecessor's transaction first.
_COMMIT_SECONDS = 60.0
_STOP_SECONDS = 10.0


class Transactions:
    """A transactional producer."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Commit the records sent in the body if it raises nothing. Else the next producer of this id aborts them.

        Raises:
            ProducerFenced: Another producer of this id has started, or the transaction was open for too long.
            KafkaError: Another failure. The producer can't be used any more.
        """
        await self._client.begin_transaction()
        yield
        await within(_COMMIT_SECONDS, self._client.commit_transaction())

    async def send(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        *,
        timestamp: int | None = None,
    ) -> Awaitable[Any]:
        """Send a record, also one with neither key nor value.

        Arguments:
            timestamp: Unix time in milliseconds. None: now.

        Returns:
            An awaitable that is done when Kafka has acknowledged the record; its result is the record's metadata.
        """
        if key is not None or value is not None:
            sent: asyncio.Future[Any] = await self._client.send(
                topic, value, key, partition, timestamp_ms=timestamp, headers=list(headers)
            )
            sent.add_done_callback(partial(_name, topic))
            return sent
        batch = self._client.create_batch()
        batch.append(key=None, value=None, timestamp=timestamp, headers=list(headers))
        delivery: asyncio.Future[Any] = await self._client.send_batch(batch, topic, partition=partition)
        delivery.add_done_callback(partial(_name, topic))
        return delivery


def _name(topic: str, done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        name_topic(done.exception(), topic)


@asynccontextmanager
async def transactions(bootstrap: Bootstrap, transactional_id: str) -> AsyncIterator[Transactions]:
    """The only producer of this id: Kafka refuses an earlier one from now on, and aborts its open transaction.

    Raises:
        Unavailable: Kafka does not answer.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(before := loop.get_exception_handler(), _LeaveToCaller):
        loop.set_exception_handler(_LeaveToCaller(before))
    client = AIOKafkaProducer(
        **bootstrap.options,
        transactional_id=transactional_id,
        transaction_timeout_ms=int(_TRANSACTION_SECONDS * 1000),
        max_batch_size=262_144,
        max_request_size=2
        * MAX_MESSAGE_BYTES,  # so that Kafka, not the client, refuses a record too large for its topic
    )
    pace_refreshes(client.client)
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


class _LeaveToCaller:
    """Ignores unretrieved `KafkaError`s: a fenced aiokafka producer leaves futures that no caller can reach."""

    def __init__(self, before: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None) -> None:
        self._before = before

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), KafkaError):
            return
        if self._before is None:
            loop.default_exception_handler(context)
        else:
            self._before(loop, context)
