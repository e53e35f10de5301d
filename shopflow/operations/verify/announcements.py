"""Is each voucher and each alert in MongoDB as it was published?"""

from __future__ import annotations

from typing import Any

from shopflow.kafka import connection as kafka
from shopflow.kafka.security import Bootstrap
from shopflow.shop.announcements import Announcements, Told
from shopflow.store import MongoStore
from shopflow.store.rules import differences
from shopflow.store.types import Document

from .report import Check, FirstTen


async def compare_announcements(
    bootstrap: Bootstrap, group: str, topic: str, kind: Announcements, store: MongoStore
) -> Check:
    """Compare the events of the topic with the documents, and those that came from Kafka with the events.

    What other programs add to a document, or store beside them, is theirs.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    comparison = _Comparison(kind, store)
    spans = (await kafka.spans(bootstrap, group, [topic])).get(topic, {})
    for partition, span in spans.items():
        await kafka.each_run(bootstrap, topic, partition, span.end, comparison.take)
    if not any(span.start for span in spans.values()):  # else what retention removed is not missed
        await comparison.look_back()
    return comparison.check()


class _Comparison:
    """What was found so far."""

    def __init__(self, kind: Announcements, store: MongoStore) -> None:
        self._collection = kind.collection
        self._store = store
        self._told = Told(kind)
        self._wrong = FirstTen()

    async def take(self, records: list[Any]) -> None:
        """Compare a run of the topic's records with their documents."""
        told = self._told.first(records)
        stored = await self._store.documents(self._collection, [document["_id"] for document in told])
        for document in told:
            self._compare(document, stored.get(document["_id"]))

    def _compare(self, document: Document, stored: Document | None) -> None:
        if stored is None:
            self._wrong.add(f"{document['_id']}: told, and not in MongoDB")
        elif found := differences(document, stored):
            self._wrong.add(f"{document['_id']}: {', '.join(found)}")

    async def look_back(self) -> None:
        """Find documents that name the event they are for, and were never published."""
        async for name, _ in self._store.sources(self._collection):
            if name not in self._told.ids:
                self._wrong.add(f"{name}: in MongoDB, and not told")

    def check(self) -> Check:
        """The verdict."""
        name = self._collection
        if self._wrong.count:
            way_out = "`faust -A shopflow replay` restores what was told"
            return Check(name, False, f"{self._wrong.differ()}; {way_out}")
        if not self._told.ids:
            return Check(name, True, "none was told")
        again = f", {self._told.again} told again" if self._told.again else ""
        return Check(name, True, f"{len(self._told.ids)} told, each in MongoDB as it was told{again}")
