"""Events over HTTP: checked, sent to Kafka, and confirmed once Kafka has acknowledged them."""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from typing import Any
from uuid import uuid4

from shopflow import topics
from shopflow.app import app, config, connected_kafka
from shopflow.kafka import connection
from shopflow.kafka.sender import Sender
from shopflow.models import Customer, Product, Purchase
from shopflow.web.access import Refusal
from shopflow.web.answers import read_json, route, within

from .forms import Form, Problem

#: How long Kafka may take to acknowledge.
KAFKA_SECONDS = 10.0

sender = Sender(lambda: connection.producer(connected_kafka()))


def _now() -> datetime:
    return datetime.now(timezone.utc)


_form = partial(Form, max_bytes=config.batching.max_event_bytes)
_ID_AND_TIME = {"purchase_id": lambda: uuid4().hex, "purchased_at": _now}
#: Each kind's form.
FORMS = {
    "products": _form(Product, id_field="product_id", key_field="product_id", made={"updated_at": _now}),
    "customers": _form(Customer, id_field="customer_id", key_field="customer_id", made={"registered_at": _now}),
    "purchases": _form(Purchase, id_field="purchase_id", key_field="customer_id", made=_ID_AND_TIME),
}


@app.on_before_shutdown.connect
async def _close(*args: Any, **kwargs: Any) -> None:
    await sender.close()


@route("post", "/events/products")
async def products(request: Any) -> tuple[int, Any]:
    return await _take(request, topics.products, FORMS["products"])


@route("post", "/events/customers")
async def customers(request: Any) -> tuple[int, Any]:
    return await _take(request, topics.customers, FORMS["customers"])


@route("post", "/events/purchases")
async def purchases(request: Any) -> tuple[int, Any]:
    return await _take(request, topics.purchases, FORMS["purchases"])


async def _take(request: Any, topic: Any, form: Form) -> tuple[int, Any]:
    sent, most = await read_json(request, config.web.max_body_bytes), config.web.max_events
    if isinstance(sent, list) and not 1 <= len(sent) <= most:
        problem = Problem("[]", f"must have 1 to {most} events, not {len(sent)}")
        raise Refusal(400, "The array has too few or too many events.", fields=[problem])
    if not isinstance(sent, dict | list):
        raise Refusal(400, "The body must be an object, or an array of objects.")
    checked = form.check(sent)
    if checked.problems:
        raise Refusal(400, "The events are wrong; none of them was stored.", fields=checked.problems)
    await within(KAFKA_SECONDS, "Kafka", sender.send(topic.get_topic_name(), checked.records))
    return 202, {"ids": checked.ids}
