"""The exactly-once table: written a batch at a time, recovered a changelog run at a time, audited after each recovery.

In Faust, `table[key] = value` costs 60 us a key and keeps a future for each record. Here one RocksDB write and a few
Kafka batches hold all keys of a batch, for 2 us a key. Faust's views, standby replicas and `/table/` pages still work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import faust
import msgspec
from aiokafka.errors import KafkaError
from faust.types import TP

from .audit import Audit
from .errors import BatchError, ChangelogUnusable, Unavailable
from .position import TOTALS_KEY, Position, position_of, settled_in
from .rocks import RocksStore, Row
from .unreadable import Unreadable, UnreadableRecord

if TYPE_CHECKING:
    from .app import App
    from .batch import Batch

V = TypeVar("V")

#: The kind of the trouble of a changelog with a record that can't be read.
KIND = "unreadable-changelog"
#: The kind of the advice about a changelog that was deleted.
LOST = "changelog-lost"

#: Rows processed before other coroutines may run.
_SLICE = 2_000
_REBUILD_ATTEMPTS = 2
_READ_AGAIN_SECONDS = 1.0
_ROCKSDB_OPTIONS = {"write_buffer_size": 8 << 20, "block_cache_size": 32 << 20, "max_write_buffer_number": 2}


class Table(faust.Table[str, Any]):
    """A table whose values count each record once. `App.exactly_once_table` makes it.

    A value is a JSON object with `era` and `offset`: the offset of the last record applied to it. A record at or below
    that offset is a redelivery. Of two values of a key the one with the larger position is the later, in any order of
    arrival.

    Arguments:
        value: The type of the values, for Faust's views: a `faust.Record`. None: plain JSON.
        source: The batched topic whose records the table counts. It must have as many partitions as the table. If a
            partition's totals end before its committed offset, it is read from the totals' end: totals that were reset
            to a later era count everything again.
        sums: Fields whose sums over a partition's rows are kept in its totals (`TOTALS_KEY`), and audited after each
            recovery. Empty: nothing is audited.
        count: The field of the totals that holds the number of rows.
        options: RocksDB's. RocksDB's own defaults take gigabytes for a few partitions.
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
        self._lacking: set[int] = set()  # a record of their changelog could not be read
        self._mending: dict[int, asyncio.Task[None]] = {}

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
        """The partitions of this table that are assigned to this worker as active, not as standby."""
        topic = self.changelog_topic_name
        return sorted(tp.partition for tp in self.app.assignor.assigned_actives() if tp.topic == topic)

    def reader(self, partition: int) -> Callable[[bytes], bytes | None]:
        """A function that returns the value of a key of this partition, as bytes; None if there is none.

        The function raises `Unavailable` while the partition is damaged on disk.
        """
        get = self._rocks.reader(partition)

        def usable(key: bytes) -> bytes | None:
            self._check_usable(partition)
            return get(key)

        return usable

    def scan(self, partition: int, after: bytes, limit: int) -> list[Row]:
        """At most `limit` rows of a partition whose keys are greater than `after`, by key.

        The totals and keys that are not UTF-8 are left out.

        Raises:
            Unavailable: The partition is damaged on disk.
        """
        self._check_usable(partition)
        return self._rocks.scan(partition, after, limit)

    def next_offset(self, partition: int) -> int | None:
        """The offset in `source` after the last batch that the partition's totals count; None without totals.

        Raises:
            Unavailable: RocksDB can't open the database now.
        """
        self._rocks.open(partition)
        totals = self._rocks.reader(partition)(TOTALS_KEY)
        settled = None if totals is None else settled_in(totals)
        return None if settled is None else settled + 1

    # -- writing

    async def write(self, batch: Batch, rows: Sequence[Row]) -> None:
        """Write rows to RocksDB and the changelog. It returns when Kafka has acknowledged the changelog records.

        Call it in the batch's turn, with no await between reading the old values and this call. Also write rows that
        did not change: after a crash RocksDB may be ahead of the changelog, which catches up this way.

        Raises:
            PartitionLost: The batch is no longer ours.
            Unavailable: RocksDB can't write now, because the disk is full, for example. It is logged as an outage.
        """
        partition = batch.tp.partition
        self._check_usable(partition)
        self._rocks.write(partition, rows)
        if rows:
            topic = self.changelog_topic_name
            last = await batch.with_kafka(lambda: self.app.publish(topic, partition, rows))
            batch.check_owned()  # the database may belong to another worker by now
            self._acknowledged(partition, last, len(rows))
        await self._audit_late(partition)

    def _acknowledged(self, partition: int, last: int, rows: int) -> None:
        """Record that the changelog has these rows, the last at offset `last`: the next recovery starts after them.

        It is not recorded if other records are between these rows and the persisted offset. Another worker wrote them,
        so the next recovery must read them.
        """
        persisted = self._rocks.persisted_offset(TP(self.changelog_topic_name, partition))
        if last - rows == (-1 if persisted is None else persisted):
            self._rocks.write(partition, offset=last)

    # -- recovery

    def recover(self, partition: int, records: list[Any]) -> None:
        """Write a run of changelog records to RocksDB, all or none. What can't be read becomes a trouble.

        Of two values of a key the one with the larger position stays, also if it comes first: records of a worker that
        lost the partition may arrive after its successor's. Compaction would keep the last record. So the key is
        marked, and its larger value is published again before the partition is used.

        Raises:
            Unavailable: RocksDB can't write now. Nothing was written.
        """
        try:
            self._recover(partition, records, records[-1].offset)
        except Unreadable:
            self._recover(partition, self._readable(partition, records), records[-1].offset)
        if partition in self._lacking:
            bad = [number for number, record in enumerate(records) if isinstance(record, UnreadableRecord)]
            if any(map(_begins_era, records[bad[-1] + 1 if bad else 0 :])):
                self._lacking.discard(partition)
                self.app.troubles.end(KIND, f"{self.changelog_topic_name}[{partition}]")

    def _readable(self, partition: int, records: list[Any]) -> list[Any]:
        """The records of a run that can be read, and the trouble that the others make."""
        found = []
        for record in records:
            if not isinstance(record, UnreadableRecord):
                found.append(record)
            elif record.whole:
                found.append(record.rest)
            else:
                subject = f"{self.changelog_topic_name}[{partition}]"
                text = (
                    f"{subject}: {record.offsets} can't be read ({record.reason}), so table {self.name} may lack rows"
                )
                self.app.troubles.begin(KIND, subject, text + self.app.advice.get(KIND, ""), stops=False)
                self._lacking.add(partition)
        return found

    def _recover(self, partition: int, records: list[Any], last: int) -> None:
        self._rocks.open(partition)
        get = self._rocks.reader(partition)
        newest: dict[bytes, tuple[Position, bytes]] = {}
        outdated = [record.key for record in records if not self._keep_newer(newest, record, get)]
        rows = [(key, value) for key, (_, value) in newest.items()]
        # While another read of the changelog is under way, the database may lack rows before these.
        self._rocks.write(partition, rows, offset=None if partition in self._mending else last, mark=outdated)
        if self._sums:
            self._unaudited.add(partition)

    def _keep_newer(
        self, newest: dict[bytes, tuple[Position, bytes]], record: Any, get: Callable[[bytes], bytes | None]
    ) -> bool:
        """Put a record's value into `newest`. False if its key has a newer value already."""
        key, value = record.key, record.value
        try:
            position = position_of(value)
            if key is None:
                raise TypeError("a value without a key")
        except (msgspec.MsgspecError, TypeError):
            self.log.error(
                "%s: the record at partition %d, offset %d is not a row of this table; it is ignored",
                record.topic, record.partition, record.offset,
            )  # fmt: skip
            return True
        latest = newest.get(key)
        if latest is None and (stored := get(key)):
            latest = (position_of(stored), stored)
        if latest is not None and position < latest[0]:
            return False
        newest[key] = (position, value)
        return True

    async def outlived_changelog(self, partition: int, offset: int, end: int) -> None:
        """Drop a partition whose changelog is another one, if that has totals of a later era; else refuse to go on.

        Arguments:
            offset: The last changelog offset in the partition's database.
            end: The last offset of the changelog.

        Raises:
            ChangelogUnusable: The changelog was deleted, or lost its end. Nothing was changed.
        """
        topic, eras = self.changelog_topic_name, [-1]

        def take(_: int, records: list[Any]) -> None:
            eras.extend(position_of(record.value).era for record in records if record.key == TOTALS_KEY)

        await self.app.read_partition(topic, partition, take)
        totals = self._rocks.reader(partition)(TOTALS_KEY)
        if self._sums and (totals is None or position_of(totals).era >= max(eras)):
            raise self._fatal(
                f"the changelog {topic}[{partition}] ends at offset {end}, but this worker has read it up to {offset}: "
                f"it was deleted or lost its end. Restore it, or count everything again{self.app.advice.get(LOST, '')}"
            )
        self.log.warning("%s: partition %d began anew; the worker's copy is dropped", self.name, partition)
        self.drop(partition)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Audit our partitions before they are used. Faust calls this when it has read their changelogs."""
        for partition in range(self.partitions or 0):  # also those that went to other workers
            self._rocks.clear_failure(partition)
        ours = {tp.partition for tp in active_tps if tp.topic == self.changelog_topic_name}
        await self._check_partitions(ours)
        for partition in ours:
            with suppress(Unavailable):
                self.next_offset(partition)  # the consumer's seek comes next: damage must be noticed before
            if partition in self._mending:
                await asyncio.wait([self._mending[partition]])
            if partition in self._unaudited:
                await self._repair(partition)
            await self._publish_marked(partition)
        await super().on_recovery_completed(active_tps, standby_tps)

    async def _check_partitions(self, ours: set[int]) -> None:
        """End the worker unless each assigned partition of `source` comes with its partition of the table.

        Faust assigns topics together only if they have the same number of partitions. It drops what is raised here.
        """
        if {tp.partition for tp in self.app.owned if tp.topic == self.source} <= ours:
            return
        name, count = self.changelog_topic_name, self.app.consumer.topic_partitions
        why = "Kafka showed it too late. Start the worker again"
        if count(name) != count(str(self.source)):
            why = (
                "was deleted, or created with another number. Set topic_partitions of the App to that number before it "
                f"is created, and count everything again{self.app.advice.get(LOST, '')}"
            )
        await self.app.crash(self._fatal(f"changelog {name} must have as many partitions as {self.source}, but {why}"))

    def _fatal(self, why: str) -> ChangelogUnusable:
        text = f"table {self.name}: {why}"
        self.log.critical(text)
        return ChangelogUnusable(text)

    async def _publish_marked(self, partition: int) -> None:
        """Publish the values of marked keys again, after the outdated ones, and remove the marks."""
        keys: list[bytes] = []
        get = self._rocks.reader(partition)
        try:
            keys = self._rocks.marked(partition)
            for start in range(0, len(keys), _SLICE):
                some = keys[start : start + _SLICE]
                rows = [(key, value) for key in some if (value := get(key))]
                last = await self.app.publish(self.changelog_topic_name, partition, rows)
                self._rocks.write(partition, unmark=some)
                self._acknowledged(partition, last, len(rows))
        except (KafkaError, Unavailable) as error:  # the marks stay: the next recovery tries again
            self.log.warning("Partition %d: up to %d values were not published again: %s", partition, len(keys), error)

    # -- damage

    def damaged(self, partition: int, error: Exception) -> Unavailable:
        """Read a damaged partition again from its changelog. Until that is done, it can't be used.

        Its store calls this when RocksDB notices damage while it reads or merges files. Damage that it notices when it
        opens the database needs no more than Faust's recovery.
        """
        if partition not in self._mending:
            self._rocks.log_damage(partition, error)
            self._mending[partition] = asyncio.create_task(self._mend(partition))
        return self._damaged(partition)

    def _check_usable(self, partition: int) -> None:
        if partition in self._mending:
            raise self._damaged(partition)

    def _damaged(self, partition: int) -> Unavailable:
        return Unavailable("RocksDB", f"{self.name}: partition {partition} is damaged; its changelog is read again")

    async def _mend(self, partition: int) -> None:
        """Read a partition's whole changelog, while no batch is in its turn. A recovery may run beside."""
        async with self.app.table_lock(TP(self.source or "", partition)):
            while not await self._read_whole(partition):
                await asyncio.sleep(_READ_AGAIN_SECONDS)
        del self._mending[partition]

    async def _read_whole(self, partition: int) -> bool:
        """Drop a partition and read its changelog from the start. False if that is not possible now."""
        last: int | None = None

        def take(_: int, records: list[Any]) -> None:
            nonlocal last
            self.recover(partition, records)
            last = records[-1].offset

        self.drop(partition)
        try:
            await self.app.read_partition(self.changelog_topic_name, partition, take)
            if partition in self._mending:  # else `recover` wrote it
                self._rocks.write(partition, offset=last)
        except (KafkaError, Unavailable) as error:
            self.log.warning("The changelog of partition %d can't be read now; trying again: %s", partition, error)
            return False
        return True

    # -- the audit

    async def audit(self, partition: int) -> Audit:
        """Add up a partition's rows. The caller makes sure that nothing writes to the partition meanwhile."""
        audit = Audit(self._sums, self._count)
        for number, (key, value) in enumerate(self._rocks.rows(partition), 1):
            audit.add(key, value)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return audit

    async def _repair(self, partition: int) -> bool:
        """Audit a partition, and read its changelog again while the sums differ. Returns whether they agree now."""
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
                "Its changelog lacks rows too; verify the table against the records that it counts." if last else
                "Reading its changelog from the start.",
            )  # fmt: skip
            if not last and not await self._read_again(partition):
                return False
        self._unaudited.discard(partition)  # logged once; the worker goes on with the rows that it has
        return False

    async def _read_again(self, partition: int) -> bool:
        """Read a partition's whole changelog, with retries. False if the partition is no longer ours."""
        generation = self.app.consumer_generation_id
        while not self.app.should_stop and self.app.consumer_generation_id == generation:
            if await self._read_whole(partition):
                return True
            await asyncio.sleep(_READ_AGAIN_SECONDS)
        return False  # the next recovery goes on behind the rows that were read

    async def _audit_late(self, partition: int) -> None:
        """Repeat, after a write, an audit that was not conclusive after the recovery.

        Raises:
            BatchError: The partition did not add up, and was read again from its changelog: repeat the batch.
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
        """Delete a partition's RocksDB database. Its changelog in Kafka stays."""
        self._rocks.drop(partition)


def _begins_era(record: Any) -> bool:
    """True for totals that were reset: all rows before them no longer count."""
    if record.key != TOTALS_KEY:
        return False
    try:
        return settled_in(record.value) == -1
    except msgspec.MsgspecError:
        return False
