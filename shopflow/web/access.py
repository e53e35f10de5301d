"""Guards the web server: who may ask for what, and how much at once, before any view sees the request."""

from __future__ import annotations

import binascii
import hmac
import logging
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import ip_address

from aiohttp import web
from yarl import URL

from shopflow.config.settings import Web

log = logging.getLogger(__name__)

#: The headers of every answer, unless the view has set its own.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
}
#: A token that is shorter can be guessed.
_SHORT = 16
_READING = {"GET", "HEAD", "OPTIONS"}
_OPEN = re.compile(r"/health/.+|/openapi\.json|/docs(/.*)?")
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d+)?")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def warnings(settings: Web, bind: str) -> list[str]:
    """What whoever starts a worker should know about who can get in, in sentences."""
    found = []
    if not _is_loopback(bind):
        for name, do in (("read_token", "read"), ("write_token", "send events")):
            if not getattr(settings, name):
                found.append(f"web.{name} is not set: whoever reaches {bind} may {do}")
    elif settings.read_token and not settings.write_token:
        found.append("web.write_token is not set: without a token one can't read, but send events")
    for name in ("read_token", "write_token"):
        if getattr(settings, name) and len(getattr(settings, name)) < _SHORT:
            found += [f"web.{name} is short: it should have {_SHORT} characters or more, made at random"]
    return found


class Guard:
    """Lets requests through to the views, or refuses them with one line of JSON.

    Arguments:
        settings: The tokens and the limits.
        bound: Gives the address that the server listens on, and the name that other workers know it by.
    """

    def __init__(self, settings: Web, bound: Callable[[], tuple[str, str]]) -> None:
        self._settings = settings
        self._bound = bound
        self._at_once = {False: 0, True: 0}  #: requests under way that write, or only read

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The middleware for aiohttp's application."""
        try:
            answer = await self._answer(request, handler)
        except web.HTTPException as error:
            if error.status < 400:
                _add_headers(error)
                raise
            answer = _as_json(error, request.path)
        except ConnectionResetError:
            raise  # whoever asked is gone
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            answer = refuse(500, "the worker failed at this; its log says how")
        _add_headers(answer)
        return answer

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        writes = request.method not in _READING
        path = _route(request)
        if path.startswith("/health/"):  # whatever happens: who asks may restart the worker
            return await handler(request)
        if _OPEN.fullmatch(path) is None and (refusal := self._refusal(request, writes=writes)):
            return refusal
        if self._is_full(writes=writes):
            return refuse(503, "too many requests at once; come again", {"Retry-After": "1"})
        self._at_once[writes] += 1
        try:
            return self._too_large(request) or await handler(request)
        finally:
            self._at_once[writes] -= 1

    # Who may

    def _refusal(self, request: web.Request, *, writes: bool) -> web.Response | None:
        settings = self._settings
        needed = settings.write_token if writes else settings.read_token
        if not needed:
            return self._misled(request, writes=writes)
        scheme, shown = _shown(request.headers.get("Authorization", ""))
        # Both are compared, so that the time tells nothing.
        may_read, may_write = (_is_same(shown, token) for token in (settings.read_token, settings.write_token))
        if writes:
            return _refuse_write(is_bearer=scheme == "bearer", may_read=may_read, may_write=may_write)
        if may_read or may_write:
            return None
        what = "a wrong token" if shown else "this needs the read token"
        answer = refuse(401, f"{what}: send Authorization: Bearer TOKEN, or log in with the token as the password")
        answer.headers.add("WWW-Authenticate", 'Basic realm="shopflow", charset="UTF-8"')
        answer.headers.add("WWW-Authenticate", 'Bearer realm="shopflow"')
        return answer

    def _misled(self, request: web.Request, *, writes: bool) -> web.Response | None:
        """Refuse what another web site lets a browser on this machine ask, when no token is between them."""
        bind, known_as = self._bound()
        host = _name(request.headers.get("Host", ""))
        known = {"", "localhost", bind.lower(), known_as.lower(), self._settings.host.lower()}
        if _is_loopback(bind) and host not in known and not _is_loopback(host or ""):
            return refuse(
                421, f"this worker is not called {host!r}: ask for 127.0.0.1, or set web.host or web.read_token"
            )
        if writes and _is_foreign(request):
            return refuse(403, "another web site asked for this; set web.write_token, and send it, to allow that")
        return None

    # How much

    def _is_full(self, *, writes: bool) -> bool:
        """Writers leave a tenth to the readers: the page shows what is going on when it matters most."""
        most = self._settings.max_requests
        return sum(self._at_once.values()) >= most or (writes and self._at_once[True] >= most - most // 10)

    def _too_large(self, request: web.Request) -> web.Response | None:
        """Refuse a body that is said to be too large. Without a length, the view stops reading at the limit."""
        most = self._settings.max_body_bytes
        if (request.content_length or 0) <= most:
            return None
        answer = refuse(413, f"the body is larger than {most} bytes (web.max_body_bytes)")
        answer.force_close()
        return answer


def refuse(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error in the shape of all views."""
    return web.json_response({"error": message}, status=status, headers=headers)


def _refuse_write(*, is_bearer: bool, may_read: bool, may_write: bool) -> web.Response | None:
    if is_bearer and may_write:
        return None
    if is_bearer and may_read:
        answer = refuse(403, "the read token sends no events; this needs the write token")
        answer.headers["WWW-Authenticate"] = 'Bearer realm="shopflow", error="insufficient_scope"'
        return answer
    what = "a wrong token" if is_bearer else "this needs the write token"
    answer = refuse(401, f"{what}: send Authorization: Bearer TOKEN")
    answer.headers["WWW-Authenticate"] = 'Bearer realm="shopflow"'
    return answer


def _is_same(shown: bytes, token: str) -> bool:
    same = hmac.compare_digest(shown, token.encode())
    return same and token != ""


def _shown(header: str) -> tuple[str, bytes]:
    """The scheme and the token that a request shows to get in."""
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
    """True if a browser says that a page of another site asks."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")
    if origin is None:
        return False
    try:
        return URL(origin).authority.lower() != request.headers.get("Host", "").lower()
    except ValueError:
        return True


def _as_json(error: web.HTTPException, path: str) -> web.Response:
    """aiohttp's own errors (no such path, no such method) in the shape of all others."""
    if error.status == 413:
        return refuse(413, "the body is too large (web.max_body_bytes)")
    if error.content_type == "application/json":
        answer = web.Response(status=error.status, body=error.body, content_type="application/json", charset="utf-8")
    else:
        answer = refuse(error.status, f"{error.status} {error.reason}: {path}")
    for name in ("Allow", "Retry-After", "WWW-Authenticate"):
        if name in error.headers:
            answer.headers[name] = error.headers[name]
    return answer


def _add_headers(answer: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
