"""Shared by all benchmarks: servers, topics with a backlog, and contenders as processes, measured from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pymongo
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.partitioner import DefaultPartitioner

from shopflow.config.settings import EMBEDDED, Config, MongoDB
from shopflow.kafka.connection import quiet
from shopflow.servers.locks import any_port
from shopflow.servers.servers import Servers

__all__ = [
    "PARTITIONS",
    "Backlog",
    "Contender",
    "FailedError",
    "Load",
    "Measured",
    "Process",
    "Rig",
    "Run",
    "Timed",
    "Together",
    "any_port",
    "fill",
    "module",
    "opened",
    "partition_of",
    "sale",
    "until",
]

ROOT = Path(__file__).parents[1]
PARTITIONS = 4
PRODUCTS = 13
#: The indexes of shopflow. They are created before any contender starts.
INDEXES = ([("customer_id", 1), ("purchased_at", 1)], [("product_id", 1), ("purchased_at", 1)])
#: The write concern of all contenders: a stored document survives a crash.
WRITE_CONCERN = {"w": "majority", "journal": "true"}
FAST_MONGODB = "secantusd-rs"
_BATCH_BYTES = 256 << 10
_FIRST_DAY = datetime(2024, 3, 1, tzinfo=timezone.utc)
_SECONDS = 30 * 86_400
_A_SECOND = 5
_TICK_SECONDS = 0.02
_POLL_SECONDS = 0.2
START_SECONDS = 90.0
_STOP_SECONDS = 10.0
_REST_SECONDS = 3.0
_choose = DefaultPartitioner()
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """The kind of purchases in a backlog."""

    name: str
    customers: int
    """The number of customers, drawn at random for each purchase. 0: each purchase has a new one."""

    repeated: float = 0.0
    """The share of records that repeat one of the last 2,000 purchases."""

    partitions: int = PARTITIONS
    """The number of partitions of the backlog's topic."""

    scattered: bool = False
    """True: the purchases' times are random within 30 days. False: five purchases a second, in order."""


@dataclass(frozen=True)
class Backlog:
    """Purchases that wait in a topic."""

    prefix: str
    records: int
    purchases: int
    """The number of different purchases."""

    ends: dict[int, int]
    """Partition -> the offset after its last record."""

    last: list[str]
    """The last purchase of each partition."""


@dataclass(frozen=True)
class Contender:
    """A program that empties a topic of purchases.

    Arguments:
        command: The command that starts it; `{port}` is a free port.
        started: Matches the line of its output after which it consumes.
        share: The share of a load's purchases that it gets: less than 1 for a slow one.
        collection: The collection that must have a document for each purchase; None: it writes none.
        group: The consumer group; `{name}` is the application's name.
    """

    name: str
    command: Sequence[str]
    started: str = r"^CONSUMING"
    share: float = 1.0
    collection: str | None = "purchases"
    group: str = "{name}"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A number of records, and the time that they took."""

    records: int
    seconds: float
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU for each record."""
        return self.cpu_seconds / self.records * 1e6


@dataclass(frozen=True, kw_only=True)
class Measured(Timed):
    """One run of one contender; `seconds` from the start of consumption until everything is stored and committed."""

    contender: str
    load: str
    stored_seconds: float
    """From the start of consumption until the last document is stored; the commit may come later."""

    peak_mb: float
    start_seconds: float
    """From the start of the process to the start of consumption."""

    server_cpu_seconds: float


class FailedError(Exception):
    """A contender ended, took too long, or did not do its work."""


