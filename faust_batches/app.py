"""A Faust application whose agents get batches: its transport, its producer's batches, and the body of its agents."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterable
from functools import cached_property, update_wrapper
from itertools import count
from typing import Any, cast

import faust
from faust.exceptions import AlreadyConfiguredWarning
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.supervisors import OneForOneSupervisor

from shopflow.errors import PartitionLost, Unavailable
from shopflow.kafka.connection import acknowledged

from .chain import Session
from .consumer import Batch, BatchConsumer, Flow, Reader
from .producer import SessionProducer
from .recovery import Tables

__all__ = ["SETTINGS", "App", "Restarts", "each_batch", "in_turn"]

#: What batches need of Faust, in place of its own defaults.
SETTINGS = {
    "topic_disable_leader": True,
    "TableManager": Tables,
    # Batches of a partition that wait, each of up to `broker_max_poll_records` records. More would only cost memory;
    # with few, what comes meanwhile gathers where it was fetched, and is one batch.
    "stream_buffer_maxsize": 3,
    "stream_wait_empty": False,
    "broker_max_poll_records": 4_000,
    "broker_commit_interval": 0.25,  # what was finished and not committed is done again after a crash
    # A batch that waits for a server waits as long as it must; the partition is lost by silence only.
    "broker_max_poll_interval": 86_400.0,
    "consumer_max_fetch_size": 4 * 1024 * 1024,
    # aiokafka's own default. Faust's are 20 minutes: so long a broker whose host is gone would hold up all commits.
    "producer_request_timeout": 40.0,
}

Handler = Callable[[Batch], Awaitable[None]]

#: Pause before a batch is tried again whose handler raised what it should have handled.
RETRY_SECONDS = 1.0


class Restarts(OneForOneSupervisor):
    """Restarts all actors that a rebalance cancels: Faust's allows one in 10 ms, and ends the worker at the next."""

    def __init__(self, *services: Any, **kwargs: Any) -> None:
        super().__init__(*services, **{**kwargs, "max_restarts": 1e9, "over": 1e9})


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with the consumer and the producer above."""

    Consumer = BatchConsumer
    Producer = SessionProducer


class BatchedTopic(faust.Topic):
    """One that is not made by who reads it: it would have the wrong number of partitions for who writes it."""

    async def declare(self) -> None:
        """Nothing."""


class App(faust.App):
    """A Faust application whose `batched_topics` come in batches, and whose tables' changelogs are read in runs.

    It takes what `faust.App` takes; `SETTINGS` are its defaults.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Topics whose agents get batches.
        self.batched_topics: set[str] = set()
        #: Changelog topic -> the table that takes in its runs.
        self.readers: dict[str, Reader] = {}
        #: What runs beside the work, from the start of a worker on: unlike a `task`, also while tables are recovered.
        self.watching: list[Callable[[], Awaitable[None]]] = []
        super().__init__(*args, **{**SETTINGS, **kwargs})

    def batched_topic(self, name: str) -> Any:
        """A topic whose agents get a `Batch` as each event's value."""
        self.batched_topics.add(name)
        return BatchedTopic(self, topics=[name], key_serializer="raw", value_serializer="raw")

    def batch_agent(self, topic: Any, *, takes_turn: bool = False) -> Callable[[Handler], Any]:
        """Decorate `async def handle(batch)`: it gets the batches of a topic, those of a partition one after the other.

        When it returns, the batch is finished, and only then may its end be committed. When it raises, it gets the
        batch again, a second later; after a crash, or when the partition goes to another process, that one gets it. So
        it sees every record at least once, and those of a partition in order, but for what comes again.

        Arguments:
            topic: A `batched_topic`, or its name.
            takes_turn: `handle` finishes the batch itself, by `Batch.turn`; before that it may do what bears to be done
                out of turn.
        """
        channel = self.batched_topic(topic) if isinstance(topic, str) else topic

        def decorated(handle: Handler) -> Any:
            handled = handle if takes_turn else in_turn(handle)

            async def actor(stream: Any) -> None:
                await each_batch(stream, handled)

            update_wrapper(actor, handle)
            return self.agent(channel, isolated_partitions=True, supervisor_strategy=Restarts)(actor)

        return decorated

    @cached_property
    def flow_control(self) -> Flow:
        """Between the consumer and the actors."""

        def cleared() -> None:
            if self._consumer is not None:
                cast(BatchConsumer, self._consumer).fetch_unfinished_again()

        return Flow(cleared)

    @cached_property
    def session(self) -> Session:
        """Ours with Kafka."""
        return Session(self.conf.broker_session_timeout)

    @property
    def serving(self) -> bool:
        """Are the tables of our partitions complete? Not before the first assignment, nor in a rebalance."""
        recovered = self.tables.recovery.completed.is_set()  # type: ignore[attr-defined]
        return bool(recovered and not self.rebalancing and not self.in_recovery)

    async def on_start(self) -> None:
        """What watches starts with a worker, not with a command that only sends."""
        await super().on_start()
        if not (self.client_only or self.producer_only):
            for watch in self.watching:
                self.add_future(watch())

    @property
    def owned(self) -> list[TP]:
        """The partitions of the batched topics that are ours; none before the first assignment."""
        if self._consumer is None or not self.consumer_generation_id:
            return []
        return sorted(tp for tp in self._consumer.assignment() if tp.topic in self.batched_topics)

    @property
    def joined(self) -> bool:
        """Has the group ever told us which partitions are ours? It may be none, if there are more workers."""
        return self.tables.recovery.completed.is_set()  # type: ignore[attr-defined, no-any-return]

    def call_in_consumer(self, callback: Callable[[], None]) -> None:
        """Call this in the consumer's thread.

        Raises:
            RuntimeError: It does not run.
        """
        if self._consumer is None:
            raise RuntimeError("the consumer has not been made yet")
        cast(BatchConsumer, self._consumer).call_in_thread(callback)

    def reconfigure(self, **settings: Any) -> None:
        """Change settings that could not be known at import (where the servers are), before anything is started."""
        with warnings.catch_warnings():
            # It warns that parts of the program may use the old value; what could do so is made anew below.
            warnings.simplefilter("ignore", AlreadyConfiguredWarning)
            for name, value in settings.items():
                setattr(self.conf, name, value)
        self._transport = self._producer_transport = self._producer = self._consumer = None

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    async def send_record(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> Awaitable[Any]:
        """Send one record, also one with neither key nor value, which the producer's `send` refuses.

        Returns:
            What is done when Kafka has it.
        """
        producer: Any = self.producer._producer  # type: ignore[attr-defined]
        batch = producer.create_batch()
        batch.append(key=key, value=value, timestamp=None, headers=headers)
        delivery: Awaitable[Any] = await producer.send_batch(batch, topic, partition=partition)
        return delivery

    async def publish(self, topic: str, partition: int, rows: Iterable[tuple[bytes, bytes]]) -> int:
        """Send keys and values to one partition in as few Kafka batches as hold them, and wait for the acknowledgement.

        Returns:
            The offset of the last one.

        Raises:
            KafkaError: Not all were acknowledged; some may be in the log.
        """
        producer: Any = self.producer._producer  # type: ignore[attr-defined]
        batches = [producer.create_batch()]
        for key, value in rows:
            if batches[-1].append(key=key, value=value, timestamp=None) is None:  # full
                batches.append(producer.create_batch())
                if batches[-1].append(key=key, value=value, timestamp=None) is None:
                    raise ValueError(f"{topic}: a record of {len(key) + len(value)} bytes is larger than a Kafka batch")
        done = await acknowledged(producer.send_batch(batch, topic, partition=partition) for batch in batches)
        ends = (metadata.offset + batch.record_count() for metadata, batch in zip(done, batches, strict=True))
        return int(max(ends)) - 1


def in_turn(handle: Handler) -> Handler:
    """Let a batch be handled only when it is the next of its partition; finished when `handle` returns."""

    async def handled(batch: Batch) -> None:
        await batch.session()
        async with batch.turn():
            await handle(batch)

    return handled


async def each_batch(stream: Any, handle: Handler) -> None:
    """Handle the batches of one partition, one after the other: the body of an agent.

    A `PartitionLost` ends a batch: its next owner gets it again. Anything else and the batch is tried again; given up,
    it would be missing to this worker until the next rebalance. `Unavailable` has been said by who raised it; any other
    error is a fault of the program, and logged once, not once a try.
    """
    stream.enable_acks = False  # else a cancelled actor acknowledges the batch it never finished
    async for event in stream.events():
        event.value.take()
        await _handle_one(stream.log, event.value, handle)
        await stream.ack(event)


async def _handle_one(log: Any, batch: Batch, handle: Handler) -> None:
    said = None
    for tries in count(1):
        try:
            await handle(batch)
        except PartitionLost as lost:
            log.info("Batch left: %s", lost)
            return
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            if repr(error) != said:
                said = repr(error)
                log.exception("%s from offset %d can't be handled; trying again", batch.tp, batch.start)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if said is not None:
                log.warning("%s from offset %d was handled at the try %d", batch.tp, batch.start, tries)
            return
