"""Products, customers and purchases as they are in MongoDB, over HTTP."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

from shopflow.app import config, store
from shopflow.models import MAX_ID_LENGTH
from shopflow.store.types import CUSTOMERS, Document
from shopflow.web.access import Refusal
from shopflow.web.answers import limit_of, page_of, route, time_text, within, wrong_field

#: How long a request to MongoDB may take.
MONGODB_SECONDS = 5.0

#: The purchase before a page: its time in ms since 1970, and its id.
CURSOR = rf"^(-?[0-9]{{1,15}}):([\s\S]{{1,{MAX_ID_LENGTH}}})$"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)
_LAST = (datetime.max.replace(tzinfo=timezone.utc) - _EPOCH) // _MS
_FIRST = (datetime.min.replace(tzinfo=timezone.utc) - _EPOCH) // _MS

_PRODUCT = ("name", "type", "price", "updated_at", "stock", "stock_limit")
_CUSTOMER = ("first_name", "last_name", "address", "city", "registered_at")
_PURCHASE = ("product_id", "quantity", "price", "value", "purchased_at")


@route("get", "/products/")
async def products(request: Any) -> tuple[int, Any]:
    """The products, by id, a page at a time."""
    limit, after = _limit(request), request.query.get("after", "")
    found = await within(MONGODB_SECONDS, "MongoDB", store.products_after(after, limit + 1))
    page, following = page_of(found, limit, lambda product: str(product["_id"]))
    return 200, {"products": [_shown(one, "product_id", _PRODUCT) for one in page], "next": following}


@route("get", "/customers/{customer_id:[^/]+}/")
async def customer(request: Any, customer_id: str) -> tuple[int, Any]:
    _check_id(customer_id)
    found = await within(MONGODB_SECONDS, "MongoDB", store.documents(CUSTOMERS, [customer_id]))
    if customer_id not in found:
        raise Refusal(404, "No customer with this id has registered.")
    return 200, _shown(found[customer_id], "customer_id", _CUSTOMER)


@route("get", "/customers/{customer_id:[^/]+}/purchases/")
async def purchases(request: Any, customer_id: str) -> tuple[int, Any]:
    """A customer's purchases, oldest first, a page at a time."""
    _check_id(customer_id)
    limit, after = _limit(request), _cursor(request.query.get("after"))
    found = await within(MONGODB_SECONDS, "MongoDB", store.purchases_after(customer_id, after, limit + 1))
    if not found and after is None:
        registered = await within(MONGODB_SECONDS, "MongoDB", store.registered([customer_id]))
        if customer_id not in registered:
            raise Refusal(404, "No customer with this id has registered or bought anything.")
    page, following = page_of(found, limit, _cursor_of)
    shown = [_shown(one, "purchase_id", _PURCHASE) for one in page]
    return 200, {"customer_id": customer_id, "purchases": shown, "next": following}


def _limit(request: Any) -> int:
    most = config.web.max_events
    return limit_of(request, most, min(100, most))


def _check_id(customer_id: str) -> None:
    if len(customer_id) > MAX_ID_LENGTH:
        raise Refusal(404, f"No customer has an id of more than {MAX_ID_LENGTH} characters.")


def _shown(document: Document, id_field: str, fields: tuple[str, ...]) -> dict[str, Any]:
    """The document with the fields of the event that made it."""
    found = {name: document[name] for name in fields if name in document}
    times = {name: time_text(value) for name, value in found.items() if isinstance(value, datetime)}
    return {id_field: document["_id"], **found, **times}


def _cursor(text: str | None) -> tuple[datetime, str] | None:
    if text is None:
        return None
    parts = re.fullmatch(CURSOR, text, re.ASCII)
    if parts is None:
        raise wrong_field("after", "must be the `next` of an earlier page")
    return _EPOCH + min(max(int(parts[1]), _FIRST), _LAST) * _MS, parts[2]


def _cursor_of(purchase: Document) -> str:
    return f"{(purchase['purchased_at'] - _EPOCH) // _MS}:{purchase['_id']}"
