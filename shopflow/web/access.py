"""Guards the web server: who may read or write, how many requests run at once, and one shape for every error."""

from __future__ import annotations

import binascii
import hmac
import logging
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from aiohttp.web_protocol import RequestHandler
from faust.exceptions import NotReady

from shopflow.config.settings import Web
from shopflow.errors import Unavailable

log = logging.getLogger(__name__)

#: The headers of every answer, unless the view has set its own.
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
#: Without `Access-Control-Allow-Credentials`: a script sends the token itself, a browser's own login is not used.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}
#: Seconds that a client waits after 503.
RETRY_SECONDS = 1
#: Larger answers are compressed, in bytes.
_LARGE = 1_024
#: A token that is shorter can be guessed.
_SHORT = 16
_READING = {"GET", "HEAD", "OPTIONS"}
_OPEN = re.compile(r"/health/.+|/(?:open|async)api\.json|/schemas/.+|/docs(/.*)?")
_OF_A_TABLE = ("/router/{name}/", "/table/{name}/")
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d+)?")
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", re.IGNORECASE)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):  # noqa: N818 - an answer, named as such
    """The request is refused with `{"error": message}`.

    Arguments:
        headers: Headers of the answer.
        more: Other fields of the answer. `fields` has a `Problem` for each field that is wrong.
    """

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = (), **more: Any) -> None:
        super().__init__(message)
        self.status, self.headers, self.more = status, headers, more

    def answer(self) -> web.Response:
        answer = as_json(self.status, {"error": str(self), **self.more})
        answer.headers.extend(self.headers)
        if self.status == 413:
            answer.force_close()
        return answer


def unknown_encoding() -> Refusal:
    return Refusal(415, "Content-Encoding must be gzip or deflate.", [("Accept-Encoding", "gzip, deflate")])


