"""The store's rules, and its errors while the server is away: without a server."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Coroutine
from datetime import timedelta, timezone
from types import SimpleNamespace
from typing import Any

import bson
import pytest
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st
from pymongo._asyncio_lock import Condition, Lock
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure

from faust_batches import Outage
from faust_batches.testing import FakeBatch, FakeRecord
from shopflow.errors import PartitionLost, Refused, Slow, Unavailable
from shopflow.shop.documents import purchase_document
from shopflow.store import MongoStore
from shopflow.store.connection import Patient
from shopflow.store.errors import (
    MAX_DOCUMENT_BYTES,
    MAX_MESSAGE_BYTES,
    documents_errors,
    in_messages,
    translated,
    unencodable,
)
from shopflow.store.purchases import most_bytes
from shopflow.store.rules import duplicates, newest, no_price_document, outdoes, price_document, removals, replacement
from shopflow.store.types import Deletion, Document, PriceHistory, milliseconds
from tests.support.documents import DIRECT, MINUTE, NOON, customer, kafka, product, purchase
from tests.support.fakes import FakeStore

# Prices


@pytest.mark.parametrize(
    ("minutes", "price"), [(-9, 1), (0, 1), (0.99, 1), (1, None), (1.5, None), (2, 3), (2.5, 3), (3, 4), (999, 4)]
)
def test_the_price_in_force(minutes: float, price: int | None) -> None:
    """The first price also counts before its time. There is no price while the product is deleted."""
    history = PriceHistory(((NOON, 1), (NOON + MINUTE, None), (NOON + 2 * MINUTE, 3), (NOON + 3 * MINUTE, 4)))
    assert history.at(NOON + minutes * MINUTE) == price


def test_a_history_that_begins_with_a_deletion() -> None:
    """Before the deletion the first known price counts. A history without any price gives none."""
    history = PriceHistory(((NOON, None), (NOON + MINUTE, 2)))
    assert [history.at(NOON + minutes * MINUTE) for minutes in (-1, 0, 1)] == [2, None, 2]
    assert PriceHistory(((NOON, None),)).at(NOON - MINUTE) is None
    assert PriceHistory(()).at(NOON) is None


def test_a_price_of_nothing_is_a_price() -> None:
    """A price of 0 grosze is not a missing price."""
    assert PriceHistory(((NOON, 0), (NOON + MINUTE, 5))).at(NOON - MINUTE) == 0


def test_a_price_counts_from_the_start_of_its_millisecond() -> None:
    """MongoDB cuts the price's time to the millisecond. The purchase's microseconds and time zone change nothing."""
    history = PriceHistory(((NOON - MINUTE, 1), (NOON, 2)))
    assert history.at(NOON + timedelta(microseconds=300)) == 2
    assert history.at(NOON - timedelta(microseconds=1)) == 1
    assert history.at(NOON.astimezone(timezone(timedelta(hours=2)))) == 2


def test_prices_of_one_time_are_one_document_in_any_time_zone() -> None:
    """The `_id` is made of the product and the millisecond, and differs for other products and milliseconds."""
    warsaw = NOON.astimezone(timezone(timedelta(hours=2)))
    same = [NOON, warsaw, NOON + timedelta(microseconds=999)]
    assert len({price_document(product(5, at))["_id"] for at in same}) == 1
    assert price_document(product(5, warsaw))["since"].utcoffset() == timedelta(0)
    others = [product(5, NOON + timedelta(milliseconds=1)), product(5, name="milk@"), product(5, name="")]
    assert len({price_document(one)["_id"] for one in [product(5), *others]}) == 4


def test_the_end_of_the_prices_replaces_a_price_of_the_same_time() -> None:
    """The offset decides whether the price or the deletion of the same time counts."""
    end = no_price_document(Deletion("milk", NOON, kafka(2)))
    price = price_document(product(5))
    assert end == {**price, "price": None, "source": kafka(2)}
    assert outdoes(end, price, "since")
    assert not outdoes(price, end, "since")


# Which is newer


@pytest.mark.parametrize(
    ("microseconds", "kept"), [(0, 0), (1, 0), (999, 0), (1000, 1000), (123456, 123000), (999999, 999000)]
)
def test_milliseconds_are_cut_not_rounded(microseconds: int, kept: int) -> None:
    """The driver cuts too, also for times before 1970."""
    for time in (NOON, NOON.replace(year=1931)):
        assert milliseconds(time.replace(microsecond=microseconds)) == time.replace(microsecond=kept)


@pytest.mark.parametrize(
    ("new", "stored", "wins"),
    [
        pytest.param(product(5, NOON + MINUTE, kafka(1)), product(5, NOON, kafka(9)), True, id="newer"),
        pytest.param(product(5, NOON, kafka(9)), product(5, NOON + MINUTE, kafka(1)), False, id="older"),
        pytest.param(product(5, NOON, kafka(2)), product(5, NOON, kafka(1)), True, id="later in the partition"),
        pytest.param(product(5, NOON, kafka(1)), product(5, NOON, kafka(2)), False, id="earlier in the partition"),
        pytest.param(product(5, NOON, kafka(1)), product(5, NOON, kafka(1)), True, id="the same again"),
        pytest.param(product(5, NOON, kafka(1)), product(5, NOON, kafka(2, partition=1)), True, id="another partition"),
        pytest.param(product(5, NOON, kafka(1)), product(5, NOON, kafka(2, topic="u")), True, id="another topic"),
        pytest.param(product(5, NOON, DIRECT), product(5, NOON, kafka(2)), True, id="direct over kafka"),
        pytest.param(product(5, NOON, kafka(1)), product(5, NOON, DIRECT), True, id="kafka over direct"),
        pytest.param(product(5, NOON - MINUTE, DIRECT), product(5, NOON, kafka(1)), False, id="older, direct"),
        pytest.param(product(5), {"_id": "milk"}, True, id="another program's, bare"),
        pytest.param(
            product(5), {"_id": "milk", "updated_at": "1999-01-01"}, True, id="another program's, text as time"
        ),
        pytest.param(product(5), {"_id": "milk", "updated_at": NOON}, True, id="another program's, no source"),
        pytest.param(
            product(5), {"_id": "milk", "updated_at": NOON, "source": "x"}, True, id="another program's source"
        ),
        pytest.param(
            product(5, NOON + timedelta(microseconds=1), kafka(1)),
            product(5, NOON + timedelta(microseconds=999), kafka(0)),
            True,
            id="one millisecond: the offset decides",
        ),
    ],
)
def test_which_of_two_wins(new: Document, stored: Document, wins: bool) -> None:
    """The contract's rule: the later time wins; at equal times of one partition the larger offset."""
    assert outdoes(new, stored, "updated_at") is wins


