"""Handles batches of products and customers: upserts, deletions, dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Generic

from faust_batches import Batch
from shopflow.store.types import Deletion, Document

from .decisions import Decisions
from .decoding import DecodedBatch, R


@dataclass(eq=False)
class Upserts(Generic[R]):
    """Handles the batches of a compacted topic.

    1. The upserts and deletions are in MongoDB's journal. 2. The bad records are in the dead letters.
    3. `follow` has returned. Then the batch is finished.

    Arguments:
        document: Makes the document of a record and its event.
        upsert: Upserts documents. Returns the reasons of the refused ones, by index.
        delete: Deletes the documents of records without a value.
        follow: Called with the accepted records. They may be redelivered, so it must be idempotent.
    """

    decisions: Decisions[R]
    document: Callable[[Any, R], Document]
    _: KW_ONLY
    upsert: Callable[[Sequence[Document]], Awaitable[dict[int, str]]]
    delete: Callable[[Sequence[Deletion]], Awaitable[None]]
    follow: Callable[[Batch, Sequence[tuple[Any, R]]], Awaitable[None]] | None = None

    async def handle(self, batch: Batch) -> None:
        """Upsert or delete the documents of these records.

        Raises:
            PartitionLost: The batch is no longer ours; the partition's owner gets it again.
        """
        mongodb = self.decisions.mongodb
        decoded = await self.decisions.split(batch, tombstones=True)
        refusals: dict[int, str] = {}
        for upserts, deletions in in_order(decoded, self.document):  # 1
            if upserts:
                documents = [document for _, document in upserts]
                async for start, refused in mongodb.in_parts(batch, batch.tp.topic, documents, self.upsert):
                    refusals |= {upserts[start + number][0].offset: why for number, why in refused.items()}
            if deletions:
                await mongodb(batch, partial(self.delete, deletions))
        await self.decisions.refuse(batch, decoded, refusals)
        async with batch.turn():
            await self.decisions.rejections.put(batch, decoded.rejected)  # 2
            if self.follow is not None:
                await self.follow(batch, decoded.accepted)  # 3


def in_order(
    decoded: DecodedBatch[R], document: Callable[[Any, R], Document]
) -> Iterator[tuple[list[tuple[Any, Document]], list[Deletion]]]:
    """Yield two pairs of upserts and the deletions that follow them. The result is that of the log's order.

    The second pair has the upserts after their key's last deletion. The first has all other upserts and all deletions.
    """
    ends = {deletion.id: deletion.source["offset"] for deletion in decoded.deletions}
    early: list[tuple[Any, Document]] = []
    late: list[tuple[Any, Document]] = []
    for record, event in decoded.accepted:
        made = document(record, event)
        (late if record.offset > ends.get(made["_id"], -1) else early).append((record, made))
    yield early, decoded.deletions
    yield late, []
