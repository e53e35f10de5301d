"""The HTTP interface described for programs (OpenAPI 3.1, made from the Records), and a page to try it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from shopflow.app import app, config
from shopflow.models import MAX_ID_LENGTH, Customer, Product, Purchase
from shopflow.shop.decoding import struct_of
from shopflow.web.answers import RETRY_SECONDS, route

from .collections import CURSOR
from .events import FORMS

__all__ = ["document", "page", "page_file"]

Schema = dict[str, Any]

_STATIC = Path(__file__).parents[1] / "static"
_TYPES = {"docs.css": "text/css", "docs.js": "text/javascript"}
#: Nothing from elsewhere, and nothing that stands in the page itself, may run.
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}

_ID: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}
_MONEY = "Grosze (1/100 zł)."
_EXAMPLES: dict[str, Schema] = {
    "products": {"product_id": "mleko", "name": "Mleko 3,2% 1 l", "type": "nabiał", "price": 399},
    "customers": {
        "customer_id": "anna",
        "first_name": "Anna",
        "last_name": "Żak",
        "address": "ul. Długa 1, 00-001 Łódź",
        "city": "Łódź",
    },
    "purchases": {"purchase_id": "b-1", "customer_id": "anna", "product_id": "mleko", "quantity": 2},
}
_RECORDS = {"products": Product, "customers": Customer, "purchases": Purchase}
_IDEMPOTENT = (
    "202 means that Kafka has acknowledged every event; the worker stores them a moment later. After 503, or without "
    "an answer, some may be stored: send the same again, with the same ids, and each is stored once."
)


def document() -> Schema:
    """The OpenAPI document of this worker, with its limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "shopflow",
            "version": _version(),
            "description": "Events into the shop, and what became of them. Times are ISO 8601 with an offset; "
            "prices are whole numbers of grosze (1/100 zł). The paths of events, products and "
            "customers work with and without a slash at their end.",
        },
        "paths": {
            **{f"/events/{kind}": {"post": _post(kind)} for kind in FORMS},
            "/products/": {
                "get": _get("The products, by id, a page at a time.", "ProductPage", [_after_id(), _limit()])
            },
            "/customers/{customer_id}/": {
                "get": _get("A customer who has registered.", "RegisteredCustomer", [_customer()], found=True)
            },
            "/customers/{customer_id}/purchases/": {
                "get": _get(
                    "A customer's purchases, oldest first, a page at a time.",
                    "PurchasePage",
                    [_customer(), _after_purchase(), _limit()],
                    found=True,
                )
            },
            "/counts/": {"get": _get("The sums over the partitions that this worker owns.", "Sums", [])},
            "/counts/{customer_id}/": {
                "get": _get(
                    "One customer's counts, from whichever worker has them.", "Count", [_customer()], found=True
                )
            },
        },
        "components": {"schemas": _schemas(), **_security_schemes()},
    }


def _version() -> str:
    try:
        return metadata.version("shopflow")
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return "0"


# -- operations


def _post(kind: str) -> Schema:
    event = {"$ref": f"#/components/schemas/{_RECORDS[kind].__name__}Event"}
    many = {"type": "array", "items": event, "minItems": 1, "maxItems": config.web.max_events}
    example = _EXAMPLES[kind]
    return {
        "tags": ["events"],
        "operationId": f"post-{kind}",
        "summary": f"Send {kind}: one, or an array of up to {config.web.max_events}.",
        "description": _IDEMPOTENT,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"oneOf": [event, many]}, "example": example}},
        },
        "responses": {
            "202": _answer("Kafka has acknowledged all; their ids, in the order they were sent.", "Accepted"),
            "400": _answer("Something is wrong; nothing was stored. `fields` names every problem.", "Error"),
            "403": _answer("The read token, or a page of another web site.", "Error"),
            "413": _answer(f"More than {config.web.max_body_bytes} bytes.", "Error"),
            "415": _answer("Content-Type is not application/json.", "Error"),
            **_common(config.web.write_token),
        },
        **_security(config.web.write_token),
    }


def _get(summary: str, answer: str, parameters: list[Schema], *, found: bool = False) -> Schema:
    responses = {"200": _answer("As it is now.", answer)}
    if any(parameter["in"] == "query" for parameter in parameters):
        responses["400"] = _answer("The query is wrong; `fields` says what.", "Error")
    if found:
        responses["404"] = _answer("There is none.", "Error")
    return {
        "tags": ["reading"],
        "operationId": f"get-{answer}",
        "summary": summary,
        "parameters": parameters,
        "responses": {**responses, **_common(config.web.read_token)},
        **_security(config.web.read_token),
    }


def _common(token: str) -> Schema:
    busy = _answer("A server is away, or this worker has too much to do or stops: try again.", "Error")
    header = {"description": "Seconds.", "schema": {"type": "integer"}, "example": RETRY_SECONDS}
    responses = {"503": {**busy, "headers": {"Retry-After": header}}}
    if token:
        return {"401": _answer("The token is missing or wrong.", "Error"), **responses}
    return {"421": _answer("Another name than this worker's is in Host.", "Error"), **responses}


