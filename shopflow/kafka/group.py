"""The consumer group, read and changed from outside, also while workers run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalGenerationError, KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from faust_batches.membership import SET_BACK_BY
from shopflow.errors import Unavailable

from . import connection
from .connection import CHECK_SECONDS
from .security import Bootstrap

T = TypeVar("T")

#: How long the reset of offsets is retried while workers rejoin the group.
_RESET_SECONDS = 60.0
_PAUSE_SECONDS = 0.05

#: Kafka's errors when offsets are set from outside while the group has members.
_NOT_EMPTY = (CommitFailedError, IllegalGenerationError, UnknownMemberIdError)
#: How long a new broker may take to name the coordinator of a group.
_COORDINATOR_SECONDS = 15.0


@dataclass(frozen=True)
class Group:
    """A consumer group as described by its coordinator."""

    state: str
    """`Stable`, `Empty` or `Dead`; another of Kafka's states during a rebalance."""

    assignments: tuple[tuple[str, bytes], ...]
    """Each member's client id with host, and its assignment by the group's leader: empty before the first."""

    members: tuple[str, ...] = ()
    """The member ids of running workers, and of stopped ones until their session timeout."""


async def group_of(bootstrap: Bootstrap, name: str) -> Group:
    """Describe a consumer group. A group that does not exist is `Dead`.

    Raises:
        Unavailable: Kafka does not answer.
    """
    async with connection.admin(bootstrap) as client:

        async def describe(group: str) -> Any:
            (answer,) = await client.describe_consumer_groups([group])
            (described,) = answer.groups
            if described[0]:
                raise for_code(described[0])
            return described

        _, _, state, _, _, members, *_ = await coordinated(describe, name)
    found = [(f"{client_id} at {host}", assignment) for _, client_id, host, _, assignment, *_ in members]
    return Group(state, tuple(sorted(found)), tuple(member[0] for member in members))


async def coordinated(ask: Callable[[str], Awaitable[T]], group: str) -> T:
    """Send a request about a group, and retry while a new broker has no coordinator for it yet.

    Raises:
        KafkaError: The error is not retriable, or there is no coordinator after 15 seconds.
    """
    deadline = asyncio.get_running_loop().time() + _COORDINATOR_SECONDS
    while True:
        try:
            return await ask(group)
        except KafkaError as error:
            if not error.retriable or asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(CHECK_SECONDS)


async def reset_offsets(bootstrap: Bootstrap, group: str, offsets: Mapping[tuple[str, int], int]) -> None:
    """Set the group's committed offsets, also while workers run.

    Kafka refuses this while the group has members. So the members are removed from the group. They notice it at their
    next heartbeat, rejoin, and start at the committed offsets. They can't commit their unfinished batches any more. A
    worker that rejoins before the offsets are set is removed again. On return, all workers start at the new offsets.

    Arguments:
        offsets: By topic and partition.

    Raises:
        Unavailable: Kafka does not answer, or workers kept rejoining before the offsets were set.
    """
    wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, SET_BACK_BY) for tp, offset in offsets.items()}
    deadline = asyncio.get_running_loop().time() + _RESET_SECONDS
    # A consumer with manually assigned partitions commits for the group without being a member.
    async with connection.consumer(bootstrap, group_id=group, enable_auto_commit=False) as outsider:
        outsider.assign(list(wanted))
        while True:
            await _remove_members(bootstrap, group, (await group_of(bootstrap, group)).members)
            try:
                await outsider.commit(wanted)
            except _NOT_EMPTY as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("Kafka", f"workers of {group} rejoin too fast; stop them") from error
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return


async def _remove_members(bootstrap: Bootstrap, group: str, members: Collection[str]) -> None:
    if not members:
        return
    async with connection.admin(bootstrap) as admin:
        coordinator = await admin.find_coordinator(group)
    async with connection.client(bootstrap) as client:
        while not await client.ready(coordinator):
            await asyncio.sleep(_PAUSE_SECONDS)
        for member in members:
            await client.send(coordinator, LeaveGroupRequest(group, member))  # no error if it has left meanwhile
