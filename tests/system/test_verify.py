"""`verify` and `verify --deep` on real processes: each change by hand is found and named, and nothing else is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from rocksdict import Options, Rdict

from tests.conftest import OpenShop
from tests.support.shop import Json, Outcome, Record, Shop, Worker, customer, product, purchase, shared, until

pytestmark = pytest.mark.servers

MILK = product("milk", name="Mleko", price=399)
ANNA, BOB = customer("anna"), customer("bob")


class Sold:
    """A shop with products, customers and purchases that a worker has stored and counted."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.bought = [
            *(purchase("anna", product_id="milk", quantity=number) for number in range(1, 4)),
            purchase("bob", product_id="milk"),
        ]
        unpriced = purchase("bob", product_id="milk", purchased_at="2024-05-06T07:08:09+02:00")
        del unpriced["price"]
        self.worker = shop.start_worker().ready()
        shop.offer(MILK, product("sugar"), {**MILK, "name": "Mleko 2%", "updated_at": "2023-01-01T00:00:00Z"})
        shop.register(ANNA, BOB, customer("gone"))
        shop.send("customers", Record(b"gone", None))
        shop.drain()
        shop.sell(*self.bought, unpriced, self.bought[0])
        shop.send("purchases", Record(b"anna", b"no JSON"))
        shop.drain()

    def restart(self) -> None:
        """Start a worker with the tables that the last one left."""
        self.worker = self.shop.start_worker(port=self.worker.port).ready()


@pytest.fixture(scope="module")
def sold(open_shop: OpenShop) -> Iterator[Sold]:
    """One shop for the tests that undo their changes."""
    with open_shop() as shop:
        yield Sold(shop)


def found(shop: Shop, *names: str, deep: bool = False) -> Outcome:
    """`verify` exits with status 1 and names each of these."""
    outcome = shop.run("verify", *(["--deep"] if deep else []))
    assert outcome.status == 1, outcome
    assert "do NOT agree" in outcome.stdout
    wrong = "\n".join(line for line in outcome.stdout.splitlines() if line.startswith("NOT"))
    assert [name for name in names if name not in wrong] == [], outcome.stdout
    return outcome


def agrees(shop: Shop) -> Json:
    """`verify --deep` exits with status 0; returns its report."""
    outcome = shop.run("verify", "--deep", "--json")
    assert outcome.status == 0, outcome
    report: Json = msgspec.json.decode(outcome.stdout)
    assert all(check["good"] is True for check in report["checks"])
    return report


@contextmanager
def changed(shop: Shop, collection: str, name: str, **fields: Any) -> Iterator[None]:
    """Change a document's fields by hand, until the end of the block."""
    before = shop.db[collection].find_one({"_id": name})
    assert before
    shop.db[collection].update_one({"_id": name}, {"$set": fields})
    try:
        yield
    finally:
        shop.db[collection].replace_one({"_id": name}, before)


def test_a_shop_in_order_agrees_down_to_each_event(sold: Sold) -> None:
    """The report counts repeats, bad records, deletions, superseded events and purchases without a price."""
    report = agrees(sold.shop)
    assert report["deep"]["purchases"]["stored"] == 5
    assert (report["deep"]["purchases"]["repeated"], report["deep"]["purchases"]["dead_lettered"]) == (1, 1)
    assert (report["deep"]["products"]["stored"], report["deep"]["products"]["superseded"]) == (2, 1)
    assert (report["deep"]["customers"]["stored"], report["deep"]["customers"]["deletions"]) == (2, 1)
    assert report["workers"] == [{"url": f"http://127.0.0.1:{sold.worker.port}", "partitions": [0, 1, 2, 3]}]
    assert report["mongodb"]["unregistered"] == 0
    text = sold.shop.run("verify", "--deep").stdout
    assert "ok  each of purchases: 5 stored as sent, 1 sent again, 1 dead letters" in text
    assert "ok  workers: 1 live, 2 customers in their tables, all as in the changelog" in text


@pytest.mark.slow
def test_a_purchase_deleted_by_hand_is_found_and_named(sold: Sold) -> None:
    """`verify` names the customer, and `verify --deep` the purchase with its partition."""
    shop, lost = sold.shop, sold.bought[1]
    document = shop.db.purchases.find_one_and_delete({"_id": lost["purchase_id"]})
    try:
        found(shop, "anna")
        found(
            shop, "anna", f"{lost['purchase_id']} (partition", "neither in MongoDB nor in the dead letters", deep=True
        )
    finally:
        shop.db.purchases.insert_one(document)
    agrees(shop)


