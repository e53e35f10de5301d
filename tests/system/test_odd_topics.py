"""Topics that are not what the guarantee needs: what is told, by all who tell, and what mends it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.new_partitions import NewPartitions

from tests.conftest import OpenShop
from tests.support.shop import PARTITIONS, Shop, Worker, becomes, customer, purchase, until
from tests.system.test_health import scraped

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def administered(shop: Shop, work: Callable[[Any], Awaitable[Any]]) -> None:
    """Change something as the operator of Kafka does."""

    async def whole() -> None:
        async with shop._admin() as admin:
            await work(admin)

    asyncio.run(whole())


def configure(shop: Shop, topic: str, **configs: str) -> None:
    """Set a topic's configurations, and leave out all others. `_` stands for the `.` in the names."""
    wanted = {name.replace("_", "."): value for name, value in configs.items()}
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=wanted)
    administered(shop, lambda admin: admin.alter_configs([resource]))


def ready(worker: Worker) -> dict[str, list[str]]:
    """The reasons and the warnings of a worker."""
    status, answer = worker.get("/health/ready")
    assert status in {200, 503}, answer
    return {name: answer.get(name, []) for name in ("reasons", "warnings")}


def troubles(worker: Worker) -> set[tuple[str, str, str]]:
    """Kind, subject and whether the work stands still, by the metric."""
    found = (dict(labels) for labels in scraped(worker).get("shopflow_trouble_seconds", {}))
    return {(labels["kind"], labels["subject"], labels["stops"]) for labels in found}


def test_what_topics_lack_is_told_while_the_worker_runs_until_it_is_mended(open_shop: OpenShop) -> None:
    """Each is harmless for the moment, and loses events later; or lets no record in."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        purchases, products, letters = shop.topic("purchases"), shop.topic("products"), shop.topic("dead-letters")
        shop.sell(purchase("anna"))
        shop.drain()
        assert troubles(worker) == set()

        configure(shop, purchases, cleanup_policy="compact", retention_bytes="5000000")
        configure(shop, shop.changelog, cleanup_policy="delete", max_message_bytes="16777216")
        configure(shop, products, cleanup_policy="compact", min_insync_replicas="2")
        administered(shop, lambda admin: admin.delete_topics([letters]))
        told = {
            ("topic-config", f"{purchases} cleanup.policy", "false"),
            ("topic-config", f"{purchases} retention.bytes", "false"),
            ("topic-config", f"{shop.changelog} cleanup.policy", "false"),
            ("topic-copies", products, "false"),
            ("topic-missing", letters, "true"),
        }
        until(lambda: troubles(worker) >= told or None, "all of it is told", 60)
        compact = f"Topic {purchases} has cleanup.policy=compact, needed is delete: Kafka deletes all records of a key"
        copies = f"Topic {products} has min.insync.replicas=2, but 1 copy of each partition: an older Kafka accepts no"
        said = ready(worker)
        assert any(text.startswith(compact) for text in said["warnings"])
        assert any(text.startswith(copies) for text in said["warnings"])
        shown = str(worker.get("/page/data.json")[1]["sentences"])
        assert compact in shown
        assert copies in shown
        assert worker.output.count(compact) == worker.output.count(copies) == 1
        checked = shop.run("verify")
        assert checked.status == 1
        (line,) = [line for line in checked.stdout.splitlines() if "troubles:" in line]
        assert compact in line
        assert copies in line
        assert f"--entity-name {purchases} --add-config cleanup.policy" in line

        configure(shop, purchases, cleanup_policy="delete", retention_ms="-1")
        configure(shop, shop.changelog, cleanup_policy="compact")
        configure(shop, products, cleanup_policy="compact")
        shop.create_topic("dead-letters", PARTITIONS, retention_ms="-1", max_message_bytes="17825792")
        becomes(lambda: troubles(worker), {("topic-replaced", letters, "false")}, 60)  # its records are gone
        assert "It is over after" in worker.output
        said = ready(worker)
        assert said["reasons"] == []
        assert [f"Topic {letters} was deleted and made anew" in text for text in said["warnings"]] == [True]
        shop.sell(purchase("anna"))
        shop.drain()
        assert worker.stop() == 0
        worker = shop.start_worker().ready()
        assert ready(worker) == {"reasons": [], "warnings": []}
        shop.agrees()


def test_added_partitions_are_told_and_the_advice_is_the_last_one_needed(open_shop: OpenShop) -> None:
    """No worker reads them. A restart is refused, and so is the number of that one topic as a setting."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        purchases = shop.topic("purchases")
        administered(shop, lambda admin: admin.create_partitions({purchases: NewPartitions(PARTITIONS + 2)}))
        until(lambda: ("topic-partitions", purchases, "true") in troubles(worker) or None, "it is told", 60)
        (reason,) = [text for text in ready(worker)["reasons"] if purchases in text]
        assert f"{purchases} has {PARTITIONS + 2} partitions, configured are {PARTITIONS}: no worker reads" in reason
        assert "begin anew with another app_id, topics.prefix and mongodb.database" in reason
        worker.kill()
        for partitions in (PARTITIONS, PARTITIONS + 2):
            refused = shop.run("worker", topics_partitions=partitions)
            assert refused.status == 2
            assert refused.errors[-1].startswith("Error: topics.partitions: topic ")
        anew = shop.run(
            "seed-products",
            app_id=f"{shop.name}-2",
            topics_prefix=f"{shop.name}-2.",
            topics_partitions=PARTITIONS + 2,
        )
        assert anew.status == 0, anew


