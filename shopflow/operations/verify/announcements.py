"""Checks that each voucher and each alert in MongoDB is as it was published."""

from __future__ import annotations

from typing import Any

from shopflow.kafka import offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.shop.announcements import Announcements, Published
from shopflow.store import MongoStore
from shopflow.store.rules import differences

from .report import Check, FirstTen


async def compare_announcements(
    bootstrap: Bootstrap, group: str, topic: str, kind: Announcements, store: MongoStore
) -> Check:
    """Compare each event of the topic with its document, and each document that came from Kafka with its event.

    Fields and documents that other programs added are ignored.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    published, wrong, name = Published(kind), FirstTen(), kind.collection

    async def compare(records: list[Any]) -> None:
        documents = published.new(records)
        stored = await store.documents(name, [document["_id"] for document in documents])
        for document in documents:
            found = stored.get(document["_id"])
            if found is None:
                wrong.add(f"{document['_id']}: published, and not in MongoDB")
            elif differing := differences(document, found):
                wrong.add(f"{document['_id']}: {', '.join(differing)}")

    spans = (await offsets.spans(bootstrap, group, [topic])).get(topic, {})
    for partition, span in spans.items():
        async with reading.runs(bootstrap, topic, partition, end=span.end) as runs:
            async for run in runs:
                await compare(run)
    if not any(span.start for span in spans.values()):  # else retention may have removed the event
        async for stored_id, _ in store.sources(name):
            if stored_id not in published.ids:
                wrong.add(f"{stored_id}: in MongoDB, and not published")
    return _check(name, published, wrong)


def _check(name: str, published: Published, wrong: FirstTen) -> Check:
    if wrong.count:
        return Check(name, False, f"{wrong.differ()}; `faust -A shopflow replay` restores published {name}")
    if not published.ids:
        return Check(name, True, "none was published")
    repeats = f", {published.repeats} repeats" if published.repeats else ""
    return Check(name, True, f"{len(published.ids)} published, each in MongoDB as it was published{repeats}")
