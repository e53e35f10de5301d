"""Kafka as the commands see it: topics made and checked, events produced, offsets and changelogs read."""

from __future__ import annotations

import asyncio
import heapq
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    UnsupportedSaslMechanismError,
    for_code,
)

from shopflow.errors import Refused, Unavailable

from .security import Bootstrap, Security

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Group",
    "Span",
    "TopicSpec",
    "Transactions",
    "admin",
    "asking_spans",
    "by_time",
    "consumer",
    "count_records",
    "each_run",
    "empty",
    "ensure_topics",
    "group_of",
    "partitions",
    "producer",
    "read_partition",
    "read_places",
    "size",
    "spans",
    "tail",
    "transactions",
]

#: The largest record a topic takes: far more than an event has, so that a value of several MB can be dead-lettered.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

T = TypeVar("T")

_CHECK_SECONDS = 0.5
_COORDINATOR_SECONDS = 15.0
#: Kafka aborts a transaction that is open for longer: until then nobody reads what comes behind its records.
_TRANSACTION_SECONDS = 20.0
#: How long a commit, or the start of a producer that has to end its predecessor's transaction, may take.
_COMMIT_SECONDS = 60.0
_STOP_SECONDS = 10.0
_EMPTY_SECONDS = 5.0
#: How long a broker may take to say why it lets nobody in.
_EXPLAIN_MILLISECONDS = 5_000
#: What is fetched of one partition at once where several are read side by side.
_FETCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class TopicSpec:
    """A topic as shopflow creates it.

    Arguments:
        compacted: Keep the last record of each key for ever; else keep all records for `retention_ms`.
        retention_ms: -1: for ever. Not used when compacted.
    """

    name: str
    partitions: int
    replication: int
    compacted: bool = False
    retention_ms: int = -1
    max_message_bytes: int = MAX_MESSAGE_BYTES

    @property
    def configs(self) -> dict[str, str]:
        """Kafka's topic configuration."""
        configs = {"max.message.bytes": str(self.max_message_bytes)}
        if self.compacted:
            configs["cleanup.policy"] = "compact"
        else:
            configs |= {"cleanup.policy": "delete", "retention.ms": str(self.retention_ms)}
        return configs


def quiet() -> None:
    """Let aiokafka say nothing: what matters is raised, and it repeats itself several times a second."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


@asynccontextmanager
async def _started(client: Any, bootstrap: Bootstrap, stop: str = "stop") -> AsyncIterator[Any]:
    try:
        await client.start()
    except KafkaConnectionError as error:
        await getattr(client, stop)()
        raise await _explained(bootstrap) from error
    except BaseException:  # given up, or another refusal: what was begun must not be left behind
        await getattr(client, stop)()
        raise
    try:
        yield client
    except KafkaError as error:
        raise Unavailable("Kafka", str(error) or type(error).__name__) from error
    finally:
        await getattr(client, stop)()


async def _explained(bootstrap: Bootstrap) -> Exception:
    """Why no client can start: aiokafka only logs what each broker said."""
    if bootstrap.security.protocol != "PLAINTEXT":
        for host, port, _ in collect_hosts(bootstrap.hosts):
            try:
                connection = await create_conn(
                    host, port, request_timeout_ms=_EXPLAIN_MILLISECONDS, **bootstrap.security.options
                )
            except (KafkaError, OSError, asyncio.TimeoutError) as error:
                if why := _refusal(error, bootstrap.security):
                    return Refused(f"{why[0]}: Kafka at {host}:{port} {why[1]}")
            else:
                connection.close()
    hint = ""
    if await _takes_connections(bootstrap):
        protocol = bootstrap.security.protocol.lower()
        hint = f", though it takes connections: is {protocol} the right kafka.security_protocol?"
    return Unavailable("Kafka", f"{bootstrap} does not answer{hint}")


async def _takes_connections(bootstrap: Bootstrap) -> bool:
    for host, port, _ in collect_hosts(bootstrap.hosts):
        with suppress(OSError, asyncio.TimeoutError):
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _CHECK_SECONDS)
            writer.close()
            return True
    return False


#: The field that is wrong when a broker says this, and how it is told.
_REFUSALS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str, str], ...] = (
    (
        (SaslAuthenticationFailed, AuthenticationFailedError),
        "kafka.username, kafka.password",
        "refuses the login of {username!r}",
    ),
    (UnsupportedSaslMechanismError, "kafka.sasl_mechanism", "takes no login by {mechanism}"),
    (IllegalSaslStateError, "kafka.security_protocol", "takes no login at this port"),
    (ssl.SSLCertVerificationError, "kafka.ca_file", "shows a certificate that is not accepted: {reason}"),
)


def _refusal(error: BaseException | None, security: Security) -> tuple[str, str] | None:
    """The field that is wrong, and what the broker did; None when it seems to be away."""
    if error is None:
        return None
    reason = str(getattr(error, "verify_message", "") or getattr(error, "reason", ""))
    if "mismatch" in reason.lower():
        return "kafka.check_hostname", f"shows a certificate for another name: {reason}"
    for kind, field, said in _REFUSALS:
        if isinstance(error, kind):
            return field, said.format(username=security.username, mechanism=security.mechanism, reason=reason)
    if isinstance(error, ssl.SSLError):
        if "ALERT" in reason:
            return "kafka.certificate_file", f"refuses our certificate: {reason}"
        return "kafka.security_protocol", f"speaks no TLS at this port: {reason}"
    return _refusal(error.__cause__, security)


class _NoLogins(logging.Filter):
    """`-l debug` shows every request, and in a login is the password."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let it pass?"""
        return not any("SaslAuthenticate" in type(argument).__name__ for argument in record.args or ())


