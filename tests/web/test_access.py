"""Access to the web server: tokens, other web sites, limits and headers, with real requests to aiohttp's server."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import faust
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from shopflow.config.settings import Web
from shopflow.web import access
from shopflow.web.access import Guard, warnings
from shopflow.web.client import bearer

READ, WRITE = "read-token-with-24-chars", "write-token-with-24-chars"

Client = TestClient[web.Request, web.Application]
Test = Callable[[Client], Coroutine[Any, Any, None]]


async def answer(request: web.Request) -> web.Response:
    """A view that returns the body it got."""
    return web.json_response({"body": (await request.read()).decode()})


async def framed(request: web.Request) -> web.Response:
    """A view with a `Content-Security-Policy` of its own."""
    return web.Response(text="page", headers={"Content-Security-Policy": "default-src 'self'"})


async def broken(request: web.Request) -> web.Response:
    """A view that raises."""
    raise ValueError("a secret: s3cret")


@asynccontextmanager
async def serving(
    settings: Web, bind: str = "127.0.0.1", host: str = "127.0.0.1", **views: Any
) -> AsyncIterator[Client]:
    """A server behind a `Guard`, and a client of it."""
    guard = Guard(settings, lambda: (bind, host))
    application = web.Application(middlewares=[guard.middleware], client_max_size=settings.max_body_bytes)
    reading = {
        "/counts/": answer, "/page": framed, "/broken": broken, "/health/live": answer,
        "/openapi.json": answer, "/asyncapi.json": answer, "/schemas/{name}.json": answer,
        "/docs/": answer, "/docs/{name}": answer, "/{name}/": answer, **views,
    }  # fmt: skip
    for path, view in reading.items():
        application.router.add_get(path, view)
    application.router.add_post("/events/purchases", views.get("/events/purchases", answer))
    async with TestClient(TestServer(application)) as client:
        yield client


def run(settings: Web, test: Test, **options: Any) -> None:
    """Run the test against a guarded server."""

    async def go() -> None:
        async with serving(settings, **options) as client:
            await test(client)

    asyncio.run(go())


def basic(token: str) -> dict[str, str]:
    """The header that a browser sends after its login."""
    return {"Authorization": "Basic " + b64encode(f"anybody:{token}".encode()).decode()}


BOTH = Web(read_token=READ, write_token=WRITE)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/counts/", {}, 401),
        ("HEAD", "/counts/", {}, 401),
        ("GET", "/counts/", bearer(READ), 200),
        ("GET", "/counts/", bearer(WRITE), 200),
        ("HEAD", "/counts/", bearer(READ), 200),
        ("GET", "/counts/", basic(READ), 200),
        ("GET", "/counts/", basic(WRITE), 200),
        ("GET", "/counts/", {"Authorization": f"bEARER   {READ} "}, 200),
        ("GET", "/counts/", bearer(READ + "x"), 401),
        ("GET", "/counts/", bearer(READ[:-1]), 401),
        ("GET", "/counts/", bearer(READ.upper()), 401),
        ("GET", "/counts/", {"Authorization": f"Token {READ}"}, 401),
        ("GET", "/counts/", {"Authorization": READ}, 401),
        ("GET", "/counts/", {"Authorization": "Bearer"}, 401),
        ("GET", "/counts/", {"Authorization": "Bearer łódź"}, 401),
        ("GET", "/counts/", {"Authorization": "Basic not-base64!"}, 401),
        ("GET", "/counts/", {"Authorization": "Basic " + b64encode(READ.encode()).decode()}, 401),
        ("GET", "/counts/", {"Authorization": "Basic ="}, 401),
        ("GET", f"/counts/?token={READ}", {}, 401),
        ("GET", "/nothing", {}, 401),
        ("GET", "/nothing", bearer(READ), 404),
        ("GET", "/health/live", {}, 200),
        ("GET", "/openapi.json", {}, 200),
        ("GET", "/asyncapi.json", {}, 200),
        ("GET", "/schemas/products.json", {}, 200),
        ("GET", "/docs/", {}, 200),
        ("GET", "/docs/script.js", {}, 200),
        ("GET", "/health/unknown", {}, 401),
        ("GET", "/health%2flive/", {}, 401),
        ("GET", "/health/../counts/", {}, 401),
        ("GET", "/Health/", {}, 401),
        ("POST", "/events/purchases", {}, 401),
        ("POST", "/events/purchases", bearer(WRITE), 200),
        ("POST", "/events/purchases", bearer(READ), 403),
        ("POST", "/events/purchases", basic(WRITE), 401),
        ("POST", "/events/purchases", basic(READ), 401),
        ("POST", "/events/purchases", bearer(WRITE + "x"), 401),
        ("PUT", "/events/purchases", bearer(READ), 403),
        ("PUT", "/events/purchases", bearer(WRITE), 405),
        ("DELETE", "/counts/", {}, 401),
        ("OPTIONS", "/events/purchases", {}, 401),
    ],
)  # fmt: skip
def test_with_both_tokens(method: str, path: str, headers: dict[str, str], status: int) -> None:
    """Reading needs either token. Sending needs the write token as Bearer. Probes and docs are open to all."""

    async def test(client: Client) -> None:
        url = URL(path, encoded=True)
        async with client.request(method, url, headers=headers, allow_redirects=False) as response:
            assert response.status == status
            if status >= 400 and method != "HEAD":
                assert list(await response.json()) == ["error"]

    run(BOTH, test)


def test_a_browser_is_asked_to_log_in_and_a_sender_is_not() -> None:
    """A browser sends its login with every request, also for other sites. So a login never allows sending events."""

    async def test(client: Client) -> None:
        async with client.get("/counts/") as response:
            ways = response.headers.getall("WWW-Authenticate")
        assert [way.split()[0] for way in ways] == ["Basic", "Bearer"]
        async with client.post("/events/purchases") as response:
            ways = response.headers.getall("WWW-Authenticate")
        assert [way.split()[0] for way in ways] == ["Bearer"]

    run(BOTH, test)


@pytest.mark.parametrize(
    ("settings", "read", "sent"),
    [(Web(), 200, 200), (Web(read_token=READ), 401, 200), (Web(write_token=WRITE), 200, 401), (BOTH, 401, 401)],
)
def test_without_a_token_what_it_is_for_is_open(settings: Web, read: int, sent: int) -> None:
    """Without `web.read_token` anybody may read, without `web.write_token` anybody may send events."""

    async def test(client: Client) -> None:
        assert ((await client.get("/counts/")).status, (await client.post("/events/purchases")).status) == (read, sent)
        shown = {"Authorization": "Bearer "}
        assert (await client.get("/counts/", headers=shown)).status == read  # an empty token is none

    run(settings, test)


def test_no_answer_tells_a_token() -> None:
    """A refusal has neither the configured token nor the one that the client sent."""

    async def test(client: Client) -> None:
        for headers in ({}, bearer("shown-by-mistake"), basic("shown-by-mistake")):
            for response in (await client.get("/x", headers=headers), await client.post("/x", headers=headers)):
                text = await response.text() + str(response.headers)
                assert not any(token in text for token in (READ, WRITE, "shown-by-mistake"))

    run(BOTH, test)


# -- other web sites in a browser on this machine


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:6066", 200),
        ("127.0.0.1", 200),
        ("127.8.8.8:1", 200),
        ("localhost:6066", 200),
        ("LOCALHOST.", 200),
        ("[::1]:6066", 200),
        ("shop.internal:6066", 200),
        ("evil.example:6066", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("10.0.0.7:6066", 421),
        ("a b", 421),
        ("evil.example:80:80", 421),
    ],
)
def test_a_foreign_name_for_the_loopback_address_is_refused(host: str, status: int) -> None:
    """DNS rebinding: a site's name resolves to 127.0.0.1, so that its script could read the answers. It gets 421."""

    async def test(client: Client) -> None:
        for request in (
            client.get("/counts/", headers={"Host": host}),
            client.post("/events/purchases", headers={"Host": host}),
        ):
            async with request as response:
                assert response.status == status
                if status == 421:
                    assert "web.host" in (await response.json())["error"]
        assert (await client.get("/health/live", headers={"Host": host})).status == 200

    run(Web(host="shop.internal"), test)


