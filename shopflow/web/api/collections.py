"""Products, customers and purchases as they are in MongoDB, over HTTP."""

from __future__ import annotations

import asyncio
import re
from datetime import datetime, timedelta, timezone
from typing import Any

from shopflow.app import config, store
from shopflow.errors import Slow
from shopflow.models import MAX_ID_LENGTH
from shopflow.store.catalogue import SEARCH_SECONDS
from shopflow.store.types import CUSTOMERS, PRODUCTS, PURCHASES, Document
from shopflow.web.access import Refusal
from shopflow.web.answers import limit_of, page_of, route, time_text, within, wrong_field

#: How long a request to MongoDB may take.
MONGODB_SECONDS = 5.0
#: The most characters of a name that is searched.
MAX_NAME_LENGTH = 100

#: The purchase before a page: its time in ms since 1970, and its id.
CURSOR = rf"^(-?[0-9]{{1,15}}):([\s\S]{{1,{MAX_ID_LENGTH}}})$"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)
_LAST = (datetime.max.replace(tzinfo=timezone.utc) - _EPOCH) // _MS
_FIRST = (datetime.min.replace(tzinfo=timezone.utc) - _EPOCH) // _MS

_PRODUCT = ("name", "type", "price", "updated_at", "stock", "stock_limit")
_CUSTOMER = ("first_name", "last_name", "address", "city", "registered_at")
_PURCHASE = ("product_id", "quantity", "price", "value", "purchased_at")

#: One at a time: a search may look through a whole collection.
_searching = asyncio.Lock()


@route("get", "/products/")
async def products(request: Any) -> tuple[int, Any]:
    """The products, by id, a page at a time; with `?q=` those with such a name."""
    return await _page(request, PRODUCTS, "product_id", _PRODUCT)


@route("get", "/customers/")
async def customers(request: Any) -> tuple[int, Any]:
    """The customers, by id, a page at a time; with `?q=` those with such a name."""
    return await _page(request, CUSTOMERS, "customer_id", _CUSTOMER)


async def _page(request: Any, kind: str, id_field: str, fields: tuple[str, ...]) -> tuple[int, Any]:
    limit, after, text = _limit(request), request.query.get("after", ""), request.query.get("q")
    if text is not None and not 1 <= len(text) <= MAX_NAME_LENGTH:
        raise wrong_field("q", f"must have 1 to {MAX_NAME_LENGTH} characters")
    if text is None:
        found = await within(MONGODB_SECONDS, "MongoDB", store.after(kind, after, limit + 1))
    else:
        found = await named(kind, text, limit + 1, after)
    page, following = page_of(found, limit, lambda one: str(one["_id"]))
    return 200, {kind: [_shown(one, id_field, fields) for one in page], "next": following}


async def named(kind: str, text: str, limit: int, after: str = "") -> list[Document]:
    """At most `limit` products or customers whose names have the words of the text, by id.

    Raises:
        Unavailable: MongoDB does not answer.
        Refusal: There are too many to look through.
    """

    async def search() -> list[Document]:
        async with _searching:
            return await store.after(kind, after, limit, text)

    try:
        return await within(MONGODB_SECONDS, "MongoDB", search())
    except Slow as error:
        few = f"MongoDB has not found {limit} such {kind} within {SEARCH_SECONDS:g} s: there are too many {kind}"
        raise Refusal(503, f"{few} to look for a rare name; ask by id") from error


@route("get", "/customers/{customer_id:[^/]+}/")
async def customer(request: Any, customer_id: str) -> tuple[int, Any]:
    _check_id(customer_id)
    found = await within(MONGODB_SECONDS, "MongoDB", store.documents(CUSTOMERS, [customer_id]))
    if customer_id not in found:
        raise Refusal(404, "No customer with this id has registered.")
    return 200, _shown(found[customer_id], "customer_id", _CUSTOMER)


@route("get", "/purchases/{purchase_id:[^/]+}/")
async def purchase(request: Any, purchase_id: str) -> tuple[int, Any]:
    """A stored purchase."""
    if len(purchase_id) > MAX_ID_LENGTH:
        raise Refusal(404, f"No purchase has an id of more than {MAX_ID_LENGTH} characters.")
    found = await within(MONGODB_SECONDS, "MongoDB", store.documents(PURCHASES, [purchase_id]))
    if purchase_id not in found:
        raise Refusal(404, "No purchase with this id is stored.")
    return 200, _shown(found[purchase_id], "purchase_id", ("customer_id", *_PURCHASE))


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
