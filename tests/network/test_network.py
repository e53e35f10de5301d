"""The network breaks, or brokers of a Kafka with three copies go away, amid 20,000 purchases: nothing is lost."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from shopflow.errors import Unavailable
from shopflow.kafka import reading
from shopflow.kafka.security import Bootstrap
from shopflow.servers.servers import Addresses
from tests.conftest import opened_shop
from tests.faults import oracle, schedule
from tests.faults.crew import Crew
from tests.faults.oracle import PARTITIONS, Sale
from tests.support.shop import FAUST, Shop, Worker, free_port, until

from .hosts import DROP, LOSE, RESET, Host, network
from .servers import Address, Broker, start_kafka, start_mongodb, wait_for_brokers

pytestmark = pytest.mark.servers

SIZE = 20_000
#: The workers' session timeout is 6 s: some lose their partitions, some don't.
FAULT_SECONDS = (2.0, 14.0)
NETWORK_ACTIONS = 9
BROKER_ACTIONS = 5
CUT_SECONDS, BACK_SECONDS = 40.0, 8.0


class NetworkCrew(Crew):
    """A crew whose workers are on hosts of their own, unless it has no hosts."""

    hosts: Sequence[Host] = ()

    def start(self, like: Worker | None = None, **settings: Any) -> Worker:
        """Start a worker on the first host that has none."""
        if not self.hosts:
            return super().start(like, **settings)
        host = next(host for host in self.hosts if host.address not in {worker.host for worker in self.workers})
        worker = self.shop.start_worker(
            host=host.address,
            program=host.inside(FAUST),
            port=like.port if like else None,
            web_bind="0.0.0.0",  # noqa: S104 - nobody else is on this network
            web_host=host.address,
            **settings,
        )
        self.workers.append(worker)
        return worker


@contextmanager
def opened_crew(
    folder: Path, rng: random.Random, kafka: Sequence[Address], mongodb: Address, **settings: object
) -> Iterator[NetworkCrew]:
    """A shop for servers at these addresses, with a sale and without a worker."""
    addresses = Addresses(
        ";".join(f"{host}:{port}" for host, port in kafka), "mongodb://{}:{}/?directConnection=true".format(*mongodb)
    )
    shop = Shop(
        addresses,
        folder,
        kafka=addresses.kafka,
        mongodb=addresses.mongodb,
        topics_partitions=PARTITIONS,
        batching_max_records=200,  # the smaller the batches, the more often one is under way when something breaks
        promotions=json.dumps(oracle.PROMOTIONS),
        **settings,
    )
    with contextmanager(opened_shop)(shop):
        yield NetworkCrew(shop, Sale(rng, SIZE), rng)


def prepare(crew: Crew) -> None:
    """Create the topics, and put the sale's products into MongoDB."""
    done = crew.shop.run("seed-products")
    assert done.status == 0, done.stderr
    oracle.offer(crew.shop, crew.sale)


def test_a_network_that_breaks(rng: random.Random, told: list[Crew], tmp_path: Path) -> None:
    """Packets between Kafka, MongoDB and two workers are lost, in one direction or both, or connections are reset."""
    with network("kafka", "mongodb", "worker-a", "worker-b") as (kafka, mongodb, *workers):
        at_kafka, at_mongodb = (kafka.address, free_port()), (mongodb.address, free_port())
        with opened_crew(tmp_path, rng, [at_kafka], at_mongodb) as crew:
            told.append(crew)
            crew.hosts = workers
            start_kafka(crew.shop, [at_kafka], kafka.inside)
            start_mongodb(crew.shop, at_mongodb, mongodb.inside)
            prepare(crew)
            schedule.run(crew, NETWORK_ACTIONS, _breaks(crew, kafka, mongodb))
            crew.check()


def _breaks(crew: NetworkCrew, kafka: Host, mongodb: Host) -> list[Callable[[], None]]:
    """The faults of the network."""

    def action(
        what: str, fault: Callable[[Host], AbstractContextManager[None]], most: float = 1.0
    ) -> Callable[[], None]:
        def happens() -> None:
            host = crew.rng.choice(crew.hosts)
            crew.done[what] += 1
            with fault(host):
                time.sleep(most * crew.rng.uniform(*FAULT_SECONDS))

        return happens

    return [
        action("unplugged a worker", lambda host: host.unplugged()),
        action("unplugged Kafka", lambda _: kafka.unplugged()),
        action("unplugged MongoDB", lambda _: mongodb.unplugged()),
        action("cut a worker from Kafka", lambda host: host.filtered(kafka, DROP)),
        action("lost Kafka's packets to a worker", lambda host: host.filtered(kafka, DROP, "in")),
        action("lost a worker's packets to Kafka", lambda host: host.filtered(kafka, DROP, "out")),
        action("cut a worker from MongoDB", lambda host: host.filtered(mongodb, DROP)),
        action("lost a fifth of all packets to and from Kafka", lambda host: host.filtered(kafka, LOSE)),
        action("reset a worker's connections to Kafka", lambda host: host.filtered(kafka, RESET), 0.3),
    ]


