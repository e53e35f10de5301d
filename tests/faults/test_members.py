"""Workers with names in the group: one that comes back keeps its partitions, and of two with one name one works."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Worker, until

from .crew import Crew, opened_crew

pytestmark = pytest.mark.servers

SIZE = 10_000
_ASSIGNED = "Executing _on_partitions_assigned"
_TAKEN = "Error: another worker has the instance id one: "


@pytest.fixture
def crew(open_shop: OpenShop, rng: random.Random, told: list[Crew]) -> Iterator[Crew]:
    """A crew, whose faults are in the summary. The session timeout is 6 s."""
    with opened_crew(open_shop, rng, SIZE) as crew:
        told.append(crew)
        yield crew


def ends_by_its_name(crew: Crew, worker: Worker) -> None:
    """The worker ends with one clear line. It never got a partition after that."""
    assert worker.wait(60) == 1
    assert worker.output.count(_TAKEN) == 1
    crew.workers.remove(worker)


def test_a_killed_worker_that_comes_back_keeps_its_partitions(
    open_shop: OpenShop, rng: random.Random, told: list[Crew]
) -> None:
    """The others don't even notice. The session is longer than a start takes on a busy machine."""
    with opened_crew(open_shop, rng, SIZE, batching_session_timeout_seconds=30) as crew:
        told.append(crew)
        first, second = crew.start_two()
        crew.share()
        crew.busy(SIZE // 3)
        owned, assigned = first.partitions(), second.output.count(_ASSIGNED)
        for _ in range(2):
            crew.kill(first)
            first = crew.start(first)
            until(lambda: first.partitions() == owned, "it has its partitions again", 60)  # noqa: B023
            crew.busy(SIZE // 6)
        assert second.output.count(_ASSIGNED) == assigned
        crew.check()


def test_of_two_workers_with_one_name_the_first_works(crew: Crew) -> None:
    """The second waits as long as it may take Kafka to remove a dead one, and ends. The first is not disturbed."""
    first = crew.start(instance_id="one")
    crew.takes_over(first)
    second = crew.start(instance_id="one")
    crew.busy(SIZE // 2)
    ends_by_its_name(crew, second)
    assert first.output.count(_ASSIGNED) == 1
    crew.check()


def test_of_two_workers_that_start_with_one_name_one_works(crew: Crew) -> None:
    """Both see that nobody has the name. Kafka lets the later one join in the place of the earlier one."""
    crew.sell(SIZE // 2)
    both = crew.start(instance_id="one"), crew.start(instance_id="one")
    gone = until(lambda: next((each for each in both if each.status is not None), None), "one of them ends", 90)
    assert gone is not None
    ends_by_its_name(crew, gone)
    crew.takes_over(*crew.workers)
    crew.check()


def test_a_frozen_worker_whose_name_was_taken_ends_when_it_wakes_up(crew: Crew) -> None:
    """Its successor has other tables, as on another machine, so it waits for the end of the sleeper's session."""
    sleeper = crew.start(instance_id="one")
    crew.takes_over(sleeper)
    crew.busy(SIZE // 3)
    with crew.frozen(sleeper):
        successor = crew.start(instance_id="one")
        crew.takes_over(successor)
        crew.sell(SIZE // 3)
    ends_by_its_name(crew, sleeper)
    crew.check()
