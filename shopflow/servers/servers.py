"""The embedded Kafka and MongoDB, as child processes: for users who have only Python.

Each server is the child of a keeper (`keeper.py`), which stops the server when the process that started it ends,
however it ends. The keeper and its server hold a lock (`kafka.lock`, `mongodb.lock` in `data_dir`) while they live.
`servers.json` has their addresses. An address is used only while the lock is held and the server there proves to be
ours, so files of an earlier run do no harm.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shopflow.config.settings import Config
from shopflow.errors import Refused

from .fetch import Loading
from .kafka import KafkaServer
from .locks import POLL_SECONDS, locked
from .mongodb import MongoDBServer
from .server import Server, ending

_START_HINT = "start it with `faust -A shopflow servers`"
_WAITING = "Waiting for another process that is starting the servers ..."


@dataclass(frozen=True)
class Addresses:
    """The servers' addresses, embedded or not."""

    kafka: str
    """`host:port`, several separated by `;`."""

    mongodb: str = field(repr=False)
    """A MongoDB URI. It may have a password in it."""


def locate(config: Config, *, kafka: bool = True, mongodb: bool = True) -> Addresses:
    """Find the servers, without starting any.

    Arguments:
        kafka, mongodb: False: the server isn't needed. If it is embedded, its address is left empty.

    Raises:
        Refused: A needed embedded server isn't running; the message names the command that starts it.
    """
    found = {"kafka": "", "mongodb": "", **_configured(config)}
    needed = {"kafka": kafka, "mongodb": mongodb}
    for server in _embedded(config):
        if needed[server.key]:
            try:
                record = server.find()
            except OSError as error:
                raise _refused(error) from error
            if record is None:
                raise Refused(f"{server.field}: the embedded {server.name} isn't running; {_START_HINT} (or a worker)")
            found[server.key] = record["address"]
    return Addresses(**found)


class Servers:
    """Starts embedded servers, and stops those that it started.

    Arguments:
        say: Gets lines of progress for the user.
        loading: Shows how far a download is; None: lines.
    """

    def __init__(self, config: Config, say: Callable[[str], None] = print, loading: Loading | None = None) -> None:
        self._config = config
        self._say = say
        self._loading = loading
        self._launched: list[Server] = []
        self._away: Server | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """The keys, `kafka` and `mongodb`, of the servers that this process started."""
        return tuple(server.key for server in self._launched)

    @property
    def started(self) -> tuple[str, ...]:
        """The names of the servers that `start` started and `stop` will stop."""
        return tuple(server.name for server in self._launched)

    def start(self) -> Addresses:
        """Start the embedded servers that don't run yet for this `data_dir`, and wait until they answer.

        If several processes start at once, one starts the servers, and the others wait and use them. After an error or
        an interruption, the servers that this call started are stopped.

        Raises:
            Refused: A server can't be started; the message names the field, the port, or the log with its last error.
        """
        addresses, servers = _configured(self._config), _embedded(self._config)
        try:
            for server in servers:
                server.check_extra()
            if servers:
                self._config.data_path.mkdir(parents=True, exist_ok=True)
                with locked(self._config.data_path / "servers.lock", waiting=lambda: self._say(_WAITING)):
                    addresses.update(self._start_missing(servers))
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise _refused(error) from error
            raise
        return Addresses(**addresses)

    def failure(self) -> str | None:
        """A line about a server that this process started and that has died; None if there is none."""
        for server in self._launched:
            status = server.exit_status()
            if status is not None and server is not self._away:
                return f"{server.name} has died, {ending(status)}; its log: {server.log}"
        return None

    def outage(self, key: str, seconds: float, ending: threading.Event) -> None:
        """Stop a server that this process started, and start it again later, at the same address. For demonstrations.

        Arguments:
            ending: When it is set, the server is left as it is: it is to be stopped anyway.

        Raises:
            Refused: Another process started it, or it does not start again.
        """
        server = next((each for each in self._launched if each.key == key), None)
        if server is None:
            raise Refused(f"this process did not start {key}, and does not stop it")
        with locked(self._config.data_path / "servers.lock"):  # nobody else starts one meanwhile
            self._away = server
            server.await_stop()
            if ending.wait(seconds):
                return
            server.launch(self._say)
            while not server.is_up(self._say):
                time.sleep(POLL_SECONDS)
            self._away = None

    def stop(self) -> None:
        """Stop the servers that `start` started. It takes at most 15 seconds; the second call does nothing."""
        launched, self._launched = self._launched, []
        for server in launched:
            server.order_stop()
        for server in launched:
            server.await_stop()
        if launched:
            with contextlib.suppress(OSError), locked(self._config.data_path / "servers.lock", wait=False) as ours:
                if ours:  # else another process is starting servers, and removes old records itself
                    for server in launched:
                        server.forget()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _start_missing(self, servers: list[Server]) -> dict[str, str]:
        addresses, missing = {}, []
        for server in servers:
            record = server.running_record()
            if record is None:
                missing.append(server)
            else:
                addresses[server.key] = record["address"]
                self._say(f"{server.title} is running: {record['address']}")
        for server in missing:
            server.loading = self._loading
            server.choose_port()  # before any server is started: most errors are found here
        for server in missing:
            for dead in [each for each in self._launched if each.key == server.key]:
                self._launched.remove(dead)
                dead.await_stop()
            self._launched.append(server)
            server.launch(self._say)
        while missing:
            for server in [each for each in missing if each.is_up(self._say)]:
                missing.remove(server)
                addresses[server.key] = server.address
                self._say(f"{server.title} is up: {server.address}")
            time.sleep(POLL_SECONDS if missing else 0)
        return addresses


def _refused(error: OSError) -> Exception:
    """A `Refused` for an error with a file; other errors unchanged."""
    return error if error.filename is None else Refused(f"data_dir: {error.filename}: {error.strerror}")


def _configured(config: Config) -> dict[str, str]:
    """The addresses of the servers that are not embedded."""
    found = {}
    if not config.embeds_kafka:
        found["kafka"] = ";".join(part.removeprefix("kafka://") for part in config.broker.split(";"))
    if not config.embeds_mongodb:
        found["mongodb"] = config.mongodb.uri
    return found


def _embedded(config: Config) -> list[Server]:
    """The embedded servers. MongoDB comes first: it starts while Kafka is still being fetched or formatted."""
    mongodb = [MongoDBServer(config)] if config.embeds_mongodb else []
    return [*mongodb, *([KafkaServer(config)] if config.embeds_kafka else [])]
