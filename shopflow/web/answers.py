"""The kit of the views: routes, files, pages, bodies, times, and waiting that ends when the worker stops."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiohttp import ETag
from aiohttp.web import Request, Response
from faust.web import View

from faust_batches import Table
from shopflow.app import app
from shopflow.errors import Unavailable

from .access import Refusal, as_json, takes_gzip, unknown_encoding
from .api.forms import Problem

STATIC = Path(__file__).parent / "static"
#: How long the body of a request may take to arrive.
BODY_SECONDS = 10.0
#: When the worker stops, a request that is being answered gets this much more time.
_GRACE_SECONDS = 1.0
#: A rebalance takes about a second. Another worker that asks this one waits up to 5 seconds.
_REBALANCE_SECONDS = 3.0
_REBALANCE_LOOK_SECONDS = 0.05
_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}

T = TypeVar("T")
#: Gets the request and the variables of its path; returns the status and the body of the answer.
Handler = Callable[..., Awaitable[tuple[int, Any]]]


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Make a handler the answer to `get` or `post` of a path, with and without a slash at its end."""

    def register(handler: Handler) -> Handler:
        async def answer(view: View, request: Request, **variables: str) -> Response:
            return as_json(*await handler(request, **variables))

        made: dict[str, Any] = {method: answer, "__doc__": handler.__doc__, "__module__": handler.__module__}
        if method != "get":  # Faust adds HEAD, which has no answer without GET
            made["get_methods"] = classmethod(lambda cls: {method.upper()})
        view = type(handler.__name__, (View,), made)
        for one in (path, path[:-1] if path.endswith("/") else f"{path}/"):
            app.page(one)(view)
        return handler

    return register


async def static_file(request: Request, path: Path, headers: Mapping[str, str] | None = None) -> Response:
    """A file as it was at the first request; 304 if the client has it already."""
    body, packed, etag = await asyncio.to_thread(_packed, path)
    answer = Response(headers={"Cache-Control": "no-cache", "Vary": "Accept-Encoding", **(headers or {})})
    answer.etag = etag
    if any(one.value in {etag.value, "*"} for one in request.if_none_match or ()):
        answer.set_status(304)
        return answer
    answer.content_type, answer.charset = _TYPES[path.suffix], "utf-8"
    answer.body = body
    if takes_gzip(request):
        answer.headers["Content-Encoding"], answer.body = "gzip", packed
    return answer


@cache
def _packed(path: Path) -> tuple[bytes, bytes, ETag]:
    body = path.read_bytes()
    return body, gzip.compress(body), ETag(sha256(body).hexdigest()[:16], is_weak=True)


def owned(table: Table, what: str) -> list[int]:
    """The partitions of a table that this worker owns.

    Raises:
        Refusal: Partitions are being reassigned, or the table is being recovered.
    """
    if not app.serving:
        raise Refusal(503, f"the {what} are being recovered")
    return table.owned_partitions()


async def rebalanced() -> None:
    """Wait while partitions are being reassigned, but not for a long recovery."""
    deadline = time.monotonic() + _REBALANCE_SECONDS
    while not app.serving and not _stopping.is_set() and time.monotonic() < deadline:
        await asyncio.sleep(_REBALANCE_LOOK_SECONDS)


def whole(text: str) -> int:
    """The number in decimal digits; -1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def wrong_field(name: str, message: str) -> Refusal:
    """A parameter of the query is wrong."""
    return Refusal(400, "The query is wrong.", fields=[Problem(name, message)])


def limit_of(request: Request, most: int, default: int) -> int:
    """The entries of a page that `?limit=` asks for.

    Raises:
        Refusal: It is no whole number from 1 to `most`.
    """
    number = whole(request.query.get("limit", str(default)))
    if not 1 <= number <= most:
        raise wrong_field("limit", f"must be a whole number from 1 to {most}")
    return number


def page_of(found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """A page and its `next`, made of up to one entry more than the limit. `next` is None on the last page."""
    return found[:limit], cursor(found[limit - 1]) if len(found) > limit else None


def time_text(time: datetime) -> str:
    """An aware time as all answers have it: 2026-05-01T12:00:00.000Z."""
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def read_json(request: Request, most: int) -> Any:
    """The body, decoded.

    Arguments:
        most: The largest body that is accepted, after decompression, in bytes.

    Raises:
        Refusal: It is not JSON, or too large.
        Unavailable: It does not arrive in time.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise Refusal(415, "Content-Type must be application/json, in UTF-8.")
    if request.headers.get("Content-Encoding", "identity").lower() not in {"identity", "gzip", "deflate"}:
        raise unknown_encoding()
    try:
        body = await within(BODY_SECONDS, "The request", _read(request, most))
    except Unavailable:
        # Else aiohttp would wait for the rest of the body before it closes the connection.
        if request.transport is not None:
            request.transport.close()
        raise
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Refusal(400, f"The body is not JSON: {error}") from error


async def _read(request: Request, most: int) -> bytes:
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > most:
            raise Refusal(413, f"The body is too large: {most} bytes are accepted.")
    return bytes(body)


_stopping = asyncio.Event()


@app.on_before_shutdown.connect
async def _stop(*args: Any, **kwargs: Any) -> None:
    _stopping.set()


async def within(seconds: float, what: str, work: Coroutine[Any, Any, T]) -> T:
    """Wait for the work, up to `seconds`; when the worker stops, only a moment more.

    Arguments:
        what: The name of the server or the client, for the error.

    Raises:
        Unavailable: The work was not done in time. It is cancelled.
    """
    task, stops = asyncio.ensure_future(work), asyncio.ensure_future(_stopping.wait())
    both: set[asyncio.Future[Any]] = {task, stops}
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and stops.done():
            await asyncio.wait({task}, timeout=_GRACE_SECONDS)
        if task.done():
            return task.result()
        raise Unavailable(what, "this worker stops" if stops.done() else f"no answer within {seconds:g} s")
    finally:
        stops.cancel()
        if task.cancel():
            await asyncio.wait({task})
