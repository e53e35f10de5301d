"""The contract as another program sees it: it sends Kafka records, and finds documents and counts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from tests.conftest import OpenShop
from tests.support.shop import Record, Shop, Worker, becomes, customer, encoded, product, purchase, until

pytestmark = pytest.mark.servers

WAIT_SECONDS = 3.0
ODD_IDS = [
    "a/b/c",
    "/",
    "..",
    "$where",
    "a.b.$c",
    "zażółć gęślą jaźń",
    "  spaces  ",
    "100%25%2F",
    "🧀🥛",
    "a?b=c&d#e",
    '"quoted"\\',
    "ą" * 128,
    "__faust\0offset__",
    "\n\t\r",
]


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with a worker."""
    with open_shop(batching_product_wait_seconds=WAIT_SECONDS) as shop:
        yield shop


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    return shop.start_worker().ready()


def utc(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=timezone.utc)  # type: ignore[arg-type, misc]


def dead_letters(shop: Shop, customer_id: str) -> list[Any]:
    return [letter for letter in shop.read("dead-letters") if letter.key == customer_id.encode()]


def reason(letter: Any) -> str:
    return dict(letter.headers)["__connect.errors.exception.message"].decode()


def test_a_purchase_of_any_kafka_client_is_stored_with_the_contracts_fields(shop: Shop, worker: Worker) -> None:
    """The document has exactly these fields and types, the time in UTC, and the record's partition and offset."""
    event = purchase(product_id="mleko", quantity=3, price=415, purchased_at="2024-05-06T07:08:09.123+02:00")
    (origin,) = shop.sell(event)
    document = until(lambda: shop.stored(event), "it is stored")
    assert document == {
        "_id": event["purchase_id"],
        "customer_id": event["customer_id"],
        "product_id": "mleko",
        "quantity": 3,
        "price": 415,
        "value": 1245,
        "purchased_at": utc(2024, 5, 6, 5, 8, 9, 123_000),
        "source": {"origin": "kafka", **origin._asdict()},
    }


def test_products_and_customers_are_stored_with_the_contracts_fields(shop: Shop, worker: Worker) -> None:
    """A customer who was sent without a city is stored with `city: null`."""
    offered, registered = product(price=0, updated_at="2024-01-01T00:30:00+01:00"), customer(city="Łódź")
    without_city = customer()
    (offer,) = shop.offer(offered)
    (registration, other) = shop.register(registered, without_city)
    assert until(lambda: shop.db.products.find_one({"_id": offered["product_id"]}), "the product is stored") == {
        "_id": offered["product_id"],
        "name": "Mleko",
        "type": "nabiał",
        "price": 0,
        "updated_at": utc(2023, 12, 31, 23, 30),
        "source": {"origin": "kafka", **offer._asdict()},
    }
    fields = {
        "first_name": "Zażółć",
        "last_name": "Gęślą-Jaźń",
        "address": "ul. Świętokrzyska 1, 00-360 Warszawa",
        "registered_at": utc(2024, 2, 3, 3, 5, 6),
    }
    for event, city, origin in ((registered, "Łódź", registration), (without_city, None, other)):
        name = event["customer_id"]
        found = until(lambda name=name: shop.db.customers.find_one({"_id": name}), "the customer is stored")  # type: ignore[misc]
        assert found == {"_id": name, **fields, "city": city, "source": {"origin": "kafka", **origin._asdict()}}


def test_purchases_have_the_indexes_of_the_contract(shop: Shop, worker: Worker) -> None:
    """Without the indexes, a listing of one customer or product would read every purchase."""
    shop.sell(purchase())
    wanted = [{"customer_id": 1, "purchased_at": 1}, {"product_id": 1, "purchased_at": 1}]
    indexes = until(shop.db.purchases.index_information, "there are indexes")
    keys = [dict(index["key"]) for index in indexes.values()]
    assert all(each in keys for each in wanted), keys


