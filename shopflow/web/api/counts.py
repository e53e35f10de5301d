"""Views of the counts: the sums of a worker, one customer, and the customers of a partition."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec
from yarl import URL

from faust_batches import TOTALS_KEY
from shopflow.app import app
from shopflow.shop.counts import current, decode_count, decode_totals, summed
from shopflow.tables import purchase_counts
from shopflow.web import peers
from shopflow.web.access import Refusal
from shopflow.web.answers import limit_of, owned, page_of, rebalanced, route, whole
from shopflow.web.client import MOST_ROWS

_PEER_SECONDS = 5.0
_FIELDS = ("purchases", "items", "spent")
_ROWS = 1_000
#: Rows read before other coroutines get a turn.
_SLICE = 1_000


@route("get", "/counts/")
async def counts(request: Any) -> tuple[int, Any]:
    """The sums over the partitions that this worker owns."""
    await rebalanced()
    partitions = owned(purchase_counts, "counts")
    return 200, {"partitions": partitions, **summed(purchase_counts.reader, partitions)}


@route("get", "/counts/{customer_id:[^/]+}/")
async def count(request: Any, customer_id: str) -> tuple[int, Any]:
    await rebalanced()
    found = _local_count(customer_id) if peers.LOCAL in request.query else await find(customer_id, _PEER_SECONDS)
    if found is None:
        raise Refusal(404, "this customer never bought anything", customer_id=customer_id)
    return 200, found


@route("get", "/counts/partitions/{partition}/")
async def partition_counts(request: Any, partition: str) -> tuple[int, Any]:
    """The customers of a partition that this worker owns, by id, a page at a time: those after `?after=`."""
    limit = limit_of(request, MOST_ROWS, _ROWS)
    number, after = whole(partition), request.query.get("after", "").encode("utf-8", "surrogatepass")
    rows: list[tuple[bytes, bytes]] = []
    totals = b"{}"
    while True:  # the partition may be revoked while other coroutines run
        if number not in owned(purchase_counts, "counts"):
            raise Refusal(404, "this worker does not own this partition", partition=partition)
        if not rows:
            totals = purchase_counts.reader(number)(TOTALS_KEY) or totals
        wanted = min(_SLICE, limit + 1 - len(rows))
        found = purchase_counts.scan(number, rows[-1][0] if rows else after, wanted)
        rows += found
        if len(found) < wanted or len(rows) > limit:
            break
        await asyncio.sleep(0)
    sums = decode_totals(totals)
    page, following = page_of(rows, limit, lambda row: row[0].decode())
    counts = [(key.decode(), decode_count(value)) for key, value in page]
    return 200, {
        "partition": number,
        "totals": msgspec.to_builtins(sums),
        # Rows of an earlier era do not count. So a page may have fewer rows; the next page starts after them.
        "customers": [
            [name, count.purchases, count.items, count.spent] for name, count in counts if count.era >= sums.era
        ],
        "next": following,
    }


async def find(customer_id: str, seconds: float) -> dict[str, Any] | None:
    """One customer's counts, from the worker that owns the customer's partition; None without purchases.

    Arguments:
        seconds: The time limit of a request to another worker.

    Raises:
        Refusal: Partitions are being reassigned, or the table is being recovered.
        Unavailable: A worker that may have the counts does not answer.
    """
    if found := _local_count(customer_id):
        return found
    first = None
    with suppress(KeyError):  # the router does not know the table yet
        first = URL(str(app.router.key_store(purchase_counts.name, customer_id))).origin()
    for host in sorted(peers.others(), key=lambda host: host != first):  # the most likely one first
        if found := await peers.fetch(host, f"/counts/{quote(customer_id, safe='')}/", dict[str, Any], seconds=seconds):
            return found
    return None


def _local_count(customer_id: str) -> dict[str, Any] | None:
    """A customer's counts in the partitions that this worker owns; None if there are none.

    All partitions are searched: a producer may partition by another hash than Java's, as librdkafka does by default.
    """
    found = None
    for partition in owned(purchase_counts, "counts"):
        if count := current(purchase_counts.reader(partition), customer_id):
            found = found or {"customer_id": customer_id, **dict.fromkeys(_FIELDS, 0)}
            for name in _FIELDS:
                found[name] += getattr(count, name)
    return found
