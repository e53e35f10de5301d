"""A Kafka and a MongoDB for the first minutes: child processes, for users who have only Python.

Each server is the child of a keeper (`keeper.py`), which stops it when the process that started it ends, however it
ends. The keeper and its server hold a lock (`kafka.lock`, `mongodb.lock` under `data_dir`) for as long as they live;
`servers.json` says where they listen. An address is believed only while the lock is held and the server that answers
there proves to be ours, so whatever an earlier run left behind misleads nobody.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shopflow.config.settings import Config
from shopflow.errors import Refused

from .kafka import KafkaServer
from .locks import POLL_SECONDS, locked
from .mongodb import MongoDBServer
from .server import Server, ending

_START_HINT = "start it with `faust -A shopflow servers`"
_WAITING = "Waiting for another process that is starting the servers ..."


@dataclass(frozen=True)
class Addresses:
    """Where the servers are, embedded or not."""

    kafka: str
    """`host:port`, several separated by `;`."""

    mongodb: str = field(repr=False)
    """A MongoDB URI: it may have a password in it."""


def locate(config: Config, *, kafka: bool = True, mongodb: bool = True) -> Addresses:
    """Find the servers.

    Arguments:
        kafka, mongodb: Is it needed? If not, its address is left empty when it is embedded.

    Raises:
        Refused: An embedded server isn't running; the message says what to start.
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
    """The embedded servers that this process starts, and stops.

    Arguments:
        config: Which servers are `embedded`, their ports, and the folder of their data.
        say: Gets a line for people, now and then: what is fetched, what is up.
    """

    def __init__(self, config: Config, say: Callable[[str], None] = print) -> None:
        self._config = config
        self._say = say
        self._launched: list[Server] = []

    @property
    def started(self) -> tuple[str, ...]:
        """The names of those that `start` started and `stop` will stop."""
        return tuple(server.name for server in self._launched)

    def start(self) -> Addresses:
        """Start the embedded servers that don't run yet for this `data_dir`, and wait until they answer.

        Of several processes that start at once, one does it, the others wait for it and use its servers. When this
        fails or is interrupted, everything that it started is stopped.

        Raises:
            Refused: A server can't be had; the message names the field, the port, or the log and what it says.
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
        """One line if a server that we started has died, else None."""
        for server in self._launched:
            status = server.exit_status()
            if status is not None:
                return f"{server.name} has died, {ending(status)}; its log: {server.log}"
        return None

    def stop(self) -> None:
        """Stop what `start` started, and only that. Takes 15 seconds at most; does nothing the second time."""
        launched, self._launched = self._launched, []
        for server in launched:
            server.order_stop()
        for server in launched:
            server.await_stop()
        if launched:
            with contextlib.suppress(OSError), locked(self._config.data_path / "servers.lock", wait=False) as ours:
                if ours:  # else someone is starting servers, and clears the file itself
                    for server in launched:
                        server.forget()

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _start_missing(self, servers: list[Server]) -> dict[str, str]:
        addresses, missing = {}, []
        for server in servers:
            record = server.settle()
            if record is None:
                missing.append(server)
            else:
                addresses[server.key] = record["address"]
                self._say(f"{server.title} is running: {record['address']}")
        for server in missing:
            server.choose_port()  # before any is started: most refusals are found here
        for server in missing:
            for dead in [each for each in self._launched if each.key == server.key]:
                self._launched.remove(dead)
                dead.await_stop()
            self._launched.append(server)
            server.launch(self._say)
        while missing:
            for server in [each for each in missing if each.came_up(self._say)]:
                missing.remove(server)
                addresses[server.key] = server.address
                self._say(f"{server.title} is up: {server.address}")
            time.sleep(POLL_SECONDS if missing else 0)
        return addresses


def _refused(error: OSError) -> Exception:
    """What is said when a file of ours can't be read or written; other errors stay what they are."""
    return error if error.filename is None else Refused(f"data_dir: {error.filename}: {error.strerror}")


def _configured(config: Config) -> dict[str, str]:
    """The addresses of the servers that aren't ours to start."""
    found = {}
    if not config.embeds_kafka:
        found["kafka"] = ";".join(part.removeprefix("kafka://") for part in config.broker.split(";"))
    if not config.embeds_mongodb:
        found["mongodb"] = config.mongodb.uri
    return found


def _embedded(config: Config) -> list[Server]:
    """Those that are ours to start; MongoDB first: it starts while Kafka is still being fetched or formatted."""
    mongodb = [MongoDBServer(config)] if config.embeds_mongodb else []
    return [*mongodb, *([KafkaServer(config)] if config.embeds_kafka else [])]
