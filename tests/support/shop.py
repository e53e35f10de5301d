"""A shop of its own for each test: unique names, real processes, raw Kafka records, and its database."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import pymongo
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from shopflow.servers.servers import Addresses

__all__ = [
    "CONSOLE",
    "FAUST",
    "MODULE",
    "Origin",
    "Outcome",
    "Process",
    "Record",
    "Shop",
    "Worker",
    "becomes",
    "customer",
    "free_port",
    "own_servers",
    "product",
    "purchase",
    "shared",
    "until",
]

ROOT = Path(__file__).parents[2]
#: The three ways to call a command.
FAUST = (sys.executable, "-m", "faust", "-A", "shopflow")
MODULE = (sys.executable, "-m", "shopflow")
CONSOLE = (sys.executable, "-c", "from shopflow.__main__ import main; main()")  # the script that pip installs

#: Comes before a command. On Linux the kernel kills the command if the tests are killed, so that no worker is left.
ENDS_WITH_US = (
    [
        *(sys.executable, "-IS", "-c"),
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
        f"os.getppid() == {os.getpid()} or sys.exit(1); os.execvp(sys.argv[1], sys.argv[1:])",
    ]
    if sys.platform == "linux"
    else []
)

#: Long enough for a worker that starts beside other tests on two processors, which may take 20.
SECONDS = 60.0
PARTITIONS = 4
_POLL_SECONDS = 0.1
_LOG_TAIL = 6_000
_LARGEST = 32 << 20

T = TypeVar("T")
Json = dict[str, Any]


# -- waiting


def until(condition: Callable[[], T], what: str, seconds: float = SECONDS, poll: float = _POLL_SECONDS) -> T:
    """Poll until the condition is true; returns its result. `what` is the failure's text."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds: {what}"
        time.sleep(poll)
    return answer


def becomes(get: Callable[[], T], wanted: T, seconds: float = SECONDS) -> None:
    """Poll until `get()` equals `wanted`. A failure shows the difference."""
    deadline = time.monotonic() + seconds
    while (found := get()) != wanted and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    assert found == wanted


