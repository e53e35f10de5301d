"""A table on a real RocksDB: what is recovered, kept, audited and read again."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from faust_batches import TOTALS_KEY, App, BatchError, Table, Unavailable
from faust_batches.audit import Audit
from faust_batches.errors import ChangelogUnusable
from faust_batches.testing import FakeBatch, FakeRecord

from .tally import SUMS, Counted, Tally, counted, decoded

TOPIC = "test-tally-changelog"
CHANGELOG = TP(TOPIC, 0)


def rows_after(*seen: Counted, end: int, get: Callable[[bytes], bytes | None] = lambda key: None) -> dict[bytes, bytes]:
    """The rows that a batch of these records makes."""
    return dict(counted(get, seen, end=end))


def records(rows: dict[bytes, bytes], start: int = 0) -> list[FakeRecord]:
    """The changelog records of these rows."""
    return [FakeRecord(key, value, start + n, 0, TOPIC) for n, (key, value) in enumerate(rows.items())]


class Bench:
    """A table of a Faust application that is never started."""

    def __init__(self, folder: Path) -> None:
        self.whole: list[FakeRecord] = []  # the whole changelog
        self.rows: dict[bytes, bytes] = {}
        self.reads = 0
        self.published: list[tuple[bytes, bytes]] = []
        self.app = App("test", broker="kafka://127.0.0.1:1", store="rocksdb://?driver=rocksdict", datadir=str(folder))
        self.app.publish = self.publish  # type: ignore[method-assign]
        self.app.read_partition = self.read_whole  # type: ignore[method-assign]
        self.app.assignor.assigned_actives = lambda: {CHANGELOG}
        self.lock = asyncio.Lock()
        self.app.table_lock = lambda tp: self.lock  # type: ignore[method-assign]
        self.table = self.another("tally", value=Tally, sums=SUMS)

    def another(self, name: str, **kwargs: Any) -> Table:
        """A table on the same disk."""
        options = {"write_buffer_size": 1 << 20, "block_cache_size": 1 << 20, "max_write_buffer_number": 2}
        return Table(self.app, name, options=options, **kwargs)

    async def publish(self, topic: str, partition: int, rows: Any) -> int:
        self.published += rows
        return 0

    async def read_whole(self, topic: str, partition: int, take: Callable[[int, list[Any]], None]) -> None:
        self.reads += 1
        if self.whole:
            take(partition, self.whole)

    def recovered(self) -> None:
        """Call the table as Faust does after it has read the changelog."""
        asyncio.run(self.table.on_recovery_completed({CHANGELOG}, set()))

    def count(self, key: str) -> tuple[int, int] | None:
        """How often the key was seen, and the offset of the last time."""
        row = decoded(self.table.reader(0)(key.encode()))
        return (row["seen"], row["offset"]) if row else None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A table with an empty database."""
    return Bench(tmp_path)


def test_a_written_row_can_be_read(bench: Bench) -> None:
    """The agent and Faust's own view of the table see the row. The totals are no row of the view."""
    bench.table._rocks.write(0, rows_after((0, "anna", 600), end=1).items())
    assert bench.count("anna") == (1, 0)
    assert bench.table["anna"].amount == 600
    assert list(bench.table.keys()) == ["anna"]
    assert [key for key, _ in bench.table.items()] == ["anna"]
    assert bench.table.owned_partitions() == [0]
    with pytest.raises(KeyError):
        bench.table["bob"]


def test_rows_come_by_key_a_part_at_a_time(bench: Bench) -> None:
    """A scan leaves out the totals, Faust's own key, and keys that are no UTF-8."""
    names = ["a", "a b", "b/c", "zażółć", "日本", "\U0001f95b"]
    rows = rows_after(*((offset, name, 1) for offset, name in enumerate(names)), end=9)
    bench.table._rocks.write(0, [*rows.items(), (b"\xff\xfe", rows[b"a"])])
    bench.table._acknowledged(0, 77, 78)

    def keys(after: str, limit: int) -> list[str]:
        return [key.decode() for key, _ in bench.table.scan(0, after.encode(), limit)]

    assert keys("", 99) == names
    assert bench.table.scan(0, b"", 1) == [(b"a", rows[b"a"])]
    assert keys("a", 2) == ["a b", "b/c"]
    assert keys("b", 1) == ["b/c"]
    assert keys("\U0001f95b", 5) == []


