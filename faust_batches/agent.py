"""The body of a batch agent: it handles a partition's batches one after the other, and retries each until finished."""

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
    from .batch import Batch

Handler = Callable[["Batch"], Awaitable[None]]

#: Pause before a batch is retried after its handler raised.
RETRY_SECONDS = 1.0
#: Batches of a partition that may wait for their actor. More would only cost memory: records that arrive meanwhile are
#: gathered into the last one.
WAITING_BATCHES = 3


class Restarts(OneForOneSupervisor):
    """Restarts every actor that a rebalance cancels. Faust's supervisor ends the worker at two restarts in 10 ms."""

    def __init__(self, *services: Any, **kwargs: Any) -> None:
        super().__init__(*services, **{**kwargs, "max_restarts": 1e9, "over": 1e9})


class BatchedTopic(faust.Topic):
    """A topic that consumers never create: they would use the wrong partition count."""

    async def declare(self) -> None:
        return


def in_turn(handle: Handler) -> Handler:
    """Wrap a handler: it gets only the next batch of its partition, and its return finishes the batch."""

    async def handled(batch: Batch) -> None:
        await batch.wait_for_lease()
        async with batch.turn():
            await handle(batch)

    return handled


async def each_batch(stream: Any, handle: Handler, on_batch: OnBatch) -> None:
    """Handle the batches of one partition, one after the other.

    `PartitionLost` drops the batch: the partition's next owner reads it again. After any other error the batch is
    retried; a dropped batch would not be read again before the next rebalance. `Unavailable` was logged where it was
    raised. Any other error is a bug in the handler, and is logged once, not at every attempt.
    """
    stream.enable_acks = False  # else a cancelled actor acknowledges the batch it never finished
    async for event in stream.events():
        event.value.freeze()
        await _handle_one(stream.log, event.value, handle, on_batch)
        await stream.ack(event)


async def _handle_one(log: Any, batch: Batch, handle: Handler, on_batch: OnBatch) -> None:
    logged = None
    for attempt in count(1):
        try:
            with on_batch(batch):
                await handle(batch)
        except PartitionLost as lost:
            log.info("Batch dropped: %s", lost)
            return
        except Unavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            if repr(error) != logged:
                logged = repr(error)
                log.exception("%s: the batch from offset %d failed; trying again", batch.tp, batch.start)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            if logged is not None:
                log.warning("%s: the batch from offset %d succeeded at attempt %d", batch.tp, batch.start, attempt)
            return
