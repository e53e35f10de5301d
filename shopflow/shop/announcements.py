"""Vouchers and alerts: written to MongoDB, then published to a topic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shopflow.store import types
from shopflow.store.types import Document

#: `App.publish`: topic, partition, keys and values. Returns when Kafka has acknowledged them.
Publish = Callable[[str, int, Sequence[tuple[bytes, bytes]]], Awaitable[object]]

_encode = msgspec.json.Encoder().encode


class _Source(msgspec.Struct):
    topic: str
    partition: int
    offset: int


class _Voucher(msgspec.Struct):
    voucher_id: str
    issued_at: datetime
    valid_until: datetime
    source: _Source


class _Alert(msgspec.Struct):
    alert_id: str
    since: datetime
    at: datetime


class Announcements:
    """Vouchers or alerts: converts documents to events and back.

    Attributes:
        collection: The collection of the documents.

    Arguments:
        shape: The fields that every event has, its id first. A time here is a time in the document.
    """

    def __init__(self, collection: str, shape: type[msgspec.Struct]) -> None:
        self.collection = collection
        fields = msgspec.structs.fields(shape)
        self._id = fields[0].name
        self._times = [field.name for field in fields if field.type is datetime]
        self._decode = msgspec.json.Decoder(shape).decode

    def event(self, document: Document) -> bytes:
        return _encode({self._id: document["_id"], **{name: it for name, it in document.items() if name != "_id"}})

    def documents(self, records: Iterable[Any]) -> list[Document]:
        """Convert records of the topic to documents. Records of other programs are skipped."""
        found = []
        for record in records:
            try:
                sent, fields = self._decode(record.value), msgspec.json.decode(record.value)
            except (msgspec.MsgspecError, TypeError):
                continue
            times = {name: getattr(sent, name) for name in self._times}
            found.append({"_id": fields.pop(self._id), **fields, **times})
        return found


class Published:
    """The announcements that a topic has. If one was published twice, the first event counts.

    Attributes:
        ids: The ids of all announcements read so far.
        repeats: How many events repeated one of these ids.
    """

    def __init__(self, kind: Announcements) -> None:
        self._kind = kind
        self.ids: set[str] = set()
        self.repeats = 0

    def new(self, records: Iterable[Any]) -> list[Document]:
        """The documents of these records, without those of earlier records."""
        found = []
        for document in self._kind.documents(records):
            if document["_id"] in self.ids:
                self.repeats += 1
            else:
                self.ids.add(document["_id"])
                found.append(document)
        return found


#: `shop.vouchers`.
VOUCHERS = Announcements(types.VOUCHERS, _Voucher)

#: `shop.alerts`.
ALERTS = Announcements(types.ALERTS, _Alert)