def test_a_table_whose_changelog_was_deleted_is_kept_until_counting_began_anew(bench: Bench) -> None:
    """Its counts may be the only ones that are left. A later era in the changelog says that they no longer are."""
    rows = rows_after((0, "anna", 600), end=1)
    bench.table._rocks.write(0, rows.items(), offset=50)
    for changelog in ([], records(rows_after((0, "bob", 1), end=1))):
        bench.whole = changelog
        with pytest.raises(ChangelogUnusable, match=r"ends at offset -1, but this worker has read it up to 50"):
            asyncio.run(bench.table.outlived_changelog(0, 50, -1))
        assert bench.count("anna") == (1, 0)
    bench.whole = [FakeRecord(TOTALS_KEY, b'{"era": 7, "offset": -1}', 0, 0, TOPIC)]
    asyncio.run(bench.table.outlived_changelog(0, 50, 0))
    assert bench.count("anna") is None


class Full:
    """A database on a disk that is full."""

    def get(self, key: bytes) -> None:
        return

    def write(self, batch: Any) -> None:
        raise OSError("No space left on device")


def test_a_full_disk_is_logged_once_and_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All tables share the trouble of a full disk, in normal work and in a recovery. Writes are tried again."""
    rows = rows_after((0, "anna", 1), end=1)
    other = bench.another("other", value=None)
    with monkeypatch.context() as patch:
        for table in (bench.table, other):
            patch.setattr(table._rocks, "_db_for_partition", lambda partition: Full())
        for _ in range(3):
            with pytest.raises(Unavailable, match="No space left"):
                bench.table._rocks.write(0, rows.items())
            with pytest.raises(Unavailable, match="No space left"):
                other.recover(0, records(rows))
    bench.table._rocks.write(0, rows.items())
    assert len(caplog.records) == 1, "the other table still can't write"
    other.recover(0, records(rows))
    assert [record.getMessage().partition(";")[0][:19] for record in caplog.records] == [
        "RocksDB can't write", "RocksDB writes agai",
    ]  # fmt: skip


def test_the_larger_offset_stays_in_any_order(bench: Bench) -> None:
    """A worker that slept through the loss of its partition writes after its successor."""
    old = rows_after((0, "anna", 1), end=1)
    new = rows_after((1, "anna", 1), end=2, get=old.get)
    bench.table.recover(0, records(new))
    bench.table.recover(0, records(old, start=2))
    assert bench.count("anna") == (2, 1)
    bench.table.recover(0, records(old, start=4) + records(new, start=6) + records(old, start=8))
    assert bench.count("anna") == (2, 1)
    assert bench.table.persisted_offset(CHANGELOG) == 9


def test_a_value_followed_by_an_older_record_is_published_again(bench: Bench) -> None:
    """Kafka's compaction keeps the last record of a key, so the last one must be the right one."""
    old = rows_after((0, "anna", 1), end=1)
    new = rows_after((1, "anna", 1), end=2, get=old.get)
    bench.table.recover(0, records(old) + records(new, start=2) + records(old, start=4))
    bench.recovered()
    assert dict(bench.published) == new
    assert list(bench.table.keys()) == ["anna"]
    bench.published = []
    bench.recovered()
    assert bench.published == []


def test_marked_keys_survive_a_restart(bench: Bench, tmp_path: Path) -> None:
    """A worker was killed before it published the right value. The next one publishes it, from the marked key."""
    old = rows_after((0, "anna", 1), end=1)
    new = rows_after((1, "anna", 1), end=2, get=old.get)
    bench.table.recover(0, records(old) + records(new, start=2) + records(old, start=4))
    bench.table._rocks._dbs.clear()
    gc.collect()
    again = Bench(tmp_path)
    again.recovered()
    assert dict(again.published) == new
    again.table._rocks._dbs.clear()
    gc.collect()
    third = Bench(tmp_path)
    third.recovered()
    assert third.published == []


