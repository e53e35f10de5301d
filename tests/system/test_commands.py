"""The commands as a user types them: what they do, what they print, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import OpenShop
from tests.support.shop import CONSOLE, FAUST, MODULE, Shop, Worker, becomes, free_port

pytestmark = pytest.mark.servers

SOURCE = {"origin", "topic", "partition", "offset"}


@pytest.fixture(scope="module")
def shop(open_shop: OpenShop) -> Iterator[Shop]:
    """A shop with a worker."""
    with open_shop() as shop:
        yield shop


@pytest.fixture(scope="module")
def worker(shop: Shop) -> Worker:
    """The shop's worker, whose tables are where Faust's `--datadir` says."""
    return shop.start_worker(program=(*FAUST, "--datadir", str(shop.folder / "elsewhere"))).ready()


@pytest.fixture(scope="module")
def seeded(shop: Shop, worker: Worker) -> Shop:
    """The shop after the three seeding commands, each started in another way."""
    for program, command in (
        (FAUST, ["seed-products"]),
        (MODULE, ["seed-customers", "--count", "7", "--seed", "1"]),
        (CONSOLE, ["seed-purchases", "--count", "30", "--rate", "0"]),
    ):
        done = shop.run(*command, program=program)
        assert done.status == 0, done
        assert "in Kafka, topic" in done.stdout
        shop.drain()
    return shop


def test_the_seeds_are_stored_and_counted(seeded: Shop, worker: Worker) -> None:
    """There are 13 products, and as many customers and purchases as asked for, at the products' prices."""
    counts = {kind: seeded.db[kind].count_documents({}) for kind in ("products", "customers", "purchases")}
    assert counts == {"products": 13, "customers": 7, "purchases": 30}
    becomes(lambda: worker.counts()["purchases"], 30)
    prices = {product["_id"]: product["price"] for product in seeded.db.products.find()}
    assert all(bought["price"] == prices[bought["product_id"]] for bought in seeded.db.purchases.find())
    assert all(bought["source"]["origin"] == "kafka" for bought in seeded.db.purchases.find())


def test_fausts_own_options_keep_working(seeded: Shop, worker: Worker) -> None:
    """`--datadir`, `-l info` and `--web-port` work for the worker, and `--json` before a command."""
    assert list((seeded.folder / "elsewhere").rglob("purchase_counts-*.db"))
    assert list(seeded.data.glob("worker-*")) == []
    assert "[INFO]" in worker.output
    listed = seeded.run("list-products", program=(*FAUST, "--json"))
    assert len(listed.json()) == 13


def test_create_topics_makes_all_that_a_worker_makes(open_shop: OpenShop) -> None:
    """So the workers' Kafka user needs no right to create topics. A second run changes nothing."""
    with open_shop() as shop:
        for _ in range(2):
            done = shop.run("create-topics")
            assert (done.status, done.stderr) == (0, "")
            assert done.stdout.endswith("topics are there.\n")
        made = shop.describe_topics()
        shop.start_worker().ready()
        assert shop.describe_topics() == made


def test_an_output_that_can_not_take_polish_letters_is_no_error(seeded: Shop) -> None:
    """In an old locale other characters replace the letters, and the list is complete."""
    done = seeded.run("list-products", program=("env", "PYTHONUTF8=0", "PYTHONIOENCODING=ascii", *FAUST))
    assert (done.status, len(done.stdout.splitlines()), done.stderr) == (0, 14, "")


def test_the_same_seed_gives_the_same_customers(seeded: Shop) -> None:
    """A user can repeat with `--seed` what they saw."""
    before = seeded.db.customers.distinct("_id")
    assert seeded.run("seed-customers", "--count", "7", "--seed", "1").status == 0
    seeded.drain()
    assert seeded.db.customers.distinct("_id") == before


def test_products_seeded_again_are_the_same_with_new_prices(seeded: Shop) -> None:
    """Purchases keep the price at which they were made."""
    before = {product["_id"]: product for product in seeded.db.products.find()}
    bought = {one["_id"]: one["price"] for one in seeded.db.purchases.find()}
    assert seeded.run("seed-products").status == 0
    seeded.drain()
    after = {product["_id"]: product for product in seeded.db.products.find()}
    assert set(after) == set(before)
    assert any(after[name]["price"] != before[name]["price"] for name in after)
    assert all(after[name]["updated_at"] > before[name]["updated_at"] for name in after)
    assert {one["_id"]: one["price"] for one in seeded.db.purchases.find()} == bought


