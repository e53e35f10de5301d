"""The HTTP interface as a client sees it, on a real aiohttp server and MongoDB, with a fake for Kafka."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import aiohttp
import aiohttp.web
import pytest
from aiohttp.test_utils import TestClient, TestServer
from bson.regex import Regex
from yarl import URL

from shopflow import topics
from shopflow.app import app
from shopflow.config.settings import Config, Web
from shopflow.errors import Slow, Unavailable
from shopflow.operations import describe
from shopflow.store.types import Document
from shopflow.web import answers as web
from shopflow.web.access import Guard
from shopflow.web.api import collections as reading
from shopflow.web.api import events, openapi
from shopflow.web.page import charts, views  # noqa: F401 - views: registers its routes
from tests.conftest import Run
from tests.support import events as events_of
from tests.support.documents import MINUTE, NOON, purchase
from tests.support.stores import ByHand, ObservedStore

MILK = events_of.product(399, "2026-05-01T12:00:00Z", "mleko")
PURCHASE = {"purchase_id": "b", "customer_id": "anna", "product_id": "mleko", "quantity": 2}

Client = TestClient[Any, Any]


class Sender:
    """Stands for Kafka: keeps the records, or fails, or never acknowledges."""

    def __init__(self) -> None:
        self.got: list[tuple[str, bytes, Any]] = []
        self.failure: Exception | None = None
        self.slow = False

    async def send(self, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        if self.slow:
            await asyncio.Event().wait()
        if self.failure:
            raise self.failure
        self.got += [(topic, key, json.loads(value)) for key, value in records]


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> Sender:
    """A fake sender in place of Kafka's."""
    made = Sender()
    monkeypatch.setattr(events, "sender", made)
    monkeypatch.setattr(events, "config", Config(web=Web(max_body_bytes=1_024, max_events=3)))
    return made


