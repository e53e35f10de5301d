"""Kafka clients: their settings, their start and stop, and the reason if one can't start."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from faust_batches import bear
from faust_batches.connections import pace_refreshes
from faust_batches.noise import Noise
from faust_batches.refusals import kafka_failure
from shopflow.errors import Refused, Unavailable

from .security import Bootstrap, Security

#: The largest record that a topic takes. Far larger than an event, so that a value of several MB can be dead-lettered.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

T = TypeVar("T")

CHECK_SECONDS = 0.5
#: How long a broker may take to give the reason for refusing clients.
_EXPLAIN_MILLISECONDS = 5_000


def quiet() -> None:
    """Silence the client library in a command: all errors are raised."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(Noise())


@asynccontextmanager
async def _started(
    client: Any,
    stop: Callable[[], Awaitable[None]],
    bootstrap: Bootstrap,
    start: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[Any]:
    try:
        await (start or client.start)()
    except BaseException as error:  # also if cancelled: a half-started client must be stopped
        await stop()
        if isinstance(error, KafkaConnectionError):
            raise await explained(bootstrap) from error
        raise
    try:
        yield client
    except KafkaError as error:
        raise kafka_failure(error, "Kafka") from error
    finally:
        await stop()


async def explained(bootstrap: Bootstrap) -> Exception:
    """The error to raise when no client can start. aiokafka only logs each broker's reason; this asks for it again."""
    if bootstrap.security.protocol != "PLAINTEXT":
        for host, port, _ in collect_hosts(bootstrap.hosts):
            try:
                connection = await create_conn(
                    host, port, request_timeout_ms=_EXPLAIN_MILLISECONDS, **bootstrap.security.options
                )
            except (KafkaError, OSError, asyncio.TimeoutError) as error:
                if refusal := _refusal(error, bootstrap.security):
                    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                    return Refused(f"{refusal[0]}: Kafka at {at} {refusal[1]}")
            else:
                connection.close()
    hint = ""
    if await _accepts_connections(bootstrap):
        protocol = bootstrap.security.protocol.lower()
        hint = f", though it accepts connections: is {protocol} the right kafka.security_protocol?"
    return Unavailable("Kafka", f"{bootstrap} does not answer{hint}")


async def _accepts_connections(bootstrap: Bootstrap) -> bool:
    for host, port, _ in collect_hosts(bootstrap.hosts):
        with suppress(OSError, asyncio.TimeoutError):
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), CHECK_SECONDS)
            writer.close()
            return True
    return False


#: By a broker's error: the setting that is wrong, and the words for the message.
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
    """The setting that is wrong, and the broker's reaction; None if the broker seems to be away."""
    if error is None:
        return None
    reason = str(getattr(error, "verify_message", "") or getattr(error, "reason", ""))
    if "mismatch" in reason.lower():
        return "kafka.check_hostname", f"shows a certificate for another name: {reason}"
    for kind, field, words in _REFUSALS:
        if isinstance(error, kind):
            return field, words.format(username=security.username, mechanism=security.mechanism, reason=reason)
    if isinstance(error, ssl.SSLError):
        if "ALERT" in reason:
            return "kafka.certificate_file", f"refuses our certificate: {reason}"
        return "kafka.security_protocol", f"speaks no TLS at this port: {reason}"
    return _refusal(error.__cause__, security)


class _NoLogins(logging.Filter):
    """Keeps logins out of the log: `-l debug` logs every request, and a login contains the password."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any("SaslAuthenticate" in type(argument).__name__ for argument in record.args or ())


logging.getLogger("aiokafka.conn").addFilter(_NoLogins())


def client(bootstrap: Bootstrap) -> Any:
    """A client for single requests, as an async context manager.

    Raises:
        Unavailable: Kafka does not answer.
    """
    made = AIOKafkaClient(**bootstrap.options)
    return _started(made, made.close, bootstrap, start=lambda: _bootstrapped(made, bootstrap))


async def _bootstrapped(client: AIOKafkaClient, bootstrap: Bootstrap) -> None:
    """Start the client. A Kafka that is starting answers, but lists no broker yet: no request could be sent.

    Raises:
        Unavailable: Kafka lists no broker.
    """
    await client.bootstrap()
    if not client.cluster.brokers():
        raise Unavailable("Kafka", f"{bootstrap} has no broker that is ready")


def admin(bootstrap: Bootstrap, **options: Any) -> Any:
    """An admin client, as an async context manager.

    Raises:
        Unavailable: Kafka does not answer.
    """
    client = AIOKafkaAdminClient(**{**bootstrap.options, **options})
    return _started(client, client.close, bootstrap)


def producer(bootstrap: Bootstrap) -> Any:
    """An idempotent producer of raw keys and values, as an async context manager. It partitions by key as Java's does.

    Raises:
        Unavailable: Kafka does not answer.
    """
    client = AIOKafkaProducer(
        **bootstrap.options,
        enable_idempotence=True,
        linger_ms=20,
        max_batch_size=262_144,
        max_request_size=MAX_MESSAGE_BYTES,
    )
    pace_refreshes(client.client)
    return _started(client, client.stop, bootstrap)


def consumer(bootstrap: Bootstrap, *, values: bool = True, **options: Any) -> Any:
    """A consumer of committed records, in no group unless the options name one, as an async context manager.

    It gives an `UnreadableRecord` for what can't be taken apart.

    Arguments:
        values: False: the records come without their values.

    Raises:
        Unavailable: Kafka does not answer.
    """
    if not values:
        options["value_deserializer"] = _no_value
    client = AIOKafkaConsumer(**{**bootstrap.options, "isolation_level": "read_committed", **options})

    async def start() -> None:
        await client.start()
        bear(client)

    return _started(client, client.stop, bootstrap, start)


def _no_value(_: bytes | None) -> None:
    return None


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Wait for a request, and raise `KafkaTimeoutError` if it takes longer; aiokafka would retry for ever."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise KafkaTimeoutError(f"no answer within {seconds:g} s") from error
