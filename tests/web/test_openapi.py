"""`openapi.json` is a file: it agrees with the Records, the limits and the views."""

from __future__ import annotations

import re
from typing import Any

import faust
import msgspec
import pytest
from jsonschema_rs import Draft202012Validator

from shopflow.app import app, discover
from shopflow.config.settings import Config, Web
from shopflow.models import MAX_ID_LENGTH, Customer, PartitionTotals, Product, Purchase
from shopflow.shop.decoding import struct_of
from shopflow.shop.sales import PERIODS
from shopflow.web.api import openapi, sales
from shopflow.web.api.collections import CURSOR, MAX_NAME_LENGTH
from shopflow.web.api.counts import MOST_ROWS
from shopflow.web.api.events import FORMS

DOCUMENT = openapi.document()
SCHEMAS = DOCUMENT["components"]["schemas"]
RECORDS = {
    "products": (Product, "StoredProduct"),
    "customers": (Customer, "RegisteredCustomer"),
    "purchases": (Purchase, "StoredPurchase"),
}
#: Pages for people, descriptions, Faust's own views, and what only Prometheus and other workers request.
NOT_DESCRIBED = re.compile(
    r"/|/page/.*|/trace|/dead-letters(/{letter_id})?|/docs.*|/(?:open|async)api\.json|/schemas/.*|/metrics|/board|/table.*|/router.*|/static.*"
)


def bare(schema: Any) -> Any:
    """A schema without its descriptions."""
    return {name: one for name, one in schema.items() if name != "description"}


def fields(record: type[faust.Record]) -> dict[str, Any]:
    """The schema that msgspec makes of a Record."""
    _, schemas = msgspec.json.schema_components([struct_of(record)])
    found: dict[str, Any] = schemas[record.__name__]
    return found


def parameters(path: str) -> dict[str, Any]:
    """The schemas of an operation's parameters."""
    return {one["name"]: one["schema"] for one in DOCUMENT["paths"][path]["get"].get("parameters", [])}


@pytest.mark.parametrize("kind", RECORDS)
def test_an_event_is_described_as_its_record(kind: str) -> None:
    """Every field has the Record's limits. A field that the worker can fill in is optional, as its description says."""
    record, form = fields(RECORDS[kind][0]), FORMS[kind]
    event = SCHEMAS[f"{RECORDS[kind][0].__name__}Event"]
    assert {name: bare(one) for name, one in event["properties"].items()} == record["properties"]
    assert event["required"] == [name for name in record["required"] if name not in form.made]
    assert {name for name, one in event["properties"].items() if "missing" in one.get("description", "")} == set(
        form.made
    )


@pytest.mark.parametrize("kind", RECORDS)
def test_a_document_is_described_as_its_record(kind: str) -> None:
    """No field is required: another program may have written the document without it."""
    record, name = RECORDS[kind]
    stored, expected = SCHEMAS[name], dict(fields(record)["properties"])
    found = {name: bare(one) for name, one in stored["properties"].items()}
    if kind == "purchases":  # of a customer who is named once, with the price that counts
        del expected["customer_id"]
        expected |= {"price": {"type": "integer"}, "value": {"type": "integer"}}
    assert found == expected
    assert "required" not in stored


def test_the_limits_are_those_of_the_code() -> None:
    """The document has the limits of the code and of the default configuration."""
    most = Web().max_events
    assert SCHEMAS["Limit"] == {"type": "integer", "minimum": 1, "maximum": most, "default": 100}
    rows = {"type": "integer", "minimum": 1, "default": 1_000}
    assert parameters("/counts/partitions/{partition}/")["limit"] == {**rows, "maximum": MOST_ROWS}
    assert parameters("/sales/")["limit"] == {**rows, "maximum": sales.MOST_ROWS}
    assert parameters("/sales/")["by"]["enum"] == SCHEMAS["Sales"]["properties"]["by"]["enum"] == list(PERIODS)
    assert parameters("/customers/{customer_id}/purchases/")["after"]["pattern"] == CURSOR
    name = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH}
    assert parameters("/customers/")["q"] == parameters("/products/")["q"] == name
    assert parameters("/counts/{customer_id}/")["customer_id"]["maxLength"] == MAX_ID_LENGTH
    assert set(SCHEMAS["PartitionPage"]["properties"]["totals"]["required"]) == set(PartitionTotals._options.fields)


def test_the_file_is_for_the_default_configuration() -> None:
    """The file is what a worker with default settings serves, except for the version."""
    written = msgspec.json.decode((openapi.STATIC / "openapi.json").read_bytes())
    assert {**DOCUMENT, "info": {**DOCUMENT["info"], "version": "0"}} == written


def test_every_limit_that_is_configured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The served document has the worker's own limits."""
    monkeypatch.setattr(openapi, "config", Config(web=Web(max_events=7, max_body_bytes=2_048)))
    found = openapi.document()
    assert found["components"]["schemas"]["Limit"] == {"type": "integer", "minimum": 1, "maximum": 7, "default": 7}
    assert "2048" in found["components"]["responses"]["TooLarge"]["description"]
    assert found["paths"]["/events/products"]["post"]["summary"] == "Send products: one, or an array of up to 7."


def test_the_probes_need_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tokens configured, every operation but the probes needs one, and can answer 401."""
    monkeypatch.setattr(openapi, "config", Config(web=Web(read_token="r" * 20, write_token="w" * 20)))
    for path, operations in openapi.document()["paths"].items():
        for operation in operations.values():
            probe = path.startswith("/health/")
            assert ("security" in operation, "401" in operation["responses"]) == (not probe, not probe)
            assert "421" not in operation["responses"]


def test_every_path_is_a_view_and_every_view_is_a_path() -> None:
    """Every described path exists with its methods, and every view is described, except pages for people."""
    discover()
    there = {re.sub(r":[^}]*\}", "}", path): view for path, view in app.web.views.items()}  # type: ignore[attr-defined]
    for path, operations in DOCUMENT["paths"].items():
        assert {method.upper() for method in operations} <= set(there[path].get_methods()), path
    views = {path.rstrip("/") or "/" for path in there}
    described = {path.rstrip("/") for path in DOCUMENT["paths"]}
    assert {path for path in views if not NOT_DESCRIBED.fullmatch(path)} == described


def test_every_answer_has_an_example_that_is_one() -> None:
    """`/docs/` shows the examples, so each must match its schema."""
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if "$ref" not in answer:
                    content = answer["content"]["application/json"]
                    schema = {**content["schema"], "components": DOCUMENT["components"]}
                    assert list(Draft202012Validator(schema).iter_errors(content["example"])) == [], (path, status)


def test_every_number_of_an_answer_has_a_least_value() -> None:
    """Counts and sums are never negative; only offsets may be -1, before the first record."""
    for name in ("Sums", "Count", "Sale"):
        for field, schema in SCHEMAS[name]["properties"].items():
            assert schema["type"] != "integer" or schema["minimum"] == 0, (name, field)


def test_every_reference_leads_somewhere() -> None:
    """Every `$ref` has a target, and every component is used."""
    text = msgspec.json.encode(DOCUMENT).decode()
    used = set(re.findall(r'"#/components/(\w+/\w+)"', text))
    there = {f"{kind}/{name}" for kind, named in DOCUMENT["components"].items() for name in named}
    assert used <= there
    assert there - used == {"responses/Unauthorized"}  # is used by a worker with tokens