def free_port() -> int:
    """A free port outside of the range that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def own_servers(*kinds: str) -> dict[str, Any]:
    """Arguments of a `Shop` with servers of its own, `kafka` and `mongodb`; each comes back at its address."""
    ports = {kind: free_port() for kind in kinds}
    addresses = {"kafka": "127.0.0.1:{}", "mongodb": "mongodb://127.0.0.1:{}/?directConnection=true"}
    return {
        **{kind: addresses[kind].format(port) for kind, port in ports.items()},
        **{f"embedded_{kind}_port": port for kind, port in ports.items()},
    }


# -- events in the contract's JSON, as any Kafka client would write them


def product(product_id: str | None = None, **fields: Any) -> Json:
    """A product event; without an id it gets a unique one."""
    event = {"name": "Mleko", "type": "nabiał", "price": 399, "updated_at": "2024-01-01T08:00:00+01:00"}
    return {"product_id": product_id or f"p-{uuid.uuid4()}", **event, **fields}


def customer(customer_id: str | None = None, **fields: Any) -> Json:
    """A customer event; without an id it gets a unique one."""
    event = {
        "first_name": "Zażółć",
        "last_name": "Gęślą-Jaźń",
        "address": "ul. Świętokrzyska 1, 00-360 Warszawa",
        "registered_at": "2024-02-03T04:05:06+01:00",
    }
    return {"customer_id": customer_id or f"c-{uuid.uuid4()}", **event, **fields}


def purchase(customer_id: str | None = None, **fields: Any) -> Json:
    """A purchase event with a price; without ids it gets unique ones."""
    event = {"product_id": "mleko", "quantity": 2, "price": 399, "purchased_at": "2024-05-06T07:08:09.123+02:00"}
    ids = {"purchase_id": f"b-{uuid.uuid4()}", "customer_id": customer_id or f"c-{uuid.uuid4()}"}
    return {**ids, **event, **fields}


def encoded(event: Mapping[str, Any]) -> bytes:
    """The event as JSON."""
    return json.dumps(event, ensure_ascii=False).encode()


class Record(NamedTuple):
    """A Kafka record to send."""

    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


class Origin(NamedTuple):
    """The topic, partition and offset of a record."""

    topic: str
    partition: int
    offset: int


# -- processes


@dataclass(frozen=True)
class Outcome:
    """The exit status and the output of a command."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """The JSON on stdout. The command must have succeeded."""
        assert self.status == 0, f"status {self.status}\n{self.stdout}{self.stderr}"
        return json.loads(self.stdout)

    @property
    def errors(self) -> list[str]:
        """The lines of stderr."""
        return self.stderr.splitlines()


class Process:
    """A child process whose output goes to a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*ENDS_WITH_US, *command],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """The output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def status(self) -> int | None:
        """The exit status; None while the process runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait(self, seconds: float = SECONDS) -> int:
        """Wait for the end; returns the exit status."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {seconds:g} s:\n{self.output[-4000:]}") from None

    def send(self, number: int) -> None:
        """Send a signal to this process, not to its children."""
        self._process.send_signal(number)

    def stop(self, number: int = SIGTERM, seconds: float = SECONDS) -> int:
        """Send SIGTERM or another signal, and wait for the end; returns the exit status."""
        self.send(number)
        return self.wait(seconds)

    def kill(self) -> None:
        """Send SIGKILL. Does nothing if the process has ended."""
        self._process.kill()
        self._process.wait()


class Worker(Process):
    """A worker of a shop."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, *, port: int, host: str
    ) -> None:
        super().__init__([*command, "--web-port", str(port)], environment, folder, log)
        self.port = port
        self.host = host

    def get(self, path: str) -> tuple[int, Any]:
        """Status and answer of a path; 0 and the error if the worker does not answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error)
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def counts(self) -> Json:
        """The answer of `/counts/`; empty if the status is not 200."""
        status, answer = self.get("/counts/")
        return answer if status == 200 else {}

    def count(self, customer_id: str) -> tuple[int, Any]:
        """Status and answer of `/counts/{customer_id}/`."""
        return self.get(f"/counts/{quote(customer_id, safe='')}/")

    def partitions(self) -> list[int]:
        """The partitions that the worker owns; empty if it does not answer."""
        found: list[int] = self.counts().get("partitions", [])
        return found

    def serves(self) -> bool:
        """False in a rebalance and while its tables are recovered. Unlike `/counts/`, this path waits for neither."""
        return self.get("/counts/partitions/0/?limit=1")[0] != 503

    def ready(self, partitions: int = PARTITIONS, seconds: float = 60.0) -> Worker:
        """Wait until the worker owns this many partitions and has recovered their counts."""

        def is_ready() -> bool:
            assert self.status is None, f"the worker ended with status {self.status}:\n{self.output[-_LOG_TAIL:]}"
            return len(self.partitions()) == partitions

        until(is_ready, f"the worker owns {partitions} partitions", seconds)
        return self


def shared(workers: Iterable[Worker], partitions: int = PARTITIONS) -> bool:
    """True if each worker owns partitions, and each partition has one owner."""
    owned = [worker.partitions() for worker in workers]
    return all(owned) and sorted(number for each in owned for number in each) == list(range(partitions))


# -- the shop


class Shop:
    """A shop that shares nothing but the servers with others.

    Arguments:
        servers: The addresses of Kafka and MongoDB. None: embedded ones, which the commands start.
        folder: An empty working directory for its processes.
        kafka: Another Kafka (`host:port`), which may end before the test.
        mongodb: Another MongoDB, which may end before the test.
        settings: Further variables, in lower case and without `SHOPFLOW_`.
    """

    def __init__(
        self,
        servers: Addresses | None,
        folder: Path,
        *,
        kafka: str | None = None,
        mongodb: str | None = None,
        **settings: Any,
    ) -> None:
        self.name = f"it{uuid.uuid4().hex[:12]}"
        self.folder = folder
        self.data = folder / "data"
        self.servers = servers and Addresses(kafka or servers.kafka, mongodb or servers.mongodb)
        self.environment = _environment(self.name, self.servers, settings)
        self._lasting_kafka, self._lasting_mongodb = kafka is None, mongodb is None
        self._mongodb: pymongo.MongoClient[Json] | None = None
        self._processes: list[Process] = []

    # -- commands and workers

    def run(
        self,
        *arguments: str,
        program: Sequence[str] = FAUST,
        seconds: float = 60.0,
        **settings: Any,
    ) -> Outcome:
        """Run a command to its end. `settings` are further variables, as for the shop."""
        done = subprocess.run(
            [*program, *arguments],
            env={**self.environment, **_variables(settings)},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            encoding="utf-8",
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def run_all(self, commands: Iterable[Sequence[str]], **settings: Any) -> list[Outcome]:
        """Run independent commands, some at a time."""
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda arguments: self.run(*arguments, **settings), commands))

    def agrees(self) -> Json:
        """Run `verify`, which must find no difference; returns its report."""
        report: Json = self.run("verify", "--json").json()
        return report

    def spawn(self, *arguments: str, program: Sequence[str] = FAUST, **settings: Any) -> Process:
        """Start a command, and leave it running."""
        environment = {**self.environment, **_variables(settings)}
        process = Process([*program, *arguments], environment, self.folder, self._next_log(arguments[0]))
        self._processes.append(process)
        return process

    def start_worker(
        self,
        *,
        port: int | None = None,
        program: Sequence[str] = FAUST,
        host: str = "127.0.0.1",
        level: str = "info",
        **settings: Any,
    ) -> Worker:
        """Start a worker, which answers at `host`. With an earlier worker's port it has that worker's tables."""
        worker = Worker(
            [*program, "worker", "-l", level],
            {**self.environment, **_variables(settings)},
            self.folder,
            self._next_log("worker"),
            port=port or free_port(),
            host=host,
        )
        self._processes.append(worker)
        return worker

    def logs(self) -> Iterator[tuple[str, str]]:
        """The name and the last output of each process."""
        for process in self._processes:
            yield process.log.name, process.output[-_LOG_TAIL:]

    def leftovers(self) -> list[int]:
        """The ids of all running processes of this shop, whoever started them."""
        mark = f"SHOPFLOW_APP_ID={self.name}".encode()
        return [pid for pid in _all_pids() if mark in _read(f"/proc/{pid}/environ").split(b"\0")]

    def server_pid(self, name: str) -> int:
        """The process id of an embedded server, `kafka` or `mongodb`."""
        pid: int = json.loads((self.data / "servers.json").read_text())[name]["pid"]
        return pid

    def locked(self) -> list[str]:
        """The names of the locks in the data directory that a process holds."""
        held = []
        for path in self.data.glob("*.lock"):
            with path.open() as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        return held

    def close(self) -> None:
        """End all processes, and delete the shop's data from the servers. Fails if an unknown process is left."""
        if not self._lasting_mongodb and self._mongodb:
            self._mongodb.close()  # later it would wait for its server, which ends now
        for process in self._processes:
            process.kill()
        try:
            until(lambda: not self.leftovers(), f"processes of {self.name} are gone", 20)
        finally:
            for pid in self.leftovers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)
            if self.servers and self._lasting_kafka:
                _run(self._delete_topics())
            if self.servers and self._lasting_mongodb:
                self.db.client.drop_database(self.name)
                self.db.client.close()

    def _next_log(self, what: str) -> Path:
        return self.folder / f"{what}-{len(self._processes)}.log"

    # -- MongoDB

    @property
    def db(self) -> Any:
        """The shop's database as a synchronous pymongo one. Times are in UTC."""
        if self._mongodb is None:
            assert self.servers
            self._mongodb = pymongo.MongoClient(self.servers.mongodb, tz_aware=True)
        return self._mongodb[self.name]

    def stored(self, event: Mapping[str, Any]) -> Json | None:
        """The document of a purchase; None if there is none."""
        found: Json | None = self.db.purchases.find_one({"_id": event["purchase_id"]})
        return found

    # -- Kafka

    def topic(self, kind: str) -> str:
        """The full name of a topic."""
        return f"{self.name}.{kind}"

    @property
    def changelog(self) -> str:
        """The changelog topic of the counts."""
        return f"{self.name}-purchase_counts-changelog"

    def offer(self, *events: Json) -> list[Origin]:
        """Send products."""
        return self.send("products", *(Record(event["product_id"].encode(), encoded(event)) for event in events))

    def register(self, *events: Json) -> list[Origin]:
        """Send customers."""
        return self.send("customers", *(Record(event["customer_id"].encode(), encoded(event)) for event in events))

    def sell(self, *events: Json) -> list[Origin]:
        """Send purchases."""
        return self.send("purchases", *(Record(event["customer_id"].encode(), encoded(event)) for event in events))

    def send(self, kind: str, *records: Record) -> list[Origin]:
        """Send records with a plain producer; returns their origins, in the same order."""
        return _run(self._send(self.topic(kind), records))

    def send_to(self, topic: str, *records: Record) -> list[Origin]:
        """Send records to a topic by its full name."""
        return _run(self._send(topic, records))

    def read(self, kind: str) -> list[Any]:
        """All records of a topic that are not of an aborted transaction, by partition and offset."""
        return self.read_from(self.topic(kind))

    def read_from(self, topic: str) -> list[Any]:
        """All records of a topic by its full name."""
        return _run(self._read(topic))

    def sell_in_transaction(self, *events: Json, commit: bool) -> None:
        """Send purchases with a transactional producer, and commit or abort."""
        _run(self._sell_in_transaction(events, commit))

    def remove(self, kind: str, partition: int, before: int) -> None:
        """Remove the records before this offset, as retention does."""
        _run(self._remove(TopicPartition(self.topic(kind), partition), before))

    def create_topic(self, kind: str, partitions: int, **configs: str) -> None:
        """Create a topic as another program would. In names of configs, `_` stands for `.`."""
        wanted = {name.replace("_", "."): value for name, value in configs.items()}
        _run(self._create_topic(self.topic(kind), partitions, wanted))

    def ends(self) -> dict[str, int]:
        """The sum of the end offsets of each existing topic of the shop."""
        ends, _ = _run(self._offsets())
        sums: dict[str, int] = {}
        for tp, end in ends.items():
            sums[tp.topic] = sums.get(tp.topic, 0) + end
        return sums

    def lag(self) -> int:
        """The number of events that the group has not committed."""
        ends, committed = _run(self._offsets())
        return sum(
            end - max(committed.get(tp, 0), 0)
            for tp, end in ends.items()
            if tp.topic in {self.topic(kind) for kind in ("products", "customers", "purchases")}
        )

    def committed(self, kind: str) -> dict[int, int]:
        """The committed offset of each partition of a topic."""
        _, committed = _run(self._offsets())
        return {tp.partition: offset for tp, offset in committed.items() if tp.topic == self.topic(kind)}

    def drain(self, seconds: float = 60.0) -> None:
        """Wait until every event is processed and committed."""
        until(lambda: self.lag() == 0, "all events are processed", seconds)

    def describe_topics(self) -> dict[str, tuple[int, dict[str, str]]]:
        """The number of partitions and the configs of each topic of the shop."""
        return _run(self._describe_topics())

    async def _remove(self, tp: TopicPartition, before: int) -> None:
        async with self._admin() as admin:
            await admin.delete_records({tp: RecordsToDelete(before)})

    async def _send(self, topic: str, records: Sequence[Record]) -> list[Origin]:
        async with AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, acks="all", enable_idempotence=True, max_request_size=_LARGEST
        ) as producer:
            under_way = [await self._send_one(producer, topic, each) for each in records]
            return [Origin(topic, sent.partition, sent.offset) for sent in await asyncio.gather(*under_way)]

    @staticmethod
    async def _send_one(producer: AIOKafkaProducer, topic: str, each: Record) -> Any:
        if each.key is not None or each.value is not None:
            return await producer.send(topic, each.value, each.key, each.partition, headers=list(each.headers))
        batch = producer.create_batch()  # aiokafka's `send` refuses a record with neither key nor value
        batch.append(key=None, value=None, timestamp=None, headers=list(each.headers))
        return await producer.send_batch(batch, topic, partition=each.partition)

    async def _read(self, topic: str) -> list[Any]:
        async with self._consumer(isolation_level="read_committed") as consumer, self._admin() as admin:
            (described,) = await admin.describe_topics([topic])
            partitions = [TopicPartition(topic, number) for number in range(len(described["partitions"]))]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            ends, records = await consumer.end_offsets(partitions), []
            while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
                for run in (await consumer.getmany(timeout_ms=500)).values():
                    records += run
            return sorted(records, key=lambda record: (record.partition, record.offset))

    async def _offsets(self) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        async with self._consumer() as consumer, self._admin() as admin:
            names = [name for name in await admin.list_topics() if name.startswith(self.name)]
            partitions = [
                TopicPartition(topic["topic"], number)
                for topic in await admin.describe_topics(names)
                for number in range(len(topic["partitions"]))
            ]
            ends = await consumer.end_offsets(partitions)
            committed = await admin.list_consumer_group_offsets(self.name)
            return ends, {tp: found.offset for tp, found in committed.items()}

    async def _sell_in_transaction(self, events: Sequence[Json], commit: bool) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap, transactional_id=self.name) as producer:
            await producer.begin_transaction()
            for event in events:
                await producer.send(self.topic("purchases"), encoded(event), event["customer_id"].encode())
            await producer.flush()
            await (producer.commit_transaction() if commit else producer.abort_transaction())

    async def _create_topic(self, topic: str, partitions: int, configs: dict[str, str]) -> None:
        async with self._admin() as admin:
            await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs)])

    async def _describe_topics(self) -> dict[str, tuple[int, dict[str, str]]]:
        async with self._admin() as admin:
            names = [name for name in await admin.list_topics() if name.startswith(self.name)]
            sizes = {each["topic"]: len(each["partitions"]) for each in await admin.describe_topics(names)}
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
            configs = {
                resource[3]: {entry[0]: entry[1] for entry in resource[4]}
                for answer in await admin.describe_configs(resources)
                for resource in answer.resources
            }
            return {name: (sizes[name], configs[name]) for name in names}

    async def _delete_topics(self) -> None:
        async with self._admin() as admin:
            names = [name for name in await admin.list_topics() if name.startswith(self.name)]
            if names:
                await admin.delete_topics(names)

    @property
    def _bootstrap(self) -> list[str]:
        assert self.servers
        return self.servers.kafka.split(";")

    def _consumer(self, **options: Any) -> AIOKafkaConsumer:
        common = {"bootstrap_servers": self._bootstrap, "enable_auto_commit": False, "fetch_max_bytes": _LARGEST}
        return AIOKafkaConsumer(**common, **options)

    @contextlib.asynccontextmanager
    async def _admin(self) -> Any:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread: the main thread may already have a running loop, as Playwright's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _environment(name: str, servers: Addresses | None, settings: Mapping[str, Any]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SHOPFLOW_")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    addresses = {}
    if servers:
        broker = ";".join(f"kafka://{server}" for server in servers.kafka.split(";"))
        addresses = {"broker": broker, "mongodb_uri": servers.mongodb}
    wanted = {
        "app_id": name,
        "topics_prefix": f"{name}.",
        "mongodb_database": name,
        "web_port": free_port(),
        "batching_session_timeout_seconds": 6,  # Kafka's minimum, for a quick rebalance after a kill
        "batching_commit_interval_seconds": 0.2,
        **addresses,
        **settings,
    }
    return {**inherited, "PYTHONPATH": path, "PYTHONUTF8": "1", **_variables(wanted)}


def _variables(settings: Mapping[str, Any]) -> dict[str, str]:
    return {f"SHOPFLOW_{name.upper()}": str(value) for name, value in settings.items()}


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has ended, or is another user's
        return b""
