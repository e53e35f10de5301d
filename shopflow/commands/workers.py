"""`workers`: several workers on one machine, as one program."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import IO, NoReturn

import click
from click.core import ParameterSource
from faust.cli import option
from faust.cli.base import DEFAULT_LOGLEVEL, LOGLEVELS
from faust.cli.params import CaseInsensitiveChoice, TCPPort

from shopflow.app import config
from shopflow.errors import Refused
from shopflow.servers.servers import Servers
from shopflow.servers.worker import Worker, alone, check_port, reached_at, url_of, write_url

from .base import ServingCommand, running_servers

_LOOK_SECONDS = 0.5
#: A worker that ends by itself so soon after its first start would do so again: a setting is wrong, say.
_HOPELESS_SECONDS = 10.0
#: The pause before a worker that has ended is started again; doubled at each end soon after that, up to the longest.
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 30.0
#: The status of a process that signal N has ended is this and N.
_SIGNALLED = 128
_LAST_PORT = 65_535


@ServingCommand.from_handler(
    option("--count", "-n", type=click.IntRange(1), help="How many workers.  [default: one for each processor]"),
    option(
        "--web-port",
        "-p",
        type=TCPPort(),
        help=f"The port of the first worker; the next ones have the next ports.  [configured: {config.web.port}]",
    ),
    option(
        *("--loglevel", "-l", "level"),
        type=CaseInsensitiveChoice(LOGLEVELS),
        default=DEFAULT_LOGLEVEL,
        show_default=True,
        help="What the workers log.",
    ),
)
def workers(self: ServingCommand, count: int | None, web_port: int | None, level: str) -> int:
    """Start several workers, which share the partitions. A worker that ends is started again."""
    count = count or min(_processors(), config.topics.partitions)
    if count > config.topics.partitions:
        self.say(f"Warning: there are {config.topics.partitions} partitions; the other workers only have copies.")
    given = self.ctx.find_root().get_parameter_source("datadir") is not ParameterSource.DEFAULT
    folder = Path(self.datadir) if given and self.datadir else None
    with alone(config, "workers") as lock, ExitStack() as stack:
        ports = _ports(web_port or config.web.port, count)
        servers, _ = stack.enter_context(running_servers(self.say))
        kept = stack.enter_context(_running([_Kept(port, folder, level, lock) for port in ports]))
        write_url(lock, kept[0].worker.url)
        self.say(f"The shop: {kept[0].worker.url}/ ({count} workers)")
        try:
            _watch(kept, servers, self.say)
        except KeyboardInterrupt:  # said at once: the workers take seconds to stop
            self.say("Stopping the workers ...")
            return 0


class _Kept:
    """A worker that is started again when it has ended.

    Arguments:
        port: Of its web server.
        folder: The workers' folders for tables are in this one; None: in `data_dir`.
        lock: A locked file, which stays locked until the worker has ended.
    """

    def __init__(self, port: int, folder: Path | None, loglevel: str, lock: IO[bytes]) -> None:
        tables = ["--datadir", str(folder / f"worker-{port}")] if folder else []
        name = {"SHOPFLOW_INSTANCE_ID": f"{config.instance_id}-{port}"} if config.instance_id else {}
        self.worker = Worker(
            [sys.executable, "-m", "shopflow", *tables, "worker", "--web-port", str(port), "-l", loglevel],
            {**os.environ, **name},
            lock,
            url_of(reached_at(config.web.bind), port),
            None,
        )
        self._started, self._first = monotonic(), True
        self._pause = _PAUSE_SECONDS
        self._due: float | None = None

    def look(self, say: Callable[[str], None]) -> None:
        """Start the worker again when it is due.

        Raises:
            Refused: It has ended by itself soon after its first start.
        """
        now, status = monotonic(), self.worker.status
        if status is None:
            return
        if self._due is None:
            told = f"the worker at {self.worker.url} has ended with status {status}"
            if status < _SIGNALLED and self._first and now - self._started < _HOPELESS_SECONDS:
                raise Refused(told)
            if now - self._started > _LONGEST_PAUSE_SECONDS:
                self._pause = _PAUSE_SECONDS
            say(f"{told[0].upper()}{told[1:]}; it starts again in {self._pause:g} s.")
            self._due = now + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        elif now >= self._due:
            self._started, self._first, self._due = now, False, None
            self.worker.start()


@contextmanager
def _running(kept: list[_Kept]) -> Iterator[list[_Kept]]:
    """Stop all workers at the same time when the body ends."""
    try:
        yield kept
    finally:
        for one in kept:
            one.worker.order_stop()
        for one in kept:
            one.worker.stop()


def _watch(kept: list[_Kept], servers: Servers, say: Callable[[str], None]) -> NoReturn:
    """Look after the workers until Ctrl-C.

    Raises:
        Refused: A worker has ended soon after its first start, or a server that was started for them has died.
    """
    while True:
        for one in kept:
            one.look(say)
        if failure := servers.failure():
            raise Refused(failure)
        sleep(_LOOK_SECONDS)


def _ports(first: int, count: int) -> range:
    ports = range(first, first + count)
    if ports[-1] > _LAST_PORT:
        raise Refused(f"--count: there are no {count} ports from {first} to {_LAST_PORT}")
    for port in ports:
        check_port(config.web.bind, port)
    return ports


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
