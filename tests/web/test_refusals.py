"""Every refusal has one shape, whether aiohttp's parser, its router, Faust's views or ours refuse.

The requests are bytes on a socket: a client library would not send most of them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import faust
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

import shopflow.app  # noqa: F401 - aiohttp's connections become ours
from shopflow.config.settings import Web
from shopflow.web.access import Guard
from shopflow.web.answers import read_json
from shopflow.web.api.sales import _wanted

HOST = b"Host: 127.0.0.1\r\n"
JSON = b"Content-Type: application/json\r\n"
FAILED = "the worker failed at this request; the reason is in its log"
EVENT = b'{"a": 1}'


class Answer(NamedTuple):
    """An answer as it came over the socket."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def echo(request: web.Request) -> web.Response:
    """A view that reads a JSON body."""
    return web.json_response({"read": await read_json(request, 10_000)})


async def sales(request: web.Request) -> web.Response:
    """A view that reads a query."""
    return web.json_response({"limit": _wanted(request).limit})


async def asked(request: bytes) -> Answer:
    """Send a request on a connection of its own, and read the answer."""
    guard = Guard(Web(), lambda: ("127.0.0.1", "127.0.0.1"), lambda: {"counts"})
    application = faust.App("refusing", web_application_options={"middlewares": [guard.middleware]})
    application.web.init_server()
    made = application.web.web_app  # type: ignore[attr-defined]
    made.router.add_post("/events", echo)
    made.router.add_get("/sales/", sales)
    async with TestClient(TestServer(made)) as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(request)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", "0"))), 10)
        writer.close()
    return Answer(int(head[0].split()[1]), headers, body)


def send(request: bytes) -> Answer:
    return asyncio.run(asked(request))


def posted(body: bytes, headers: bytes = b"") -> bytes:
    """A request with a body."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST /events HTTP/1.1\r\n" + HOST + JSON + length + headers + b"\r\n" + body


def coded(encoding: bytes, body: bytes) -> bytes:
    """A request with this `Content-Encoding`."""
    return posted(body, b"Content-Encoding: " + encoding + b"\r\n")


def got(target: bytes, headers: bytes = HOST, version: bytes = b"1.1", method: bytes = b"GET") -> bytes:
    """A request without a body."""
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + headers + b"\r\n"


CHUNKED = b"POST /events HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
REFUSED = {
    "gzip that is none": (coded(b"gzip", b"not gzip"), 400),
    "deflate that is none": (coded(b"deflate", b"\xff\xff\xff\xff"), 400),
    "gzip without its end": (coded(b"gzip", gzip.compress(EVENT)[:14]), 400),
    "zstd": (coded(b"zstd", b"x"), 415),
    "br": (coded(b"br", b"x"), 415),
    "an unknown encoding": (coded(b"rot13", EVENT), 415),
    "two encodings": (coded(b"gzip, gzip", EVENT), 415),
    "a long path": (got(b"/" + b"a" * 9_000), 400),
    "a long header": (got(b"/sales/", HOST + b"X: " + b"a" * 9_000 + b"\r\n"), 400),
    "many headers": (got(b"/sales/", HOST + b"".join(b"X%d: 1\r\n" % number for number in range(500))), 400),
    "no HTTP": (b"garbage\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown version": (got(b"/", version=b"9.9"), 400),
    "an unknown method": (got(b"/", method=b"BREW"), 400),
    "no host": (got(b"/", headers=b""), 400),
    "two hosts": (got(b"/", headers=HOST * 2), 400),
    "a NUL in a header": (got(b"/", headers=HOST + b"X: \x00\r\n"), 400),
    "a URL of another kind": (got(b"http://[::1/"), 400),
    "a negative length": (b"POST /events HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    "two lengths": (posted(EVENT, b"Content-Length: 1\r\n"), 400),
    "chunks with a length": (posted(b"", b"Transfer-Encoding: chunked\r\n"), 400),
    "a bad chunk": (CHUNKED + b"zz\r\n", 400),
    "an unknown transfer encoding": (posted(EVENT, b"Transfer-Encoding: x\r\n"), 400),
    "an unknown expectation": (posted(EVENT, b"Expect: 200-nonsense\r\n"), 417),
    "too long a body": (posted(b" " * 10_001), 413),
    "OPTIONS": (got(b"/sales/", method=b"OPTIONS"), 405),
    "OPTIONS of all": (got(b"*", method=b"OPTIONS"), 404),
    "CONNECT": (got(b"127.0.0.1:80", method=b"CONNECT"), 404),
    "no such path": (got(b"/%ff/%00/%"), 404),
    "no such table": (got(b"/router/NOPE/"), 404),
    "no such table, with a key": (got(b"/router/NOPE/x/"), 404),
    "no such table to read": (got(b"/table/NOPE/x/"), 404),
    "a table before the producer has started": (got(b"/table/counts/x/"), 503),
    "bytes in the query that are not ASCII": (got(b"/sales/?by=\xff"), 400),
    "a full-width digit": (got(b"/sales/?limit=%EF%BC%91"), 400),
    "no UTF-8 in the query": (got(b"/sales/?limit=%ff"), 400),
    "HTTP/1.0": (got(b"/sales/?by=week", version=b"1.0", headers=b""), 400),
    "an upgrade": (got(b"/sales/?by=week", HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal_has_the_one_shape(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal has the security headers of all answers, does not repeat the request, and logs no traceback."""
    request, status = REFUSED[name]
    answer = send(request)
    body = json.loads(answer.body)
    assert (answer.status, next(iter(body))) == (status, "error")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (answer.headers["cache-control"], answer.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert re.search(r"[\n\\]|b'", body["error"]) is None, "it repeats the request"
    assert [record for record in caplog.records if record.exc_info] == []
    assert ("retry-after" in answer.headers) == (status == 503)
    assert ("accept-encoding" in answer.headers) == (status == 415)


def test_a_query_names_the_wrong_field() -> None:
    """A wrong query gets `fields`, like a wrong event."""
    for query, field in ((b"by=week", "by"), (b"limit=0", "limit"), (b"by=day&since=x", "since")):
        problems = json.loads(send(got(b"/sales/?" + query)).body)["fields"]
        assert [problem["field"] for problem in problems] == [field]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        (b"identity", bytes),
        (b"gzip", gzip.compress),
        (b"GZIP", gzip.compress),
        (b"deflate", zlib.compress),
        (b"deflate", lambda body: zlib.compress(body)[2:-4]),
    ],
)
def test_a_compressed_body_is_read(encoding: bytes, pack: Callable[[bytes], bytes]) -> None:
    """gzip and deflate are accepted, also deflate without the zlib header, as some clients send it."""
    answer = send(coded(encoding, pack(EVENT)))
    assert (answer.status, json.loads(answer.body)) == (200, {"read": {"a": 1}})


def test_a_fault_outside_of_the_views_has_the_shape_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A fault in a middleware is answered as JSON, not as aiohttp's plain text, and is in the log."""

    @web.middleware
    async def broken(request: web.Request, handler: Callable[[Any], Awaitable[Any]]) -> web.StreamResponse:
        raise ValueError("s3cret")

    async def test() -> None:
        async with TestClient(TestServer(web.Application(middlewares=[broken]))) as client, client.get("/") as response:
            assert (response.status, await response.json()) == (500, {"error": FAILED})

    with caplog.at_level(logging.ERROR):
        asyncio.run(test())
    assert "s3cret" in caplog.text