def _answer(description: str, schema: str) -> Schema:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _security(token: str) -> Schema:
    return {"security": [{"token": []}]} if token else {}


def _security_schemes() -> Schema:
    if not config.web.read_token and not config.web.write_token:
        return {}
    return {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}


def _customer() -> Schema:
    return {"name": "customer_id", "in": "path", "required": True, "schema": _ID, "example": "anna"}


def _after_id() -> Schema:
    return {"name": "after", "in": "query", "description": "Those behind this id.", "schema": {"type": "string"}}


def _after_purchase() -> Schema:
    schema = {"type": "string", "pattern": CURSOR}
    return {"name": "after", "in": "query", "description": "`next` of the page before.", "schema": schema}


def _limit() -> Schema:
    most = config.web.max_events
    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": min(100, most)}
    return {"name": "limit", "in": "query", "description": "Most entries of the page.", "schema": schema}


# -- schemas


def _schemas() -> Schema:
    structs = [struct_of(record) for record in _RECORDS.values()]
    _, records = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    events = {f"{_RECORDS[kind].__name__}Event": _event(kind, records[_RECORDS[kind].__name__]) for kind in FORMS}
    product = _stored(records["Product"], "A product.")
    customer = _stored(records["Customer"], "A customer.")
    purchase = _stored(records["Purchase"], "A purchase, with the price that counts.")
    del purchase["properties"]["customer_id"]
    purchase["properties"] |= {"price": _amount(), "value": _amount()}
    return {
        **events,
        "StoredProduct": product,
        "RegisteredCustomer": customer,
        "StoredPurchase": purchase,
        "ProductPage": _page("products", "StoredProduct", {}),
        "PurchasePage": _page("purchases", "StoredPurchase", {"customer_id": _ID}),
        "Accepted": _object({"ids": {"type": "array", "items": _ID}}),
        "Sums": _object({"partitions": _list({"type": "integer"}), **_integers("customers")}),
        "Count": _object({"customer_id": _ID, **_integers()}),
        "Error": {
            **_object({"error": {"type": "string"}, "fields": _list({"$ref": "#/components/schemas/Problem"})}),
            "required": ["error"],
        },
        "Problem": _object({"field": {"type": "string", "examples": ["[3].quantity"]}, "message": {"type": "string"}}),
    }


def _event(kind: str, record: Schema) -> Schema:
    """The Record as it may be sent: without what the worker makes itself."""
    made = FORMS[kind].made
    required = [name for name in record["required"] if name not in made]
    properties = {name: _explained(name, schema, made=name in made) for name, schema in record["properties"].items()}
    return {"type": "object", "description": str(_EVENTS[kind]), "properties": properties, "required": required}


_EVENTS = {
    "products": "A product as offered from `updated_at` on. The newest of an id counts. `stock` is what is there then; "
    "when `stock_limit` (0 without it) is left, an alert is sent.",
    "customers": "A customer. The newest of an id counts.",
    "purchases": "A customer buys a product. Without `price` the product's price in force at `purchased_at` counts. "
    "Quantity times price is at most 10^12. To send again safely, give `purchase_id`.",
}


def _explained(name: str, schema: Schema, *, made: bool) -> Schema:
    notes = []
    if name == "price":
        notes.append(_MONEY)
    if made:
        notes.append("If it is missing, the worker makes one." if name.endswith("_id") else "If it is missing: now.")
    return {**schema, "description": " ".join(notes)} if notes else schema


def _stored(record: Schema, description: str) -> Schema:
    # Nothing is required: another program may have written the document with less.
    return {"type": "object", "description": description, "properties": dict(record["properties"])}


def _amount() -> Schema:
    return {"type": "integer", "description": _MONEY}


def _page(name: str, entry: str, more: Schema) -> Schema:
    following = {"type": ["string", "null"], "description": "`after` of the next page; null: this is the last."}
    return _object({**more, name: _list({"$ref": f"#/components/schemas/{entry}"}), "next": following})


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _integers(*more: str) -> Schema:
    return {name: {"type": "integer"} for name in (*more, "purchases", "items", "spent")}


# -- views


@route("get", "/openapi.json")
async def _openapi(request: Any) -> tuple[int, Any]:
    """This interface, for programs."""
    return 200, document()


@app.page("/docs")
@app.page("/docs/")
async def page(web: Any, request: Any) -> Any:
    """A page to try the interface."""
    return web.html((_STATIC / "docs.html").read_text(encoding="utf-8"), headers=_POLICY)


@app.page("/docs/{name:docs\\.(?:css|js)}")
async def page_file(web: Any, request: Any, name: str) -> Any:
    """What the page needs."""
    text = (_STATIC / name).read_text(encoding="utf-8")
    return web.text(text, content_type=_TYPES[name], headers=_POLICY)
