"""examples/page_views.py, an application that is not the shop, on real servers, with kills."""

from __future__ import annotations

import asyncio
import json
import os
import random
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pymongo import MongoClient

pytestmark = pytest.mark.servers

TOPIC, PARTITIONS = "page-views", 4
CHANGELOG = "page-views-views-changelog"
BATCH = 2_500
#: A part of the line that Faust logs at each rebalance.
REBALANCED = "generation id"


async def create(kafka: str) -> None:
    """Create the topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
    finally:
        await admin.close()


async def send(kafka: str, pages: list[str]) -> None:
    """Send a view of each of these pages."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    await producer.start()
    try:
        await asyncio.gather(*[await producer.send(TOPIC, b"", page.encode()) for page in pages])
    finally:
        await producer.stop()


async def changelog(kafka: str) -> dict[str, int]:
    """The number of views of each page in the changelog; the record with the largest offset counts."""
    client = AIOKafkaConsumer(bootstrap_servers=kafka, enable_auto_commit=False)
    await client.start()
    found: dict[str, tuple[int, int]] = {}
    try:
        partitions = [TopicPartition(CHANGELOG, number) for number in range(PARTITIONS)]
        client.assign(partitions)
        await client.seek_to_beginning(*partitions)
        ends = await client.end_offsets(partitions)
        for partition in partitions:
            while await client.position(partition) < ends[partition]:
                for record in (await client.getmany(partition, timeout_ms=500)).get(partition, []):
                    value = json.loads(record.value)
                    page = record.key.decode()
                    found[page] = max(found.get(page, (-1, 0)), (value["offset"], value["views"]))
    finally:
        await client.stop()
    return {page: views for page, (_, views) in found.items()}


def shown(port: int, page: str) -> int:
    """The number that the page's view shows; -1 while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/views/{page}/", timeout=5) as answer:
            return int(json.load(answer)["views"])
    except (OSError, urllib.error.URLError, ValueError, KeyError):
        return -1


@pytest.fixture
def mongodb(servers: Any) -> Iterator[MongoClient[Any]]:
    """A client of the test's own."""
    with MongoClient[Any](servers.mongodb) as client:
        yield client


def test_kills_in_a_backlog_and_in_a_rebalance_lose_nothing_and_count_nothing_twice(
    servers: Any, mongodb: MongoClient[Any], spawn: Callable[..., Any], until: Callable[..., Any]
) -> None:
    """Each view is one document, and each page's count is right, in the table, in the view and in the changelog."""
    seed = int(os.environ.get("SHOPFLOW_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"SHOPFLOW_TEST_SEED={seed}")
    rng = random.Random(seed)
    kafka = servers.kafka
    settings = {"KAFKA": f"kafka://{kafka}", "MONGODB": servers.mongodb, "BROKER_SESSION_TIMEOUT": "6"}
    settings["BROKER_HEARTBEAT_INTERVAL"] = "1"
    documents = mongodb["page-views"]["views"]
    asyncio.run(create(kafka))
    sent: Counter[str] = Counter()

    def view() -> None:
        pages = [f"page-{rng.randrange(40)}" for _ in range(BATCH)]
        asyncio.run(send(kafka, pages))
        sent.update(pages)

    def start(name: str) -> tuple[Any, int]:
        return spawn("examples.page_views", name, **settings)

    view()
    one, _ = start("one")
    until(lambda: documents.count_documents({}) > rng.randrange(1, BATCH // 2), "the backlog is under way", 60)
    one.kill()
    view()
    one, port = start("one")
    two, _ = start("two")
    until(lambda: "Worker ready" in two.output, "the second worker has joined", 60)
    view()
    before = two.output.count(REBALANCED)
    start("three")
    until(lambda: two.output.count(REBALANCED) > before, "a rebalance has begun", 60)
    two.kill()
    view()
    total = sent.total()
    until(lambda: documents.count_documents({}) == total, f"{total} documents", 60)
    assert Counter(one["page"] for one in documents.find()) == sent
    until(lambda: asyncio.run(changelog(kafka)) == sent, "the changelog has the counts", 60)
    for page, views in sent.items():
        until(lambda page=page, views=views: shown(port, page) == views, f"{page} was viewed {views} times", 30)
