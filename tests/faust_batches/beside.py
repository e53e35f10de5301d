"""An application with a batch agent, and with Faust's own agent, tables, timer and view beside it."""

from __future__ import annotations

import json
import os
from typing import Any

import faust

from faust_batches import App, Batch

NAME = os.environ.get("NAME", "beside")
app = App(
    NAME,
    broker=os.environ.get("KAFKA", "kafka://localhost"),
    store="rocksdb://?driver=rocksdict",
    topic_partitions=4,
    producer_linger=0.05,  # without it, Faust sends each changelog record of its own tables alone
)


class Seen(faust.Record, serializer="json"):
    """The number of records of a key."""

    seen: int = 0
    era: int = 0
    offset: int = -1


seen = app.exactly_once_table("seen", value=Seen, source=f"{NAME}-batched")
plain = app.Table("plain", default=int)
windowed = app.Table("windowed", default=int).tumbling(3600.0)
ticks = 0


@app.batch_agent(f"{NAME}-batched")
async def batched(batch: Batch) -> None:
    """Count records, a batch at a time."""
    get, rows = seen.reader(batch.tp.partition), dict[bytes, dict[str, int]]()
    for record in batch.records:
        row = rows.setdefault(record.key, json.loads(get(record.key) or b'{"seen": 0, "offset": -1}'))
        if record.offset > row["offset"]:
            row.update(seen=row["seen"] + 1, offset=record.offset)
    await seen.write(batch, [(key, json.dumps(row).encode()) for key, row in rows.items()])


@app.agent(app.topic(f"{NAME}-ordinary", key_type=str, value_type=int, key_serializer="raw", value_serializer="json"))
async def ordinary(stream: Any) -> None:
    """Count events one by one, as any Faust agent does."""
    async for key, number in stream.items():
        plain[key] += number
        windowed[key] += number


@app.timer(0.2)  # type: ignore[untyped-decorator]
async def tick() -> None:
    """Count the calls of the timer."""
    global ticks  # noqa: PLW0603 - the view shows it
    ticks += 1


@app.page("/sums/")
async def sums(web: Any, request: Any) -> Any:
    """The sums of this worker's tables."""
    return web.json(
        {
            "batched": sum(row.seen for row in seen.values()),
            "ordinary": sum(plain.values()),
            "windowed": sum(windowed[key].now() for key in plain.keys()),  # noqa: SIM118 - a table is no dict
            "ticks": ticks,
        }
    )