logging.getLogger("aiokafka.conn").addFilter(_NoLogins())


def admin(bootstrap: Bootstrap, **options: Any) -> Any:
    """An admin client, as an async context manager.

    Raises:
        Unavailable: Kafka does not answer.
    """
    return _started(AIOKafkaAdminClient(**{**bootstrap.options, **options}), bootstrap, stop="close")


def producer(bootstrap: Bootstrap) -> Any:
    """An idempotent producer of raw keys and values, as an async context manager. Partitions by key as Java's does."""
    return _started(
        AIOKafkaProducer(
            **bootstrap.options,
            enable_idempotence=True,
            linger_ms=20,
            max_batch_size=262_144,
            max_request_size=MAX_MESSAGE_BYTES,
        ),
        bootstrap,
    )


def consumer(bootstrap: Bootstrap, **options: Any) -> Any:
    """A consumer without a group, of what was committed only, as an async context manager."""
    options = {
        **bootstrap.options,
        "group_id": None,
        "isolation_level": "read_committed",
        **options,
    }
    return _started(AIOKafkaConsumer(**options), bootstrap)


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
        await _within(_COMMIT_SECONDS, self._client.commit_transaction())

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
            await _within(_COMMIT_SECONDS, client.start())
        except KafkaConnectionError as error:
            raise await _explained(bootstrap) from error
        except KafkaError as error:
            raise Unavailable("Kafka", str(error) or type(error).__name__) from error
        yield Transactions(client)
    finally:
        with suppress(KafkaError):
            await _within(_STOP_SECONDS, client.stop())


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Raises:
    KafkaTimeoutError: It took longer; aiokafka would try for ever.
    """
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise KafkaTimeoutError(f"no answer within {seconds:g} s") from error


def _leave_to_caller(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """When a producer is fenced, aiokafka leaves failed futures that nobody can get at; who waits is told anyway."""
    if not isinstance(context.get("exception"), KafkaError):
        loop.default_exception_handler(context)


async def wait_for(bootstrap: Bootstrap, seconds: float, say: Callable[[str], None]) -> None:
    """Wait until Kafka answers.

    Raises:
        Refused: It did not within that time.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    said = False
    while True:
        try:
            async with admin(bootstrap):
                return
        except Unavailable as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise Refused(f"broker: Kafka at {str(error).removeprefix('Kafka: ')}") from error
            if not said:
                say(f"Waiting for Kafka at {bootstrap} ...")
                said = True
            await asyncio.sleep(_CHECK_SECONDS)


async def ensure_topics(bootstrap: Bootstrap, specs: Sequence[TopicSpec]) -> None:
    """Create the topics that don't exist, and check those that do.

    Raises:
        Refused: One exists with another number of partitions, or can't be created.
        Unavailable: Kafka does not answer.
    """
    async with admin(bootstrap) as client:
        found = await _partitions(client, [spec.name for spec in specs])
        for spec in specs:
            _check_partitions(spec, found.get(spec.name))
        missing = [spec for spec in specs if spec.name not in found]
        for spec in missing:
            await _create(client, spec)
        deadline = asyncio.get_running_loop().time() + 30
        while missing and not await _ready(client, missing):
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable("Kafka", f"{missing[0].name} was created but has no leader yet")
            await asyncio.sleep(0.1)


