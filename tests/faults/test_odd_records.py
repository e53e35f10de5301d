"""Records and batches that the client library can't take apart, on the real Kafka: what is stored, and what is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from tests.conftest import OpenShop
from tests.faust_batches.wire import batch, record, sealed, varint
from tests.support.shop import Json, Record, Shop, customer, encoded, product, purchase, until
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
        shop.drain()
        found = origins(shop)
        assert found.keys() == expected
        assert all(reason.startswith("unreadable record: ") for reason in found.values())
        kinds = ("products", "customers", "purchases")
        deep, *tails = shop.run_all([["verify", "--deep"], *(["tail", kind, "--json"] for kind in kinds)])
        assert deep.status == 0
        assert [len(tail.json()) for tail in tails] == [8, 8, 8]
        assert reasons(worker) == []
        outcome = shop.run("dead-letters", "retry", "--all")
        assert outcome.status == 0, outcome.stderr
        good += retried
        until(lambda: all(shop.db[kind].find_one({"_id": name}) for kind, name in good), "a retry mends them", 60)
        shop.agrees()
        assert "Traceback" not in worker.output


@pytest.fixture
def logs(open_shop: OpenShop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of the session's Kafka, on disk."""
    base = tmp_path_factory.getbasetemp()
    folders = [folder / "servers" / "kafka" / "logs" for folder in (base, base.parent)]
    found = next((folder for folder in folders if folder.exists()), None)
    if found is None:
        pytest.skip("Kafka was not started for this run, so its logs can't be damaged")
    return found


def damage(logs: Path, topic: str, partition: int, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the batches of a partition's first segment in place, while Kafka runs."""
    with (logs / f"{topic}-{partition}" / f"{0:020}.log").open("r+b") as segment:
        whole = segment.read()
        changed = b"".join(change(batches(whole)))
        assert changed != whole
        segment.seek(0)
        segment.write(changed)


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
    open_shop: OpenShop, logs: Path
) -> None:
    """Four kinds of damage, each in a partition of its own, told by all who tell, and mended by what they say.

    A batch has a wrong checksum. Another has a right one, and in it a record with a broken length. Kafka itself can't
    read its log. A batch of the changelog is damaged, so counts are missing.
    """
    with open_shop() as shop:
        assert shop.servers
        kafka, topic = shop.servers.kafka, shop.topic("purchases")
        worker = shop.start_worker().ready()
        counted = [purchase("eve") for _ in range(2)]
        shop.send("purchases", *(Record(b"eve", encoded(event), 0) for event in counted))
        shop.drain()
        assert worker.stop() == 0
        events, held = [purchase("anna") for _ in range(9)], [purchase("bob") for _ in range(3)]
        beside, last = purchase("anna"), purchase("anna")
        for some in (events[:3], events[3:6], events[6:], [last]):
            produce(kafka, topic, 1, batch(0, sold(*some)))
        for event in held:
            produce(kafka, topic, 3, batch(0, [record(0, b"bob", encoded(event))]))
        shop.send("purchases", Record(b"anna", encoded(beside), 2))
        shop.send("products", Record(b"milk", encoded(product("milk")), 1))

        def break_records(found: list[bytes]) -> list[bytes]:
            whole, odd, broken, behind = found
            at = odd.index(encoded(events[4]))
            odd = sealed(odd[: at - 2] + varint(5_000) + odd[at:])  # the length of its value
            return [whole, odd, broken.replace(encoded(events[7]), encoded(events[7]).upper()), behind]

        def break_length(found: list[bytes]) -> list[bytes]:
            first, second, *others = found
            return [first, second[:8] + (3).to_bytes(4, "big") + second[12:], *others]  # Kafka finds no way on

        damage(logs, topic, 1, break_records)
        damage(logs, topic, 3, break_length)
        damage(logs, shop.changelog, 0, lambda found: [one.replace(b"eve", b"eva") for one in found])

        worker = shop.start_worker()
        kept = [*events[:4], events[5], beside, held[0]]
        until(lambda: all(map(shop.stored, kept)), "what can be read is stored", 90)
        texts = [
            f"{topic}[1] stands still: its batch with offsets 6 to 8 can't be read (its checksum is wrong); ",
            f"{topic}[3] stands still: its batch with offset 1 can't be read (Kafka can't read its own log there); ",
        ]
        until(lambda: all(text in str(reasons(worker)) for text in texts), "the worker says where it stands still", 60)
        lacks = (
            f"{shop.changelog}[0]: offsets 0 to 1 can't be read (its checksum is wrong), so table purchase_counts may "
            "lack rows; `faust -A shopflow replay` counts everything again"
        )
        assert worker.output.count(texts[0]) == worker.output.count(f"{topic}[3] stands still") == 1
        assert worker.output.count(lacks) == 1
        shown = str(page(worker)["sentences"])
        assert all(text in shown for text in [*texts, lacks])
        found = {
            (dict(labels)["subject"], dict(labels)["stops"]) for labels in scraped(worker)["shopflow_trouble_seconds"]
        }
        assert found == {(f"{topic}[1]", "true"), (f"{topic}[3]", "true"), (f"{shop.changelog}[0]", "false")}
        checked, tailed, deep = shop.run_all([["verify"], ["tail", "purchases"], ["verify", "--deep"]])
        assert (checked.status, deep.status) == (1, 1)
        assert all(text in checked.stdout for text in [*texts, lacks])
        assert f"{topic}[1]: offsets 6 to 8 can't be read" in tailed.stderr
        assert f"{topic}[3]: offsets 1 to 2 can't be read: " in tailed.stderr
        assert all("Traceback" not in told.stdout + told.stderr for told in (checked, tailed, deep))
        assert origins(shop).keys() == {(topic, 1, 4)}
        assert shop.stored(last) is None

        refusals = {
            f"{topic}:1:7": "stands still at offset 6, not at 7",
            f"{topic}:1:2": "it is committed up to offset 6",
            f"{topic}:2:1": "nothing waits in it",
            f"{topic}:1:6": "nothing was changed",
        }
        outcomes = shop.run_all([["dead-letters", "skip", wrong] for wrong in refusals])
        for refused, why in zip(outcomes, refusals.values(), strict=True):
            assert (refused.status, why in refused.stderr) == (2, True), refused
        assert "The workers would step over offsets 6 to 8" in outcomes[-1].stdout
        skips = shop.run_all([["dead-letters", "skip", place, "--yes"] for place in (f"{topic}:1:6", f"{topic}:3:1")])
        assert [skip.status for skip in skips] == [0, 0], skips
        until(lambda: shop.stored(last), "the partition goes on", 60)
        until(lambda: not reasons(worker), "the worker is ready again", 60)
        assert worker.output.count("It is over after") == 2
        left = origins(shop)
        assert left[topic, 1, 8] == "unreadable batch: stepped over offsets 6 to 8: its checksum is wrong"
        assert left[topic, 3, 2] == "unreadable batch: stepped over offsets 1 to 2: Kafka can't read its own log there"
        assert len(left) == 3

        assert shop.run("replay", seconds=120).status == 0
        until(
            lambda: not worker.get("/health/ready")[1].get("warnings"), "the counts lack nothing after the replay", 60
        )
        deep = shop.run("verify", "--deep")
        assert deep.status == 0, deep.stdout
        assert worker.count("eve")[1]["purchases"] == 2
        assert shop.run("dead-letters", "retry", "--all").status == 1
        assert len(origins(shop)) == 3
        assert "Traceback" not in worker.output
