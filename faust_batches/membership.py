"""The consumer's thread: it is the member of the consumer group. It never gives up, and tells what keeps it out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    InconsistentGroupProtocolError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from .connections import notice_cuts, pace_refreshes
from .errors import Refusal
from .fetching import bear
from .instance import Instance
from .lease import Lease
from .refusals import kafka_failure

if TYPE_CHECKING:
    from .app import App

#: Makes the leader's assignment of a response to JoinGroup.
Assign = Callable[[Any], Awaitable[Any]]
#: The kinds of troubles: the group can't be joined; aiokafka has ended, which only a restart mends.
NOT_IN_GROUP, CLIENT_ENDED = "not-in-group", "client-ended"
#: Between two tries to join the group.
REJOIN_SECONDS = 5.0
_LOOK_SECONDS = 1.0
#: For how long the leader of the group waits for a subscribed topic that Kafka does not know, as one just created.
_NEW_TOPIC_SECONDS = 3.0
#: A topic that Kafka does not give out is refused again within this time.
_REFUSED_AGAIN_SECONDS = 5.0
#: What a worker writes beside each offset that it commits, so that one that something else has set is known.
COMMITTED_BY = "faust_batches"
#: Written beside an offset that was set back on purpose, so that records are read again.
SET_BACK_BY = f"{COMMITTED_BY}, set back"
#: How long Kafka may hold an empty fetch: after one with records or while tables recover, and after one without.
#: A partition whose records were just taken is in no fetch under way, so its next record may wait this long; and what a
#: recovery asks of the same broker waits behind the fetch. Faust always uses 1500.
FETCH_WAIT_MS, IDLE_FETCH_WAIT_MS = 10, 100


class CommittedThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, which reads committed records only and renews the lease by its heartbeats."""

    #: This worker's name in the group; None: it has none.
    instance: Instance | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refused: dict[str, float] = {}  # topics that Kafka does not give out, and when it last refused

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust sets it for its own transactions only
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
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
        coordinator._perform_assignment = _with_new_topics(coordinator, coordinator._perform_assignment)
        bear(self._ensure_consumer(), self.consumer.standstills.stops)  # type: ignore[attr-defined]
        notice_cuts(coordinator._client, self.app.conf.broker_session_timeout)
        pace_refreshes(coordinator._client)
        self._application.quotas.heed(coordinator._client)
        coordinator._push_error_to_user = self._stay_out
        if coordinator._group_instance_id is not None:
            assignor: Any = self._assignor
            self.instance = Instance(coordinator, assignor.metadata, Path(self.app.conf.datadir))

    async def on_thread_stop(self) -> None:
        """Leave the group."""
        if self.instance is not None:
            self.instance.leave_at_stop()
        await super().on_thread_stop()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Begin to work as the member that joined."""
        if self.instance is not None:
            self.instance.joined()
        await super().on_partitions_assigned(assigned, generation_id)

    # -- the group

    @property
    def _application(self) -> App:
        return cast("App", self.app)

    async def _stay_out(self, error: Exception) -> None:
        """Tell why this worker is not in the group, and wait before the next try.

        aiokafka waits here until its user has seen the error, which Faust never asks for: the worker would be out for
        good, and say nothing.
        """
        app, coordinator = self._application, cast(Any, self._ensure_consumer())._coordinator
        failure = kafka_failure(error, coordinator.group_id) if isinstance(error, KafkaError) else None
        if isinstance(failure, Refusal):
            app.kafka_outage.failed(failure, self)
        else:
            app.troubles.begin(NOT_IN_GROUP, coordinator.group_id, _kept_out(coordinator.group_id, error), stops=True)
        for task in (coordinator._heartbeat_task, coordinator._commit_refresh_task):
            if task is not None and task.done():  # it has ended by this error; a new one starts after joining
                coordinator.request_rejoin()
        await asyncio.wait([coordinator._closing], timeout=REJOIN_SECONDS)

    def joined(self) -> None:
        """The group has given us partitions: what kept this worker out is over."""
        self._application.kafka_outage.succeeded(self)
        self._application.kafka_outage.gave_up(self._commit)  # these partitions' commits tell anew if they are refused
        self._application.troubles.end(NOT_IN_GROUP, self._application.conf.id)

    @property
    def ended(self) -> bool:
        """True if one of aiokafka's two tasks, for the group and for fetching, has ended though nobody stopped it."""
        consumer: Any = self._consumer
        if consumer is None or consumer._closed or self.should_stop:
            return False
        tasks = [consumer._coordinator._coordination_task, consumer._fetcher._fetch_task]
        return any(task is not None and task.done() for task in tasks)

    @Service.task
    async def _watch_client(self) -> None:
        while not self.should_stop:
            await self.sleep(_LOOK_SECONDS)
            if self.ended:
                group = self._application.conf.id
                text = f"The Kafka client of this worker has ended: nothing more is read for {group}; restart it"
                self._application.troubles.begin(CLIENT_ENDED, group, text, stops=True)

    # -- reading

    def positions(self) -> dict[TP, int | None]:
        """The next offset to read of each assigned partition; None: not known now."""
        consumer: Any = self._ensure_consumer()
        assignment = consumer._subscription.subscription.assignment
        states = {tp: assignment.state_value(tp) for tp in assignment.tps} if assignment else {}
        return {TP(*tp): state._position for tp, state in states.items()}

    async def _fetch_records(self, *args: Any, **options: Any) -> Any:
        """Fetch, and tell of a topic that Kafka does not give out; Faust would end the worker."""
        outage = self._application.kafka_outage
        try:
            records = await super()._fetch_records(*args, **options)
        except TopicAuthorizationFailedError as error:
            failure = kafka_failure(error, self._application.conf.id)
            topic = failure.subject if isinstance(failure, Refusal) else ""
            self._refused[topic] = monotonic()
            outage.failed(failure, ("read", topic))
            await asyncio.sleep(_LOOK_SECONDS)
            return {}
        for topic, at in list(self._refused.items()):  # each topic is asked for several times in this time
            if monotonic() - at > _REFUSED_AGAIN_SECONDS and self._application.lease.valid:
                del self._refused[topic]
                outage.succeeded(("read", topic))
        return records

    # -- committed offsets

    async def committed_with_metadata(self, partitions: Iterable[TP]) -> dict[TP, OffsetAndMetadata]:
        """What the group has committed. Partitions without are left out."""
        coordinator: Any = self._ensure_consumer()._coordinator
        found = await self.call_thread(coordinator.fetch_committed_offsets, list(partitions))
        return {TP(tp.topic, tp.partition): one for tp, one in found.items() if one.offset >= 0}

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit with our mark. An error of Kafka is told, and the commit made again; Faust would end the worker."""
        outage, assigned, now = self._application.kafka_outage, self.assignment(), monotonic()
        wanted = {
            TopicPartition(*tp): OffsetAndMetadata(offset, COMMITTED_BY)
            for tp, offset in offsets.items()
            if tp in assigned
        }
        self.tp_last_committed_at.update(dict.fromkeys(wanted, now))
        try:
            await self._ensure_consumer().commit(wanted)
        except (CommitFailedError, IllegalStateError) as error:  # the partitions are another's by now
            self.log.info("Not committed: %r", error)
            return False
        except KafkaError as error:
            outage.failed(kafka_failure(error, self._application.conf.id), self._commit)
            return False
        outage.succeeded(self._commit)
        return True

    def _renewing_lease(self, heartbeat: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
        lease: Lease = self.consumer.app.lease  # type: ignore[attr-defined]

        async def renewing() -> bool:
            sent = lease.clock()
            answered = await heartbeat()
            if answered:
                lease.renew(sent)
            return answered

        return renewing


def _kept_out(group: str, error: Exception) -> str:
    """One sentence without a full stop."""
    if isinstance(error, InconsistentGroupProtocolError):
        return (
            f"This worker can't join the consumer group {group}: a client that is no worker of this application is in "
            "it, and assigns partitions in another way; stop that client or give it a group of its own "
            f"(kafka-consumer-groups.sh --describe --members --group {group} names it)"
        )
    return f"This worker can't join the consumer group {group}, and tries again: {error or type(error).__name__}"


def _with_new_topics(coordinator: Any, assign: Assign) -> Assign:
    """Let the leader of the group assign also topics that were just created.

    Not every broker knows such a topic at once. Faust would leave it out until the next rebalance: a table would be
    without its changelog.
    """

    async def assign_all(response: Any) -> Any:
        deadline = monotonic() + _NEW_TOPIC_SECONDS
        assignments = await assign(response)
        while 0 in coordinator._metadata_snapshot.values() and monotonic() < deadline:  # partitions of each topic
            await asyncio.sleep(_NEW_TOPIC_SECONDS / 30)
            await coordinator._client.force_metadata_update()
            assignments = await assign(response)
        return assignments

    return assign_all
