"""Exports a collection of MongoDB as JSON lines, CSV or Parquet, in bounded memory.

A file has one schema, but other programs may have changed documents. A value of an unexpected type is an error that
names the document and the field. Fields that shopflow does not know are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import fcntl
import importlib
import io
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from shopflow.errors import Refused, Unavailable
from shopflow.shop.text import whole
from shopflow.store import MongoStore
from shopflow.store.types import Document

#: How long MongoDB may be away in the middle of an export, and the pauses between two tries.
RETRY_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0
#: Rows of a Parquet row group, which is in memory at once.
ROW_GROUP = 50_000
#: Whole numbers in MongoDB are smaller than this.
_LARGEST = 2**63

FORMATS = ("jsonl", "csv", "parquet")


@dataclass(frozen=True)
class Column:
    """A column of the file."""

    name: str
    kind: type  #: the type of its values; a value may be missing
    path: tuple[str, ...]  #: the path of the field in a document


_SOURCE = (("origin", str), ("topic", str), ("partition", int), ("offset", int))


def _columns(key: str, **kinds: type) -> tuple[Column, ...]:
    own = [Column(name, kind, (name,)) for name, kind in kinds.items()]
    source = [Column(f"source_{name}", kind, ("source", name)) for name, kind in _SOURCE]
    return (Column(key, str, ("_id",)), *own, *source)


#: Collection -> its columns, in their order.
COLLECTIONS = {
    "customers": _columns(
        "customer_id", first_name=str, last_name=str, address=str, city=str, registered_at=datetime
    ),
    "purchases": _columns(
        "purchase_id", customer_id=str, product_id=str, quantity=int, price=int, value=int, purchased_at=datetime
    ),
    "products": _columns(
        "product_id", name=str, type=str, price=int, updated_at=datetime, stock=int, stock_limit=int
    ),
}  # fmt: skip

#: The values of each column, by its name.
Table = dict[str, list[Any]]


# -- reading


async def documents(
    store: MongoStore, collection: str, say: Callable[[str], None], *, seconds: float = RETRY_SECONDS
) -> AsyncIterator[list[Document]]:
    """The pages of a collection. While MongoDB is away, retry from the last id.

    Raises:
        Unavailable: MongoDB was away for longer than `seconds`.
    """
    after, since, pause = "", None, FIRST_PAUSE_SECONDS
    while True:
        try:
            async for page in store.pages(collection, after):
                if since is not None:
                    say("MongoDB is back.")
                    since, pause = None, FIRST_PAUSE_SECONDS
                yield page
                after = page[-1]["_id"]
        except Unavailable as error:
            if since is None:
                say(f"{error}; trying again for {seconds:g} s")
                since = monotonic()
            elif monotonic() - since >= seconds:
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            return


def table(collection: str, found: Sequence[Document]) -> Table:
    """The values of these documents by column. Each has its column's type, or is None.

    Raises:
        Refused: A value has another type.
    """
    rows = {column.name: [_at(document, column.path) for document in found] for column in COLLECTIONS[collection]}
    for column in COLLECTIONS[collection]:
        values = rows[column.name]
        if not set(map(type, values)) <= {column.kind, type(None)}:
            names = [document["_id"] for document in found]
            rows[column.name] = [
                _checked(value, column, f"{collection}: {name!r}") for name, value in zip(names, values, strict=True)
            ]
    return rows


def _at(document: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


_KINDS = {str: "text", int: "a whole number", datetime: "a time"}


def _checked(value: Any, column: Column, where: str) -> Any:
    if value is None or type(value) is column.kind:
        return value
    if column.kind is int and (number := whole(value)) is not None and abs(number) < _LARGEST:
        return number
    raise Refused(f"{where}: field {'.'.join(column.path)} is {type(value).__name__}, not {_KINDS[column.kind]}")


# -- writing


def check(kind: str) -> None:
    """Raises:
    Refused: The library that this format needs is not installed.
    """
    if kind == "parquet":
        _pyarrow("")


def writer(kind: str, collection: str, sink: io.RawIOBase) -> Writer:
    """Make the writer of this format for this collection."""
    kinds: dict[str, type[Writer]] = {"jsonl": JsonLines, "csv": Csv, "parquet": Parquet}
    return kinds[kind](COLLECTIONS[collection], sink)


def _time(at: datetime | None) -> str | None:
    return None if at is None else f"{at.isoformat(timespec='milliseconds')[:-6]}Z"  # times are in UTC


def _as_text(rows: Table, columns: Iterable[Column]) -> Table:
    times = [column.name for column in columns if column.kind is datetime]
    return {**rows, **{name: [_time(at) for at in rows[name]] for name in times}}


class Writer:
    """Writes rows in one format."""

    def __init__(self, columns: Sequence[Column], sink: io.RawIOBase) -> None:
        self._columns = columns
        self._sink = sink

    def write(self, rows: Table) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write the remaining rows."""

    def break_off(self) -> None:
        """Write nothing more. Called instead of `close`."""


class JsonLines(Writer):
    """One JSON object per line. Its `source` is an object without missing fields."""

    def write(self, rows: Table) -> None:
        rows = _as_text(rows, self._columns)
        own = [column.name for column in self._columns if len(column.path) == 1]
        inner = [column for column in self._columns if len(column.path) > 1]
        sources = [
            {column.path[1]: value for column, value in zip(inner, values, strict=True) if value is not None}
            for values in zip(*(rows[column.name] for column in inner), strict=True)
        ]
        found = zip(*(rows[name] for name in own), sources, strict=True)
        objects = [dict(zip((*own, "source"), values, strict=True)) for values in found]
        self._sink.write(msgspec.json.Encoder().encode_lines(objects))