def refusal(error: Exception, path: str) -> Refusal:
    """Any error as a refusal."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, Unavailable | NotReady):
        return Refusal(503, str(error))
    if isinstance(error, web.RequestPayloadError):
        return Refusal(400, "The body is malformed, or it is not what Content-Encoding says.")
    if not isinstance(error, web.HTTPException):
        return Refusal(500, "the worker failed at this request; the reason is in its log")
    if error.status == 413:
        return Refusal(413, "the body is too large (web.max_body_bytes)")
    allow = [("Allow", error.headers["Allow"])] if "Allow" in error.headers else []
    return Refusal(error.status, f"{error.status} {error.reason}: {path}", allow)


def as_json(status: int, body: Any) -> web.Response:
    encoded = msgspec.json.encode(body, enc_hook=str)
    return web.Response(body=encoded, status=status, content_type="application/json", charset="utf-8")


def takes_gzip(request: web.Request) -> bool:
    return _GZIP.search(request.headers.get("Accept-Encoding", "")) is not None


def warnings(settings: Web, bind: str) -> list[str]:
    """Sentences for the log of a starting worker: who can get in without a token."""
    tokens = (("read_token", settings.read_token, "read"), ("write_token", settings.write_token, "send events"))
    found = []
    if not _is_loopback(bind):
        found += [
            f"web.{name} is not set: anybody who reaches {bind} may {do}" for name, token, do in tokens if not token
        ]
    elif settings.read_token and not settings.write_token:
        found.append("web.write_token is not set: reading needs a token, but sending events needs none")
    short = [name for name, token, _ in tokens if 0 < len(token) < _SHORT]
    return found + [f"web.{name} is short: it should have {_SHORT} random characters or more" for name in short]


class Connection(RequestHandler):
    """Gives the one shape of errors to requests that aiohttp refuses before any middleware sees them."""

    __slots__ = ()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if isinstance(exc, HttpProcessingError):
            reason = re.split(r":\s", message or "")[0][:200]  # the rest repeats the request
            log.info("%s sent a malformed request: %s", request.remote, reason)
            coded = isinstance(exc, ContentEncodingError)
            found = unknown_encoding() if coded else Refusal(status, f"malformed request: {reason}")
        else:
            super().handle_error(request, status, exc, message)  # logs it; raises if an answer has begun
            found = refusal(Exception(), request.path)
        answer = found.answer()
        answer.force_close()
        _add_headers(answer)
        return answer

    async def finish_response(
        self, request: Any, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException) and resp.status >= 400:  # an unknown `Expect`
            resp = refusal(resp, request.path).answer()
            _add_headers(resp)
        finished = await super().finish_response(request, resp, start_time)
        if request.content.exception() is not None:  # aiohttp would go on reading the body, and log a traceback
            self.force_close()
        return finished


class Guard:
    """Lets requests through to the views, or refuses them.

    Arguments:
        settings: The tokens, the limits and the allowed origins.
        bound: Returns the address that the server listens on, and the name that other workers know it by.
        tables: Returns the names of the tables.
    """

    def __init__(self, settings: Web, bound: Callable[[], tuple[str, str]], tables: Callable[[], Any] = dict) -> None:
        self._settings, self._bound, self._tables = settings, bound, tables
        self._at_once = {False: 0, True: 0}  #: running requests: those that only read, and those that write

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware for aiohttp's application."""
        try:
            answer = await self._answer(request, handler)
        except ConnectionResetError:
            raise  # the client has left
        except web.HTTPRedirection as error:  # no refusal
            _add_headers(error)
            raise
        except Exception as error:
            found = refusal(error, request.path)
            if found.status == 500:
                log.exception("%s %s failed", request.method, request.path)
            answer = found.answer()
        self._add_origin(request, answer)
        _compress(request, answer)
        _add_headers(answer)
        return answer

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        writes = request.method not in _READING
        path = _route(request)
        if path.startswith("/health/"):  # always answered: a platform restarts the worker that does not
            return await handler(request)
        if request.method == "OPTIONS" and self._is_allowed(request):
            return web.Response(status=204, headers=_PREFLIGHT)  # a browser sends it without a token
        if _OPEN.fullmatch(path) is None:
            self._check_access(request, writes=writes)
        if self._is_full(writes=writes):
            raise Refusal(503, "too many requests at once; try again")
        if (request.content_length or 0) > self._settings.max_body_bytes:  # without a length, the view stops
            raise Refusal(413, f"the body is larger than {self._settings.max_body_bytes} bytes (web.max_body_bytes)")
        if path.startswith(_OF_A_TABLE) and request.match_info["name"] not in self._tables():
            raise Refusal(404, "there is no table with this name")  # Faust's own views answer 500 or 503
        self._at_once[writes] += 1
        try:
            return await handler(request)
        finally:
            self._at_once[writes] -= 1

    def _check_access(self, request: web.Request, *, writes: bool) -> None:
        settings = self._settings
        if not (settings.write_token if writes else settings.read_token):
            self._check_site(request, writes=writes)
            return
        scheme, shown = _shown(request.headers.get("Authorization", ""))
        # Both are compared, so that the time does not depend on the token.
        may_read, may_write = (_is_same(shown, token) for token in (settings.read_token, settings.write_token))
        if may_write and (scheme == "bearer" or not writes):
            return
        bearer = ("WWW-Authenticate", 'Bearer realm="shopflow"')
        if writes:
            if may_read and scheme == "bearer":
                scope = (bearer[0], f'{bearer[1]}, error="insufficient_scope"')
                raise Refusal(403, "the read token can't send events or retry; use the write token", [scope])
            reason = "the token is wrong" if scheme == "bearer" else "this needs the write token"
            raise Refusal(401, f"{reason}: send Authorization: Bearer TOKEN", [bearer])
        if not may_read:
            reason = "the token is wrong" if shown else "reading needs the read token"
            message = f"{reason}: send Authorization: Bearer TOKEN, or log in with the token as the password"
            basic = (bearer[0], 'Basic realm="shopflow", charset="UTF-8"')
            raise Refusal(401, message, [basic, bearer])

    def _check_site(self, request: web.Request, *, writes: bool) -> None:
        """Without a token: refuse requests that another web site makes through a browser on this machine."""
        bind, known_as = self._bound()
        host = _name(request.headers.get("Host", ""))
        known = {"", "localhost", bind.lower(), known_as.lower(), self._settings.host.lower()}
        if _is_loopback(bind) and host not in known and not _is_loopback(host or ""):
            raise Refusal(421, f"this worker is not called {host!r}: use 127.0.0.1, or set web.host or web.read_token")
        if writes and not self._is_allowed(request) and _is_foreign(request):
            message = "another web site sent this; set web.write_token and send it, or add it to web.allowed_origins"
            raise Refusal(403, message)

    def _is_allowed(self, request: web.Request) -> bool:
        return request.headers.get("Origin") in self._settings.allowed_origins

    def _add_origin(self, request: web.Request, answer: web.StreamResponse) -> None:
        """Let scripts of the allowed origins read the answer (CORS)."""
        if self._settings.allowed_origins:
            answer.headers.add("Vary", "Origin")
        if self._is_allowed(request):
            answer.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
            answer.headers["Access-Control-Expose-Headers"] = "Retry-After"

    def _is_full(self, *, writes: bool) -> bool:
        """Writers leave a tenth to readers, so that the page still answers under load."""
        most = self._settings.max_requests
        return sum(self._at_once.values()) >= most or (writes and self._at_once[True] >= most - most // 10)


def _is_same(shown: bytes, token: str) -> bool:
    return hmac.compare_digest(shown, token.encode()) and token != ""


def _shown(header: str) -> tuple[str, bytes]:
    """The scheme and the token of an `Authorization` header."""
    scheme, _, value = header.strip().partition(" ")
    scheme, value = scheme.lower(), value.strip()
    if scheme == "bearer":
        return scheme, value.encode("utf-8", "surrogateescape")
    if scheme == "basic":
        try:
            return scheme, b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            pass
    return scheme, b""


def _route(request: web.Request) -> str:
    """The pattern of the view that answers: access depends on the view, not on how the path is spelt."""
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical


def _name(host: str) -> str | None:
    """The name in a `Host` header, without the port; None if it has none."""
    found = _HOST.fullmatch(host.strip())
    return found[1].strip("[]").rstrip(".").lower() if found else None


def _is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _is_foreign(request: web.Request) -> bool:
    """True if a browser says that a page of another site sent the request."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2].lower() != request.headers.get("Host", "").lower()


def _compress(request: web.Request, answer: web.StreamResponse) -> None:
    if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes) or len(answer.body) <= _LARGE:
        return
    if "Content-Encoding" not in answer.headers:
        answer.headers.add("Vary", "Accept-Encoding")
        if takes_gzip(request):
            answer.enable_compression(web.ContentCoding.gzip)


def _add_headers(answer: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    if answer.status == 503:
        answer.headers.setdefault("Retry-After", str(RETRY_SECONDS))