class Process:
    """A child process whose output goes to a file. It is measured by /proc."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """Raises:
        FailedError: It has ended.
        """
        if (status := self._process.poll()) is not None:
            raise FailedError(f"ended with status {status}:\n{self.tail()}")

    def said(self, pattern: str) -> bool:
        """True if a line of the output matches."""
        return re.search(pattern, self.log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None

    def tail(self) -> str:
        """The end of the output."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3_000:]

    def cpu_seconds(self) -> float:
        """Seconds of CPU, user and system, so far."""
        return cpu_seconds(self.pid)

    async def ended(self, seconds: float) -> None:
        """Wait until the process ends by itself.

        Raises:
            FailedError: It ended with another status than 0, or it took too long.
        """
        try:
            status = await asyncio.to_thread(self._process.wait, seconds)
        except subprocess.TimeoutExpired:
            raise FailedError(f"not within {seconds:g} seconds:\n{self.tail()}") from None
        if status:
            raise FailedError(f"ended with status {status}:\n{self.tail()}")

    def peak_mb(self) -> float:
        """The most memory that the process ever had, in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 / 1e6 if found else 0.0

    def stop(self) -> None:
        """Send SIGTERM, and after some time SIGKILL."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Together:
    """Several processes that are measured as one."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes

    def check(self) -> None:
        """Raises:
        FailedError: One of them has ended.
        """
        for process in self._processes:
            process.check()

    def said(self, pattern: str) -> bool:
        """True if a line of each output matches."""
        return all(process.said(pattern) for process in self._processes)

    def tail(self) -> str:
        """The ends of all outputs."""
        return "\n".join(process.tail() for process in self._processes)

    def cpu_seconds(self) -> float:
        """Seconds of CPU of all processes so far."""
        return sum(process.cpu_seconds() for process in self._processes)

    def peak_mb(self) -> float:
        """The sum of the most memory that each process ever had, in MB."""
        return sum(process.peak_mb() for process in self._processes)

    def stop(self) -> None:
        """Stop the processes, one after the other."""
        for process in self._processes:
            process.stop()


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU, user and system, of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


async def until(
    condition: Callable[[], bool | Awaitable[bool]],
    process: Process | Together,
    seconds: float,
    poll: float = _POLL_SECONDS,
) -> None:
    """Poll until the condition is true.

    Raises:
        FailedError: The process has ended, or it took too long.
    """
    deadline = time.monotonic() + seconds
    while not (await answer if isinstance(answer := condition(), Awaitable) else answer):
        process.check()
        if time.monotonic() > deadline:
            raise FailedError(f"not within {seconds:g} seconds:\n{process.tail()}")
        await asyncio.sleep(poll)


@dataclass(frozen=True)
class Run:
    """One run of one contender."""

    contender: Contender
    load: Load
    backlog: Backlog
    process: Process | Together
    name: str
    """The application's name, which is also its consumer group and its database."""

    seconds: float = 900.0
    """The time limit."""


