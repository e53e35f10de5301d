"""The probes for a container platform, and the metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from aiohttp import web

from shopflow.app import app
from shopflow.bootstrap import parts
from shopflow.web.answers import route

from .metrics import CONTENT_TYPE

_TURN_SECONDS = 1.0
_CLIENT_LEFT = 499

metrics, health = parts.metrics, parts.health


async def _turn() -> None:
    """Measure once a second how late the event loop is, and whether the consumer's thread still runs."""
    while True:
        due = monotonic() + _TURN_SECONDS
        await asyncio.sleep(_TURN_SECONDS)
        metrics.loop_delay_seconds.observe(max(monotonic() - due, 0.0))
        health.pulse.turn(app.call_in_consumer)


app.background += [parts.lags.run, _turn]


@route("get", "/health/live")
async def live(request: Any) -> tuple[int, Any]:
    """200 unless a restart would help. An outage of Kafka or MongoDB is no reason."""
    return _answer("live", health.live())


@route("get", "/health/ready")
async def ready(request: Any) -> tuple[int, Any]:
    """200 when this worker does its share of the work, else 503 with the reasons. Both with what is wrong beside."""
    status, answer = _answer("ready", await health.ready())
    warnings = [trouble.text for trouble in app.troubles.present if not trouble.stops]
    return status, {**answer, "warnings": warnings} if warnings else answer


@app.page("/metrics/", name="metrics_")
@app.page("/metrics", name="metrics")
async def show_metrics(view: Any, request: Any) -> Any:
    metrics.is_ready.set(not await health.ready())
    metrics.is_live.set(not health.live())
    return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _answer(state: str, reasons: list[str]) -> tuple[int, Any]:
    return (503, {"status": f"not {state}", "reasons": reasons}) if reasons else (200, {"status": state})


@web.middleware
async def _counted(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Count every request, including those that other middlewares refuse."""
    began, status = monotonic(), 500
    try:
        response = await handler(request)
        status = response.status
    except web.HTTPException as error:
        status = error.status
        raise
    except asyncio.CancelledError:
        status = _CLIENT_LEFT
        raise
    finally:
        metrics.answered(_view_of(request), request.method, status, monotonic() - began)
    return response


def _view_of(request: web.Request) -> str:
    """The pattern of the path: the path itself can be anything."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical.rstrip("/") or "/"


app.web.web_app.middlewares.insert(0, _counted)  # type: ignore[attr-defined]  # the outermost
