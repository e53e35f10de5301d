"""A table's rows on disk: one RocksDB database per partition."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from faust.stores import rocksdb
from faust.types import TP
from rocksdict import WriteBatch

from .errors import Unavailable
from .outage import Outage
from .position import TOTALS_KEY

#: Key and value, as stored in RocksDB and in the changelog.
Row = tuple[bytes, bytes]

#: The first byte of the store's own keys. No UTF-8 text has it, so no record's key is among them.
_OWN = b"\xff"
#: The prefix of marks: a marked key's last changelog record is not its latest value.
_OUTDONE = _OWN + b"outdone\0"


class RocksStore(rocksdb.Store):
    """Faust's RocksDB store, with rows as bytes and its own keys apart from record keys.

    No method keeps a reference to a database: `drop` may delete it, and it may be created again.
    """

    #: Faust's offset key could be a record's key.
    offset_key = _OWN + b"__faust\0offset__"

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Do nothing: `Table.recover` wrote the records before Faust's recovery got the last one of the run."""

    def _open_for_partition(self, partition: int) -> Any:
        """Open a partition's database. A damaged one is deleted, so that the recovery reads the whole changelog."""
        try:
            return super()._open_for_partition(partition)
        except Exception as error:
            if not _is_damage(error):
                raise
            self.log_damage(partition, error)
            shutil.rmtree(self.partition_path(partition))
            return super()._open_for_partition(partition)

    def log_damage(self, partition: int, error: Exception) -> None:
        self.log.error(
            "%s: partition %d is damaged on disk; its changelog is read from the start: %s",
            self.table_name, partition, error,
        )  # fmt: skip

    @contextmanager
    def _damage_noticed(self, partition: int) -> Iterator[None]:
        """Raises:
        Unavailable: The body met damage. The table reads the partition again from its changelog.
        """
        try:
            yield
        except Exception as error:
            if not _is_damage(error):
                raise
            raise self.table.damaged(partition, error) from error  # type: ignore[attr-defined]

    def persisted_offset(self, tp: TP) -> int | None:
        """The last changelog offset that is in the database; None if it is damaged."""
        with suppress(Unavailable), self._damage_noticed(tp.partition):
            offset: int | None = super().persisted_offset(tp)
            return offset
        return None

    def _visible_keys(self, db: Any) -> Iterator[bytes]:
        return (key for key in super()._visible_keys(db) if _is_row(key))

    def _visible_items(self, db: Any) -> Iterator[Row]:
        return (row for row in super()._visible_items(db) if _is_row(row[0]))

    # -- reading

    def reader(self, partition: int) -> Callable[[bytes], bytes | None]:
        """A function that returns the value of a key of this partition; None if there is none."""
        open_db = self._db_for_partition

        def get(key: bytes) -> bytes | None:
            try:
                value: bytes | None = open_db(partition).get(key)
            except Exception as error:
                with self._damage_noticed(partition):
                    raise error
            return value

        return get

    def scan(self, partition: int, after: bytes, limit: int) -> list[Row]:
        """At most `limit` rows whose keys are greater than `after`, by key; without totals and keys not UTF-8."""
        rows: list[Row] = []
        key = after
        for key, value in self._db_for_partition(partition).items(from_key=after):
            if len(rows) == limit:
                return rows
            if key not in (TOTALS_KEY, after) and is_text(key):
                rows.append((key, value))
        self._check_end(partition, key)
        return rows

    def rows(self, partition: int) -> Iterator[Row]:
        """All rows by key: the totals first. Those from a damaged one on are left out."""
        return (row for row in self._db_for_partition(partition).items() if not row[0].startswith(_OWN))

    def marked(self, partition: int) -> list[bytes]:
        """The marked keys: their last changelog record is not their latest value."""
        keys: list[bytes] = []
        key = _OUTDONE
        for key in self._db_for_partition(partition).keys(from_key=_OUTDONE):
            if not key.startswith(_OUTDONE):
                return keys
            keys.append(key.removeprefix(_OUTDONE))
        self._check_end(partition, key)
        return keys

    def _check_end(self, partition: int, last: bytes) -> None:
        """Check that there is no key after the `last` one. RocksDB's iterators end without an error at damage.

        Raises:
            Unavailable: There is damage.
        """
        iterator = self._db_for_partition(partition).iter()
        try:
            iterator.seek(last)
            if iterator.valid():
                iterator.next()
            with self._damage_noticed(partition):
                iterator.status()
        finally:
            del iterator  # an error keeps this frame, and with it the lock of the database

    # -- writing

    def write(
        self,
        partition: int,
        rows: Iterable[Row] = (),
        *,
        offset: int | None = None,
        mark: Iterable[bytes] = (),
        unmark: Iterable[bytes] = (),
    ) -> None:
        """Write everything given, all or nothing.

        Arguments:
            offset: The last changelog offset that is in the database.
            mark, unmark: Keys to mark, and keys whose marks to remove.

        Raises:
            Unavailable: RocksDB can't write now, because the disk is full, for example. It is logged as an outage.
                Or there is damage, which RocksDB noticed when it merged files.
        """
        batch = WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
        for key in mark:
            batch.put(_OUTDONE + key, b"")
        for key in unmark:
            batch.delete(_OUTDONE + key)
        if offset is not None:
            batch.put(self.offset_key, str(offset).encode())
        with self._disk_watched(partition):
            self._db_for_partition(partition).write(batch)

    def open(self, partition: int) -> None:
        """Open the partition's database.

        Raises:
            Unavailable: RocksDB can't open it now. It is logged as an outage.
        """
        with self._disk_watched(partition):
            self._db_for_partition(partition)

    def drop(self, partition: int) -> None:
        """Delete a partition's database. Its changelog in Kafka stays."""
        self._dbs.pop(partition, None)
        self._key_index.clear()
        gc.collect()  # rocksdict closes the database, and releases its lock, when the object is collected
        shutil.rmtree(self.partition_path(partition), ignore_errors=True)

    def clear_failure(self, partition: int) -> None:
        """Forget this partition's failed writes: another worker may own it now and retry them."""
        self.app.disk_outage.gave_up((self.table_name, partition))  # type: ignore[attr-defined]

    @contextmanager
    def _disk_watched(self, partition: int) -> Iterator[None]:
        outage: Outage = self.app.disk_outage  # type: ignore[attr-defined]
        try:
            with self._damage_noticed(partition):
                yield
        except Unavailable:
            raise
        except Exception as error:
            unavailable = Unavailable(outage.service, error)
            outage.failed(unavailable, (self.table_name, partition))
            raise unavailable from error
        outage.succeeded((self.table_name, partition))


def _is_damage(error: Exception) -> bool:
    return str(error).startswith("Corruption:")  # rocksdict raises no class of its own


def _is_row(key: bytes) -> bool:
    return key != TOTALS_KEY and not key.startswith(_OWN)


def is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