async def _partitions(client: Any, names: list[str]) -> dict[str, int]:
    described = await client.describe_topics(names)
    return {topic["topic"]: len(topic["partitions"]) for topic in described if topic["error_code"] == 0}


async def partitions(bootstrap: Bootstrap, names: Iterable[str]) -> dict[str, int]:
    """How many partitions each of these topics has; without those that do not exist.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with admin(bootstrap) as client:
        return await _partitions(client, list(names))


async def size(bootstrap: Bootstrap, topic: str, count: int) -> int:
    """How many offsets there are in a topic with so many partitions: at least as many as records.

    Raises:
        Unavailable: Kafka does not answer.
    """
    places = [TopicPartition(topic, number) for number in range(count)]
    async with consumer(bootstrap) as client:
        starts, ends = await client.beginning_offsets(places), await client.end_offsets(places)
        return sum(ends[place] - starts[place] for place in places)


async def _ready(client: Any, specs: Iterable[TopicSpec]) -> bool:
    described = {topic["topic"]: topic for topic in await client.describe_topics([spec.name for spec in specs])}
    return all(
        len(topic["partitions"]) == spec.partitions and all(part["leader"] >= 0 for part in topic["partitions"])
        for spec in specs
        if (topic := described[spec.name])
    )


def _check_partitions(spec: TopicSpec, found: int | None) -> None:
    if found is not None and found != spec.partitions:
        raise Refused(
            f"topics.partitions: topic {spec.name} has {found} partitions, configured are {spec.partitions}; "
            "the counts of a customer depend on it: set it to what the topic has, "
            "or begin anew with another app_id, topics.prefix and mongodb.database"
        )


async def _create(client: Any, spec: TopicSpec) -> None:
    topic = NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.configs)
    try:
        answer = await client.create_topics([topic])
    except TopicAlreadyExistsError:
        return
    except KafkaError as error:
        raise Refused(f"topic {spec.name} can't be created: {error}") from error
    for name, code, *message in answer.topic_errors:
        failure = for_code(code)
        if code and failure is not TopicAlreadyExistsError:  # another worker was quicker
            reason = (message[0] if message else None) or failure.__name__
            raise Refused(f"topic {name} can't be created: {reason}")


async def _runs(client: Any, place: TopicPartition, end: int) -> AsyncIterator[list[Any]]:
    """The runs of records from where the client stands up to `end`."""
    while await client.position(place) < end:
        for run in (await client.getmany(place, timeout_ms=1_000)).values():
            yield run


async def read_partition(
    bootstrap: Bootstrap, topic: str, partition: int, take: Callable[[int, list[Any]], None]
) -> None:
    """Read a partition from its start to its present end, and pass each run of records on."""
    place = TopicPartition(topic, partition)
    async with consumer(bootstrap, enable_auto_commit=False) as client:
        client.assign([place])
        await client.seek_to_beginning(place)
        async for run in _runs(client, place, (await client.end_offsets([place]))[place]):
            take(partition, run)


async def by_time(bootstrap: Bootstrap, topic: str, count: int, *, values: bool = True) -> AsyncGenerator[Any, None]:
    """The records of a topic with so many partitions up to its present end, oldest first; a run of each in memory.

    Those of one partition stay in their order, whatever time they say they have.

    Arguments:
        values: False: without their values.
    """
    options: dict[str, Any] = {} if values else {"value_deserializer": lambda _: None}
    places = [TopicPartition(topic, number) for number in range(count)]
    async with (
        consumer(bootstrap, enable_auto_commit=False, max_partition_fetch_bytes=_FETCH_BYTES, **options) as client,
        AsyncExitStack() as stack,
    ):
        client.assign(places)
        await client.seek_to_beginning(*places)
        ends = await client.end_offsets(places)
        streams = [await stack.enter_async_context(aclosing(_each(client, one, ends[one]))) for one in places]
        async for record in _merged(streams):
            yield record


async def _each(client: Any, place: TopicPartition, end: int) -> AsyncGenerator[Any, None]:
    async for run in _runs(client, place, end):
        for record in run:
            if record.offset < end:
                yield record


async def _merged(streams: Sequence[AsyncIterator[Any]]) -> AsyncIterator[Any]:
    heads: list[tuple[int, int, Any]] = []
    for number, stream in enumerate(streams):
        if (record := await anext(stream, None)) is not None:
            heads.append((record.timestamp or 0, number, record))
    heapq.heapify(heads)
    while heads:
        _, number, record = heads[0]
        yield record
        if (following := await anext(streams[number], None)) is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following.timestamp or 0, number, following))


async def tail(bootstrap: Bootstrap, topic: str, count: int, most: int, *, values: bool = True) -> list[Any]:
    """The last records of each partition of a topic with so many partitions, in no order.

    Arguments:
        most: Offsets that are looked at in each partition, from its present end.
        values: False: without their values.
    """
    places = [TopicPartition(topic, number) for number in range(count)]
    options: dict[str, Any] = {} if values else {"value_deserializer": lambda _: None}
    found: list[Any] = []
    async with consumer(bootstrap, enable_auto_commit=False, **options) as client:
        starts, ends = await client.beginning_offsets(places), await client.end_offsets(places)
        for place in places:
            client.assign([place])
            client.seek(place, max(starts[place], ends[place] - most))
            async for run in _runs(client, place, ends[place]):
                found += [record for record in run if record.offset < ends[place]]
    return found


async def read_places(bootstrap: Bootstrap, topic: str, places: Iterable[tuple[int, int]]) -> AsyncGenerator[Any, None]:
    """The record at each partition and offset; None where there is none (any more)."""
    async with consumer(bootstrap, enable_auto_commit=False) as client:
        for partition, offset in places:
            place = TopicPartition(topic, partition)
            client.assign([place])
            start, end = (await client.beginning_offsets([place]))[place], (await client.end_offsets([place]))[place]
            yield await _first(client, place, offset) if start <= offset < end else None


async def _first(client: Any, place: TopicPartition, offset: int) -> Any:
    client.seek(place, offset)
    async with aclosing(_each(client, place, offset + 1)) as found:
        return await anext(found, None)


async def each_run(
    bootstrap: Bootstrap,
    topic: str,
    partition: int,
    end: int,
    handle: Callable[[list[Any]], Awaitable[None]],
    **options: Any,
) -> None:
    """Read a partition from its start up to `end`, and wait for each run of records to be handled: few are in memory.

    Arguments:
        options: The consumer's, over the usual ones.
    """
    place = TopicPartition(topic, partition)
    async with consumer(bootstrap, enable_auto_commit=False, **options) as client:
        client.assign([place])
        await client.seek_to_beginning(place)
        async for run in _runs(client, place, end):
            await handle([record for record in run if record.offset < end])


async def count_records(bootstrap: Bootstrap, topic: str, partitions: int) -> int:
    """How many records a topic holds: what was aborted and the ends of transactions are none. Reads them all."""
    total = 0

    def count(partition: int, run: list[Any]) -> None:
        nonlocal total
        total += len(run)

    for partition in range(partitions):
        await read_partition(bootstrap, topic, partition, count)
    return total


async def _coordinated(ask: Callable[[str], Awaitable[T]], group: str) -> T:
    """Ask about a group. A new broker has no coordinator for it at first."""
    deadline = asyncio.get_running_loop().time() + _COORDINATOR_SECONDS
    while True:
        try:
            return await ask(group)
        except KafkaError as error:
            if not error.retriable or asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(_CHECK_SECONDS)


async def _committed(client: Any, group: str) -> dict[TopicPartition, Any]:
    """What the group has committed."""
    return await _coordinated(client.list_consumer_group_offsets, group)


@dataclass(frozen=True)
class Group:
    """A consumer group as its coordinator sees it."""

    state: str
    """Kafka's word: `Stable`, `Empty`, `Dead`; another while it shares out the partitions."""

    assignments: tuple[tuple[str, bytes], ...]
    """Each member's client id with host, and what the group's leader gave it: empty until it did."""

    members: tuple[str, ...] = ()
    """The ids of the members: the workers that run, and those whose session has not run out yet."""


