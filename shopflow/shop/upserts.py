"""What happens to a batch of products or customers: decoded, upserted or deleted, bad records dead-lettered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Generic

from faust_batches import Batch
from shopflow.errors import Rejected
from shopflow.store.connection import Patient
from shopflow.store.types import Deletion, Document

from .dead_letters import Rejections
from .decoding import DecodedBatch, Decoder, R, split


@dataclass(eq=False)
class Upserts(Generic[R]):
    """What the agent of a compacted topic does with its batches.

    1. The documents are in MongoDB's journal, or deleted there. 2. The bad records are in the dead letters.
    3. So is what follows from the upserts. Then the batch is finished.

    Arguments:
        mongodb: Asks MongoDB until it answers.
        upsert: Stores documents. Returns what was refused, by index, with the reason.
        delete: Deletes what records without a value name.
        follow: Makes something else of what was accepted. It may come again: then it must change nothing.
    """

    mongodb: Patient[Any]
    rejections: Rejections
    decode: Decoder[R]
    document: Callable[[Any, R], Document]
    _: KW_ONLY
    upsert: Callable[[Sequence[Document]], Awaitable[dict[int, str]]]
    delete: Callable[[Sequence[Deletion]], Awaitable[None]]
    follow: Callable[[Batch, Sequence[tuple[Any, R]]], Awaitable[None]] | None = None

    async def handle(self, batch: Batch) -> None:
        """Upsert or delete what the records say.

        Raises:
            PartitionLost: The batch is no longer ours; the partition's owner gets it again.
        """
        decoded = split(batch.records, self.decode, tombstones=True)
        for upserts, deletions in in_order(decoded, self.document):  # 1
            if upserts:
                refused = await self.mongodb(batch, partial(self.upsert, [document for _, document in upserts]))
                decoded.rejected += [(upserts[n][0], Rejected("refused by MongoDB", why)) for n, why in refused.items()]
            if deletions:
                await self.mongodb(batch, partial(self.delete, deletions))
        async with batch.turn():
            await self.rejections.put(batch, decoded.rejected)  # 2
            if self.follow is not None:
                rejected = {record.offset for record, _ in decoded.rejected}
                await self.follow(batch, [pair for pair in decoded.accepted if pair[0].offset not in rejected])  # 3


def in_order(
    decoded: DecodedBatch[R], document: Callable[[Any, R], Document]
) -> Iterator[tuple[list[tuple[Any, Document]], list[Deletion]]]:
    """Upserts, then the deletions after them, twice: the log's order, as far as it matters.

    A deletion ends what came before it, so what comes after a key's last deletion is upserted after all deletions.
    """
    ends = {deletion.id: deletion.source["offset"] for deletion in decoded.deletions}
    early: list[tuple[Any, Document]] = []
    late: list[tuple[Any, Document]] = []
    for record, event in decoded.accepted:
        made = document(record, event)
        (late if record.offset > ends.get(made["_id"], -1) else early).append((record, made))
    yield early, decoded.deletions
    yield late, []