class Rig:
    """The servers, and the operations of a benchmark on them.

    Arguments:
        kafka: `host:port`.
        mongodb: A URI.
        server_pids: The servers' processes that run on this machine.
    """

    def __init__(self, kafka: str, mongodb: str, server_pids: Sequence[int], folder: Path) -> None:
        self.kafka = kafka
        self.mongodb = mongodb
        self.folder = folder
        self.client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongodb)
        self._server_pids = server_pids
        self._backlogs: dict[tuple[str, int], Backlog] = {}
        self._runs = 0
        self.processes: list[Process] = []
        #: The port of the program that was started last.
        self.port = 0

    async def backlog(self, load: Load, records: int) -> Backlog:
        """A topic with this many records of a load. It is made once."""
        key = load.name, records
        if key not in self._backlogs:
            self._backlogs[key] = await self._fill(load, records)
        return self._backlogs[key]

    async def _fill(self, load: Load, records: int) -> Backlog:
        prefix = f"{load.name}.{records}."
        async with self.producer() as producer:
            return await self.fill(producer, load, records, prefix)

    async def fill(self, producer: Any, load: Load, records: int, prefix: str) -> Backlog:
        """Create the topic of purchases, and produce this many records of a load into it."""
        await self.create_topic(f"{prefix}purchases", load.partitions)
        last: dict[int, str] = {}
        purchases = 0

        def rows() -> Iterator[tuple[bytes, bytes]]:
            nonlocal purchases
            for sold in sale(load, records):
                purchases += not sold.repeated
                last[partition_of(sold.key, load.partitions)] = sold.purchase_id
                yield sold.key, sold.value

        ends = await fill(producer, f"{prefix}purchases", rows(), load.partitions)
        return Backlog(prefix, records, purchases, ends, list(last.values()))

    def producer(self, **options: Any) -> Any:
        """A producer of large batches, as an async context manager."""
        return AIOKafkaProducer(bootstrap_servers=self.kafka, max_batch_size=_BATCH_BYTES, **options)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """Kafka's admin client."""
        client = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await client.start()
        try:
            yield client
        finally:
            await client.close()

    async def produce(self, topic: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Produce keys and values into an empty topic of 4 partitions, in whole batches."""
        async with self.producer() as producer:
            await fill(producer, topic, rows, PARTITIONS)

    async def create_topic(self, name: str, partitions: int = PARTITIONS, **configs: str) -> None:
        """Create a topic. In names of configs, `_` stands for `.`."""
        wanted = {key.replace("_", "."): value for key, value in configs.items()}
        async with self.admin() as admin:
            await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=wanted)])

    def environment(self, name: str, prefix: str, folder: Path, partitions: int = PARTITIONS) -> dict[str, str]:
        """The environment variables with the addresses and names for a contender."""
        return {
            "SHOPFLOW_APP_ID": name,
            "SHOPFLOW_BROKER": f"kafka://{self.kafka}",
            "SHOPFLOW_MONGODB_URI": self.mongodb,
            "SHOPFLOW_MONGODB_DATABASE": name,
            "SHOPFLOW_TOPICS_PREFIX": prefix,
            "SHOPFLOW_TOPICS_PARTITIONS": str(partitions),
            "SHOPFLOW_DATA_DIR": str(folder / "data"),
        }

    async def measure(self, contender: Contender, load: Load, records: int, seconds: float = 900.0) -> Measured:
        """Let a contender empty the backlog, and check that it did.

        Raises:
            FailedError: It did not within this time.
        """
        backlog = await self.backlog(load, max(PARTITIONS, int(records * contender.share)))
        name = self.new_name(contender.name)
        self.create_indexes(name)
        await self.rest()
        launched = time.monotonic()
        process = self.start(contender, name, backlog.prefix, load.partitions)
        try:
            await until(lambda: process.said(contender.started), process, START_SECONDS, _TICK_SECONDS)
            start_seconds = time.monotonic() - launched
            return await self.observe(Run(contender, load, backlog, process, name, seconds), start_seconds)
        finally:
            process.stop()
            await self.forget(name)

    def new_name(self, what: str) -> str:
        """A name for an application that has nothing in Kafka and MongoDB yet."""
        self._runs += 1
        return f"run{self._runs}-{what}"

    def create_indexes(self, name: str) -> None:
        """Create shopflow's indexes in the database of this application."""
        for fields in INDEXES:
            self.client[name].purchases.create_index(fields)

    async def rest(self) -> None:
        """Wait until the servers have finished the work of the last run."""
        await asyncio.sleep(_REST_SECONDS)

    def start(self, contender: Contender, name: str, prefix: str, partitions: int = PARTITIONS) -> Process:
        """Start a contender under this name. If it ran before, it gets the same folder."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        self.port = any_port()
        command = [part.format(port=self.port, name=name) for part in contender.command]
        environment = {**self.environment(name, prefix, folder, partitions), **contender.environment}
        process = Process(command, folder, folder / f"log-{self.port}", environment)
        self.processes.append(process)
        return process

    async def observe(self, run: Run, start_seconds: float = 0.0) -> Measured:
        """Measure from now on until everything is stored and committed.

        Raises:
            FailedError: It took too long, or there are too few or too many documents.
        """
        began, cpu, servers = time.monotonic(), run.process.cpu_seconds(), self._servers_cpu()
        await self._stored(run)
        stored = time.monotonic()
        group = run.contender.group.format(name=run.name)
        await self.committed(group, run.backlog, run.process, run.seconds)
        ended = time.monotonic()
        measured = Measured(
            contender=run.contender.name,
            load=run.load.name,
            records=run.backlog.records,
            seconds=ended - began,
            stored_seconds=stored - began,
            cpu_seconds=run.process.cpu_seconds() - cpu,
            peak_mb=run.process.peak_mb(),
            start_seconds=start_seconds,
            server_cpu_seconds=self._servers_cpu() - servers,
        )
        if collection := run.contender.collection:
            found = self.client[run.name][collection].count_documents({})
            if found != run.backlog.purchases:
                raise FailedError(f"{found} documents instead of {run.backlog.purchases}")
        return measured

    def _servers_cpu(self) -> float:
        return sum(cpu_seconds(pid) for pid in self._server_pids)

    async def _stored(self, run: Run) -> None:
        """Wait until the last purchase of each partition is stored. A query for so few documents disturbs nobody."""
        if not run.contender.collection:
            return
        collection, last = self.client[run.name][run.contender.collection], run.backlog.last
        condition = {"_id": {"$in": last}}
        await until(lambda: collection.count_documents(condition) == len(last), run.process, run.seconds)

    async def committed(
        self, group: str, backlog: Backlog, process: Process | Together, seconds: float = 900.0
    ) -> None:
        """Wait until the group has committed the whole backlog.

        Raises:
            FailedError: The process has ended, or it took too long.
        """
        topic = f"{backlog.prefix}purchases"

        async def is_done() -> bool:
            try:
                committed = await admin.list_consumer_group_offsets(group)
            except GroupCoordinatorNotAvailableError:  # the group has not committed anything yet
                return False
            done = {place.partition: found.offset for place, found in committed.items() if place.topic == topic}
            return all(done.get(partition, 0) >= end for partition, end in backlog.ends.items())

        async with self.admin() as admin:
            await until(is_done, process, seconds)

    async def forget(self, name: str) -> None:
        """Delete the folder, the topics and the database of a run."""
        shutil.rmtree(self.folder / name)
        self.client.drop_database(name)
        async with self.admin() as admin:
            if topics := [topic for topic in await admin.list_topics() if name in topic]:
                await admin.delete_topics(topics)


async def fill(producer: Any, topic: str, rows: Iterable[tuple[bytes, bytes]], partitions: int) -> dict[int, int]:
    """Produce keys and values into an empty topic, in whole batches; returns the partitions' ends."""
    batches: dict[int, Any] = {}
    ends = dict.fromkeys(range(partitions), 0)
    for key, value in rows:
        partition = partition_of(key, partitions)
        for _ in range(2):  # the second time into a new batch
            if partition not in batches:
                batches[partition] = producer.create_batch()
            if batches[partition].append(key=key, value=value, timestamp=None) is not None:
                break
            await producer.send_batch(batches.pop(partition), topic, partition=partition)
        ends[partition] += 1
    for partition, batch in batches.items():
        await producer.send_batch(batch, topic, partition=partition)
    return ends


def partition_of(key: bytes, partitions: int = PARTITIONS) -> int:
    """The partition that Java's producer chooses."""
    numbers = list(range(partitions))
    partition: int = _choose(key, numbers, numbers)
    return partition


class Sold(NamedTuple):
    """A record of the backlog."""

    purchase_id: str
    key: bytes
    value: bytes
    repeated: bool = False


def _at(seconds: float) -> str:
    return (_FIRST_DAY + timedelta(seconds=seconds)).isoformat()


def sale(load: Load, records: int) -> Iterator[Sold]:
    """The records of a load: the same ones at each call."""
    rng = random.Random(load.name)
    scattered = [_at(rng.randrange(_SECONDS)) for _ in range(10_000)] if load.scattered else []
    recent: deque[Sold] = deque(maxlen=2_000)
    for number in range(records):
        if recent and rng.random() < load.repeated:
            yield rng.choice(recent)._replace(repeated=True)
            continue
        customer = f"customer-{rng.randrange(load.customers) if load.customers else number}"
        purchase_id = f"purchase-{number:08}-{rng.getrandbits(32):08x}"
        event = {
            "purchase_id": purchase_id,
            "customer_id": customer,
            "product_id": f"product-{rng.randrange(PRODUCTS)}",
            "quantity": rng.randint(1, 5),
            "price": rng.randrange(100, 5_000),
            "purchased_at": rng.choice(scattered) if scattered else _at(number / _A_SECOND),
        }
        recent.append(Sold(purchase_id, customer.encode(), msgspec.json.encode(event)))
        yield recent[-1]


@contextmanager
def opened(mongodb: str | None, folder: Path) -> Iterator[Rig]:
    """Kafka and MongoDB. MongoDB is the one of the URI, else the fast one if it is installed, else the embedded one."""
    quiet()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all servers are stopped
    with contextlib.ExitStack() as stack:
        pids: list[int] = []
        uri = mongodb or EMBEDDED
        if not mongodb and (fast := shutil.which(FAST_MONGODB)):
            port = any_port()
            options = ["--port", str(port), "--storage-path", str(folder / "mongodb"), "--standalone"]
            server = Process([fast, *options, "--cache-size", "2G"], folder, folder / "mongodb.log", {})
            stack.callback(server.stop)
            uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
            pids.append(server.pid)
        servers = stack.enter_context(Servers(Config(data_dir=str(folder), mongodb=MongoDB(uri=uri))))
        addresses = servers.start()
        records = msgspec.json.decode((folder / "servers.json").read_bytes())
        pids += [record["pid"] for record in records.values()]
        rig = Rig(addresses.kafka, _with_options(addresses.mongodb, WRITE_CONCERN), pids, folder)
        try:
            yield rig
        finally:
            for process in rig.processes:
                process.stop()


def _with_options(uri: str, options: Mapping[str, str]) -> str:
    """The URI with these options, unless it has them."""
    before, _, query = uri.partition("?")
    given = dict(part.partition("=")[::2] for part in query.split("&") if part)
    base = before if before.count("/") > 2 else f"{before}/"
    return f"{base}?" + "&".join(f"{name}={value}" for name, value in {**options, **given}.items())


def module(name: str) -> tuple[str, ...]:
    """The command that runs a module of the benchmarks."""
    return (sys.executable, "-m", f"benchmarks.{name}")
