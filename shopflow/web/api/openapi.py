"""The OpenAPI document, a page that shows it, and the description of the topics.

`static/openapi.json` is written by hand, for the default configuration. A test compares it with the Records, the limits
and the views.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shopflow import topics
from shopflow.app import app, config
from shopflow.operations import describe
from shopflow.web.access import Refusal
from shopflow.web.answers import STATIC, route, static_file

#: Only scripts and styles that are files of the worker.
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def document() -> dict[str, Any]:
    """The OpenAPI document, with this worker's version, limits and tokens."""
    found: dict[str, Any] = msgspec.json.decode((STATIC / "openapi.json").read_bytes())
    found["info"]["version"] = describe.version()
    settings, parts = config.web, found["components"]
    most = settings.max_events
    parts["schemas"]["Limit"] |= {"maximum": most, "default": min(100, most)}
    parts["responses"]["TooLarge"]["description"] = f"The body has more than {settings.max_body_bytes} bytes."
    if settings.read_token or settings.write_token:
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                operation["summary"] = f"Send {path.rpartition('/')[2]}: one, or an array of up to {most}."
                operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"][1]["maxItems"] = most
            token = settings.write_token if method == "post" else settings.read_token
            if token and operation["responses"].pop("421", None):  # the probes need neither a token nor a name
                operation["responses"]["401"] = {"$ref": "#/components/responses/Unauthorized"}
                operation["security"] = [{"token": []}]
    return found


@route("get", "/openapi.json")
async def _openapi(request: Any) -> tuple[int, Any]:
    return 200, document()


@route("get", "/asyncapi.json")
async def _asyncapi(request: Any) -> tuple[int, Any]:
    return 200, describe.asyncapi(topics.SHOWN, topics.SPECS)


@route("get", "/schemas/{name}.json")
async def _schema(request: Any, name: str) -> tuple[int, Any]:
    if name not in describe.DESCRIBED:
        raise Refusal(404, f"there is no such schema; there are: {', '.join(describe.DESCRIBED)}")
    return 200, describe.schema(name)


@app.page("/docs")
@app.page("/docs/")
@app.page("/docs/{name:docs\\.(?:css|js)}")
async def page(web: Any, request: Any, name: str = "docs.html") -> Any:
    """The page, its script and its style."""
    return await static_file(request, STATIC / name, _POLICY)
