"""The description of the topics: AsyncAPI's own schema accepts it, and its schemas agree with what workers do.

`asyncapi/3.0.0.json.gz` is `schemas/3.0.0-without-$id.json` of the npm package @asyncapi/specs 6.11.1, unchanged. It is
the AsyncAPI Initiative's, under the Apache License 2.0, which is beside it.
"""

from __future__ import annotations

import gzip
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema_rs import Draft7Validator, Draft202012Validator

from shopflow import topics
from shopflow.errors import Rejected
from shopflow.models import MAX_QUANTITY, MAX_VALUE, Customer, CustomerActivity, Product, Purchase
from shopflow.operations import describe
from shopflow.operations.letters import Mark
from shopflow.operations.skip import Skip
from shopflow.operations.verify.accounts import Accepted
from shopflow.shop.announcements import ALERTS, VOUCHERS
from shopflow.shop.dead_letters import headers_of
from shopflow.shop.decoding import Decoder, encode, struct_of
from shopflow.shop.prices import Entry
from shopflow.shop.stock import alert_document
from tests.support.documents import NOON, voucher
from tests.support.fakes import FakeRecord

DOCUMENT = describe.asyncapi(topics.SHOWN, topics.SPECS)
RULES = json.loads(gzip.decompress((Path(__file__).parent / "asyncapi" / "3.0.0.json.gz").read_bytes()))
DECODERS: dict[str, Decoder[Any]] = {
    "products": Decoder(Product, "product_id", 1 << 20),
    "customers": Decoder(Customer, "customer_id", 1 << 20),
    "purchases": Decoder(Purchase, "customer_id", 1 << 20),
}
VALIDATORS = {kind: Draft202012Validator(describe.schema(kind), validate_formats=True) for kind in describe.DESCRIBED}


def faults(document: Any) -> list[str]:
    """What AsyncAPI's schema has against a document."""
    return [str(error) for error in Draft7Validator(RULES).iter_errors(document)]


# -- AsyncAPI


def test_asyncapis_validator_accepts_the_document() -> None:
    """The document is AsyncAPI 3.0, and the validator is one that refuses."""
    assert faults(DOCUMENT) == []
    assert faults({**DOCUMENT, "operations": {"x": {"action": "eat", "channel": {"$ref": "#/channels/products"}}}})
    assert faults({**DOCUMENT, "channels": {"x": {"addres": "x"}}})


def test_every_reference_leads_somewhere() -> None:
    """Also the schemas and messages that nothing refers to would be a fault."""
    text = json.dumps(DOCUMENT)
    there = {f"#/channels/{name}" for name in DOCUMENT["channels"]}
    there |= {f"#/components/{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    assert {part.partition('"')[0] for part in text.split('"$ref": "')[1:]} == there


def test_every_topic_is_there_as_it_is_created() -> None:
    """Names, partitions and retention are those of the topics; workers take three of them, and publish the others."""
    specs = {spec.name: spec for spec in topics.SPECS}
    for kind, name in topics.SHOWN.items():
        channel = DOCUMENT["channels"][kind]
        kafka = channel["bindings"]["kafka"]
        assert (channel["address"], kafka["partitions"]) == (name, specs[name].partitions)
        for setting, value in kafka["topicConfiguration"].items():
            assert str(value[0] if isinstance(value, list) else value) == specs[name].configs[setting]
    taken = {name for name, one in DOCUMENT["operations"].items() if one["action"] == "receive"}
    assert taken == {"take-products", "take-customers", "take-purchases"}
    for kind in DECODERS:
        (message,) = DOCUMENT["channels"][kind]["messages"]
        key = DOCUMENT["components"]["messages"][message]["bindings"]["kafka"]["key"]
        assert key["description"] == topics.KEYS[topics.SHOWN[kind]]


def test_the_headers_of_a_dead_letter_are_described() -> None:
    """A dead letter has every header that is required. CloudEvents' headers stay in it."""
    schema = DOCUMENT["components"]["messages"]["DeadLetter"]["headers"]
    record = FakeRecord(b"k", b"v", headers=(("ce_id", b"1"), ("ce_type", b"bought"), ("traceparent", b"00-1-2-01")))
    headers = {name: value.decode() for name, value in headers_of(record, Rejected("not JSON", "x"), "shopflow")}
    assert Draft202012Validator(schema).is_valid(headers)
    assert not Draft202012Validator(schema).is_valid({"ce_id": "1"})
    assert (headers["ce_id"], headers["ce_type"], headers["traceparent"]) == ("1", "bought", "00-1-2-01")


# -- what workers publish


def published() -> dict[str, list[bytes]]:
    """Values as the code that publishes them makes them."""
    product = {"_id": "m", "stock": 9, "stock_limit": 2, "updated_at": NOON}
    activity = struct_of(CustomerActivity)(customer_id="anna", purchases=1, items=2, spent=3, offset=4)
    return {
        "customer-activity": [encode(activity)],
        "purchase-prices": [msgspec.json.encode(Entry([(7, 389), (9, 0)]))],
        "vouchers": [VOUCHERS.event(voucher("v")), VOUCHERS.event(voucher("v", worth={"text": "x", "amount": 5}))],
        "alerts": [ALERTS.event(alert_document(product, -1, NOON))],
        "retries": [*map(msgspec.json.encode, (Mark("0:1", "t", 0, 5), Skip(7, "why"), Accepted(3, 1)))],
    }


@pytest.mark.parametrize("kind", sorted(set(describe.DESCRIBED) - set(DECODERS)))
def test_what_is_published_fits_its_schema(kind: str) -> None:
    """The schema also has every field of it, and refuses a value that lacks any that is required."""
    validator, options = VALIDATORS[kind], describe.schema(kind)
    for value in map(msgspec.json.decode, published()[kind]):
        assert list(validator.iter_errors(value)) == []
        shapes = [options, *options.get("$defs", {}).values()]
        assert any(set(value) <= set(shape.get("properties", ())) for shape in shapes)
        assert not validator.is_valid({})


# -- what workers take


TIMES = st.builds(
    lambda time, minutes: time.replace(tzinfo=timezone(timedelta(minutes=minutes))).isoformat(),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)),
    st.integers(-23 * 60, 23 * 60),
)
JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.just([]), st.just({"a": 1}))
JUNK |= st.sampled_from([-1, 0.5, MAX_VALUE, MAX_VALUE + 1, MAX_QUANTITY, MAX_QUANTITY + 1, "x" * 128, "x" * 129])
JUNK |= st.sampled_from(["2026-01-01T00:00:00", "2026-02-30T00:00:00Z", "2026-01-01T00:00:00+24:00", "yesterday"])
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.integers(0, MAX_QUANTITY + 1),
    "string": st.text(max_size=129),
    "date-time": TIMES,
}


