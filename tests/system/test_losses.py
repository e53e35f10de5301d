"""What Kafka deleted, moved or cut off before a worker read it, and a group that can't be joined, are told of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from tests.conftest import OpenShop
from tests.support.shop import Record, Shop, Worker, becomes, customer, encoded, purchase, until
from tests.system.test_health import scraped
from tests.system.test_open_transactions import page, reasons

pytestmark = pytest.mark.servers


def asked(shop: Shop, ask: Callable[[Any], Awaitable[Any]]) -> Any:
    """Ask Kafka with an admin client."""

    async def run() -> Any:
        assert shop.servers
        admin = AIOKafkaAdminClient(bootstrap_servers=shop.servers.kafka)
        await admin.start()
        try:
            return await ask(admin)
        finally:
            await admin.close()

    return asyncio.run(run())


def delete_records(shop: Shop, kind: str, partition: int, before: int) -> None:
    """Delete the records of a partition before an offset, as its retention does."""
    tp = TopicPartition(shop.topic(kind), partition)
    asked(shop, lambda admin: admin.delete_records({tp: RecordsToDelete(before_offset=before)}))


def commit(shop: Shop, kind: str, partition: int, offset: int) -> None:
    """Set the group's offset, as Kafka's own tool does while no worker runs."""

    async def run() -> None:
        assert shop.servers
        outsider = AIOKafkaConsumer(bootstrap_servers=shop.servers.kafka, group_id=shop.name, enable_auto_commit=False)
        await outsider.start()
        tp = TopicPartition(shop.topic(kind), partition)
        outsider.assign([tp])
        await outsider.commit({tp: offset})
        await outsider.stop()

    asyncio.run(run())


def sold(shop: Shop, partition: int, count: int) -> list[dict[str, Any]]:
    """Send purchases to a partition."""
    events = [purchase("anna") for _ in range(count)]
    shop.send("purchases", *(Record(b"anna", encoded(event), partition) for event in events))
    return events


def troubles(worker: Worker) -> dict[tuple[str, str], str]:
    """The present troubles, by kind and subject: does the work stand still?"""
    labels = [dict(found) for found in scraped(worker).get("shopflow_trouble_seconds", {})]
    return {(found["kind"], found["subject"]): found["stops"] for found in labels}


def test_what_was_lost_while_no_worker_ran_is_told_of(open_shop: OpenShop) -> None:
    """Records deleted unread; an offset set past unread records, with tables and without; and set back.

    A worker that is stopped and started in peace tells of nothing.
    """
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        for partition in (0, 1, 2):
            sold(shop, partition, 5)
        shop.offer()
        shop.send("customers", *(Record(b"x", None, 3) for _ in range(4)))
        shop.drain()
        assert worker.stop() == 0
        worker = shop.start_worker(port=worker.port).ready()
        assert troubles(worker) == {}
        assert worker.stop() == 0

        deleted, skipped = sold(shop, 0, 4), sold(shop, 1, 3)
        delete_records(shop, "purchases", 0, 7)
        commit(shop, "purchases", 1, 8)
        commit(shop, "purchases", 2, 1)
        commit(shop, "customers", 3, 2)
        commit(shop, "customers", 2, 3)
        worker = shop.start_worker(port=worker.port).ready()
        name = shop.topic("purchases")
        until(lambda: all(map(shop.stored, [*deleted[2:], *skipped])), "what is left is stored", 60)
        customers = shop.topic("customers")
        removed, short = ("records-removed", f"{name}[0]"), ("partition-too-short", f"{customers}[2]")
        moved = {("offset-moved", f"{customers}[{number}]"): "false" for number in (2, 3)}
        becomes(lambda: troubles(worker), {removed: "false", short: "true", **moved})
        assert not any(map(shop.stored, deleted[:2]))
        assert shop.db.purchases.count_documents({}) == 15 + 2 + 3
        log = worker.output
        lost = "Kafka removed the records at offsets 5 to 6 before a worker read them; they are lost (2 offsets, "
        assert log.count(f"{name}[0]: {lost}") == 1
        assert f"The committed offset of {name}[1] was set to 8 by another program" in log
        assert "the tables have counted up to offset 5; the worker goes on from there: nothing is lost" in log
        assert f"The committed offset of {name}[2] was set to 1 by another program" in log
        assert f"The committed offset of {shop.topic('customers')}[3] was set to 2 by another program" in log
        said = str(page(worker)["sentences"])
        assert lost in said
        (reason,) = reasons(worker)
        assert reason.startswith(
            f"{customers}[2] ends at offset 0, but was read up to offset 3: Kafka has lost its end"
        )
        assert reason.endswith("not read until they reach offset 3; `faust -A shopflow replay` reads them")
        shop.send("customers", *(Record(name.encode(), encoded(customer(name)), 2) for name in ("a", "b", "c", "d")))
        until(lambda: shop.db.customers.find_one({"_id": "d"}), "what is behind the committed offset is read", 60)
        until(lambda: reasons(worker) == [], "the partition is long enough")
        assert shop.run("replay", "--keep-tables").status == 0
        assert shop.db.customers.count_documents({}) == 4
        becomes(lambda: troubles(worker), {removed: "false"})
        outcome = shop.run("verify")
        assert outcome.status == 1
        assert lost in outcome.stdout
