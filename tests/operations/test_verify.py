"""`verify`: agreement, differences, and checks that can't be made."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from faust_batches import Outage
from shopflow.commands import lines as listing
from shopflow.errors import Unavailable
from shopflow.kafka import held, offsets
from shopflow.kafka.offsets import Span
from shopflow.operations.verify import sales as sales_check
from shopflow.operations.verify import totals as verification
from shopflow.operations.verify.report import Check, FirstTen, Report
from shopflow.operations.verify.tables import Tables
from shopflow.operations.verify.totals import verify
from shopflow.operations.verify.workers import Compared, Live, Worker
from shopflow.shop import sales
from shopflow.shop.announcements import ALERTS, VOUCHERS
from shopflow.shop.counts import advance, new_era_totals
from shopflow.shop.sales_mirror import Mirror
from shopflow.store.types import Document
from tests.conftest import Run
from tests.support.documents import DIRECT, alert, customer, kafka, purchase, voucher
from tests.support.events import accepted
from tests.support.fakes import FakeRecord, FakeTopics, layout, numbered
from tests.support.stores import ByHand, ObservedStore

LAYOUT = layout(1)


def Lag(records: int, waiting: int, spans: dict[int, Span] | None = None) -> offsets.Lag:  # noqa: N802
    """The offsets of a topic with one partition."""
    return offsets.Lag(records, waiting, spans or {0: Span(0, records - waiting, records)})


NOTHING = Lag(0, 0)


class Kafka:
    """A fake of the parts of Kafka that `verify` reads."""

    def __init__(self) -> None:
        self.lags_seen: Iterator[dict[str, offsets.Lag]] | None = None
        self.lag = dict.fromkeys(("products", "customers", "purchases", "dead-letters"), NOTHING)
        self.changelog: list[FakeRecord] = []
        self.sales: list[FakeRecord] = []
        self.published: dict[str, list[FakeRecord]] = {"vouchers": [], "alerts": []}
        self.gone = 0  # records that retention removed from these topics
        self.markers = 0
        self.held = 0  # offsets of the changelog behind an open transaction

    async def lags(self, bootstrap: str, group: str, topics: Any) -> dict[str, offsets.Lag]:
        return next(self.lags_seen) if self.lags_seen else dict(self.lag)

    def partitions(self, topic: str) -> list[list[FakeRecord]]:
        if topic in self.published:
            return [numbered(self.published[topic], self.gone)]
        purchases = [FakeRecord(None, None)] * self.records()
        records = {LAYOUT.changelog: self.changelog, LAYOUT.sales_changelog: self.sales, LAYOUT.purchases: purchases}
        return [numbered(records[topic])]

    async def id_of(self, bootstrap: str, topic: str) -> str:
        return f"{topic}-id"

    async def spans(self, bootstrap: str, group: str, topics: Any) -> dict[str, dict[int, Span]]:
        found = {topic: {0: Span(self.gone, 0, self.gone + len(self.published.get(topic, ())))} for topic in topics}
        if LAYOUT.changelog in found:
            found[LAYOUT.changelog] = {0: Span(0, 0, 9, held=self.held)}
        return found

    def records(self) -> int:
        """How many purchases there are, not counting the ends of transactions."""
        return self.lag["purchases"].records - self.markers


class VerifiedShop:
    """Kafka, MongoDB and the tables, as `verify` reads them."""

    def __init__(self, store: ObservedStore, by_hand: ByHand, run: Run) -> None:
        self.store, self.by_hand, self.run = store, by_hand, run
        self.kafka = Kafka()
        self.live: Iterator[Live] | Live = Live()
        self.compared = Compared()
        run(store.upsert_customers([customer("anna"), customer("bob")]))

    async def who_is_live(self, bootstrap: str, group: str, changelog: str) -> Live:
        assert (group, changelog) == ("shop", "changelog")
        return self.live if isinstance(self.live, Live) else next(self.live)

    async def compare(self, live: Live, tables: Tables, session: Any) -> Compared:
        assert tables.partitions == 1
        return self.compared

    async def troubles(self, live: Live, counted: str, session: Any) -> Check:
        return Check("troubles", True, "no worker reports one")

    def sell(self, *customers: str) -> None:
        """Purchases that are sent, stored and counted."""
        documents = [
            purchase(f"p{offset}", kafka(offset, topic="purchases"), name) for offset, name in enumerate(customers)
        ]
        self.run(self.store.insert_purchases(documents))
        counted = [(offset, name, 2, 600) for offset, name in enumerate(customers)]
        rows = advance(lambda key: None, counted, end=len(customers)).rows()
        self.kafka.changelog = [FakeRecord(key, value) for key, value in rows]
        self.sell_milk(len(customers))
        self.kafka.lag["purchases"] = Lag(len(customers), 0)

    def sell_milk(self, count: int) -> None:
        """This many purchases of milk, in the table of sales and in MongoDB."""
        events = [(FakeRecord(b"", b"", offset), accepted()) for offset in range(count)]
        rows = sales.advance(lambda key: None, events, end=count).rows()
        self.kafka.sales = [FakeRecord(key, value) for key, value in rows]
        table: Any = SimpleNamespace(reader=lambda number: dict(rows).get, scan=lambda *arguments: [])
        mirror = Mirror(table, self.store, lambda: [0], Outage("MongoDB"))
        self.run(mirror.bring_up_to_date())
        mirror.changed(0, rows)
        self.run(mirror.bring_up_to_date())

    def verify(self) -> Report:
        """Compare them."""
        return self.run(verify("kafka:1", self.store, LAYOUT))  # type: ignore[arg-type]

    def wrong(self) -> list[str]:
        """Which checks fail."""
        return [check.name for check in self.verify().checks if not check.good]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, store: ObservedStore, by_hand: ByHand, run: Run) -> VerifiedShop:
    """A shop whose verification waits for nothing."""
    made = VerifiedShop(store, by_hand, run)
    monkeypatch.setattr(verification.offsets, "lags", made.kafka.lags)
    FakeTopics(monkeypatch, made.kafka.partitions)
    monkeypatch.setattr(verification.offsets, "spans", made.kafka.spans)
    monkeypatch.setattr(verification, "id_of", made.kafka.id_of)
    monkeypatch.setattr(verification.workers, "live", made.who_is_live)
    monkeypatch.setattr(verification.workers, "compare", made.compare)
    monkeypatch.setattr(verification.workers, "troubles", made.troubles)
    monkeypatch.setattr(verification, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(verification, "_ATTEMPTS", 8)
    monkeypatch.setattr(sales_check, "_PATIENCE_SECONDS", 0)
    return made


def named(text: str) -> FirstTen:
    """The only difference."""
    found = FirstTen()
    found.add(text)
    return found


def details(report: Report) -> dict[str, str]:
    """The detail of each check."""
    return {check.name: check.detail for check in report.checks}


def test_a_shop_in_order_agrees(shop: VerifiedShop) -> None:
    """Status 0, with the purchases in Kafka, MongoDB and the tables."""
    shop.sell("anna", "bob", "anna")
    report = shop.verify()
    assert report.status == 0
    assert (report.kafka["purchases"], report.mongodb["purchases"], report.tables["purchases"]) == (3, 3, 3)


def test_a_document_deleted_by_hand_is_found_and_named(shop: VerifiedShop) -> None:
    """The message names the customer."""
    shop.sell("anna", "bob")
    shop.by_hand.remove("purchases", "p1")
    assert shop.wrong() == ["purchases in MongoDB and tables", "customers", "sales"]
    assert shop.verify().status == 1
    assert "bob: stored nothing, counted 1 purchases" in details(shop.verify())["customers"]


def test_a_price_changed_by_hand_is_found(shop: VerifiedShop) -> None:
    """The sum of the values differs from what was counted."""
    shop.sell("anna", "bob")
    shop.by_hand.change("purchases", "p0", value=601)
    assert shop.wrong() == ["customers", "sales"]


def test_a_count_that_is_wrong_is_found(shop: VerifiedShop) -> None:
    """The table has a customer who never bought anything."""
    shop.sell("anna", "bob")
    more = advance(lambda key: None, [(0, "eve", 1, 1)], end=1).rows()
    shop.kafka.changelog.insert(0, FakeRecord(*more[0]))
    assert shop.wrong() == ["customers", "sums"]


def test_an_event_that_got_lost_is_found(shop: VerifiedShop) -> None:
    """The event was sent and committed, and is neither stored nor counted."""
    shop.sell("anna")
    shop.kafka.lag["purchases"] = Lag(2, 0)
    assert shop.wrong() == ["purchases in Kafka and tables"]


def test_counts_of_a_topic_that_was_deleted_are_told_though_the_numbers_agree(shop: VerifiedShop) -> None:
    """The new topic of the name has as many records; the old one's are counted."""
    shop.sell("anna")
    shop.kafka.changelog = [
        FakeRecord(key, value) for key, value in advance({}.get, [(0, "anna", 2, 600)], end=1, topic_id="old").rows()
    ]
    (said,) = [check for check in shop.verify().checks if not check.good]
    assert said.name == "purchases in Kafka and tables"
    assert "partition 0: the 1 counted ones were in a topic of this name that was deleted" in said.detail
    assert "`faust -A shopflow replay` counts these" in said.detail