def test_a_purchase_is_counted_in_every_view(shop: Shop, worker: Worker) -> None:
    """The counts are in `/counts/{id}/`, in the sums of `/counts/`, and in Faust's own `/table/` and `/router/`."""
    shop.drain()
    before = worker.counts()
    first = purchase(quantity=2, price=100)
    shop.sell(first, purchase(first["customer_id"], quantity=5, price=3))
    name = first["customer_id"]
    numbers = {"purchases": 2, "items": 7, "spent": 215}
    becomes(lambda: worker.count(name), (200, {"customer_id": name, **numbers}))
    after = worker.counts()
    assert after["partitions"] == [0, 1, 2, 3]
    assert {key: after[key] - before[key] for key in ("customers", *numbers)} == {"customers": 1, **numbers}
    status, tables = worker.get("/table/")
    assert status == 200
    assert "purchase_counts" in str(tables)
    status, found = worker.get(f"/table/purchase_counts/{name}/")
    assert (status, {key: found[key] for key in numbers}) == (200, numbers)
    assert worker.get("/router/")[0] == 200
    status, owner = worker.get(f"/router/purchase_counts/{name}/")
    assert status == 200
    assert str(worker.port) in str(owner)


def test_who_never_bought_is_not_found(shop: Shop, worker: Worker) -> None:
    """A customer without purchases gets 404, registered or not."""
    registered = customer()
    shop.register(registered)
    shop.drain()
    for name in (registered["customer_id"], "nobody", "no/body", "%"):
        status, answer = worker.count(name)
        assert (status, answer["customer_id"]) == (404, name)


@pytest.mark.parametrize("name", ODD_IDS)
def test_odd_but_legal_ids_work_everywhere(shop: Shop, worker: Worker, name: str) -> None:
    """Any text can be the id of a customer, a product and a purchase, in MongoDB and in the views."""
    shop.offer(product(name, price=7))
    until(lambda: shop.db.products.find_one({"_id": name}), "the product is stored")
    event = {**purchase(name, purchase_id=name, product_id=name, quantity=1)}
    del event["price"]
    shop.sell(event)
    shop.register(customer(name))
    document = until(lambda: shop.stored(event), "the purchase is stored")
    assert (document["customer_id"], document["product_id"], document["price"]) == (name, name, 7)
    until(lambda: shop.db.customers.find_one({"_id": name}), "the customer is stored")
    becomes(lambda: worker.count(name), (200, {"customer_id": name, "purchases": 1, "items": 1, "spent": 7}))


def test_a_purchase_keeps_its_price_when_the_products_price_changes(shop: Shop, worker: Worker) -> None:
    """A later price event does not change what a customer has paid."""
    old = product(price=100, updated_at="2024-01-01T00:00:00Z")
    event = {**purchase(product_id=old["product_id"], quantity=2, purchased_at="2024-06-01T00:00:00Z")}
    del event["price"]
    shop.offer(old)
    shop.drain()
    shop.sell(event)
    shop.drain()
    shop.offer({**old, "price": 999, "updated_at": "2024-07-01T00:00:00Z"})
    shop.drain()
    assert shop.db.products.find_one({"_id": old["product_id"]})["price"] == 999
    document = shop.stored(event)
    assert document is not None
    assert (document["price"], document["value"]) == (100, 200)


def test_a_purchase_without_a_price_gets_the_one_in_force_when_it_was_made(shop: Shop, worker: Worker) -> None:
    """The price at `purchased_at` counts, in whatever order the prices came. Before the first one, the first counts."""
    offered = product()
    name = offered["product_id"]
    prices = [(300, "2024-03-01T00:00:00Z"), (100, "2024-01-01T00:00:00Z"), (200, "2024-02-01T00:00:00+01:00")]
    shop.offer(*({**offered, "price": price, "updated_at": at} for price, at in prices))
    shop.drain()
    times = {
        "2023-06-01T00:00:00Z": 100,
        "2024-01-01T00:00:00Z": 100,
        "2024-01-31T22:59:59.999Z": 100,
        "2024-01-31T23:00:00Z": 200,
        "2024-02-15T00:00:00+14:00": 200,
        "2024-03-01T00:00:00Z": 300,
        "2030-01-01T00:00:00Z": 300,
    }
    events = [purchase(product_id=name, purchased_at=at) for at in times]
    for event in events:
        event.pop("price")
    events[0]["price"] = None  # counts as missing
    shop.sell(*events)
    shop.drain()
    found = {event["purchased_at"]: (shop.stored(event) or {}).get("price") for event in events}
    assert found == times
    assert shop.db.products.find_one({"_id": name})["price"] == 300


def test_a_purchase_of_a_product_that_comes_a_little_later_waits_for_it(shop: Shop, worker: Worker) -> None:
    """Kafka keeps no order between topics, so a purchase may arrive before its product."""
    offered = product(price=55)
    event = purchase(product_id=offered["product_id"], quantity=2)
    del event["price"]
    shop.sell(event)
    assert shop.stored(event) is None
    shop.offer(offered)
    document = until(lambda: shop.stored(event), "it is stored")
    assert document["price"] == 55
    assert dead_letters(shop, event["customer_id"]) == []


