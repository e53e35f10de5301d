"""Kafka's requests that aiokafka lacks: what they are made of, and Metadata with topic ids and rights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, ClassVar
from uuid import UUID

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

TEXT = CompactString("utf-8")
TAGS = ("tags", TaggedFields)


def by_topic(*fields: Any) -> tuple[str, Any]:
    """The field `topics`: each has its name and its partitions, and each partition its number and these fields."""
    partitions = ("partitions", CompactArray(("partition", Int32), *fields, TAGS))
    return ("topics", CompactArray(("name", TEXT), partitions, TAGS))


class Prepared:
    """A request of one version, as aiokafka's client takes it."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Any:
        """The request itself.

        Raises:
            NotImplementedError: The broker does not know it.
        """
        first, last = versions.get(self._request.API_KEY, (1, 0))
        if not first <= self._request.API_VERSION <= last:
            raise NotImplementedError(type(self._request).__name__)
        return self._request


class Uuid(AbstractType[UUID]):  # type: ignore[misc]  # aiokafka has no types
    """An id of 16 bytes."""

    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


class MetadataResponse(Response):  # type: ignore[misc]
    """Metadata of version 10: the first with topic ids, of Kafka 2.8."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", TEXT), ("port", Int32), ("rack", TEXT), TAGS)),
        ("cluster_id", TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", TEXT),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        TAGS,
                    ),
                ),
                ("operations", Int32),
                TAGS,
            ),
        ),
        ("cluster_operations", Int32),
        TAGS,
    )


class Metadata(RequestStruct):  # type: ignore[misc]
    """Of named topics, with the rights of this user on them. Creates no topic."""

    API_KEY: ClassVar[int] = 3
    API_VERSION: ClassVar[int] = 10
    FLEXIBLE_VERSION: ClassVar[bool] = True
    RESPONSE_TYPE = MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("name", TEXT), TAGS)),
        ("create", Boolean),
        ("with_cluster_operations", Boolean),
        ("with_operations", Boolean),
        TAGS,
    )

    @classmethod
    def of(cls, names: Iterable[str]) -> Prepared:
        return Prepared(cls([(UUID(int=0), name, {}) for name in names], False, False, True, {}))