def test_the_newest_of_a_partition_does_not_depend_on_the_order() -> None:
    """The parts of a batch may come in any order."""
    times = [NOON, NOON, NOON + MINUTE, NOON + MINUTE]
    documents = [product(5, at, kafka(offset)) for offset, at in enumerate(times)]
    for order in itertools.permutations(range(4)):
        assert newest(documents, order, "updated_at") == [3]


def test_the_newest_of_each_among_those_that_are_asked_for() -> None:
    """Refused documents are not asked for, so the next newest of the id is found."""
    documents = [product(5, NOON, kafka(1)), product(5, NOON, kafka(2), "tea"), product(5, NOON + MINUTE, kafka(3))]
    assert newest(documents, [0, 1, 2], "updated_at") == [2, 1]
    assert newest(documents, [0, 1], "updated_at") == [0, 1]
    assert newest(documents, [], "updated_at") == []


# What is sent


def stages(update: Any) -> list[Any]:
    """The stages of an update by pipeline."""
    found: list[Any] = update["u"]
    return found


def test_a_replacement_finds_its_document_by_id_and_never_reads_it_as_an_expression() -> None:
    """Names and ids come from outside: `$price` in one is text. The filter has only the `_id`."""
    document = {**product(5, name="$set"), "name": "$price", "source": kafka(1, topic="$t")}
    update = replacement(document, "updated_at")
    assert update["q"] == {"_id": "$set"}
    assert update["upsert"] is True
    (stage,) = stages(update)
    condition, kept, put = stage["$replaceWith"]["$cond"]
    assert kept == "$$ROOT"
    assert put == {"$literal": document}
    assert {"$literal": "$t"} in condition["$or"][1]["$and"][1]["$and"][0]["$eq"]


def test_a_replacement_without_an_offset_compares_the_time_only() -> None:
    """A direct write has no offset."""
    (stage,) = stages(replacement(product(5, NOON, DIRECT), "updated_at"))
    assert stage["$replaceWith"]["$cond"][0] == {"$gt": ["$updated_at", NOON]}


