"""A worker as a child process of a command. It ends with the command, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from shopflow.config.settings import Config, Web
from shopflow.errors import Refused

from . import keeper
from .locks import any_port, check_free, is_locked, locked

_STOP_SECONDS = 20.0


def check_port(bind: str, port: int) -> None:
    """Raise `Refused` if another program listens at the worker's web port."""
    try:
        check_free(bind, port)
    except OSError as error:
        raise Refused(
            f"web.port: {bind}:{port}: {error.strerror}; choose another with --web-port or SHOPFLOW_WEB_PORT"
        ) from error


class Worker:
    """A worker process. It runs until it is stopped, or killed for a demonstration.

    Attributes:
        url: The base URL of its views.
        log: The file with its log; None: standard error of this process.
    """

    def __init__(
        self, command: list[str], variables: Mapping[str, str], lock: IO[bytes], url: str, log: Path | None
    ) -> None:
        self._command, self._variables, self._lock = command, variables, lock
        self._killed = False
        self.url = url
        self.log = log
        self.start()

    def start(self) -> None:
        """Start it; also again after `kill`."""
        self._process = keeper.start(
            [self._command], self.log, self._lock, _STOP_SECONDS, stdout=subprocess.PIPE, env=dict(self._variables)
        )
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        with self._process.stdout as told:
            self._pid = int(told.readline() or 0)
        self._killed = False

    def send(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self._pid and self._process.poll() is None:
            os.kill(self._pid, number)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self._killed = True
        self.send(signal.SIGKILL)
        self._process.wait()

    def order_stop(self) -> None:
        """Stop it, without waiting for its end."""
        keeper.order_stop(self._process)

    def stop(self) -> None:
        """Stop it, and wait for its end."""
        self.order_stop()
        self._process.wait()

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def check(self) -> None:
        """Raise `Refused` if the worker has ended, but not by `kill`."""
        if (status := self.status) is not None and not self._killed:
            raise Refused(f"the worker has ended with status {status}; its log: {self.log}")


@contextmanager
def child_worker(
    config: Config, name: str, variables: Mapping[str, str] | None = None, *, first: bool = True
) -> Iterator[Worker]:
    """Run a worker while the body runs, on the configured port; if that is the default and taken, on any free port.

    Arguments:
        name: The command's name, for its files in `data_dir`.
        variables: Environment variables, over those of this process.
        first: False: leave the configured port to another worker.

    Raises:
        Refused: The same command runs in the same `data_dir` already, or another program has the configured port.
    """
    log = config.data_path / f"{name}-worker.log"
    with alone(config, name) as lock:
        host = reached_at(config.web.bind)
        port = _web_port(host, config) if first else any_port(host)
        url = url_of(host, port)
        write_url(lock, url)
        keeper.cut(log, 0)
        command = [sys.executable, "-m", "shopflow", "worker", "--web-port", str(port), "-l", "info"]
        variables = {**os.environ, **(variables or {})}
        worker = Worker(command, variables, lock, url, log)
        try:
            yield worker
        finally:
            worker.stop()


def reached_at(bind: str) -> str:
    """The address under which this machine reaches a server that is bound to `bind`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - nothing is bound here


def url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def alone(config: Config, name: str) -> Iterator[IO[bytes]]:
    """Hold the lock of this command in `data_dir`.

    Raises:
        Refused: The command runs there already. The message has the address that `write_url` wrote.
    """
    config.data_path.mkdir(parents=True, exist_ok=True)
    with locked(config.data_path / f"{name}.lock", wait=False) as lock:
        if lock is None:
            raise _already_running(config, name)
        yield lock


def write_url(lock: IO[bytes], url: str) -> None:
    """Write the address of the command's worker into its lock, for whoever starts the command again."""
    lock.truncate(0)
    lock.write(url.encode())
    lock.flush()


def check_alone(config: Config, name: str) -> None:
    """Raise `Refused` if this command runs in this `data_dir` already."""
    if is_locked(config.data_path / f"{name}.lock"):
        raise _already_running(config, name)


def _already_running(config: Config, name: str) -> Refused:
    url = (config.data_path / f"{name}.lock").read_text(encoding="utf-8", errors="replace")
    where, what = f": {url}/" if url else "", "workers are" if name == "workers" else f"a {name} is"
    return Refused(f"data_dir: {what} running already in {config.data_path}{where}")


def _web_port(host: str, config: Config) -> int:
    """The configured port. If nobody asked for it, and it is taken: any free port."""
    wanted = config.web.port
    try:
        check_port(host, wanted)
    except Refused:
        if wanted != Web().port or "SHOPFLOW_WEB_PORT" in os.environ:
            raise
        return any_port(host)
    return wanted