def test_products_are_listed(seeded: Shop) -> None:
    """Text has a header and a line for each product with the price in zł; JSON has the contract's fields."""
    for_people, as_json = seeded.run_all([["list-products"], ["list-products", "--json"]])
    assert for_people.status == 0
    assert len(for_people.stdout.splitlines()) == 14
    assert for_people.stdout.count("\N{NO-BREAK SPACE}zł") == 13
    for product in as_json.json():
        fields = {"product_id", "name", "type", "price", "updated_at", "stock", "stock_limit", "left", "source"}
        assert set(product) == fields
        assert set(product["source"]) == SOURCE
        assert product["name"] in for_people.stdout


def test_customers_are_listed_with_what_they_bought(seeded: Shop) -> None:
    """Text has Polish letters; JSON has the contract's fields of customers and purchases."""
    for_people, as_json, limited = seeded.run_all(
        [["list-customers", "--purchases"], ["list-customers", "--json"], ["list-customers", "--limit", "2", "--json"]]
    )
    assert for_people.status == 0
    assert set(for_people.stdout) & set("ąćęłńóśźż")
    customers = as_json.json()
    assert limited.json() == customers[:2]
    assert sum(len(customer["purchases"]) for customer in customers) == 30
    for customer in customers:
        assert set(customer) == {
            *("customer_id", "first_name", "last_name", "address", "city", "registered_at", "source", "purchases")
        }
        assert f"{customer['first_name']} {customer['last_name']}" in for_people.stdout
        for bought in customer["purchases"]:
            assert bought["customer_id"] == customer["customer_id"]
            assert bought["value"] == bought["price"] * bought["quantity"]
            assert {"purchase_id", "product_id", "purchased_at"} <= set(bought)
            assert set(bought["source"]) == SOURCE


def test_the_newest_records_of_a_topic(seeded: Shop) -> None:
    """`tail` shows the newest records over all partitions, the newest last, also of compacted and empty topics."""
    for_people, as_json, activity, empty, wrong = seeded.run_all(
        [
            ["tail", "purchases", "--limit", "4"],
            ["tail", "purchases", "--limit", "4", "--json"],
            ["tail", "customer-activity", "--limit", "100", "--json"],
            ["tail", "retries"],
            ["tail", "nothing"],
        ]
    )
    newest = as_json.json()
    assert len(newest) == 4
    assert [record["time"] for record in newest] == sorted(record["time"] for record in newest)
    for record, line in zip(newest, for_people.stdout.splitlines(), strict=True):
        assert line.startswith(f"{record['partition']}:{record['offset']}  ")
        assert record["key"] == record["value"]["customer_id"]
        stored = seeded.db.purchases.find_one({"_id": record["value"]["purchase_id"]})
        assert stored is not None
        assert stored["source"]["offset"] == record["offset"]
    counts = {record["key"]: record["value"]["purchases"] for record in activity.json()}
    assert sum(counts.values()) == 30
    assert (empty.status, empty.stdout) == (0, "Records: none yet.\n")
    assert wrong.status == 2
    assert "'nothing' is not one of 'products', 'customers', 'purchases'" in wrong.stderr


def test_listings_of_an_empty_shop(open_shop: OpenShop) -> None:
    """A listing without entries succeeds."""
    with open_shop() as shop:
        as_json, for_people = shop.run_all([["list-customers", "--json"], ["list-products"]])
        assert as_json.json() == []
        assert (for_people.status, len(for_people.stdout.splitlines())) == (0, 1)


@pytest.mark.slow
def test_direct_purchases_are_not_counted_and_verify_knows(seeded: Shop, worker: Worker) -> None:
    """Purchases of `--direct` never were in Kafka. `verify` does not take them for a difference."""
    seeded.drain()
    before, ends = worker.counts(), seeded.ends()
    try:
        assert seeded.run("seed-purchases", "--count", "5", "--rate", "0", "--direct").status == 0
        assert seeded.db.purchases.count_documents({"source": {"origin": "direct"}}) == 5
        assert seeded.run("verify").status == 0
        assert worker.counts() == before
        assert seeded.ends()[seeded.topic("purchases")] == ends[seeded.topic("purchases")]
    finally:
        seeded.db.purchases.delete_many({"source.origin": "direct"})


@pytest.mark.slow
def test_direct_seeds_go_past_kafka_and_the_tables(open_shop: OpenShop) -> None:
    """`--direct` writes only to MongoDB, and no record is in any topic."""
    with open_shop() as shop:
        for command in (
            ["seed-products"],
            ["seed-customers", "--count", "3"],
            ["seed-purchases", "--count", "5", "--rate", "0"],
        ):
            done = shop.run(*command, "--direct")
            assert done.status == 0, done
            assert "in MongoDB" in done.stdout
        for kind, number in (("products", 13), ("customers", 3), ("purchases", 5)):
            documents = list(shop.db[kind].find())
            assert len(documents) == number
            assert all(document["source"] == {"origin": "direct"} for document in documents)
        assert all(one["value"] == one["quantity"] * one["price"] for one in shop.db.purchases.find())
        assert sum(shop.ends().values()) == 0
        assert len(shop.run("list-customers", "--json").json()) == 3


