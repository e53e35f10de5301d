"""Generates example events without I/O: Polish groceries, Polish customers, and their purchases."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any, NamedTuple

MAX_QUANTITY = 5
#: The random bits of a UUID, and its fixed bits: version 4, and the variant of RFC 4122.
_UUID_RANDOM = 0xFFFFFFFF_FFFF_0FFF_3FFF_FFFFFFFFFFFF
_UUID_VERSION_4 = 0x00000000_0000_4000_8000_000000000000


class SampleProduct(NamedTuple):
    """An example product. Its price is drawn near `base_price`, in grosze. Its stock limit is a tenth of its stock."""

    product_id: str
    name: str
    type: str
    base_price: int
    stock: int


#: The shop's assortment. The ids are fixed, so seeding again gives the same products new prices.
PRODUCTS = (
    SampleProduct("mleko-laciate-2", "Mleko Łaciate 2% 1 l", "mleko", 389, 300),
    SampleProduct("mleko-laciate-3-2", "Mleko Łaciate 3,2% 1 l", "mleko", 419, 2000),
    SampleProduct("mleko-mlekovita-2", "Mleko Mlekovita 2% 1 l", "mleko", 369, 300),
    SampleProduct("mleko-mlekovita-3-2", "Mleko Mlekovita 3,2% 1 l", "mleko", 399, 2000),
    SampleProduct("mleko-bez-laktozy", "Mleko bez laktozy 1,5% 1 l", "mleko", 499, 2000),
    SampleProduct("cukier-bialy", "Cukier biały 1 kg", "cukier", 399, 2000),
    SampleProduct("cukier-trzcinowy", "Cukier trzcinowy 500 g", "cukier", 749, 2000),
    SampleProduct("czekolada-mleczna", "Czekolada mleczna 100 g", "czekolada", 599, 2000),
    SampleProduct("czekolada-gorzka", "Czekolada gorzka 100 g", "czekolada", 649, 300),
    SampleProduct("chleb-zytni", "Chleb żytni 500 g", "pieczywo", 629, 300),
    SampleProduct("chleb-pszenny", "Chleb pszenny 400 g", "pieczywo", 479, 2000),
    SampleProduct("maslo-ekstra", "Masło ekstra 200 g", "masło", 799, 300),
    SampleProduct("maslo-klarowane", "Masło klarowane 500 g", "masło", 2199, 2000),
)


def products(rng: random.Random, at: datetime) -> list[dict[str, Any]]:
    """The example products as offered from `at` on, each at most a fifth above or below its base price."""
    updated_at = _utc(at)
    return [
        {
            "product_id": product.product_id,
            "name": product.name,
            "type": product.type,
            "price": round(product.base_price * rng.uniform(0.8, 1.2)),
            "updated_at": updated_at,
            "stock": product.stock,
            "stock_limit": product.stock // 10,
        }
        for product in PRODUCTS
    ]


def customers(count: int, seed: int | None, at: datetime) -> Iterator[dict[str, Any]]:
    """`count` customers who registered at `at`.

    The same seed gives the same customers and ids, a larger `count` adds to them; two seeds share no id. Without a seed
    the customers are new.
    """
    rng = random.Random() if seed is None else random.Random(seed)  # noqa: S311 - examples, not secrets
    new_id = _new_id if seed is None else lambda: _as_id(rng.getrandbits(128))
    registered_at = _utc(at)
    pools = _pools()
    for _ in range(count):
        first_names, last_names = rng.choice(pools.people)
        city = rng.choice(pools.cities)
        yield {
            "customer_id": new_id(),
            "first_name": rng.choice(first_names),
            "last_name": rng.choice(last_names),
            "address": _address(rng, rng.choice(pools.streets), city),
            "city": city,
            "registered_at": registered_at,
        }


def purchases(
    rng: random.Random,
    customer_ids: Sequence[str],
    product_ids: Sequence[str],
    at: Callable[[], datetime],
    prices: Mapping[str, int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Endless purchases: a random customer buys 1 to 5 units of a random product.

    Each purchase_id is new, whatever `rng` is.

    Arguments:
        rng: Chooses customers, products and quantities.
        at: Returns the time of each purchase.
        prices: Prices in grosze by product_id. Purchases of other products have no price.

    Raises:
        ValueError: There is no customer or no product.
    """
    if not customer_ids or not product_ids:
        raise ValueError("purchases need at least one customer and one product")
    known = {} if prices is None else prices

    def draw() -> Iterator[dict[str, Any]]:
        while True:
            product_id = rng.choice(product_ids)
            purchase = {
                "purchase_id": _new_id(),
                "customer_id": rng.choice(customer_ids),
                "product_id": product_id,
                "quantity": rng.randint(1, MAX_QUANTITY),
                "purchased_at": _utc(at()),
            }
            price = known.get(product_id)
            yield purchase if price is None else {**purchase, "price": price}

    return draw()


class _Pools(NamedTuple):
    people: tuple[tuple[list[str], list[str]], ...]
    """First and last names that go together: in Polish they have a gender."""

    streets: list[str]
    cities: list[str]


@cache
def _pools() -> _Pools:
    """The names, streets and cities of customers. Drawing from them is several times faster than calling Faker."""
    from faker import Faker

    fake = Faker("pl_PL")
    fake.seed_instance(0)  # fixed pools: the same seed must give the same customers
    women = _drawn(fake.first_name_female, 100), _drawn(fake.last_name_female, 300)
    men = _drawn(fake.first_name_male, 100), _drawn(fake.last_name_male, 300)
    streets = _drawn(lambda: fake.street_address().rpartition(" ")[0], 300)  # without the number
    return _Pools((women, men), streets, _drawn(fake.city, 150))


def _drawn(draw: Callable[[], str], times: int) -> list[str]:
    return sorted({draw() for _ in range(times)})


def _address(rng: random.Random, street: str, city: str) -> str:
    flat = f"/{rng.randint(1, 90)}" if rng.random() < 0.4 else ""
    return f"{street} {rng.randint(1, 150)}{flat}, {rng.randrange(100):02}-{rng.randrange(1000):03} {city}"


def _new_id() -> str:
    return _as_id(int.from_bytes(os.urandom(16), "big"))


def _as_id(random_bits: int) -> str:
    """The same as `UUID(int=random_bits, version=4).hex`, in a third of the time."""
    return f"{random_bits & _UUID_RANDOM | _UUID_VERSION_4:032x}"


def _utc(time: datetime) -> datetime:
    if time.tzinfo is None:
        raise ValueError(f"a time needs a time zone: {time.isoformat()}")
    return time.astimezone(timezone.utc)
