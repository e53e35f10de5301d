"""The page at `/`: the live shop for people, and what its scripts fetch."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
from aiohttp.web import FileResponse
from jinja2 import Environment, FileSystemLoader

from shopflow.app import app, store
from shopflow.errors import Unavailable
from shopflow.models import MAX_ID_LENGTH
from shopflow.shop.text import day_and_time
from shopflow.store.types import Document
from shopflow.web import peers
from shopflow.web.access import refuse
from shopflow.web.answers import Refusal, route
from shopflow.web.client import reason

from . import charts, product, render, snapshot

_HERE = Path(__file__).parents[1]
_STATIC = _HERE / "static"
_OWN_FILES = ("page.js", "page.css")
_BOKEH = "bokeh.min.js"
#: Purchases of a customer, and vouchers, that are shown.
_PURCHASES, _VOUCHERS = 20, 10
_MONGODB_SECONDS = 3.0

#: Nothing but what the worker itself serves; no script in the page itself, whatever names hold. Bokeh puts style
#: attributes and style elements into what it draws; it needs no `unsafe-eval`, since no callback is written as a text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_FRESH = {"Cache-Control": "no-store"}

_templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


@app.page("/")
async def index(web: Any, request: Any) -> Any:
    wanted, product_id = request.query.get("customer", "").strip(), _product_id(request)
    now, customer, looked_at = await asyncio.gather(snapshot.shop_state(), _customer(wanted), product.shown(product_id))
    drawn = charts.available()
    html = _templates.get_template("page.html").render(
        now=render.shown(now),
        topics=[topic.rpartition(".")[2] for topic in now.topics],
        wanted=wanted,
        customer=customer,
        product_id=product_id,
        product=looked_at,
        today=day_and_time(datetime.now(timezone.utc).replace(hour=0, minute=0))[len("2026-01-31 ") : -3],
        charts=drawn,
    )
    policy = _POLICY.format(styles=" 'unsafe-inline'" if drawn else "")
    return web.html(html, headers={**_FRESH, "Content-Security-Policy": policy})


@route("get", "/page/data.json", _FRESH)
async def data(request: Any) -> tuple[int, Any]:
    """What changes on the page, each time it is fetched; with `?product=ID` that product's prices, too."""
    now, looked_at = await asyncio.gather(snapshot.shop_state(), product.shown(_product_id(request)))
    shown = render.shown(now)
    if looked_at:
        shown.facts, shown.tables["prices"] = looked_at.facts, looked_at.prices
    return 200, shown


@route("get", "/page/series.json", _FRESH)
async def series(request: Any) -> tuple[int, Any]:
    return 200, render.series(await snapshot.sales(), time.time())


@route("get", "/page/course.json", _FRESH)
async def course(request: Any) -> tuple[int, Any]:
    """The columns of a product's chart: `?product=ID`."""
    return 200, await product.course(_product_id(request))


@route("get", "/page/charts.json", _FRESH)
async def chart(request: Any) -> tuple[int, Any]:
    """The charts, as Bokeh's script takes them; with `?dark=1` in dark colours, with `?wide=1` side by side.

    With `?product=ID` that product's.
    """
    if not charts.available():
        raise Refusal(404, "the extra `page` is not installed: there are no charts")
    dark, wide = (request.query.get(name) == "1" for name in ("dark", "wide"))
    if product_id := _product_id(request):
        url = f"/page/course.json?product={render.quoted(product_id)}"
        return 200, await asyncio.to_thread(charts.product, url, dark=dark)
    return 200, await asyncio.to_thread(charts.document, dark=dark, wide=wide)


@route("get", "/board/", _FRESH)
async def board(request: Any) -> tuple[int, Any]:
    """What this worker says of itself; the other workers ask for it."""
    return 200, snapshot.report()


@app.page("/page/static/{name}")
async def static(web: Any, request: Any, name: str) -> Any:
    """The page's script and style, and Bokeh's script."""
    path = _STATIC / name if name in _OWN_FILES else charts.script() if name == _BOKEH else None
    if path is None:
        return refuse(404, "there is no such file")
    return FileResponse(path, headers={"Cache-Control": "no-cache"})


def _product_id(request: Any) -> str:
    return str(request.query.get("product", "")).strip()


async def _customer(customer_id: str) -> render.Customer | None:
    """What is known of a customer: the counts from the worker that has them, the rest from MongoDB."""
    if not customer_id:
        return None
    if len(customer_id) > MAX_ID_LENGTH:
        problem = f"A customer's id has at most {MAX_ID_LENGTH} characters."
        return render.customer(customer_id, None, None, [], [problem])
    problems: list[str] = []
    (count, why), (stored, away) = await asyncio.gather(_count(customer_id), _stored(customer_id))
    document, purchases, vouchers = stored
    problems += filter(None, [why, away])
    if not problems and not count and not document and not purchases and not vouchers:
        problems.append("There is no customer with this id.")
    return render.customer(customer_id, count, document, purchases, problems, vouchers=vouchers)


async def _count(customer_id: str) -> tuple[dict[str, int] | None, str]:
    try:
        status, body = await peers.ask(peers.me(), f"/counts/{render.quoted(customer_id)}/")
    except Unavailable as error:
        return None, f"The counts are not known now: {error}."
    if status == 200:
        return msgspec.json.decode(body), ""
    return None, "" if status == 404 else f"The counts are not known now: {reason(body, status)}."


_Stored = tuple[Document | None, list[Document], list[Document]]  # the customer, purchases, vouchers


async def _stored(customer_id: str) -> tuple[_Stored, str]:
    try:
        return await asyncio.wait_for(_read(customer_id), _MONGODB_SECONDS), ""
    except (Unavailable, asyncio.TimeoutError):
        return (None, [], []), "MongoDB does not answer: the customer's name and purchases are not known now."


async def _read(customer_id: str) -> _Stored:
    found = await store.documents("customers", [customer_id])
    purchases = await store.last_purchases(customer_id, _PURCHASES)
    async with aclosing(store.vouchers(customer_id, _VOUCHERS)) as given:
        return found.get(customer_id), purchases, [voucher async for voucher in given]
