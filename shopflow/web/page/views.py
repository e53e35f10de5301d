"""The page at `/`: the live shop for people, and the data that its script fetches."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any

from jinja2 import Environment, FileSystemLoader

from shopflow.app import app, store
from shopflow.errors import Unavailable
from shopflow.models import MAX_ID_LENGTH
from shopflow.shop.text import clock, day_and_time, later, visible
from shopflow.store.types import CUSTOMERS, PRODUCTS, Document
from shopflow.web import peers
from shopflow.web.access import Refusal
from shopflow.web.answers import STATIC, route, static_file
from shopflow.web.api import collections, counts
from shopflow.web.cached import Age

from . import charts, product, render, snapshot
from .warnings import ShopState

_OWN_FILES = ("page.js", "page.css", "letters.js")
_BOKEH = "bokeh.min.js"
#: The number of a customer's purchases and vouchers that are shown.
_PURCHASES, _VOUCHERS = 20, 10
#: The number of names that a search shows.
_MATCHES = 8
_NOBODY = "There is no customer with this name or id."
_MONGODB_SECONDS = 3.0

#: Only files of the worker, and no script inside the page, whatever names hold. Bokeh sets style attributes and style
#: elements in its charts. It needs no `unsafe-eval`, since no callback is written as a text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_templates = Environment(
    loader=FileSystemLoader(STATIC.with_name("templates")), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def html_page(web: Any, template: str, **values: Any) -> Any:
    """Another page in the same form. It needs no charts."""
    html = _templates.get_template(template).render(
        values, quoted=render.quoted, visible=visible, clock=clock, later=later
    )
    return web.html(html, headers={"Content-Security-Policy": _POLICY.format(styles="")})


@app.page("/")
async def index(web: Any, request: Any) -> Any:
    wanted, product_id = _wanted(request, "customer"), _wanted(request, "product")
    now, customer, looked_at = await asyncio.gather(snapshot.shop_state(), _customer(wanted), product.shown(product_id))
    customers = await _matches(CUSTOMERS, wanted) if customer and customer.problems == [_NOBODY] else []
    products = await _matches(PRODUCTS, product_id) if looked_at and looked_at.problems else []
    drawn = charts.available()
    html = _templates.get_template("page.html").render(
        now=_shown(now, looked_at),
        waiting=[f"{topic.rpartition('.')[2].capitalize()} waiting" for topic in now.topics],
        wanted=wanted,
        customer=None if customers else customer,
        product_id=product_id,
        product=None if products else looked_at,
        product_matches=products,
        customer_matches=customers,
        today=day_and_time(datetime.now(timezone.utc).replace(hour=0, minute=0))[len("2026-01-31 ") : -3],
        charts=drawn,
    )
    policy = _POLICY.format(styles=" 'unsafe-inline'" if drawn else "")
    return web.html(html, headers={"Content-Security-Policy": policy})


@route("get", "/page/data.json")
async def data(request: Any) -> tuple[int, Any]:
    """The parts of the page that change; with `?product=ID` also that product's prices."""
    now, looked_at = await asyncio.gather(snapshot.shop_state(), product.shown(_wanted(request, "product")))
    return 200, _shown(now, looked_at)


def _shown(now: ShopState, looked_at: product.Product | None) -> render.Shown:
    shown = render.shown(now)
    if looked_at:
        shown.facts, shown.tables["prices"] = looked_at.facts, looked_at.prices
        shown.notes["product"] = looked_at.moment
    return shown


@route("get", "/page/matches.json")
async def matches(request: Any) -> tuple[int, Any]:
    """Links to the products or customers with such a name: `?product=NAME` or `?customer=NAME`."""
    kind, name = (PRODUCTS, "product") if "product" in request.query else (CUSTOMERS, "customer")
    return 200, await _matches(kind, _wanted(request, name))


