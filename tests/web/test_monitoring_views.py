"""The answers of the health probes, and the count of HTTP requests by status."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from faust_batches import App
from shopflow.app import app
from shopflow.bootstrap import parts
from shopflow.web.monitoring import views as health_views

counted: Any = app.web.web_app.middlewares[0]  # type: ignore[attr-defined]


def request(view: str | None, method: str = "GET") -> Any:
    """A request that was routed to this view."""
    resource = None if view is None else SimpleNamespace(canonical=view)
    return SimpleNamespace(method=method, match_info=SimpleNamespace(route=SimpleNamespace(resource=resource)))


def answered(view: str, status: int) -> float:
    """The number of counted requests of the view with this status."""
    labels = {"view": view, "method": "GET", "status": str(status)}
    return parts.metrics.registry.get_sample_value("shopflow_http_requests_total", labels) or 0.0


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (web.Response(status=202), 202),
        (web.HTTPNotFound(), 404),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413),
        (KeyError("a fault"), 500),
        (asyncio.CancelledError(), 499),
    ],
)
def test_a_request_is_counted_with_its_status(outcome: Any, status: int) -> None:
    """A view may return its answer or raise it. A fault counts as 500, a client that left as 499; the error goes on."""

    async def handler(_: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def scenario() -> Any:
        try:
            return await counted(request(f"/case-{status}/"), handler)
        except BaseException as error:  # noqa: BLE001 - it is compared
            return error

    assert asyncio.run(scenario()) is outcome
    assert answered(f"/case-{status}", status) == 1


def test_a_path_that_nobody_serves_is_no_label() -> None:
    """A client that asks for many unknown paths must not create a Prometheus series for each."""

    async def handler(_: Any) -> Any:
        raise web.HTTPNotFound

    before = answered("unknown", 404)
    with pytest.raises(web.HTTPNotFound):
        asyncio.run(counted(request(None), handler))
    assert answered("unknown", 404) == before + 1


@pytest.mark.parametrize(("path", "name"), [("/health/live", "live"), ("/health/ready", "ready")])
@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("method", ["get", "head"])
def test_both_probes_answer_in_one_shape(
    path: str, name: str, slash: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both probes answer GET and HEAD, with and without a slash at the end: 200, or 503 with reasons."""
    reasons: list[str] = []

    class Told:
        def live(self) -> list[str]:
            return reasons

        async def ready(self) -> list[str]:
            return reasons

    monkeypatch.setattr(health_views, "health", Told())
    view = app.web.views[path + slash]  # type: ignore[attr-defined]

    def ask() -> Any:
        answer = asyncio.run(view.methods[method](request(path)))
        return answer.status, json.loads(answer.body)

    assert ask() == (200, {"status": name})
    reasons.append("why")
    assert ask() == (503, {"status": f"not {name}", "reasons": ["why"]})


def test_before_the_first_assignment_nothing_is_owned() -> None:
    """Probes and `/metrics` may come while the worker starts, when its consumer's thread does not run yet."""
    fresh = App("fresh", broker="kafka://127.0.0.1:1", store="memory://")
    assert fresh.owned == []
    with pytest.raises(RuntimeError):
        fresh.call_in_consumer(lambda: None)
