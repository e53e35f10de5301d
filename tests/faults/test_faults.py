"""Each fault by itself, in the middle of 100,000 purchases: nothing is lost, nothing is stored or counted twice.

At the end of each test (`Crew.check`): every purchase is in MongoDB once, with its right price; every customer's
counts are the sums of the purchases, on the workers and on a new one that has only the changelog; every bad record is
in the dead letters once; every voucher that was earned is in MongoDB and in the topic once.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.conftest import OpenShop
from tests.faults import oracle, schedule
from tests.support.shop import Record, until

from .crew import Crew, opened_crew

pytestmark = pytest.mark.servers

SIZE = int(os.environ.get("SHOPFLOW_TEST_FAULTS_PURCHASES", "100000"))
MIXED_ACTIONS = 16
MILLION = 1_000_000
#: The most memory of a worker.
MOST_MEGABYTES = 400

OpenCrew = Callable[..., AbstractContextManager[Crew]]


@pytest.fixture
def open_crew(open_shop: OpenShop, rng: random.Random, told: list[Crew]) -> OpenCrew:
    """Opens a crew (`opened_crew`) whose faults are in the summary."""

    @contextmanager
    def opened(size: int = SIZE, **arguments: Any) -> Iterator[Crew]:
        with opened_crew(open_shop, rng, size, **arguments) as crew:
            told.append(crew)
            yield crew

    return opened


@pytest.fixture
def crew(open_crew: OpenCrew) -> Iterator[Crew]:
    """A crew whose Kafka is shared with other tests."""
    with open_crew() as crew:
        yield crew


def test_two_workers_start_together_into_a_backlog(crew: Crew) -> None:
    """The second join revokes partitions that were just assigned. Their unfinished batches must come again."""
    crew.sell()
    crew.start_two()
    crew.check()


def test_a_worker_killed_in_mid_batch_loses_nothing(crew: Crew) -> None:
    """Each of two workers is killed while it stores purchases, and comes back with its tables."""
    crew.sell(SIZE // 2)
    for worker in crew.start_two():
        crew.busy(SIZE // 5)
        crew.kill(worker)
        crew.start(worker)
    crew.check()


def test_a_worker_killed_in_a_rebalance_loses_nothing(crew: Crew) -> None:
    """The killed worker may be one that loses partitions or the one that gets them."""
    crew.start_two()
    for _ in range(3):
        crew.share()
        crew.busy(SIZE // 4)
        crew.kill_in_rebalance()
    crew.check()


def test_a_worker_killed_in_its_recovery_loses_nothing(open_crew: OpenCrew) -> None:
    """The killed worker has recovered a part of its tables. Its partitions go to others and come back."""
    with open_crew(batching_max_records=200) as crew:  # small batches make a long changelog
        crew.sell(SIZE * 3 // 4)
        first, second = crew.start_two()
        oracle.drained(crew.shop, crew.workers)
        crew.stop(second)
        crew.takes_over(first)
        crew.sell(SIZE // 8)
        crew.kill_in_recovery()
        crew.lose_data(first)
        crew.kill_in_recovery()
        crew.start(first)
        crew.start(second)
        crew.check()


def test_a_worker_that_is_stopped_loses_nothing(crew: Crew) -> None:
    """SIGTERM comes while purchases are stored, first to each worker, then to both."""
    crew.sell(SIZE // 2)
    for worker in crew.start_two():
        crew.busy(SIZE // 8)
        crew.stop(worker)
        crew.start(worker)
    crew.busy(SIZE // 8)
    for worker in list(crew.workers):
        crew.stop(worker)
    crew.start_two()
    crew.check()


def test_a_worker_that_is_frozen_past_its_session_and_wakes_up_changes_nothing(crew: Crew) -> None:
    """Another worker took over the partitions. What the woken one still writes must not count."""
    workers = crew.start_two()
    for sleeper, other in (workers, workers[::-1]):
        crew.share()
        crew.busy(SIZE // 4)
        with crew.frozen(sleeper):
            crew.takes_over(other)
            crew.sell(SIZE // 8)
    crew.check()


def test_a_third_worker_joins_and_leaves(crew: Crew) -> None:
    """A third worker gets partitions while purchases are stored, and is stopped, then killed."""
    crew.sell(SIZE // 4)
    crew.start_two()
    for leave in (crew.stop, crew.kill):
        crew.busy(SIZE // 8)
        third = crew.start()
        until(third.partitions, "it has partitions", 60)
        crew.busy(SIZE // 8)
        leave(third)
    crew.check()


def test_a_worker_without_its_data_directory_recovers(crew: Crew) -> None:
    """A worker that lost its disk recovers its tables from the changelog."""
    crew.sell(SIZE // 2)
    for worker in crew.start_two():
        crew.busy(SIZE // 5)
        crew.lose_data(worker)
        crew.start(worker)
    crew.check()


def test_a_full_disk_is_waited_for(crew: Crew) -> None:
    """RocksDB can't write the counts, so nothing after them is committed. With room on the disk the worker goes on."""
    small, folder = crew.start_on_small_disk(48)
    crew.start()
    crew.share()
    crew.busy(SIZE // 3)
    with crew.disk_full(small, folder):
        crew.sell(SIZE // 3)
        crew.wait(8)
    assert small.status is None, "it waits, it does not end"
    crew.check()
    full, over = (small.output.count(what) for what in ("RocksDB can't write", "RocksDB writes again"))
    # Each partition has a database: one may fail for the first time when the others write again.
    assert 1 <= full == over <= 2, "one line when the disk is full, one when it is not any more"


def test_mongodb_killed_is_waited_for(open_crew: OpenCrew) -> None:
    """Acknowledged writes are in MongoDB's journal, others are tried again. Each outage is two lines in the log."""
    with open_crew() as crew:
        crew.start_two()
        crew.busy(SIZE // 3)
        with crew.killed(crew.mongodb):
            crew.wait(1)
        crew.busy(SIZE // 3)
        with crew.killed(crew.mongodb):
            worker = crew.any_worker()
            crew.kill(worker)
            crew.start(worker)  # it starts while MongoDB is away
            crew.wait(8)
        crew.check()
        crew.check_outages("MongoDB", 2)


def test_mongodb_frozen_for_half_a_minute_is_waited_for(open_crew: OpenCrew) -> None:
    """A frozen MongoDB keeps its connections open and answers nothing. The worker waits, and goes on."""
    with open_crew() as crew:
        crew.start_two()
        crew.busy(SIZE // 2)
        with crew.silent(crew.mongodb):
            crew.sell()
            crew.wait(30)
        crew.check()
        crew.check_outages("MongoDB", 1)


def test_mongodb_that_refuses_writes_is_waited_for(open_crew: OpenCrew) -> None:
    """Missing rights, no primary and no disk make no dead letter. Writes whose answers are lost are stored once."""
    with open_crew(proxied=True) as crew:
        crew.start_two()
        for fault in (crew.refusing, crew.refusing, crew.losing_answers):
            crew.busy(SIZE // 4)
            with fault():
                crew.wait(3)
        crew.check()
        crew.check_outages("MongoDB", 3)


def test_kafka_killed_is_waited_for(open_crew: OpenCrew) -> None:
    """Kafka comes back at its address with its data, and the same workers go on."""
    with open_crew(own_kafka=True) as crew:
        crew.start_two()
        for seconds in (0.0, 8.0):
            crew.busy(SIZE // 3)
            with crew.killed(crew.kafka):
                crew.wait(seconds)
        crew.check()
        crew.check_outages("Kafka", 2)


def test_kafka_frozen_is_waited_for(open_crew: OpenCrew) -> None:
    """Kafka is frozen for less and for more than the session timeout, and the workers go on."""
    with open_crew(own_kafka=True) as crew:
        crew.start_two()
        for seconds in (3.0, 12.0):
            crew.busy(SIZE // 3)
            with crew.silent(crew.kafka):
                crew.wait(seconds)
        crew.check()


def test_a_million_purchases_waiting_for_mongodb_take_no_memory(open_crew: OpenCrew) -> None:
    """Records wait in Kafka, not in the worker's memory. The outage is one line in the log, however long it lasts."""
    with open_crew(proxied=True, size=0, promotions="[]") as crew:
        worker = crew.start().ready(oracle.PARTITIONS)
        until(lambda: "Ready: http" in worker.output, "it has said so")
        said = len(worker.output.splitlines())
        with crew.refusing():
            oracle.send(crew.shop, "purchases", (small_purchase(number) for number in range(MILLION)))
            crew.wait(10)
            peak = crew.note_memory(worker)
            lines = worker.output.splitlines()[said:]
        assert peak < MOST_MEGABYTES
        assert [line for line in lines if not ("MongoDB is away" in line or "MongoDB refuses" in line)] == []
        assert len(lines) == 1
        until(lambda: crew.stored() > MILLION // 20, "the work goes on", 120)
        assert crew.note_memory(worker) < MOST_MEGABYTES
        crew.stop(worker)
        found: dict[int, set[int]] = {number: set() for number in range(oracle.PARTITIONS)}
        for document in crew.shop.db.purchases.find({}, {"source": 1}):
            found[document["source"]["partition"]].add(document["source"]["offset"])
        for partition, offset in crew.shop.committed("purchases").items():
            assert found[partition].issuperset(range(offset)), f"not all of partition {partition} that was committed"


def small_purchase(number: int) -> Record:
    """A small record of a purchase; each number has another one."""
    name = f"customer-{number % oracle.CUSTOMERS}"
    value = (
        f'{{"purchase_id":"small-{number}","customer_id":"{name}","product_id":"product-0","quantity":1,"price":100,'
        '"purchased_at":"2024-03-01T00:00:00Z"}'
    )
    return Record(name.encode(), value.encode())


def test_mixed(open_crew: OpenCrew) -> None:
    """All faults come in a random order, some of them two at a time."""
    with open_crew(own_kafka=True, proxied=True) as crew:
        schedule.run(crew, MIXED_ACTIONS)
        crew.check()
