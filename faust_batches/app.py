"""The Faust application with batch agents: its settings, its transport, and its own sends and reads."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, update_wrapper, wraps
from typing import Any, Literal, cast

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.exceptions import AlreadyConfiguredWarning
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.web.exceptions import ServiceUnavailable

from .agent import WAITING_BATCHES, BatchedTopic, Handler, Restarts, each_batch, in_turn
from .assignor import EvenAssignor
from .batch import Batch
from .consumer import BatchConsumer
from .fetching import bear
from .flow import Flow
from .lease import Lease
from .outage import Outage
from .producer import LeaseProducer, acknowledged
from .quotas import Quotas
from .recovery import Tables
from .refusals import name_topic
from .table import Table
from .troubles import Troubles

#: The settings that batches need, in place of Faust's defaults.
SETTINGS = {
    "topic_disable_leader": True,  # one topic less to create, and to be allowed to create
    "TableManager": Tables,
    "PartitionAssignor": EvenAssignor,
    "stream_wait_empty": False,  # else a rebalance waits for batches that wait for a server
    "broker_max_poll_records": 4_000,
    # A batch may wait for a server for hours without losing its partition. Only missing heartbeats lose it.
    "broker_max_poll_interval": 86_400.0,
    "consumer_max_fetch_size": 4 * 1024 * 1024,
    # aiokafka's default. With Faust's 20 minutes, a broker whose host is gone would hold up all commits for that long.
    "producer_request_timeout": 40.0,
}

Skipped = Callable[[TP, int], Awaitable["int | None"]]

#: Variables of Faust that would break what batches and tables promise. They are ignored, and the worker warns of them.
PINNED = frozenset(
    {
        *("PRODUCER_ACKS", "PRODUCER_API_VERSION", "PRODUCER_MAX_REQUEST_SIZE", "PRODUCER_THREADED"),
        *("CONSUMER_API_VERSION", "CONSUMER_AUTO_OFFSET_RESET", "CONSUMER_MAX_FETCH_SIZE", "BROKER_API_VERSION"),
        *("BROKER_CHECK_CRCS", "BROKER_MAX_POLL_INTERVAL", "BROKER_MAX_POLL_RECORDS", "PROCESSING_GUARANTEE"),
        *("RECOVERY_CONSISTENCY_CHECK", "STREAM_WAIT_EMPTY", "STREAM_BUFFER_MAXSIZE", "TOPIC_DISABLE_LEADER"),
        *("TOPIC_PARTITIONS", "TOPIC_REPLICATION_FACTOR", "APP_STORE", "APP_ID_FORMAT", "APP_VERSION"),
    }
)

#: Returns the context in which each attempt to handle a batch runs.
OnBatch = Callable[[Batch], AbstractContextManager[None]]


async def _never_skipped(tp: TP, offset: int) -> int | None:
    return None


class Settings(faust.Settings):
    """Faust's settings, without the variables in `PINNED`. In Faust, a variable overrides what the program sets."""

    def getenv(self, env_name: str) -> Any:
        return None if env_name in PINNED else super().getenv(env_name)

    @property
    def ignored(self) -> list[str]:
        """The variables that are set and have no effect."""
        return sorted(name for name in PINNED if super(Settings, self).getenv(name) is not None)


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with this package's consumer and producer."""

    Consumer = BatchConsumer
    Producer = LeaseProducer


