"""Vouchers in a batch: the order of the steps, redelivery, a crash at each step, a replay."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import date
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaConnectionError
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo.database import Database

from faust_batches import TOTALS_KEY, Outage, once
from faust_batches import outage as outages
from faust_batches.testing import FakeBatch, FakeTable
from shopflow.config.promotions import Rule
from shopflow.errors import Unavailable
from shopflow.shop.announcements import VOUCHERS
from shopflow.shop.counts import new_era_totals
from shopflow.shop.promotions.trial import try_rule
from shopflow.shop.promotions.vouchers import Promotions, VoucherLog, _ProductTypes
from shopflow.shop.promotions.windows import Rules, decode_window
from shopflow.store.connection import Patient
from shopflow.store.types import Document
from tests.conftest import Run
from tests.support import vouchers as oracle
from tests.support.documents import DAY, NOON, kafka, product
from tests.support.events import customer, purchase
from tests.support.fake_shop import FakeShop
from tests.support.fakes import FakeRecord
from tests.support.stores import ObservedStore

SENT = int((NOON + 400 * DAY).timestamp() * 1000)
RULES = (
    {"name": "bread", "kind": "share", "product_types": ["bread"], "percent": 25, "days": 30,
     "voucher": {"product_type": "butter", "percent": 20, "valid_days": 14}},
    {"name": "second", "kind": "nth", "n": 2, "voucher": {"text": "any", "amount": 500}},
    {"name": "welcome", "kind": "city", "cities": ["Łódź"], "voucher": {"text": "any", "amount": 1_000}},
)  # fmt: skip


class DiedError(Exception):
    """Ends the worker in the middle of its work."""


class VoucherShop(FakeShop):
    """A shop with rules, whose worker can be killed at a step. The topic of vouchers and the windows outlive it."""

    def __init__(self, *rules: dict[str, Any]) -> None:
        self.rules = msgspec.convert(rules or RULES, tuple[Rule, ...])
        self.topic: list[FakeRecord] = []
        self.windows = FakeTable()
        self.changelog: dict[bytes, bytes] = {}
        self.dies_at = ""
        super().__init__()
        self.windows.events = self.events
        for name, kind in (("rye", "bread"), ("milk", "dairy")):
            self.store.collections["products"][name] = product(100, name=name, type=kind)

    def restart(self, **options: Any) -> None:
        """Replace the worker by a new one."""
        self.log = VoucherLog("shop.vouchers", self.publish_vouchers, self.read_since)
        mongodb: Any = Patient(self.store, Outage("MongoDB"))  # type: ignore[type-var]
        rules = Rules(self.rules)
        windows: Any = self.windows if rules.about_purchases else None
        promotions = Promotions(rules, mongodb, self.log, windows)
        self.windows._publish = self.publish  # type: ignore[method-assign]
        super().restart(followers=[promotions.follow], registered=promotions.registered, **options)

    async def publish(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        self.die("changelog")
        self.changelog.update(rows)

    async def publish_vouchers(self, topic: str, partition: int, rows: Sequence[tuple[bytes, bytes]]) -> None:
        for number, (key, value) in enumerate(rows):  # in several Kafka batches: some may be there when it fails
            self.die("some" if number else "send")
            self.topic.append(FakeRecord(key, value, len(self.topic), partition, topic))
        self.die("sent")

    async def read_since(self, topic: str, partition: int, since: int, *, of: Any) -> list[Any]:
        self.events.append("read")
        return [of(record) for record in self.topic if record.partition == partition]

    def die(self, where: str) -> None:
        self.events.append(where)
        if self.dies_at == where:
            self.dies_at = ""
            raise DiedError(where)

    def take(self, *sent: dict[str, Any], start: int = 0, kind: str = "purchases") -> None:
        """Handle a batch of these events."""
        self.handle(self.batch(*sent, start=start, kind=kind, timestamp=SENT), kind)

    def stored(self) -> list[str]:
        """The ids of the vouchers in MongoDB."""
        return sorted(self.store.collections["vouchers"])

    def published(self) -> list[str]:
        """The ids of the vouchers in the topic."""
        return sorted(json.loads(record.value or b"")["voucher_id"] for record in self.topic)


def bought(number: int, product: str = "rye", customer: str = "anna", day: int = 0, price: int = 100) -> dict[str, Any]:
    """The purchase of one piece."""
    fields = {"product_id": product, "quantity": 1, "price": price, "purchased_at": NOON + day * DAY}
    return purchase(f"p{number}", customer, **fields)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> VoucherShop:
    """A shop in which nothing waits."""
    monkeypatch.setattr(outages, "FIRST_PAUSE_SECONDS", 0)
    return VoucherShop()


BOTH = ["bread:anna:2026-05-01", "second:anna:2"]


def test_the_order_of_the_steps_is_the_guarantee(shop: VoucherShop) -> None:
    """Counts, document, event, window. Then the batch is finished."""
    shop.take(bought(1))
    counted = ["turn", "table", "changelog"]
    stored = ["vouchers_from", "vouchers_from"]  # of this batch, of later ones
    steps = [
        *counted,
        *stored,
        "read",
        "documents",
        "insert_vouchers",
        "send",
        "sent",
        "table",
        "changelog",
        "finished",
    ]
    assert [event for event in shop.events if event not in {"prepare", "insert_purchases"}] == steps


def test_a_voucher_is_the_same_in_mongodb_and_in_the_topic(shop: VoucherShop) -> None:
    """Both have what the voucher is for, and the event for which it was given."""
    shop.take(bought(1), start=7)
    source = kafka(7, topic="shop.purchases")
    fields = {"rule": "bread", "customer_id": "anna", "product_type": "butter", "percent": 20, "source": source}
    times = {"issued_at": NOON, "valid_until": NOON + 14 * DAY}
    assert shop.store.collections["vouchers"] == {BOTH[0]: {"_id": BOTH[0], **fields, **times}}
    (record,) = shop.topic
    assert (record.key, record.partition) == (b"anna", 0)
    sent = {"issued_at": "2026-05-01T12:00:00Z", "valid_until": "2026-05-15T12:00:00Z"}
    assert json.loads(record.value or b"") == {"voucher_id": BOTH[0], **fields, **sent}
    assert VOUCHERS.documents([record, FakeRecord(b"x", b"{}"), FakeRecord(None, None)]) == [
        shop.store.collections["vouchers"][BOTH[0]]
    ]


def test_a_redelivery_gives_nothing_more(shop: VoucherShop) -> None:
    """The same worker or another one gets the batch again, also in parts. The windows stay as they are."""
    windows = []
    for start in (0, 0, 1):
        shop.take(*[bought(1), bought(2)][start:], start=start)
        windows.append(dict(shop.windows.rows[0]))
        shop.restart()
    assert shop.stored() == shop.published() == BOTH
    assert windows[0] == windows[1] == windows[2]
    assert decode_window(windows[0][b"anna"]).days[(NOON.date() - date(1970, 1, 1)).days].spent == 200


@pytest.mark.parametrize("step", ["send", "some", "sent", "changelog"])
@pytest.mark.parametrize("kind", ["purchases", "customers"])
def test_after_a_death_at_any_step_each_voucher_is_there_once(step: str, kind: str, shop: VoucherShop) -> None:
    """The next worker finds the published vouchers, and publishes the others."""
    events, wanted = ([bought(1), bought(2)], BOTH) if kind == "purchases" else (
        [customer("anna"), customer("bob")], ["welcome:anna:registration", "welcome:bob:registration"],
    )  # fmt: skip
    shop.dies_at = step
    with suppress(DiedError):
        shop.take(*events, kind=kind)
    shop.restart()
    shop.take(*events, kind=kind)
    assert shop.stored() == shop.published() == wanted


def test_kafka_and_mongodb_may_be_away(shop: VoucherShop) -> None:
    """Each request is repeated until it is answered."""
    failures = [KafkaConnectionError("away"), KafkaConnectionError("away")]
    publish = shop.publish_vouchers

    async def fails(*args: Any) -> None:
        if failures:
            raise failures.pop()
        await publish(*args)

    shop.log._publish = fails
    insert = shop.store.insert_vouchers
    absences = [Unavailable("MongoDB", "away")]

    async def inserts(documents: Any) -> Any:
        if absences:
            raise absences.pop()
        return await insert(documents)

    shop.store.insert_vouchers = inserts  # type: ignore[method-assign]
    shop.take(bought(1), bought(2))
    assert shop.stored() == shop.published() == BOTH


def test_what_was_given_stays_given_when_the_product_is_of_another_type(shop: VoucherShop) -> None:
    """The worker died before it wrote the window. Then the product's type changed."""
    shop.dies_at = "changelog"
    with suppress(DiedError):
        shop.take(bought(1))
    shop.windows.rows.clear()
    shop.store.collections["products"]["rye"]["type"] = "flour"
    shop.restart()
    shop.take(bought(1))
    shop.store.collections["products"]["rye"]["type"] = "bread"
    shop.restart()
    shop.take(bought(2, day=3), start=1)
    assert shop.published() == [*BOTH[:1], "second:anna:2"]


