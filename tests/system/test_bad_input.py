"""Bad records: each becomes a dead letter with its bytes, origin and reason; its neighbours are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.conftest import OpenShop
from tests.support.shop import MODULE, Origin, Record, Shop, customer, encoded, product, purchase, until

pytestmark = pytest.mark.servers

KEY = b"bad"


class Bad(NamedTuple):
    """A bad record, and what its reason must name."""

    kind: str
    value: bytes | None
    names: str
    key: bytes | None = KEY


def _of(kind: str, **fields: Any) -> bytes:
    """An event with the id `bad` and these fields changed; the value `...` leaves a field out."""
    event = {"products": product("bad"), "customers": customer("bad"), "purchases": purchase("bad")}[kind]
    return encoded({name: value for name, value in {**event, **fields}.items() if value is not ...})


#: The required fields of each event.
FIELDS = {
    "products": ("product_id", "name", "type", "price", "updated_at"),
    "customers": ("customer_id", "first_name", "last_name", "address", "registered_at"),
    "purchases": ("purchase_id", "customer_id", "product_id", "quantity", "purchased_at"),
}
#: Headers of a bad record: one of its own, which the dead letter keeps, and a wrong origin, which it does not.
HEADERS = (("trace", b"\xff\x00"), ("__connect.errors.offset", b"77"))

BAD = [
    *(
        bad
        for kind in ("products", "customers", "purchases")
        for bad in (
            Bad(kind, b"not JSON", "not JSON"),
            Bad(kind, b"\x00\xff\xfe", "not JSON"),
            Bad(kind, b"", "not JSON"),
            Bad(kind, b"\xef\xbb\xbf" + _of(kind), "not JSON"),
            Bad(kind, b"[1]", "object"),
            Bad(kind, b"null", "object"),
            Bad(kind, b'{"a":' * 100_000, "not JSON"),
            Bad(kind, _of(kind)[:-1] + b', "name": "\\ud800", "first_name": "\\ud800"}', "not JSON"),
            Bad(kind, _of(kind), "wrong key", b"other"),
            Bad(kind, _of(kind, padding="x" * 3_000_000), "too large"),
        )
    ),
    Bad("products", _of("products", price=-1), "price"),
    Bad("products", _of("products", price=9.99), "price"),
    Bad("products", _of("products", price="999"), "price"),
    *(Bad(kind, _of(kind, **{field: ...}), field) for kind, fields in FIELDS.items() for field in fields),
    Bad("products", _of("products", price=None), "price"),
    Bad("products", _of("products", price=2**63), "price"),
    Bad("products", _of("products", updated_at="2024-01-01T00:00:00"), "updated_at"),
    Bad("products", None, "wrong key", b""),
    Bad("products", None, "wrong key", b"\xff"),
    Bad("customers", _of("customers", first_name=5), "first_name"),
    Bad("customers", None, "wrong key", b"x" * 129),
    Bad("purchases", _of("purchases", quantity=0), "quantity"),
    Bad("purchases", _of("purchases", quantity=True), "quantity"),
    Bad("purchases", _of("purchases", quantity="2"), "quantity"),
    Bad("purchases", _of("purchases", quantity=2.0), "quantity"),
    Bad("purchases", _of("purchases", quantity=10**30), "quantity"),
    Bad("purchases", _of("purchases", quantity=10**9, price=10**9), "quantity times price"),
    Bad("purchases", _of("purchases", price=-5), "price"),
    Bad("purchases", _of("purchases", purchase_id=""), "purchase_id"),
    Bad("purchases", _of("purchases", purchase_id=7), "purchase_id"),
    Bad("purchases", _of("purchases", product_id="x" * 129), "product_id"),
    Bad("purchases", _of("purchases", product_id=None), "product_id"),
    Bad("purchases", _of("purchases", purchased_at="yesterday"), "purchased_at"),
    Bad("purchases", _of("purchases", purchased_at=1_700_000_000), "purchased_at"),
    Bad("purchases", _of("purchases", purchased_at="0001-01-01T00:00:00+14:00"), "purchased_at"),
    Bad("purchases", _of("purchases", purchased_at="9999-12-31T23:59:59-14:00"), "purchased_at"),
    Bad("purchases", _of("purchases"), "wrong key", b"\xff\xfe"),
    Bad("purchases", _of("purchases"), "wrong key", b"BAD"),
    Bad("purchases", _of("purchases"), "wrong key", None),  # a compacted topic refuses it
    Bad("purchases", None, "no value"),
    Bad("purchases", None, "no value", None),
]


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with a worker, to which good and bad records are sent in turn, in one partition of each topic."""
    with open_shop() as shop:
        shop.start_worker(program=MODULE).ready()
        yield shop


