"""The store's queries, on a real MongoDB-protocol server."""

from __future__ import annotations

import random
from datetime import datetime, timezone

import msgspec
import pytest
from pymongo.database import Database

from shopflow.errors import Slow
from shopflow.store import MongoStore, catalogue
from shopflow.store.types import Document, Sold
from tests.conftest import Run
from tests.support.documents import DAY, DIRECT, HOUR, MINUTE, NOON, customer, kafka, product, purchase, voucher
from tests.support.iterators import everything
from tests.support.stores import ByHand


def product_ids(store: MongoStore, run: Run, limit: int = 9) -> list[str]:
    """The products' ids, in their order."""
    return [one["_id"] for one in run(store.after("products", "", limit))]


#: When something is bought around a day's end, and how many.
BOUGHT = {"a": (-61, 1), "b": (-60, 2), "c": (-1, 3), "d": (0, 4), "e": (59, 5), "f": (60, 6), "g": (24 * 60, 7)}


MIDNIGHT = NOON + 12 * HOUR


def buy(store: MongoStore, run: Run) -> None:
    """Purchases of milk before, at and after midnight, one written directly; and one of bread."""
    run(
        store.insert_purchases(
            [
                purchase(name, kafka(many), quantity=many, value=10 * many, purchased_at=MIDNIGHT + minute * MINUTE)
                for name, (minute, many) in BOUGHT.items()
            ]
        )
    )
    run(store.insert_purchases([purchase("h", DIRECT, quantity=8, value=1, purchased_at=MIDNIGHT)]))
    run(store.insert_purchases([purchase("i", kafka(9), product_id="bread", purchased_at=MIDNIGHT)]))


def test_units_over_time_come_by_the_hour_and_by_the_day(store: MongoStore, run: Run) -> None:
    """Buckets are in UTC and sorted by time. Empty buckets are left out. The end is not within the span."""
    buy(store, run)
    by_hour = run(store.units_over_time("milk", MIDNIGHT - HOUR, MIDNIGHT + DAY, "hour"))
    assert by_hour == [
        Sold(MIDNIGHT - HOUR, 5, 50), Sold(MIDNIGHT, 17, 91), Sold(MIDNIGHT + HOUR, 6, 60),
    ]  # fmt: skip
    by_day = run(store.units_over_time("milk", None, None, "day"))
    assert by_day == [Sold(MIDNIGHT - DAY, 6, 60), Sold(MIDNIGHT, 23, 151), Sold(MIDNIGHT + DAY, 7, 70)]
    assert run(store.units_over_time("tea", None, None, "day")) == []
    old = purchase("old", kafka(99), purchased_at=datetime(1960, 1, 1, 0, 30, tzinfo=timezone.utc))
    run(store.insert_purchases([old]))
    first = run(store.units_over_time("milk", None, MIDNIGHT - 7 * DAY, "hour"))
    assert first == [Sold(datetime(1960, 1, 1, tzinfo=timezone.utc), 2, 600)]


def test_units_in_spans_touch_each_purchase_once(store: MongoStore, run: Run) -> None:
    """Each span begins where the one before ends. A span may be open. A span without sales has no price."""
    buy(store, run)
    edges = [MIDNIGHT + minute * MINUTE for minute in (-60, 0, 30, 31)]
    spans = list(zip([None, *edges], [*edges, None], strict=True))
    assert run(store.sold_at("milk", spans)) == [
        {300: Sold(None, 1, 10)}, {300: Sold(edges[0], 5, 50)}, {300: Sold(edges[1], 12, 41)}, {},
        {300: Sold(edges[3], 18, 180)},
    ]  # fmt: skip
    assert run(store.sold_at("milk", [(None, None)])) == [{300: Sold(None, 36, 281)}]
    assert run(store.sold_at("tea", [(None, None)])) == [{}]
    assert run(store.sold_at("milk", [])) == []