CHANGED = (
    {**RULES[0], "percent": 90, "voucher": {"product_type": "jam", "percent": 1, "valid_days": 1}},
    {**RULES[1], "n": 3},
    {**RULES[2], "cities": ["Gdynia"]},
)


@pytest.mark.parametrize("rules", [CHANGED, (), RULES[2:], RULES[:1]], ids=["others", "none", "cities", "shares"])
@pytest.mark.parametrize("step", ["send", "some", "sent"])
@pytest.mark.parametrize("kind", ["purchases", "customers"])
def test_what_is_stored_is_published_though_the_rules_have_changed(
    shop: VoucherShop, kind: str, step: str, rules: tuple[Any, ...]
) -> None:
    """A worker died when its vouchers were in MongoDB. The next one has other rules, and gets the records in parts."""
    events = [bought(1), bought(2)] if kind == "purchases" else [customer("anna"), customer("bob")]
    shop.dies_at = step
    with suppress(DiedError):
        shop.take(*events, kind=kind)
    stored = deepcopy(shop.store.collections["vouchers"])
    assert len(stored) == 2
    for one in shop.store.collections["vouchers"].values():
        one["redeemed"] = True  # another program adds a field
    shop.rules = msgspec.convert(rules, tuple[Rule, ...])
    shop.restart()
    for start, event in enumerate(events):
        shop.take(event, start=start, kind=kind)
    assert shop.stored() == shop.published() == sorted(stored)
    assert VOUCHERS.documents(shop.topic) == list(stored.values())
    shop.take(bought(9, "milk") if kind == "purchases" else customer("eve", city="Kraków"), start=2, kind=kind)
    assert shop.events.count("vouchers_from") <= 2 + 2 + 2