class App(faust.App):
    """A Faust application with batch agents and exactly-once tables beside Faust's own agents and tables.

    Arguments:
        batch_commit_interval: Seconds between two commits of finished batches. After a crash, finished batches that
            were not committed are handled again. Other agents have Faust's `broker_commit_interval`.
        others: Those of `faust.App`, with `SETTINGS` as defaults.
    """

    Settings = Settings

    def __init__(self, *args: Any, batch_commit_interval: float = 0.25, **kwargs: Any) -> None:
        self.batch_commit_interval = batch_commit_interval
        #: Topics whose agents get batches.
        self.batched_topics: set[str] = set()
        #: Changelog topic -> the exactly-once table that reads it.
        self.readers: dict[str, Table] = {}
        #: Coroutines that every worker runs in the background from its start; unlike Faust's tasks also in a recovery.
        self.background: list[Callable[[], Awaitable[None]]] = []
        #: Set it to time and count the attempts to handle batches.
        self.on_batch: OnBatch = lambda batch: nullcontext()
        #: Asked with the partition and the first offset of a batch that can't be read, at which the partition stands
        #: still. Returns the offset to go on from if a person allowed it, else None. Must not raise.
        self.skipped: Skipped = _never_skipped
        #: Kind of trouble -> the end of its sentence: what to do. With {topic}, {partition} and {offset}.
        self.advice: dict[str, str] = {}
        #: What a person must know or mend.
        self.troubles = Troubles()
        self.kafka_outage = Outage("Kafka", troubles=self.troubles)
        self.quotas = Quotas(self.troubles)
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

        When `handle` returns, the batch is finished, and its end may be committed. When it raises, it gets the batch
        again a second later. After a crash or a rebalance the partition's next owner gets it again. So `handle` sees
        every record at least once, and the records of a partition in order, except for redeliveries.

        The name is bound to Faust's agent. Its attribute `handle` handles one batch as a worker does, for tests.

        Arguments:
            topic: A `batched_topic`, or its name.
            finish: `in_handler`: `handle` finishes the batch itself, by `Batch.turn`. Before that it may do work that
                is safe out of turn.
        """
        channel = self.batched_topic(topic) if isinstance(topic, str) else topic

        def decorated(handle: Handler) -> Any:
            handled = handle if finish == "in_handler" else in_turn(handle)

            async def actor(stream: Any) -> None:
                await each_batch(stream, handled, self.on_batch)

            update_wrapper(actor, handle)
            agent: Any = self.agent(channel, isolated_partitions=True, supervisor_strategy=Restarts)(actor)
            agent.handle = handled
            return agent

        return decorated

    def exactly_once_table(self, name: str, *, value: type[Any] | None, source: str, **options: Any) -> Table:
        """A table whose values count each record of the topic `source` once. `Table` describes the arguments."""
        table = Table(self, name, value=value, source=source, **options)
        self.tables.add(table)
        self.readers[table.changelog_topic_name] = table
        return table

    def table_route(self, table: Any, *args: Any, **kwargs: Any) -> Any:
        """Faust's own, which leads a request for a key to its worker; 503 until our tables are complete.

        Before that, Faust answers with an error 500, or with what a part of a table has.
        """
        route = super().table_route(table, *args, **kwargs)

        def decorated(view: Any) -> Any:
            routed: Any = route(view)

            @wraps(view)
            async def when_serving(*args: Any, **kwargs: Any) -> Any:
                if not self.serving:
                    raise ServiceUnavailable("the tables of this worker are not complete")
                return await routed(*args, **kwargs)

            return when_serving

        return decorated

    # -- the worker's state

    @cached_property
    def lease(self) -> Lease:
        """The time for which our partitions are certainly ours."""
        return Lease(self.conf.broker_session_timeout)

    @property
    def joined(self) -> bool:
        """True after the first assignment of partitions, which is empty if there are more workers than partitions."""
        return self.tables.recovery.completed.is_set()  # type: ignore[attr-defined, no-any-return]

    @property
    def serving(self) -> bool:
        """True while the tables of our partitions are complete: not before the first assignment, nor in a rebalance."""
        return bool(self.joined and not self.rebalancing and not self.in_recovery)

    @property
    def recovering(self) -> dict[TP, tuple[int, int]]:
        """Changelog partition -> the offsets that are recovered, and all; empty unless tables are being recovered."""
        return cast(Tables, self.tables).progress

    @property
    def owned(self) -> list[TP]:
        """Our partitions of the batched topics; none before the first assignment."""
        if self._consumer is None or not self.consumer_generation_id:
            return []
        return sorted(tp for tp in self._consumer.assignment() if tp.topic in self.batched_topics)

    @property
    def taken(self) -> str | None:
        """A sentence, if another worker that is alive has this one's instance id: then this one never joins."""
        if self._consumer is None:
            return None
        instance = cast(BatchConsumer, self._consumer)._thread.instance
        return instance.taken if instance else None

    def table_lock(self, tp: TP) -> asyncio.Lock:
        """The lock that a batch of this partition holds in its turn."""
        return cast(BatchConsumer, self.consumer).lock(tp)

    def _discovery_modules(self) -> list[str]:
        """The modules that `autodiscover` names. Faust would import every other module of the package, too."""
        found: list[str] = super()._discovery_modules()
        conf: Any = self.conf
        return found if conf.autodiscover is True else [name for name in found if name != self.conf.origin]

    def worker_init_post_autodiscover(self) -> None:
        """Leave Faust's own views until the web server starts, which adds them too: no other command needs any."""
        self.on_worker_init.send()

    async def on_start(self) -> None:
        """Start the coroutines in `background`, in a worker only."""
        await super().on_start()
        if not (self.client_only or self.producer_only):
            for name in cast(Settings, self.conf).ignored:
                self.log.warning("%s in the environment is ignored: with it, records could be lost", name)
            for work in self.background:
                self.add_future(work())

    def call_in_consumer(self, callback: Callable[[], None]) -> None:
        """Schedule this on the event loop of the consumer's thread.

        Raises:
            RuntimeError: The thread has not started yet, or has ended.
        """
        if self._consumer is None:
            raise RuntimeError("the consumer has not been created yet")
        cast(BatchConsumer, self._consumer).call_in_thread(callback)

    # -- connections

    def reconfigure(self, **settings: Any) -> None:
        """Change settings that are not known at import (the servers' addresses), before the App is started."""
        with warnings.catch_warnings():
            # Faust warns that parts of the program may use the old value. Those parts are reset below.
            warnings.simplefilter("ignore", AlreadyConfiguredWarning)
            for name, value in settings.items():
                setattr(self.conf, name, value)
        self._transport = self._producer_transport = self._producer = self._consumer = None

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    @cached_property
    def flow_control(self) -> Flow:
        """Suspends and resumes the delivery of events to the actors."""

        def cleared() -> None:
            if self._consumer is not None:
                cast(BatchConsumer, self._consumer).fetch_unfinished_again()

        return Flow(cleared)

    # -- sending and reading without an agent

    async def send_record(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]
    ) -> Awaitable[Any]:
        """Send one record. Unlike the producer's `send`, it also takes a record with neither key nor value.

        Returns:
            An awaitable that is done when Kafka has acknowledged the record.
        """
        producer: Any = self.producer._producer  # type: ignore[attr-defined]
        batch = producer.create_batch()
        batch.append(key=key, value=value, timestamp=None, headers=headers)
        return await self._send(producer, batch, topic, partition)

    @staticmethod
    async def _send(producer: Any, batch: Any, topic: str, partition: int) -> Awaitable[Any]:
        """Send a Kafka batch. Errors name the topic."""

        def named(done: asyncio.Future[Any]) -> None:
            if not done.cancelled():
                name_topic(done.exception(), topic)

        try:
            delivery: asyncio.Future[Any] = asyncio.ensure_future(
                await producer.send_batch(batch, topic, partition=partition)
            )
        except KafkaError as error:
            name_topic(error, topic)
            raise
        delivery.add_done_callback(named)
        return delivery

    async def publish(self, topic: str, partition: int, rows: Iterable[tuple[bytes, bytes]]) -> int:
        """Send keys and values to one partition in as few Kafka batches as possible. Wait for the acknowledgements.

        The last of them is in the log only if all others are, too.

        Returns:
            The offset of the last record.

        Raises:
            KafkaError: Not all were acknowledged; some may be in the log.
            ValueError: A record is larger than a Kafka batch.
        """
        producer: Any = self.producer._producer  # type: ignore[attr-defined]
        batches = [producer.create_batch()]
        for key, value in rows:
            if batches[-1].append(key=key, value=value, timestamp=None) is None:  # full
                batches.append(producer.create_batch())
                if batches[-1].append(key=key, value=value, timestamp=None) is None:
                    raise ValueError(f"{topic}: a record of {len(key) + len(value)} bytes is larger than a Kafka batch")
        *others, last = batches
        done = await acknowledged(self._send(producer, batch, topic, partition) for batch in others)
        done += await acknowledged([self._send(producer, last, topic, partition)])
        ends = (metadata.offset + batch.record_count() for metadata, batch in zip(done, batches, strict=True))
        return int(max(ends)) - 1

    async def read_partition(self, topic: str, partition: int, take: Callable[[int, list[Any]], None]) -> None:
        """Read a partition from its start to its present end, and pass each run of its records to `take`.

        Raises:
            KafkaError: The partition can't be read now.
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
            bear(client)
            client.assign([tp])
            await client.seek_to_beginning(tp)
            end = (await client.end_offsets([tp]))[tp]
            while await client.position(tp) < end:
                for run in (await client.getmany(tp, timeout_ms=1_000)).values():
                    take(partition, run)
        finally:
            await client.stop()
