"""Records and batches that the client library can't take apart, on the real Kafka: what is stored, and what is told."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from shopflow.config.settings import Config, Embedded, MongoDB
from shopflow.servers.servers import Servers
from tests.conftest import OpenShop
from tests.faust_batches.wire import batch, record, sealed, varint
from tests.support.shop import Json, Record, Shop, customer, encoded, free_port, product, purchase, until
from tests.system.test_health import scraped
from tests.system.test_open_transactions import page, reasons

pytestmark = pytest.mark.servers


def produce(kafka: str, topic: str, partition: int, data: bytes) -> int:
    """Send these bytes as a batch, as no client library would make it. Returns its first offset."""

    async def sent() -> int:
        client = AIOKafkaClient(bootstrap_servers=kafka)
        await client.bootstrap()
        try:
            await client.set_topics([topic])
            leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            answer = await client.send(leader, ProduceRequest(None, -1, 10_000, [(topic, [(partition, data)])]))
        finally:
            await client.close()
        ((_, ((_, error, offset, *_),)),) = answer.topics
        assert error == 0, error
        return int(offset)

    return asyncio.run(sent())


def letters(shop: Shop) -> list[Json]:
    """The dead letters, as the command lists them."""
    found: list[Json] = shop.run("dead-letters", "--json").json()
    return found


def origins(shop: Shop) -> dict[tuple[str, int, int], str]:
    """Topic, partition and offset of each dead letter, and its reason."""
    return {(one["topic"], one["partition"], one["offset"]): one["reason"] for one in letters(shop)}


def odd_ones(rng: random.Random) -> list[bytes]:
    """Records that Kafka takes from a producer, each odd in a way of its own; one is `late`, and not odd at all."""
    headers = [b"caf\xe9", b"\xff\xfe", b"\xed\xa0\x80", bytes([rng.randrange(128, 256)])]
    return [b"name=" + name for name in headers] + [b"delta=900", b"delta=-1"]


def test_what_kafka_takes_from_an_odd_producer_is_one_dead_letter_each(open_shop: OpenShop, rng: random.Random) -> None:
    """Names of headers that are not UTF-8, and wrong offsets. The neighbours are stored and counted once."""
    with open_shop() as shop:
        assert shop.servers
        worker = shop.start_worker().ready()
        good, retried, expected = [], [], set()
        for kind, made, key in (
            ("products", product, "product_id"),
            ("customers", customer, "customer_id"),
            ("purchases", lambda: purchase("anna"), "customer_id"),
        ):
            events = [made() for _ in range(8)]
            place = rng.randrange(8)
            odd = rng.choice(odd_ones(rng) if kind == "purchases" else odd_ones(rng)[:4])
            print(kind, place, odd)
            records = []
            for delta, event in enumerate(events):
                what, _, how = odd.partition(b"=") if delta == place else (b"", b"", b"")
                headers = [(how, b"v"), (b"good", b"w")] if what == b"name" else [(b"good", b"w")]
                number = int(how) if what == b"delta" else delta
                time = -(2**50) if delta == 0 else 0  # long before 1970
                records.append(record(number, event[key].encode(), encoded(event), headers, timestamp=time))
            first = produce(shop.servers.kafka, shop.topic(kind), 1, batch(0, records))
            expected.add((shop.topic(kind), 1, first + place))
            named = [(kind, event[f"{kind[:-1]}_id"]) for event in events]
            retried.append(named.pop(place))
            good += named
        until(
            lambda: all(shop.db[kind].find_one({"_id": name}) for kind, name in good), "the neighbours are stored", 60
        )
        until(lambda: origins(shop).keys() == expected, "each odd one is a dead letter", 60)
        assert all(reason.startswith("unreadable record: ") for reason in origins(shop).values())
        assert shop.run("verify", "--deep").status == 0
        for kind in ("products", "customers", "purchases"):
            assert len(shop.run("tail", kind, "--json").json()) == 8
        assert reasons(worker) == []
        outcome = shop.run("dead-letters", "retry", "--all")
        assert outcome.status == 0, outcome.stderr
        good += retried
        until(lambda: all(shop.db[kind].find_one({"_id": name}) for kind, name in good), "a retry mends them", 60)
        shop.agrees()
        assert "Traceback" not in worker.output


def in_log(folder: Path, topic: str, partition: int) -> Path:
    """The first segment of a partition of a Kafka that has stopped."""
    return folder / "kafka" / "logs" / f"{topic}-{partition}" / f"{0:020}.log"


def batches(data: bytes) -> list[bytes]:
    """The batches of a segment."""
    found = []
    while data:
        size = 12 + int.from_bytes(data[8:12], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def sold(*events: Json) -> list[bytes]:
    return [record(delta, b"anna", encoded(event)) for delta, event in enumerate(events)]


def test_damage_on_a_brokers_disk_stops_one_partition_until_a_person_lets_it_go_on(
    open_shop: OpenShop, mongodb_uri: str, tmp_path: Path, rng: random.Random
) -> None:
    """One batch has a wrong checksum. Another has a right one, and in it a record with a broken length."""
    embedded = msgspec.structs.replace(Embedded(), kafka_port=free_port())
    config = Config(data_dir=str(tmp_path), mongodb=MongoDB(uri=mongodb_uri), embedded=embedded)
    with Servers(config, print) as servers, open_shop(kafka=servers.start().kafka) as shop:
        assert shop.servers
        kafka, topic = shop.servers.kafka, shop.topic("purchases")
        assert shop.start_worker().ready().stop() == 0
        events = [purchase("anna") for _ in range(9)]
        beside = purchase("anna")
        last = purchase("anna")
        for some in (events[:3], events[3:6], events[6:], [last]):
            produce(kafka, topic, 1, batch(0, sold(*some)))
        shop.send("purchases", Record(b"anna", encoded(beside), 2))
        shop.send("products", Record(b"milk", encoded(product("milk")), 1))
        servers.stop()

        segment = in_log(tmp_path, topic, 1)
        whole, odd, broken, behind = batches(segment.read_bytes())
        at = odd.index(encoded(events[4]))
        odd = sealed(odd[: at - 2] + varint(5_000) + odd[at:])  # the length of its value
        broken = broken.replace(encoded(events[7]), encoded(events[7]).upper())
        segment.write_bytes(whole + odd + broken + behind)

        servers.start()
        worker = shop.start_worker()
        kept = [*events[:4], events[5], beside]
        until(lambda: all(map(shop.stored, kept)), "what can be read is stored", 90)
        text = f"{topic}[1] stands still: its batch with offsets 6 to 8 can't be read (its checksum is wrong); "
        until(lambda: any(text in reason for reason in reasons(worker)), "the worker says where it stands still", 60)
        assert worker.output.count(text) == 1
        assert text in str(page(worker)["sentences"])
        found = scraped(worker)["shopflow_trouble_seconds"]
        assert [dict(labels)["subject"] for labels in found] == [f"{topic}[1]"]
        outcome = shop.run("verify")
        assert outcome.status == 1
        assert text in outcome.stdout
        for command in (["tail", "purchases"], ["verify", "--deep"]):
            told = shop.run(*command)
            assert "Traceback" not in told.stdout + told.stderr
        assert f"{topic}[1]: offsets 6 to 8 can't be read" in shop.run("tail", "purchases").stderr
        assert origins(shop).keys() == {(topic, 1, 4)}
        assert shop.stored(last) is None

        for wrong, why in (
            (f"{topic}:1:7", "stands still at offset 6, not at 7"),
            (f"{topic}:1:2", "it is committed up to offset 6"),
            (f"{topic}:2:0", "it is committed up to offset 1"),
            (f"{topic}:2:1", "nothing waits in it"),
            (f"{topic}:1:6", "nothing was changed"),
        ):
            refused = shop.run("dead-letters", "skip", wrong)
            assert (refused.status, why in refused.stderr) == (2, True), refused
        assert "The workers would step over offsets 6 to 8" in refused.stdout
        assert shop.run("dead-letters", "skip", f"{topic}:1:6", "--yes").status == 0
        until(lambda: shop.stored(last), "the partition goes on", 60)
        until(lambda: not reasons(worker), "the worker is ready again", 60)
        assert "It is over after" in worker.output
        until(lambda: (topic, 1, 8) in origins(shop), "a dead letter says so")
        assert origins(shop)[topic, 1, 8] == "unreadable batch: stepped over offsets 6 to 8: its checksum is wrong"
        shop.agrees()
        assert shop.run("verify", "--deep").status == 0
        assert shop.run("dead-letters", "retry", "--all").status == 1

        assert shop.run("replay", seconds=120).status == 0
        until(lambda: not reasons(worker), "the worker is ready after the replay", 60)
        shop.agrees()
        assert len(origins(shop)) == 2
        assert "Traceback" not in worker.output
