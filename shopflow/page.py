"""The page at `/`: the live shop for people, and what its scripts fetch."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from aiohttp.web import FileResponse
from jinja2 import Environment, FileSystemLoader

from . import charts, overview, peers, showing
from .app import app, store
from .errors import Unavailable
from .models import MAX_ID_LENGTH
from .store import Document
from .workers import reason

__all__ = ["board", "chart", "data", "index", "series", "static"]

_HERE = Path(__file__).parent
_STATIC = _HERE / "static"
_OWN_FILES = ("page.js", "page.css")
_BOKEH = "bokeh.min.js"
#: Purchases of a customer that are shown.
_PURCHASES = 20
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
    """The page."""
    wanted = request.query.get("customer", "").strip()
    now, customer = await asyncio.gather(overview.condition(), _customer(wanted))
    drawn = charts.available()
    html = _templates.get_template("page.html").render(
        now=showing.shown(now),
        topics=[topic.rpartition(".")[2] for topic in now.topics],
        wanted=wanted,
        customer=customer,
        charts=drawn,
    )
    policy = _POLICY.format(styles=" 'unsafe-inline'" if drawn else "")
    return web.html(html, headers={**_FRESH, "Content-Security-Policy": policy})


@app.page("/page/data.json")
async def data(web: Any, request: Any) -> Any:
    """What changes on the page, each time it is fetched."""
    return _json(web, showing.shown(await overview.condition()))


@app.page("/page/series.json")
async def series(web: Any, request: Any) -> Any:
    """The columns of the charts."""
    return _json(web, showing.series(await overview.sales(), time.time()))


@app.page("/page/charts.json")
async def chart(web: Any, request: Any) -> Any:
    """The charts, as Bokeh's script takes them; with `?dark=1` in dark colours, with `?wide=1` side by side."""
    if not charts.available():
        return web.json({"error": "the extra `page` is not installed: there are no charts"}, status=404)
    wanted = {name: request.query.get(name) == "1" for name in ("dark", "wide")}
    return web.json(await asyncio.to_thread(charts.document, **wanted), headers=_FRESH)


@app.page("/page/static/{name}")
async def static(web: Any, request: Any, name: str) -> Any:
    """The page's script and style, and Bokeh's script."""
    path = _STATIC / name if name in _OWN_FILES else charts.script() if name == _BOKEH else None
    if path is None:
        return web.json({"error": "there is no such file"}, status=404)
    return FileResponse(path, headers={"Cache-Control": "no-cache"})


@app.page("/board/")
async def board(web: Any, request: Any) -> Any:
    """What this worker says of itself; the other workers ask for it."""
    return _json(web, overview.report())


def _json(web: Any, answer: Any) -> Any:
    return web.bytes(msgspec.json.encode(answer), content_type="application/json", headers=_FRESH)


async def _customer(customer_id: str) -> showing.Customer | None:
    """What is known of a customer: the counts from the worker that has them, the rest from MongoDB."""
    if not customer_id:
        return None
    if len(customer_id) > MAX_ID_LENGTH:
        problem = f"A customer's id has at most {MAX_ID_LENGTH} characters."
        return showing.customer(customer_id, None, None, [], [problem])
    problems: list[str] = []
    (count, why), (document, purchases, away) = await asyncio.gather(_count(customer_id), _stored(customer_id))
    problems += filter(None, [why, away])
    if not problems and not count and not document and not purchases:
        problems.append("There is no customer with this id.")
    return showing.customer(customer_id, count, document, purchases, problems)


async def _count(customer_id: str) -> tuple[dict[str, int] | None, str]:
    try:
        path = f"/counts/{quote(customer_id.encode('utf-8', 'surrogatepass'), safe='')}/"
        status, body = await peers.ask(peers.me(), path)
    except Unavailable as error:
        return None, f"The counts are not known now: {error}."
    if status == 200:
        return msgspec.json.decode(body), ""
    return None, "" if status == 404 else f"The counts are not known now: {reason(body, status)}."


async def _stored(customer_id: str) -> tuple[Document | None, list[Document], str]:
    try:
        found = await asyncio.wait_for(store.documents("customers", [customer_id]), _MONGODB_SECONDS)
        purchases = await asyncio.wait_for(store.last_purchases(customer_id, _PURCHASES), _MONGODB_SECONDS)
    except (Unavailable, asyncio.TimeoutError):
        return None, [], "MongoDB does not answer: the customer's name and purchases are not known now."
    return found.get(customer_id), purchases, ""