def test_a_replay_gives_the_same_vouchers_and_publishes_none_again(shop: VoucherShop) -> None:
    """In a new era the windows begin again, as the counts do."""
    days = [bought(n, day=20 * n, customer=name) for n in range(5) for name in ("anna", "bob")]
    days = [{**event, "purchase_id": f"p{number}"} for number, event in enumerate(days)]
    shop.take(*days)
    before, published = shop.stored(), shop.published()
    assert before == published
    assert len(before) == 2 * (3 + 1)
    windows = {key: decode_window(value) for key, value in shop.windows.rows[0].items()}
    shop.counts.rows[0][TOTALS_KEY] = new_era_totals(0, 5.0)
    shop.restart()
    shop.take(*days[:3])
    shop.take(*days[3:], start=3)
    assert (shop.stored(), shop.published()) == (before, published)
    after = {key: decode_window(value) for key, value in shop.windows.rows[0].items()}
    assert {window.era for window in after.values()} == {5}
    for key, window in windows.items():
        assert msgspec.structs.replace(after[key], era=0) == window


def test_rules_that_are_switched_on_later_know_how_much_was_bought_before(shop: VoucherShop) -> None:
    """The counts know that the purchase is the customer's second, although the windows begin only now."""
    shop.rules = ()
    shop.restart()
    shop.take(bought(1))
    shop.rules = msgspec.convert(RULES, tuple[Rule, ...])
    shop.windows.rows.clear()
    shop.restart()
    shop.take(bought(2, "milk"), start=1)
    assert shop.published() == ["second:anna:2"]


def test_a_batch_cut_off_right_after_a_rule_was_switched_on_gives_no_wrong_number(shop: VoucherShop) -> None:
    """Three purchases were counted, two of them in a batch that was cut off.

    The second comes again alone. The counts don't tell how many purchases the customer had before it.
    """
    shop.rules = msgspec.convert(({**RULES[1], "n": 1}, {**RULES[1], "name": "fourth", "n": 4}), tuple[Rule, ...])
    rules, shop.rules = shop.rules, ()
    shop.restart()
    shop.take(bought(1))
    shop.take(bought(2), bought(3), start=1)
    shop.windows.rows.clear()
    shop.rules = rules
    shop.restart()
    shop.take(bought(2), start=1)
    assert shop.published() == []
    shop.take(bought(3), start=2)
    shop.take(bought(4), start=3)
    assert shop.published() == ["fourth:anna:4"]