def test_the_ends_of_transactions_are_no_purchases(shop: VerifiedShop) -> None:
    """The markers that end Kafka's transactions take offsets, and `verify` doesn't count them as sent."""
    shop.sell("anna", "bob")
    shop.kafka.lag["purchases"], shop.kafka.markers = Lag(5, 0), 3
    report = shop.verify()
    assert (report.status, report.kafka["purchases"]) == (0, 2)


def test_events_that_wait_do_not_agree(shop: VerifiedShop) -> None:
    """Events that no worker has read are in Kafka only."""
    shop.sell("anna")
    shop.kafka.lag["products"] = Lag(13, 13)
    assert shop.wrong() == ["lag"]


@pytest.mark.parametrize("topic", ["products", "purchases", "changelog"])
def test_what_an_open_transaction_holds_up_is_told_with_the_reason(
    shop: VerifiedShop, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    """A topic that only the workers write may be held up too. What comes after can't be compared."""

    async def nobody(bootstrap: str, partitions: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(verification.producers, "producers", nobody)
    shop.sell("anna")
    if topic == "changelog":
        shop.kafka.held = 7
    else:
        shop.kafka.lag[topic] = Lag(1, 0, {0: Span(0, 1, 1, held=7)})
    report = shop.verify()  # the transaction may be committed soon
    (lag,) = [check for check in report.checks if check.name == "lag"]
    assert (report.status, lag.good) == (2, None)
    monkeypatch.setattr(held, "PATIENCE_SECONDS", 0)
    report = shop.verify()
    (lag,) = [check for check in report.checks if check.name == "lag"]
    assert (report.status, lag.good) == (1, False)
    if topic == "changelog":  # as if the second one's counts were behind it
        shop.run(shop.store.insert_purchases([purchase("late", kafka(1, topic="purchases"), "bob")]))
        report = shop.verify()
        doubtful = {check.name: check.detail for check in report.checks if check.good is None}
        assert {"purchases in MongoDB and tables", "customers"} <= doubtful.keys()
        assert all(text.startswith("records of changelog[0] are held up by") for text in doubtful.values())
        assert [check.name for check in report.checks if check.good is False] == ["lag"]
    waiting = 0 if topic == "changelog" else 7
    assert lag.detail.startswith(f"{waiting} events wait in Kafka; 7 offsets of {topic}[0] are held up since ")
    assert report.kafka["waiting"] == waiting


def test_while_events_arrive_the_status_is_2(shop: VerifiedShop) -> None:
    """A comparison of moving numbers would be a false alarm."""
    shop.sell("anna")
    moving = ({**shop.kafka.lag, "purchases": Lag(number, 0)} for number in range(1000))
    shop.kafka.lags_seen = moving
    assert shop.verify().status == 2


def test_differences_are_named_up_to_ten(shop: VerifiedShop) -> None:
    """The others are counted."""
    shop.sell(*(f"c{number:02}" for number in range(15)))
    shop.by_hand.clear("purchases")
    detail = details(shop.verify())["customers"]
    assert detail.startswith("15 differ: c00: stored nothing")
    assert detail.endswith("and 5 more")
    assert detail.count("stored nothing") == 10


def test_without_topics_there_is_nothing_to_compare(shop: VerifiedShop) -> None:
    """The error says what to do."""
    del shop.kafka.lag["purchases"]
    with pytest.raises(Unavailable, match="start a worker"):
        shop.verify()


def test_tables_keep_the_larger_offset_and_skip_what_is_no_count() -> None:
    """Workers do the same when they recover."""
    old = advance(lambda key: None, [(0, "anna", 1, 1)], end=1).rows()
    new = advance(dict(old).get, [(1, "anna", 1, 1)], end=2).rows()
    tables = Tables(1)
    tables.take(0, [FakeRecord(*row) for row in (*new, *old)] + [FakeRecord(b"x", b"?"), FakeRecord(b"y", None)])
    assert tables.by_key() == {"anna": (2, 2, 2)}
    assert tables.sums()["purchases"] == 2


def test_the_report_is_printed_as_text_and_as_json(shop: VerifiedShop) -> None:
    """The last line says whether all agrees."""
    shop.sell("anna")
    lines = list(listing.report(shop.verify(), as_json=False))
    assert lines[0].startswith("Purchases: 1 in Kafka, 1 in MongoDB, 1 in the tables")
    assert lines[-1] == "Kafka, MongoDB and the tables agree."
    (line,) = listing.report(shop.verify(), as_json=True)
    assert '"status":0' in line


def test_what_is_on_its_way_is_waited_for(shop: VerifiedShop) -> None:
    """A worker that is a moment behind is no difference."""
    shop.sell("anna")
    waiting = {**shop.kafka.lag, "purchases": Lag(1, 1)}
    shop.kafka.lags_seen = iter([waiting, shop.kafka.lag, shop.kafka.lag, shop.kafka.lag])
    assert shop.verify().status == 0


def test_a_customer_of_two_partitions_is_one_customer() -> None:
    """Producers may choose the partition of a key differently."""
    row, *_ = advance(lambda key: None, [(0, "anna", 2, 5)], end=1).rows()
    tables = Tables(2)
    for partition in range(2):
        tables.take(partition, [FakeRecord(*row)])
    assert tables.by_key() == {"anna": (2, 4, 10)}


def test_a_topic_that_is_not_read_has_no_dead_letters(shop: VerifiedShop) -> None:
    """The first worker creates the topic of the dead letters."""
    shop.sell("anna")
    del shop.kafka.lag["dead-letters"]
    assert (shop.verify().status, shop.verify().kafka["dead_letters"]) == (0, 0)


def test_what_the_checks_say_when_all_is_well(shop: VerifiedShop) -> None:
    """The documents show these words."""
    shop.sell("anna", "bob", "anna")
    assert details(shop.verify()) == {
        "lag": "0 events wait in Kafka",
        "purchases in Kafka and tables": "3 sent = 3 counted + 0 repeated + 0 rejected",
        "purchases in MongoDB and tables": "3 stored, 3 counted",
        "customers": "2 customers, each with the counts their purchases add up to",
        "sums": "1 partitions, each with the sums its customers add up to",
        "sales": "1 products, each with the sales its purchases add up to",
        "vouchers": "none was published",
        "alerts": "none was published",
        "workers": "no worker runs; the next one recovers its tables from the changelog",
        "troubles": "no worker reports one",
        "registrations": "every customer who bought is registered",
    }


def test_what_the_checks_say_when_it_is_not(shop: VerifiedShop) -> None:
    """Each check has both numbers and says where they are from."""
    shop.sell("anna", "bob")
    shop.by_hand.change("purchases", "p1", quantity=3)
    shop.by_hand.remove("purchases", "p0")
    shop.kafka.lag["purchases"] = Lag(5, 2)
    shop.kafka.lag["products"] = Lag(4, 1)
    report = shop.verify()
    assert report.status == 1
    assert details(report) == {
        "lag": "3 events wait in Kafka",
        "purchases in Kafka and tables": "5 sent = 2 counted + 0 repeated + 0 rejected",
        "purchases in MongoDB and tables": "1 stored, 2 counted",
        "customers": "2 differ: "
        "bob: stored 1 purchases, 3 items, 600 grosze, counted 1 purchases, 2 items, 600 grosze; "
        "anna: stored nothing, counted 1 purchases, 2 items, 600 grosze",
        "sums": "1 partitions, each with the sums its customers add up to",
        "sales": "1 differ: "
        "milk: 1 purchases, 3 units, 600 grosze bought, 2 purchases, 4 units, 1200 grosze in the table",
        "vouchers": "none was published",
        "alerts": "none was published",
        "workers": "no worker runs; the next one recovers its tables from the changelog",
        "troubles": "no worker reports one",
        "registrations": "every customer who bought is registered",
    }


def test_what_was_repeated_or_rejected_is_accounted_for(shop: VerifiedShop) -> None:
    """Repeated and rejected purchases were sent and are rightly not in MongoDB, so their sum is shown."""
    shop.sell("anna")
    rows = advance(lambda key: None, [(0, "anna", 2, 600)], end=4, duplicates=[1], rejected=[2, 3]).rows()
    shop.kafka.changelog = [FakeRecord(key, value) for key, value in rows]
    shop.kafka.lag["purchases"] = Lag(4, 0)
    shop.kafka.lag["dead-letters"] = Lag(2, 2)  # nobody reads them: they do not wait
    report = shop.verify()
    assert report.status == 0
    assert details(report)["purchases in Kafka and tables"] == "4 sent = 1 counted + 1 repeated + 2 rejected"
    assert report.kafka == {"purchases": 4, "waiting": 0, "dead_letters": 2}


def test_a_customer_whom_the_tables_do_not_know_is_named(shop: VerifiedShop) -> None:
    """The customer's purchases are stored and not counted."""
    shop.sell("anna")
    shop.kafka.changelog = []
    assert "anna: stored 1 purchases, 2 items, 600 grosze, counted nothing" in details(shop.verify())["customers"]


def test_ten_differences_are_all_named(shop: VerifiedShop) -> None:
    """Only the eleventh is counted without a name."""
    shop.sell(*(f"c{number:02}" for number in range(10)))
    shop.by_hand.clear("purchases")
    detail = details(shop.verify())["customers"]
    assert detail.count("stored nothing") == 10
    assert "more" not in detail


def test_purchases_that_were_written_directly_are_not_compared(shop: VerifiedShop) -> None:
    """Kafka and the tables don't have them."""
    shop.sell("anna")
    shop.by_hand.put("purchases", purchase("d", DIRECT))
    assert shop.verify().status == 0


def test_the_cause_of_status_2_is_a_check(shop: VerifiedShop) -> None:
    """A script that reads the JSON finds the cause."""
    shop.sell("anna")
    shop.kafka.lags_seen = ({**shop.kafka.lag, "purchases": Lag(number, 0)} for number in range(1000))
    assert details(shop.verify())["quiet"] == "events arrive faster than they can be compared"


def test_what_waits_for_good_is_given_up_soon(shop: VerifiedShop) -> None:
    """Without a live worker `verify` doesn't wait for the lag to shrink, because nothing will change it."""
    shop.sell("anna")
    looks = 0

    def stuck() -> Iterator[dict[str, offsets.Lag]]:
        nonlocal looks
        while True:
            looks += 1
            yield {**shop.kafka.lag, "purchases": Lag(2, 1)}

    shop.kafka.lags_seen = stuck()
    assert shop.verify().status == 1
    assert looks == 2 * 4


def test_while_events_trickle_in_the_status_is_2(shop: VerifiedShop) -> None:
    """Events arrive between two comparisons and none during one. This is no disagreement."""
    shop.sell("anna")
    shop.kafka.lags_seen = ({**shop.kafka.lag, "purchases": Lag(2 + number // 2, 1)} for number in range(1000))
    assert shop.verify().status == 2


def test_all_partitions_of_the_changelog_are_read(shop: VerifiedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read from the layout's topic and the given broker."""

    def rows(partition: int) -> list[FakeRecord]:
        counted = advance(lambda key: None, [(partition, f"c{partition}", 1, 10)], end=partition + 1)
        return numbered(FakeRecord(*row) for row in counted.rows())

    changelog = FakeTopics(monkeypatch, lambda topic: [rows(partition) for partition in range(3)])
    tables = asyncio.run(Tables.read("kafka:1", "changelog", 3))
    assert changelog.read == [("kafka:1", "changelog", partition) for partition in range(3)]
    assert tables.sums()["spent"] == 30
    assert set(tables.by_key()) == {"c0", "c1", "c2"}


def test_of_two_values_with_one_offset_the_later_stays() -> None:
    """A redelivery writes a row again. The workers have the later value too."""
    first = advance(lambda key: None, [(0, "anna", 1, 1)], end=1).rows()
    again = advance(lambda key: None, [(0, "anna", 5, 5)], end=1).rows()
    tables = Tables(1)
    tables.take(0, [FakeRecord(*row) for row in (*first, *again)])
    assert tables.by_key() == {"anna": (1, 5, 5)}
    assert tables.sums()["items"] == 5


def test_an_empty_shop_agrees(shop: VerifiedShop) -> None:
    """Nothing was sent, stored or counted."""
    report = shop.verify()
    assert report.status == 0
    assert details(report)["customers"].startswith("0 customers")


def test_sums_that_are_not_what_their_customers_add_up_to_are_found(shop: VerifiedShop) -> None:
    """Another program wrote totals to the changelog. No customer's row shows it."""
    shop.sell("anna", "bob")
    other = advance(lambda key: None, [(1, "anna", 9, 600), (1, "bob", 2, 600)], end=2).rows()
    shop.kafka.changelog.append(FakeRecord(*other[-1]))
    assert shop.wrong() == ["sums", "sales"]
    assert details(shop.verify())["sums"] == (
        "1 differ: partition 0: the sums say 2 customers with 2 purchases, 11 items, 1200 grosze, "
        "its customers add up to 2 customers with 2 purchases, 4 items, 1200 grosze"
    )


def test_the_tables_of_live_workers_are_compared(shop: VerifiedShop) -> None:
    """The report names the workers."""
    shop.sell("anna", "bob")
    shop.live = Live((Worker("http://a", (0,)), Worker("http://b", ())))
    shop.compared = Compared(customers=2)
    report = shop.verify()
    assert report.status == 0
    assert details(report)["workers"] == "2 live, 2 customers in their tables, all as in the changelog"
    assert report.workers == [{"url": "http://a", "partitions": (0,)}, {"url": "http://b", "partitions": ()}]


def test_a_table_that_differs_is_an_error_whoever_else_can_not_be_asked(shop: VerifiedShop) -> None:
    """The check says both."""
    shop.sell("anna")
    shop.live = Live((Worker("http://a", (0,)),))
    shop.compared = Compared(wrong=named("anna at http://a: ..."), unasked=named("http://b: does not answer"))
    report = shop.verify()
    assert report.status == 1
    assert details(report)["workers"] == (
        "1 differ: anna at http://a: ...; 1 can't be asked: http://b: does not answer"
    )


def test_a_worker_that_can_not_be_asked_is_asked_again_for_a_while(
    shop: VerifiedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may be taking over a partition, so it is asked again; if it never answers, the status is 2."""
    shop.sell("anna")
    shop.live = Live((Worker("http://a", (0,)),))
    asked = 0

    async def compare(live: Live, tables: Tables, session: Any) -> Compared:
        nonlocal asked
        asked += 1
        return Compared() if asked == 6 else Compared(unasked=named("http://a: does not answer"))

    monkeypatch.setattr(verification.workers, "compare", compare)
    assert shop.verify().status == 0
    monkeypatch.setattr(verification, "_PATIENCE_SECONDS", 0)
    report = shop.verify()
    assert (report.status, asked) == (2, 7)
    assert {check.name for check in report.checks if check.good is None} == {"workers"}
    assert details(report)["workers"] == "1 can't be asked: http://a: does not answer"


def test_while_the_live_workers_are_unknown_the_status_is_2(
    shop: VerifiedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check has the reason. A difference elsewhere makes the status 1."""
    monkeypatch.setattr(verification, "_PATIENCE_SECONDS", 0)
    shop.sell("anna")
    shop.live = Live(unclear="the consumer group is rebalancing")
    report = shop.verify()
    assert (report.status, details(report)["workers"]) == (2, "the consumer group is rebalancing")
    shop.by_hand.clear("purchases")
    assert shop.verify().status == 1


def test_workers_that_come_and_go_are_something_that_moves(shop: VerifiedShop) -> None:
    """While workers come and go, a partition may be read from two owners, so the comparison is repeated."""
    shop.sell("anna")
    one, two = Live((Worker("http://a", (0,)),)), Live((Worker("http://b", (0,)),))
    shop.live = iter([one, two, two, two, two, two])
    assert shop.verify().status == 0
    shop.live = (Live((Worker(f"http://{number}", (0,)),)) for number in range(1000))
    assert shop.verify().status == 2


def test_who_bought_without_being_registered_is_named_and_no_failure(
    shop: VerifiedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten are named, the others are counted. Many ids are in one request."""
    monkeypatch.setattr(verification, "_REGISTERED_AT_ONCE", 4)
    shop.sell("anna", *(f"c{number:02}" for number in range(12)), "bob")
    report = shop.verify()
    assert (report.status, report.mongodb["unregistered"]) == (0, 12)
    assert details(report)["registrations"] == (
        "12 customers who bought are not registered: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, and 2 more"
    )
    assert shop.store.calls.count("registered") == 4


def test_a_key_of_the_changelog_that_is_no_id_is_shown(shop: VerifiedShop) -> None:
    """It is neither left out nor an error. A record without a key is no count."""
    shop.sell("anna")
    value = advance(lambda key: None, [(0, "x", 1, 1)], end=1).rows()[0][1]
    shop.kafka.changelog += [FakeRecord(b"\xff", value), FakeRecord(None, value)]
    assert "\\xff: stored nothing, counted 1 purchases" in details(shop.verify())["customers"]


def test_what_was_counted_before_the_tables_were_rebuilt_counts_no_more(shop: VerifiedShop) -> None:
    """Rows of an earlier era count neither for a customer nor for the totals nor for a worker's table."""
    tables = Tables(1)
    old = advance(lambda key: None, [(0, "anna", 9, 9), (1, "bob", 1, 1)], end=2).rows()
    new = advance({b"": new_era_totals(0, 5)}.get, [(0, "anna", 1, 1)], end=1).rows()
    tables.take(0, [FakeRecord(*row) for row in (*new, *old)])
    assert set(tables.counts(0)) == {b"anna"}
    assert (tables.counts(0)[b"anna"].items, tables.totals(0).items, tables.totals(0).era) == (1, 1, 5)
    assert verification._sums(tables).good


def test_sales_that_the_table_does_not_have_are_found_and_the_way_out_is_named(shop: VerifiedShop) -> None:
    """A shop is so after an update from a version without the table of sales."""
    shop.sell("anna", "bob")
    shop.kafka.sales = []
    assert details(shop.verify())["sales"] == (
        "purchases: 0 in the table of sales, 2 in that of counts; `faust -A shopflow replay` counts them again"
    )


def test_sales_changed_by_hand_are_found(shop: VerifiedShop) -> None:
    """Other programs rely on them."""
    shop.sell("anna")
    shop.by_hand.change("sales", "day 2026-05-01 milk", units=7)
    (found,) = [check for check in shop.verify().checks if not check.good]
    assert found.name == "sales"
    assert "milk of the day 2026-05-01T00:00:00+00:00: 1 purchases, 7 units, 600 grosze in MongoDB" in found.detail


def test_a_row_of_another_program_is_named(shop: VerifiedShop) -> None:
    """Its key is no key of sales. It ended `verify` with a traceback."""
    shop.sell("anna")
    shop.kafka.sales.append(FakeRecord(b"anna", b"{}"))
    (sold,) = [check for check in shop.verify().checks if check.name == "sales"]
    assert (
        sold.detail == "1 differ: 'anna' in the table is no row of sales: another program wrote it into the changelog"
    )


def test_sales_on_their_way_to_mongodb_are_waited_for(shop: VerifiedShop) -> None:
    """A worker writes them a moment after the purchases. If none runs, the next worker does."""
    shop.sell("anna")
    shop.by_hand.clear("sales", "sales_state")
    report = shop.verify()
    assert report.status == 0
    assert details(report)["sales"] == "1 products; the next worker brings MongoDB up to date"
    shop.live = Live((Worker("http://here", (0,)),))
    report = shop.verify()
    assert report.status == 0
    assert details(report)["sales"] == "1 products; a worker is bringing MongoDB up to date"


def test_a_partition_without_purchases_is_not_waited_for(shop: VerifiedShop) -> None:
    """No worker writes anything for a partition without purchases, so `verify` doesn't wait for it."""
    shop.live = Live((Worker("http://here", (0,)),))
    report = shop.verify()
    assert report.status == 0
    assert details(report)["sales"] == "0 products, each with the sales its purchases add up to"


# -- vouchers and alerts


def publish(shop: VerifiedShop, name: str, **stored: Any) -> Document:
    """Publish a voucher, and store it with these fields changed."""
    published = shop.kafka.published["vouchers"]
    made = voucher(name, kafka(len(published), topic="purchases"))
    published.append(FakeRecord(b"anna", VOUCHERS.event(made)))
    shop.by_hand.put("vouchers", {**made, **stored})
    return made


def test_vouchers_that_are_as_they_were_published_agree(shop: VerifiedShop) -> None:
    """Fields and documents that another program added are ignored, and so are other records in the topic."""
    publish(shop, "a", used=True)
    publish(shop, "b")
    shop.kafka.published["vouchers"] += [FakeRecord(None, b"{}"), FakeRecord(None, None)]
    shop.by_hand.put("vouchers", {"_id": "c", "rule": "by hand"})
    assert shop.wrong() == []
    assert details(shop.verify())["vouchers"] == "2 published, each in MongoDB as it was published"


def test_a_voucher_published_twice_is_reported(shop: VerifiedShop) -> None:
    """Both events say the same, so this is no difference."""
    publish(shop, "a")
    shop.kafka.published["vouchers"] *= 2
    assert shop.wrong() == []
    assert details(shop.verify())["vouchers"].endswith(", 1 repeats")


def test_vouchers_that_differ_are_named(shop: VerifiedShop) -> None:
    """Changed, deleted and unpublished vouchers are named, and the message says how to restore them."""
    publish(shop, "a", percent=50)
    publish(shop, "b")
    shop.by_hand.remove("vouchers", "b")
    publish(shop, "c")
    shop.kafka.published["vouchers"].pop()
    assert shop.wrong() == ["vouchers"]
    assert details(shop.verify())["vouchers"] == (
        "3 differ: a: percent: stored 50, sent 5; b: published, and not in MongoDB; c: in MongoDB, and not published; "
        "`faust -A shopflow replay` restores published vouchers"
    )


def test_a_voucher_whose_event_was_removed_is_not_missed(shop: VerifiedShop) -> None:
    """Retention removes events and keeps documents."""
    publish(shop, "old")
    publish(shop, "new")
    shop.kafka.published["vouchers"].pop(0)
    assert shop.wrong() == ["vouchers"]
    shop.kafka.gone = 1
    assert shop.wrong() == []
    assert details(shop.verify())["vouchers"] == "1 published, each in MongoDB as it was published"


def test_an_alert_that_is_gone_is_named(shop: VerifiedShop) -> None:
    """A stored alert without an event is no difference: the product's worker publishes it later."""
    for name in ("milk@x", "bread@x"):
        shop.by_hand.put("alerts", alert(name, 3))
    shop.kafka.published["alerts"].append(FakeRecord(b"milk", ALERTS.event(alert("milk@x", 3))))
    assert shop.wrong() == []
    shop.by_hand.change("alerts", "milk@x", left=2)
    assert shop.wrong() == ["alerts"]
    assert "milk@x: left: stored 2, sent 3" in details(shop.verify())["alerts"]