def test_what_a_customer_bought_before_a_record_is_summed(store: MongoStore, run: Run) -> None:
    """Direct purchases, later ones, and those of other partitions or customers are not in the sums."""
    mine = [purchase(str(offset), kafka(offset), quantity=offset, value=10 * offset) for offset in range(1, 5)]
    others = [
        purchase("direct", DIRECT), purchase("ola", kafka(1), "ola"), purchase("other", kafka(1, 1)),
        purchase("set-apart", {**kafka(2), "origin": "removed"}),
    ]  # fmt: skip
    run(store.insert_purchases([*mine, *others]))
    assert run(store.bought_before("anna", kafka(4))) == (3, 6, 60)
    assert run(store.bought_before("anna", kafka(1))) == (0, 0, 0)


def test_purchases_of_another_program_break_no_sum(store: MongoStore, run: Run, database: Database[Document]) -> None:
    """A purchase without a time is in no sum. Prices that are no whole numbers are summed up together."""
    buy(store, run)
    foreign = purchase("p1", {})
    del foreign["purchased_at"]
    database.purchases.insert_many([foreign, *({**purchase(str(odd), {}), "price": odd} for odd in ("4,15", True, {}))])
    assert run(store.sold_at("milk", [(None, None)])) == [{300: Sold(None, 36, 281), None: Sold(None, 6, 1_800)}]
    assert sum(one.units for one in run(store.units_over_time("milk", None, None, "day"))) == 42


def test_products_come_by_name_and_ids_in_their_order(store: MongoStore, run: Run) -> None:
    """Products of one name are sorted by id. A limit below 1 gives nothing."""
    names = {"z": "Bread", "ł": "Milk", "a": "Milk", "b": "Butter"}
    run(store.upsert_products([{**product(1, NOON, kafka(1), key), "name": name} for key, name in names.items()]))
    run(store.upsert_customers([customer(key) for key in names]))
    assert [one["_id"] for one in run(store.products())] == ["z", "b", "a", "ł"]
    assert product_ids(store, run) == run(store.customer_ids(9)) == ["a", "b", "z", "ł"]
    assert [product_ids(store, run, limit) for limit in (2, 0, -1)] == [["a", "b"], [], []]
    assert [run(store.customer_ids(limit)) for limit in (2, 0, -1)] == [["a", "b"], [], []]


def test_large_numbers_come_back_as_plain_ones(store: MongoStore, run: Run) -> None:
    """The driver has its own class for numbers from 2**31 on, which the JSON encoder of `--json` doesn't accept."""
    run(store.upsert_products([product(2**31, NOON, kafka(2**33))]))
    run(store.upsert_customers([customer("c", NOON, kafka(2**33))]))
    run(store.insert_purchases([purchase("p", kafka(2**33), "c", value=2**40)]))
    found = [*run(store.products()), *run(everything(store.customers()))]
    assert msgspec.json.decode(msgspec.json.encode(found))[0]["price"] == 2**31
    assert type(run(store.purchase_prices(["p"]))["p"]) is int
    assert [type(price) for _, price in run(store.price_history(["milk"]))["milk"].prices] == [int]
    assert run(everything(store.counts())) == [("c", 1, 2, 2**40)]


def test_customers_come_with_what_they_bought(store: MongoStore, run: Run) -> None:
    """Purchases are sorted by time and have the product's name, if it is known. No page loses a customer."""
    names = [f"c{number:03}" for number in range(120)]
    run(store.upsert_customers([customer(name) for name in names]))
    run(store.upsert_products([product(300, NOON, kafka(0))]))
    bought = [purchase("p2", kafka(1), "c110", purchased_at=NOON + MINUTE), purchase("p1", kafka(2), "c110")]
    run(store.insert_purchases([*bought, purchase("p3", kafka(3), "c110", product_id="?", purchased_at=NOON - MINUTE)]))
    found = run(everything(store.customers()))
    assert [one["_id"] for one in found] == names
    assert [one["_id"] for one in found[110]["purchases"]] == ["p3", "p1", "p2"]
    assert [one["product_name"] for one in found[110]["purchases"]] == [None, "Milk", "Milk"]
    assert [one["_id"] for one in run(everything(store.customers(101)))] == names[:101]
    assert run(everything(store.customers(0))) == []