@pytest.mark.parametrize(("settings", "bind"), [(BOTH, "127.0.0.1"), (Web(), "0.0.0.0"), (Web(), "10.1.2.3")])  # noqa: S104
def test_any_name_is_good_when_a_token_decides_or_the_network_may_ask(settings: Web, bind: str) -> None:
    """`Host` has a proxy's name. It is accepted with a token, or if the worker is bound to a network."""

    async def test(client: Client) -> None:
        headers = {"Host": "shop.example", **bearer(settings.read_token)}
        assert (await client.get("/counts/", headers=headers)).status == 200

    run(settings, test, bind=bind)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:6066"}, 403),
        ({"Origin": "http://127.0.0.1:6066"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
    ],
)
def test_another_web_site_can_not_send_events(headers: dict[str, str], status: int) -> None:
    """A browser lets every web site post to 127.0.0.1. Such a request gets 403."""

    async def test(client: Client) -> None:
        given = {"Host": "127.0.0.1:6066", **headers}
        assert (await client.post("/events/purchases", headers=given)).status == status

    run(Web(), test)


# -- limits


def test_a_body_up_to_the_limit_reaches_the_view() -> None:
    """A body of exactly `web.max_body_bytes` is accepted, and nothing of it is missing."""

    async def test(client: Client) -> None:
        body = "x" * 1_024
        async with client.post("/events/purchases", data=body) as response:
            assert (await response.json())["body"] == body

    run(Web(max_body_bytes=1_024), test)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_longer_body_is_refused_whether_its_length_is_told_or_not(chunked: bool) -> None:
    """A body without Content-Length is read only up to the limit, then answered 413."""

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1_024

    async def test(client: Client) -> None:
        async with client.post("/events/purchases", data=parts() if chunked else b"x" * 1_025) as response:
            assert response.status == 413
            assert "web.max_body_bytes" in (await response.json())["error"]

    run(Web(max_body_bytes=1_024), test)