async def _matches(kind: str, text: str) -> list[render.Cell]:
    """Links to those with such a name, or a sentence that says why they are not known."""
    if not 1 <= len(text) <= collections.MAX_NAME_LENGTH:
        return []
    try:
        return render.matches(kind, await collections.named(kind, text, _MATCHES + 1), _MATCHES)
    except (Refusal, Unavailable) as error:
        return [render.Cell(f"{error}.")]


@route("get", "/page/series.json")
async def series(request: Any) -> tuple[int, Any]:
    return 200, render.series(*await snapshot.sales())


@route("get", "/page/course.json")
async def course(request: Any) -> tuple[int, Any]:
    """The columns of a product's chart: `?product=ID`."""
    return 200, await product.course(_wanted(request, "product"))


@route("get", "/page/charts.json")
async def chart(request: Any) -> tuple[int, Any]:
    """The charts for Bokeh's script: `?dark=1` in dark colours, `?wide=1` side by side.

    With `?product=ID` the chart of that product.
    """
    if not charts.available():
        raise Refusal(404, "the extra `page` is not installed: there are no charts")
    dark, wide = (request.query.get(name) == "1" for name in ("dark", "wide"))
    if product_id := _wanted(request, "product"):
        url = f"/page/course.json?product={render.quoted(product_id)}"
        return 200, await asyncio.to_thread(charts.product, url, dark=dark)
    return 200, await asyncio.to_thread(charts.document, dark=dark, wide=wide)


@route("get", "/board/")
async def board(request: Any) -> tuple[int, Any]:
    """The report of this worker, for the other workers."""
    return 200, snapshot.report()


@app.page("/page/static/{name}")
async def static(web: Any, request: Any, name: str) -> Any:
    """The page's script and style, and Bokeh's script."""
    path = STATIC / name if name in _OWN_FILES else charts.script() if name == _BOKEH else None
    if path is None:
        raise Refusal(404, "there is no such file")
    return await static_file(request, path)


def _wanted(request: Any, name: str) -> str:
    return str(request.query.get(name, "")).strip()


async def _customer(customer_id: str) -> render.Customer | None:
    """A customer: the counts from the worker that owns the partition, the rest from MongoDB."""
    if not customer_id:
        return None
    if len(customer_id) > MAX_ID_LENGTH:
        problem = f"A customer's id has at most {MAX_ID_LENGTH} characters."
        return render.customer(customer_id, None, None, [], [problem])
    problems: list[str] = []
    asked = Age(time.time(), "")
    (count, why), (stored, away) = await asyncio.gather(_count(customer_id), _stored(customer_id))
    document, purchases, vouchers = stored
    problems += filter(None, [why, away])
    if not problems and not count and not document and not purchases and not vouchers:
        problems.append(_NOBODY)
    made = render.customer(customer_id, count, document, purchases, problems, vouchers=vouchers)
    made.moment = render.moment(time.time(), "MongoDB", asked)
    return made


async def _count(customer_id: str) -> tuple[dict[str, int] | None, str]:
    try:
        return await counts.find(customer_id, peers.SECONDS), ""
    except (Refusal, Unavailable) as error:
        return None, f"The counts are not known now: {error}."


_Stored = tuple[Document | None, list[Document], list[Document]]  # the customer, purchases, vouchers


async def _stored(customer_id: str) -> tuple[_Stored, str]:
    try:
        return await asyncio.wait_for(_read(customer_id), _MONGODB_SECONDS), ""
    except (Unavailable, asyncio.TimeoutError):
        return (None, [], []), "MongoDB does not answer: the customer's name, purchases and vouchers are not known now."


async def _read(customer_id: str) -> _Stored:
    found = await store.documents("customers", [customer_id])
    purchases = await store.last_purchases(customer_id, _PURCHASES)
    async with aclosing(store.vouchers(customer_id, _VOUCHERS)) as given:
        return found.get(customer_id), purchases, [voucher async for voucher in given]
