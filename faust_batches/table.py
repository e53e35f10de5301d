"""A table written a batch at a time, its changelog read a run at a time, and audited after every recovery.

`table[key] = value` costs 60 us a key in Faust and keeps a future for each record; one RocksDB write and a few Kafka
batches for all keys of a batch cost 2 us a key. Faust's views, standby replicas and `/table/` pages read these rows as
ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import faust
import msgspec
from aiokafka.errors import KafkaError
from faust.exceptions import ImproperlyConfigured
from faust.types import TP

from .audit import Audit
from .errors import BatchError, Unavailable
from .position import TOTALS_KEY, Position, position_of, settled_in
from .rocks import RocksStore, Row

if TYPE_CHECKING:
    from .app import App
    from .consumer import Batch

V = TypeVar("V")

#: Rows looked at before other coroutines get a turn.
_SLICE = 2_000
_REBUILD_ATTEMPTS = 2
_READ_AGAIN_SECONDS = 1.0
_ROCKSDB_OPTIONS = {"write_buffer_size": 8 << 20, "block_cache_size": 32 << 20, "max_write_buffer_number": 2}


class Table(faust.Table[str, Any]):
    """A table whose values count each record once; made by `App.exactly_once_table`.

    A value is a JSON object that carries `era` and `offset`: the offset of the last record applied to it. A record at
    or below it is a redelivery. Of two values of one key the one with the larger position is the later, in whatever
    order they come.

    Arguments:
        value: The type of the values, for Faust's views: a `faust.Record`; None: JSON.
        source: The batched topic whose records it counts, with as many partitions as the table. A partition is read
            from where its totals are, also if more is committed: totals that begin anew, in a later era, are counted
            again from the start.
        sums: Fields whose sums over a partition's rows are kept in its totals (`TOTALS_KEY`), and audited after each
            recovery. None: there are no totals, so nothing is audited.
        count: The field of the totals that holds the number of rows.
        options: For RocksDB, whose own defaults take gigabytes for a few partitions.
    """

    app: App

    def __init__(
        self,
        app: App,
        name: str,
        *,
        value: type[Any] | None,
        source: str | None = None,
        sums: Sequence[str] = (),
        count: str = "rows",
        help: str = "",
        options: dict[str, Any] | None = None,
    ) -> None:
        schema: Any = faust.Schema(key_type=str, value_type=value, key_serializer="raw", value_serializer="json")
        super().__init__(
            app,
            name=name,
            default=None,
            key_type=str,
            value_type=value,
            schema=schema,
            help=help,
            options=_ROCKSDB_OPTIONS if options is None else options,
        )
        self.key_serializer = "raw"
        self.source = source
        self._sums = tuple(sums)
        self._count = count
        self._unaudited: set[int] = set()

    @property
    def _rocks(self) -> RocksStore:
        store: Any = self.data
        return store  # type: ignore[no-any-return]

    def _new_store_by_url(self, url: Any) -> RocksStore:
        return RocksStore(
            url,
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            value_type=self.value_type,
            loop=self.loop,
            options=self.options,
        )

    # -- reading

    def owned_partitions(self) -> list[int]:
        """The partitions whose rows this worker keeps now."""
        topic = self.changelog_topic_name
        return sorted(tp.partition for tp in self.app.assignor.assigned_actives() if tp.topic == topic)

    def reader(self, partition: int) -> Callable[[bytes], bytes | None]:
        """Give what reads the value of a key of this partition, as bytes; None where there is none."""
        return self._rocks.reader(partition)

    def scan(self, partition: int, after: bytes, limit: int) -> list[Row]:
        """At most `limit` rows of a partition whose keys come after this one, in the order of their keys.

        Neither the totals are among them nor a key that is not UTF-8.
        """
        return self._rocks.scan(partition, after, limit)

    def next_offset(self, partition: int) -> int | None:
        """The offset in `source` after the last batch that the partition's totals have; None if there are none.

        Raises:
            Unavailable: As `write`.
        """
        self._rocks.open(partition)
        totals = self._rocks.reader(partition)(TOTALS_KEY)
        settled = None if totals is None else settled_in(totals)
        return None if settled is None else settled + 1

    # -- writing

    async def write(self, batch: Batch, rows: Sequence[Row]) -> None:
        """Write rows; when it returns, they are in RocksDB and Kafka has acknowledged their changelog records.

        Call it in the batch's turn, with nothing awaited since the values that the rows come from were read. Write
        again also what did not change: so the changelog catches up where RocksDB was ahead of it at a crash.

        Raises:
            PartitionLost: The partition is no longer ours.
            Unavailable: RocksDB can't write now: the disk is full, for one. The log has said so.
        """
        partition = batch.tp.partition
        self._rocks.write(partition, rows)
        if rows:
            topic = self.changelog_topic_name
            last = await batch.with_kafka(lambda: self.app.publish(topic, partition, rows))
            batch.check_owned()  # else the database may be another worker's by now
            self._acknowledged(partition, last, len(rows))
        await self._audit_late(partition)

    def _acknowledged(self, partition: int, last: int, rows: int) -> None:
        """So many rows, which are in RocksDB, are in the changelog, the last of them at this offset.

        The next recovery starts after them if nothing is between them and what was known of the changelog before. If
        something is, another worker wrote it, while this one slept or since: then the recovery must read it.
        """
        known = self._rocks.persisted_offset(TP(self.changelog_topic_name, partition))
        if last - rows == (-1 if known is None else known):
            self._rocks.write(partition, offset=last)

    # -- recovery

    def recover(self, partition: int, records: list[Any]) -> None:
        """Take in a run of changelog records, all of it or nothing.

        Of two values of a key the one with the larger position stays, also when it comes first: a worker that lost the
        partition may have had records under way that arrive after its successor's. Compaction would keep the last
        record, so the key is marked, and its larger value published again before the partition is used.

        Raises:
            Unavailable: As `write`. Nothing was taken in.
        """
        self._rocks.open(partition)
        get = self._rocks.reader(partition)
        newest: dict[bytes, tuple[Position, bytes]] = {}
        outdone = [record.key for record in records if not self._take_newer(newest, record, get)]
        rows = [(key, value) for key, (_, value) in newest.items()]
        self._rocks.write(partition, rows, offset=records[-1].offset, mark=outdone)
        if self._sums:
            self._unaudited.add(partition)

    def _take_newer(
        self, newest: dict[bytes, tuple[Position, bytes]], record: Any, get: Callable[[bytes], bytes | None]
    ) -> bool:
        """Take in a record, unless a newer value of its key is known: then false."""
        key, value = record.key, record.value
        try:
            position = position_of(value)
            if key is None:
                raise TypeError("a value without a key")
        except (msgspec.MsgspecError, TypeError):
            self.log.error(
                "%s: the record at partition %d, offset %d is not a row of this table; ignored",
                record.topic, record.partition, record.offset,
            )  # fmt: skip
            return True
        known = newest.get(key)
        if known is None and (stored := get(key)):
            known = (position_of(stored), stored)
        if known is not None and position < known[0]:
            return False
        newest[key] = (position, value)
        return True

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Called when Faust has read the changelogs of our partitions: audit them before they are used."""
        for partition in range(self.partitions or 0):  # those that others have now
            self._rocks.leave(partition)
        ours = {tp.partition for tp in active_tps if tp.topic == self.changelog_topic_name}
        self._check_partitions(ours)
        for partition in ours:
            if partition in self._unaudited:
                await self._repair(partition)
            await self._publish_marked(partition)
        await super().on_recovery_completed(active_tps, standby_tps)

    def _check_partitions(self, ours: set[int]) -> None:
        """Refuse to work when the table's rows and the records that they count are with different workers.

        Faust shares out topics with the same number of partitions together, and others apart.

        Raises:
            ImproperlyConfigured: The changelog has another number of partitions than `source`.
        """
        sources = {tp.partition for tp in self.app.owned if tp.topic == self.source}
        if not sources <= ours:
            why = (
                f"table {self.name}: its changelog {self.changelog_topic_name} must have as many partitions as "
                f"{self.source}. Set topic_partitions of the App to that number before the changelog is created"
            )
            self.log.critical(why)
            raise ImproperlyConfigured(why)

    async def _publish_marked(self, partition: int) -> None:
        """Publish the values of marked keys behind those that came too late, and take the marks away."""
        keys = self._rocks.marked(partition)
        get = self._rocks.reader(partition)
        for start in range(0, len(keys), _SLICE):
            some = keys[start : start + _SLICE]
            rows = [(key, value) for key in some if (value := get(key))]
            try:
                last = await self.app.publish(self.changelog_topic_name, partition, rows)
                self._rocks.write(partition, unmark=some)
            except (KafkaError, Unavailable) as error:  # the marks stay: the next recovery does it
                self.log.warning("Partition %d: %d values were not published again: %s", partition, len(keys), error)
                return
            self._acknowledged(partition, last, len(rows))

    # -- the audit

    async def audit(self, partition: int) -> Audit:
        """Add up a partition. Nothing may write to it meanwhile."""
        audit = Audit(self._sums, self._count)
        for number, (key, value) in enumerate(self._rocks.every(partition), 1):
            audit.add(key, value)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return audit

    async def _repair(self, partition: int) -> bool:
        """Read a partition that does not add up again from its changelog. Returns whether it adds up now."""
        for attempt in range(1 + _REBUILD_ATTEMPTS):
            audit = await self.audit(partition)
            if audit.agrees:
                if audit.conclusive:
                    self._unaudited.discard(partition)
                return True
            last = attempt == _REBUILD_ATTEMPTS
            self.log.error(
                "%s: partition %d does not add up: rows and sums (%s) are %s, the totals say %s. %s",
                self.name, partition, ", ".join(self._sums), [audit.rows, *audit.sums], audit.expected,
                "Its changelog is short of rows too; verify it against the records that it counts." if last else
                "Reading its changelog from the start.",
            )  # fmt: skip
            if not last and not await self._read_again(partition):
                return False
        self._unaudited.discard(partition)  # said once; the work goes on with the rows that are there
        return False

    async def _read_again(self, partition: int) -> bool:
        """Until it is read, or the partition is no longer ours: an empty table must never be taken for a whole one."""
        generation = self.app.consumer_generation_id
        while not self.app.should_stop and self.app.consumer_generation_id == generation:
            self.drop(partition)
            try:
                await self.app.read_partition(self.changelog_topic_name, partition, self.recover)
            except (KafkaError, Unavailable) as error:
                self.log.warning("The changelog of partition %d can't be read now, trying again: %s", partition, error)
                await asyncio.sleep(_READ_AGAIN_SECONDS)
            else:
                return True
        self.drop(partition)
        return False

    async def _audit_late(self, partition: int) -> None:
        """Audit a partition whose audit right after its recovery was not conclusive, once it is.

        Raises:
            BatchError: It did not add up, and was read again from its changelog: the batch must be repeated.
        """
        if partition not in self._unaudited:
            return
        audit = await self.audit(partition)
        if not audit.conclusive:
            return
        if not audit.agrees and await self._repair(partition):
            raise BatchError(f"{self.name}: partition {partition} was read again from its changelog")
        self._unaudited.discard(partition)

    def drop(self, partition: int) -> None:
        """Delete a partition's database. Its changelog in Kafka stays."""
        self._rocks.drop(partition)
