"""Shared by all commands: base classes, exit statuses, the connection to MongoDB, common options."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import signal
import socket
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource
from faust.cli import AppCommand, option

from shopflow import stop_at_once
from shopflow.app import app, config, store
from shopflow.errors import Refused, Unavailable
from shopflow.kafka import connection
from shopflow.servers.servers import Addresses, Servers, locate
from shopflow.shop.times import read_time

from .progress import Activity

T = TypeVar("T")
_CANCEL_AGAIN_SECONDS = 2.0
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

DIRECT = option("--direct", is_flag=True, help="Write straight to MongoDB, without Kafka.")
JSON = option("--json", "as_json", is_flag=True, help="Print JSON.")


def exit_with(run: Callable[[], int | None]) -> NoReturn:
    """Run, and exit with the returned status (None: 0). An error prints one line on stderr.

    Status 2: the request was refused (`Refused`). 1: a server is away or a disk is full. 130: Ctrl-C.
    """
    _prepare()
    try:
        status = run() or 0
    except Refused as error:
        click.echo(f"Error: {error}", err=True)
        status = error.exit_code
    except Unavailable as error:
        click.echo(f"Error: {error}", err=True)
        status = 1
    except click.ClickException as error:
        click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
        status = error.exit_code
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # `list-customers | head`
        _give_up_stdout()
        status = 0
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _give_up_stdout()  # `list-customers > FILE` on a full disk
        click.echo(f"Error: {error.filename or 'stdout'}: {error.strerror}", err=True)
        status = 1
    sys.exit(status)


def _prepare() -> None:
    if signal.getsignal(signal.SIGINT) is stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding without ł gets \u0142 instead of an error
            stream.reconfigure(errors="backslashreplace")


def _give_up_stdout() -> None:
    """Keep Python from flushing stdout again at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, like `asyncio.run`. Ctrl-C cancels it until it has ended."""
    return asyncio.run(_interruptible(main))


async def _interruptible(main: Coroutine[Any, Any, T]) -> T:
    work = asyncio.create_task(main)
    try:
        await asyncio.wait({work})
    finally:
        await cancel(work)
    return work.result()


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended. One call of `Task.cancel` is not always enough.

    `asyncio.wait_for` of Python 3.10 and 3.11, which pymongo uses, loses a cancellation that comes when its future is
    done: https://github.com/python/cpython/issues/86296.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio logs none


class Command(AppCommand):
    """A command that is a coroutine and runs in its own event loop."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        connection.quiet()
        exit_with(lambda: run(self.run(*self.args, *args, **{**self.kwargs, **kwargs})))


class ServingCommand(Command):
    """A command that starts servers or a worker. It is a plain function, and treats SIGTERM as Ctrl-C."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        connection.quiet()
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            exit_with(lambda: self.run(**{**self.kwargs, **kwargs}))
        finally:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def running_servers(say: Callable[[str], None]) -> Iterator[tuple[Servers, Addresses]]:
    """Start the embedded servers that don't run yet. Those that were started stop at the end."""
    with ExitStack() as stack:
        with Activity("Starting Kafka and MongoDB", say) as shown:
            servers = stack.enter_context(Servers(config, shown.say, shown.loading))
            addresses = servers.start()
        yield servers, addresses


def choose_datadir(command: AppCommand, port: int) -> None:
    """Set the folder of the tables: --datadir, else a folder under `data_dir` for this port.

    Raises:
        Refused: The folder can't be made.
    """
    source = command.ctx.find_root().get_parameter_source("datadir")
    if command.datadir and source is not ParameterSource.DEFAULT:
        folder = Path(command.datadir)
    else:  # two workers on one machine have two ports, and need two folders for RocksDB
        folder = config.data_path / f"worker-{port}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"data_dir: {folder}: {error.strerror}") from error
    app.reconfigure(datadir=folder, consumer_group_instance_id=config.instance_id or _instance_id(folder))


def _instance_id(folder: Path) -> str:
    """A name for the worker with its tables in this folder, the same one at each start.

    It is made of the host's name (in Kubernetes the pod's), the folder's, and a hash of its path.
    """
    path = str(folder.resolve())
    name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{socket.gethostname()}-{folder.name}")[:200]
    return f"{name}-{zlib.crc32(path.encode()):08x}"


def with_options(options: Any, changes: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Faust's options of a command, some of them with other keywords.

    Arguments:
        changes: The keywords, by the first name of the option.
    """
    return [type(each)(*each.args, **{**each.kwargs, **changes.get(each.args[0], {})}) for each in options]


class Time(click.ParamType):
    """A time in ISO 8601. Without a UTC offset it is local."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the time. Raises `click.BadParameter`, which names the option."""
        try:
            return read_time(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time in ISO 8601, like 2026-05-01 or 2026-05-01T12:00:00+02:00", param, ctx)


def now() -> datetime:
    return datetime.now(timezone.utc)


def check_mongodb(addresses: Addresses) -> None:
    """Raise `Refused` if MongoDB lacks what is needed. One that is away is not judged."""

    async def check() -> None:
        try:
            await store.check_features()
        finally:
            await store.close()

    store.connect(addresses.mongodb)
    run(check())
    store.connect(addresses.mongodb)  # a client serves one event loop


@asynccontextmanager
async def mongodb(*, kafka: bool = False, able: bool = False) -> AsyncIterator[Addresses]:
    """Connect the store to the running MongoDB. Yields the servers' addresses, with `kafka` also Kafka's.

    Arguments:
        able: MongoDB must know all that a worker needs.

    Raises:
        Refused: An embedded server is not running, or MongoDB lacks what is needed.
        Unavailable: MongoDB does not answer.
    """
    addresses = locate(config, kafka=kafka)
    store.connect(addresses.mongodb)
    try:
        await store.ping()
        if able:
            await store.check_features()
        yield addresses
    finally:
        await store.close()
