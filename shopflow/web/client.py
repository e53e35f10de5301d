"""A client of the workers' HTTP interface: the session, and the counts of a partition by pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from shopflow.errors import Unavailable

#: The most customers on a page.
MOST_ROWS = 10_000
#: The time limit of a request.
ANSWER_SECONDS = 10.0


class Page(msgspec.Struct):
    """An answer of `GET /counts/partitions/{partition}/`."""

    totals: dict[str, Any]
    customers: list[tuple[str, int, int, int]]  #: id, purchases, items, spent (grosze)
    next: str | None


def bearer(token: str) -> dict[str, str]:
    """The header with a token; none without a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def session(token: str = "") -> aiohttp.ClientSession:
    """A session that sends the token with each request."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS), headers=bearer(token))


async def ask(http: aiohttp.ClientSession, worker: str, url: str | URL, **options: Any) -> tuple[int, bytes]:
    """The status and body of a worker's answer.

    Raises:
        Unavailable: The worker does not answer.
    """
    try:
        async with http.get(url, **options) as response:
            return response.status, await response.read()
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        raise Unavailable(worker, f"does not answer: {str(error) or type(error).__name__}") from error


async def counts(http: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    """The totals of a worker's partitions; None if it does not answer, or its tables are not complete."""
    try:
        status, body = await ask(http, url, f"{url}/counts/")
    except Unavailable:
        return None
    sums: dict[str, Any] | None = msgspec.json.decode(body) if status == 200 else None
    return sums


async def pages(http: aiohttp.ClientSession, url: str, partition: int) -> AsyncIterator[Page]:
    """The customers of a worker's partition, by id.

    Raises:
        Unavailable: The worker does not answer, or does not own the partition.
    """
    after = ""
    while True:
        query = {"after": after, "limit": str(MOST_ROWS)}
        status, body = await ask(http, url, f"{url}/counts/partitions/{partition}/", params=query)
        if status != 200:
            raise Unavailable(url, f"partition {partition}: {reason(body, status)}")
        try:
            page = msgspec.json.decode(body, type=Page)
        except msgspec.MsgspecError as error:
            raise Unavailable(url, f"partition {partition}: not the answer of a worker: {error}") from error
        yield page
        if page.next is None:
            return
        if page.next.encode() <= after.encode():
            raise Unavailable(url, f"partition {partition}: the next page does not start after this one")
        after = page.next


def reason(body: bytes, status: int) -> str:
    """The error in a worker's answer, or else its status."""
    try:
        return str(msgspec.json.decode(body)["error"])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError):
        return f"answered {status}"