def test_a_record_that_is_no_row_is_ignored_and_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Such a record must neither stop the recovery nor go unnoticed."""
    good = records(rows_after((0, "anna", 1), end=1), start=2)
    with caplog.at_level(logging.ERROR):
        bench.table.recover(0, [
            FakeRecord(b"x", b"\xff", 0, 0, TOPIC), FakeRecord(b"y", None, 1, 0, TOPIC),
            FakeRecord(None, good[0].value, 2, 0, TOPIC), *good,
        ])  # fmt: skip
    assert bench.count("anna") == (1, 0)
    assert bench.count("x") is None
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3


@pytest.mark.parametrize("key", ["__faust\0offset__", "\x00", "ż" * 128])
def test_any_text_may_be_a_key(bench: Bench, key: str) -> None:
    """A key may be equal to the one that Faust uses for its own offset."""
    bench.table._rocks.write(0, rows_after((0, key, 1), end=1).items())
    bench.table._acknowledged(0, 77, 78)
    assert bench.count(key) == (1, 0)
    assert bench.table.persisted_offset(CHANGELOG) == 77


def test_a_table_that_adds_up_is_left_alone(bench: Bench) -> None:
    """A recovered partition whose rows agree with its totals is not read again."""
    bench.table.recover(0, records(rows_after((0, "anna", 1), (1, "bob", 1), end=2)))
    bench.recovered()
    assert bench.reads == 0


def test_a_table_that_is_short_is_read_again_from_the_start(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The totals of the partition reveal a lost row."""
    rows = rows_after((0, "anna", 1), (1, "bob", 1), end=2)
    bench.whole = records(rows)
    bench.table.recover(0, records({key: value for key, value in rows.items() if key != b"bob"}))
    with caplog.at_level(logging.ERROR):
        bench.recovered()
    assert bench.reads == 1
    assert bench.count("bob") == (1, 1)
    assert "does not add up" in caplog.text


def test_a_changelog_that_lacks_rows_is_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The worker goes on with the rows that it has, and logs what to verify."""
    rows = rows_after((0, "anna", 1), (1, "bob", 1), end=2)
    bench.whole = records({key: value for key, value in rows.items() if key != b"bob"})
    bench.table.recover(0, bench.whole)
    with caplog.at_level(logging.ERROR):
        bench.recovered()
    assert "verify" in caplog.text
    assert bench.count("anna") == (1, 0)


def test_a_table_that_a_crash_left_ahead_of_its_totals_is_audited_later(bench: Bench) -> None:
    """Rows of an unfinished batch may be ahead of the totals. The audit is made after the batch has come again."""
    first = rows_after((0, "anna", 1), end=1)
    second = rows_after((1, "anna", 1), (2, "bob", 1), end=3, get=first.get)
    cut_off = {key: value for key, value in second.items() if key != TOTALS_KEY}
    bench.table.recover(0, records(first) + records(cut_off, start=2))
    bench.recovered()
    asyncio.run(bench.table._audit_late(0))
    assert 0 in bench.table._unaudited
    redone = counted(bench.table.reader(0), [(1, "anna", 1), (2, "bob", 1)], end=3)
    bench.table._rocks.write(0, redone)
    asyncio.run(bench.table._audit_late(0))
    assert 0 not in bench.table._unaudited
    assert decoded(bench.table.reader(0)(TOTALS_KEY))["rows"] == 2
    assert bench.reads == 0


@pytest.mark.parametrize(
    ("totals", "expected"),
    [(None, None), (b'{"era":1}', None), (b'{"era":1,"settled":-1}', 0), (b'{"era":1,"offset":9,"settled":4}', 5)],
)
def test_a_table_knows_the_next_offset_of_its_source(bench: Bench, totals: bytes | None, expected: int | None) -> None:
    """The totals have the end of the last batch. Without it, the committed offset counts."""
    if totals is not None:
        bench.table._rocks.write(0, [(TOTALS_KEY, totals)])
    assert bench.table.next_offset(0) == expected


def test_a_forgotten_partition_is_empty(bench: Bench) -> None:
    """A dropped partition has no rows, and can be opened again at once."""
    bench.table._rocks.write(0, rows_after((0, "anna", 1), end=1).items())
    bench.table.drop(0)
    assert bench.count("anna") is None


def test_a_table_without_sums_is_not_audited(tmp_path: Path) -> None:
    """Such a table is written, recovered and read like others. Faust sees its values as JSON."""
    other = Bench(tmp_path)
    table = other.another("windows", value=None)
    rows = {b"anna": b'{"era":1,"offset":7,"days":{"3":[1,{}]}}'}
    table.recover(0, records(rows))
    table.recover(0, records({b"anna": b'{"offset":9}'}, start=1))
    asyncio.run(table.on_recovery_completed({TP(table.changelog_topic_name, 0), CHANGELOG}, set()))
    asyncio.run(table._audit_late(0))
    assert table.reader(0)(b"anna") == rows[b"anna"]
    assert other.published == list(rows.items())
    other.app.assignor.assigned_actives = lambda: {TP(table.changelog_topic_name, 0)}
    assert table["anna"] == {"era": 1, "offset": 7, "days": {"3": [1, {}]}}
    decoded = other.app.serializers.loads_value(table.value_type, rows[b"anna"], serializer="json")
    assert decoded == table["anna"]


class TestAudit:
    """The comparison of the rows' sums with the totals."""

    @staticmethod
    def of(rows: dict[bytes, bytes]) -> Audit:
        audit = Audit(SUMS, "rows")
        for key, value in rows.items():
            audit.add(key, value)
        return audit

    def test_an_empty_partition_agrees(self) -> None:
        """A partition with neither rows nor totals is complete."""
        assert self.of({}).agrees

    def test_too_few_never_pass_also_when_others_are_ahead(self) -> None:
        """Every row that the totals count must exist, also if other rows are ahead of the totals."""
        rows = rows_after((0, "anna", 1), (1, "bob", 1), (2, "eve", 1), end=3)
        ahead = rows_after((3, "anna", 1), end=4, get=rows.get)
        rows[b"anna"] = ahead[b"anna"]
        assert self.of(rows).ahead
        assert self.of(rows).agrees
        del rows[b"bob"]
        assert not self.of(rows).agrees

    def test_rows_without_totals_are_ahead(self) -> None:
        """A crash in the first batch leaves rows without totals."""
        rows = rows_after((0, "anna", 1), end=1)
        del rows[TOTALS_KEY]
        assert self.of(rows).ahead