@pytest.fixture
def shown(store: ObservedStore, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> ObservedStore:
    """The store that the views read, with an empty database."""
    monkeypatch.setattr(reading, "store", store)
    return store


@asynccontextmanager
async def served() -> AsyncIterator[Client]:
    """The views on a server of their own: Faust's application belongs to one event loop."""
    made = aiohttp.web.Application(middlewares=[Guard(Config().web, lambda: ("127.0.0.1", "localhost")).middleware])
    for path, view in app.web.views.items():
        for method in view.get_methods():
            made.router.add_route(method, path, _function(view))
    async with TestClient(TestServer(made)) as client:
        yield client


def _function(view: Any) -> Callable[[Any], Awaitable[Any]]:
    async def handle(request: Any) -> Any:
        return await view(request)

    return handle


@dataclass
class Http:
    """The views on a server that runs while a test's body or one request does."""

    _run: Run

    def run(self, body: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        """Run a test's body."""

        async def whole() -> None:
            async with served() as client:
                await body(client)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(web, "_stopping", asyncio.Event())  # an event belongs to one loop; each run here has its own
            self._run(asyncio.wait_for(whole(), 30))

    def ask(self, method: str, path: str, sent: Any = None, **options: Any) -> tuple[int, Any, Any]:
        """Status, answer and headers of one request."""
        answers: list[tuple[int, Any, Any]] = []

        async def body(client: Client) -> None:
            more = {"json": sent} if sent is not None else {}
            async with client.request(method, URL(path, encoded=True), **more, **options) as response:
                answers.append((response.status, await response.json(), response.headers))

        self.run(body)
        return answers[0]


@pytest.fixture
def http(run: Run) -> Http:
    return Http(run)


def fields(answer: Any) -> dict[str, str]:
    """The problems of an error."""
    return {one["field"]: one["message"] for one in answer["fields"]}


# -- events


@pytest.mark.parametrize("slash", ["", "/"])
def test_events_are_confirmed_with_their_ids(sender: Sender, slash: str, http: Http) -> None:
    """One event or an array is accepted. Each kind goes to its topic, under its key."""
    assert http.ask("POST", f"/events/products{slash}", MILK)[:2] == (202, {"ids": ["mleko"]})
    anna = {"customer_id": "anna", "first_name": "A", "last_name": "Ż", "address": "Łódź"}
    assert http.ask("POST", f"/events/customers{slash}", [anna, {**anna, "customer_id": "bob"}])[1] == {
        "ids": ["anna", "bob"]
    }
    status, answer, _ = http.ask("POST", f"/events/purchases{slash}", {**PURCHASE, "purchase_id": "b-1"})
    assert (status, answer) == (202, {"ids": ["b-1"]})
    assert [(topic, key) for topic, key, _ in sender.got] == [
        ("shop.products", b"mleko"),
        ("shop.customers", b"anna"),
        ("shop.customers", b"bob"),
        ("shop.purchases", b"anna"),
    ]
    assert sender.got[0][2] == MILK


def test_a_purchase_without_an_id_gets_one(sender: Sender, http: Http) -> None:
    """The answer has the ids that the worker made, which differ. `purchased_at` is now."""
    without = {name: one for name, one in PURCHASE.items() if name != "purchase_id"}
    _, answer, _ = http.ask("POST", "/events/purchases", [without, without])
    first, second = answer["ids"]
    assert first != second
    assert [value["purchase_id"] for _, _, value in sender.got] == [first, second]
    age = datetime.now(timezone.utc) - datetime.fromisoformat(sender.got[0][2]["purchased_at"].replace("Z", "+00:00"))
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_one_bad_event_and_nothing_is_sent(sender: Sender, http: Http) -> None:
    """If one event of an array is wrong, none is sent, and the answer names every wrong field."""
    status, answer, _ = http.ask("POST", "/events/purchases", [PURCHASE, {**PURCHASE, "quantity": 0, "price": "x"}])
    assert status == 400
    assert set(fields(answer)) == {"[1].quantity", "[1].price"}
    assert sender.got == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b'"text"', 400),
        (b"[]", 400),
        (b"[" * 900, 400),
        (b"[1, 2, 3, 4]", 400),
        (b"[" + b" " * 1_100 + b"]", 413),
    ],
)
def test_a_body_that_is_no_event_is_refused(sender: Sender, body: bytes, status: int, http: Http) -> None:
    """A body that is no JSON, no event, or too long, gets 400 or 413 with an `error`."""
    found, answer, _ = http.ask("POST", "/events/purchases", data=body, headers={"Content-Type": "application/json"})
    assert found == status
    assert answer["error"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
def test_another_content_type_is_refused(sender: Sender, kind: str, http: Http) -> None:
    """A page of another origin can send a form without a preflight, but no JSON. Other types get 415."""
    status, answer, _ = http.ask("POST", "/events/purchases", data=json.dumps(PURCHASE), headers={"Content-Type": kind})
    assert (status, sender.got) == (415, [])
    assert "application/json" in answer["error"]


def test_a_body_without_a_length_is_counted_as_it_comes(sender: Sender, http: Http) -> None:
    """A chunked or compressed body gets 413 at the limit: 100 bytes of gzip can be a megabyte."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    assert http.ask("POST", "/events/purchases", data=chunks(), headers=headers)[0] == 413
    packed = {"data": b" " * 100_000, "compress": "gzip", "headers": headers}
    assert http.ask("POST", "/events/purchases", **packed)[0] == 413


def test_kafka_away_or_slow_is_said_so(sender: Sender, monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """While Kafka does not acknowledge, the client gets 503 with `Retry-After`, within the time limit."""
    sender.failure = Unavailable("Kafka", "does not answer")
    status, answer, headers = http.ask("POST", "/events/purchases", PURCHASE)
    assert (status, answer, headers["Retry-After"]) == (503, {"error": "Kafka: does not answer"}, "1")
    sender.slow = True
    monkeypatch.setattr(events, "KAFKA_SECONDS", 0.05)
    status, answer, headers = http.ask("POST", "/events/purchases", PURCHASE)
    assert (status, answer) == (503, {"error": "Kafka: no answer within 0.05 s"})


def test_a_stopping_worker_lets_nobody_wait(sender: Sender, monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """Requests that wait for Kafka get 503, and a client that sends its body slowly is disconnected."""
    monkeypatch.setattr(web, "_GRACE_SECONDS", 0.05)
    sender.slow = True

    async def body(client: Client) -> None:
        waiting = asyncio.ensure_future(client.post("/events/purchases", json=PURCHASE))
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"POST /events/purchases HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 100\r\n\r\n{")
        await writer.drain()
        while len(web._stopping._waiters) < 2:
            await asyncio.sleep(0.01)
        await web._stop()
        response = await waiting
        assert response.status == 503
        assert "stops" in (await response.json())["error"]
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        after = await client.post("/events/purchases", json=PURCHASE)
        assert after.status == 503

    http.run(body)


# -- reading


def put_all(by_hand: ByHand, kind: str, *documents: Document) -> None:
    """Store documents as another program would."""
    for document in documents:
        by_hand.put(kind, document)


def test_products_come_in_pages(shown: ObservedStore, http: Http, by_hand: ByHand) -> None:
    """Products are sorted by id, times are ISO 8601 in UTC, and `next` is null on the last page."""
    put_all(
        by_hand, "products", *({"_id": name, "name": name.upper(), "price": 1, "updated_at": NOON} for name in "cab")
    )
    status, answer, _ = http.ask("GET", "/products?limit=2")
    assert status == 200
    assert answer["next"] == "b"
    assert answer["products"][0] == {
        "product_id": "a",
        "name": "A",
        "price": 1,
        "updated_at": "2026-05-01T12:00:00.000Z",
    }
    _, answer, _ = http.ask("GET", "/products/?limit=2&after=b")
    assert ([one["product_id"] for one in answer["products"]], answer["next"]) == (["c"], None)


def test_customers_and_products_are_found_by_name(shown: ObservedStore, http: Http, by_hand: ByHand) -> None:
    """`q` finds by name, a page at a time; without it all are listed. A wrong `q` gets 400 with its name."""
    names = {"a": "Anna", "b": "ŁUCJA", "c": "Łukasz", "d": "Lucyna"}
    for one, name in names.items():
        by_hand.put("customers", {"_id": one, "first_name": name, "last_name": "Żak"})
    put_all(by_hand, "products", {"_id": "m", "name": "Masło extra"})
    status, answer, _ = http.ask("GET", "/customers/?q=lu%20zak&limit=2")
    assert (status, answer["next"]) == (200, "c")
    assert answer["customers"][0] == {"customer_id": "b", "first_name": "ŁUCJA", "last_name": "Żak"}
    _, answer, _ = http.ask("GET", "/customers?q=lu%20zak&limit=2&after=c")
    assert ([one["customer_id"] for one in answer["customers"]], answer["next"]) == (["d"], None)
    assert [one["customer_id"] for one in http.ask("GET", "/customers/")[1]["customers"]] == list(names)
    assert [one["product_id"] for one in http.ask("GET", "/products/?q=EXTRA")[1]["products"]] == ["m"]
    assert http.ask("GET", "/products/?q=aslo")[1]["products"] == []
    for query in ("q=", f"q={'x' * 101}"):
        status, answer, _ = http.ask("GET", f"/customers/?{query}")
        assert (status, list(fields(answer))) == (400, ["q"])


def test_a_search_of_too_many_is_refused(shown: ObservedStore, monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """A rare name among very many customers gets 503, which says what to do."""

    async def slow(*arguments: Any) -> None:
        raise Slow("MongoDB", "it did not finish a request in time")

    monkeypatch.setattr(shown, "after", slow)
    status, answer, _ = http.ask("GET", "/customers/?q=anna&limit=9")
    assert (status, answer) == (503, {"error": "MongoDB has not found 10 such customers within 2 s: "
        "there are too many customers to look for a rare name; ask by id"})  # fmt: skip


def test_a_purchase_is_found_by_its_id(shown: ObservedStore, http: Http, by_hand: ByHand) -> None:
    """The purchase has its customer. An unknown id gets 404."""
    put_all(by_hand, "purchases", purchase("b/1"))
    status, answer, _ = http.ask("GET", "/purchases/b%2F1/")
    assert (status, answer["purchase_id"], answer["customer_id"]) == (200, "b/1", "anna")
    assert http.ask("GET", "/purchases/none")[:2] == (404, {"error": "No purchase with this id is stored."})
    assert http.ask("GET", f"/purchases/{'b' * 129}")[0] == 404


def test_a_customer_is_found_by_any_id(shown: ObservedStore, http: Http, by_hand: ByHand) -> None:
    """An id with slashes, quotes or `$` is a value, never an operator or a path."""
    names = ['{"$gt": ""}', "a/b", "../x", "Żółć 100%", "$where", "\0"]
    put_all(by_hand, "customers", *({"_id": name, "first_name": name, "registered_at": NOON} for name in names))
    for name in names:
        status, answer, _ = http.ask("GET", f"/customers/{quote(name, safe='')}/")
        assert (status, answer["customer_id"], answer["first_name"]) == (200, name, name)
    status, answer, _ = http.ask("GET", "/customers/nobody")
    assert (status, answer) == (404, {"error": "No customer with this id has registered."})


def test_purchases_are_paged_without_a_gap(shown: ObservedStore, http: Http, by_hand: ByHand) -> None:
    """Purchases come oldest first, and by id if of one time. `next` leads to each exactly once."""
    put_all(by_hand, "purchases", purchase("z"), purchase("a:1"), purchase("b"),
            purchase("m", purchased_at=NOON - MINUTE), purchase("late", purchased_at=NOON + 5 * MINUTE))  # fmt: skip
    path, seen = "/customers/anna/purchases/?limit=2", []
    while path:
        status, answer, _ = http.ask("GET", path)
        assert status == 200
        seen += [one["purchase_id"] for one in answer["purchases"]]
        path = answer["next"] and f"/customers/anna/purchases/?limit=2&after={quote(answer['next'])}"
    assert seen == ["m", "a:1", "b", "z", "late"]
    assert answer["purchases"][0] == {
        "purchase_id": "late",
        "product_id": "milk",
        "quantity": 2,
        "price": 300,
        "value": 600,
        "purchased_at": "2026-05-01T12:05:00.000Z",
    }


def test_who_registered_or_bought_is_known(shown: ObservedStore, http: Http, by_hand: ByHand) -> None:
    """A customer may have registered without buying, or bought without registering. Others get 404."""
    put_all(by_hand, "customers", {"_id": "bob", "registered_at": NOON})
    put_all(by_hand, "purchases", purchase("b"))
    assert http.ask("GET", "/customers/bob/purchases")[1] == {"customer_id": "bob", "purchases": [], "next": None}
    assert len(http.ask("GET", "/customers/anna/purchases")[1]["purchases"]) == 1
    assert http.ask("GET", "/customers/carl/purchases")[0] == 404
    assert (
        http.ask("GET", f"/customers/{'c' * 129}/purchases?after=1:b")[0]
        == http.ask("GET", f"/customers/{'c' * 129}")[0]
        == 404
    )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=%C2%B2", "limit"),
        ("limit=", "limit"),
        ("limit=-1", "limit"),
    ]
    + [(f"after={one}", "after") for one in ("", "5", ":b", "1:", "x:b", "1.5:b", "1" * 16 + ":b", "1:" + "b" * 129)],
)
def test_a_wrong_query_is_named(shown: ObservedStore, query: str, field: str, http: Http) -> None:
    """A wrong `limit` or `after` gets 400 with the parameter's name."""
    status, answer, _ = http.ask("GET", f"/customers/anna/purchases?{query}")
    assert (status, list(fields(answer))) == (400, [field])


@pytest.mark.parametrize("after", ["999999999999999:b", "-999999999999999:b"])
def test_a_cursor_beyond_all_times_is_one_of_the_ends(
    shown: ObservedStore, after: str, http: Http, by_hand: ByHand
) -> None:
    """A cursor outside of Python's range of times gives all purchases or none, not 500."""
    put_all(by_hand, "purchases", purchase("b"))
    _, answer, _ = http.ask("GET", f"/customers/anna/purchases?after={after}")
    assert len(answer["purchases"]) == (0 if after[0] == "9" else 1)


def test_mongodb_away_or_slow_is_said_so(shown: ObservedStore, monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """While MongoDB does not answer, the client gets 503 with `Retry-After`, within the time limit."""
    for path in ("/products/", "/customers/?q=a", "/customers/anna/", "/customers/anna/purchases/", "/purchases/b/"):
        shown.away(1)
        status, answer, headers = http.ask("GET", path)
        assert (status, answer, headers["Retry-After"]) == (503, {"error": "MongoDB: away"}, "1")

    async def never(*arguments: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(shown, "after", never)
    monkeypatch.setattr(reading, "MONGODB_SECONDS", 0.05)
    assert http.ask("GET", "/products/")[:2] == (503, {"error": "MongoDB: no answer within 0.05 s"})


def test_a_strange_document_of_another_program_is_shown_all_the_same(
    shown: ObservedStore, http: Http, by_hand: ByHand
) -> None:
    """A BSON type that JSON does not have is shown as text."""
    put_all(by_hand, "products", {"_id": "a", "name": Regex("x", "i"), "price": None, "other": 1})
    assert http.ask("GET", "/products/")[1]["products"] == [{"product_id": "a", "name": "Regex('x', 2)", "price": None}]


# -- all


def test_unknown_paths_and_methods_are_answered_in_the_one_shape(http: Http) -> None:
    """The 404 and 405 that aiohttp makes itself have the shape of all errors."""
    status, answer, _ = http.ask("GET", "/nothing/here")
    assert (status, answer) == (404, {"error": "404 Not Found: /nothing/here"})
    status, answer, headers = http.ask("DELETE", "/events/purchases")
    assert (status, list(answer)) == (405, ["error"])
    assert "POST" in headers["Allow"]
    assert http.ask("GET", "/events/purchases")[0] == 405


def test_a_fault_is_told_without_its_details(shown: ObservedStore, monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """The text of an exception may be secret, so a 500 does not have it."""

    async def broken(*arguments: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(shown, "after", broken)
    status, answer, _ = http.ask("GET", "/products/")
    assert status == 500
    assert "secret" not in str(answer)


def test_the_topics_are_described(http: Http) -> None:
    """`/asyncapi.json` has the topics, `/schemas/` has their values; a topic without a schema is 404."""
    status, answer, _ = http.ask("GET", "/asyncapi.json")
    assert (status, answer) == (200, describe.asyncapi(topics.SHOWN, topics.SPECS))
    status, answer, _ = http.ask("GET", "/schemas/purchases.json")
    assert (status, answer) == (200, describe.schema("purchases"))
    for name in ("dead-letters", "nothing"):
        status, answer, _ = http.ask("GET", f"/schemas/{name}.json")
        assert status == 404
        assert "customer-activity" in answer["error"]


def test_the_document_comes_from_the_records_and_the_limits(monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """`/openapi.json` says which fields are required, and which operations need a token."""
    _, answer, _ = http.ask("GET", "/openapi.json")
    schemas = answer["components"]["schemas"]
    assert answer["openapi"] == "3.1.0"
    assert schemas["PurchaseEvent"]["required"] == ["customer_id", "product_id", "quantity"]
    assert schemas["ProductEvent"]["properties"]["product_id"]["maxLength"] == 128
    assert "securitySchemes" not in answer["components"]
    monkeypatch.setattr(openapi, "config", Config(web=Web(max_events=7, write_token="w" * 20)))
    locked = openapi.document()
    post = locked["paths"]["/events/purchases"]["post"]
    assert post["security"] == [{"token": []}]
    assert "401" in post["responses"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["oneOf"][1]["maxItems"] == 7
    assert "security" not in locked["paths"]["/products/"]["get"]


def test_the_examples_are_accepted(sender: Sender, http: Http) -> None:
    """The example that `/docs/` offers to send is accepted with 202."""
    for path, methods in openapi.document()["paths"].items():
        if path.startswith("/events/"):
            example = methods["post"]["requestBody"]["content"]["application/json"]["example"]
            assert http.ask("POST", path, example)[0] == 202


def test_the_page_needs_nothing_from_elsewhere(http: Http) -> None:
    """`/docs/` loads only the worker's own files, and its policy forbids others."""

    async def body(client: Client) -> None:
        for path, kind in (
            ("/docs/", "text/html"),
            ("/docs/docs.js", "text/javascript"),
            ("/docs/docs.css", "text/css"),
        ):
            async with client.get(path) as response:
                text = await response.text()
                assert (response.status, response.content_type) == (200, kind)
                assert response.headers["Content-Security-Policy"].startswith("default-src 'self'")
                assert "://" not in text
                assert "innerHTML" not in text
        async with client.get("/docs/other.js") as response:
            assert response.status == 404

    http.run(body)


def test_files_are_compressed_once_and_sent_once(monkeypatch: pytest.MonkeyPatch, http: Http) -> None:
    """A file is compressed at its first request. A browser that has it gets 304. Other answers are not cached."""
    packs: list[int] = []
    compress = web.gzip.compress
    monkeypatch.setattr(web.gzip, "compress", lambda body: packs.append(len(body)) or compress(body))
    web._packed.cache_clear()
    files = ["/docs/docs.js", "/page/static/page.js"] + ["/page/static/bokeh.min.js"] * charts.available()

    async def body(client: Client) -> None:
        for path in files:
            plain = await client.get(path, headers={"Accept-Encoding": "identity"})
            packed = await client.get(path, headers={"Accept-Encoding": "gzip"})
            assert (plain.headers.get("Content-Encoding"), packed.headers["Content-Encoding"]) == (None, "gzip")
            assert await plain.read() == await packed.read()
            assert int(packed.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 2
            assert (packed.headers["Cache-Control"], packed.headers["Vary"]) == ("no-cache", "Accept-Encoding")
            etag = packed.headers["ETag"]
            for known, status in ((etag, 304), (f'"other", {etag}', 304), ("*", 304), ('"other"', 200)):
                async with client.get(path, headers={"If-None-Match": known}) as response:
                    assert (response.status, response.headers["ETag"]) == (status, etag)
                    assert (await response.read() == b"") == (status == 304)
        async with client.get("/openapi.json") as response:
            assert response.headers["Cache-Control"] == "no-store"

    http.run(body)
    assert len(packs) == len(files)