def test_a_purchase_of_an_unknown_product_becomes_a_dead_letter(shop: Shop, worker: Worker) -> None:
    """The worker waits for the product for the configured time, and then stores the purchases after it."""
    unknown = purchase(product_id="never-offered")
    del unknown["price"]
    behind = purchase(unknown["customer_id"])
    (origin, _) = shop.sell(unknown, behind)
    until(lambda: shop.stored(behind), "what comes behind it is stored")
    (letter,) = until(lambda: dead_letters(shop, unknown["customer_id"]), "there is a dead letter")
    assert reason(letter).startswith("unknown product")
    assert "never-offered" in reason(letter)
    assert letter.value == encoded(unknown)
    assert dict(letter.headers)["__connect.errors.offset"] == str(origin.offset).encode()
    assert shop.stored(unknown) is None
    becomes(lambda: worker.count(unknown["customer_id"])[1]["purchases"], 1)


def test_a_purchase_of_a_customer_who_is_not_registered_is_stored(shop: Shop, worker: Worker) -> None:
    """The registration may come later, and does not change the purchase."""
    event = purchase()
    shop.sell(event)
    document = until(lambda: shop.stored(event), "it is stored")
    shop.register(customer(event["customer_id"]))
    shop.drain()
    assert shop.stored(event) == document


def test_an_older_event_never_overwrites_a_newer_one(shop: Shop, worker: Worker) -> None:
    """The newer time wins for products and customers, within one batch and across two."""
    new = product(name="nowe", updated_at="2024-06-02T00:00:00Z")
    old = {**new, "name": "stare", "updated_at": "2024-06-01T00:00:00Z"}
    late = customer(last_name="Nowak", registered_at="2024-06-02T00:00:00Z")
    early = {**late, "last_name": "Stary", "registered_at": "2024-06-01T00:00:00Z"}
    shop.offer(new, old)
    shop.register(late, early)
    shop.drain()
    shop.offer(old)
    shop.register(early)
    shop.drain()
    assert shop.db.products.find_one({"_id": new["product_id"]})["name"] == "nowe"
    assert shop.db.customers.find_one({"_id": late["customer_id"]})["last_name"] == "Nowak"


def test_a_tombstone_deletes_the_document(shop: Shop, worker: Worker) -> None:
    """A later event stores the document again. The purchases of a deleted customer stay."""
    gone, back, left = product(), product(), customer()
    event = purchase(left["customer_id"])
    shop.offer(gone, back)
    shop.register(left)
    shop.sell(event)
    shop.drain()
    assert shop.db.products.find_one({"_id": gone["product_id"]})
    assert shop.db.customers.find_one({"_id": left["customer_id"]})
    key = back["product_id"].encode()
    shop.send("products", Record(gone["product_id"].encode(), None), Record(key, None), Record(key, encoded(back)))
    shop.send("customers", Record(left["customer_id"].encode(), None))
    shop.drain()
    assert shop.db.products.find_one({"_id": gone["product_id"]}) is None
    assert shop.db.products.find_one({"_id": back["product_id"]})
    assert shop.db.customers.find_one({"_id": left["customer_id"]}) is None
    assert shop.stored(event)


def test_a_purchase_sent_twice_is_stored_and_counted_once(shop: Shop, worker: Worker) -> None:
    """The first of two purchases with one id stays, within one batch and across two."""
    event = purchase(quantity=1, price=10)
    (first, _) = shop.sell(event, {**event, "quantity": 5})
    shop.drain()
    shop.sell(event)
    shop.drain()
    document = shop.stored(event)
    assert document is not None
    assert (document["quantity"], document["source"]["offset"]) == (1, first.offset)
    assert worker.count(event["customer_id"])[1]["purchases"] == 1
    assert worker.count(event["customer_id"])[1]["spent"] == 10
    assert dead_letters(shop, event["customer_id"]) == []


