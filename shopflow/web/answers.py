"""One kit for the JSON views: routes, refusals, pages, bodies, and waiting that ends when the worker stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp.web import Request, Response
from faust.web import View

from faust_batches import Table
from shopflow.app import app
from shopflow.errors import Unavailable

from .api.forms import Problem

#: What a client waits before it tries again, after 503.
RETRY_SECONDS = 1
#: How long a request may take to come.
BODY_SECONDS = 10.0
#: Work that is under way when the worker stops has so long to end.
_GRACE_SECONDS = 1.0

T = TypeVar("T")
#: Gets the request and the variables of its path; returns the status and what is to be JSON.
Handler = Callable[..., Awaitable[tuple[int, Any]]]


# -- refusals


class Refusal(Exception):  # noqa: N818 - an answer, named as such
    """The request can't be answered as asked; after 503 the client may try again.

    Arguments:
        message: What is wrong, in a sentence: `error` in the answer.
        more: What stands beside it in the answer; `fields` has a `Problem` for each field that is wrong.
    """

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.more = more


def wrong_field(name: str, message: str) -> Refusal:
    """A parameter of the query is wrong, named in `fields`."""
    return Refusal(400, "The query is wrong.", fields=[Problem(name, message)])


def wrong_parameter(name: str, message: str) -> Refusal:
    """A parameter of the query is wrong, named in `error`."""
    return Refusal(400, f"{name}: {message}")


# -- routes


def route(method: str, path: str, headers: Mapping[str, str] | None = None) -> Callable[[Handler], Handler]:
    """Make a handler the answer to `get` or `post` of a path, with and without a slash at its end.

    Arguments:
        headers: Of each answer that is no refusal.
    """

    def register(handler: Handler) -> Handler:
        async def answer(view: View, request: Request, **variables: str) -> Response:
            return await answered(handler(request, **variables), headers)

        made = {method: answer, "__doc__": handler.__doc__, "__module__": handler.__module__}
        view = type(handler.__name__, (View,), made)
        for one in (path, path[:-1] if path.endswith("/") else f"{path}/"):
            app.page(one)(view)
        return handler

    return register


async def answered(handled: Awaitable[tuple[int, Any]], headers: Mapping[str, str] | None = None) -> Response:
    """The answer in JSON: what a handler returns, or why it refuses."""
    try:
        status, body = await handled
    except (Refusal, Unavailable) as error:
        refusal = error if isinstance(error, Refusal) else Refusal(503, str(error))
        status, body = refusal.status, {"error": str(refusal), **refusal.more}
        headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    encoded = msgspec.json.encode(body, enc_hook=str)
    return Response(body=encoded, status=status, headers=headers, content_type="application/json", charset="utf-8")


def owned(table: Table, what: str) -> list[int]:
    """The partitions of a table that this worker can answer for.

    Raises:
        Refusal: They change hands, or are being recovered.
    """
    if not app.serving:
        raise Refusal(503, f"the {what} are being recovered")
    return table.owned_partitions()


# -- pages


def whole(text: str) -> int:
    """The number in decimal digits; -1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def limit_of(request: Request, most: int, default: int, wrong: Callable[[str, str], Refusal] = wrong_field) -> int:
    """How many entries of a page are asked for in `?limit=`.

    Raises:
        Refusal: It is no whole number from 1 to `most`.
    """
    number = whole(request.query.get("limit", str(default)))
    if not 1 <= number <= most:
        raise wrong("limit", f"must be a whole number from 1 to {most}")
    return number


def page_of(found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """What was read, one entry more than the limit, as a page and the `next` of it; None: it is the last."""
    return found[:limit], cursor(found[limit - 1]) if len(found) > limit else None


# -- bodies


async def read_json(request: Request, most: int) -> Any:
    """The body, decoded.

    Arguments:
        most: The largest body that is read, in bytes.

    Raises:
        Refusal: It is not JSON, or too large.
        Unavailable: It does not come.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise Refusal(415, "Content-Type must be application/json, in UTF-8.")
    try:
        body = await within(BODY_SECONDS, "The request", _read(request, most))
    except Unavailable:
        # A client that goes on sending is not waited for, as aiohttp would do before it closes the connection.
        if request.transport is not None:
            request.transport.close()
        raise
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Refusal(400, f"The body is not JSON: {error}") from error


async def _read(request: Request, most: int) -> bytes:
    too_large = Refusal(413, f"The body is too large: {most} bytes are accepted.")
    if (request.content_length or 0) > most:
        raise too_large
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > most:
            raise too_large
    return bytes(body)


# -- waiting

_stopping = asyncio.Event()


@app.on_before_shutdown.connect
async def _stop(*args: Any, **kwargs: Any) -> None:
    _stopping.set()


async def within(seconds: float, what: str, work: Coroutine[Any, Any, T]) -> T:
    """Wait for the work for so long, and when the worker stops only a moment more.

    Arguments:
        what: Who is waited for.

    Raises:
        Unavailable: It was not done; it is cancelled.
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