def kind_of(field: dict[str, Any]) -> str:
    """The kind of a field's values in a schema."""
    one = field.get("anyOf", [field])[0]
    return str(one.get("format", one["type"]))


@st.composite
def events(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """An event: often right, often with a field that is missing, wrong, or not known."""
    fields = {name: kind_of(field) for name, field in describe.schema(kind)["properties"].items()}
    event = {name: draw(GOOD[found]) for name, found in fields.items()}
    for name in draw(st.lists(st.sampled_from([*fields, "unknown"]), max_size=2, unique=True)):
        event[name] = draw(JUNK)
    for name in draw(st.lists(st.sampled_from(list(fields)), max_size=1)):
        event.pop(name, None)
    return event


def accepts(kind: str, event: dict[str, Any]) -> bool:
    """True if a worker takes the event."""
    key = event.get(topics.KEYS[topics.SHOWN[kind]])
    try:
        DECODERS[kind](key.encode() if isinstance(key, str) else b"", json.dumps(event).encode())
    except Rejected:
        return False
    return True


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
def test_a_schema_accepts_what_a_worker_takes(kind: str, data: st.DataObject) -> None:
    """The two agree on every event, but for the largest value of a purchase."""
    event = data.draw(events(kind))
    if kind == "purchases" and type(event.get("price")) is type(event.get("quantity")) is int:
        event["price"] = min(event["price"], MAX_VALUE // max(event["quantity"], 1))
    assert VALIDATORS[kind].is_valid(event) == accepts(kind, event)


BOUGHT = {"purchase_id": "p", "customer_id": "c", "product_id": "m", "quantity": 2, "purchased_at": "2026-01-01T00:00Z"}


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),  # no seconds
        ({"purchased_at": "2026-01-01 00:00:00,5+01:00"}, True),
        ({"purchased_at": "0001-01-01T00:00:00+01:00"}, False),
        ({"purchased_at": "2016-12-31T23:59:60Z"}, False),
        ({"purchased_at": "2026-01-01T00:00:00Z", "price": MAX_VALUE}, False),
        ({"purchased_at": "2026-01-01T00:00:00Z", "quantity": 2.0}, False),
    ],
)
def test_where_a_schema_and_a_worker_differ(changes: dict[str, Any], taken: bool) -> None:
    """These are the differences that the module names; a new one belongs there."""
    event = {**BOUGHT, **changes}
    assert (accepts("purchases", event), VALIDATORS["purchases"].is_valid(event)) == (taken, not taken)