class Csv(Writer):
    """CSV by RFC 4180 in UTF-8: a line of names, then a line per document. A missing value is empty."""

    def __init__(self, columns: Sequence[Column], sink: io.RawIOBase) -> None:
        super().__init__(columns, sink)
        self._write([[column.name for column in columns]])

    def _write(self, lines: Iterable[Sequence[Any]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text).writerows(lines)
        self._sink.write(text.getvalue().encode())

    def write(self, rows: Table) -> None:
        rows = _as_text(rows, self._columns)
        self._write(zip(*(rows[column.name] for column in self._columns), strict=True))


class Parquet(Writer):
    """Whole numbers are int64, times are timestamp[ms, UTC]. A row group has about 50,000 documents."""

    def __init__(self, columns: Sequence[Column], sink: io.RawIOBase, row_group: int = ROW_GROUP) -> None:
        super().__init__(columns, sink)
        self._arrow = _pyarrow("")
        types = {str: self._arrow.string(), int: self._arrow.int64(), datetime: self._arrow.timestamp("ms", tz="UTC")}
        self._schema = self._arrow.schema([(column.name, types[column.kind]) for column in columns])
        self._parquet = _pyarrow(".parquet").ParquetWriter(sink, self._schema)
        self._row_group = row_group
        self._waiting: list[Any] = []
        self._count = 0

    def write(self, rows: Table) -> None:
        batch = self._arrow.RecordBatch.from_pydict(rows, schema=self._schema)
        self._waiting.append(batch)
        self._count += batch.num_rows
        if self._count >= self._row_group:
            self._write()

    def _write(self) -> None:
        self._parquet.write_table(self._arrow.Table.from_batches(self._waiting, self._schema), self._count)
        self._waiting, self._count = [], 0

    def close(self) -> None:
        if self._waiting:
            self._write()
        self._parquet.close()

    def break_off(self) -> None:
        self._parquet.is_open = False  # else it completes the file when it is garbage-collected


def _pyarrow(part: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow{part}")
    except ImportError as error:
        raise Refused("--format parquet: needs the extra `parquet`: pip install 'shopflow[parquet]'") from error


# -- the output


class Output(io.RawIOBase):
    """A file or a pipe that refuses writes after `break_off`.

    A library may write the end of a file when it is garbage-collected. An incomplete file would then look complete.

    Arguments:
        stream: Unbuffered.
        name: The name in error messages.
    """

    def __init__(self, stream: io.RawIOBase, name: str) -> None:
        self._stream = stream
        self._name = name
        self._broken = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all data.

        Raises:
            Refused: The write failed: the disk is full, for instance.
            BrokenPipeError: The reader has closed the pipe.
        """
        left = memoryview(data).cast("B")
        size = len(left)
        while left:
            if self._broken:
                raise ValueError("broken off")
            with _explained(self._name):
                left = left[self._stream.write(left) or 0 :]
        return size

    def break_off(self) -> None:
        self._broken = True


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn `OSError` into `Refused` with the output's name."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Refused(f"--output: {name}: {error.strerror}") from error


@contextlib.contextmanager
def opened(output: str, kind: str) -> Iterator[Output]:
    """Open `-` for stdout, or a file that gets its name when it is complete.

    Raises:
        Refused: The output can't be written.
    """
    with _stream(output, kind) as stream:
        sink = Output(stream, "stdout" if output == "-" else output)
        try:
            yield sink
        except BaseException:
            sink.break_off()
            raise


def _stream(output: str, kind: str) -> contextlib.AbstractContextManager[io.RawIOBase]:
    if output == "-":
        if kind == "parquet" and sys.stdout.isatty():
            raise Refused("--output: parquet can't be written to a terminal: name a file")
        return io.FileIO(sys.stdout.fileno(), "w", closefd=False)
    path = Path(os.path.realpath(output))
    with _explained(output):
        if path.is_file() or not path.exists():
            return _part(path, output)
        return path.open("wb", buffering=0)  # a named pipe or /dev/null can't be replaced by a file


@contextlib.contextmanager
def _part(path: Path, name: str) -> Iterator[io.RawIOBase]:
    """A temporary file beside the output. It is renamed to the output on success, and deleted on failure."""
    part = path.with_name(f".{path.name}.shopflow-part")
    with _locked(part, name) as stream:
        try:
            with _explained(name):
                stream.truncate(0)
                if path.exists():  # keep its permissions
                    os.fchmod(stream.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield stream
            with _explained(name):
                os.fsync(stream.fileno())
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _locked(part: Path, name: str) -> io.RawIOBase:
    """Open and lock the file for this process."""
    while True:
        with _explained(name):  # O_NOFOLLOW: another user may have put a link there
            stream = io.FileIO(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise Refused(f"--output: {name}: another export is writing it") from None
        if part.exists() and os.path.samestat(os.fstat(stream.fileno()), part.stat()):
            return stream
        stream.close()  # another export has just renamed or deleted it


# -- the export


async def export(
    pages: AsyncIterator[list[Document]], collection: str, target: Writer, advance: Callable[[int], None]
) -> int:
    """Write the pages, and return the number of documents.

    Raises:
        Refused: A value has an unexpected type, or the disk is full.
        Unavailable: MongoDB is away.
    """
    written = 0
    try:
        async for page in pages:
            target.write(table(collection, page))
            written += len(page)
            advance(len(page))
        target.close()
    except BaseException:
        target.break_off()
        raise
    return written
