"""The page's views, without servers."""

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
from shopflow.shop.recent_sales import Bestseller, Sale, Snapshot
from shopflow.web.access import Refusal
from shopflow.web.page import charts, product, snapshot
from shopflow.web.page import views as page
from shopflow.web.page.warnings import Learned, ShopState
from tests.support.fakes import FakeStore
from tests.web.test_warnings import AT, WELL, replace

NOW = datetime.now(timezone.utc)
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


class Workers:
    """What the workers answer about a customer's counts."""

    def __init__(self) -> None:
        self.answer: dict[str, int] | Exception | None = None
        self.asked: list[str] = []

    async def find(self, customer_id: str, seconds: float) -> dict[str, int] | None:
        self.asked.append(customer_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    """A shop that is well, with an empty MongoDB."""
    made = Workers()
    sale = Sale(AT, "b", HOSTILE, HOSTILE, 1, 5)
    sold = {"product_id": HOSTILE, "units": 1, "revenue": 5}
    store = FakeStore()
    store.collections["vouchers"]["v"] = voucher = {
        "_id": "v", "customer_id": HOSTILE, "rule": HOSTILE, "percent": 5, "text": HOSTILE, "issued_at": NOW,
        "valid_until": NOW,
    }  # fmt: skip
    store.collections["products"][HOSTILE] = {"_id": HOSTILE, "name": HOSTILE, "price": 5}
    seen = replace(
        WELL,
        board=Snapshot({}, [sale], [Bestseller(HOSTILE, 1, 5)]),
        products={HOSTILE: HOSTILE},
        learned=Learned([sold], [sold], [voucher], [{"product_id": HOSTILE, "left": 1, "stock": 2, "at": NOW}]),
    )

    async def shop_state() -> ShopState:
        return seen

    monkeypatch.setattr(snapshot, "shop_state", shop_state)
    monkeypatch.setattr(page.counts, "find", made.find)
    monkeypatch.setattr(page, "store", store)
    monkeypatch.setattr(product, "store", store)
    product._watched.cache_clear()
    return made


WEB = SimpleNamespace(html=lambda body, headers: (body, headers))


def fetched(handler: Callable[[Any], Awaitable[tuple[int, Any]]], **query: str) -> tuple[int, Any]:
    """Status and body of what the page's script fetches."""
    status, body = asyncio.run(handler(SimpleNamespace(query=query)))
    return status, msgspec.json.decode(msgspec.json.encode(body))


def index(customer: str | None = None, **query: str) -> tuple[str, dict[str, str]]:
    """GET /"""
    request = SimpleNamespace(query=query if customer is None else {"customer": customer, **query})
    answer: tuple[str, dict[str, str]] = asyncio.run(page.index.get(WEB, request))
    return answer


def problems(customer: str) -> list[str]:
    """What the page says of a customer."""
    return re.findall('<p class="problem">(.*?)</p>', index(customer)[0])


def test_names_are_escaped_wherever_they_stand(workers: Workers) -> None:
    """In cells, links, headings, and in the field that was filled in."""
    workers.answer = {"purchases": 1, "items": 1, "spent": 5}
    html, _ = index(HOSTILE, product=HOSTILE)
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&#34;&#39;&amp;") >= 17
    assert re.findall("<script[^>]*>", html)[-1] == '<script src="/page/static/page.js" defer>'
    assert workers.asked == [HOSTILE]


def test_a_product_is_shown_with_its_prices(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page and in what its script fetches: the table is there without the extra; the chart is not."""
    for drawn in (True, False):
        monkeypatch.setattr(charts, "available", lambda drawn=drawn: drawn)
        html, _ = index(product=HOSTILE)
        assert 'data-table="prices"' in html
        assert ('id="product-chart"' in html) == drawn
    assert 'data-table="prices"' not in index()[0]
    found = fetched(page.data, product=HOSTILE)[1]
    assert found["facts"]["Price now"] == "0,05 zł"
    assert [cell["text"] for cell in found["tables"]["prices"][0]][2:] == ["0,05 zł", "0", "0,00 zł", "-"]
    assert fetched(page.course, product=HOSTILE)[1]["y0"] == [0.05]
    assert "There is no product with this id." in index(product="tea")[0]


def test_a_products_chart_fetches_that_products_columns(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its id is."""
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(charts, "available", lambda: True)
    monkeypatch.setattr(charts, "product", lambda url, dark: asked.append((url, dark)) or {})
    fetched(page.chart, product="a&b=/ ą", dark="1")
    assert asked == [("/page/course.json?product=a%26b%3D%2F%20%C4%85", True)]


@pytest.mark.parametrize("drawn", [True, False])
def test_the_policy_lets_only_the_workers_scripts_run(
    drawn: bool, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bokeh's styles are let in only where there are charts."""
    monkeypatch.setattr(charts, "available", lambda: drawn)
    html, headers = index()
    assert "script-src 'self';" in headers["Content-Security-Policy"]
    assert ("'unsafe-inline'" in headers["Content-Security-Policy"]) == drawn
    assert ("bokeh.min.js" in html) == drawn
    assert ("pip install" in html) != drawn
    assert not re.findall(r"<script(?! src=)|<[^>]*\s(?:on\w+|style)=", html)


def test_the_page_and_the_interfaces_page_link_to_each_other(workers: Workers) -> None:
    assert 'href="/docs/"' in index()[0]
    assert 'href="/"' in (page.STATIC / "docs.html").read_text(encoding="utf-8")


def test_no_customer_is_looked_for_unless_one_is_named(workers: Workers) -> None:
    """Spaces around an id are somebody's copying."""
    index()
    index("  ")
    assert workers.asked == []
    index(" anna ")
    assert workers.asked == ["anna"]


def test_what_is_not_known_of_a_customer_is_said(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts and MongoDB each by itself; the page comes anyway."""
    assert problems("nobody") == ["There is no customer with this id."]
    assert problems("x" * 129) == ["A customer&#39;s id has at most 128 characters."]
    workers.answer = Refusal(503, "the counts are being recovered")
    assert problems("anna") == ["The counts are not known now: the counts are being recovered."]
    workers.answer = Unavailable("http://h:1", "does not answer: refused")
    page.store.away(2)  # type: ignore[attr-defined]
    assert problems("anna") == [
        "The counts are not known now: http://h:1: does not answer: refused.",
        "MongoDB does not answer: the customer&#39;s name and purchases are not known now.",
    ]


@pytest.mark.parametrize("name", ["page.py", "../page.py", "page.html", "", "bokeh.js", "page.js/"])
def test_only_the_pages_own_files_are_served(name: str) -> None:
    """Whatever a path says."""
    with pytest.raises(Refusal) as refused:
        asyncio.run(page.static.get(WEB, None, name))
    assert refused.value.status == 404


def test_without_the_extra_there_are_no_charts_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in the shape of all errors."""
    monkeypatch.setattr(charts, "available", lambda: False)
    with pytest.raises(Refusal, match="`page`"):
        fetched(page.chart)
    monkeypatch.setattr(charts, "script", lambda: None)
    with pytest.raises(Refusal, match="no such file"):
        asyncio.run(page.static.get(WEB, None, "bokeh.min.js"))
