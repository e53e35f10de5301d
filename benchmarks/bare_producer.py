"""Sends ready-made events as one would with aiokafka alone: `python -m benchmarks.bare_producer customers|purchases N`.

Its last line is JSON: how long making the events took, and how long sending them, by its own clock.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from benchmarks.settings import BROKER, PREFIX

#: Records whose acknowledgements are awaited together.
AT_ONCE = 10_000
BUYERS = 1_000


class Sent(msgspec.Struct):
    """What it reports."""

    faker_seconds: float
    """Importing Faker and drawing the names and addresses that customers are put together from."""

    making_seconds: float
    """Making the events and encoding them."""

    sending_seconds: float
    """From the first `send` until the last acknowledgement; connecting comes before."""

    sending_cpu_seconds: float


def now() -> datetime:
    """In UTC."""
    return datetime.now(timezone.utc)


def events(what: str, count: int) -> Iterator[dict[str, Any]]:
    """The same that shopflow sends."""
    from shopflow.commands import samples  # noqa: PLC0415 - imports Faker, whose time is taken

    if what == "customers":
        return samples.customers(count, None, now())
    buyers = [each["customer_id"] for each in samples.customers(BUYERS, None, now())]
    prices = {each.product_id: each.base_price for each in samples.PRODUCTS}
    return islice(samples.purchases(random.Random(), buyers, list(prices), now, prices), count)


async def send(topic: str, rows: Sequence[tuple[bytes, bytes]]) -> tuple[float, float]:
    """Send keys and values, and await all acknowledgements; returns seconds, and seconds of CPU."""
    async with AIOKafkaProducer(bootstrap_servers=BROKER, acks="all") as producer:
        await producer.partitions_for(topic)
        began, cpu = time.monotonic(), time.process_time()
        for start in range(0, len(rows), AT_ONCE):
            await asyncio.gather(
                *[await producer.send(topic, value, key) for key, value in rows[start : start + AT_ONCE]]
            )
        return time.monotonic() - began, time.process_time() - cpu


def main() -> None:
    """Make, send, report."""
    what, count = sys.argv[1], int(sys.argv[2])
    began = time.monotonic()
    list(events("customers", 1))
    drawn = time.monotonic()
    encode = msgspec.json.Encoder().encode
    rows = [(each["customer_id"].encode(), encode(each)) for each in events(what, count)]
    made = time.monotonic()
    gc.freeze()  # what was made is none of the sending's business
    seconds, cpu = asyncio.run(send(f"{PREFIX}{what}", rows))
    print(msgspec.json.encode(Sent(drawn - began, made - drawn, seconds, cpu)).decode(), flush=True)


if __name__ == "__main__":
    main()