def test_faust_applies_nothing_by_itself(bench: Bench) -> None:
    """`recover` has already applied the record. Faust would put an older value over a newer one."""
    event = SimpleNamespace(message=SimpleNamespace(tp=CHANGELOG, offset=5, key=b"anna", value=b"{}", partition=0))
    bench.table.apply_changelog_batch([event])
    assert bench.count("anna") is None


def shorten(rows: dict[bytes, bytes], missing: bytes) -> dict[bytes, bytes]:
    """These rows without the one of this key."""
    return {key: value for key, value in rows.items() if key != missing}


async def do(table: Table, seen: list[Counted], end: int) -> None:
    """Write and audit a batch, as an agent does in its turn."""
    table._rocks.write(0, counted(table.reader(0), seen, end=end))
    await table._audit_late(0)


def goes_on(table: Table, seen: list[Counted], end: int) -> bool:
    """True if a batch succeeds within a few tries."""
    for _ in range(3):
        try:
            asyncio.run(do(table, seen, end))
        except BatchError:
            continue
        return True
    return False


def test_a_changelog_that_is_short_itself_does_not_stop_its_partition(bench: Bench) -> None:
    """A missing row is logged. An error would be retried for ever, and no later batch would be stored."""
    rows = rows_after((0, "anna", 1), (1, "bob", 1), end=2)
    bench.whole = records(shorten(rows, b"bob"))
    bench.table.recover(0, bench.whole)
    bench.recovered()
    assert goes_on(bench.table, [(2, "anna", 1)], end=3)


def test_totals_that_arrived_without_their_rows_do_not_stop_the_partition(bench: Bench) -> None:
    """A crash left the totals ahead of the rows. The batch comes again in two parts, which complete the rows."""
    batch = [(0, "anna", 1), (1, "bob", 1)]
    bench.whole = [FakeRecord(TOTALS_KEY, rows_after(*batch, end=2)[TOTALS_KEY], 0, 0, TOPIC)]
    bench.table.recover(0, bench.whole)
    bench.recovered()
    assert [goes_on(bench.table, [one], end) for one, end in zip(batch, (1, 2), strict=True)] == [True, True]
    assert (bench.count("anna"), bench.count("bob")) == ((1, 0), (1, 1))


