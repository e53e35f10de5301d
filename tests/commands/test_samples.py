"""Example events: the agents accept them, a seed repeats them, and they are made fast."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any
from uuid import UUID

import faker
import pytest

from shopflow.commands import samples
from shopflow.commands.samples import PRODUCTS, customers, products, purchases
from shopflow.models import Customer, Product, Purchase
from shopflow.shop.decoding import Decoder, encode

NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
IDS = [product.product_id for product in PRODUCTS]

product = Decoder(Product, "product_id", 1 << 20)
customer = Decoder(Customer, "customer_id", 1 << 20)
purchase = Decoder(Purchase, "customer_id", 1 << 20)


def some_purchases(count: int, seed: int = 1, **options: Any) -> list[dict[str, Any]]:
    return list(islice(purchases(random.Random(seed), ["a", "b"], IDS, lambda: NOW, **options), count))


class TestProducts:
    def test_the_assortment_is_13_polish_groceries(self) -> None:
        assert len(PRODUCTS) == len(set(IDS)) == 13
        assert "mleko-laciate-2" in IDS
        names = " ".join(product.name for product in PRODUCTS).lower()
        assert all(word in names for word in ("mleko", "cukier", "czekolada", "chleb", "masło"))
        assert Counter(product.type for product in PRODUCTS)["mleko"] > 1

    def test_every_product_is_a_good_event_with_exactly_the_contracts_fields(self) -> None:
        for event in products(random.Random(1), NOW):
            assert set(event) == {"product_id", "name", "type", "price", "updated_at", "stock", "stock_limit"}
            decoded = product(event["product_id"].encode(), encode(event))
            assert (decoded.price, decoded.updated_at) == (event["price"], NOW)

    def test_prices_are_whole_grosze_near_the_base_price(self) -> None:
        for event, base in zip(products(random.Random(1), NOW), PRODUCTS, strict=True):
            assert type(event["price"]) is int
            assert 0.75 * base.base_price <= event["price"] <= 1.25 * base.base_price

    def test_seeding_again_gives_the_same_products_with_new_prices(self) -> None:
        rng = random.Random(1)
        first, again = products(rng, NOW), products(rng, NOW + timedelta(days=1))
        assert [event["product_id"] for event in first] == [event["product_id"] for event in again] == IDS
        assert [event["name"] for event in first] == [event["name"] for event in again]
        assert sum(one["price"] != other["price"] for one, other in zip(first, again, strict=True)) >= 10

    def test_the_same_seed_gives_the_same_prices(self) -> None:
        assert products(random.Random(7), NOW) == products(random.Random(7), NOW)


class TestCustomers:
    def test_every_customer_is_a_good_event_with_exactly_the_contracts_fields(self) -> None:
        for event in customers(200, None, NOW):
            assert set(event) == {"customer_id", "first_name", "last_name", "address", "city", "registered_at"}
            decoded = customer(event["customer_id"].encode(), encode(event))
            assert decoded.registered_at == NOW

    def test_an_address_is_one_line_with_the_customers_city(self) -> None:
        for event in customers(200, 1, NOW):
            street, _, town = event["address"].rpartition(", ")
            assert "\n" not in event["address"]
            assert any(sign.isdigit() for sign in street)
            assert town[2] == "-"
            assert town[7:] == event["city"]

    def test_a_seed_gives_the_same_customers_ids_included(self) -> None:
        assert list(customers(50, 7, NOW)) == list(customers(50, 7, NOW))

    def test_the_same_customers_come_in_another_process_too(self) -> None:
        """The random order of Python's sets must not change the customers of a seed."""
        samples._pools.cache_clear()
        first = list(customers(20, 7, NOW))
        random.seed(3)
        faker.Faker.seed(3)
        samples._pools.cache_clear()
        assert list(customers(20, 7, NOW)) == first

    def test_more_customers_of_a_seed_begin_with_the_same(self) -> None:
        assert list(customers(50, 7, NOW))[:20] == list(customers(20, 7, NOW))

    def test_two_seeds_have_no_customer_in_common(self) -> None:
        ids = [{event["customer_id"] for event in customers(500, seed, NOW)} for seed in (1, 2)]
        assert not ids[0] & ids[1]

    def test_without_a_seed_they_are_new_each_time(self) -> None:
        ids = [event["customer_id"] for _ in range(2) for event in customers(500, None, NOW)]
        assert len(set(ids)) == 1000

    def test_a_seed_of_zero_is_a_seed(self) -> None:
        assert list(customers(5, 0, NOW)) == list(customers(5, 0, NOW))

    def test_they_are_not_all_alike(self) -> None:
        names = {(event["first_name"], event["last_name"]) for event in customers(1000, 1, NOW)}
        assert len(names) > 900

    def test_no_customers_when_none_are_asked_for(self) -> None:
        assert list(customers(0, None, NOW)) == []

    def test_faker_is_not_asked_for_each_customer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Faker is slow, so it fills pools once, from which all customers are made."""
        calls: Counter[str] = Counter()
        real = faker.Faker.__getattr__

        def counted(proxy: faker.Faker, name: str) -> Any:
            calls[name] += 1
            return real(proxy, name)

        monkeypatch.setattr(faker.Faker, "__getattr__", counted)
        samples._pools.cache_clear()
        first = next(customers(1, 1, NOW))
        pools = calls.total()
        assert 0 < pools < 2_000
        for event in customers(5_000, None, NOW):
            assert event.keys() == first.keys()
        assert calls.total() == pools


class TestPurchases:
    def test_every_purchase_is_a_good_event_with_exactly_the_contracts_fields(self) -> None:
        for event in some_purchases(200):
            assert set(event) == {"purchase_id", "customer_id", "product_id", "quantity", "purchased_at"}
            decoded = purchase(event["customer_id"].encode(), encode(event))
            assert (decoded.price, decoded.purchased_at) == (None, NOW)

    def test_known_customers_buy_1_to_5_of_known_products(self) -> None:
        events = some_purchases(500)
        assert {event["quantity"] for event in events} == {1, 2, 3, 4, 5}
        assert {event["customer_id"] for event in events} == {"a", "b"}
        assert {event["product_id"] for event in events} == set(IDS)

    def test_a_known_price_is_in_the_purchase_zero_too(self) -> None:
        prices = {IDS[0]: 0, IDS[1]: 389}
        for event in some_purchases(200, prices=prices):
            assert event.get("price") == prices.get(event["product_id"])
            assert purchase(event["customer_id"].encode(), encode(event)).price == event.get("price")

    def test_the_time_is_asked_for_at_each_purchase_and_given_in_utc(self) -> None:
        warsaw = timezone(timedelta(hours=1))
        times = iter([NOW.astimezone(warsaw), NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)])
        events = islice(purchases(random.Random(1), ["a"], IDS, lambda: next(times)), 3)
        found = [event["purchased_at"] for event in events]
        assert found == [NOW + timedelta(seconds=second) for second in range(3)]
        assert all(time.tzinfo is timezone.utc for time in found)

    def test_two_runs_never_have_a_purchase_in_common_whatever_the_seed(self) -> None:
        """A second run with the same seed must not look like the first one sent twice."""
        one, other = some_purchases(100, seed=1), some_purchases(100, seed=1)
        assert len({event["purchase_id"] for event in one + other}) == 200
        assert [event["customer_id"] for event in one] == [event["customer_id"] for event in other]

    @pytest.mark.parametrize(("customer_ids", "product_ids"), [([], IDS), (["a"], [])])
    def test_nobody_or_nothing_is_refused_at_once(self, customer_ids: list[str], product_ids: list[str]) -> None:
        with pytest.raises(ValueError, match="at least one"):
            purchases(random.Random(1), customer_ids, product_ids, lambda: NOW)


def test_ids_are_random_uuids() -> None:
    """The fast code makes the same UUID of version 4 as Python's library."""
    rng = random.Random(1)
    for bits in (0, (1 << 128) - 1, *(rng.getrandbits(128) for _ in range(500))):
        assert samples._as_id(bits) == UUID(int=bits, version=4).hex


def test_a_time_without_a_time_zone_is_refused() -> None:
    naive = NOW.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        products(random.Random(1), naive)
    with pytest.raises(ValueError, match="time zone"):
        next(customers(1, None, naive))
    with pytest.raises(ValueError, match="time zone"):
        next(purchases(random.Random(1), ["a"], IDS, lambda: naive))


def test_seeding_leaves_the_global_random_numbers_alone() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    samples._pools.cache_clear()
    list(customers(5, 7, NOW))
    some_purchases(5)
    assert random.random() == expected
