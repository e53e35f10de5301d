"""What Kafka refuses, and no outage: told with the setting that is to blame, retried, and over when it is mended."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.conftest import OpenShop
from tests.support.proxy import Proxy
from tests.support.shop import PARTITIONS, Record, Shop, Worker, becomes, encoded, purchase, until
from tests.system.test_health import scraped
from tests.system.test_losses import asked, troubles
from tests.system.test_open_transactions import page, reasons

pytestmark = pytest.mark.servers


def configure(shop: Shop, topic: str, name: str, value: str) -> None:
    """Change a setting of a topic."""
    present = shop.describe_topics()[topic][1]
    kept = ("cleanup.policy", "retention.ms", "retention.bytes", "max.message.bytes")
    configs = {**{one: present[one] for one in kept}, name: value}
    asked(shop, lambda admin: admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)]))


def limit(shop: Shop, topic: str, size: int) -> None:
    """Set the largest record that a topic takes."""
    configure(shop, topic, "max.message.bytes", str(size))


def refused(worker: Worker) -> set[str]:
    """What is refused. The watch of topics finds the changed settings too, at its own time."""
    return {subject for kind, subject in troubles(worker) if kind == "refused"}


def test_records_that_a_topic_refuses_are_told_and_sent_when_it_takes_them(open_shop: OpenShop) -> None:
    """A changelog and the dead letters whose limit somebody has lowered: their partitions wait, nothing else does."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        letters = shop.topic("dead-letters")
        limit(shop, shop.changelog, 100)
        limit(shop, letters, 100)
        event = purchase("anna")
        shop.send("purchases", Record(b"anna", encoded(event), 0), Record(b"x", b"no JSON" * 50, 1))
        becomes(lambda: refused(worker), {shop.changelog, letters}, 60)
        text = f"Kafka takes no record of this size for the topic {letters}; raise its limit: kafka-configs.sh"
        assert any(reason.startswith(text) for reason in reasons(worker))
        assert not any("away" in reason for reason in reasons(worker))
        assert worker.get("/health/live")[0] == 200
        found = scraped(worker)
        assert found["shopflow_server_refuses"][(("server", "kafka"),)] == 1
        assert found["shopflow_server_away"][(("server", "kafka"),)] == 0
        assert text in str(page(worker)["sentences"])
        limit(shop, shop.changelog, 1_000_000)
        limit(shop, letters, 1_000_000)
        becomes(lambda: refused(worker), set(), 60)
        shop.drain()
        assert shop.stored(event)
        assert len(shop.read("dead-letters")) == 1
        assert "Kafka is away" not in worker.output
        assert worker.output.count(text) == 2  # when it began and when it was over
        assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_topic_that_is_gone_or_compacted_is_told_until_it_is_as_it_should_be(open_shop: OpenShop) -> None:
    """A topic that was just made is unknown to some brokers for a moment; one that is gone does not come by itself."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        letters = shop.topic("dead-letters")
        shop.send("purchases", *(Record(b"anna", encoded(purchase("anna")), number) for number in range(PARTITIONS)))
        shop.drain()  # the first batch of each partition has looked for dead letters
        asked(shop, lambda admin: admin.delete_topics([letters]))
        event = purchase("anna")
        shop.send("purchases", Record(b"x", b"no JSON", 1), Record(b"anna", encoded(event), 2))
        becomes(lambda: refused(worker), {letters}, 90)
        assert any(f"the topic {letters}; " in one or f"partition, {letters}; " in one for one in reasons(worker))
        assert shop.stored(event)  # other partitions go on
        shop.create_topic("dead-letters", PARTITIONS, cleanup_policy="compact", retention_ms="-1")
        shop.drain()
        becomes(lambda: refused(worker), set(), 60)

        shop.send("purchases", Record(None, b"no JSON", 3))
        becomes(lambda: refused(worker), {letters}, 60)
        text = f"Kafka takes no such record for the topic {letters}: a compacted topic takes none without a key"
        assert any(reason.startswith(text) for reason in reasons(worker))
        configure(shop, letters, "cleanup.policy", "delete")
        shop.drain()
        assert len(shop.read("dead-letters")) == 2
        becomes(lambda: refused(worker), set(), 60)
        assert "Kafka is away" not in worker.output
        assert "Traceback" not in worker.output


def test_a_group_with_another_kind_of_client_is_joined_when_that_is_gone(open_shop: OpenShop) -> None:
    """It assigns partitions in another way: Kafka takes no worker beside it."""

    async def beside() -> Worker:
        """Start a worker while a client is in the group. Return when it tells so, and the client is gone."""
        assert shop.servers
        client = AIOKafkaConsumer(
            shop.topic("purchases"), bootstrap_servers=shop.servers.kafka, group_id=shop.name, session_timeout_ms=6_000
        )
        await client.start()
        try:
            worker = shop.start_worker()  # in this thread: it ends with the thread that has started it
            kept_out = ("not-in-group", shop.name)
            answers = lambda: worker.get("/metrics")[0] == 200 and kept_out in troubles(worker)  # noqa: E731
            await asyncio.to_thread(until, answers, "it is kept out", 60)  # the client sends heartbeats meanwhile
        finally:
            await client.stop()
        return worker

    with open_shop() as shop:
        assert shop.run("seed-products").status == 0
        worker = asyncio.run(beside())
        until(worker.partitions, "it has joined", 60)
        becomes(lambda: troubles(worker), {}, 60)
        text = f"This worker can't join the consumer group {shop.name}: a client that is no worker of this application"
        assert worker.output.count(text) == 2  # when it began and when it was over
        assert "Traceback" not in worker.output


def test_a_mongodb_that_refuses_is_no_mongodb_that_is_away(open_shop: OpenShop) -> None:
    """A user without rights, and a validator that no sum of sales passes; each is over when it is mended."""
    with open_shop() as shop:
        assert shop.run("seed-products").status == 0
        assert shop.servers
        with Proxy(shop.servers.mongodb) as proxy:
            worker = shop.start_worker(mongodb_uri=proxy.uri).ready()
            shop.drain()
            proxy.refuse(13)
            event = purchase("anna")
            shop.sell(event)
            becomes(lambda: refused(worker), {"MongoDB"}, 60)
            rights = "an administrator of MongoDB grants it with db.grantRolesToUser"
            until(lambda: any(rights in reason for reason in reasons(worker)), "the reason is told")
            found = scraped(worker)
            assert found["shopflow_server_refuses"][(("server", "mongodb"),)] == 1
            assert found["shopflow_server_away"][(("server", "mongodb"),)] == 0
            proxy.heal()
            becomes(lambda: refused(worker), set(), 60)
            until(lambda: shop.stored(event), "it is stored")
            shop.db.command("collMod", "sales", validator={"units": {"$lt": 0}})
            shop.sell(purchase("anna"))
            becomes(lambda: refused(worker), {"MongoDB sales"}, 60)
            assert any("remove the collection's validator" in reason for reason in reasons(worker))
            shop.db.command("collMod", "sales", validator={})
            becomes(lambda: refused(worker), set(), 60)
            assert "MongoDB is away" not in worker.output
            assert "Traceback" not in worker.output
