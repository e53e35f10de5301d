"""Which member of the consumer group gets which partitions: an even share each, and as few moves as that takes.

Faust lets a member keep up to the largest share while there are standby replicas. So with four partitions, a third
worker that joins two others with two each would get none, and stay idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from faust.assignor.client_assignment import ClientAssignment, CopartitionedAssignment
from faust.assignor.copartitioned_assignor import CopartitionedAssignor
from faust.assignor.partition_assignor import PartitionAssignor


class EvenAssignor(PartitionAssignor):
    """Faust's assignor, of the same protocol, with even shares. The leader of the group assigns for all members."""

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        clients = {member: self._get_client_metadata(each) for member, each in member_metadata.items()}
        subscriptions = {member: list(each.subscription) for member, each in member_metadata.items()}
        self._update_member_urls(clients)
        assignments = {member: ClientAssignment(actives={}, standbys={}) for member in clients}
        group_ids: dict[str, int] = {}
        partitions_by_topic: dict[str, int] = {}
        topics = {topic for each in subscriptions.values() for topic in each}
        by_partitions = sorted(self._get_copartitioned_groups(topics, cluster, subscriptions).items())
        for group_id, (partitions, groups) in enumerate(by_partitions):
            for group in groups:
                shares = {
                    member: client.assignment.copartitioned_assignment(group)
                    for member, client in clients.items()
                    if group.issubset(subscriptions[member])
                }
                _Shares(group, shares, partitions, self.replicas).get_assignment()
                for member, share in shares.items():
                    assignments[member].add_copartitioned_assignment(share)
                group_ids.update(dict.fromkeys(group, group_id))
                partitions_by_topic.update(dict.fromkeys(group, partitions))
        self._global_table_standby_assignments(assignments, partitions_by_topic)
        return self._protocol_assignments(
            assignments,
            self._get_changelog_distribution(assignments),
            self._get_external_topic_distribution(assignments),
            group_ids,
        )


class _Shares(CopartitionedAssignor):
    """The shares in topics with the same number of partitions. Faust deals out the standbys."""

    def get_assignment(self) -> Any:
        shares = list(self._client_assignments.values())
        share_evenly(shares, self.num_partitions)
        for share in shares:
            share.standbys.intersection_update(range(self.num_partitions))
            share.unassign_extras(self.max_capacity, self.replicas)
        self._assign(active=False)
        return self._client_assignments


def share_evenly(shares: Collection[CopartitionedAssignment], partitions: int) -> None:
    """Change the active partitions of the shares, so that each has one owner, and no share is two larger than another.

    A member keeps what it has, up to an even share. Another partition goes to a member with its standby if one has
    room, else to the smallest share.
    """
    smallest, larger = divmod(partitions, len(shares))  # so many shares have one more

    def has_room(share: CopartitionedAssignment) -> bool:
        held = len(share.actives)
        return held < smallest or (held == smallest and sum(len(one.actives) > smallest for one in shares) < larger)

    _leave_one_owner(shares, partitions)
    for place, share in enumerate(sorted(shares, key=lambda share: -len(share.actives))):
        kept = smallest + 1 if place < larger else smallest
        share.actives -= set(sorted(share.actives)[kept:])
    for partition in sorted(set(range(partitions)).difference(*(share.actives for share in shares))):
        able = [share for share in shares if has_room(share)]
        owner = min(able, key=lambda share: (partition not in share.standbys, len(share.actives)))
        owner.standbys.discard(partition)
        owner.actives.add(partition)


def _leave_one_owner(shares: Iterable[CopartitionedAssignment], partitions: int) -> None:
    """Take away partitions that are not there, as of a topic made anew, and those that two members believe to own."""
    owners = Counter(partition for share in shares for partition in share.actives)
    for share in shares:
        for partition in list(share.actives):
            if partition >= partitions or owners[partition] > 1:
                share.actives.remove(partition)
                owners[partition] -= 1