def test_fields_that_are_not_named_are_ignored(shop: Shop, worker: Worker) -> None:
    """A newer producer can send fields to an older worker, and can't overwrite `source`, `value` or `_id`."""
    extra = {"coupon": {"code": "X", "levels": [1, 2.5, None]}, "value": 1, "source": "spoofed", "_id": "spoofed"}
    offered, registered, event = product(**extra), customer(**extra), purchase(**extra)
    shop.offer(offered)
    shop.register(registered)
    shop.sell(event)
    shop.drain()
    for document in (
        shop.db.products.find_one({"_id": offered["product_id"]}),
        shop.db.customers.find_one({"_id": registered["customer_id"]}),
        shop.stored(event),
    ):
        assert "coupon" not in document
        assert document["source"]["origin"] == "kafka"
    assert shop.stored(event)["value"] == 798  # type: ignore[index]


def test_topics_are_created_as_the_contract_says(shop: Shop, worker: Worker) -> None:
    """Topics and changelogs have the contract's partitions, cleanup policy and retention."""
    found = {
        name: (partitions, configs["cleanup.policy"], configs["retention.ms"])
        for name, (partitions, configs) in shop.describe_topics().items()
        if not name.endswith("__assignor-__leader")
    }
    changelogs = {f"{shop.name}-{table}-changelog" for table in ("product_sales", "customer_windows")} | {
        shop.changelog
    }
    compacted = {shop.topic(kind) for kind in ("products", "customers", "retries", "customer-activity")} | changelogs
    kept = {shop.topic(kind) for kind in ("purchases", "purchase-prices", "dead-letters", "vouchers", "alerts")}
    assert set(found) == compacted | kept
    assert {name: each[:2] for name, each in found.items() if name in compacted} == dict.fromkeys(
        compacted, (4, "compact")
    )
    assert {name: each for name, each in found.items() if name in kept} == dict.fromkeys(kept, (4, "delete", "-1"))


def test_the_shop_agrees_after_all_that(shop: Shop, worker: Worker) -> None:
    """After everything that the tests above sent, `verify` finds no difference."""
    shop.drain()
    shop.agrees()


def test_purchases_compressed_by_any_codec_are_read(open_shop: OpenShop) -> None:
    """Kafka clients choose the codec. A worker that can't read it would end at each start."""
    offered, registered, bought = product(), customer(), purchase()
    with open_shop() as shop:
        for kind, codec in (("products", "zstd"), ("customers", "lz4"), ("purchases", "snappy")):
            shop.create_topic(kind, 4, compression_type=codec)
        worker = shop.start_worker().ready()
        shop.offer(offered)
        shop.register(registered)
        shop.sell(bought)

        def all_stored() -> bool:
            assert worker.status is None, "the worker has ended"
            names = {"products": offered["product_id"], "customers": registered["customer_id"]}
            return bool(shop.stored(bought)) and all(shop.db[kind].find_one(name) for kind, name in names.items())

        until(all_stored, "all are stored")


@pytest.fixture(scope="module")
def transactions(open_shop: OpenShop) -> Iterator[tuple[Shop, Worker]]:
    """A shop with a worker, after three transactions of 10 purchases of `anna`; the second was aborted."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        for number, commit in enumerate((True, False, True)):
            events = [purchase("anna", purchase_id=f"{number}-{each}") for each in range(10)]
            shop.sell_in_transaction(*events, commit=commit)
        until(lambda: shop.stored({"purchase_id": "2-9"}), "the last one is stored")
        yield shop, worker


def test_of_a_transaction_only_what_was_committed_is_stored(transactions: tuple[Shop, Worker]) -> None:
    """Purchases of an aborted transaction are neither stored nor counted."""
    shop, worker = transactions
    wanted = {f"{number}-{each}" for number in (0, 2) for each in range(10)}
    assert set(shop.db.purchases.distinct("_id")) == wanted
    becomes(lambda: worker.count("anna")[1].get("purchases"), 20)


def test_verify_agrees_when_producers_use_transactions(transactions: tuple[Shop, Worker]) -> None:
    """The markers of transactions take offsets, also the last one. They count neither as purchases nor as lag."""
    shop, _ = transactions
    until(lambda: shop.run("verify").status == 0, "Kafka, MongoDB and the tables agree", 15)


@pytest.mark.parametrize("kind", ["purchases", "products"])
def test_a_topic_with_another_number_of_partitions_is_refused(open_shop: OpenShop, kind: str) -> None:
    """Counts depend on the number of partitions, so the worker ends with one line that has both numbers."""
    with open_shop() as shop:
        shop.create_topic(kind, 3)
        outcome = shop.run("worker")
        assert outcome.status not in {0, None}
        (line,) = outcome.errors
        assert f"{shop.topic(kind)} has 3 partitions, configured are 4" in line
