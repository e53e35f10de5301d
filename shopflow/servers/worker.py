"""A worker as a child process of a command. It ends with the command, however that ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shopflow.config.settings import Config
from shopflow.errors import Refused

from . import keeper
from .locks import any_port, check_free, locked

_STOP_SECONDS = 20.0


def check_port(bind: str, port: int) -> None:
    """Raise `Refused` if another program listens at the worker's web port."""
    try:
        check_free(bind, port)
    except OSError as error:
        raise Refused(f"web.port: {bind}:{port}: {error.strerror}; choose another with --web-port") from error


class Worker:
    """A running worker process.

    Attributes:
        url: The base URL of its views.
        log: The file with its log.
    """

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self._process = process
        self.url = url
        self.log = log

    def check(self) -> None:
        """Raise `Refused` if the worker has ended."""
        if (status := self._process.poll()) is not None:
            raise Refused(f"the worker has ended with status {status}; its log: {self.log}")


@contextmanager
def child_worker(config: Config, name: str, variables: Mapping[str, str] | None = None) -> Iterator[Worker]:
    """Run a worker while the body runs, on the configured port if that is free, else on any free port.

    Arguments:
        name: The command's name, for its files in `data_dir`.
        variables: Environment variables, over those of this process.

    Raises:
        Refused: The same command runs in the same `data_dir` already.
    """
    host = reached_at(config.web.bind)
    port = _web_port(host, config)
    folder = config.data_path
    log = folder / f"{name}-worker.log"
    folder.mkdir(parents=True, exist_ok=True)
    keeper.cut(log, 0)
    with locked(folder / f"{name}.lock", wait=False) as lock:
        if lock is None:
            raise Refused(f"data_dir: a {name} is running already in {folder}")
        command = [sys.executable, "-m", "shopflow", "worker", "--web-port", str(port), "-l", "info"]
        variables = {**os.environ, **(variables or {})}
        process = keeper.start([command], log, lock, _STOP_SECONDS, stdout=subprocess.DEVNULL, env=variables)
        try:
            yield Worker(process, f"http://{f'[{host}]' if ':' in host else host}:{port}", log)
        finally:
            keeper.order_stop(process)
            process.wait()


def reached_at(bind: str) -> str:
    """The address under which this machine reaches a server that is bound to `bind`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - nothing is bound here


def _web_port(host: str, config: Config) -> int:
    with contextlib.suppress(Refused):
        check_port(host, config.web.port)
        return config.web.port
    return any_port(host)
