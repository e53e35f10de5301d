"""`export`: three formats, refused values, and files that are complete or not there."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shopflow.errors import Refused, Unavailable
from shopflow.operations import export as exporting
from shopflow.operations.export import COLLECTIONS, Output, documents, export, opened, table, writer
from shopflow.shop import documents as shapes
from shopflow.store import connection
from shopflow.store.types import Document
from tests.conftest import Run
from tests.support.documents import DIRECT, NOON, customer, kafka, purchase
from tests.support.iterators import each
from tests.support.stores import ObservedStore

NASTY = ["", "ł,ą", '"', "a\nb", "a\rb", "\r\n", " x ", "=1+1", "\u2028", "\0", "NULL", "💶", "\ufeff"]


def made(kind: str, collection: str, *pages: list[Document]) -> bytes:
    """The bytes of an export of these pages."""
    sink = io.BytesIO()

    target = writer(kind, collection, sink)
    assert asyncio.run(export(each(pages), collection, target, lambda _: None)) == sum(map(len, pages))
    return sink.getvalue()


# -- formats


def test_json_lines_hold_a_document_a_line() -> None:
    """Fields have the events' names, times are in UTC. Fields that shopflow doesn't know are left out."""
    source = kafka(17, 3, "shop.purchases")
    late = purchase("p1", source, purchased_at=NOON + timedelta(milliseconds=123), note="mine")
    first, second = made("jsonl", "purchases", [late], [purchase("p2") | {"source": None}]).splitlines()
    assert json.loads(first) == {
        "purchase_id": "p1",
        "customer_id": "anna",
        "product_id": "milk",
        "quantity": 2,
        "price": 300,
        "value": 600,
        "purchased_at": "2026-05-01T12:00:00.123Z",
        "source": source,
    }
    assert json.loads(second)["source"] == {}


def test_csv_has_a_heading_and_a_line_a_document() -> None:
    """The fields of `source` are columns. A missing value is empty."""
    text = made("csv", "customers", [customer("anna", source=DIRECT, city=None)]).decode()
    assert text.split("\r\n") == [
        "customer_id,first_name,last_name,address,city,registered_at,"
        "source_origin,source_topic,source_partition,source_offset",
        'anna,Anna,Żak,"ul. Długa 1, 00-001 Łódź",,2026-05-01T12:00:00.000Z,direct,,,',
        "",
    ]
    assert len(made("csv", "products").splitlines()) == 1


def test_text_survives_whatever_is_in_it() -> None:
    """A reader of the format gets commas, quotes, line breaks and NUL as they are in MongoDB."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    found = [customer(f"c{number}", address="".join(chosen.choices(NASTY, k=4))) for number in range(300)]
    if sys.version_info < (3, 11):  # whose reader of csv knows no NUL
        for one in found:
            one["address"] = one["address"].replace("\0", "")
    lines = io.StringIO(made("csv", "customers", found).decode(), newline="")
    assert [row["address"] for row in csv.DictReader(lines)] == [one["address"] for one in found]
    as_json = made("jsonl", "customers", found).decode().split("\n")
    assert as_json.pop() == ""
    assert [json.loads(line)["address"] for line in as_json] == [one["address"] for one in found]


def test_parquet_has_types_and_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grosze are integers, times are timestamps in UTC. Only one row group is in memory."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(exporting.Parquet.__init__, "__defaults__", (4,))
    pages = [[purchase(f"p{page}{number}", kafka(17), price=page) for number in range(3)] for page in range(3)]
    pages[2][2] |= {"price": None, "source": DIRECT}
    data = made("parquet", "purchases", *pages)
    found = parquet.ParquetFile(io.BytesIO(data))
    assert [found.metadata.row_group(number).num_rows for number in range(found.num_row_groups)] == [6, 3]
    kinds = {field.name: field.type for field in found.schema_arrow}
    assert kinds["price"] == kinds["source_offset"] == pyarrow.int64()
    assert kinds["purchased_at"] == pyarrow.timestamp("ms", tz="UTC")
    rows = found.read().to_pylist()
    assert [row["purchase_id"] for row in rows] == [one["_id"] for page in pages for one in page]
    assert rows[0]["purchased_at"] == NOON
    assert (rows[0]["source_offset"], rows[8]["source_offset"], rows[8]["price"]) == (17, None, None)
    empty = parquet.ParquetFile(io.BytesIO(made("parquet", "purchases")))
    assert (empty.metadata.num_rows, empty.schema_arrow) == (0, found.schema_arrow)


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_the_columns_are_the_documents_fields(collection: str) -> None:
    """Each field of a document is a column, the id under the event's name."""

    class Anything(SimpleNamespace):
        def __getattr__(self, name: str) -> int:
            return 1

    build = getattr(shapes, f"{collection[:-1]}_document")
    document = build(SimpleNamespace(topic="t", partition=1, offset=2), Anything())
    wanted = {(name,) for name in document if name != "source"} | {("source", name) for name in document["source"]}
    assert {column.path for column in COLLECTIONS[collection]} == wanted