def test_removals_spare_only_later_records_of_the_partition() -> None:
    """Each of the three operations covers one case. A direct deletion removes any document of the id."""
    operations = removals(Deletion("milk", NOON, kafka(7, partition=3)))
    assert [operation["q"] for operation in operations] == [
        {"_id": "milk", "source.topic": {"$ne": "t"}},
        {"_id": "milk", "source.partition": {"$ne": 3}},
        {"_id": "milk", "source.offset": {"$not": {"$gt": 7}}},
    ]
    assert [operation["q"] for operation in removals(Deletion("milk", NOON, DIRECT))] == [{"_id": "milk"}]


# Duplicates


def purchases(*names: str) -> list[Document]:
    """Purchases of one partition, in their order."""
    return [purchase(name, kafka(offset)) for offset, name in enumerate(names)]


def stored(**sources: Document) -> dict[str, Document]:
    """The stored documents, with their sources."""
    return {name: {"_id": name, "source": source} for name, source in sources.items()}


def test_a_document_stored_by_an_earlier_attempt_is_no_duplicate() -> None:
    """The stored document has the `source` of the event that is delivered again."""
    assert duplicates(purchases("a", "b"), [0, 1], {}, stored(a=kafka(0), b=kafka(1))) == frozenset()


def test_a_document_stored_by_another_event_is_a_duplicate() -> None:
    """The stored document is from another offset, a direct write or another program."""
    found = {**stored(a=kafka(9), b=DIRECT, d=kafka(3)), "c": {"_id": "c"}}
    assert duplicates(purchases("a", "b", "c", "d"), [0, 1, 2, 3], {}, found) == {0, 1, 2}


def test_of_one_id_in_a_call_at_most_one_is_stored() -> None:
    """If an earlier call stored the id, all purchases of that id are duplicates; else all but one are."""
    assert duplicates(purchases("a", "a", "a"), [1, 2], {}, stored(a=kafka(0))) == {1, 2}
    assert duplicates(purchases("a", "a"), [0, 1], {}, stored(a=kafka(0))) == {1}
    assert duplicates(purchases("a", "a"), [0, 1], {}, stored(a=kafka(1))) == {0}
    twice = [purchases("a")[0]] * 2
    assert duplicates(twice, [0, 1], {}, stored(a=kafka(0))) == {1}


def test_one_that_is_refused_takes_no_id() -> None:
    """The next document of the same id is stored, and is no duplicate of the refused one."""
    assert duplicates(purchases("a", "a"), [1], {0: "too large"}, stored(a=kafka(1))) == frozenset()


# What MongoDB can't take


@pytest.mark.parametrize(
    "value",
    [1 << 63, -(1 << 63) - 1, "\ud800", object(), {"a\x00b": 1}, {1: 2}, "x" * MAX_DOCUMENT_BYTES],
    ids=["too large", "too small", "surrogate", "object", "NUL in a name", "number as name", "16 MB"],
)
def test_a_document_that_cannot_be_encoded_is_described_in_a_short_line(value: object) -> None:
    """The dead letter's header has this line."""
    documents = [product(5), {**product(5), "name": value}, product(5)]
    ((index, reason),) = unencodable(documents, range(3)).items()
    assert index == 1
    assert 0 < len(reason) <= 300
    assert "\n" not in reason
    assert unencodable(documents, [0, 2]) == {}


@pytest.mark.parametrize("value", [(1 << 63) - 1, "$set", "a\x00b", "🥛", None, {"$gt": ""}, {"a.b": 1}])
def test_a_document_that_can_be_encoded_is_not_refused(value: object) -> None:
    """Text that looks like an operator, and NUL in a value, can be stored."""
    assert unencodable([{**product(5), "name": value}], [0]) == {}


# The URI

