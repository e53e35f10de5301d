"""The consumer group's offsets set anew from outside, also while workers run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CommitFailedError, IllegalGenerationError, KafkaError, UnknownMemberIdError
from aiokafka.protocol.group import LeaveGroupRequest

from shopflow.errors import Unavailable

from . import connection as kafka
from .security import Bootstrap

__all__ = ["reset_offsets"]

#: How long workers may keep coming back before the offsets are set.
_RESET_SECONDS = 60.0
_PAUSE_SECONDS = 0.05

#: What Kafka says when offsets are set from outside while the group has members.
_NOT_EMPTY = (CommitFailedError, IllegalGenerationError, UnknownMemberIdError)


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
    wanted = {TopicPartition(*place): offset for place, offset in offsets.items()}
    deadline = asyncio.get_running_loop().time() + _RESET_SECONDS
    while True:
        for member in (await kafka.group_of(bootstrap, group)).members:
            await _put_out(bootstrap, group, member)
        try:
            async with _outsider(bootstrap, group) as consumer:
                consumer.assign(list(wanted))
                await consumer.commit(wanted)
        except _NOT_EMPTY as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable("Kafka", f"workers of {group} come back too fast; stop them") from error
            await asyncio.sleep(_PAUSE_SECONDS)
        except KafkaError as error:
            raise Unavailable("Kafka", error) from error
        else:
            return


@asynccontextmanager
async def _outsider(bootstrap: Bootstrap, group: str) -> AsyncIterator[Any]:
    """A consumer that can commit for the group without being a member."""
    consumer = AIOKafkaConsumer(**bootstrap.options, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def _put_out(bootstrap: Bootstrap, group: str, member: str) -> None:
    """As if the member had said goodbye."""
    async with kafka.admin(bootstrap) as admin:
        coordinator = await admin.find_coordinator(group)
    client = AIOKafkaClient(**bootstrap.options)
    try:
        await client.bootstrap()
        while not await client.ready(coordinator):
            await asyncio.sleep(_PAUSE_SECONDS)
        await client.send(coordinator, LeaveGroupRequest(group, member))  # one that has left meanwhile: fine
    except KafkaError as error:
        raise Unavailable("Kafka", error) from error
    finally:
        await client.close()
