"""Web views of the counts."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from yarl import URL

from .app import app
from .counting import TOTALS_KEY, current, decode_totals
from .tables import purchase_counts

__all__ = ["count", "counts"]

_PEER_SECONDS = 5.0
#: Marks a request that one worker makes of another: answer from what you have, ask nobody.
_LOCAL = "local"
_FIELDS = ("purchases", "items", "spent")


@app.page("/counts/")
async def counts(web: Any, request: Any) -> Any:
    """The sums over the partitions that this worker owns."""
    if not app.serving:
        return _unavailable(web, "the counts are being recovered")
    partitions = purchase_counts.partitions_owned()
    sums = dict.fromkeys(("customers", *_FIELDS), 0)
    for partition in partitions:
        if value := purchase_counts.getter(partition)(TOTALS_KEY):
            totals = decode_totals(value)
            for name in sums:
                sums[name] += getattr(totals, name)
    return web.json({"partitions": partitions, **sums})


@app.page("/counts/{customer_id}/")
async def count(web: Any, request: Any, customer_id: str) -> Any:
    """One customer's counts, from whichever worker has them."""
    if not app.serving:
        return _unavailable(web, "the counts are being recovered")
    found = _local_count(customer_id)
    if found is None and _LOCAL not in request.query:
        try:
            found = await _ask_others(customer_id, request.url)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return _unavailable(web, f"another worker does not answer: {error or type(error).__name__}")
    if found is None:
        return web.json({"error": "this customer never bought anything", "customer_id": customer_id}, status=404)
    return web.json(found)


def _unavailable(web: Any, reason: str) -> Any:
    return web.json({"error": reason}, status=503, headers={"Retry-After": "1"})


def _local_count(customer_id: str) -> dict[str, Any] | None:
    """A customer's counts in the partitions that this worker owns; None if there are none.

    Looked for in all of them: a producer may partition by another hash than Java's, as librdkafka's do by default.
    """
    found = None
    for partition in purchase_counts.partitions_owned():
        if count := current(purchase_counts.getter(partition), customer_id):
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
        async with app.http_client.get(peer.with_query({_LOCAL: "1"}), timeout=timeout) as response:
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