BROKEN = """
mongodb:/u:s3cret@h
mongo://u:s3cret@h
u:s3cret@h
 mongodb://u:s3cret@h
mongodb://u:s3cret
mongodb://u:s3cret/db
mongodb://u:s3cret:27017
mongodb://u:s3cret,host:1
mongodb://host:1,u:s3cret
mongodb://u:s3cret?x=1
mongodb+srv://u:s3cret
mongodb://u:s3cret@
mongodb://u:s3cret@/
mongodb://:s3cret@h
mongodb://u:s3cret@h:port
mongodb://u:s3cret@h:99999
mongodb://u:s3cret@h:0
mongodb://u:s3cret@[::1
mongodb://u:s3cret@::1
mongodb://u:s3cret@a,,b
mongodb://u:s3cret@%2Ftmp%2Fnope
mongodb://u:p@s3cret@h
mongodb://u:p:s3cret@h
mongodb://u:p/s3cret@h
mongodb://u:p?s3cret@h
mongodb://u:p?s3cret=1@h
mongodb://u:p#s3cret@h
mongodb://u:p%s3cret@h
mongodb://u:[s3cret]@h
mongodb://u:s3cret%@h
mongodb://u:s3cret%2@h
mongodb://u:s3cret@h/?nope=1
mongodb://u:s3cret@h?nope=1
mongodb://u:s3cret@h/db?w
mongodb://u:s3cret@h/?w=-1
mongodb://u:s3cret@h/?a=1&b=2;c=3
mongodb://u:s3cret@h/?tls=maybe
mongodb://u:s3cret@h/?tls=true&ssl=false
mongodb://u:s3cret@h/?tlsCAFile=/no/such/file
mongodb://u:s3cret@h/?socketTimeoutMS=x
mongodb://u:s3cret@h/?serverSelectionTimeoutMS=-1
mongodb://u:s3cret@h/?readPreference=x
mongodb://u:s3cret@h/?compressors=x
mongodb://u:s3cret@h/?datetime_conversion=x
mongodb://u:s3cret@h/?loadBalanced=true&replicaSet=x
mongodb://u:s3cret@a,b/?directConnection=true
mongodb://u:s3cret@h/?authMechanism=nope
mongodb://u:s3cret@h/?authMechanism=MONGODB-X509
mongodb://u:s3cret@h/?authMechanism=MONGODB-OIDC
mongodb://u:s3cret@h/?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN
mongodb://h/?authMechanismProperties=s3cret
mongodb://h/?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:s3cret,x
mongodb://h/?tls=false&tlsCertificateKeyFilePassword=s3cret
mongodb://h/?tls=true&tlsCertificateKeyFile=/no/such/file&tlsCertificateKeyFilePassword=s3cret
mongodb://h/?password=s3cret
mongodb://h/?w=1&PASSWORD=s3cret
mongodb://h/?proxyPassword=s3cret
mongodb+srv://u:s3cret@a.b.c:27017
mongodb+srv://u:s3cret@a.b.c,d.e.f
mongodb://
embedded
"""


@pytest.mark.parametrize(
    "uri", [*BROKEN.strip("\n").split("\n"), "", "mongodb://u:s3\ncret@h:x", "mongodb://u:s3cret@h:x\n"]
)
def test_a_broken_uri_is_refused_without_its_secrets(uri: str) -> None:
    """The message goes to a terminal or a log. It is one line, names the setting and has no password."""
    with pytest.raises(Refused, match=r"^mongodb\.uri: ") as refused:
        MongoStore("shop").connect(uri)
    told = str(refused.value) + repr(refused.value)
    assert "s3cret" not in told
    assert "cret@" not in told
    assert "\n" not in str(refused.value)
    error = refused.value
    assert error.__context__ is None or error.__suppress_context__, "a traceback would show the cause"


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://127.0.0.1:27117/?directConnection=true",
        "mongodb://user:p%40ss%3Aword@a:1,b:2/?replicaSet=r&w=1",
        "mongodb://u:s3cret@[::1]:27017/db?tls=true&tlsAllowInvalidCertificates=true",
        "mongodb://u@h/?authMechanism=MONGODB-X509&tls=true",
        "mongodb://%2Ftmp%2Fmongodb.sock",
        "mongodb+srv://u:s3cret@cluster.example.net/?retryWrites=true",
        "mongodb://h/?SERVERSELECTIONTIMEOUTMS=100&appName=mine",
    ],
)
def test_a_good_uri_is_taken_without_a_connection(uri: str) -> None:
    """Any MongoDB URI is accepted, also with authentication and TLS."""
    MongoStore("shop").connect(uri)


def test_the_uri_comes_before_the_first_call() -> None:
    """A request before `connect` is a fault of the program, not of the server."""
    with pytest.raises(RuntimeError, match="connect"):
        asyncio.run(MongoStore("shop").ping())


