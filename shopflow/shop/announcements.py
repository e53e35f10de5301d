"""Vouchers and alerts: written to MongoDB, then published to a topic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shopflow.store import types
from shopflow.store.types import Document

#: `App.publish`: topic, partition, keys and values -> done when Kafka has acknowledged them.
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
    """One kind of them: how a document is told, and a document made again of what was told.

    Attributes:
        collection: Where the documents are.

    Arguments:
        shape: What an event has at least, its id first. What is a time here is one in the document.
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
        """The documents of these records of the topic; what is not one of ours is left out."""
        found = []
        for record in records:
            try:
                sent, fields = self._decode(record.value), msgspec.json.decode(record.value)
            except (msgspec.MsgspecError, TypeError):
                continue
            times = {name: getattr(sent, name) for name in self._times}
            found.append({"_id": fields.pop(self._id), **fields, **times})
        return found


class Told:
    """What of a kind was told. Of what was told twice, the first event counts.

    Attributes:
        ids: Of all that were told so far.
        again: How many events repeated one of them.
    """

    def __init__(self, kind: Announcements) -> None:
        self._kind = kind
        self.ids: set[str] = set()
        self.again = 0

    def first(self, records: Iterable[Any]) -> list[Document]:
        """The documents of these records that were not told before."""
        found = []
        for document in self._kind.documents(records):
            if document["_id"] in self.ids:
                self.again += 1
            else:
                self.ids.add(document["_id"])
                found.append(document)
        return found


#: `shop.vouchers`.
VOUCHERS = Announcements(types.VOUCHERS, _Voucher)

#: `shop.alerts`.
ALERTS = Announcements(types.ALERTS, _Alert)