@pytest.mark.slow
def test_verify_finds_what_was_changed_by_hand(seeded: Shop, worker: Worker) -> None:
    """A deleted, a changed and an added purchase each give status 1 and the customer's name."""
    assert set(seeded.agrees()) == {"status", "kafka", "mongodb", "tables", "workers", "deep", "checks"}
    purchases = seeded.db.purchases
    deleted, changed = (purchases.find_one({"customer_id": name}) for name in purchases.distinct("customer_id")[:2])
    purchases.delete_one({"_id": deleted["_id"]})
    purchases.update_one({"_id": changed["_id"]}, {"$inc": {"value": 1}})
    purchases.insert_one({**changed, "_id": "extra", "customer_id": "stranger"})
    for_people, as_json = seeded.run_all([["verify"], ["verify", "--json"]])
    assert for_people.status == as_json.status == 1
    for name in (deleted["customer_id"], changed["customer_id"], "stranger"):
        assert name in as_json.stdout
    purchases.delete_one({"_id": "extra"})
    for document in (deleted, changed):
        purchases.replace_one({"_id": document["_id"]}, document, upsert=True)
    seeded.agrees()


@pytest.mark.parametrize("setting", ["broker", "mongodb_uri"])
def test_verify_can_not_tell_without_servers(seeded: Shop, setting: str) -> None:
    """If a server is away, `verify` ends with status 2, which is no difference."""
    nowhere = {
        "broker": f"kafka://127.0.0.1:{free_port()}",
        "mongodb_uri": f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=500",
    }
    found = seeded.run("verify", **{setting: nowhere[setting]})
    assert found.status == 2, found
    assert len(found.errors) == 1


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["seed-customers", "--count", "0"], "--count"),
        (["seed-purchases", "--rate", "-1"], "--rate"),
        (["list-customers", "--limit", "-1"], "--limit"),
        (["seed-products", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_wrong_option_is_named(seeded: Shop, command: Sequence[str], named: str) -> None:
    """A wrong option ends with status 2 and its name on stderr."""
    done = seeded.run(*command)
    assert done.status == 2
    assert named in done.errors[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [FAUST, MODULE])
def test_a_bad_setting_is_named_in_one_line(seeded: Shop, program: Sequence[str]) -> None:
    """A wrong setting ends with status 2 and its name, however the program is started."""
    done = seeded.run("list-products", program=program, topics_partitions="many")
    assert (done.status, len(done.errors)) == (2, 1)
    assert "topics.partitions" in done.errors[0]


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("nonsense", "1", "SHOPFLOW_NONSENSE"),
        ("topics_partitions", "0", "topics.partitions"),
        ("broker", "localhost", "broker"),
        ("mongodb_uri", "postgres://x", "mongodb.uri"),
    ],
)
def test_a_bad_variable_is_named_in_one_line(seeded: Shop, setting: str, value: str, named: str) -> None:
    """A variable that is unknown, out of range or malformed ends the command with its name."""
    done = seeded.run("list-products", **{setting: value})
    assert (done.status, len(done.errors)) == (2, 1)
    assert named in done.errors[0]


def test_a_wrong_type_in_the_configuration_file_is_named(seeded: Shop) -> None:
    """`config.yaml` in the working directory is read and checked without being named."""
    path = seeded.folder / "config.yaml"
    path.write_text("web:\n  port: many\n")
    try:
        done = seeded.run("list-products")
    finally:
        path.unlink()
    assert (done.status, len(done.errors)) == (2, 1)
    assert "web.port" in done.errors[0]


def test_a_bad_configuration_file_is_named(seeded: Shop, tmp_path: Path) -> None:
    """The error has the file and the unknown field."""
    path = tmp_path / "shop.yaml"
    path.write_text("topics:\n  partitons: 4\n")
    done = seeded.run("list-products", config=path)
    assert (done.status, len(done.errors)) == (2, 1)
    assert "topics.partitons" in done.errors[0]
    assert str(path) in done.errors[0]


def test_commands_without_servers_say_what_to_start(open_embedded_shop: OpenShop) -> None:
    """If the embedded servers are configured and don't run, the error names the command that starts them."""
    with open_embedded_shop() as shop:
        for done in shop.run_all([["seed-products"], ["list-products"], ["seed-purchases"], ["send", "x", "y"]]):
            assert (done.status, len(done.errors)) == (2, 1), done
            assert "faust -A shopflow servers" in done.errors[0]


