"""A table written a batch at a time, its changelog read a run at a time, and checked after every recovery.

Beside the batch transport (`batching`, `consuming`, `producing`) the only module that touches Faust's internals.
`table[key] = value` costs 60 us a key in Faust and piles up memory; one RocksDB write and a few Kafka batches for all
keys of a batch cost 2 us a key.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import faust
import msgspec
from aiokafka.errors import KafkaError
from faust.stores import rocksdb
from faust.types import TP
from rocksdict import WriteBatch

from shopflow.errors import ShopflowError, Unavailable
from shopflow.models import PartitionTotals, PurchaseCount
from shopflow.shop.counts import TOTALS_KEY, Position, decode_count, decode_totals, position_of

from .outage import Outage

__all__ = ["Audit", "CountStore", "CountTable"]

#: Reads a changelog partition from its start to its end: given topic, partition, and what takes each run of records.
ReadWhole = Callable[[str, int, Callable[[int, list[Any]], None]], Awaitable[None]]

#: Rows looked at before other coroutines get a turn.
_SLICE = 2_000
#: Keys of our own begin with a byte that is in no UTF-8, so in no customer's id.
_OURS = b"\xff"
#: Before a key whose last record in the changelog is not its latest value.
_OUTDONE = _OURS + b"outdone\0"
_REBUILD_ATTEMPTS = 2
_READ_AGAIN_SECONDS = 1.0


class Audit:
    """The sums over a partition's customers, held against the sums that stand beside them. Pure.

    Rows are added in the order of their keys: the sums come first, and say which era's customers count.
    """

    def __init__(self) -> None:
        self.customers = self.purchases = self.items = self.spent = 0
        self.furthest = -1
        self.totals = PartitionTotals()

    def add(self, key: bytes, value: bytes) -> None:
        """Take in one row."""
        if key == TOTALS_KEY:
            self.totals = decode_totals(value)
            return
        count: PurchaseCount = decode_count(value)
        if count.era < self.totals.era:
            return
        self.customers += 1
        self.purchases += count.purchases
        self.items += count.items
        self.spent += count.spent
        self.furthest = max(self.furthest, count.offset)

    @property
    def behind(self) -> bool:
        """Are there sums of customers who are not there yet? So it is after a crash, until the batch is whole again."""
        return self.totals.settled < self.totals.offset

    @property
    def ahead(self) -> bool:
        """Were customers written whose sums were not? So it is after a crash, until the batch comes again."""
        return self.furthest > self.totals.offset

    @property
    def sure(self) -> bool:
        """Can it be said whether they agree?"""
        return not self.behind and not self.ahead

    @property
    def agrees(self) -> bool:
        """Is nothing missing, as far as it can be said? While customers are ahead: there are not too few."""
        if self.behind:
            return True
        customers = (self.customers, self.purchases, self.items, self.spent)
        sums = (self.totals.customers, self.totals.purchases, self.totals.items, self.totals.spent)
        return all(a >= b for a, b in zip(customers, sums, strict=True)) if self.ahead else customers == sums


class CountStore(rocksdb.Store):
    """Faust's RocksDB store, with keys of its own that no customer's id can be."""

    #: Faust's own key would be a legal id.
    offset_key = _OURS + b"__faust\0offset__"

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Nothing: `CountTable.recover` has taken the records in before Faust's recovery saw the last of them."""

    def _open_for_partition(self, partition: int) -> Any:
        """Open a partition's database; one that is damaged is dropped: what opens it next is the recovery.

        It then finds no offset there, and reads the changelog from the start.
        """
        try:
            return super()._open_for_partition(partition)
        except Exception as error:  # rocksdict has no class of its own
            if not str(error).startswith("Corruption:"):
                raise
            self.log.error(
                "%s: partition %d is damaged on disk, its changelog is read from the start: %s",
                self.table_name, partition, error,
            )  # fmt: skip
            shutil.rmtree(self.partition_path(partition))
            return super()._open_for_partition(partition)

    def _visible_keys(self, db: Any) -> Iterator[bytes]:
        return (key for key in super()._visible_keys(db) if key != TOTALS_KEY and not key.startswith(_OURS))

    def _visible_items(self, db: Any) -> Iterator[tuple[bytes, bytes]]:
        return (row for row in super()._visible_items(db) if row[0] != TOTALS_KEY and not row[0].startswith(_OURS))