def test_a_changelog_that_was_deleted_is_said_at_the_start_and_counted_again(open_shop: OpenShop) -> None:
    """Faust's own check ends the worker with a traceback; and where a table is gone too, it counts from zero."""
    with open_shop() as shop:
        port = int(shop.environment["SHOPFLOW_WEB_PORT"])
        worker = shop.start_worker(port=port).ready()
        shop.sell(*(purchase("anna") for _ in range(5)))
        shop.drain()
        assert worker.stop() == 0
        administered(shop, lambda admin: admin.delete_topics([shop.changelog]))
        until(lambda: shop.changelog not in shop.describe_topics(), "the changelog is deleted")
        checked = shop.run("doctor")
        assert checked.status == 1
        assert f"NOT counts: topic {shop.changelog}: is empty, though 5 purchases were counted" in checked.stdout
        refused = shop.run("worker", "--web-port", str(port))
        assert refused.status == 2
        assert refused.errors[-1] == (
            f"Error: topic {shop.changelog}: is empty, though 5 purchases were counted: it was deleted, and the counts "
            "with it. `faust -A shopflow replay` counts again what Kafka still has"
        )
        replayed = shop.run("replay", seconds=120)
        assert replayed.status == 0, replayed
        worker = shop.start_worker(port=port).ready()  # its RocksDB still has the old counts, and more offsets
        assert worker.count("anna")[1]["purchases"] == 5
        shop.agrees()

        assert worker.stop() == 0
        sales = f"{shop.name}-product_sales-changelog"
        administered(shop, lambda admin: admin.delete_topics([sales]))
        until(lambda: sales not in shop.describe_topics(), "the changelog of sales is deleted")
        worker = shop.start_worker().ready()
        assert troubles(worker) == {("changelog-empty", sales, "false")}
        assert "is empty, though 5 purchases were counted" in str(ready(worker)["warnings"])


def make_anew(shop: Shop, kind: str, **configs: str) -> None:
    """Delete a topic of events and make it again, as an operator who resets a test system does."""
    administered(shop, lambda admin: admin.delete_topics([shop.topic(kind)]))
    until(lambda: shop.topic(kind) not in shop.describe_topics(), f"the {kind} are deleted")
    shop.create_topic(kind, PARTITIONS, **configs)


@pytest.mark.parametrize("running", [True, False])
def test_purchases_that_were_made_anew_are_told_and_their_counts_are_not_lost_unasked(
    open_shop: OpenShop, running: bool
) -> None:
    """New events have the offsets of old ones: they are stored, and not counted until the operator decides.

    The counts know Kafka's id of their topic, so a worker that starts later tells it, too.
    """
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        purchases = shop.topic("purchases")
        shop.register(customer("anna"))
        shop.sell(*(purchase("anna") for _ in range(5)))
        shop.drain()
        if not running:
            assert worker.stop() == 0
            make_anew(shop, "customers", cleanup_policy="compact")
            shop.register(customer("bob"))  # at the offset of a record that was read
        make_anew(shop, "purchases", retention_ms="-1")
        if not running:
            shop.sell(*(purchase("anna") for _ in range(7)))  # more than were counted
            told = shop.run("verify").stdout
            assert "the 5 counted ones were in a topic of this name that was deleted" in told, told
            worker = shop.start_worker(port=worker.port).ready()
        until(lambda: ("topic-replaced", purchases, "true") in troubles(worker) or None, "it is told", 60)
        if running:
            shop.sell(*(purchase("anna") for _ in range(7)))
        else:
            until(lambda: shop.db.customers.find_one({"_id": "bob"}), "the new customers are read from the start")
            shop.drain()
            assert worker.count("anna")[1]["purchases"] == 7  # 5 old and 2 new
        (reason,) = [text for text in ready(worker)["reasons"] if purchases in text]
        assert reason.startswith(f"Topic {purchases} was deleted and made anew: the counts are of the old one")
        assert worker.stop() == 0  # a killed one stays in the group, and `replay` would wait for it
        refused = shop.run("replay")
        assert refused.status == 2
        counted = 5 if running else 7
        assert f"{counted} counted in a topic that was deleted, 7 in the new one" in refused.errors[-1]
        assert "with --lose-counts the others are no longer in the counts" in refused.errors[-1]
        replayed = shop.run("replay", "--lose-counts", seconds=120)
        assert replayed.status == 0, replayed
        worker = shop.start_worker(port=worker.port).ready()
        assert worker.count("anna")[1]["purchases"] == 7
        assert ready(worker)["reasons"] == []
        deep = ["--deep"] if running else []  # which would find that anna's registration is gone
        checked = shop.run("verify", *deep)
        assert checked.status == 0, checked.stdout
        assert (
            "7 stored, 7 counted; 5 more are stored that Kafka no longer has, and in no count since" in checked.stdout
        )


def test_a_changelog_that_is_made_anew_under_a_worker_ends_it_in_one_line(open_shop: OpenShop) -> None:
    """At the next rebalance it has read more than there is, or gets no partition of it. Faust would end it with three
    tracebacks, or let it count into a table that is not recovered.
    """
    with open_shop(batching_session_timeout_seconds=6) as shop:
        worker = shop.start_worker().ready()
        shop.sell(*(purchase("anna") for _ in range(5)))
        shop.drain()
        administered(shop, lambda admin: admin.delete_topics([shop.changelog]))
        until(lambda: shop.changelog not in shop.describe_topics(), "the changelog is deleted")
        anew = NewTopic(shop.changelog, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"})
        administered(shop, lambda admin: admin.create_topics([anew]))
        worker.send(signal.SIGSTOP)
        time.sleep(8)
        worker.send(signal.SIGCONT)
        assert worker.wait(60) == 1
        (told,) = [line for line in worker.output.splitlines() if "[CRITICAL]" in line]
        assert shop.changelog in told
        assert "deleted" in told
        assert told.strip().endswith("count everything again: `faust -A shopflow replay`")
        assert "Traceback" not in worker.output