@pytest.mark.parametrize("setting", ["broker", "mongodb_uri"])
def test_a_server_that_is_away_is_named_in_one_line(seeded: Shop, setting: str) -> None:
    """Every command that needs the server ends with one line, and none hangs."""
    nowhere = {
        "broker": f"kafka://127.0.0.1:{free_port()}",
        "mongodb_uri": f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=500",
    }
    commands = {
        "broker": [["seed-products"], ["seed-customers"], ["seed-purchases"]],
        "mongodb_uri": [["list-products"], ["list-customers"], ["seed-purchases"], ["seed-products", "--direct"]],
    }
    named = {"broker": "Kafka", "mongodb_uri": "MongoDB"}[setting]
    for done in seeded.run_all(commands[setting], **{setting: nowhere[setting]}):
        assert done.status == 1, done
        assert len(done.errors) == 1, done
        assert named in done.errors[0]


def test_a_password_is_never_shown(seeded: Shop) -> None:
    """No error has the password of `mongodb.uri`: of a server that is away or refuses it, or of a malformed URI."""
    for uri in (
        seeded.servers.mongodb.replace("//", "//shop:geheim@"),  # type: ignore[union-attr]
        f"mongodb://shop:geheim@127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=500",
        "mongodb://shop:geh@eim@127.0.0.1/",
        "mongodb://shop:geheim@127.0.0.1:many/",
        "postgres://shop:geheim@127.0.0.1/",
    ):
        done = seeded.run("list-products", mongodb_uri=uri)
        assert done.status in {1, 2}
        assert len(done.errors) == 1
        assert "eim" not in done.stdout + done.stderr


def test_purchases_need_customers_and_products(open_shop: OpenShop) -> None:
    """The error of `seed-purchases` names the command to run first."""
    with open_shop() as shop:
        done = shop.run("seed-purchases")
        assert (done.status, len(done.errors)) == (2, 1)
        assert "seed-customers" in done.errors[0]


def test_a_worker_whose_port_is_taken_says_so(shop: Shop, worker: Worker) -> None:
    """The worker ends with one line before it joins the consumer group."""
    done = shop.run("worker", "--web-port", str(worker.port))
    assert done.status == 2
    assert len(done.errors) == 1
    assert "web.port" in done.errors[0]
    assert str(worker.port) in done.errors[0]


def test_what_is_in_mongodb_is_exported(seeded: Shop) -> None:
    """Each format has the same documents, by id. A file is announced; an export to stdout has nothing else."""
    stored = list(seeded.db.purchases.find().sort("_id", 1))
    lines, table, parquet = seeded.run_all(
        [
            ["export", "purchases"],
            ["export", "purchases", "--format", "csv", "--output", "-"],
            ["export", "purchases", "--format", "parquet", "--output", "out.parquet"],
        ]
    )
    exported = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [one["purchase_id"] for one in exported] == [one["_id"] for one in stored]
    assert [one["source"] for one in exported] == [one["source"] for one in stored]
    rows = list(csv.DictReader(io.StringIO(table.stdout, newline="")))
    assert [int(row["value"]) for row in rows] == [one["value"] for one in stored]
    assert [int(row["source_offset"]) for row in rows] == [one["source"]["offset"] for one in stored]
    assert parquet.stdout == f"{len(stored)} purchases in out.parquet.\n", parquet
    found = pytest.importorskip("pyarrow.parquet").read_table(seeded.folder / "out.parquet").to_pylist()
    assert [row["purchased_at"] for row in found] == [one["purchased_at"] for one in stored]
    for kind, count in (("products", 13), ("customers", 7)):
        assert len(seeded.run("export", kind).stdout.splitlines()) == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sales"], "'sales' is not one of"),
        (["products", "--format", "xml"], "'xml' is not one of"),
        (["products", "--format", "parquet"], "--output: parquet needs a file"),
        (["products", "--output", "missing/out"], "--output: missing/out: No such file or directory"),
    ],
)
def test_an_export_that_can_not_be_is_refused(seeded: Shop, arguments: list[str], said: str) -> None:
    """A wrong kind, format or file ends with one line, and stdout is empty."""
    done = seeded.run("export", *arguments)
    assert (done.status, done.stdout) == (2, "")
    assert said in done.errors[-1]


def test_an_export_without_mongodb_is_one_line(seeded: Shop) -> None:
    """The failed export leaves no file, also no partial one."""
    done = seeded.run("export", "products", "--output", "none", mongodb_uri=f"mongodb://127.0.0.1:{free_port()}")
    assert (done.status, len(done.errors)) == (1, 1), done
    assert not (seeded.folder / "none").exists()
    assert not (seeded.folder / ".none.shopflow-part").exists()