class CountTable(faust.Table[str, Any]):
    """A table of `PurchaseCount` by customer id, with the sums of each partition beside its customers.

    Arguments:
        value_type: Of another kind of value, which has the fields of `counting.Position` too; None: JSON.
        sums: False: there are none, so nothing is checked.
        disk: Who says that RocksDB can't write: once for all tables that share it.
    """

    def __init__(
        self,
        *args: Any,
        read_whole: ReadWhole,
        disk: Outage,
        value_type: Any = PurchaseCount,
        sums: bool = True,
        **kwargs: Any,
    ) -> None:
        schema: Any = faust.Schema(key_type=str, value_type=value_type, key_serializer="raw", value_serializer="json")
        super().__init__(*args, key_type=str, value_type=value_type, schema=schema, **kwargs)
        self._sums = sums
        self.key_serializer = "raw"
        self._unaudited: set[int] = set()
        self._disk = disk
        self._read_whole = read_whole

    @property
    def _raw(self) -> Any:
        """The `CountStore`, under a type that has its methods."""
        return self.data

    def _new_store_by_url(self, url: Any) -> CountStore:
        return CountStore(
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

    def partitions_owned(self) -> list[int]:
        """The partitions whose counts this worker keeps now."""
        topic = self.changelog_topic_name
        return sorted(tp.partition for tp in self.app.assignor.assigned_actives() if tp.topic == topic)

    def getter(self, partition: int) -> Callable[[bytes], bytes | None]:
        """Reads raw values of one partition. Holds no database open: it may be dropped and made anew meanwhile."""
        open_db = self._raw._db_for_partition

        def get(key: bytes) -> bytes | None:
            value: bytes | None = open_db(partition).get(key)
            return value

        return get

    def customers_after(self, partition: int, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` raw rows of the customers of a partition behind this key, in the order of their keys.

        Reads them at once and holds no database open, like `getter`; a key that is not UTF-8 is no customer's.
        """
        rows: list[tuple[bytes, bytes]] = []
        for key, value in self._raw._db_for_partition(partition).items(from_key=after):
            if len(rows) == limit:
                break
            if key not in (TOTALS_KEY, after) and _is_text(key):
                rows.append((key, value))
        return rows

    # -- writing, by the agent whose turn it is

    def write(self, partition: int, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Put rows into RocksDB, all or nothing. Nothing may be awaited since what they come from was read.

        Raises:
            Unavailable: RocksDB can't write now: the disk is full, for one. It has been said in the log.
        """
        batch = WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
        self._write(partition, batch)

    def _write(self, partition: int, batch: WriteBatch) -> None:
        try:
            self._raw._db_for_partition(partition).write(batch)
        except Exception as error:  # rocksdict has no class of its own
            unavailable = Unavailable("RocksDB", error)
            self._disk.failed(unavailable, (self.name, partition))
            raise unavailable from error
        self._disk.succeeded((self.name, partition))

    def acknowledged(self, partition: int, last: int, rows: int) -> None:
        """That many rows, which are in RocksDB, are in the changelog, the last of them at this offset.

        The next recovery starts after them if nothing stands between them and what was taken in before. If something
        does, another worker wrote it, while this one slept or since: then the recovery must read it.

        Raises:
            Unavailable: As `write`.
        """
        place = TP(self.changelog_topic_name, partition)
        known = self._raw.persisted_offset(place)
        if last - rows == (-1 if known is None else known):
            batch = WriteBatch(raw_mode=True)
            batch.put(self._raw.offset_key, str(last).encode())
            self._write(partition, batch)

    # -- recovery

    def recover(self, partition: int, records: list[Any]) -> None:
        """Take in a run of the changelog, all or nothing.

        Of two values of a key the one with the larger position stays, also when it comes first: a worker that lost the
        partition may have had records under way that arrive after its successor's. Compaction would keep the last one,
        so the larger is marked, and published again before the partition is used.

        Raises:
            Unavailable: As `write`. Nothing was taken in.
        """
        try:
            db = self._raw._db_for_partition(partition)
        except Exception as error:  # as in `_write`
            self._disk.failed(Unavailable("RocksDB", error), (self.name, partition))
            raise Unavailable("RocksDB", error) from error
        newest: dict[bytes, tuple[Position, bytes]] = {}
        batch = WriteBatch(raw_mode=True)
        for record in records:
            if not self._take_newer(newest, record, db.get):
                batch.put(_OUTDONE + record.key, b"")
        for key, (_, value) in newest.items():
            batch.put(key, value)
        batch.put(self._raw.offset_key, str(records[-1].offset).encode())
        self._write(partition, batch)
        if self._sums:
            self._unaudited.add(partition)

    def _take_newer(
        self, newest: dict[bytes, tuple[Position, bytes]], record: Any, get: Callable[[bytes], bytes | None]
    ) -> bool:
        """Take in a record, unless what is known of its key is newer: then false."""
        key, value = record.key, record.value
        try:
            position = position_of(value)
            if key is None:
                raise TypeError("a count without its customer")
        except (msgspec.MsgspecError, TypeError):
            self.log.error(
                "%s: the record at partition %d, offset %d is not a count; ignored",
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
        """Called when Faust has read the changelogs of the partitions that are ours: check them before their use."""
        for partition in range(self.partitions or 0):  # those that others have now
            self._disk.gave_up((self.name, partition))
        for tp in active_tps:
            if tp.topic != self.changelog_topic_name:
                continue
            if tp.partition in self._unaudited:
                await self._check(tp.partition)
            await self._publish_again(tp.partition)
        await super().on_recovery_completed(active_tps, standby_tps)

    async def _publish_again(self, partition: int) -> None:
        """Bring the latest values of marked keys behind those that came too late, and take the marks away."""
        keys = self._marked(partition)
        get = self.getter(partition)
        for start in range(0, len(keys), _SLICE):
            some = keys[start : start + _SLICE]
            rows = [(key, value) for key in some if (value := get(key))]
            try:
                last = await self.app.publish(self.changelog_topic_name, partition, rows)  # type: ignore[attr-defined]
                self._unmark(partition, some)
            except (KafkaError, Unavailable) as error:  # the marks stay: the next recovery does it
                self.log.warning("Partition %d: %d counts were not published again: %s", partition, len(keys), error)
                return
            self.acknowledged(partition, last, len(rows))

    def _unmark(self, partition: int, keys: Iterable[bytes]) -> None:
        batch = WriteBatch(raw_mode=True)
        for key in keys:
            batch.delete(_OUTDONE + key)
        self._write(partition, batch)

    def _marked(self, partition: int) -> list[bytes]:
        keys = []
        for key in self._raw._db_for_partition(partition).keys(from_key=_OUTDONE):
            if not key.startswith(_OUTDONE):
                break
            keys.append(key.removeprefix(_OUTDONE))
        return keys

    async def _check(self, partition: int) -> bool:
        """Read a partition that does not add up again from its changelog. Returns whether it adds up now."""
        for attempt in range(1 + _REBUILD_ATTEMPTS):
            audit = await self.audit(partition)
            if audit.agrees:
                if audit.sure:
                    self._unaudited.discard(partition)
                return True
            last = attempt == _REBUILD_ATTEMPTS
            self.log.error(
                "%s: partition %d does not add up: %d purchases in %d rows, the sums say %d in %d. %s",
                self.name, partition, audit.purchases, audit.customers, audit.totals.purchases, audit.totals.customers,
                "Its changelog does not hold them either; `faust -A shopflow verify` names the customers." if last else
                "Reading its changelog from the start.",
            )  # fmt: skip
            if not last and not await self._read_again(partition):
                return False
        self._unaudited.discard(partition)  # said once; the work goes on with what there is
        return False

    async def _read_again(self, partition: int) -> bool:
        """Until it is read, or the partition is no longer ours: an empty table must never be taken for a whole one."""
        generation = self.app.consumer_generation_id
        while not self.app.should_stop and self.app.consumer_generation_id == generation:
            self.forget(partition)
            try:
                await self._read_whole(self.changelog_topic_name, partition, self.recover)
            except (KafkaError, Unavailable) as error:
                self.log.warning("The changelog of partition %d can't be read now, trying again: %s", partition, error)
                await asyncio.sleep(_READ_AGAIN_SECONDS)
            else:
                return True
        self.forget(partition)
        return False

    async def audit(self, partition: int) -> Audit:
        """Add up a partition. Nothing may write to it meanwhile."""
        audit = Audit()
        for number, (key, value) in enumerate(self._raw._db_for_partition(partition).items(), 1):
            if not key.startswith(_OURS):
                audit.add(key, value)
            if number % _SLICE == 0:
                await asyncio.sleep(0)
        return audit

    async def check_late(self, partition: int) -> None:
        """Check a partition that could not be checked right after its recovery, once the sums have caught up.

        Raises:
            ShopflowError: It does not add up. The partition's database was dropped, and must be recovered again.
        """
        if partition not in self._unaudited:
            return
        audit = await self.audit(partition)
        if not audit.sure:
            return
        if not audit.agrees and await self._check(partition):
            raise ShopflowError(f"counts of partition {partition} were read again from their changelog")
        self._unaudited.discard(partition)

    def forget(self, partition: int) -> None:
        """Drop a partition's database; its changelog in Kafka stays."""
        self._raw._dbs.pop(partition, None)
        self._raw._key_index.clear()
        gc.collect()  # rocksdict closes the database, and gives up its lock, when the object goes
        shutil.rmtree(self._raw.partition_path(partition), ignore_errors=True)


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
