"""Open transactions: which partitions they hold up, which producer has them, and the text of the trouble."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from faust_batches import Troubles
from shopflow.kafka import held as module
from shopflow.kafka import offsets, producers
from shopflow.kafka.held import HeldUp, Hold, Watch
from shopflow.kafka.needs import TopicSpec
from shopflow.kafka.offsets import Partition, Span
from shopflow.kafka.producers import Producer
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import ensure_topics
from shopflow.servers.servers import Addresses
from tests.support.transactional import transactional

PLACE = ("shop.purchases", 2)
ORDERS = Producer(7, "orders", "Ongoing", began=1_700_000_000.0, ends=1_700_000_060.0)


class Clock:
    """A fake for the two clocks of `held`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "time", lambda: 1_800_000_000.0 + self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def by_orders(partitions: Collection[Partition]) -> Mapping[Partition, Producer]:
    return dict.fromkeys(partitions, ORDERS)


async def by_nobody(partitions: Collection[Partition]) -> Mapping[Partition, Producer]:
    return {}


def look(held_up: HeldUp, span: Span) -> list[Hold]:
    return asyncio.run(held_up.look({PLACE: span}))


def test_a_transaction_is_told_of_after_the_patience(clock: Clock) -> None:
    held_up = HeldUp(by_orders)
    assert look(held_up, Span(0, 5, 5, held=3)) == []
    assert held_up.undecided
    clock.now += module.PATIENCE_SECONDS - 0.1
    assert look(held_up, Span(0, 5, 5, held=4)) == []
    clock.now += 0.1
    (hold,) = look(held_up, Span(0, 5, 5, held=22))
    assert (hold.subject, hold.records, hold.since) == ("shop.purchases[2]", 22, 1_700_000_000.0)
    assert not held_up.undecided
    assert look(held_up, Span(0, 5, 27)) == []
    assert not held_up.undecided


def test_short_transactions_one_after_the_other_are_normal_work(clock: Clock) -> None:
    """At each look another transaction is open, and the end moves. That is no trouble."""
    held_up = HeldUp(by_orders)
    for end in range(5, 105, 5):
        assert look(held_up, Span(0, 5, end, held=2)) == []
        assert held_up.undecided
        clock.now += module.PATIENCE_SECONDS * 0.9


def test_the_brokers_clock_makes_no_transaction_old(clock: Clock) -> None:
    """By the coordinator's clock `ORDERS` began years ago. Only the time that the worker has seen counts."""
    held_up = HeldUp(by_orders)
    assert look(held_up, Span(0, 5, 5, held=3)) == []


@pytest.mark.parametrize(
    ("producer", "told"),
    [
        (ORDERS, "of the producer orders; look after that producer, or wait until Kafka aborts the transaction at "),
        (Producer(7, "orders", "PrepareAbort"), "of the producer orders; Kafka is ending it"),
        (Producer(7, "orders", "CompleteAbort"), "of the producer orders, which Kafka will not end by itself; abort "),
        (Producer(7), "of an unknown producer with the producer id 7; find it and abort it with "),
        (Producer(), "of an unknown producer; find it and abort it with "),
    ],
)
def test_what_is_known_is_said(producer: Producer, told: str) -> None:
    text = Hold(*PLACE, 22, 1_700_000_000.0, producer).text
    began = "22 offsets of shop.purchases[2] are held up since 2023-11-14 22:13:20 UTC by an open transaction "
    assert text.startswith(began + told)


def test_the_troubles_are_those_of_our_partitions(clock: Clock) -> None:
    """A trouble ends with the transaction, or when the partition is revoked. Only topics of events stop work."""
    troubles, ours = Troubles(), {PLACE, ("shop.purchase-prices", 2)}
    spans = {
        PLACE: Span(0, 5, 5, held=22),
        ("shop.purchase-prices", 2): Span(0, 0, 7, held=1),
        ("shop.purchases", 3): Span(0, 5, 5, held=9),
    }
    watch = Watch(troubles, by_nobody, spans=lambda: spans, ours=lambda: ours, events=["shop.purchases"])

    def present() -> dict[str, bool]:
        asyncio.run(watch.looked())
        assert all(trouble.kind == "open-transaction" for trouble in troubles.present)
        return {trouble.subject: trouble.stops for trouble in troubles.present}

    assert present() == {}
    clock.now += 30
    assert present() == {"shop.purchases[2]": True, "shop.purchase-prices[2]": False}
    assert {trouble.since for trouble in troubles.present} == {1_800_000_100.0}
    ours.remove(PLACE)
    assert present() == {"shop.purchase-prices[2]": False}
    spans["shop.purchase-prices", 2] = Span(0, 0, 8)
    assert present() == {}


# -- with Kafka


@pytest.fixture(scope="module")
def topic(servers: Addresses) -> str:
    name = f"held-{uuid.uuid4().hex[:8]}"
    asyncio.run(ensure_topics(Bootstrap(servers.kafka), [TopicSpec(name, 3, 1)]))
    return name


def known(servers: Addresses, topic: str) -> tuple[dict[int, Span], Mapping[int, Producer]]:
    """The spans and the producers of the topic's partitions, by number."""
    bootstrap = Bootstrap(servers.kafka)
    spans = asyncio.run(offsets.spans(bootstrap, "nobody", [topic]))[topic]
    found = asyncio.run(producers.producers(bootstrap, [(topic, number) for number in spans]))
    return spans, {number: producer for (_, number), producer in found.items()}


def numbers(span: Span) -> tuple[int, int, int]:
    return span.start, span.end, span.high


@pytest.mark.servers
def test_kafka_names_the_two_ends_and_the_oldest_producer(servers: Addresses, topic: str) -> None:
    """The first of two open transactions holds the partition up, and a plain record after them waits too."""
    first, second = f"{topic}-first", f"{topic}-second"
    with transactional(servers.kafka, first) as one, transactional(servers.kafka, second, 60) as two:
        one.begin()
        two.begin()
        assert known(servers, topic)[1] == {}
        began = time.time()
        one.send(topic, 0, b"1", b"2")
        two.send(topic, 0, b"3")
        two.send(topic, 1, b"4")
        spans, found = known(servers, topic)
        assert [numbers(spans[number]) for number in range(3)] == [(0, 0, 3), (0, 0, 1), (0, 0, 0)]
        assert {number: producer.transactional_id for number, producer in found.items()} == {0: first, 1: second}
        assert found[1].state == "Ongoing"
        assert found[1].began == pytest.approx(began, abs=30)
        assert found[1].ends == pytest.approx((found[1].began or 0) + 60)
        one.commit()
        spans, found = known(servers, topic)
        assert numbers(spans[0]) == (0, 2, 4)  # `one`'s records can be read; `two`'s and `one`'s marker can't
        assert found[0].transactional_id == second
        two.abort()
        spans, found = known(servers, topic)
        assert [spans[number].held for number in range(3)] == [0, 0, 0]
        assert found == {}


def test_a_kafka_that_is_away_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older Kafka, whose client has no such request, names no producer either."""
    found: Any = asyncio.run(producers.producers(Bootstrap("127.0.0.1:1"), [PLACE]))
    assert found == {}

    async def old(*arguments: Any) -> Any:
        raise NotImplementedError

    class Connected:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *error: Any) -> None: ...

    monkeypatch.setattr(producers.connection, "client", lambda bootstrap: Connected())
    monkeypatch.setattr(producers, "_producers", old)
    assert asyncio.run(producers.producers(Bootstrap("127.0.0.1:1"), [PLACE])) == {}