@pytest.mark.parametrize("way", ["in out", "in"])
def test_a_worker_is_back_soon_after_a_long_cut(way: str, rng: random.Random, told: list[Crew], tmp_path: Path) -> None:
    """Requests that the cut lost, and attempts to connect in it, don't hold the worker up. It says when it is back."""
    with network("kafka", "mongodb", "worker") as (kafka, mongodb, *workers):
        at_kafka, at_mongodb = (kafka.address, free_port()), (mongodb.address, free_port())
        with opened_crew(tmp_path, rng, [at_kafka], at_mongodb, batching_session_timeout_seconds=10) as crew:
            crew.hosts = workers
            start_kafka(crew.shop, [at_kafka], kafka.inside)
            start_mongodb(crew.shop, at_mongodb, mongodb.inside)
            prepare(crew)
            worker = crew.start().ready(PARTITIONS)
            until(lambda: worker.get("/health/ready")[0] == 200, "it is ready", 60)
            with workers[0].filtered(kafka, DROP, way):
                time.sleep(CUT_SECONDS)
                assert "Kafka is back" not in worker.output
            began = time.monotonic()
            until(lambda: worker.get("/health/ready")[0] == 200, "it is ready again", 60)
            seconds = time.monotonic() - began
            assert "Kafka is back" in worker.output
            told.append(crew)
            crew.done[f"ready {seconds:.1f} s after a cut of {CUT_SECONDS:g} s"] += 1
            assert seconds < BACK_SECONDS
            crew.check()


def test_a_kafka_of_three_brokers_loses_some(rng: random.Random, told: list[Crew], tmp_path: Path) -> None:
    """Each partition has three copies, and a write needs two. With two brokers away Kafka accepts no record."""
    addresses = [("127.0.0.1", free_port()) for _ in range(3)]
    at_mongodb = ("127.0.0.1", free_port())
    with opened_crew(tmp_path, rng, addresses, at_mongodb, topics_replication=3) as crew:
        told.append(crew)
        brokers = start_kafka(crew.shop, addresses)
        start_mongodb(crew.shop, at_mongodb)
        prepare(crew)
        schedule.run(crew, BROKER_ACTIONS, _losses(crew, brokers))
        wait_for_brokers(brokers)
        crew.check()


def test_a_look_up_sees_what_only_the_leader_has_yet(rng: random.Random, tmp_path: Path) -> None:
    """Kafka gives it out, and shows its end, later: a voucher that is not seen would be sent again."""
    addresses = [("127.0.0.1", free_port()) for _ in range(3)]
    with opened_crew(tmp_path, rng, addresses, ("127.0.0.1", free_port()), topics_replication=3) as crew:
        brokers = start_kafka(crew.shop, addresses)
        leader, *followers = brokers
        bootstrap = Bootstrap("{}:{}".format(*leader.address))
        asyncio.run(_make_topic(bootstrap.servers))
        wait_for_brokers(brokers)
        for broker in followers:
            broker.kill()
        asyncio.run(_send_to_leader(bootstrap.servers))
        with pytest.raises(Unavailable, match="too few brokers"):
            asyncio.run(reading.read_since(bootstrap, "looked-up", 0, 0, values=True))
        for broker in followers:
            broker.start()

        def found() -> list[bytes]:
            with suppress(Unavailable):
                records = asyncio.run(reading.read_since(bootstrap, "looked-up", 0, 0, values=True))
                return [record.value for record in records]
            return []

        assert until(found, "the followers have the record", 90) == [b"sent"]


async def _make_topic(server: str) -> None:
    """One partition, led by the first broker."""
    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    await admin.start()
    try:
        await admin.create_topics([NewTopic("looked-up", -1, -1, replica_assignments={0: [1, 2, 3]})])
    finally:
        await admin.close()


async def _send_to_leader(server: str) -> None:
    """Return when the leader has it, whoever else has."""
    async with AIOKafkaProducer(bootstrap_servers=server, acks=1) as producer:
        await producer.send_and_wait("looked-up", b"sent", partition=0)


def _losses(crew: Crew, brokers: Sequence[Broker]) -> list[Callable[[], None]]:
    """The faults of brokers."""

    def gone(what: str, go: Callable[[Broker], None], count: int = 1) -> None:
        crew.done[what] += 1
        chosen = crew.rng.sample(brokers, count)
        for broker in chosen:
            go(broker)
        time.sleep(crew.rng.uniform(*FAULT_SECONDS) / 2)
        for broker in chosen:
            broker.start()
        if count > 1:  # otherwise no record could be sent while the next one is away
            wait_for_brokers(brokers)

    def freeze(count: int = 1) -> None:
        crew.done[f"froze {count} of three brokers"] += 1
        with ExitStack() as stack:
            for broker in crew.rng.sample(brokers, count):
                stack.enter_context(broker.frozen())
            time.sleep(crew.rng.uniform(*FAULT_SECONDS))

    return [
        lambda: gone("killed a broker", Broker.kill),
        lambda: gone("stopped a broker", Broker.stop),
        lambda: gone("killed two brokers at once", Broker.kill, 2),
        freeze,
        lambda: freeze(2),
    ]
