"""The page of `demo --faults`: a button for each fault, and what happens. Only the demo's own process serves it.

It listens on 127.0.0.1. Its address has a random token. A request for another host, and a POST that does not come from
the page itself, are refused: no web site can press a button.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from string import Template

from aiohttp import web
from aiohttp.typedefs import Handler

from shopflow.servers.locks import HOST, any_port
from shopflow.shop.text import grouped

from .faults import FAULTS, Faults, listed

_TEMPLATE = Template((Path(__file__).parent / "faults.html").read_text(encoding="utf-8"))


@asynccontextmanager
async def serving(faults: Faults) -> AsyncIterator[str]:
    """Serve the page while the body runs. Yields its address."""
    port, token = any_port(), secrets.token_urlsafe(16)
    runner = web.AppRunner(application(faults, f"{HOST}:{port}", token), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield f"http://{HOST}:{port}/{token}/"
    finally:
        await runner.cleanup()


def application(faults: Faults, host: str, token: str) -> web.Application:
    """The web application.

    Arguments:
        host: The only accepted `Host`.
        token: The first part of every path.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.headers.get("Host") != host:
            raise web.HTTPMisdirectedRequest(text=f"This is {host}.")
        if request.method == "POST" and request.headers.get("Origin") != f"http://{host}":
            raise web.HTTPForbidden(text="Only the page itself may do this.")
        return await handler(request)

    async def show(request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        headers = {
            "Content-Security-Policy": f"{policy}form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "same-origin",  # else a form sends no Origin
            "X-Content-Type-Options": "nosniff",
        }
        page = _TEMPLATE.substitute(
            nonce=nonce, shop=escape(f"{faults.workers[0].url}/"), buttons=_buttons(faults, token), live=_live(faults)
        )
        return web.Response(text=page, content_type="text/html", headers=headers)

    async def live(request: web.Request) -> web.Response:
        return web.Response(text=_live(faults), content_type="text/html", headers={"Cache-Control": "no-store"})

    async def press(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in FAULTS:
            raise web.HTTPNotFound
        faults.press(name)
        raise web.HTTPSeeOther(f"/{token}/")

    made = web.Application(middlewares=[guard])
    pages = [web.get(f"/{token}/", show), web.get(f"/{token}/live", live)]
    made.add_routes([*pages, web.post(f"/{token}/{{name}}", press)])
    return made


def _buttons(faults: Faults, token: str) -> str:
    made = []
    for name, fault in FAULTS.items():
        refusal = faults.refusal(name)
        off = " disabled" if refusal else ""
        made.append(
            f'<button formaction="/{token}/{name}"{off}><strong>{escape(fault.label)}</strong>'
            f"<small>{escape(refusal or fault.shows)}</small></button>"
        )
    return "\n".join(made)


def _live(faults: Faults) -> str:
    """What changes: each part has an id, and the script replaces its content."""
    state = faults.state
    doing = f"{FAULTS[faults.doing].label}: under way. One at a time." if faults.doing else "Nothing is broken."
    level = "warn" if faults.doing else "good"
    facts = []
    for number, (owned, way) in enumerate(zip(state.partitions, faults.doings, strict=True), 1):
        told = "does not answer" if owned is None else listed(owned)
        facts.append((f"worker-{number}", f"Worker {number}", told if way == "running" else f"{way}, {told}"))
    waiting = "not known: Kafka does not answer" if state.waiting is None else grouped(state.waiting)
    facts.append(("waiting", "Events waiting", waiting))
    rows = "".join(f'<div><dt>{label}</dt><dd id="{name}">{escape(text)}</dd></div>' for name, label, text in facts)
    lines = "".join(f"<li>{escape(line)}</li>" for line in reversed(faults.lines))
    verdict = ["good", "bad", "warn"][faults.status]
    return (
        f'<section><h2>Now</h2><p id="doing" role="status" data-level="{level}">{escape(doing)}</p><dl>{rows}</dl>'
        f'</section>\n<section><h2>Verdict</h2><p id="verdict" role="status" data-level="{verdict}">'
        f'{escape(faults.verdict)}</p></section>\n<section><h2>What happened</h2><ol id="lines">{lines}</ol></section>'
    )
