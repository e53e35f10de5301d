"""The producer: it sends nothing while our session with Kafka may have run out, and nothing twice by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver

from .chain import Session

__all__ = ["SessionProducer", "Undecided"]


class Undecided(KafkaError):  # type: ignore[misc]  # noqa: N818 - aiokafka's class has no types
    """What was to be sent may be in the log or not, or it is not ours to send: whoever sends it must find out."""

    retriable = False
    invalid_metadata = True


class SessionProducer(driver.Producer):
    """Faust's producer, which sends nothing while our session may have run out, and nothing twice by itself.

    aiokafka sends again what was not acknowledged when the connection went, or when the answer was an error that may
    pass. But it may be in the log: a broker that has it may lose the partition before it says so, and then answers that
    it is not the leader. A dead letter would be there twice. And what a process had in hand when it was put to sleep
    goes out when it wakes up, after its partitions were given to others. All of that becomes an error here, so that the
    batch is looked at again.
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
                answer = await send(node_id, request, **options)
            except KafkaError as error:
                raise Undecided(str(error) or type(error).__name__) from error
            if passing := next(_that_may_pass(answer), None):
                raise Undecided(passing)
            return answer

        return guarded


def _that_may_pass(answer: Any) -> Iterator[str]:
    """The errors in a produce response after which aiokafka would send the same again."""
    for topic, partitions in getattr(answer, "topics", ()):
        for number, code, *_ in partitions:
            error = for_code(code)
            if code and error.retriable:
                yield f"{topic}:{number}: {error.__name__}"
