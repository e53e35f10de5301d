"""Checks that each voucher and each alert is in MongoDB as it was published."""

from __future__ import annotations

from typing import Any

from shopflow.kafka import offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.shop.announcements import Announcements, Told
from shopflow.store import MongoStore
from shopflow.store.rules import differences

from .report import Check, FirstTen


async def compare_announcements(
    bootstrap: Bootstrap, group: str, topic: str, kind: Announcements, store: MongoStore
) -> Check:
    """Compare the events of the topic with the documents, and those that came from Kafka with the events.

    What other programs add to a document, or store beside them, is theirs.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    told, wrong, name = Told(kind), FirstTen(), kind.collection

    async def take(records: list[Any]) -> None:
        documents = told.first(records)
        stored = await store.documents(name, [document["_id"] for document in documents])
        for document in documents:
            found = stored.get(document["_id"])
            if found is None:
                wrong.add(f"{document['_id']}: told, and not in MongoDB")
            elif differing := differences(document, found):
                wrong.add(f"{document['_id']}: {', '.join(differing)}")

    spans = (await offsets.spans(bootstrap, group, [topic])).get(topic, {})
    for partition, span in spans.items():
        async with reading.runs(bootstrap, topic, partition, end=span.end) as runs:
            async for run in runs:
                await take(run)
    if not any(span.start for span in spans.values()):  # else retention may have removed the event
        async for stored_id, _ in store.sources(name):
            if stored_id not in told.ids:
                wrong.add(f"{stored_id}: in MongoDB, and not told")
    return _check(name, told, wrong)


def _check(name: str, told: Told, wrong: FirstTen) -> Check:
    if wrong.count:
        return Check(name, False, f"{wrong.differ()}; `faust -A shopflow replay` restores what was told")
    if not told.ids:
        return Check(name, True, "none was told")
    again = f", {told.again} told again" if told.again else ""
    return Check(name, True, f"{len(told.ids)} told, each in MongoDB as it was told{again}")
