"""What the web views share: routes, errors of one shape, paging, bounded waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from faust.web import View

from shopflow.app import app, config
from shopflow.errors import Unavailable

from .api.forms import Problem

__all__ = ["Refusal", "answering", "error", "limit_of", "route", "unavailable", "whole", "within"]

#: After so many seconds a client may try again.
RETRY_SECONDS = 1
#: What is nearly done when the worker stops gets so long to be done.
_GRACE_SECONDS = 1.0

T = TypeVar("T")
#: Gets the request and the variables of its path; returns the status and what is to be JSON.
Handler = Callable[..., Awaitable[tuple[int, Any]]]


class Refusal(Exception):  # noqa: N818 - an answer, named as such
    """The request can't be answered as asked.

    Arguments:
        status: The HTTP status.
        message: What is wrong, in a sentence.
        problems: The fields that are wrong.
    """

    def __init__(self, status: int, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.problems = list(problems)


def error(
    web: Any,
    status: int,
    message: str,
    *,
    fields: Iterable[Problem] = (),
    headers: Mapping[str, str] | None = None,
) -> Any:
    """An error in the one shape: `{"error": ..., "fields": [{"field": ..., "message": ...}]}`, fields only if any."""
    body: dict[str, Any] = {"error": message}
    if named := [{"field": one.field, "message": one.message} for one in fields]:
        body["fields"] = named
    return web.json(body, status=status, headers=headers)


def unavailable(web: Any, reason: str) -> Any:
    """503: the same request may succeed later."""
    return error(web, 503, reason, headers={"Retry-After": str(RETRY_SECONDS)})


def answering(handler: Handler) -> Callable[..., Awaitable[Any]]:
    """A method of a view that answers in JSON what the handler returns or raises."""

    async def answer(web: Any, request: Any, **variables: str) -> Any:
        try:
            status, body = await handler(request, **variables)
        except Refusal as refusal:
            return error(web, refusal.status, str(refusal), fields=refusal.problems)
        except Unavailable as reason:
            return unavailable(web, str(reason))
        return web.bytes(msgspec.json.encode(body, enc_hook=str), content_type="application/json", status=status)

    answer.__doc__ = handler.__doc__
    return answer


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Make a handler the answer to `get` or `post` of a path, with and without a slash at its end."""

    def register(handler: Handler) -> Handler:
        made = {method: answering(handler), "__doc__": handler.__doc__, "__module__": handler.__module__}
        view = type(handler.__name__, (View,), made)
        for one in (path, path[:-1] if path.endswith("/") else f"{path}/"):
            app.page(one)(view)
        return handler

    return register


class _Stop:
    """Tells those who wait that the worker stops."""

    def __init__(self) -> None:
        self._told = False
        self._waiting: set[asyncio.Future[None]] = set()

    @contextmanager
    def told(self) -> Iterator[asyncio.Future[None]]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._told:
            future.set_result(None)
        self._waiting.add(future)
        try:
            yield future
        finally:
            self._waiting.discard(future)
            future.cancel()

    def tell(self) -> None:
        self._told = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)


_stop = _Stop()


@app.on_before_shutdown.connect
async def _stopping(*args: Any, **kwargs: Any) -> None:
    _stop.tell()


async def within(seconds: float, what: str, work: Coroutine[Any, Any, T]) -> T:
    """Wait for the work for so long, and when the worker stops only a moment more.

    Arguments:
        what: Who is waited for.

    Raises:
        Unavailable: It was not done; it is cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        with _stop.told() as stops:
            both: set[asyncio.Future[Any]] = {task, stops}
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and stops.done():
                await asyncio.wait({task}, timeout=_GRACE_SECONDS)
            if task.done():
                return task.result()
            raise Unavailable(what, "this worker stops" if stops.done() else f"no answer within {seconds:g} s")
    finally:
        if task.cancel():
            await asyncio.wait({task})


def whole(text: str) -> int:
    """The number in decimal digits; -1 if it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def limit_of(request: Any) -> int:
    """How many entries of a page are asked for in `?limit=`.

    Raises:
        Refusal: It is no number in the limits.
    """
    most = config.web.max_events
    text = request.query.get("limit", str(min(100, most)))
    number = whole(text)
    if not 1 <= number <= most:
        raise Refusal(400, "The query is wrong.", [Problem("limit", f"must be a whole number from 1 to {most}")])
    return number