def test_sums_are_those_of_the_purchases_from_kafka(store: MongoStore, run: Run) -> None:
    """Purchases that `--direct` stored are not in the tables, with which `verify` compares the sums."""
    assert run(store.totals()).purchases == 0
    run(store.insert_purchases([purchase("p1", kafka(1)), purchase("p2", kafka(2)), purchase("p3", kafka(3), "bob")]))
    run(store.insert_purchases([purchase("p4", DIRECT, "bob")]))
    totals = run(store.totals())
    assert (totals.purchases, totals.items, totals.spent, totals.customers) == (3, 6, 1800, 2)
    assert sorted(run(everything(store.counts()))) == [("anna", 2, 4, 1200), ("bob", 1, 2, 600)]
    assert run(store.sizes()) == {"products": 0, "customers": 0, "purchases": 4, "prices": 0}


def test_registered_returns_the_registered_customers(store: MongoStore, run: Run) -> None:
    """There are more ids than one request may have."""
    names = [f"c{number:03}" for number in range(250)]
    run(store.upsert_customers([customer(name) for name in names[::2]]))
    assert run(store.registered(names)) == set(names[::2])
    assert run(store.registered(["nobody", "$ne"])) == set()
    assert run(store.registered([])) == set()


def test_the_sources_are_those_of_documents_from_kafka(
    store: MongoStore, run: Run, database: Database[Document]
) -> None:
    """Documents that `--direct` or another program wrote are left out."""
    run(store.upsert_customers([customer("a", source=kafka(1)), customer("b", source=DIRECT)]))
    database.customers.insert_one({"_id": "other"})
    database.customers.insert_one({"_id": "odd", "source": {"origin": "kafka"}})
    assert dict(run(everything(store.sources("customers")))) == {"a": kafka(1), "odd": {"origin": "kafka"}}
    assert run(everything(store.sources("products"))) == []