# -- values of another kind


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"price": "3,99"}, "purchases: 'p1': field price is str, not a whole number"),
        ({"price": 3.5}, "field price is float"),
        ({"quantity": True}, "field quantity is bool"),
        ({"customer_id": b"x"}, "field customer_id is bytes, not text"),
        ({"purchased_at": "2026-05-01"}, "field purchased_at is str, not a time"),
        ({"source": {"offset": "1"}}, "field source.offset is str"),
    ],
)
def test_a_value_of_another_type_is_refused(fields: Document, said: str) -> None:
    """A file has one schema. A wrong value in it would fail its reader later."""
    with pytest.raises(Refused) as refused:
        table("purchases", [purchase("p0"), {**purchase("p1"), **fields}])
    assert said in str(refused.value)


def test_a_whole_number_that_was_written_as_a_float_is_one() -> None:
    """Some programs write all numbers as floats. A missing value stays missing."""
    rows = table("purchases", [purchase("p1", price=3.0), purchase("p2", price=None) | {"source": "?"}, {"_id": "p3"}])
    assert rows["price"] == [3, None, None]
    assert type(rows["price"][0]) is int
    assert rows["source_topic"] == ["t", None, None]


# -- MongoDB goes away


def test_an_export_goes_on_where_it_was_when_mongodb_is_back(
    monkeypatch: pytest.MonkeyPatch, store: ObservedStore, run: Run
) -> None:
    """Each document comes once, in order, after any number of outages."""
    monkeypatch.setattr(exporting, "FIRST_PAUSE_SECONDS", 0)
    monkeypatch.setattr(connection, "PAGE_SIZE", 2)
    names, said, found = [f"p{number}" for number in range(9)], [], []
    run(store.insert_purchases([purchase(name) for name in names]))
    breaks = iter([True, True, False])  # MongoDB goes away after these pages, for two calls each
    pages = store.pages

    async def breaking(*arguments: Any) -> AsyncIterator[list[Document]]:
        async for page in pages(*arguments):
            yield page
            if next(breaks, False):
                store.away(2)
                raise Unavailable("MongoDB", "away")

    monkeypatch.setattr(store, "pages", breaking)

    async def export_all() -> None:
        async for page in documents(store, "purchases", said.append):  # type: ignore[arg-type]
            found.extend(one["_id"] for one in page)

    run(export_all())
    assert found == names
    assert said == ["MongoDB: away; trying again for 60 s", "MongoDB is back."] * 2


def test_an_export_ends_when_mongodb_stays_away(
    monkeypatch: pytest.MonkeyPatch, store: ObservedStore, run: Run
) -> None:
    """The export ends with an error, so that nobody takes the part for the whole."""
    monkeypatch.setattr(exporting, "FIRST_PAUSE_SECONDS", 0.01)
    said: list[str] = []
    store.away(1_000_000)

    async def export_all() -> None:
        async for _ in documents(store, "purchases", said.append, seconds=0.1):  # type: ignore[arg-type]
            raise AssertionError("it is away")

    with pytest.raises(Unavailable):
        run(export_all())
    assert len(said) == 1


# -- files


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    """Until then the old file stays. The new file has the permissions of the old one."""
    path = tmp_path / "out.csv"
    path.write_text("old")
    path.chmod(0o600)
    with opened(str(path), "csv") as sink:
        sink.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["out.csv"]  # noqa: PTH208