def test_what_is_known_of_registrations_does_not_grow_for_ever(
    shop: VoucherShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registrations of finished batches do not come again, so their vouchers are forgotten."""
    monkeypatch.setattr(once, "_KEYS_TO_HOLD", 10)
    for number in range(100):
        shop.take(customer(f"c{number}"), start=number, kind="customers")
    assert len(shop.published()) == 100
    assert len(shop.log._once._sent["shop.customers", 0]) <= 12


def test_types_are_known_though_others_forget_them_meanwhile(shop: VoucherShop) -> None:
    """A batch of another partition clears the cache of types while this one waits for MongoDB."""

    async def run() -> dict[str, str]:
        types = _ProductTypes(Patient(shop.store, Outage("MongoDB")))
        batch = FakeBatch([FakeRecord(b"anna", b"")])
        await types.of(batch, ["rye"])
        documents = shop.store.documents

        async def cleared(*arguments: Any) -> Any:
            types._known = {}
            return await documents(*arguments)

        shop.store.documents = cleared  # type: ignore[method-assign]
        return await types.of(batch, ["rye", "milk"])

    assert asyncio.run(run()) == {"rye": "bread", "milk": "dairy"}


def test_a_customer_who_registers_again_is_not_welcomed_again(shop: VoucherShop) -> None:
    """The second registration may come in the same batch, or years later, when the topic is not read so far back."""
    shop.take(customer("anna"), customer("anna"), customer("bob", city="Gdynia"), kind="customers")
    shop.restart()
    shop.log._read_since = no_records
    shop.take(customer("anna"), start=3, kind="customers")
    assert shop.published() == ["welcome:anna:registration"]


async def no_records(topic: str, partition: int, since: int, *, of: Any) -> list[Any]:
    """Reads no records."""
    return []


def test_a_refused_registration_earns_nothing(shop: VoucherShop) -> None:
    """MongoDB refused the document, so the registration is a dead letter."""
    shop.store.refuses = lambda document: "no" if document["_id"] == "anna" else None
    shop.take(customer("anna"), customer("bob"), kind="customers")
    assert shop.published() == ["welcome:bob:registration"]


def test_an_unknown_product_counts_for_the_total_only(shop: VoucherShop) -> None:
    """Once the product is offered, its type counts for later purchases."""
    shop.take(bought(1, "cake"))
    assert shop.published() == []
    shop.store.collections["products"]["cake"] = product(100, name="cake", type="bread")
    shop.take(bought(2, "cake"), start=1)
    assert shop.published() == BOTH


def test_the_types_of_products_are_not_asked_for_at_each_batch(shop: VoucherShop) -> None:
    """Types are cached, and the topic of vouchers is read once."""
    shop.take(bought(1))
    shop.take(bought(2), start=1)
    assert shop.events.count("documents") == 1
    assert shop.events.count("read") == 1


def test_the_number_of_vouchers_is_logged(shop: VoucherShop, caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line for each rule of a batch."""
    with caplog.at_level(logging.INFO, "shopflow.shop.promotions.vouchers"):
        shop.take(bought(1), bought(2))
    assert sorted(caplog.messages) == ["1 voucher(s) of rule bread", "1 voucher(s) of rule second"]


@pytest.mark.parametrize("number", range(len(RULES)))
def test_a_rule_that_is_tried_gives_as_many_as_it_gave(
    number: int, shop: VoucherShop, store: ObservedStore, database: Database[Document], run: Run
) -> None:
    """`try-promotion` counts the vouchers from MongoDB, and writes nothing."""
    for n in range(30):
        shop.take(bought(n, ("rye", "milk")[n % 3 > 0], f"c{n % 7}", day=n * 7 % 50), start=n)
    shop.take(*(customer(f"c{n}", city=("Łódź", "Gdynia")[n % 2]) for n in range(5)), kind="customers")
    rule, published, steps = shop.rules[number], shop.published(), []
    for name, documents in shop.store.collections.items():
        if documents:
            database[name].insert_many(documents.values())
    trial = run(try_rule(store, rule, steps.append))
    gave = [name for name in published if name.startswith(f"{rule.name}:")]
    assert trial.vouchers == len(gave) > 0
    assert len(trial.customers) == len({name.split(":")[1] for name in gave})
    assert sum(steps) == trial.looked_at == (5 if rule.name == "welcome" else 30)
    assert shop.published() == published == sorted(one["_id"] for one in database.vouchers.find())


LOG = st.lists(
    st.tuples(
        st.sampled_from(["anna", "bob"]), st.sampled_from(["rye", "milk"]), st.integers(0, 60), st.integers(0, 200)
    ),
    min_size=1,
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(log=LOG, data=st.data())
def test_whatever_dies_whenever_each_voucher_is_there_once(log: list[Any], data: Any) -> None:
    """Batches have any size, workers die at any step, tables are kept or recovered. The oracle names the vouchers."""
    shop = VoucherShop()
    events = [
        bought(number, product, customer, day, price) for number, (customer, product, day, price) in enumerate(log)
    ]
    done = 0
    while done < len(events):
        end = data.draw(st.integers(done + 1, len(events)))
        shop.dies_at = data.draw(st.sampled_from(["", "", "send", "some", "sent", "changelog"]))
        try:
            shop.take(*events[done:end], start=done)
        except DiedError:
            shop.restart()
            if data.draw(st.booleans()):
                shop.windows.rows = {0: dict(shop.changelog)}
        else:
            shop.dies_at = ""
            done = end
    types = {"rye": "bread", "milk": "dairy"}
    purchases = [oracle.Bought(customer, NOON + day * DAY, price, product) for customer, product, day, price in log]
    assert shop.published() == shop.stored() == sorted(oracle.expected(shop.rules, types, purchases))
