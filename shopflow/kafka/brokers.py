"""The brokers: whether they are new enough, which version they have, and what time it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

from aiokafka.errors import KafkaError
from aiokafka.protocol.api import RequestStruct, Response, ResponseHeader_v0
from aiokafka.protocol.types import CompactArray, Int16, Int32, Int64, Schema

from shopflow.errors import Refused

from .protocol import TAGS, TEXT, Metadata, Prepared, by_topic

#: The lowest version of Kafka: the first with ids of topics.
LOWEST = "2.8"
#: The release of each level of `metadata.version`: that of the last one in the list is the newest that is known here.
_RELEASES = dict(
    zip(
        (1, 2, 3, 4, 8, 9, 12, 15, 20, 21, 22, 26, 28),
        ("3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4.0", "4.1", "4.2"),
        strict=True,
    )
)
#: DescribeTransactions, which is new in Kafka 3.0.
_OF_TRANSACTIONS = 65
_FINALIZED = 2
_QUORUM = "__cluster_metadata"


@dataclass(frozen=True)
class Broker:
    """A broker.

    Attributes:
        requests: The highest version of each request that it knows, by the request's number.
        level: The cluster's `metadata.version`; None: Kafka has none before 3.3, and with ZooKeeper.
    """

    address: str
    requests: Mapping[int, int]
    level: int | None

    @property
    def old(self) -> bool:
        """True if it is too old for shopflow."""
        return self.requests.get(Metadata.API_KEY, -1) < Metadata.API_VERSION

    @property
    def too_old(self) -> str:
        return (
            f"Kafka at {self.address} does not know ids of topics: shopflow needs Kafka {LOWEST} or later, and this "
            f"broker is of a version {self.release}"
        )

    @property
    def release(self) -> str:
        """Kafka's version, as far as it can be told."""
        if self.level is not None:
            newest = max(level for level in (*_RELEASES, 0) if level <= self.level)
            return f"{_RELEASES.get(newest, LOWEST)}{' or later' if newest == max(_RELEASES) else ''}"
        return "3.0 or later" if _OF_TRANSACTIONS in self.requests else f"before {LOWEST}" if self.old else LOWEST


async def look(client: Any) -> list[Broker]:
    """All brokers. `client` is that of `connection.client`.

    Raises:
        KafkaError: A broker does not answer.
    """
    return [await _asked(client, broker) for broker in client.cluster.brokers()]


async def check(client: Any) -> None:
    """Check that the brokers are new enough.

    Raises:
        Refused: One is too old.
        KafkaError: A broker does not answer.
    """
    for broker in await look(client):
        if broker.old:
            raise Refused(f"broker: {broker.too_old}")


async def _asked(client: Any, broker: Any) -> Broker:
    address = f"{broker.host}:{broker.port}"
    try:
        answer = await client.send(broker.nodeId, Prepared(_ApiVersions("shopflow", "1", {})))
    except NotImplementedError:  # before Kafka 2.4
        return Broker(address, {}, None)
    finalized = answer.tags.get(_FINALIZED)
    features = _FEATURES.decode(BytesIO(finalized)) if finalized else []
    levels = [highest for name, highest, *_ in features or [] if name == "metadata.version"]
    return Broker(address, {key: last for key, _, last, _ in answer.requests}, next(iter(levels), None))


async def time(client: Any) -> float | None:
    """The Unix time in seconds at the controller of Kafka's brokers.

    None: Kafka does not tell it before 3.3, with ZooKeeper, and to a user without the right to describe the cluster.
    """
    request = _DescribeQuorum([(_QUORUM, [(0, {})], {})], {})
    try:
        answer = await client.send(client.get_random_node(), Prepared(request))
    except (NotImplementedError, KafkaError):
        return None
    for _, partitions, _ in answer.topics or []:
        for _, _, leader, _, _, voters, *_ in partitions:
            for replica, _, _, caught_up, _ in voters:
                if replica == leader and caught_up > 0:
                    return float(caught_up / 1000)  # the leader itself has caught up when it is asked
    return None


# -- Kafka's requests that aiokafka lacks

_FEATURES = CompactArray(("name", TEXT), ("highest", Int16), ("lowest", Int16), TAGS)


class _ApiVersionsResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 18
    API_VERSION = 3
    SCHEMA = Schema(
        ("error_code", Int16),
        ("requests", CompactArray(("key", Int16), ("first", Int16), ("last", Int16), TAGS)),
        ("throttle_time_ms", Int32),
        TAGS,
    )


class _ApiVersions(RequestStruct):  # type: ignore[misc]
    """The requests that a broker knows, and since KIP-584 the cluster's features."""

    API_KEY: ClassVar[int] = 18
    API_VERSION: ClassVar[int] = 3
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _ApiVersionsResponse
    SCHEMA = Schema(("client", TEXT), ("client_version", TEXT), TAGS)

    def parse_response_header(self, read_buffer: Any) -> Any:
        return ResponseHeader_v0.decode(read_buffer)  # of this request alone it is never flexible


_REPLICAS = CompactArray(
    ("replica", Int32), ("log_end_offset", Int64), ("last_fetch", Int64), ("last_caught_up", Int64), TAGS
)


class _DescribeQuorumResponse(Response):  # type: ignore[misc]
    API_KEY = 55
    API_VERSION = 1
    SCHEMA = Schema(
        ("error_code", Int16),
        by_topic(
            ("error_code", Int16),
            ("leader", Int32),
            ("leader_epoch", Int32),
            ("high_watermark", Int64),
            ("voters", _REPLICAS),
            ("observers", _REPLICAS),
        ),
        TAGS,
    )


class _DescribeQuorum(RequestStruct):  # type: ignore[misc]
    """The controllers, by KIP-836 with the times at which they were up to date."""

    API_KEY: ClassVar[int] = 55
    API_VERSION: ClassVar[int] = 1
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = _DescribeQuorumResponse
    SCHEMA = Schema(by_topic(), TAGS)