@pytest.mark.parametrize("letter", ["a", "ł", "牛", "🐄", "\0"])
@pytest.mark.parametrize("length", [1, 500])
def test_the_estimated_size_of_purchases_is_never_too_small(letter: str, length: int) -> None:
    """A server closes the connection at a message that is too large, and the batch would be sent again for ever."""
    record: Any = SimpleNamespace(topic="t" * 249, partition=2**31 - 1, offset=2**63 - 1)
    name = letter * length
    event: Any = SimpleNamespace(
        purchase_id=name, customer_id=name, product_id=name, quantity=2**20, price=2**40, purchased_at=NOON
    )
    documents = [purchase_document(record, event)] * 3
    assert sum(len(bson.encode(document)) for document in documents) < most_bytes(documents)


def test_a_write_that_no_majority_confirmed_is_tried_again() -> None:
    """An election may roll back the write. A document's error that is the server's fault is retried too."""
    with pytest.raises(Unavailable, match="could not confirm the write: too slow"):
        documents_errors([], {"code": 64, "errmsg": "too slow"})
    with pytest.raises(Unavailable, match="no space"):
        documents_errors([{"index": 0, "code": 14031, "errmsg": "no space"}], None)
    assert documents_errors([{"index": 0, "code": 11000}], None) == [{"index": 0, "code": 11000}]


# A server that is away


def call(store: MongoStore, name: str) -> Coroutine[Any, Any, object]:
    """One of the store's methods, with something to do."""

    async def iterate() -> object:
        return [one async for one in getattr(store, name)(*(["purchases"] if name == "sources" else []))]

    if name in ("customers", "counts", "sources"):
        return iterate()
    arguments: dict[str, list[object]] = {
        "insert_purchases": [[purchase("p")]],
        "upsert_products": [[product(5)]],
        "upsert_customers": [[customer("c")]],
        "delete_products": [[Deletion("milk", NOON, kafka(1))]],
        "delete_customers": [[Deletion("c", NOON, kafka(1))]],
        "price_history": [{"milk"}],
        "purchase_prices": [{"p"}],
        "customer_ids": [5],
        "registered": [{"c"}],
        "documents": ["purchases", {"p"}],
    }
    made: Coroutine[Any, Any, object] = getattr(store, name)(*arguments.get(name, []))
    return made


METHODS = [
    *("prepare", "ping", "insert_purchases", "upsert_products", "upsert_customers", "delete_products"),
    *("delete_customers", "price_history", "purchase_prices", "products", "customer_ids"),
    *("customers", "totals", "counts", "registered", "documents", "sources", "sizes"),
]


