"""The page at `/trace/`: one purchase, step by step. It needs no script."""

from __future__ import annotations

import asyncio
from typing import Any

from shopflow import topics
from shopflow.app import app, connected_kafka, store
from shopflow.errors import Refused, Unavailable
from shopflow.operations.trace import Trace, Tracer
from shopflow.web.answers import within

from .views import html_page

#: Records of a partition that are searched at most. The command `trace` searches more.
SEARCH = 2_000
_SECONDS = 15.0
#: Traces that are made at the same time; others wait. Each opens some connections to Kafka.
_slots = asyncio.Semaphore(2)


@app.page("/trace")
@app.page("/trace/")
async def page(web: Any, request: Any) -> Any:
    wanted = str(request.query.get("purchase", "")).strip()
    found: Trace | None = None
    problems = []
    if wanted:
        try:
            found = await within(_SECONDS, "Kafka or MongoDB", _trace(wanted))
        except (Unavailable, Refused) as error:
            problems.append(f"The purchase can't be followed now: {error}.")
    return html_page(web, "trace.html", title="a purchase", purchase_id=wanted, trace=found, problems=problems)


async def _trace(purchase_id: str) -> Trace:
    async with _slots:
        return await Tracer(connected_kafka(), store, topics.LAYOUT, SEARCH).trace(purchase_id)
