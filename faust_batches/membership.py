"""The consumer's thread: it is the member of the consumer group."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from .fetching import bear
from .lease import Lease

#: How long Kafka may hold an empty fetch: after a fetch with records, and after one without. A partition whose records
#: were just taken is in no fetch under way, so its next record may wait this long. Faust always uses 1500.
FETCH_WAIT_MS, IDLE_FETCH_WAIT_MS = 10, 500


class CommittedThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, which reads committed records only and renews the lease by its heartbeats."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust sets it for its own transactions only
        return consumer

    def seek(self, partition: TP, offset: int) -> None:
        """Seek soon, in this thread: aiokafka's fetcher is not thread-safe, and the callers are in the application's.

        Raises:
            IllegalStateError: The partition is not assigned any more, or the thread has ended.
        """
        consumer = self._ensure_consumer()
        if partition not in consumer.assignment():
            raise IllegalStateError(f"{partition} is not assigned")
        try:
            self.thread_loop.call_soon_threadsafe(self._seek_if_assigned, consumer, partition, offset)
        except RuntimeError as error:  # its loop is closed
            raise IllegalStateError("the consumer's thread has ended") from error

    def _seek_if_assigned(self, consumer: Any, partition: TP, offset: int) -> None:
        if partition in consumer.assignment():  # else it was revoked meanwhile, and its chain is dropped
            consumer.seek(partition, offset)

    def set_fetch_wait(self, busy: bool) -> None:
        """Let Kafka hold an empty fetch for `FETCH_WAIT_MS` if busy, else for `IDLE_FETCH_WAIT_MS`."""
        fetcher: Any = self._ensure_consumer()._fetcher
        fetcher._fetch_max_wait_ms = FETCH_WAIT_MS if busy else IDLE_FETCH_WAIT_MS

    async def on_start(self) -> None:
        await super().on_start()
        coordinator: Any = self._ensure_consumer()._coordinator
        coordinator._do_heartbeat = self._renewing_lease(coordinator._do_heartbeat)
        bear(self._ensure_consumer(), self.consumer.standstills.stops)  # type: ignore[attr-defined]

    def positions(self) -> dict[TP, int | None]:
        """The next offset to read of each assigned partition; None: not known now."""
        consumer: Any = self._ensure_consumer()
        assignment = consumer._subscription.subscription.assignment
        states = {tp: assignment.state_value(tp) for tp in assignment.tps} if assignment else {}
        return {TP(*tp): state._position for tp, state in states.items()}

    def _renewing_lease(self, heartbeat: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
        lease: Lease = self.consumer.app.lease  # type: ignore[attr-defined]

        async def renewing() -> bool:
            sent = lease.clock()
            answered = await heartbeat()
            if answered:
                lease.renew(sent)
            return answered

        return renewing
