"""Accepts a loss: `verify --accept-loss`. Kafka removed purchases of a partition before a worker read them.

The command leaves a mark with the number of the removed offsets in the topic of retries. `verify` goes on to say the
number, and fails again if more are lost. A replay counts from the first record that Kafka has; then the mark is void.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from shopflow.errors import Refused
from shopflow.kafka import offsets, reading
from shopflow.kafka.security import Bootstrap
from shopflow.shop.layout import Layout

from .letters import leave_mark
from .verify.accounts import Accepted, account
from .verify.tables import Tables

_KEY = re.compile(r"(.+):([0-9]{1,10}):unread")


class Loss(NamedTuple):
    """A partition of the purchases, and what was lost of it."""

    topic: str
    partition: int
    lost: Accepted


async def find(bootstrap: Bootstrap, shop: Layout, text: str) -> Loss:
    """The loss of the partition that this text names.

    Raises:
        Refused: The text is not TOPIC:PARTITION of the purchases, or nothing was lost there.
        Unavailable: Kafka does not answer.
    """
    named = re.fullmatch(r"(.+):([0-9]{1,10})", text)
    if not named or named[1] != shop.purchases:
        raise Refused(f"--accept-loss: {text!r} is not {shop.purchases}:PARTITION, as `verify` names it")
    number = int(named[2])
    span = (await offsets.spans(bootstrap, shop.group, [shop.purchases])).get(shop.purchases, {}).get(number)
    if span is None:
        raise Refused(f"--accept-loss: there is no partition {text}")
    tables = await Tables.read(bootstrap, shop.changelog, shop.partitions)
    found = await account(bootstrap, shop.purchases, number, span, tables)
    if not found.unread:
        raise Refused(f"--accept-loss: of {text}, Kafka removed nothing before a worker read it")
    return Loss(shop.purchases, number, Accepted(found.unread, found.totals.era))


async def accept(bootstrap: Bootstrap, shop: Layout, loss: Loss) -> None:
    """Let `verify` agree in spite of this loss.

    Raises:
        Unavailable: Kafka does not answer.
    """
    await leave_mark(bootstrap, shop, f"{loss.topic}:{loss.partition}:unread", loss.lost, loss.partition)


async def accepted(bootstrap: Bootstrap, shop: Layout) -> Mapping[int, Accepted]:
    """The accepted losses, by partition of the purchases.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found: dict[int, Accepted] = {}
    async with aclosing(reading.by_time(bootstrap, shop.retries)) as records:
        async for record in records:
            named = _KEY.fullmatch((record.key or b"").decode("utf-8", "replace"))
            if named and named[1] == shop.purchases and (lost := _lost(record.value)):
                found[int(named[2])] = lost
    return found


def _lost(value: bytes | None) -> Accepted | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=Accepted)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # another program's
        return None