async def group_of(bootstrap: Bootstrap, name: str) -> Group:
    """Describe a consumer group; one that does not exist is `Dead`.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with admin(bootstrap) as client:

        async def describe(group: str) -> Any:
            (answer,) = await client.describe_consumer_groups([group])
            (described,) = answer.groups
            if described[0]:
                raise for_code(described[0])
            return described

        _, _, state, _, _, members, *_ = await _coordinated(describe, name)
    found = [(f"{client_id} at {host}", assignment) for _, client_id, host, _, assignment, *_ in members]
    return Group(state, tuple(sorted(found)), tuple(member[0] for member in members))


async def read_since(
    bootstrap: Bootstrap, topic: str, partition: int, since: int, *, values: bool = False
) -> list[Any]:
    """The records of a partition since this time (Unix, ms) up to its present end; their values only if wanted."""
    place = TopicPartition(topic, partition)
    options = {} if values else {"value_deserializer": lambda _: None}
    async with consumer(bootstrap, enable_auto_commit=False, **options) as client:
        client.assign([place])
        end = (await client.end_offsets([place]))[place]
        found = (await client.offsets_for_times({place: since}))[place]
        client.seek(place, end if found is None else found.offset)
        return [record async for run in _runs(client, place, end) for record in run]


@dataclass(frozen=True)
class Lag:
    """How far the group has come in one topic."""

    records: int  #: between the start and the end of the topic
    waiting: int  #: between what the group committed and the end


@dataclass(frozen=True)
class Span:
    """What a partition holds, as offsets."""

    start: int  #: what was before it is gone
    done: int  #: what is before it the group has committed; not below the start
    end: int


async def spans(bootstrap: Bootstrap, group: str, topics: Iterable[str]) -> dict[str, dict[int, Span]]:
    """What each partition of each topic that exists holds, and how far the group is.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with admin(bootstrap) as client, consumer(bootstrap) as reader:
        return await _spans(client, reader, group, topics)


