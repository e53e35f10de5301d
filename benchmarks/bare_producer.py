"""Sends ready-made events with aiokafka alone: `python -m benchmarks.bare_producer customers|purchases N`.

Its last line is JSON: the seconds for making and for sending the events, by its own clock.
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
    """The report of a run."""

    faker_seconds: float
    """For the import of Faker, and drawing the names and addresses of which customers are made."""

    making_seconds: float
    """For making and encoding the events."""

    sending_seconds: float
    """From the first `send` to the last acknowledgement, without the time for connecting."""

    sending_cpu_seconds: float


def now() -> datetime:
    """The present time in UTC."""
    return datetime.now(timezone.utc)


def events(what: str, count: int) -> Iterator[dict[str, Any]]:
    """The events that shopflow's seeding commands send."""
    from shopflow.commands import samples  # noqa: PLC0415 - imports Faker, whose time is measured

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
    """Make the events, send them, print the report."""
    what, count = sys.argv[1], int(sys.argv[2])
    began = time.monotonic()
    list(events("customers", 1))
    drawn = time.monotonic()
    encode = msgspec.json.Encoder().encode
    rows = [(each["customer_id"].encode(), encode(each)) for each in events(what, count)]
    made = time.monotonic()
    gc.freeze()  # so that the collector does not visit the events while they are sent
    seconds, cpu = asyncio.run(send(f"{PREFIX}{what}", rows))
    print(msgspec.json.encode(Sent(drawn - began, made - drawn, seconds, cpu)).decode(), flush=True)


if __name__ == "__main__":
    main()