def test_kafka_away_while_a_short_table_is_read_again_does_not_leave_it_empty(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust ignores errors of `on_recovery_completed`: the worker would count on from an empty table."""
    rows = rows_after((0, "anna", 1), (1, "bob", 1), end=2)
    bench.whole = records(rows)
    bench.table.recover(0, records(shorten(rows, b"bob")))
    read, failures = bench.read_whole, [Unavailable("Kafka", "does not answer")]

    async def away_once(*args: Any) -> None:
        if failures:
            raise failures.pop()
        await read(*args)

    monkeypatch.setattr(bench.app, "read_partition", away_once)
    with suppress(Unavailable):
        bench.recovered()
    assert (bench.count("anna"), bench.count("bob")) == ((1, 0), (1, 1))


def test_a_batch_that_holds_a_getter_does_not_keep_a_forgotten_partition_locked(bench: Bench) -> None:
    """A batch may wait for a server for hours, while its old partition is recovered again."""
    rows = rows_after((0, "anna", 1), end=1)
    bench.table._rocks.write(0, rows.items())
    get = bench.table.reader(0)
    assert get(b"anna")
    bench.table.drop(0)
    bench.table.recover(0, records(rows))
    assert bench.count("anna") == (1, 0)


class Shared(Bench):
    """One of several workers, each with its own folder. They share the changelog."""

    def __init__(self, folder: Path, changelog: list[FakeRecord]) -> None:
        super().__init__(folder)
        self.changelog = changelog
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def publish(self, topic: str, partition: int, rows: Any) -> int:
        if self.meanwhile:
            await self.meanwhile()
        self.changelog += [FakeRecord(*row, len(self.changelog) + n, 0, TOPIC) for n, row in enumerate(rows)]
        return len(self.changelog) - 1

    async def start(self) -> None:
        """Recover as Faust does: from the record after the persisted offset."""
        persisted = self.table.persisted_offset(CHANGELOG)
        if run := self.changelog[0 if persisted is None else persisted + 1 :]:
            self.table.recover(0, run)
        await self.table.on_recovery_completed({CHANGELOG}, set())

    async def see(self, *offsets: int) -> None:
        """Handle a batch of records at these offsets, each with a key of its own."""
        batch: Any = FakeBatch([FakeRecord(f"k{n}".encode(), b"1", n) for n in offsets])
        async with batch.turn():
            seen = [(n, f"k{n}", 1) for n in offsets]
            await self.table.write(batch, counted(self.table.reader(0), seen, end=batch.end))


def test_a_worker_that_slept_through_its_loss_recovers_what_its_successor_counted(tmp_path: Path) -> None:
    """The sleeper's rows come after the successor's in the changelog, and its RocksDB has none of the successor's."""
    changelog: list[FakeRecord] = []
    sleeper, successor = (Shared(tmp_path / name, changelog) for name in ("sleeper", "successor"))

    async def successor_goes_on() -> None:
        await successor.start()
        for offset in range(3):
            await successor.see(offset)

    async def story() -> None:
        await sleeper.start()
        sleeper.meanwhile = successor_goes_on
        await sleeper.see(0)  # frozen while it publishes, and unaware of the loss
        sleeper.meanwhile = None
        await sleeper.start()  # it gets the partition back

    asyncio.run(story())
    assert [sleeper.count(f"k{number}") for number in range(3)] == [(1, 0), (1, 1), (1, 2)]


def test_a_damaged_database_is_dropped_and_recovered(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a power cut the worker starts, logs the damage, and reads the changelog from the start."""
    rows = rows_after((0, "anna", 600), end=1)
    bench.table.recover(0, records(rows))
    assert bench.table.persisted_offset(CHANGELOG) == len(rows) - 1
    bench.table.data._dbs.clear()  # type: ignore[attr-defined]
    gc.collect()
    for file in bench.table.data.partition_path(0).glob("MANIFEST-*"):  # type: ignore[attr-defined]
        file.write_bytes(b"x" * file.stat().st_size)
    again = Bench(tmp_path)
    with caplog.at_level(logging.ERROR):
        assert again.table.persisted_offset(CHANGELOG) is None
    assert "tally: partition 0 is damaged on disk; its changelog is read from the start" in caplog.text
    assert again.count("anna") is None
    again.table.recover(0, records(rows))
    again.recovered()
    assert again.count("anna") == (1, 0)


def overwrite_tables(bench: Bench) -> None:
    """Damage every block of the rows on disk. RocksDB opens such a database, and notices when it reads a block."""
    rocks = bench.table._rocks
    rocks._dbs[0].flush()
    rocks._dbs.clear()
    gc.collect()
    for file in rocks.partition_path(0).glob("*.sst"):
        with file.open("r+b") as content:
            for place in range(500, file.stat().st_size - 2_200, 500):
                content.seek(place)
                content.write(b"damage")


def read_a_row(bench: Bench) -> None:
    bench.count("k1999")


def read_a_page(bench: Bench) -> None:
    bench.table.scan(0, b"", 10)


def read_the_last_page(bench: Bench) -> None:
    bench.table.scan(0, b"k1999", 10)


def merge_files(bench: Bench) -> None:
    """RocksDB merges files in the background, and refuses all writes when it meets damage."""
    rocks = bench.table._rocks
    for _ in range(9):
        rocks.write(0, bench.rows.items())
        with suppress(Exception):
            rocks._dbs[0].flush()


@pytest.mark.parametrize("notice", [read_a_row, read_a_page, read_the_last_page, merge_files])
def test_damage_that_is_noticed_later_is_mended_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, notice: Callable[[Bench], None]
) -> None:
    """One line of the log; nobody gets a part of the rows for all of them; then the table is as the changelog says."""
    rows = rows_after(*((offset, f"k{offset}", 1) for offset in range(2_000)), end=2_000)
    changelog = records(rows)
    damaged = Bench(tmp_path)
    damaged.table.recover(0, changelog)
    overwrite_tables(damaged)
    bench = Bench(tmp_path)
    bench.whole, bench.rows = changelog, rows

    async def story() -> None:
        with pytest.raises(Unavailable, match=r"RocksDB: tally: partition 0 is damaged; its changelog is read again"):
            notice(bench)
        for use in (lambda: bench.count("k0"), lambda: bench.table.scan(0, b"", 1)):
            with pytest.raises(Unavailable):
                use()
        with pytest.raises(Unavailable):
            await bench.table.write(FakeBatch([FakeRecord(b"k0", b"1", 2_000)]), list(rows.items()))  # type: ignore[arg-type]
        await asyncio.wait([bench.table._mending[0]])

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "tally: partition 0 is damaged on disk; its changelog is read from the start: Corruption: " in line
    assert [bench.count(f"k{offset}") for offset in range(2_000)] == [(1, offset) for offset in range(2_000)]
    assert bench.table.persisted_offset(CHANGELOG) == len(rows) - 1
    assert bench.reads == 1
    bench.recovered()
    assert bench.reads == 1


@pytest.mark.parametrize("offset_first", [True, False])
def test_a_recovery_waits_for_the_end_of_the_damage(tmp_path: Path, offset_first: bool) -> None:
    """Faust asks for the offset before, the consumer for the totals after. A batch in its turn is not disturbed."""
    rows = rows_after(*((offset, f"k{offset}", 1) for offset in range(2_000)), end=2_000)
    damaged = Bench(tmp_path)
    damaged.table.recover(0, records(rows))
    overwrite_tables(damaged)
    bench = Bench(tmp_path)
    bench.whole = records(rows)

    async def story() -> None:
        async with bench.lock:
            if offset_first:
                assert bench.table.persisted_offset(CHANGELOG) is None
            recovery = asyncio.ensure_future(bench.table.on_recovery_completed({CHANGELOG}, set()))
            await asyncio.sleep(0.1)
            assert (bench.reads, recovery.done()) == (0, False)
        await recovery

    asyncio.run(story())
    assert (bench.reads, bench.count("k7")) == (1, (1, 7))


@pytest.mark.parametrize(
    ("changelog", "told"),
    [(1, "was deleted, or created with another number"), (2, "but Kafka showed it too late. Start the worker again")],
)
def test_a_table_that_is_shared_out_otherwise_than_its_source_ends_the_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changelog: int, told: str
) -> None:
    """If the changelog has another number of partitions, another worker's table would count a record.

    Faust drops what the table raises after a recovery.
    """
    crashed: list[BaseException] = []

    async def crash(self: App, reason: BaseException) -> None:
        crashed.append(reason)

    monkeypatch.setattr(App, "crash", crash)
    bench.table.source = "views"
    counts = {"views": 2, bench.table.changelog_topic_name: changelog}
    monkeypatch.setattr(App, "consumer", SimpleNamespace(topic_partitions=counts.get))
    monkeypatch.setattr(App, "owned", [TP("views", 0), TP("views", 1), TP("others", 7)])
    bench.recovered()
    (reason,) = crashed
    assert isinstance(reason, ChangelogUnusable)
    assert "must have as many partitions as views" in str(reason)
    assert told in str(reason)
    monkeypatch.setattr(App, "owned", [TP("views", 0), TP("others", 7)])
    bench.recovered()
    assert len(crashed) == 1
