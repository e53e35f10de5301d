"""Faust's own agents, tables, windows, timers and views work beside batch agents."""

from __future__ import annotations

import asyncio
import json
import urllib.request
import uuid
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

pytestmark = pytest.mark.servers

PARTITIONS, SECONDS = 4, 10
#: Events a second to each topic. A free core takes a thousand; other tests run at the same time.
RATE = 300


async def create(kafka: str, *topics: str) -> None:
    """Create topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics])
    finally:
        await admin.close()


async def send(kafka: str, *topics: str, seconds: float, rate: int) -> int:
    """Send this many events a second to each topic; returns how many each has got."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=5)
    await producer.start()
    sent, began = 0, monotonic()
    try:
        while sent < seconds * rate:
            while sent < min(seconds * rate, (monotonic() - began) * rate):
                for topic in topics:
                    await producer.send(topic, b"1", f"key-{sent % 20}".encode())
                sent += 1
            await asyncio.sleep(0.01)
        await producer.flush()
    finally:
        await producer.stop()
    return sent


async def committed(kafka: str, group: str, topic: str) -> int:
    """The number of the topic's records that the group has committed."""
    client = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=group, enable_auto_commit=False)
    await client.start()
    try:
        return sum([await client.committed(TopicPartition(topic, number)) or 0 for number in range(PARTITIONS)])
    finally:
        await client.stop()


def sums(*ports: int) -> dict[str, int]:
    """The sums over all workers' tables; empty while a worker does not answer."""
    found = {"batched": 0, "ordinary": 0, "windowed": 0, "ticks": 0}
    try:
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/sums/", timeout=5) as answer:
                for name, number in json.load(answer).items():
                    found[name] += number
    except (OSError, ValueError):
        return {}
    return found


@pytest.mark.slow
def test_all_that_faust_has_works_beside_batches_and_commits_in_its_own_time(
    servers: Any, spawn: Callable[..., Any], until: Callable[..., Any]
) -> None:
    """Faust's own agent counts hundreds of events a second, with one worker and two, and its offsets are committed."""
    name, kafka = f"beside-{uuid.uuid4().hex[:8]}", servers.kafka
    batched, ordinary = f"{name}-batched", f"{name}-ordinary"
    asyncio.run(create(kafka, batched, ordinary))
    settings = {
        "NAME": name,
        "KAFKA": f"kafka://{kafka}",
        "BROKER_SESSION_TIMEOUT": "6",
        "BROKER_HEARTBEAT_INTERVAL": "1",
    }
    one, port = spawn("tests.faust_batches.beside", "one", **settings)
    until(lambda: "Worker ready" in one.output, "the worker is ready", 60)

    def have(total: int, *ports: int) -> bool:
        """Batches count each record once. Faust's own agent counts each at least once: a rebalance repeats some."""
        found = sums(*ports)
        print(found)  # the last ones are shown beside a failure
        return bool(found) and found["batched"] == total and min(found["ordinary"], found["windowed"]) >= total

    total = asyncio.run(send(kafka, batched, ordinary, seconds=SECONDS, rate=RATE))
    until(lambda: have(total, port), f"{total} events of each kind are counted", 60)
    assert sums(port)["ticks"] > SECONDS
    for topic in (batched, ordinary):
        until(lambda topic=topic: asyncio.run(committed(kafka, name, topic)) == total, f"{topic} is committed", 30)
    assert "overlapping" not in one.output
    two, second = spawn("tests.faust_batches.beside", "two", **settings)
    until(lambda: "Worker ready" in two.output and have(total, port, second), "two workers share the tables", 60)
    total += asyncio.run(send(kafka, batched, ordinary, seconds=1, rate=200))
    until(lambda: have(total, port, second), "both count", 60)
    assert two.stop() == 0
    until(lambda: have(total, port), "the one that is left has all", 60)
    for process in (one, two):
        assert "Traceback" not in process.output
