"""What `doctor` says of unread events and open transactions: how old is too old."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from time import time

import pytest

from shopflow.kafka.needs import Found
from shopflow.kafka.offsets import Partition, Span
from shopflow.kafka.producers import ONGOING, Producer
from shopflow.kafka.security import Bootstrap
from shopflow.operations import doctor
from shopflow.operations.verify.report import Check
from shopflow.topics import LAYOUT

KAFKA = Bootstrap("kafka:1")
PURCHASES = LAYOUT.purchases
TWO_HOURS = str(2 * 3_600_000)


def look(monkeypatch: pytest.MonkeyPatch, age: float, policy: str = "delete", kept: str = TWO_HOURS) -> Check:
    """Of a record that was sent so many seconds ago, and is not read yet."""

    async def times(_: Bootstrap, spans: Mapping[Partition, Span]) -> dict[Partition, float]:
        return dict.fromkeys(spans, time() - age)

    monkeypatch.setattr(doctor.offsets, "times", times)
    topics = {PURCHASES: Found("id", 1, configs={"cleanup.policy": policy, "retention.ms": kept})}
    spans = {PURCHASES: {0: Span(0, 3, 5), 1: Span(0, 4, 4)}}
    return asyncio.run(doctor.unread(KAFKA, LAYOUT, spans, topics))


def test_an_unread_record_that_kafka_deletes_soon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """From half of its time on: then there is time left to start a worker."""
    assert look(monkeypatch, 3_500).good
    found = look(monkeypatch, 5_400)
    assert found.good is False
    assert (
        f"the oldest unread record of {PURCHASES}[0] is 1.5 hours old, and Kafka deletes it when it is 2"
        in found.detail
    )
    assert f"{PURCHASES}[1]" not in found.detail


def test_what_kafka_keeps_is_not_deleted_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(monkeypatch, 1e9, kept="-1").good
    assert look(monkeypatch, 1e9, policy="compact").good


@pytest.mark.parametrize(("age", "good", "says"), [(60.0, False, "slow-one"), (1.0, None, "normal for some seconds")])
def test_a_transaction_is_bad_once_it_is_open_for_long(
    age: float, good: bool | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def producers(_: Bootstrap, partitions: Collection[Partition]) -> dict[Partition, Producer]:
        return {one: Producer(7, "slow-one", ONGOING, time() - age) for one in partitions}

    monkeypatch.setattr(doctor.producers, "producers", producers)
    found = asyncio.run(doctor.transactions(KAFKA, {PURCHASES: {0: Span(0, 3, 3, held=2), 1: Span(0, 4, 4)}}))
    assert found.good is good
    assert "2 offsets of" in found.detail
    assert says in found.detail
    assert asyncio.run(doctor.transactions(KAFKA, {PURCHASES: {0: Span(0, 3, 3)}})).good
