"""Decides which records of a batch are accepted: those that were, when they came first, and none that was rejected.

A record comes again after a crash and in a replay. `batching.max_event_bytes`, a validator of the database or shopflow
itself may have changed meanwhile. If the record were decided anew, it could be in MongoDB and in the dead letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Generic

from faust_batches import Batch
from shopflow.errors import Rejected
from shopflow.store.connection import Patient

from .dead_letters import Rejections
from .decoding import TOO_LARGE, DecodedBatch, Decoder, R, split
from .documents import source_of


@dataclass(eq=False)
class Decisions(Generic[R]):
    """Decodes batches of one topic.

    1. A record that MongoDB has is accepted. 2. One that the dead letters have is rejected. 3. The decoder and MongoDB
    decide about the others.

    Arguments:
        mongodb: Retries each request until MongoDB answers.
        collection: Where the documents of accepted records are.
    """

    mongodb: Patient[Any]
    rejections: Rejections
    collection: str
    decode: Decoder[R]

    def __post_init__(self) -> None:
        self._id = attrgetter(f"{self.collection.removesuffix('s')}_id")

    async def split(self, batch: Batch, *, tombstones: bool) -> DecodedBatch[R]:
        """Decode the records; see `decoding.split`.

        Raises:
            PartitionLost: The batch is not the next one, or no longer ours.
        """
        batch.require_next()  # else a duplicate could be stored before its original
        decoded = split(batch.records, self.decode, tombstones=tombstones)
        before = await self.rejections.before(batch, [record for record, _ in decoded.accepted])
        doubtful = [pair for pair in decoded.accepted if pair[0].offset in before] if before else []
        for record, error in decoded.rejected:
            if error.reason == TOO_LARGE:
                with suppress(Rejected):
                    doubtful.append((record, self.decode.of_any_size(record.key, record.value)))
        if not doubtful:
            return decoded
        stored = await self._stored(batch, doubtful)
        decoded.rejected = [pair for pair in decoded.rejected if pair[0].offset not in stored]
        rejected = {record.offset for record, _ in decoded.rejected} | (before - stored)
        again = [(record, Rejected("rejected before")) for record, _ in decoded.accepted if record.offset in rejected]
        decoded.rejected += again
        pairs = {record.offset: (record, event) for record, event in [*decoded.accepted, *doubtful]}
        decoded.accepted = [pair for offset, pair in sorted(pairs.items(), key=itemgetter(0)) if offset not in rejected]
        return decoded

    async def refuse(self, batch: Batch, decoded: DecodedBatch[R], refused: Mapping[int, str]) -> None:
        """Reject those records that MongoDB refused, unless it has their documents from before.

        Arguments:
            refused: Why, by offset.
        """
        if refused:
            stored = await self._stored(batch, [pair for pair in decoded.accepted if pair[0].offset in refused])
            decoded.reject({offset: why for offset, why in refused.items() if offset not in stored})

    async def _stored(self, batch: Batch, pairs: Iterable[tuple[Any, R]]) -> set[int]:
        """The offsets of those records from which MongoDB has a document."""
        asked = [(self._id(event), record) for record, event in pairs]
        names = {name for name, _ in asked}
        found = await self.mongodb(batch, lambda: self.mongodb.store.documents(self.collection, names))
        return {record.offset for name, record in asked if found.get(name, {}).get("source") == source_of(record)}