@pytest.mark.parametrize("kind", exporting.FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, Unavailable("MongoDB", "away")])
def test_an_export_that_breaks_off_leaves_nothing(tmp_path: Path, kind: str, error: Any) -> None:
    """The old file stays. A library's destructor must not complete the new one."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "out"
    path.write_text("old")

    async def pages() -> AsyncIterator[list[Document]]:
        yield [purchase("p1")]
        raise error

    def run() -> None:
        with opened(str(path), kind) as sink:
            asyncio.run(export(pages(), "purchases", writer(kind, "purchases", sink), lambda _: None))

    with pytest.raises((KeyboardInterrupt, Unavailable)):
        run()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]  # noqa: PTH208


def test_two_exports_do_not_write_one_file(tmp_path: Path) -> None:
    """The second is refused while the first runs. The file that a killed export left behind is overwritten."""
    path = tmp_path / "out"
    with opened(str(path), "csv") as sink:
        sink.write(b"first")
        with pytest.raises(Refused, match="another export"), opened(str(path), "csv"):
            raise AssertionError("the file is taken")
    (tmp_path / ".out.shopflow-part").write_text("left behind by one that was killed")
    with opened(str(path), "csv") as sink:
        sink.write(b"second")
    assert path.read_text() == "second"


def test_what_lies_beside_the_file_stays(tmp_path: Path) -> None:
    """Files with similar names stay, and so does the target of a link with the name of the temporary file."""
    (tmp_path / "out.part").write_text("mine")
    (tmp_path / "victim").write_text("mine")
    with opened(str(tmp_path / "out"), "csv") as sink:
        sink.write(b"x")
    (tmp_path / ".out.shopflow-part").symlink_to(tmp_path / "victim")
    with pytest.raises(Refused, match="--output: "), opened(str(tmp_path / "out"), "csv"):
        raise AssertionError("it would write through the link")
    assert [(tmp_path / name).read_text() for name in ("out", "out.part", "victim")] == ["x", "mine", "mine"]


def test_a_link_leads_to_the_file_and_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """`--output /dev/null` by root must not make a file of it."""
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with opened(str(tmp_path / "link"), "csv") as sink:
        sink.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with opened(str(tmp_path / "pipe"), "csv") as sink:
        sink.write(b"x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("where", ["missing/out", ".", "x" * 300])
def test_an_output_that_can_not_be_written_is_refused(tmp_path: Path, where: str) -> None:
    """The error is one line that names the option and the file."""
    with pytest.raises(Refused, match="--output: ") as refused, opened(str(tmp_path / where), "csv"):
        raise AssertionError("it can't be opened")
    assert "\n" not in str(refused.value)


class Full(io.RawIOBase):
    """A disk with room for this many bytes, which takes only a part of a write."""

    def __init__(self, room: int) -> None:
        self.got = b""
        self._room = room

    def write(self, data: Any) -> int:
        taken = bytes(data)[: min(5, self._room - len(self.got))]
        if not taken:
            raise OSError(28, "No space left on device")
        self.got += taken
        return len(taken)


@pytest.fixture(params=exporting.FORMATS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each format in turn."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return request.param


def test_a_full_disk_is_one_line(kind: str) -> None:
    """The error of a library in between does not hide it. Nothing is written afterwards."""
    stream = Full(100)
    sink = Output(stream, "out.file")

    async def pages() -> AsyncIterator[list[Document]]:
        for _ in range(10):
            yield [purchase("p1")] * 10

    def run() -> None:
        asyncio.run(export(pages(), "purchases", writer(kind, "purchases", sink), lambda _: None))

    with pytest.raises(Refused, match=r"--output: out\.file: No space left on device"):
        run()
    assert len(stream.got) == 100
    sink.break_off()
    with pytest.raises(ValueError, match="broken off"):
        sink.write(b"more")


PIPED = """
import sys
import tracemalloc
from shopflow.operations import export as exporting
from shopflow.commands.base import exit_with
from tests.support.documents import purchase
def run():
    with exporting.opened("-", sys.argv[1]) as sink:
        target = exporting.writer(sys.argv[1], "purchases", sink)
        for _ in range(3000):
            target.write(exporting.table("purchases", [purchase("p1")] * 100))
        target.close()
exit_with(run)
"""


def test_a_reader_that_goes_ends_it_quietly(kind: str) -> None:
    """`head` closes the pipe after some lines."""
    with subprocess.Popen(
        [sys.executable, "-c", PIPED, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_parquet_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing extra is reported before anything is connected or opened."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Refused, match=r"extra `parquet`.*shopflow\[parquet\]"):
        exporting.check("parquet")
    exporting.check("csv")


def test_times_before_1970_and_far_away_keep_their_form() -> None:
    """Times have milliseconds and a year of four digits."""
    times = [datetime(1, 1, 1, tzinfo=timezone.utc), datetime(9999, 12, 31, tzinfo=timezone.utc) + timedelta(hours=23)]
    lines = made("jsonl", "purchases", [purchase("p1", purchased_at=at) for at in times]).splitlines()
    assert [json.loads(line)["purchased_at"] for line in lines] == [
        "0001-01-01T00:00:00.000Z",
        "9999-12-31T23:00:00.000Z",
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    data = made("parquet", "purchases", [purchase("p1", purchased_at=at) for at in times])
    assert parquet.read_table(io.BytesIO(data)).column("purchased_at").to_pylist() == times


def test_parquet_is_not_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary data would garble the terminal."""
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(Refused, match=r"--output: .*terminal"), opened("-", "parquet"):
        raise AssertionError("it is a terminal")


def test_an_export_of_many_takes_no_more_memory_than_one_of_few(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: Python's allocations, and those of Arrow's pool."""
    monkeypatch.setattr(exporting.Parquet.__init__, "__defaults__", (2_000,))
    few, many = peak(kind, 12), peak(kind, 36)
    assert many < 1.1 * few + 200_000, (few, many)


def peak(kind: str, count: int) -> int:
    """The most bytes in use while this many pages of 500 documents were written."""
    most = 0

    async def pages() -> AsyncIterator[list[Document]]:
        nonlocal most
        for page in range(count):
            yield [purchase(f"p{page}-{number}") for number in range(500)]
            used = sys.modules["pyarrow"].total_allocated_bytes() if kind == "parquet" else 0
            most = max(most, tracemalloc.get_traced_memory()[0] + used)

    tracemalloc.start()
    try:
        with opened(os.devnull, kind) as sink:
            asyncio.run(export(pages(), "purchases", writer(kind, "purchases", sink), lambda _: None))
    finally:
        tracemalloc.stop()
    return most
