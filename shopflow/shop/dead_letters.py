"""Dead letters: records that can't be accepted, unchanged, with the reason and their origin in headers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from faust.types import TP

from faust_batches import Batch, SendOnce, acknowledged
from shopflow.errors import Rejected

from .failure_limit import Limit

log = logging.getLogger(__name__)

PREFIX = "__connect.errors."
#: The header of a dead letter whose value is the Base64 of bytes that could not be taken apart.
RAW = "shopflow.unreadable"

_HASH_BITS = 64

Headers = list[tuple[str, bytes]]
#: `App.send_record`: topic, partition, key, value, headers -> an awaitable that ends when Kafka has acknowledged it.
SendRecord = Callable[[str, int, bytes | None, bytes | None, Headers], Awaitable[Awaitable[Any]]]
#: Topic, partition, Unix time in ms -> the partition's records since then.
#: Option: `of`, what that function makes of each.
ReadSince = Callable[..., Awaitable[list[Any]]]

Rejection = tuple[Any, Rejected]


def headers_of(record: Any, error: Rejected, app_id: str) -> Headers:
    """The record's own headers, and those of Kafka Connect (KIP-298) with its origin and the reason."""
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
    """Publishes records that can't be accepted, each once.

    Arguments:
        topic: The topic of the dead letters. A record of partition N goes to partition N modulo `partitions`.
        partitions: How many partitions that topic has.
        send: `App.send_record`.
        read_since: Reads a partition's records since a time. Without it, a redelivery publishes dead letters again.
    """

    def __init__(
        self, topic: str, partitions: int, app_id: str, send: SendRecord, read_since: ReadSince | None = None
    ) -> None:
        self.topic = topic
        self._partitions = partitions
        self._app_id = app_id
        self._send = send
        self._read_since = read_since
        self._once: SendOnce[int, Rejection] = SendOnce(
            self._sent_before, lambda rejection: _identity(rejection[0].offset, rejection[0])
        )

    def forget(self) -> None:
        """Clear the cache. Call it after a rebalance: other workers may have published meanwhile."""
        self._once.forget()

    async def before(self, record: Any) -> Collection[int]:
        """The identities of the dead-lettered records of this record's partition, from this record on.

        Earlier ones may be forgotten: they are not asked for again until a rebalance.

        Raises:
            KafkaError: The dead letters can't be read now.
        """
        tp, first = TP(record.topic, record.partition), record.offset
        self._once.drop(tp, lambda identity: identity >> _HASH_BITS < first)
        return await self._once.sent_keys(tp, record)

    async def put(self, rejections: Sequence[Rejection]) -> list[Rejection]:
        """Publish the missing dead letters, and wait until Kafka has acknowledged them. Returns those.

        A worker that lost the partition without noticing may publish the same ones at the same time. Their headers then
        name the same origin.

        Raises:
            KafkaError: Some may be missing. Call it again.
        """
        added: list[Rejection] = []
        for tp, group in _by_partition(rejections).items():
            added += await self._once.send(tp, group[0][0], group, self._send_all)
        return added

    async def _send_all(self, rejections: Sequence[Rejection]) -> None:
        await acknowledged(self._send_one(rejection) for rejection in rejections)

    async def _send_one(self, rejection: Rejection) -> Awaitable[Any]:
        record, error = rejection
        headers = headers_of(record, error, self._app_id)
        return await self._send(self.topic, record.partition % self._partitions, record.key, record.value, headers)

    async def _sent_before(self, tp: TP, since: int) -> set[int]:
        """The identities of this partition's records that are dead letters already."""
        if self._read_since is None:
            return set()

        def identity(dead_letter: Any) -> int:
            *origin, offset = origin_of(dead_letter)
            return _identity(offset, dead_letter) if tuple(origin) == tp else -1

        return set(await self._read_since(self.topic, tp.partition % self._partitions, since, of=identity)) - {-1}


def _identity(offset: int, record: Any) -> int:
    """The same for a record and its dead letter, given the record's offset.

    The offset alone is not enough: a topic that was made anew has another record there. A retried record has more
    headers than the dead letter that it was.
    """
    own = tuple((name, value) for name, value in record.headers if not name.startswith(PREFIX))
    return offset << _HASH_BITS | hash((record.key, record.value, own)) & (1 << _HASH_BITS) - 1


def origin_of(dead_letter: Any) -> tuple[str, int, int]:
    """Topic, partition and offset of the rejected record; empty and -1 if the headers lack them."""
    headers = {name.removeprefix(PREFIX): value for name, value in dead_letter.headers if name.startswith(PREFIX)}
    numbers = [headers.get(name, b"") for name in ("partition", "offset")]
    partition, offset = (int(number) if number.isdigit() else -1 for number in numbers)
    return headers.get("topic", b"").decode("utf-8", "replace"), partition, offset


def _by_partition(rejections: Iterable[Rejection]) -> dict[TP, list[Rejection]]:
    groups: dict[TP, list[Rejection]] = {}
    for record, error in rejections:
        groups.setdefault(TP(record.topic, record.partition), []).append((record, error))
    return groups


@dataclass(eq=False)
class Rejections:
    """Publishes a batch's bad records as dead letters. Holds the batch if too many records of its topic are bad.

    Arguments:
        limit: None: there is no limit.
        on_rejected: Called with topic, reason and number of the new dead letters.
    """

    dead_letters: DeadLetters
    limit: Limit | None = None
    on_rejected: Callable[[str, str, int], None] = lambda topic, reason, count: None

    async def before(self, batch: Batch, records: Iterable[Any]) -> set[int]:
        """Offsets of those of the batch's records that are dead letters already.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        known = await batch.with_kafka(lambda: self.dead_letters.before(batch.records[0]))
        return {record.offset for record in records if _identity(record.offset, record) in known} if known else set()

    async def put(self, batch: Batch, rejected: list[Rejection]) -> None:
        """Publish a batch's bad records, each once. Call it in the batch's turn.

        Raises:
            PartitionLost: The batch is no longer ours.
        """
        rejected.sort(key=lambda rejection: rejection[0].offset)
        if self.limit:
            failed = [(record.offset, error.reason) for record, error in rejected]
            await self.limit.hold(batch.tp, batch.records, failed, batch.check_owned)
        if not rejected:
            return
        sent = await batch.with_kafka(lambda: self.dead_letters.put(rejected))
        for reason, count in Counter(error.reason for _, error in sent).items():
            self.on_rejected(batch.tp.topic, reason, count)
            log.warning("%d record(s) of %s became dead letters: %s", count, batch.tp.topic, reason)
