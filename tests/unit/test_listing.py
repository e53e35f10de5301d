"""What the listing commands print."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

import pytest

from shopflow import listing

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
SOURCE = {"origin": "direct"}
MILK = {"_id": "milk", "name": "Mleko Łaciate", "type": "mleko", "price": 389, "updated_at": NOON, "source": SOURCE}
BOUGHT = {
    "_id": "p1",
    "customer_id": "anna",
    "product_id": "milk",
    "product_name": "Mleko Łaciate",
    "quantity": 3,
    "price": 389,
    "value": 1167,
    "purchased_at": NOON,
    "source": SOURCE,
}
ANNA = {
    "_id": "anna",
    "first_name": "Anna",
    "last_name": "Żółć",
    "address": "ul. Długa 1, 00-001 Łódź",
    "city": "Łódź",
    "registered_at": NOON,
    "source": SOURCE,
}


@pytest.mark.parametrize(
    ("grosze", "said"), [(0, "0,00 zł"), (5, "0,05 zł"), (1234, "12,34 zł"), (10**12, "10000000000,00 zł")]
)
def test_money_is_written_as_in_poland(grosze: int, said: str) -> None:
    """And never goes through a float."""
    assert listing.money(grosze) == said


def lines(*customers: dict[str, Any], as_json: bool) -> list[str]:
    """The lines of `list-customers`."""

    async def stream() -> AsyncIterator[dict[str, Any]]:
        for customer in customers:
            yield customer

    async def collect() -> list[str]:
        return [line async for line in listing.customers(stream(), as_json=as_json)]

    return asyncio.run(collect())


def test_products_have_name_price_and_type() -> None:
    """A line each."""
    (line,) = listing.products([MILK], as_json=False)
    assert line.split() == ["Mleko", "Łaciate", "3,89", "zł", "mleko", "(milk)"]
    assert list(listing.products([], as_json=False)) == ["Products: none yet."]


def test_products_as_json_have_the_contracts_fields() -> None:
    """The id under its own name."""
    (line,) = listing.products([MILK], as_json=True)
    (product,) = json.loads(line)
    assert product["product_id"] == "milk"
    assert set(product) == {"product_id", "name", "type", "price", "updated_at", "source"}
    assert list(listing.products([], as_json=True)) == ["[]"]


def test_a_customer_has_what_they_bought() -> None:
    """Product, quantity, price, value, time."""
    first, second, third = lines({**ANNA, "purchases": [BOUGHT]}, as_json=False)
    assert first == "Anna Żółć, ul. Długa 1, 00-001 Łódź  (anna)"
    assert second.endswith("3 x Mleko Łaciate, 3,89 zł each = 11,67 zł")
    assert third.strip() == "1 purchases, 11,67 zł"


def test_a_product_without_a_name_is_called_by_its_id() -> None:
    """It may have been deleted since."""
    _, line, _ = lines({**ANNA, "purchases": [{**BOUGHT, "product_name": None}]}, as_json=False)
    assert "3 x milk," in line


def test_customers_as_json_are_one_array() -> None:
    """A customer a line, so that it can be streamed."""
    found = lines({**ANNA, "purchases": [BOUGHT]}, {**ANNA, "_id": "bob", "purchases": []}, as_json=True)
    anna, bob = json.loads("\n".join(found))
    assert (anna["customer_id"], bob["customer_id"]) == ("anna", "bob")
    assert anna["purchases"][0]["purchase_id"] == "p1"
    assert {"quantity", "price", "value", "purchased_at", "product_id"} <= set(anna["purchases"][0])
    assert bob["purchases"] == []
    assert json.loads("\n".join(lines(as_json=True))) == []
    assert lines(as_json=False) == ["Customers: none yet."]
