"""Fakes for tests of a handler: a batch, a record and a table in memory. No Kafka, no RocksDB."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from faust.types import TP

from .errors import PartitionLost
from .outage import Outage, retrying_kafka
from .rocks import Row, is_text

T = TypeVar("T")


@dataclass(frozen=True)
class FakeRecord:
    """The fields of an aiokafka `ConsumerRecord` that a handler reads."""

    key: bytes | None
    value: bytes | None
    offset: int = 0
    partition: int = 0
    topic: str = "topic"
    timestamp: int = 1_700_000_000_000  #: Unix, in milliseconds
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class FakeBatch:
    """A batch, by default the next in its chain.

    Arguments:
        events: Gets "turn" and "finished". Give the same list to tables and stores to see the order of all steps.
        lost: True: the partition was revoked.
        early: True: a batch before this one is not finished.
    """

    records: list[Any]
    events: list[str] = field(default_factory=list)
    lost: bool = False
    early: bool = False
    finished: bool = False
    removed: int = 0
    kafka_outage: Outage = field(default_factory=lambda: Outage("Kafka"))

    @property
    def tp(self) -> TP:
        return TP(self.records[0].topic, self.records[0].partition)

    @property
    def start(self) -> int:
        return int(self.records[0].offset)

    @property
    def end(self) -> int:
        return int(self.records[-1].offset) + 1

    def freeze(self) -> None:
        return

    @property
    def owned(self) -> bool:
        return not self.lost

    def check_owned(self) -> None:
        if not self.owned:
            raise PartitionLost(f"{self.tp} was revoked")

    async def wait_for_lease(self) -> None:
        self.check_owned()

    def require_next(self) -> None:
        self.check_owned()
        if self.finished:
            raise PartitionLost(f"{self.tp}: the batch is finished")
        if self.early:
            raise PartitionLost(f"{self.tp}: a batch before this one is not finished")

    async def with_kafka(self, attempt: Callable[[], Awaitable[T]]) -> T:
        batch: Any = self
        return await retrying_kafka(self.kafka_outage, batch, attempt)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        self.require_next()
        self.events.append("turn")
        yield
        self.check_owned()
        self.events.append("finished")
        self.finished = True


class FakeTable:
    """An exactly-once table in dicts, and its changelog as a list.

    Arguments:
        events: Gets "table" and "changelog" for each write.
    """

    def __init__(self, events: list[str] | None = None) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = {}
        self.changelog: list[Row] = []
        self.persisted: dict[int, int] = {}  #: the last changelog offset in each partition's rows
        self.failures: list[Exception] = []  #: each write pops the last one and raises it
        self.events = events if events is not None else []

    def owned_partitions(self) -> list[int]:
        return sorted(self.rows)

    def reader(self, partition: int) -> Callable[[bytes], bytes | None]:
        return self.rows.setdefault(partition, {}).get

    def scan(self, partition: int, after: bytes, limit: int) -> list[Row]:
        rows = sorted(self.rows.get(partition, {}).items())
        return [row for row in rows if row[0] > after and is_text(row[0])][:limit]

    def drop(self, partition: int) -> None:
        self.rows.pop(partition, None)

    async def write(self, batch: Any, rows: Sequence[Row]) -> None:
        batch.check_owned()
        self.events.append("table")
        self.rows.setdefault(batch.tp.partition, {}).update(rows)
        if rows:
            await batch.with_kafka(lambda: self._publish(rows))
            batch.check_owned()
            self.persisted[batch.tp.partition] = len(self.changelog) - 1

    async def _publish(self, rows: Sequence[Row]) -> None:
        if self.failures:
            raise self.failures.pop()
        self.events.append("changelog")
        self.changelog += rows