@pytest.mark.slow
def test_a_purchase_written_by_hand_is_found_and_named(sold: Sold) -> None:
    """The document's `source` names an offset that is not in the topic."""
    shop = sold.shop
    document = shop.stored(sold.bought[1])
    assert document
    shop.db.purchases.insert_one({**document, "_id": "forged", "source": {**document["source"], "offset": 10**6}})
    try:
        found(shop, "anna", "forged: not in the topic", deep=True)
    finally:
        shop.db.purchases.delete_one({"_id": "forged"})
    agrees(shop)


@pytest.mark.slow
def test_a_purchase_changed_by_hand_is_found_and_named(sold: Sold) -> None:
    """`--deep` finds changes of single fields, also those that leave the customer's sums right."""
    shop, event = sold.shop, sold.bought[2]
    name = event["purchase_id"]
    for fields, said in (
        ({"price": 1, "value": 3}, "price: stored 1, sent 399"),
        ({"quantity": 9}, "quantity: stored 9, sent 3"),
        ({"value": 5}, "value: stored 5, sent 1197"),
    ):
        with changed(shop, "purchases", name, **fields):
            found(shop, "anna: stored", name, said, deep=True)
    with changed(shop, "purchases", name, price=400):
        assert shop.run("verify").status == 0
        found(shop, name, "price: stored 400, sent 399", deep=True)
    with changed(shop, "purchases", name, product_id="sugar"):  # the sales by product differ
        found(shop, "grosze bought", name, "product_id: stored 'sugar', sent 'milk'", deep=True)
    agrees(shop)


@pytest.mark.slow
def test_products_and_customers_changed_by_hand_are_found_and_named(sold: Sold) -> None:
    """Changed fields, a missing product and a customer whom no event made are named."""
    shop = sold.shop
    with changed(shop, "products", "milk", price=1):
        found(shop, "milk", "price: stored 1, sent 399", deep=True)
    with changed(shop, "customers", "bob", last_name="Nowak"):
        found(shop, "bob", "last_name: stored 'Nowak', sent 'Gęślą-Jaźń'", deep=True)
    gone = shop.db.products.find_one_and_delete({"_id": "sugar"})
    shop.db.customers.insert_one({**shop.db.customers.find_one({"_id": "bob"}), "_id": "eve"})
    try:
        outcome = found(shop, "sugar", "eve: not in the topic", deep=True)
        assert "bob" not in outcome.stdout
    finally:
        shop.db.products.insert_one(gone)
        shop.db.customers.delete_one({"_id": "eve"})
    agrees(shop)


@pytest.mark.slow
def test_a_count_changed_in_the_changelog_is_found_and_named(open_shop: OpenShop) -> None:
    """Another producer wrote a customer's counts or a partition's totals. MongoDB and the worker's table differ."""
    with open_shop() as shop:
        worker = shop.start_worker().ready()
        shop.register(ANNA)
        (origin,) = shop.sell(purchase("anna"))
        shop.drain()
        agrees(shop)
        records = {record.key: record for record in _changelog(shop) if record.partition == origin.partition}
        for key, expected in ((b"anna", "anna"), (b"", f"partition {origin.partition}")):
            value = msgspec.json.decode(records[key].value)
            _send_changelog(shop, key, {**value, "items": 77}, origin.partition)
            found(shop, expected, f"http://127.0.0.1:{worker.port}")
            _send_changelog(shop, key, value, origin.partition)
            agrees(shop)


def _changelog(shop: Shop) -> list[Any]:
    with _topics_of(shop, shop.changelog):
        return shop.read("")


def _send_changelog(shop: Shop, key: bytes, value: Json, partition: int) -> None:
    with _topics_of(shop, shop.changelog):
        shop.send("", Record(key, msgspec.json.encode(value), partition))


@contextmanager
def _topics_of(shop: Shop, name: str) -> Iterator[None]:
    """Let the shop's methods for Kafka use this topic, whatever kind they get."""
    shop.topic = lambda kind: name  # type: ignore[method-assign]
    try:
        yield
    finally:
        del shop.topic  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_count_changed_in_a_stopped_workers_table_is_found_and_named(sold: Sold) -> None:
    """Changelog and MongoDB are right, so only a request to the worker finds the wrong row in RocksDB."""
    shop = sold.shop
    assert sold.worker.stop() == 0
    assert "no worker runs" in {check["name"]: check["detail"] for check in agrees(shop)["checks"]}["workers"]
    path, value = _table_row(shop, sold.worker, b"anna")
    _write_row(path, b"anna", {**value, "purchases": value["purchases"] + 1})
    sold.restart()
    try:
        outcome = found(shop, "anna", f"http://127.0.0.1:{sold.worker.port}")
        assert "bob" not in outcome.stdout
    finally:
        assert sold.worker.stop() == 0
        _write_row(path, b"anna", value)
        sold.restart()
    agrees(shop)


