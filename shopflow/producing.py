"""The producer: it sends nothing while our session with Kafka may have run out, and nothing twice by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver

from .positions import Session

__all__ = ["SessionProducer", "Undecided"]


class Undecided(KafkaError):  # type: ignore[misc]  # noqa: N818 - aiokafka's class has no types
    """What was to be sent may be in the log or not, or it is not ours to send: whoever sends it must find out."""

    retriable = False
    invalid_metadata = True


class SessionProducer(driver.Producer):
    """Faust's producer, which sends nothing while our session may have run out, and nothing twice by itself.

    aiokafka sends again what was not acknowledged when the connection went, though it may be in the log: a dead letter
    would be there twice. And what a process had in hand when it was put to sleep goes out when it wakes up, after its
    partitions were given to others. Both become errors here, so that the batch is looked at again.
    """

    async def on_start(self) -> None:
        """Put the guard before the socket."""
        await super().on_start()
        client: Any = self._ensure_producer().client
        client.send = self._guarded(client.send)

    def _guarded(self, send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        session: Session = self.app.session  # type: ignore[attr-defined]

        async def guarded(node_id: Any, request: Any, **options: Any) -> Any:
            if not isinstance(request, ProduceRequest):
                return await send(node_id, request, **options)
            if not session.sure:
                raise Undecided("the session with Kafka may have run out")
            try:
                return await send(node_id, request, **options)
            except KafkaError as error:
                raise Undecided(str(error) or type(error).__name__) from error

        return guarded
