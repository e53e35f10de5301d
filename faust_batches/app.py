"""The Faust application whose agents get batches: its settings, its transport, and what it sends."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, update_wrapper
from typing import Any, Literal, cast

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.exceptions import AlreadyConfiguredWarning
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from .agent import WAITING_BATCHES, BatchedTopic, Handler, Restarts, each_batch, in_turn
from .consumer import Batch, BatchConsumer, Flow
from .lease import Lease
from .outage import Outage
from .producer import LeaseProducer, acknowledged
from .recovery import Tables
from .table import Table

#: What batches need of Faust, in place of its own defaults.
SETTINGS = {
    "topic_disable_leader": True,  # one topic less to create, and to be allowed to create
    "TableManager": Tables,
    "stream_wait_empty": False,  # else a rebalance waits for batches that wait for a server
    "broker_max_poll_records": 4_000,
    # A batch that waits for a server waits as long as it must; the partition is lost by silence only.
    "broker_max_poll_interval": 86_400.0,
    "consumer_max_fetch_size": 4 * 1024 * 1024,
    # aiokafka's own default. Faust's are 20 minutes: so long a broker whose host is gone would hold up all commits.
    "producer_request_timeout": 40.0,
}

#: What surrounds each try of a batch.
OnBatch = Callable[[Batch], AbstractContextManager[None]]


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with the heart's consumer and producer."""

    Consumer = BatchConsumer
    Producer = LeaseProducer


class App(faust.App):
    """A Faust application with batch agents and exactly-once tables beside Faust's own agents and tables.

    Arguments:
        batch_commit_interval: Seconds between two commits of what batch agents finished. What was finished and not
            committed is done again after a crash. Other agents have Faust's `broker_commit_interval`.
        others: What `faust.App` takes; `SETTINGS` are its defaults.
    """

    def __init__(self, *args: Any, batch_commit_interval: float = 0.25, **kwargs: Any) -> None:
        self.batch_commit_interval = batch_commit_interval
        #: Topics whose agents get batches.
        self.batched_topics: set[str] = set()
        #: Changelog topic -> the exactly-once table that reads it.
        self.readers: dict[str, Table] = {}
        #: Coroutines that run beside the work from the start of a worker on: unlike a `task`, also during a recovery.
        self.watching: list[Callable[[], Awaitable[None]]] = []
        #: Set it to time and count the tries of batches.
        self.on_batch: OnBatch = lambda batch: nullcontext()
        self.kafka_outage = Outage("Kafka")
        #: The disk that all tables share.
        self.disk_outage = Outage("RocksDB", "can't write", "writes again")
        super().__init__(*args, **{**SETTINGS, **kwargs})

    # -- agents and tables

    def batched_topic(self, name: str) -> Any:
        """A topic whose agents get a `Batch` as each event's value."""
        self.batched_topics.add(name)
        return BatchedTopic(self, topics=[name], key_serializer="raw", value_serializer="raw", maxsize=WAITING_BATCHES)

    def batch_agent(
        self, topic: Any, *, finish: Literal["on_return", "in_handler"] = "on_return"
    ) -> Callable[[Handler], Any]:
        """Decorate `async def handle(batch)`: it gets the batches of a topic, those of a partition one after the other.

        When it returns, the batch is finished, and only then may its end be committed. When it raises, it gets the
        batch again, a second later; after a crash, or when the partition goes to another worker, that one gets it. So
        it sees every record at least once, and those of a partition in order, but for redeliveries.

        Arguments:
            topic: A `batched_topic`, or its name.
            finish: `in_handler`: `handle` finishes the batch itself, by `Batch.turn`. Before that it may do what is
                safe to do out of turn.
        """
        channel = self.batched_topic(topic) if isinstance(topic, str) else topic

        def decorated(handle: Handler) -> Any:
            handled = handle if finish == "in_handler" else in_turn(handle)

            async def actor(stream: Any) -> None:
                await each_batch(stream, handled, self.on_batch)

            update_wrapper(actor, handle)
            return self.agent(channel, isolated_partitions=True, supervisor_strategy=Restarts)(actor)

        return decorated

    def exactly_once_table(self, name: str, *, value: type[Any] | None, source: str, **options: Any) -> Table:
        """A table whose values count each record of the topic `source` once. `Table` says what the arguments mean."""
        table = Table(self, name, value=value, source=source, **options)
        self.tables.add(table)
        self.readers[table.changelog_topic_name] = table
        return table

    # -- where the worker stands

    @cached_property
    def lease(self) -> Lease:
        """The time for which our partitions are certainly ours."""
        return Lease(self.conf.broker_session_timeout)

    @property
    def joined(self) -> bool:
        """True once the group has told us which partitions are ours; with more workers than those it may be none."""
        return self.tables.recovery.completed.is_set()  # type: ignore[attr-defined, no-any-return]

    @property
    def serving(self) -> bool:
        """True while the tables of our partitions are complete: not in a rebalance, nor before the first."""
        return bool(self.joined and not self.rebalancing and not self.in_recovery)

    @property
    def owned(self) -> list[TP]:
        """Our partitions of the batched topics; none before the first assignment."""
        if self._consumer is None or not self.consumer_generation_id:
            return []
        return sorted(tp for tp in self._consumer.assignment() if tp.topic in self.batched_topics)

    async def on_start(self) -> None:
        """Start what is in `watching`, with a worker only."""
        await super().on_start()
        if not (self.client_only or self.producer_only):
            for watch in self.watching:
                self.add_future(watch())

    def call_in_consumer(self, callback: Callable[[], None]) -> None:
        """Call this in the consumer's thread.

        Raises:
            RuntimeError: It does not run.
        """
        if self._consumer is None:
            raise RuntimeError("the consumer has not been made yet")
        cast(BatchConsumer, self._consumer).call_in_thread(callback)

    # -- how it is connected

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

    @cached_property
    def flow_control(self) -> Flow:
        """Between the consumer and the actors."""

        def cleared() -> None:
            if self._consumer is not None:
                cast(BatchConsumer, self._consumer).fetch_unfinished_again()

        return Flow(cleared)

    # -- what it sends and reads by itself

    async def send_record(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> Awaitable[Any]:
        """Send one record, also one with neither key nor value, which the producer's `send` refuses.

        Returns:
            What is done when Kafka has acknowledged it.
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

    async def read_partition(self, topic: str, partition: int, take: Callable[[int, list[Any]], None]) -> None:
        """Read a partition from its start to its present end, and pass each run of its records to `take`.

        Raises:
            KafkaError: It can't be read now.
        """
        tp = TopicPartition(topic, partition)
        client = AIOKafkaConsumer(
            bootstrap_servers=driver.server_list(self.conf.broker_consumer, driver.Transport.default_port),
            isolation_level="read_committed",
            enable_auto_commit=False,
            **driver.credentials_to_aiokafka_auth(self.conf.broker_credentials, self.conf.ssl_context),
        )
        try:
            await client.start()
            client.assign([tp])
            await client.seek_to_beginning(tp)
            end = (await client.end_offsets([tp]))[tp]
            while await client.position(tp) < end:
                for run in (await client.getmany(tp, timeout_ms=1_000)).values():
                    take(partition, run)
        finally:
            await client.stop()