@pytest.fixture(scope="module")
def sent(shop: Shop) -> dict[Bad, Origin]:
    """The origin of each bad record. A good record is before and after each."""
    origins: dict[Bad, Origin] = {}
    for kind in ("products", "customers", "purchases"):
        bad = [one for one in BAD if one.kind == kind]
        records = []
        for number, one in enumerate(bad):
            records += [_good(kind, number), Record(one.key, one.value, 1, HEADERS)]
        found = shop.send(kind, *records, _good(kind, len(bad)))
        origins |= dict(zip(bad, found[1::2], strict=True))
    shop.drain()
    return origins


def _good(kind: str, number: int) -> Record:
    name = f"good-{number}"
    event = {"products": product, "customers": customer, "purchases": purchase}[kind](name)
    return Record(name.encode(), encoded({**event, **({"purchase_id": name} if kind == "purchases" else {})}), 1)


@pytest.fixture(scope="module")
def letters(shop: Shop, sent: dict[Bad, Origin]) -> dict[tuple[str, int, int], list[Any]]:
    """The dead letters by their origin: topic, partition and offset."""
    found: dict[tuple[str, int, int], list[Any]] = {}
    for letter in shop.read("dead-letters"):
        headers = dict(letter.headers)
        origin = [headers[f"__connect.errors.{name}"].decode() for name in Origin._fields]
        found.setdefault((origin[0], int(origin[1]), int(origin[2])), []).append(letter)
    return found


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.kind}-{bad.names}".replace(" ", "-"))
def test_a_bad_record_is_a_dead_letter_once_as_it_came(
    bad: Bad, sent: dict[Bad, Origin], letters: dict[tuple[str, int, int], list[Any]]
) -> None:
    """A dead letter has the record's key, value, headers and partition unchanged, and a reason that names the field."""
    origin = sent[bad]
    (letter,) = letters[tuple(origin)]  # type: ignore[index]
    headers = dict(letter.headers)
    assert (letter.key, letter.value, letter.partition) == (bad.key, bad.value, 1)
    assert len(headers) == len(letter.headers)
    assert headers["trace"] == b"\xff\x00"
    assert {name: headers[f"__connect.errors.{name}"].decode() for name in origin._fields} == {
        name: str(value) for name, value in origin._asdict().items()
    }
    assert headers["__connect.errors.exception.class.name"]
    assert bad.names in headers["__connect.errors.exception.message"].decode()


def test_nothing_else_is_a_dead_letter(letters: dict[tuple[str, int, int], list[Any]]) -> None:
    """No good record is a dead letter, and no bad record is one twice."""
    assert sum(map(len, letters.values())) == len(BAD)


@pytest.mark.parametrize("kind", ["products", "customers", "purchases"])
def test_what_is_around_bad_records_is_stored(shop: Shop, sent: dict[Bad, Origin], kind: str) -> None:
    """Every good record is stored, and no bad one."""
    expected = {f"good-{number}" for number in range(sum(bad.kind == kind for bad in BAD) + 1)}
    assert {document["_id"] for document in shop.db[kind].find({}, {"_id": 1})} == expected


def test_the_shop_agrees_after_all_that(shop: Shop, sent: dict[Bad, Origin]) -> None:
    """`verify` counts the rejected purchases as explained, and the worker goes on."""
    assert shop.agrees()["tables"]["rejected"] == sum(bad.kind == "purchases" for bad in BAD)
    after = purchase()
    shop.sell(after)
    until(lambda: shop.stored(after), "the worker goes on")
