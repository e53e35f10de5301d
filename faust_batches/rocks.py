"""A table's rows on disk: one RocksDB database a partition."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from faust.stores import rocksdb
from rocksdict import WriteBatch

from .errors import Unavailable
from .outage import Outage
from .position import TOTALS_KEY

#: Key and value, as they stand in RocksDB and in the changelog.
Row = tuple[bytes, bytes]

#: Keys of our own begin with a byte that is in no UTF-8, so no record's key is among them.
_OWN = b"\xff"
#: Before a key whose last record in the changelog is not its latest value.
_OUTDONE = _OWN + b"outdone\0"


class RocksStore(rocksdb.Store):
    """Faust's RocksDB store, with rows of bytes, and keys of its own that no record's key can be.

    No method holds a database open: it may be dropped and made anew meanwhile.
    """

    #: Faust's own key would be a legal id.
    offset_key = _OWN + b"__faust\0offset__"

    def apply_changelog_batch(self, batch: Any, to_key: Any, to_value: Any) -> None:
        """Apply nothing: `Table.recover` has taken the records in before Faust's recovery saw the last of them."""

    def _open_for_partition(self, partition: int) -> Any:
        """Open a partition's database; drop a damaged one, so that the recovery reads its changelog from the start."""
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
        return (key for key in super()._visible_keys(db) if _is_row(key))

    def _visible_items(self, db: Any) -> Iterator[Row]:
        return (row for row in super()._visible_items(db) if _is_row(row[0]))

    # -- reading

    def reader(self, partition: int) -> Callable[[bytes], bytes | None]:
        """Give what reads the value of a key of this partition."""
        open_db = self._db_for_partition

        def get(key: bytes) -> bytes | None:
            value: bytes | None = open_db(partition).get(key)
            return value

        return get

    def scan(self, partition: int, after: bytes, limit: int) -> list[Row]:
        """At most `limit` rows whose keys come after this one, in the order of their keys."""
        rows: list[Row] = []
        for key, value in self._db_for_partition(partition).items(from_key=after):
            if len(rows) == limit:
                break
            if key not in (TOTALS_KEY, after) and is_text(key):
                rows.append((key, value))
        return rows

    def every(self, partition: int) -> Iterator[Row]:
        """All rows, the totals first."""
        return (row for row in self._db_for_partition(partition).items() if not row[0].startswith(_OWN))

    def marked(self, partition: int) -> list[bytes]:
        """The keys that were marked: their last record in the changelog is not their latest value."""
        keys = []
        for key in self._db_for_partition(partition).keys(from_key=_OUTDONE):
            if not key.startswith(_OUTDONE):
                break
            keys.append(key.removeprefix(_OUTDONE))
        return keys

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
        """Write all of it or nothing.

        Arguments:
            offset: How far the changelog is known.
            mark, unmark: Keys to be marked, or marked no more.

        Raises:
            Unavailable: RocksDB can't write now: the disk is full, for one. The log has said so.
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
            Unavailable: As `write`.
        """
        with self._disk_watched(partition):
            self._db_for_partition(partition)

    def drop(self, partition: int) -> None:
        """Delete a partition's database. Its changelog in Kafka stays."""
        self._dbs.pop(partition, None)
        self._key_index.clear()
        gc.collect()  # rocksdict closes the database, and gives up its lock, when the object goes
        shutil.rmtree(self.partition_path(partition), ignore_errors=True)

    def leave(self, partition: int) -> None:
        """Say nothing more of this partition's disk: another worker has it."""
        self.app.disk_outage.gave_up((self.table_name, partition))  # type: ignore[attr-defined]

    @contextmanager
    def _disk_watched(self, partition: int) -> Iterator[None]:
        outage: Outage = self.app.disk_outage  # type: ignore[attr-defined]
        try:
            yield
        except Exception as error:  # rocksdict has no class of its own
            unavailable = Unavailable(outage.service, error)
            outage.failed(unavailable, (self.table_name, partition))
            raise unavailable from error
        outage.succeeded((self.table_name, partition))


def _is_row(key: bytes) -> bool:
    return key != TOTALS_KEY and not key.startswith(_OWN)


def is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