def _table_row(shop: Shop, worker: Worker, key: bytes) -> tuple[str, Json]:
    """The RocksDB of a stopped worker that has a customer's row, and the row."""
    for path in (shop.data / f"worker-{worker.port}").rglob("purchase_counts-*.db"):
        database = Rdict(str(path), Options(raw_mode=True))
        try:
            if value := database.get(key):
                return str(path), msgspec.json.decode(value)
        finally:
            database.close()
    raise AssertionError(f"{key!r} is in no table")


def _write_row(path: str, key: bytes, value: Json) -> None:
    database = Rdict(path, Options(raw_mode=True))
    database[key] = msgspec.json.encode(value)
    database.close()


@pytest.mark.slow
def test_customers_who_are_not_registered_are_named_and_no_failure(open_shop: OpenShop) -> None:
    """A registration may come after the purchase, so `verify` still succeeds."""
    with open_shop() as shop:
        shop.start_worker().ready()
        shop.register(ANNA)
        shop.sell(purchase("anna"), purchase("bob"), purchase("bob"))
        shop.drain()
        report = agrees(shop)
        assert report["mongodb"]["unregistered"] == 1
        details = {check["name"]: check["detail"] for check in report["checks"]}
        assert details["registrations"] == "1 customers who bought are not registered: bob"
        shop.register(BOB)
        shop.drain()
        assert agrees(shop)["mongodb"]["unregistered"] == 0


@pytest.mark.slow
def test_two_workers_are_both_asked_and_a_frozen_one_can_not_be(open_shop: OpenShop) -> None:
    """`verify` ends with status 2 while a worker that owns partitions does not answer."""
    with open_shop(batching_session_timeout_seconds=80) as shop:
        workers = [shop.start_worker().ready()]
        workers.append(shop.start_worker())
        until(lambda: shared(workers), "they share the partitions", 120)
        names = [f"c{number}" for number in range(40)]
        shop.register(*(customer(name) for name in names))
        shop.sell(*(purchase(name) for name in names))
        shop.drain()
        report = agrees(shop)
        assert {one["url"] for one in report["workers"]} == {f"http://127.0.0.1:{worker.port}" for worker in workers}
        assert sorted(number for one in report["workers"] for number in one["partitions"]) == [0, 1, 2, 3]
        workers[0].send(signal.SIGSTOP)
        try:
            outcome = shop.run("verify", seconds=120)
            assert outcome.status == 2, outcome
            assert (
                f"??  workers: 1 can't be asked: http://127.0.0.1:{workers[0].port}: does not answer" in outcome.stdout
            )
            document = shop.db.purchases.find_one_and_delete({"customer_id": "c7"})
            found(shop, "c7: stored nothing")  # a difference outweighs the missing answer: status 1
            shop.db.purchases.insert_one(document)
        finally:
            workers[0].send(signal.SIGCONT)
        until(lambda: shop.run("verify").status == 0, "it answers again", 120)


def test_the_customers_of_a_partition_come_in_pages(open_shop: OpenShop) -> None:
    """Customers are sorted by id, whatever letters it has. A wrong limit gets 400 with its name."""
    names = ["a", "b/c", "partitions/0", "zażółć", "日本"]
    with open_shop(topics_partitions=1) as shop:
        worker = shop.start_worker().ready(1)
        shop.sell(*(purchase(name, quantity=2, price=5) for name in names))
        shop.drain()
        status, page = worker.get("/counts/partitions/0/")
        assert (status, page["partition"], page["next"]) == (200, 0, None)
        assert page["customers"] == [[name, 1, 2, 10] for name in sorted(names)]
        assert page["totals"].items() >= {"customers": 5, "purchases": 5, "items": 10, "spent": 50}.items()
        status, page = worker.get("/counts/partitions/0/?after=b%2Fc&limit=2")
        assert ([row[0] for row in page["customers"]], page["next"]) == (["partitions/0", "zażółć"], "zażółć")
        assert worker.count("partitions/0")[0] == 200
        assert worker.get("/counts/partitions/1/")[0] == 404
        status, answer = worker.get("/counts/partitions/0/?limit=10001")
        assert (status, [each["field"] for each in answer["fields"]]) == (400, ["limit"])
        agrees(shop)
