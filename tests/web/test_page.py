"""The views of the page, without servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from shopflow.errors import Unavailable
from shopflow.shop.recent_sales import Sale, Snapshot
from shopflow.web.access import Refusal
from shopflow.web.page import charts, product, snapshot
from shopflow.web.page import views as page
from shopflow.web.page.warnings import Learned, ShopState
from tests.conftest import Run
from tests.support.documents import voucher
from tests.support.stores import ByHand, ObservedStore
from tests.support.text import plain
from tests.web.test_warnings import AT, WELL, replace

NOW = datetime.now(timezone.utc)
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


class Visitor:
    """Requests the page; has the workers' answer about a customer's counts."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.answer: dict[str, int] | Exception | None = None
        self.asked: list[str] = []

    async def find(self, customer_id: str, seconds: float) -> dict[str, int] | None:
        self.asked.append(customer_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def fetched(self, handler: Callable[[Any], Awaitable[tuple[int, Any]]], **query: str) -> tuple[int, Any]:
        """Status and body of what the page's script fetches."""
        status, body = self.run(handler(SimpleNamespace(query=query)))
        return status, msgspec.json.decode(msgspec.json.encode(body))

    def index(self, customer: str | None = None, **query: str) -> tuple[str, dict[str, str]]:
        """GET /"""
        request = SimpleNamespace(query=query if customer is None else {"customer": customer, **query})
        answer: tuple[str, dict[str, str]] = self.run(page.index.get(WEB, request))
        return answer

    def problems(self, customer: str) -> list[str]:
        """The problems that the page shows of a customer."""
        return re.findall('<p class="problem">(.*?)</p>', self.index(customer)[0])


WEB = SimpleNamespace(html=lambda body, headers: (body, headers))


@pytest.fixture
def visitor(monkeypatch: pytest.MonkeyPatch, store: ObservedStore, by_hand: ByHand, run: Run) -> Visitor:
    """A visitor of a shop that is well, and has a voucher and a product with hostile names."""
    made = Visitor(run)
    sale = Sale(AT, "b", HOSTILE, HOSTILE, 1, 5)
    sold = {"product_id": HOSTILE, "units": 1, "revenue": 5}
    given = voucher("v", customer=HOSTILE, at=NOW, worth={"percent": 5, "text": HOSTILE}, rule=HOSTILE)
    by_hand.put("vouchers", given)
    by_hand.put("products", {"_id": HOSTILE, "name": HOSTILE, "price": 5})
    seen = replace(
        WELL,
        board=Snapshot({}, [sale], WELL.board.since),
        products={HOSTILE: HOSTILE},
        learned=Learned([sold], [sold], [sold], [given], [{"product_id": HOSTILE, "left": 1, "stock": 2, "at": NOW}]),
    )

    async def shop_state() -> ShopState:
        return seen

    monkeypatch.setattr(snapshot, "shop_state", shop_state)
    monkeypatch.setattr(page.counts, "find", made.find)
    monkeypatch.setattr(page, "store", store)
    monkeypatch.setattr(page.collections, "store", store)
    monkeypatch.setattr(product, "store", store)
    product._watched.cache_clear()
    return made


def test_names_are_escaped_wherever_they_stand(visitor: Visitor) -> None:
    """Markup in names and ids is escaped in cells, links, headings and form fields."""
    visitor.answer = {"purchases": 1, "items": 1, "spent": 5}
    html, _ = visitor.index(HOSTILE, product=HOSTILE)
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;") >= 17
    assert re.findall("<script[^>]*>", html) == [
        '<script src="/page/static/page.js" defer>',
        '<script src="/page/static/bokeh.min.js" id="bokeh" async>',
    ]
    assert visitor.asked == [HOSTILE]


def test_a_product_is_shown_with_its_prices(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page and its JSON have the table of prices. The chart is there only with Bokeh."""
    for drawn in (True, False):
        monkeypatch.setattr(charts, "available", lambda drawn=drawn: drawn)
        html, _ = visitor.index(product=HOSTILE)
        assert 'data-table="prices"' in html
        assert ('id="product-chart"' in html) == drawn
    assert 'data-table="prices"' not in visitor.index()[0]
    found = visitor.fetched(page.data, product=HOSTILE)[1]
    assert plain(found["facts"]["Price now"]) == "0,05 zł"
    assert plain(cell["text"] for cell in found["tables"]["prices"][0])[2:] == ["0,05 zł", "0", "0,00 zł", "-"]
    assert visitor.fetched(page.course, product=HOSTILE)[1]["y0"] == [0.05]
    assert "There is no product with this name or id." in visitor.index(product="tea")[0]


def test_a_products_chart_fetches_that_products_columns(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id in the chart's URL is percent-encoded."""
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(charts, "available", lambda: True)
    monkeypatch.setattr(charts, "product", lambda url, dark: asked.append((url, dark)) or {})
    visitor.fetched(page.chart, product="a&b=/ ą", dark="1")
    assert asked == [("/page/course.json?product=a%26b%3D%2F%20%C4%85", True)]


@pytest.mark.parametrize("drawn", [True, False])
def test_the_policy_lets_only_the_workers_scripts_run(
    drawn: bool, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No script or style is inline. Inline styles are allowed only with charts, for Bokeh."""
    monkeypatch.setattr(charts, "available", lambda: drawn)
    html, headers = visitor.index()
    assert "script-src 'self';" in headers["Content-Security-Policy"]
    assert ("'unsafe-inline'" in headers["Content-Security-Policy"]) == drawn
    assert ("bokeh.min.js" in html) == drawn
    assert ("pip install" in html) != drawn
    assert not re.findall(r"<script(?! src=)|<[^>]*\s(?:on\w+|style)=", html)


def test_the_page_and_the_interfaces_page_link_to_each_other(visitor: Visitor) -> None:
    assert 'href="/docs/"' in visitor.index()[0]
    assert 'href="/"' in (page.STATIC / "docs.html").read_text(encoding="utf-8")


def test_no_customer_is_looked_for_unless_one_is_named(visitor: Visitor) -> None:
    """An empty id starts no search. Spaces around a copied id are ignored."""
    visitor.index()
    visitor.index("  ")
    assert visitor.asked == []
    visitor.index(" anna ")
    assert visitor.asked == ["anna"]


def test_a_name_leads_to_those_who_have_it(visitor: Visitor, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no id gives links, also to the page's script; more than a few, and an outage, are told."""
    for number in range(10):
        by_hand.put("customers", {"_id": f"c/{number}", "first_name": "Łucja", "last_name": HOSTILE, "city": "Łódź"})
    html = visitor.index("lucj")[0]
    assert re.findall('<li><a href="([^"]*)">(Łucja [^<]*)</a></li>', html)[0][0] == "/?customer=c%2F0#customer"
    assert html.count(", Łódź</a></li>") == 8
    assert "There are more" in html
    assert 'id="customer"' not in html
    assert "<img" not in html
    (link,) = visitor.fetched(page.matches, product="</SCRI")[1]
    assert (link["text"], link["href"].startswith("/?product=%3C")) == (HOSTILE, True)
    assert visitor.fetched(page.matches, customer="x" * 101)[1] == visitor.fetched(page.matches, customer=" ")[1] == []

    async def slow(*arguments: Any) -> None:
        raise Refusal(503, "there are too many customers")

    monkeypatch.setattr(page.collections, "named", slow)
    assert "<li>there are too many customers.</li>" in visitor.index("lucj")[0]


def test_what_is_not_known_of_a_customer_is_said(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, store: ObservedStore
) -> None:
    """The page comes also while the counts or MongoDB don't answer, and says what is unknown."""
    assert visitor.problems("nobody") == ["There is no customer with this name or id."]
    assert visitor.problems("x" * 129) == ["A customer&#39;s id has at most 128 characters."]
    visitor.answer = Refusal(503, "the counts are being recovered")
    assert visitor.problems("anna") == ["The counts are not known now: the counts are being recovered."]
    visitor.answer = Unavailable("http://h:1", "does not answer: refused")
    store.away(2)
    assert visitor.problems("anna") == [
        "The counts are not known now: http://h:1: does not answer: refused.",
        "MongoDB does not answer: the customer&#39;s name, purchases and vouchers are not known now.",
    ]


@pytest.mark.parametrize("name", ["page.py", "../page.py", "page.html", "", "bokeh.js", "page.js/"])
def test_only_the_pages_own_files_are_served(name: str) -> None:
    """A path with another file's name, or one that leaves the directory, gets 404."""
    with pytest.raises(Refusal) as refused:
        asyncio.run(page.static.get(WEB, None, name))
    assert refused.value.status == 404


def test_without_bokeh_there_are_no_charts_to_fetch(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Bokeh, the chart's URLs answer with an error in the shape of all errors."""
    monkeypatch.setattr(charts, "available", lambda: False)
    with pytest.raises(Refusal, match="`page`"):
        visitor.fetched(page.chart)
    monkeypatch.setattr(charts, "script", lambda: None)
    with pytest.raises(Refusal, match="no such file"):
        asyncio.run(page.static.get(WEB, None, "bokeh.min.js"))
