"""Web views of the counts."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from faust_batches import TOTALS_KEY
from shopflow.app import app
from shopflow.shop.counts import current, decode_count, decode_totals, summed
from shopflow.tables import purchase_counts
from shopflow.web import peers
from shopflow.web.answers import unavailable, whole
from shopflow.web.client import MOST_ROWS

__all__ = ["count", "counts", "partition_counts"]

_PEER_SECONDS = 5.0
#: Marks a request that one worker makes of another: answer from what you have, ask nobody.
_LOCAL = "local"
_FIELDS = ("purchases", "items", "spent")
_RECOVERING = "the counts are being recovered"
_ROWS = 1_000
#: Rows read before other coroutines get a turn.
_SLICE = 1_000


@app.page("/counts/")
async def counts(web: Any, request: Any) -> Any:
    """The sums over the partitions that this worker owns."""
    if not app.serving:
        return unavailable(web, _RECOVERING)
    partitions = purchase_counts.owned_partitions()
    return web.json({"partitions": partitions, **summed(purchase_counts.reader, partitions)})


@app.page("/counts/{customer_id:[^/]+}/")
async def count(web: Any, request: Any, customer_id: str) -> Any:
    """One customer's counts, from whichever worker has them."""
    if not app.serving:
        return unavailable(web, _RECOVERING)
    found = _local_count(customer_id)
    if found is None and _LOCAL not in request.query:
        try:
            found = await _ask_others(customer_id, request.url)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return unavailable(web, f"another worker does not answer: {str(error) or type(error).__name__}")
    if found is None:
        return web.json({"error": "this customer never bought anything", "customer_id": customer_id}, status=404)
    return web.json(found)


@app.page("/counts/partitions/{partition}/")
async def partition_counts(web: Any, request: Any, partition: str) -> Any:
    """The customers of a partition that this worker owns, by id, a page at a time: those behind `?after=`."""
    limit = _limit(request.query.get("limit", str(_ROWS)))
    if limit is None:
        return web.json({"error": f"limit: must be a whole number from 1 to {MOST_ROWS}"}, status=400)
    number, after = whole(partition), request.query.get("after", "").encode("utf-8", "surrogatepass")
    rows: list[tuple[bytes, bytes]] = []
    totals = b"{}"
    while True:  # the partition may go while the others have their turn
        if not app.serving:
            return unavailable(web, _RECOVERING)
        if number not in purchase_counts.owned_partitions():
            return web.json({"error": "this worker does not own this partition", "partition": partition}, status=404)
        if not rows:
            totals = purchase_counts.reader(number)(TOTALS_KEY) or totals
        wanted = min(_SLICE, limit + 1 - len(rows))  # one more than asked for: is there a next page?
        found = purchase_counts.scan(number, rows[-1][0] if rows else after, wanted)
        rows += found
        if len(found) < wanted or len(rows) > limit:
            break
        await asyncio.sleep(0)
    sums = decode_totals(totals)
    counts = [(key.decode(), decode_count(value)) for key, value in rows[:limit]]
    return web.json(
        {
            "partition": number,
            "totals": msgspec.to_builtins(sums),
            # Those of an era before count no more. So a page may have fewer rows, but the next one starts behind them.
            "customers": [
                [name, count.purchases, count.items, count.spent] for name, count in counts if count.era >= sums.era
            ],
            "next": rows[limit - 1][0].decode() if len(rows) > limit else None,
        }
    )


def _limit(text: str) -> int | None:
    number = whole(text)
    return number if 1 <= number <= MOST_ROWS else None


def _local_count(customer_id: str) -> dict[str, Any] | None:
    """A customer's counts in the partitions that this worker owns; None if there are none.

    Looked for in all of them: a producer may partition by another hash than Java's, as librdkafka's do by default.
    """
    found = None
    for partition in purchase_counts.owned_partitions():
        if count := current(purchase_counts.reader(partition), customer_id):
            found = found or {"customer_id": customer_id, **dict.fromkeys(_FIELDS, 0)}
            for name in _FIELDS:
                found[name] += getattr(count, name)
    return found


async def _ask_others(customer_id: str, url: URL) -> dict[str, Any] | None:
    """Ask the other workers, the one that Faust's router names first.

    Raises:
        aiohttp.ClientError, asyncio.TimeoutError: One that may have the counts does not answer.
    """
    for host in _others(customer_id):
        peer = url.with_scheme(host.scheme or "http").with_host(host.host or "").with_port(host.port)
        timeout = aiohttp.ClientTimeout(total=_PEER_SECONDS)
        async with app.http_client.get(
            peer.with_query({_LOCAL: "1"}), timeout=timeout, headers=peers.headers()
        ) as response:
            if response.status == 200:
                answer: dict[str, Any] = await response.json()
                return answer
            if response.status != 404:
                raise aiohttp.ClientError(f"{host} answered {response.status}")
    return None


def _others(customer_id: str) -> list[URL]:
    me = app.conf.canonical_url
    hosts = {URL(str(host)) for host in app.router.tables_metadata()} - {URL(str(me))}
    try:
        first = URL(str(app.router.key_store(purchase_counts.name, customer_id)))
    except KeyError:
        first = me
    return sorted(hosts, key=lambda host: (host != first, str(host)))
