"""Describes the topics for other programs: JSON Schemas of the values, made from the Records, and AsyncAPI 3.0.

A schema and `Decoder` agree on every value that is written as EVENTS.md says, except for two rules that JSON Schema
can't express: `MAX_VALUE` of a purchase, and a time that is a leap second or outside of the years 1 to 9999 in UTC. The
decoder also reads times in other forms of ISO 8601 than RFC 3339, and a whole number only without point and exponent.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from shopflow.kafka.needs import TopicSpec
from shopflow.models import Customer, CustomerActivity, Product, Purchase
from shopflow.shop.dead_letters import PREFIX
from shopflow.shop.decoding import struct_of

from .letters import COUNT, HISTORY, Mark
from .skip import Skip
from .verify.accounts import Accepted

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_INFO = (
    "Events of a shop, and what its workers publish. Values are UTF-8 JSON; unknown fields are ignored. Amounts are "
    "whole grosze (1/100 zł). Times are RFC 3339; other forms of ISO 8601 with an offset are read too."
)

_Time = Annotated[datetime, msgspec.Meta(tz=True)]
_Pair = Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]


class PurchasePrices(msgspec.Struct):
    """The prices of a batch's purchases that came without one: pairs of the purchase's offset and its price."""

    prices: list[_Pair]


class Source(msgspec.Struct):
    """The event that a voucher was given for."""

    origin: str
    topic: str
    partition: int
    offset: int


class Voucher(msgspec.Struct):
    """A voucher that a promotion gave. It has either `percent` or `amount`, in grosze."""

    voucher_id: str
    rule: str
    customer_id: str
    issued_at: _Time
    valid_until: _Time
    source: Source
    product_type: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    percent: int | UnsetType = UNSET
    amount: int | UnsetType = UNSET


class Alert(msgspec.Struct):
    """The stock of a product fell to its limit. There is one alert for each stocking."""

    alert_id: str
    kind: str
    product_id: str
    left: int
    limit: int
    stock: int
    since: _Time
    at: _Time


@dataclass(frozen=True)
class _Topic:
    """What is on a topic.

    Arguments:
        message: The name of its messages.
        key: What the record's key is; None: there is none.
        types: The types of its values; none: any bytes.
        taken: True: workers take events from it. False: they publish to it.
    """

    message: str
    key: str | None
    types: tuple[type, ...] = ()
    taken: bool = False


#: The topics that other programs may read, by their names without the prefix.
_TOPICS = {
    "products": _Topic("Product", "product_id", (struct_of(Product),), taken=True),
    "customers": _Topic("Customer", "customer_id", (struct_of(Customer),), taken=True),
    "purchases": _Topic("Purchase", "customer_id", (struct_of(Purchase),), taken=True),
    "customer-activity": _Topic("CustomerActivity", "customer_id", (struct_of(CustomerActivity),)),
    "purchase-prices": _Topic("PurchasePrices", None, (PurchasePrices,)),
    "vouchers": _Topic("Voucher", "customer_id", (Voucher,)),
    "alerts": _Topic("Alert", "product_id", (Alert,)),
    "retries": _Topic("Mark", "the dead letter's id, or what is stepped over or accepted", (Mark, Skip, Accepted)),
    "dead-letters": _Topic("DeadLetter", "as it came"),
}

#: The topics whose values have a schema.
DESCRIBED = tuple(kind for kind, topic in _TOPICS.items() if topic.types)

_TEXT, _TIME = {"type": "string"}, {"type": "string", "format": "date-time"}
_HEADERS = {
    "events": {
        "description": "Headers are kept, not read. These are shown by name: CloudEvents' and W3C Trace Context's.",
        "type": "object",
        "properties": {
            **dict.fromkeys(("ce_id", "ce_source", "ce_type", "ce_specversion"), _TEXT),
            "ce_time": _TIME,
            **dict.fromkeys(("traceparent", "tracestate"), _TEXT),
        },
    },
    "dead-letters": {
        "description": "The record's own headers, and where it was and why it was rejected.",
        "type": "object",
        "properties": dict.fromkeys(
            (*(f"{PREFIX}{name}" for name in ("topic", "partition", "offset", "exception.message")), COUNT, HISTORY),
            _TEXT,
        ),
        "required": [f"{PREFIX}{name}" for name in ("topic", "partition", "offset", "exception.message")],
    },
}


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of the values of one of the `DESCRIBED` topics."""
    found, parts = _schemas([kind], "#/$defs/{name}")
    (one,) = found.values()
    if "$ref" in one:
        one = parts.pop(one["$ref"].rpartition("/")[2])
    return {"$schema": _DRAFT, **one, **({"$defs": parts} if parts else {})}


def _schemas(kinds: Iterable[str], template: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The schema of each topic's values, and the schemas that they refer to."""
    types = [one for kind in kinds for one in _TOPICS[kind].types]
    made, parts = msgspec.json.schema_components(types, ref_template=template)
    for part in parts.values():
        part["description"] = inspect.cleandoc(part["description"])
    by_type = dict(zip(types, made, strict=True))
    found = {}
    for kind in kinds:
        options = [by_type[one] for one in _TOPICS[kind].types]
        found[kind] = options[0] if len(options) == 1 else {"anyOf": options}
    return found, dict(parts)


def asyncapi(shown: Mapping[str, str], specs: Iterable[TopicSpec]) -> dict[str, Any]:
    """The AsyncAPI document of these topics.

    Arguments:
        shown: The topics, by their names without the prefix.
        specs: How topics are created; those that are not in `shown` are left out.
    """
    schemas, parts = _schemas(DESCRIBED, "#/components/schemas/{name}")
    spec_of = {spec.name: spec for spec in specs}
    topics = {kind: (name, _TOPICS[kind]) for kind, name in shown.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "shopflow", "version": version(), "description": _INFO},
        "defaultContentType": "application/json",
        "channels": {kind: _channel(name, topic, spec_of[name]) for kind, (name, topic) in topics.items()},
        "operations": {
            f"{'take' if topic.taken else 'publish'}-{kind}": {
                "action": "receive" if topic.taken else "send",
                "channel": {"$ref": f"#/channels/{kind}"},
            }
            for kind, (_, topic) in topics.items()
        },
        "components": {
            "messages": {topic.message: _message(kind, topic, schemas) for kind, (_, topic) in topics.items()},
            "schemas": parts,
        },
    }


def _channel(name: str, topic: _Topic, spec: TopicSpec) -> dict[str, Any]:
    configs = spec.configs
    settings = {"cleanup.policy": [configs["cleanup.policy"]], "max.message.bytes": spec.max_message_bytes}
    if "retention.ms" in configs:
        settings["retention.ms"] = spec.retention_ms
    kafka = {"partitions": spec.partitions, "replicas": spec.replication, "topicConfiguration": settings}
    return {
        "address": name,
        "messages": {topic.message: {"$ref": f"#/components/messages/{topic.message}"}},
        "bindings": {"kafka": {**kafka, "bindingVersion": "0.5.0"}},
    }


def _message(kind: str, topic: _Topic, schemas: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"name": topic.message}
    made["payload"] = schemas.get(kind, {"description": "The value as it came."})
    headers = "events" if topic.taken else kind
    if headers in _HEADERS:
        made["headers"] = _HEADERS[headers]
    if topic.key:
        made["bindings"] = {"kafka": {"key": {**_TEXT, "description": topic.key}, "bindingVersion": "0.5.0"}}
    return made


def version() -> str:
    """The version of shopflow that is installed; 0 if it is run from a folder."""
    try:
        return metadata.version("shopflow")
    except metadata.PackageNotFoundError:
        return "0"
