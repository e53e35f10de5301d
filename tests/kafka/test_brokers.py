"""The brokers' versions: told, and refused if one is too old."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from shopflow.errors import Refused
from shopflow.kafka import brokers, connection
from shopflow.kafka.brokers import Broker
from shopflow.kafka.security import Bootstrap
from shopflow.servers.servers import Addresses

#: Of the real ones: Metadata with ids of topics, and DescribeTransactions.
IDS, TRANSACTIONS = {3: 11}, {65: 0}


@pytest.mark.parametrize(
    ("requests", "level", "release", "old"),
    [
        ({}, None, "before 2.8", True),
        ({3: 9}, None, "before 2.8", True),
        (IDS, None, "2.8", False),
        (IDS | TRANSACTIONS, None, "3.0 or later", False),
        (IDS | TRANSACTIONS, 7, "3.3", False),
        (IDS | TRANSACTIONS, 21, "3.9", False),
        (IDS | TRANSACTIONS, 27, "4.1", False),
        (IDS | TRANSACTIONS, 99, "4.2 or later", False),
    ],
)
def test_a_brokers_version_is_told_as_far_as_it_is_known(
    requests: dict[int, int], level: int | None, release: str, old: bool
) -> None:
    broker = Broker("kafka:9092", requests, level)
    assert (broker.release, broker.old) == (release, old)


@pytest.mark.servers
def test_the_real_brokers_are_new_enough_and_tell_their_time(servers: Addresses) -> None:
    async def ask() -> tuple[list[Broker], float | None]:
        async with connection.client(Bootstrap(servers.kafka)) as client:
            await brokers.check(client)
            return await brokers.look(client), await brokers.time(client)

    (broker,), at = asyncio.run(ask())
    assert broker.address == servers.kafka
    assert not broker.old
    assert broker.release[:2] in {"3.", "4."}
    assert at is not None
    assert abs(at - time.time()) < 60


def test_a_broker_that_is_too_old_is_refused_with_its_address() -> None:
    """aiokafka's client raises `NotImplementedError` for a request whose version the broker does not know."""

    async def send(node: int, request: Any) -> Any:
        request.prepare({18: (0, 2), 3: (0, 8)})  # as Kafka 2.3 says

    client = SimpleNamespace(
        cluster=SimpleNamespace(brokers=lambda: [SimpleNamespace(nodeId=1, host="old", port=9092)]), send=send
    )

    says = r"broker: Kafka at old:9092 does not know ids of topics: shopflow needs Kafka 2.8 or later"
    with pytest.raises(Refused, match=says):
        asyncio.run(brokers.check(client))
