"""What could not be accepted: the record as it came, with the reason and its place, in a topic of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from faust_batches.once import Once, Place, ReadSince
from shopflow.errors import Rejected
from shopflow.kafka.connection import acknowledged

__all__ = ["DeadLetters", "Rejection", "headers_of", "origin_of"]

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
        send: Sends one.
        read_since: Reads what a partition of the topic holds since a time (Unix, ms; 0: all). Without it a batch that
            comes again after a crash has its bad records sent again.
    """

    def __init__(
        self, topic: str, partitions: int, app_id: str, send: Send, read_since: ReadSince | None = None
    ) -> None:
        self.topic = topic
        self._partitions = partitions
        self._app_id = app_id
        self._send = send
        self._read_since = read_since
        self._once: Once[int, Rejection] = Once(self._sent_before, lambda rejection: rejection[0].offset)

    def forget(self) -> None:
        """After a rebalance: what others sent meanwhile is not known."""
        self._once.forget()

    async def before(self, record: Record) -> Collection[int]:
        """Offsets of those records of this one's partition, from this one on, that are here already.

        Raises:
            KafkaError: It can't be told now.
        """
        return await self._once.known((record.topic, record.partition), record)

    async def put(self, rejections: Sequence[Rejection]) -> list[Rejection]:
        """Send those that are not there yet, and wait until Kafka has acknowledged all. Returns which were sent.

        Once, unless a worker that lost the partition, and does not know yet, sends the same at the same time: its place
        in the headers tells that it is the same.

        Raises:
            KafkaError: Not all are there; do it again.
        """
        added: list[Rejection] = []
        for place, group in _by_place(rejections).items():
            added += await self._once.send(place, group[0][0], group, self._send_all)
        return added

    async def _send_all(self, rejections: Sequence[Rejection]) -> None:
        await acknowledged(self._send_one(rejection) for rejection in rejections)

    async def _send_one(self, rejection: Rejection) -> Awaitable[Any]:
        record, error = rejection
        headers = headers_of(record, error, self._app_id)
        return await self._send(self.topic, record.key, record.value, record.partition % self._partitions, headers)

    async def _sent_before(self, place: Place, since: int) -> set[int]:
        """Which records of this place the workers before us have sent."""
        if self._read_since is None:
            return set()
        found = await self._read_since(self.topic, place[1] % self._partitions, since)
        return {offset for *origin, offset in map(origin_of, found) if tuple(origin) == place}


def origin_of(dead_letter: Any) -> tuple[str, int, int]:
    """Topic, partition and offset of the record that this dead letter was; empty and -1 where the headers don't say."""
    headers = {name.removeprefix(PREFIX): value for name, value in dead_letter.headers if name.startswith(PREFIX)}
    numbers = [headers.get(name, b"") for name in ("partition", "offset")]
    partition, offset = (int(number) if number.isdigit() else -1 for number in numbers)
    return headers.get("topic", b"").decode("utf-8", "replace"), partition, offset


def _by_place(rejections: Iterable[Rejection]) -> dict[Place, list[Rejection]]:
    groups: dict[Place, list[Rejection]] = {}
    for record, error in rejections:
        groups.setdefault((record.topic, record.partition), []).append((record, error))
    return groups