def test_a_collection_is_read_in_its_order_from_any_id_on(
    store: MongoStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export reads each document once, unchanged, by id. After an outage it goes on after the last id."""
    monkeypatch.setattr("shopflow.store.connection.PAGE_SIZE", 2)
    names = ["a", "b", "c1", "c2", "Ł", "z", "ą"]
    run(store.insert_purchases([purchase(name, kafka(place), note="mine") for place, name in enumerate(names)]))
    for after, wanted in (
        ("", sorted(names)),
        ("b", sorted(names)[2:]),
        ("c", sorted(names)[2:]),
        ("Ł", []),
        ("~", ["ą", "Ł"]),
    ):
        pages = run(everything(store.pages("purchases", after)))
        assert [one["_id"] for page in pages for one in page] == wanted
        assert all(0 < len(page) <= 2 for page in pages)
    assert run(everything(store.pages("purchases")))[0][0] == purchase("a", kafka(0), note="mine")
    assert run(everything(store.pages("customers"))) == []


def test_ids_that_are_no_text_are_passed_over(store: MongoStore, run: Run, database: Database[Document]) -> None:
    """Another program wrote these documents. They do not end the reading."""
    for name in (1, "a", 2.5, "b"):
        database.products.insert_one({"_id": name})
    assert run(everything(store.pages("products"))) == [[{"_id": "a"}, {"_id": "b"}]]


def test_products_are_paged_by_their_ids(store: MongoStore, run: Run) -> None:
    """A page begins after the given id, which may hold any text."""
    run(store.upsert_products([product(1, NOON, kafka(1), name) for name in ("b", "$gt", "a", "ł")]))
    assert [one["_id"] for one in run(store.after("products", "", 9))] == ["$gt", "a", "b", "ł"]
    assert [one["_id"] for one in run(store.after("products", "a", 1))] == ["b"]
    assert run(store.after("products", "b", 1)) == [product(1, NOON, kafka(1), "ł")]
    assert run(store.after("products", "", 0)) == run(store.after("products", "ł", 9)) == []


def test_purchases_are_paged_by_time_and_id(store: MongoStore, run: Run) -> None:
    """Each purchase of the customer comes once and in order, wherever a page ends, also among many of one time."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    ids = [f"{choice.randrange(10**6):06}" for _ in range(40)]
    made = [
        purchase(name, kafka(number), purchased_at=NOON + choice.randrange(5) * MINUTE)
        for number, name in enumerate(dict.fromkeys(ids))
    ]
    run(store.insert_purchases([*made, purchase("other", kafka(99), "bob")]))
    wanted = sorted(made, key=lambda one: (one["purchased_at"], one["_id"]))
    assert run(store.purchases_after("anna", None, 99)) == wanted
    for size in (1, 3, 7, 40):
        found: list[Document] = []
        while page := run(
            store.purchases_after("anna", (found[-1]["purchased_at"], found[-1]["_id"]) if found else None, size)
        ):
            assert len(page) <= size
            found += page
        assert found == wanted
    assert run(store.purchases_after("anna", None, 0)) == run(store.purchases_after('{"$gt": ""}', None, 9)) == []


def test_the_last_purchases_of_a_customer(store: MongoStore, run: Run) -> None:
    """The newest purchase is first. Each has its product's name. A customer's id is never an operator."""
    run(store.upsert_products([product(300, NOON, kafka(0))]))
    documents = [purchase(f"p{number}", kafka(number), purchased_at=NOON + number * MINUTE) for number in range(5)]
    documents += [purchase("x", kafka(9), "bob"), purchase("p9", kafka(8), product_id="gone", purchased_at=NOON)]
    run(store.insert_purchases(documents))
    found = run(store.last_purchases("anna", 10))
    assert [one["_id"] for one in found] == ["p4", "p3", "p2", "p1", "p9", "p0"]
    assert [one["product_name"] for one in found] == ["Milk"] * 4 + [None, "Milk"]
    assert [one["_id"] for one in run(store.last_purchases("anna", 2))] == ["p4", "p3"]
    assert run(store.last_purchases("$gt", 2)) == run(store.last_purchases("nobody", 2)) == []


def test_vouchers_come_newest_first(store: MongoStore, run: Run) -> None:
    """Vouchers of all customers or of one, limited or not, are listed with the newest first."""
    made = [voucher(f"v{n}", kafka(n), ("anna", "$bob")[n % 2], NOON + n * MINUTE) for n in range(5)]
    run(store.insert_vouchers(made))
    assert [one["_id"] for one in run(everything(store.vouchers()))] == ["v4", "v3", "v2", "v1", "v0"]
    assert [one["_id"] for one in run(everything(store.vouchers("$bob")))] == ["v3", "v1"]
    assert [one["_id"] for one in run(everything(store.vouchers("anna", 2)))] == ["v4", "v2"]
    assert run(everything(store.vouchers(limit=0))) == []


def test_buyers_are_the_purchases_from_kafka_customer_by_customer(store: MongoStore, run: Run) -> None:
    """Each has the fields that a rule needs, and no others."""
    sources = [kafka(n) if n % 5 else DIRECT for n in range(20)]
    run(store.insert_purchases([purchase(f"p{n}", source, f"c{n % 3}") for n, source in enumerate(sources)]))
    found = run(everything(store.buyers()))
    names = [one["customer_id"] for one in found]
    assert names == sorted(names)
    assert sorted(one["source"]["offset"] for one in found) == [n for n in range(20) if n % 5]
    assert set(found[0]) == {"customer_id", "product_id", "value", "purchased_at", "source"}


def test_registrations_are_the_customers_from_kafka(store: MongoStore, run: Run) -> None:
    """Each has the customer's city and the time of the registration."""
    run(store.upsert_customers([customer("anna"), customer("bob", source=DIRECT)]))
    (found,) = run(everything(store.registrations()))
    assert (found["_id"], found["city"], found["registered_at"]) == ("anna", "Łódź", NOON)


def test_documents_of_other_programs_do_not_end_a_reader(
    store: MongoStore, run: Run, database: Database[Document]
) -> None:
    """Documents without a time or a product, or with values of other types, are read as the others are."""
    strange = {"_id": "anna", "registered_at": "yesterday"}
    database.customers.insert_one(strange)
    for document in (
        {"_id": "odd", "customer_id": "anna"},
        {"_id": "when", "customer_id": "anna", "product_id": ["x"]},
    ):
        database.purchases.insert_one(document)
    database.purchases.insert_one(purchase("good", kafka(1)))
    database.products.insert_one({"_id": "milk", "name": "Milk"})
    (anna,) = run(everything(store.customers()))
    assert anna["registered_at"] == "yesterday"
    assert [(one["_id"], one["product_name"]) for one in anna["purchases"]] == [
        ("good", "Milk"),
        ("odd", None),
        ("when", None),
    ]
    last = run(store.last_purchases("anna", 5))
    assert {one["_id"]: one["product_name"] for one in last} == {"good": "Milk", "odd": None, "when": None}


@pytest.mark.parametrize("name", ["$set", "a.b", "a\x00b", "zażółć 🥛", "{'$gt': ''}", " "])
def test_an_id_in_a_query_is_a_value(store: MongoStore, run: Run, name: str) -> None:
    """Ids come from outside. No part of an id is read as an operator or as a field's path."""
    run(store.upsert_products([product(5, name=name)]))
    run(store.upsert_customers([customer(name)]))
    run(store.insert_purchases([purchase(name, kafka(1), name, product_id=name)]))
    (found,) = run(everything(store.customers()))
    assert (found["_id"], found["purchases"][0]["product_name"]) == (name, name.title())
    assert [one["product_name"] for one in run(store.last_purchases(name, 9))] == [name.title()]
    assert [one["_id"] for one in run(store.purchases_after(name, None, 9))] == [name]
    assert run(everything(store.counts())) == run(everything(store.sold())) == [(name, 1, 2, 600)]
    assert run(store.sold_at(name, [(None, None)])) == [{300: Sold(None, 2, 600)}]
    assert run(store.registered([name])) == {name}


def test_purchases_that_are_set_apart_are_in_no_sum(store: MongoStore, run: Run) -> None:
    """Those that were written directly stay as they are: they never were in a sum."""
    run(store.insert_purchases([purchase("p1", kafka(1)), purchase("p2", kafka(2)), purchase("p3", DIRECT)]))
    run(store.set_apart())
    assert (run(store.totals()).purchases, run(store.removed()), run(store.sizes())["purchases"]) == (0, 2, 3)
    run(store.insert_purchases([purchase("p2", kafka(2))]))
    assert (run(store.totals()).purchases, run(store.removed()), run(store.sizes())["purchases"]) == (1, 1, 3)


def test_names_are_found_by_the_beginnings_of_their_words(store: MongoStore, by_hand: ByHand, run: Run) -> None:
    """Each word must begin a word of the name. Case and accents don't matter; signs of patterns are plain text."""
    for number, (first, last) in enumerate(
        (("Łukasz", "Żak-Nowak"), ("ŁUCJA", "Kowalska"), ("Anna", "Kowal"), ("A.*", "$x"), ("Édouard", "O'Neill"))
    ):
        by_hand.put("customers", {"_id": str(number), "first_name": first, "last_name": last})
    by_hand.put("customers", {"_id": "strange", "first_name": 7})
    by_hand.put("products", {"_id": "m", "name": "Masło extra Łaciate"})

    def found(text: str, name: str = "customers") -> str:
        return " ".join(one["_id"] for one in run(store.after(name, "", 9, text)))

    assert {text: found(text) for text in ("lu", "ŁU", "zak", "nowak lu", "kow", "kow an", "owal", "edo neil")} == {
        "lu": "0 1", "ŁU": "0 1", "zak": "0", "nowak lu": "0", "kow": "1 2", "kow an": "2", "owal": "", "edo neil": "4",
    }  # fmt: skip
    assert {text: found(text) for text in (".", "a.", "a.*", "$", "(", "[", "\\", "\0", " \t", "я", "ß")} == {
        ".": "", "a.": "3", "a.*": "3", "$": "3", "(": "", "[": "", "\\": "", "\0": "", " \t": "", "я": "", "ß": "",
    }  # fmt: skip
    assert found("laciate MASLO", "products") == "m"
    assert [one["_id"] for one in run(store.after("customers", "0", 1, "lu"))] == ["1"]


def test_a_search_that_takes_too_long_is_given_up(
    store: MongoStore, by_hand: ByHand, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MongoDB ends a search by itself: nobody who types a name keeps it busy."""
    for number in range(300):
        by_hand.put("customers", {"_id": str(number), "first_name": "Anna"})
    monkeypatch.setattr(catalogue, "SEARCH_SECONDS", 0.001)
    with pytest.raises(Slow):
        run(store.after("customers", "", 9, "zofia"))
