"""The producers of open transactions, by Kafka's DescribeProducers, ListTransactions and DescribeTransactions."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import CompactArray, Int16, Int32, Int64, Schema

from shopflow.errors import Refused, Unavailable

from . import connection
from .connection import within
from .offsets import Partition
from .protocol import TAGS, TEXT, Prepared, by_topic
from .security import Bootstrap

#: The states of a transaction that is open, and of one that Kafka is ending.
ONGOING = "Ongoing"
ENDING = frozenset({"PrepareCommit", "PrepareAbort"})

#: How long Kafka may take to name the producers.
_DESCRIBE_SECONDS = 5.0


@dataclass(frozen=True)
class Producer:
    """The producer of an open transaction, as far as Kafka tells. Times are Unix, in seconds."""

    producer_id: int | None = None
    transactional_id: str = ""
    state: str = ""  #: of the transaction, by its coordinator
    began: float | None = None
    ends: float | None = None  #: when Kafka aborts it


async def producers(bootstrap: Bootstrap, partitions: Collection[Partition]) -> dict[Partition, Producer]:
    """The producers whose open transactions are the oldest in these partitions, as far as Kafka tells.

    An old broker, or one that does not answer, names none. A user without the right `Describe` on a transactional id
    does not learn it.
    """
    try:
        async with connection.client(bootstrap) as client:
            return await within(_DESCRIBE_SECONDS, _producers(client, partitions))
    except (Unavailable, Refused, KafkaError, NotImplementedError):  # the last: the broker has another version of it
        return {}


async def _producers(client: Any, partitions: Collection[Partition]) -> dict[Partition, Producer]:
    await client.set_topics({topic for topic, _ in partitions})
    by_leader: dict[int, dict[str, list[int]]] = {}
    for topic, number in partitions:
        leader = client.cluster.leader_for_partition(TopicPartition(topic, number))
        if leader is not None and leader >= 0:
            by_leader.setdefault(leader, {}).setdefault(topic, []).append(number)
    requests = {leader: _OfPartitions(_listed(asked), {}) for leader, asked in by_leader.items()}
    answers = await asyncio.gather(*(_ask(client, leader, request) for leader, request in requests.items()))
    oldest = {
        (topic, number): found
        for answer in answers
        for topic, described, _ in answer.topics
        for number, _, _, active, _ in described
        if (found := _oldest(active or ())) is not None
    }
    known = await _transactions(client, set(oldest.values())) if oldest else {}
    return {partition: known.get(found, Producer(found)) for partition, found in oldest.items()}


def _oldest(active: Iterable[tuple[Any, ...]]) -> int | None:
    """The id of the producer whose open transaction begins first; None if none is open."""
    begun = [(start, producer_id) for producer_id, _, _, _, _, start, _ in active if start >= 0]
    return min(begun)[1] if begun else None


async def _transactions(client: Any, producer_ids: Collection[int]) -> dict[int, Producer]:
    """Ask the coordinators, of which each broker may be one, for the transactions of these producers."""
    found: dict[int, Producer] = {}
    for broker in client.cluster.brokers():
        listed = await _ask(client, broker.nodeId, _OfProducers([], sorted(producer_ids), {}))
        names = [transactional_id for transactional_id, *_ in listed.transactions]
        if not names:
            continue
        described = await _ask(client, broker.nodeId, _OfNames(names, {}))
        for error, name, state, timeout, began, producer_id, *_ in described.transactions:
            if not error:
                at = began / 1000 if began > 0 else None
                ends = at + timeout / 1000 if at and state == ONGOING else None
                found[producer_id] = Producer(producer_id, name, state, at, ends)
    return found


def _listed(partitions: Mapping[str, list[int]]) -> list[tuple[str, list[int], dict[int, bytes]]]:
    return [(topic, numbers, {}) for topic, numbers in partitions.items()]


async def _ask(client: Any, broker: int, request: Any) -> Any:
    return await client.send(broker, Prepared(request))


# -- Kafka's requests that aiokafka lacks, as in KIP-664


class _OfPartitionsResponse(Response):  # type: ignore[misc]
    """DescribeProducers: the producers that wrote to a partition, asked from its leader."""

    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        by_topic(
            ("error_code", Int16),
            ("error_message", TEXT),
            (
                "active_producers",
                CompactArray(
                    ("producer_id", Int64),
                    ("producer_epoch", Int32),
                    ("last_sequence", Int32),
                    ("last_timestamp", Int64),
                    ("coordinator_epoch", Int32),
                    ("transaction_start_offset", Int64),
                    TAGS,
                ),
            ),
        ),
        TAGS,
    )


class _OfPartitions(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY: ClassVar[int] = 61
    API_VERSION: ClassVar[int] = 0
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _OfPartitionsResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("name", TEXT), ("partitions", CompactArray(Int32)), TAGS)),
        TAGS,
    )


class _OfProducersResponse(Response):  # type: ignore[misc]
    """ListTransactions: the transactions of producers, asked from their coordinator."""

    API_KEY = 66
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_state_filters", CompactArray(TEXT)),
        (
            "transactions",
            CompactArray(("transactional_id", TEXT), ("producer_id", Int64), ("state", TEXT), TAGS),
        ),
        TAGS,
    )


class _OfProducers(RequestStruct):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 66
    API_VERSION: ClassVar[int] = 0
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _OfProducersResponse
    SCHEMA = Schema(("states", CompactArray(TEXT)), ("producer_ids", CompactArray(Int64)), TAGS)


class _OfNamesResponse(Response):  # type: ignore[misc]
    """DescribeTransactions: transactions by their transactional ids, asked from their coordinator."""

    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transactions",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", TEXT),
                ("state", TEXT),
                ("timeout_ms", Int32),
                ("start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", CompactArray(("topic", TEXT), ("partitions", CompactArray(Int32)), TAGS)),
                TAGS,
            ),
        ),
        TAGS,
    )


class _OfNames(RequestStruct):  # type: ignore[misc]
    API_KEY: ClassVar[int] = 65
    API_VERSION: ClassVar[int] = 0
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _OfNamesResponse
    SCHEMA = Schema(("transactional_ids", CompactArray(TEXT)), TAGS)
