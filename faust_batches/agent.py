"""The body of an agent that gets batches: one batch of a partition after the other, each tried until it is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any

import faust
from mode.supervisors import OneForOneSupervisor

from .errors import PartitionLost, Unavailable

if TYPE_CHECKING:
    from .app import OnBatch
    from .consumer import Batch

Handler = Callable[["Batch"], Awaitable[None]]

#: Pause before a batch is tried again whose handler raised.
RETRY_SECONDS = 1.0
#: Batches of a partition that wait for their agent. More would only cost memory: what comes while a few wait gathers
#: where it was fetched, and is one batch.
WAITING_BATCHES = 3


class Restarts(OneForOneSupervisor):
    """Restarts all actors that a rebalance cancels: Faust's allows one in 10 ms, and ends the worker at the next."""

    def __init__(self, *services: Any, **kwargs: Any) -> None:
        super().__init__(*services, **{**kwargs, "max_restarts": 1e9, "over": 1e9})


class BatchedTopic(faust.Topic):
    """A topic that consumers never create: they would use the wrong partition count."""

    async def declare(self) -> None:
        """Create nothing."""


def in_turn(handle: Handler) -> Handler:
    """Handle a batch only when it is the next of its partition; it is finished when `handle` returns."""

    async def handled(batch: Batch) -> None:
        await batch.wait_for_lease()
        async with batch.turn():
            await handle(batch)

    return handled


async def each_batch(stream: Any, handle: Handler, on_batch: OnBatch) -> None:
    """Handle the batches of one partition, one after the other.

    A `PartitionLost` ends a batch: the partition's next owner gets it again. After anything else the batch is tried
    again: given up, it would be missing to this worker until the next rebalance. Who raised `Unavailable` has logged
    it; any other error is a fault of the program, and logged once, not once a try.
    """
    stream.enable_acks = False  # else a cancelled actor acknowledges the batch it never finished
    async for event in stream.events():
        event.value.freeze()
        await _handle_one(stream.log, event.value, handle, on_batch)
        await stream.ack(event)


async def _handle_one(log: Any, batch: Batch, handle: Handler, on_batch: OnBatch) -> None:
    said = None
    for tries in count(1):
        try:
            with on_batch(batch):
                await handle(batch)
        except PartitionLost as lost:
            log.info("Batch left: %s", lost)
            return
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            if repr(error) != said:
                said = repr(error)
                log.exception("%s from offset %d can't be handled; trying again", batch.tp, batch.start)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if said is not None:
                log.warning("%s from offset %d was handled at the try %d", batch.tp, batch.start, tries)
            return