def test_who_has_no_token_can_send_no_body() -> None:
    """A request without a token gets 401 before its body has arrived."""

    async def never() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    async def test(client: Client) -> None:
        response = await asyncio.wait_for(client.post("/events/purchases", data=never()), 5)
        assert response.status == 401

    run(BOTH, test)


def test_more_requests_than_allowed_are_asked_to_come_again_and_health_is_not() -> None:
    """Requests beyond `web.max_requests` get 503, probes never. Writers leave a tenth to readers."""

    async def test() -> None:
        go = asyncio.Event()

        async def wait(request: web.Request) -> web.Response:
            await go.wait()
            return web.json_response({})

        views = {"/wait": wait, "/events/purchases": wait}
        async with serving(Web(max_requests=10), **views) as client:
            posts = [asyncio.create_task(client.post("/events/purchases")) for _ in range(12)]
            statuses = await _first(posts, 3)
            assert statuses == [503] * 3  # nine wait
            assert (await client.get("/counts/")).status == 200  # the tenth place is a reader's
            reader = asyncio.create_task(client.get("/wait"))
            while not (full := (await client.get("/counts/")).status == 503):
                await asyncio.sleep(0.01)
            assert full
            assert (await client.get("/health/live")).status == 200
            async with client.get("/counts/") as response:
                assert response.headers["Retry-After"] == "1"
            go.set()
            assert (await reader).status == 200
            assert sorted([(await post).status for post in posts]) == [200] * 9 + [503] * 3
            assert (await client.get("/counts/")).status == 200

    asyncio.run(asyncio.wait_for(test(), 20))


