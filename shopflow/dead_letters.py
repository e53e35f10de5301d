"""What could not be accepted: the record as it came, with the reason and its place, in a topic of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from .errors import Rejected

__all__ = ["DeadLetters", "Rejection", "headers_of"]

PREFIX = "__connect.errors."

Headers = list[tuple[str, bytes]]
#: topic, key, value, partition, headers -> a future that is done when Kafka has it
Send = Callable[[str, bytes | None, bytes | None, int, Headers], Awaitable[Awaitable[Any]]]


class Record(Protocol):
    """What is needed of aiokafka's `ConsumerRecord`."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


Rejection = tuple[Any, Rejected]


def headers_of(record: Record, error: Rejected, app_id: str) -> Headers:
    """The record's own headers, and Kafka Connect's (KIP-298): where it came from and what was wrong."""
    return [
        *((name, value) for name, value in record.headers if not name.startswith(PREFIX)),
        (f"{PREFIX}topic", record.topic.encode()),
        (f"{PREFIX}partition", str(record.partition).encode()),
        (f"{PREFIX}offset", str(record.offset).encode()),
        (f"{PREFIX}connector.name", app_id.encode()),
        (f"{PREFIX}stage", b"TASK_PUT"),
        (f"{PREFIX}exception.class.name", f"{type(error).__module__}.{type(error).__qualname__}".encode()),
        (f"{PREFIX}exception.message", str(error).encode("utf-8", "backslashreplace")),
    ]


class DeadLetters:
    """The way out for records that can't be accepted.

    Arguments:
        topic: Where they go; to the partition with the number of the one they came from.
        partitions: How many that topic has.
    """

    def __init__(self, topic: str, partitions: int, app_id: str, send: Send) -> None:
        self.topic = topic
        self._partitions = partitions
        self._app_id = app_id
        self._send = send

    async def put(self, rejections: Iterable[Rejection]) -> None:
        """Send them, and wait until Kafka has acknowledged all.

        At least once: after a crash or a stop in mid-batch a record can be sent again, from the same place.

        Raises:
            KafkaError: Not all are there; do it again.
        """
        sent = [
            await self._send(
                self.topic,
                record.key,
                record.value,
                record.partition % self._partitions,
                headers_of(record, error, self._app_id),
            )
            for record, error in rejections
        ]
        for delivery in sent:
            await delivery
