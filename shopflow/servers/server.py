"""One embedded server of one `data_dir`: finds it if it runs, or starts it through a keeper."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from shopflow.config.settings import Config
from shopflow.errors import Refused

from . import keeper
from .fetch import Loading
from .locks import POLL_SECONDS, PROBE_SECONDS, choose_port, is_locked, locked

STOP_SECONDS = 10.0
_MOST_LAUNCHES = 3


class Server(ABC):
    """An embedded server: the base class of `KafkaServer` and `MongoDBServer`."""

    key: str  #: the name of its files, and the prefix of its settings
    name: str
    field: str  #: the setting that has the value `embedded`
    default_port: int
    modules: tuple[str, ...]  #: installed by `shopflow[embedded]`
    loading: Loading | None = None  #: shows how far the download of its program is
    _keeper_output: IO[bytes]  #: has the server's process id

    def __init__(self, config: Config) -> None:
        self.config = config
        self.port = 0
        self.folder = config.data_path / self.key
        self.log = config.data_path / f"{self.key}.log"
        self.lock = config.data_path / f"{self.key}.lock"
        self._records = config.data_path / "servers.json"
        self._keeper: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None
        self._log_start = 0
        self._deadline = 0.0
        self._launches = 0

    # -- for the subclasses

    @property
    @abstractmethod
    def title(self) -> str:
        """Name and version."""

    @property
    @abstractmethod
    def address(self) -> str:
        """The address for clients. The port must be chosen before."""

    @abstractmethod
    def commands(self, say: Callable[[str], None]) -> list[list[str]]:
        """Prepare `folder`, and return the commands to run in it; the last one is the server."""

    @abstractmethod
    def answers(self, port: int, pid: int | None) -> bool:
        """True if this server, not another program, answers at the port."""

    # -- finding

    def find(self) -> dict[str, Any] | None:
        """The record in `servers.json`; None if the server doesn't run or doesn't answer."""
        if not is_locked(self.lock):
            return None
        record = self._read().get(self.key)
        return record if record and self.answers(record["port"], record["pid"]) else None

    def running_record(self) -> dict[str, Any] | None:
        """The running server's record; None if no server runs. Hold the start lock.

        A server that holds its lock but doesn't answer is usually stopping with its starter: wait for its end.

        Raises:
            Refused: It still runs after 12 seconds, and doesn't answer.
        """
        deadline = time.monotonic() + STOP_SECONDS + PROBE_SECONDS
        while is_locked(self.lock):
            record = self.find()
            if record is not None:
                return record
            if time.monotonic() > deadline:
                holder = self._read().get(self.key, {})
                raise Refused(
                    f"data_dir: {self.name} of {self.config.data_path} runs (process {holder.get('pid', 'unknown')}), "
                    f"but doesn't answer; end it first. Its log: {self.log}"
                )
            time.sleep(POLL_SECONDS)
        self.forget()  # before a new server holds the lock, so that an old record never passes for the new one
        return None

    def forget(self) -> None:
        """Remove the record from `servers.json`. Hold the start lock."""
        records = self._read()
        if records.pop(self.key, None) is not None:
            self._write(records)

    def _read(self) -> dict[str, Any]:
        try:
            records = json.loads(self._records.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return records if isinstance(records, dict) else {}

    def _write(self, records: dict[str, Any]) -> None:
        new = self._records.with_name("servers.json.new")
        new.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        new.replace(self._records)

    # -- starting

    def check_extra(self) -> None:
        """Raise `Refused` if the extra `shopflow[embedded]` is not installed."""
        if not all(map(importlib.util.find_spec, self.modules)):
            python = " and Python 3.10 to 3.13" if sys.version_info >= (3, 14) else ""
            raise Refused(
                f"{self.field}: the embedded {self.name} needs the extra{python}: pip install 'shopflow[embedded]'"
            )

    def choose_port(self) -> None:
        """Set the port by the rules of `locks.choose_port`."""
        setting = f"{self.key}_port"
        self.port = choose_port(f"embedded.{setting}", getattr(self.config.embedded, setting), self.default_port)

    def launch(self, say: Callable[[str], None]) -> None:
        """Start the server through a keeper, without waiting for its first answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        commands = self.commands(say)
        keeper.cut(self.log)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._launches += 1
        self._pid = None
        with self.log.open("ab") as log, locked(self.lock) as lock:
            assert lock is not None  # noqa: S101 - waited for
            self._keeper = keeper.start(
                commands,
                self.log,
                lock,
                STOP_SECONDS,
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C.UTF-8"},  # else Java can't open a folder with ł in its name
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._keeper.stdout is not None  # noqa: S101 - a pipe
        self._keeper_output = self._keeper.stdout
        os.set_blocking(self._keeper_output.fileno(), False)
        self._deadline = time.monotonic() + self.config.embedded.start_seconds

    def is_up(self, say: Callable[[str], None]) -> bool:
        """True once the server answers; its address is in `servers.json` then. If its port is taken, start it again.

        Raises:
            Refused: The server died, or didn't answer in time.
        """
        if self._pid is None:
            self._pid = int(self._keeper_output.read() or 0) or None
        if self.exit_status() is not None:
            return self._died_early(say)
        if self._pid is not None and self.answers(self.port, self._pid):
            record = {"address": self.address, "port": self.port, "pid": self._pid, "server": self.title}
            self._write({**self._read(), self.key: record})
            return True
        if time.monotonic() > self._deadline:
            seconds = f"{self.config.embedded.start_seconds:g}"
            raise Refused(
                f"embedded.start_seconds: {self.name} doesn't answer after {seconds} seconds{self._last_words()}"
            )
        return False

    def _died_early(self, say: Callable[[str], None]) -> bool:
        words = self._last_words()
        if "already in use" in words and self._launches < _MOST_LAUNCHES:
            self.await_stop()
            self.choose_port()  # another program took the port after it was found free
            self.launch(say)
            return False
        raise Refused(f"{self.name} died while starting, {ending(self.exit_status() or 0)}{words}")

    def _last_words(self) -> str:
        words = _last_words(self.log, self._log_start)
        return f": {words} (log: {self.log})" if words else f"; its log: {self.log}"

    # -- stopping

    def exit_status(self) -> int | None:
        """The server's exit status; None while it runs. Negative: the keeper was killed by that signal."""
        return None if self._keeper is None else self._keeper.poll()

    def order_stop(self) -> None:
        """Order the keeper to stop the server, without waiting."""
        if self._keeper is not None:
            keeper.order_stop(self._keeper)

    def await_stop(self) -> None:
        """Stop the keeper and its server, and wait for the end of both."""
        if self._keeper is None:
            return
        self.order_stop()
        try:
            self._keeper.wait(STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # on Linux the server is killed with it
            self._keeper.wait()
        self._keeper_output.close()


def ending(status: int) -> str:
    """Text for an exit status: the signal's name, or the number."""
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}" if number > 0 else f"exit status {status}"
    return f"exit status {status}"


def _last_words(log: Path, start: int = 0) -> str:
    """The line of the log, from byte `start` on, that most likely has the reason of a server's death; "" if empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - 65536))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not re.match(r"at \S+\(|\.\.\. \d+ (more|common)|File \"|\^+$", line)]
    for telling in (r"^(Caused by: |Exception in thread .*)?[\w.$]*(Exception|Error): ", r"\b(ERROR|FATAL)\b|^Error"):
        matching = [line for line in lines if re.search(telling, line)]
        if matching:
            return matching[-1].removeprefix("Caused by: ")[:300]
    return lines[-1][:300] if lines else ""