def test_every_method_raises_unavailable_while_the_server_is_away() -> None:
    """The message is one short line that names the server and has no password."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        port = unused.getsockname()[1]

        async def all_at_once() -> list[object]:
            store = MongoStore("shop")
            store.connect(f"mongodb://u:s3cret@127.0.0.1:{port}/?serverSelectionTimeoutMS=200")
            try:
                calls = (asyncio.wait_for(call(store, name), 10) for name in METHODS)
                return await asyncio.gather(*calls, return_exceptions=True)
            finally:
                await store.close()

        answers = dict(zip(METHODS, asyncio.run(all_at_once()), strict=True))
    for name, answer in answers.items():
        assert isinstance(answer, Unavailable), (name, answer)
        assert str(answer).startswith("MongoDB: 127.0.0.1:"), name
        assert "s3cret" not in str(answer)
        assert "\n" not in str(answer)
        assert len(str(answer)) < 330


def test_a_refused_login_is_described_without_the_servers_message() -> None:
    """The message says what to check."""
    with pytest.raises(Unavailable, match="authentication failed: check the user and the password"), translated():
        raise OperationFailure("bad auth : s3cret", 18)


def test_a_lost_connection_in_a_write_is_unavailable() -> None:
    """The write may have happened or not. The caller repeats it."""
    with pytest.raises(Unavailable, match="MongoDB: gone"), translated():
        raise AutoReconnect("gone")


def test_a_request_that_the_server_ended_is_slow_not_away() -> None:
    """The batch is repeated in smaller parts, and nobody is told of an outage."""
    with pytest.raises(Slow), translated():
        raise ExecutionTimeout("operation exceeded time limit", 50)


@given(st.lists(st.integers(0, 2_000_000), max_size=200), st.integers(1, 40))
def test_a_write_is_split_into_messages_that_every_server_takes(sizes: list[int], most: int) -> None:
    """All statements are sent once, in their order, and each run knows the index of its first."""
    statements: list[Document] = [{"n": number, "text": "x" * size} for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("shopflow.store.errors._MOST_STATEMENTS", most)
        found = list(in_messages(statements))
    assert [one for _, some in found for one in some] == statements
    for start, some in found:
        assert list(some) == statements[start : start + len(some)]
        assert len(some) <= most
        assert sum(len(bson.encode(one)) for one in some) <= MAX_MESSAGE_BYTES


def test_an_error_of_the_program_is_not_taken_for_an_outage() -> None:
    """`Unavailable` is retried for ever, so a fault of the program must not become one."""
    for mistake in (KeyError("a mistake"), RuntimeError("a mistake")):
        with pytest.raises(type(mistake)), translated():
            raise mistake


def test_a_fault_of_the_drivers_lock_is_an_outage() -> None:
    """pymongo raises these now and then in an outage, instead of an error of its own: its lock is not held then."""

    async def wait() -> None:
        await Condition().wait()

    for fault in (lambda: Lock().release(), lambda: asyncio.run(wait()), lambda: Condition().notify()):
        with pytest.raises(Unavailable, match="no server was found in time"), translated():
            fault()


def test_documents_of_another_program_are_read() -> None:
    """The driver's defaults raise errors for a time outside of Python's range and for text that is not UTF-8."""

    async def options() -> Any:
        store = MongoStore("shop")
        store.connect("mongodb://127.0.0.1:1/")
        found = store._connected.codec_options
        await store.close()
        return found

    far = DatetimeMS(2**53)
    broken = bson.encode({"at": far, "name": "Zak"}).replace(b"Zak", b"\xb3ak")
    assert bson.decode(broken, asyncio.run(options())) == {"at": far, "name": "\N{REPLACEMENT CHARACTER}ak"}


# A batch's requests


def test_a_batch_asks_until_mongodb_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes are created before the first request that is answered, and only once."""
    monkeypatch.setattr("faust_batches.outage.FIRST_PAUSE_SECONDS", 0.0)
    store, outage = FakeStore(), Outage("MongoDB")
    ask = Patient(store, outage)  # type: ignore[arg-type]
    batch: Any = FakeBatch([FakeRecord(b"k", b"v")])

    async def scenario() -> list[Any]:
        store.away(3)
        return [await ask(batch, lambda: store.purchase_prices({"p1"})) for _ in range(2)]

    assert asyncio.run(scenario()) == [{}, {}]
    assert store.calls == ["prepare", "purchase_prices", "purchase_prices"]
    assert outage.failures == 3
    assert outage.seconds is None


def test_a_request_that_fails_after_the_indexes_are_there_does_not_create_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`prepare` was answered. Only the request is repeated."""
    monkeypatch.setattr("faust_batches.outage.FIRST_PAUSE_SECONDS", 0.0)
    store, failures = FakeStore(), [Unavailable("MongoDB", "away")] * 2
    batch: Any = FakeBatch([FakeRecord(b"k", b"v")])

    async def attempt() -> str:
        if failures:
            raise failures.pop()
        return "answer"

    assert asyncio.run(Patient(store, Outage("MongoDB"))(batch, attempt)) == "answer"  # type: ignore[arg-type]
    assert store.calls == ["prepare"]


def test_a_batch_that_lost_its_partition_asks_no_more() -> None:
    """`PartitionLost` ends the waiting. `Refused` is raised at once."""
    store = FakeStore()
    store.away(9)
    batch: Any = FakeBatch([FakeRecord(b"k", b"v")])

    async def prepare() -> None:
        batch.lost = True
        raise Unavailable("MongoDB", "away")

    store.prepare = prepare  # type: ignore[method-assign]
    with pytest.raises(PartitionLost):
        asyncio.run(Patient(store, Outage("MongoDB"))(batch, lambda: store.purchase_prices({"p1"})))  # type: ignore[arg-type]

    async def refuses() -> None:
        raise Refused("another index")

    store.prepare = refuses  # type: ignore[method-assign]
    batch.lost = False
    with pytest.raises(Refused):
        asyncio.run(Patient(store, Outage("MongoDB"))(batch, lambda: store.purchase_prices({"p1"})))  # type: ignore[arg-type]
    assert store.calls == []
