"""Requests to no collection in particular, on a real server: indexes, closing, reports of writes."""

from __future__ import annotations

import pytest
from pymongo.database import Database

from shopflow.errors import Refused, Slow
from shopflow.store import MongoStore
from shopflow.store.types import Deletion, Document
from tests.conftest import Run
from tests.support.documents import NOON, customer, kafka, product, purchase, voucher


def test_preparing_again_changes_nothing(store: MongoStore, run: Run) -> None:
    """Every worker calls `prepare` when it starts."""
    run(store.insert_purchases([purchase("p1", kafka(1))]))
    run(store.prepare())
    run(store.prepare())
    run(store.ping())
    assert run(store.sizes())["purchases"] == 1


def test_the_indexes_are_made_once_and_those_of_the_contract(
    store: MongoStore, run: Run, database: Database[Document]
) -> None:
    """Other programs rely on the indexes that the contract names."""
    run(store.prepare())
    found = database.purchases.index_information()
    keys = sorted([key for key, _ in index["key"]] for index in found.values())
    assert keys == [["_id"], ["customer_id", "purchased_at"], ["product_id", "purchased_at"]]


def test_another_index_with_the_name_of_ours_is_refused(
    store: MongoStore, run: Run, database: Database[Document]
) -> None:
    """The error is one line that names the collection. It is not `Unavailable`, so nobody tries again."""
    database.purchases.drop_index("customer_id_1_purchased_at_1")
    database.purchases.create_index([("quantity", 1)], name="customer_id_1_purchased_at_1")
    with pytest.raises(Refused, match="collection purchases") as refused:
        run(store.prepare())
    assert "\n" not in str(refused.value)


def test_closing_twice(store: MongoStore, run: Run) -> None:
    """A command closes the store at its end, and the program does it again."""
    other = MongoStore(store._database)
    run(other.close())
    other.connect("mongodb://127.0.0.1:1")
    run(other.close())
    run(other.close())


def test_a_write_that_takes_too_long_is_ended_by_the_server(
    mongo_store: MongoStore, run: Run, database: Database[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is slow, not away. Nothing of it goes on beside the write that repeats it."""
    monkeypatch.setattr("shopflow.store.connection._LIMIT_SHARE", 0.001)  # 30 ms
    documents = [customer(f"c{number}") for number in range(3_000)]
    with pytest.raises(Slow):
        run(mongo_store._replace("customers", documents, range(3_000)))
    stored = database.customers.count_documents({})
    assert stored < 3_000
    run(mongo_store.ping())
    assert database.customers.count_documents({}) == stored


def test_each_write_of_events_reports_the_outcomes_of_its_documents(store: MongoStore, run: Run) -> None:
    """`on_write` gets the collection, seconds and outcomes of each successful write of events, and of nothing else."""
    reported: list[tuple[str, dict[str, int]]] = []

    def on_write(collection: str, seconds: float, outcomes: dict[str, int]) -> None:
        assert 0 < seconds < 60
        reported.append((collection, outcomes))

    store.on_write = on_write
    bought = [purchase("p1", kafka(1)), purchase("p1", kafka(2)), purchase("p2", kafka(3), value=1 << 70)]
    run(store.insert_purchases(bought))
    run(store.restore_purchases(bought[:1]))
    run(store.upsert_products([product(1, NOON, kafka(1)), product(1 << 70, NOON, kafka(2), "tea")]))
    run(store.upsert_customers([customer("anna"), customer("bob")]))
    run(store.delete_products([Deletion("milk", NOON, kafka(3))]))
    run(store.delete_customers([Deletion("anna", NOON, kafka(3)), Deletion("bob", NOON, kafka(4))]))
    run(store.insert_vouchers([voucher("v")]))
    run(store.totals())
    assert reported == [
        ("purchases", {"inserted": 1, "duplicate": 1, "refused": 1}),
        ("purchases", {"restored": 1}),
        ("products", {"upserted": 1, "refused": 1}),
        ("customers", {"upserted": 2, "refused": 0}),
        ("products", {"deleted": 1}),
        ("customers", {"deleted": 2}),
    ]
