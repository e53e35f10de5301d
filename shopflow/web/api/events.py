"""Events over HTTP: checked, sent to Kafka, and confirmed once Kafka has acknowledged them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import faust
import msgspec

from shopflow import topics
from shopflow.app import app, config, connected_kafka
from shopflow.errors import Unavailable
from shopflow.kafka import connection
from shopflow.kafka.sender import Sender
from shopflow.models import Customer, Product, Purchase
from shopflow.web.answers import Refusal, route, within

from .forms import Form, Problem

__all__ = ["FORMS", "customers", "products", "purchases", "sender"]

#: How long a request may take to come, and how long Kafka may take to acknowledge.
BODY_SECONDS = 10.0
KAFKA_SECONDS = 10.0

sender = Sender(lambda: connection.producer(connected_kafka()))


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _form(record: type[faust.Record], topic: Any, id_field: str, made: dict[str, Callable[[], Any]]) -> Form:
    return Form(
        record,
        id_field=id_field,
        key_field=topics.KEYS[topic.get_topic_name()],
        made=made,
        max_bytes=config.batching.max_event_bytes,
    )


#: Each kind's form.
FORMS = {
    "products": _form(Product, topics.products, "product_id", {"updated_at": _now}),
    "customers": _form(Customer, topics.customers, "customer_id", {"registered_at": _now}),
    "purchases": _form(
        Purchase, topics.purchases, "purchase_id", {"purchase_id": lambda: uuid4().hex, "purchased_at": _now}
    ),
}


@app.on_before_shutdown.connect
async def _close(*args: Any, **kwargs: Any) -> None:
    await sender.close()


@route("post", "/events/products")
async def products(request: Any) -> tuple[int, Any]:
    """Offer products, or offer them anew."""
    return await _take(request, topics.products, FORMS["products"])


@route("post", "/events/customers")
async def customers(request: Any) -> tuple[int, Any]:
    """Register customers, or register them anew."""
    return await _take(request, topics.customers, FORMS["customers"])


@route("post", "/events/purchases")
async def purchases(request: Any) -> tuple[int, Any]:
    """Make purchases. Sent again with the same ids, they are still made once."""
    return await _take(request, topics.purchases, FORMS["purchases"])


async def _take(request: Any, topic: Any, form: Form) -> tuple[int, Any]:
    checked = form.check(_decoded(await _body(request)))
    if checked.problems:
        raise Refusal(400, "What was sent can't be accepted; nothing of it was stored.", checked.problems)
    records = [(one.key, one.value) for one in checked.ready]
    await within(KAFKA_SECONDS, "Kafka", sender.send(topic.get_topic_name(), records))
    return 202, {"ids": [one.id for one in checked.ready]}


async def _body(request: Any) -> bytes:
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise Refusal(415, "Content-Type must be application/json, in UTF-8.")
    most = config.web.max_body_bytes
    if (request.content_length or 0) > most:
        raise _too_large(most)
    try:
        return await within(BODY_SECONDS, "The request", _read(request, most))
    except Unavailable:
        # A client that goes on sending is not waited for, as aiohttp would do before it closes the connection.
        if request.transport is not None:
            request.transport.close()
        raise


async def _read(request: Any, most: int) -> bytes:
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body is too large: {most} bytes are accepted.")


def _decoded(body: bytes) -> Any:
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Refusal(400, f"The body is not JSON: {error}") from error
    most = config.web.max_events
    if isinstance(sent, list) and not 1 <= len(sent) <= most:
        problem = Problem("[]", f"must have 1 to {most} events, not {len(sent)}")
        raise Refusal(400, "The array has too few or too many events.", [problem])
    if not isinstance(sent, dict | list):
        raise Refusal(400, "The body must be an object, or an array of objects.")
    return sent