async def _first(tasks: list[asyncio.Task[Any]], count: int) -> list[int]:
    while len(done := [task for task in tasks if task.done()]) < count:
        await asyncio.sleep(0.01)
    return [task.result().status for task in done]


# -- every answer


@pytest.mark.parametrize("path", ["/counts/", "/nothing", "/broken", "/health/live"])
def test_every_answer_says_what_a_browser_must_not_do_with_it(path: str) -> None:
    """Answers and errors have the same security headers."""

    async def test(client: Client) -> None:
        async with client.get(path, allow_redirects=False) as response:
            assert {name: response.headers[name] for name in access.HEADERS} == access.HEADERS

    run(Web(), test)


def test_a_view_may_have_a_policy_of_its_own() -> None:
    """The page's own `Content-Security-Policy` replaces the default one; two would both apply."""

    async def test(client: Client) -> None:
        async with client.get("/page") as response:
            assert response.headers.getall("Content-Security-Policy") == ["default-src 'self'"]

    run(Web(), test)


def test_a_fault_of_a_view_is_in_the_log_and_not_in_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The exception's text may be secret, and anybody may get the answer."""

    async def test(client: Client) -> None:
        async with client.get("/broken") as response:
            assert response.status == 500
            assert json.loads(await response.text()) == {
                "error": "the worker failed at this request; the reason is in its log"
            }

    run(Web(), test)
    assert "ValueError" in caplog.text


def test_an_unknown_method_is_told_which_are_known() -> None:
    """The 405 has the known methods in `Allow`, and the shape of all errors."""

    async def test(client: Client) -> None:
        async with client.post("/page") as response:
            assert response.status == 405
            assert response.headers["Allow"] == "GET,HEAD"
            assert list(await response.json()) == ["error"]

    run(Web(), test)


# -- what is said at start


@pytest.mark.parametrize(
    ("settings", "bind", "said"),
    [
        (Web(), "127.0.0.1", []),
        (Web(), "localhost", []),
        (Web(), "::1", []),
        (BOTH, "0.0.0.0", []),  # noqa: S104
        (Web(), "0.0.0.0", ["web.read_token is not set", "web.write_token is not set"]),  # noqa: S104
        (Web(), "shop.example", ["web.read_token is not set", "web.write_token is not set"]),
        (Web(read_token=READ), "127.0.0.1", ["web.write_token is not set"]),
        (Web(write_token=WRITE), "127.0.0.1", []),
        (Web(read_token=READ[:15], write_token=WRITE), "127.0.0.1", ["web.read_token is short"]),
    ],
)
def test_a_starting_worker_warns_of_open_access(settings: Web, bind: str, said: list[str]) -> None:
    """A starting worker warns of access that is open to the network, and of short tokens, and shows no token."""
    found = warnings(settings, bind)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said
    assert not any(token in line for line in found for token in (READ[:15], WRITE))


def test_fausts_own_views_need_the_token_too() -> None:
    """Faust's own views, the application's views and unknown paths all need the token."""
    guard = Guard(BOTH, lambda: ("127.0.0.1", "127.0.0.1"))
    application = faust.App(
        "guarded", web_application_options={"middlewares": [guard.middleware], "client_max_size": 1_024}
    )

    @application.page("/mine/")
    async def mine(server: Any, request: Any) -> Any:
        return server.json({"read": True})

    application.web.init_server()

    async def test() -> None:
        async with TestClient(TestServer(application.web.web_app)) as client:  # type: ignore[attr-defined]
            for path in ("/", "/mine/", "/router/", "/table/", "/nothing"):
                assert (await client.get(path)).status == 401, path
            async with client.get("/mine/", headers=bearer(READ)) as response:
                assert await response.json() == {"read": True}
                assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert (await client.get("/nothing", headers=bearer(READ))).status == 404

    asyncio.run(test())


