"""The consumer group, seen and changed from outside, also while workers run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CommitFailedError, IllegalGenerationError, KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.group import LeaveGroupRequest

from shopflow.errors import Unavailable

from . import connection
from .connection import CHECK_SECONDS
from .security import Bootstrap

T = TypeVar("T")

#: How long workers may keep coming back before the offsets are set.
_RESET_SECONDS = 60.0
_PAUSE_SECONDS = 0.05

#: What Kafka says when offsets are set from outside while the group has members.
_NOT_EMPTY = (CommitFailedError, IllegalGenerationError, UnknownMemberIdError)
#: How long a new broker may take to name the coordinator of a group.
_COORDINATOR_SECONDS = 15.0


@dataclass(frozen=True)
class Group:
    """A consumer group as its coordinator sees it."""

    state: str
    """Kafka's word: `Stable`, `Empty`, `Dead`; another during a rebalance."""

    assignments: tuple[tuple[str, bytes], ...]
    """Each member's client id with host, and what the group's leader gave it: empty until it did."""

    members: tuple[str, ...] = ()
    """The ids of the members: the workers that run, and those whose session has not run out yet."""


async def group_of(bootstrap: Bootstrap, name: str) -> Group:
    """Describe a consumer group; one that does not exist is `Dead`.

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
    """Ask about a group. A new broker has no coordinator for it at first: then ask again.

    Raises:
        KafkaError: One that does not pass, or there is no coordinator after some seconds.
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
    """Set the group's committed offsets.

    Kafka lets nobody do so while the group has members. So they are put out of it: they notice at their next heartbeat,
    join again and start at the offsets that they find. What they had in hand they can't commit any more. Should one be
    back before the offsets are set, it is put out again: when this returns, all begin at the new offsets.

    Arguments:
        offsets: By topic and partition.

    Raises:
        Unavailable: Kafka does not answer, or workers came back faster than they could be put out.
    """
    wanted = {TopicPartition(*partition): offset for partition, offset in offsets.items()}
    deadline = asyncio.get_running_loop().time() + _RESET_SECONDS
    # With assigned partitions it commits for the group without being a member.
    async with connection.consumer(bootstrap, group_id=group, enable_auto_commit=False) as outsider:
        outsider.assign(list(wanted))
        while True:
            await _put_out(bootstrap, group, (await group_of(bootstrap, group)).members)
            try:
                await outsider.commit(wanted)
            except _NOT_EMPTY as error:
                if asyncio.get_running_loop().time() >= deadline:
                    raise Unavailable("Kafka", f"workers of {group} come back too fast; stop them") from error
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return


async def _put_out(bootstrap: Bootstrap, group: str, members: Collection[str]) -> None:
    if not members:
        return
    async with connection.admin(bootstrap) as admin:
        coordinator = await admin.find_coordinator(group)
    client = AIOKafkaClient(**bootstrap.options)
    try:
        await client.bootstrap()
        while not await client.ready(coordinator):
            await asyncio.sleep(_PAUSE_SECONDS)
        for member in members:
            await client.send(coordinator, LeaveGroupRequest(group, member))  # one that has left meanwhile: fine
    finally:
        await client.close()
