"""The partitions are shared out evenly, with as few moves as that takes, however members come and go."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from hypothesis import given, settings
from hypothesis import strategies as st

from faust_batches import App
from faust_batches.assignor import EvenAssignor

TOPICS = ["purchases", "counts-changelog"]
Assignments = dict[str, ClientAssignment]


class Group:
    """The members of a consumer group, each with what it was last assigned."""

    def __init__(self, partitions: int, replicas: int) -> None:
        app = App("even", broker="kafka://127.0.0.1:1")
        self.assignor = EvenAssignor(app, replicas=replicas)
        self.partitions = partitions
        self.members: Assignments = {}

    def join(self, name: str) -> None:
        """A member without an assignment joins."""
        self.members[name] = ClientAssignment(actives={}, standbys={})

    def rebalance(self) -> None:
        """Assign for all members, as the leader of the group does, by what they send and get."""
        cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(self.partitions)))
        sent = {
            name: ConsumerProtocolMemberMetadata(
                4, TOPICS, ClientMetadata(assignment=each, url=f"http://{name}", changelog_distribution={}).dumps()
            )
            for name, each in self.members.items()
        }
        answers = self.assignor.assign(cluster, sent)
        self.members = {name: self.received(answer) for name, answer in answers.items()}

    def received(self, answer: Any) -> ClientAssignment:
        metadata: Any = ClientMetadata.loads(self.assignor._decompress(answer.user_data))
        found: ClientAssignment = metadata.assignment
        return found

    def held(self, active: bool = True) -> dict[str, set[int]]:
        """The partitions of each member; they are the same in each topic."""
        found = {}
        for name, one in self.members.items():
            of_topics = [set(each) for _, each in sorted((one.actives if active else one.standbys).items())]
            assert len(of_topics) == len(TOPICS)
            assert of_topics[0] == of_topics[1]
            found[name] = of_topics[0]
        return found


def test_a_third_worker_gets_one_of_four_partitions() -> None:
    """Faust would leave it idle while two have two each. The others keep what they can."""
    group = Group(partitions=4, replicas=1)
    for name in ("a", "b"):
        group.join(name)
        group.rebalance()
    before = group.held()
    group.join("c")
    group.rebalance()
    after = group.held()
    assert sorted(len(each) for each in after.values()) == [1, 1, 2]
    assert after["a"] <= before["a"]
    assert after["b"] <= before["b"]


@settings(max_examples=60, deadline=None)
@given(partitions=st.integers(1, 24), replicas=st.integers(0, 2), choice=st.randoms(use_true_random=False))
def test_shares_stay_even_and_few_partitions_move(partitions: int, replicas: int, choice: random.Random) -> None:
    """Members come and go: each partition has one owner and its copies elsewhere; no more partitions move than must."""
    group = Group(partitions, replicas)
    for number in range(10):
        before = group.held()
        for name in [name for name in before if choice.random() < 0.2]:
            del group.members[name]
        for extra in range(choice.randrange(3) if group.members else 1):
            group.join(f"m{number}-{extra}")
        had = {name: before.get(name, set()) for name in group.members}
        group.rebalance()
        has, copies = group.held(), group.held(active=False)
        assert sorted(one for each in has.values() for one in each) == list(range(partitions))
        sizes = sorted((len(each) for each in has.values()), reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        # The largest shares are for those who had most.
        most = sorted((len(each) for each in had.values()), reverse=True)
        fewest = sum(max(0, before - after) for before, after in zip(most, sizes, strict=True))
        assert sum(len(had[name] - has[name]) for name in has) == fewest
        assert all(has[name].isdisjoint(copies[name]) for name in has)
        assert sum(len(each) for each in copies.values()) == min(replicas, len(has) - 1) * partitions


@pytest.mark.parametrize(("of_a", "of_b"), [(4, 5), (5, 4)])
def test_a_dead_worker_s_partitions_go_to_their_copies(of_a: int, of_b: int) -> None:
    """Who has the standby takes over, if there is room: it need not read the whole changelog."""
    group = Group(partitions=6, replicas=1)
    for name, actives, copies in [("a", [0, 1], [of_a]), ("b", [2, 3], [of_b])]:
        group.members[name] = ClientAssignment(
            actives=dict.fromkeys(TOPICS, actives), standbys=dict.fromkeys(TOPICS, copies)
        )
    group.rebalance()
    assert group.held() == {"a": {0, 1, of_a}, "b": {2, 3, of_b}}


def test_partitions_that_are_gone_and_double_owners_are_put_right() -> None:
    """A topic made anew may have fewer partitions; a worker that slept still believes that it owns some."""
    group = Group(partitions=8, replicas=1)
    group.join("a")
    group.rebalance()
    group.partitions = 4
    group.join("b")
    group.members["b"] = group.members["a"]
    group.rebalance()
    assert sorted(one for each in group.held().values() for one in each) == [0, 1, 2, 3]
    assert [len(each) for each in group.held().values()] == [2, 2]