async def _spans(client: Any, reader: Any, group: str, topics: Iterable[str]) -> dict[str, dict[int, Span]]:
    counts = await _partitions(client, list(topics))
    places = [TopicPartition(name, number) for name, count in counts.items() for number in range(count)]
    starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
    committed = await _committed(client, group)
    found: dict[str, dict[int, Span]] = {name: {} for name in counts}
    for place in places:
        done = max(committed[place].offset if place in committed else -1, starts[place])
        found[place.topic][place.partition] = Span(starts[place], done, ends[place])
    return found


@asynccontextmanager
async def asking_spans(
    bootstrap: Bootstrap, group: str, topics: Iterable[str], seconds: float
) -> AsyncIterator[Callable[[], Awaitable[dict[str, dict[int, Span]]]]]:
    """Gives what asks for the spans, as often as it is called, over connections that stay open.

    Arguments:
        seconds: How long one answer may take.

    Raises:
        Unavailable: Kafka does not answer.
    """
    names, options = list(topics), {"request_timeout_ms": int(seconds * 1000)}
    async with admin(bootstrap, **options) as client, consumer(bootstrap, **options) as reader:
        yield lambda: _within(seconds, _spans(client, reader, group, names))


async def lags(bootstrap: Bootstrap, group: str, topics: Iterable[str]) -> dict[str, Lag]:
    """The group's lag in each topic that exists.

    Raises:
        Unavailable: Kafka does not answer.
    """
    answer = {}
    async with admin(bootstrap) as client, consumer(bootstrap) as reader:
        for name, partitions in (await _spans(client, reader, group, topics)).items():
            waiting = 0
            for number, span in partitions.items():
                place = TopicPartition(name, number)
                if span.done < span.end and await _any_record(reader, place, span.done, span.end):
                    waiting += span.end - span.done
            answer[name] = Lag(sum(span.end - span.start for span in partitions.values()), waiting)
    return answer


async def empty(
    bootstrap: Bootstrap, places: Mapping[tuple[str, int], Span], seconds: float = _EMPTY_SECONDS
) -> set[tuple[str, int]]:
    """The topics and partitions that have no record between what is done and their end, but for transactions' ends.

    Raises:
        Unavailable: Kafka does not answer, for one of them within so many seconds.
    """
    async with consumer(bootstrap, request_timeout_ms=int(seconds * 1000)) as client:
        return {
            place
            for place, span in places.items()
            if not await _within(seconds, _any_record(client, TopicPartition(*place), span.done, span.end))
        }


async def _any_record(client: Any, place: TopicPartition, start: int, end: int) -> bool:
    """Is there a record between these offsets? The end of a transaction takes one, and is none."""
    client.assign([place])
    client.seek(place, start)
    async for _ in _runs(client, place, end):
        return True
    return False