# -- scripts of allowed web sites

SHOP = "https://shop.example.com"
ALLOWED = {"allowed_origins": (SHOP, "http://127.0.0.1:8000")}


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (SHOP, True),
        ("http://127.0.0.1:8000", True),
        (f"{SHOP}:443", False),
        ("http://shop.example.com", False),
        ("https://evil.shop.example.com", False),
        (f"{SHOP}.evil.example", False),
        ("null", False),
        ("*", False),
    ],
)
@pytest.mark.parametrize("settings", [Web(**ALLOWED), Web(**ALLOWED, read_token=READ, write_token=WRITE)])
def test_only_an_allowed_origin_may_read_and_write(settings: Web, origin: str, allowed: bool) -> None:
    """Only the exact origin is allowed, and still needs the tokens. `Vary` keeps caches from mixing up origins."""

    async def test(client: Client) -> None:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with client.options("/events/purchases", headers={"Origin": origin, **asked}) as response:
            assert (response.status == 204) == allowed
            assert ("Authorization" in response.headers.get("Access-Control-Allow-Headers", "")) == allowed
            assert ("POST" in response.headers.get("Access-Control-Allow-Methods", "")) == allowed
            assert response.headers.getall("Vary") == ["Origin"]
        sent = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "Host": "127.0.0.1"}
        for path in ("/counts/", "/nothing", "/broken", "/health/live"):
            async with client.get(path, headers={**sent, **bearer(settings.read_token)}) as response:
                assert response.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
                assert "Access-Control-Allow-Credentials" not in response.headers
                assert "Origin" in response.headers.getall("Vary")
                assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"  # CORS does not ask for it
        async with client.post("/events/purchases", headers={**sent, **bearer(settings.write_token)}) as response:
            assert response.status == (200 if allowed or settings.write_token else 403)
        if settings.write_token:
            async with client.post("/events/purchases", headers=sent) as response:
                assert response.status == 401

    run(settings, test)


def test_without_allowed_origins_there_are_no_cors_headers() -> None:
    """Without `web.allowed_origins`, a preflight gets 405 and no CORS header."""

    async def test(client: Client) -> None:
        headers = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
        async with client.options("/events/purchases", headers=headers) as response:
            assert response.status == 405
            assert not any(name.startswith("Access-Control") for name in response.headers)
            assert "Vary" not in response.headers

    run(Web(), test)


# -- compression


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("deflate, gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, br", False),
        ("br", False),
        ("", False),
    ],
)
def test_large_answers_are_compressed_for_who_accepts_it(accepted: str, packed: bool) -> None:
    """Answers above 1 KB are compressed. `Vary` keeps caches from giving gzip to a client that can't read it."""

    async def large(request: web.Request) -> web.Response:
        return web.json_response({"text": "x" * int(request.query["size"])})

    async def test(client: Client) -> None:
        headers = {"Accept-Encoding": accepted}
        async with client.get("/large?size=5000", headers=headers, compress=None) as response:
            assert (response.headers.get("Content-Encoding") == "gzip") == packed
            assert response.headers["Vary"] == "Accept-Encoding"
            assert len((await response.json())["text"]) == 5_000
            assert (int(response.headers["Content-Length"]) < 200) == packed
        async with client.get("/large?size=500", headers=headers) as response:
            assert "Content-Encoding" not in response.headers

    run(Web(), test, **{"/large": large})


def test_a_redirect_of_a_view_keeps_its_location() -> None:
    """A view may raise aiohttp's redirect. The guard must not turn it into an error."""

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPFound("/counts/")

    async def test(client: Client) -> None:
        response = await client.get("/moved", allow_redirects=False)
        assert (response.status, response.headers["Location"]) == (302, "/counts/")
        assert response.headers["X-Content-Type-Options"] == "nosniff"

    run(Web(), test, **{"/moved": moved})
