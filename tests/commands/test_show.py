"""The output of the commands that list and show."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from bson.datetime_ms import DatetimeMS
from msgspec.structs import replace

from shopflow.commands import lines as listing
from shopflow.commands.plots import Paper
from shopflow.operations.letters import Failure, Id, Letter, Mark
from shopflow.operations.retry import Outcome
from shopflow.operations.verify.report import Check, Report
from shopflow.shop.price_history import Period, Prices, SalesOverTime
from shopflow.shop.promotions.trial import Trial
from shopflow.store.types import Sold
from tests.support.documents import DIRECT, HOUR, NOON, customer, product, purchase, voucher
from tests.support.iterators import each, everything
from tests.support.text import plain

MILK = product(389, source=DIRECT, name="Mleko Łaciate", type="mleko") | {"_id": "milk"}
BOUGHT = purchase("p1", DIRECT, quantity=3, price=389, value=1167, product_name="Mleko Łaciate")
ANNA = customer("anna", source=DIRECT, last_name="Żółć")


def lines(*customers: dict[str, Any], as_json: bool, purchases: bool = True, terminal: int | None = None) -> list[str]:
    """The lines of `list-customers --purchases`."""
    shown = listing.customers(each(customers), as_json=as_json, purchases=purchases, terminal=terminal)
    return asyncio.run(everything(shown))


def test_products_have_name_price_and_type() -> None:
    """A product is one line, below a header. Without products there is a line that says so."""
    assert plain(listing.products([MILK], as_json=False)) == [
        "product          price  type   id",
        "Mleko Łaciate  3,89 zł  mleko  milk",
    ]
    assert list(listing.products([], as_json=False)) == ["Products: none yet."]


def test_products_as_json_have_the_contracts_fields() -> None:
    """The id's field is `product_id`, not MongoDB's `_id`."""
    (line,) = listing.products([MILK], as_json=True)
    (product,) = json.loads(line)
    assert product["product_id"] == "milk"
    assert set(product) == {"product_id", "name", "type", "price", "updated_at", "source"}
    assert list(listing.products([], as_json=True)) == ["[]"]


def test_a_customer_has_what_they_bought() -> None:
    """A purchase is a line with quantity, product, price and value. The last line has the sums."""
    first, second, third = lines({**ANNA, "purchases": [BOUGHT]}, as_json=False)
    assert first == "Anna Żółć, ul. Długa 1, 00-001 Łódź  (anna)"
    assert plain(second).endswith("3 x Mleko Łaciate, 3,89 zł each = 11,67 zł")
    assert plain(third).strip() == "1 purchases, 11,67 zł"


def test_customers_are_a_line_each() -> None:
    """The columns stand below each other, and a last line names the option that shows more."""
    bob = {**ANNA, "_id": "bob", "first_name": "Bob", "last_name": "B" * 30, "purchases": []}
    assert plain(lines({**ANNA, "purchases": [BOUGHT]}, bob, as_json=False, purchases=False)) == [
        "customer               purchases         spent  id",
        "Anna Żółć                      1      11,67 zł  anna",
        f"Bob {'B' * 30}         0       0,00 zł  bob",
        "What each bought: list-customers --purchases",
    ]
    assert plain(lines({**ANNA, "purchases": [BOUGHT]}, as_json=False, purchases=False, terminal=60))[1:3] == [
        "Anna Żółć                      1      11,67 zł",
        "    anna",
    ]
    assert lines(as_json=False, purchases=False) == ["Customers: none yet."]


def test_a_product_without_a_name_is_called_by_its_id() -> None:
    """A product that was deleted since has no name."""
    _, line, _ = lines({**ANNA, "purchases": [{**BOUGHT, "product_name": None}]}, as_json=False)
    assert "3 x milk," in line


def test_customers_as_json_are_one_array() -> None:
    """The array has one customer a line, so that it can be streamed. Without customers it is empty."""
    found = lines({**ANNA, "purchases": [BOUGHT]}, {**ANNA, "_id": "bob", "purchases": []}, as_json=True)
    anna, bob = json.loads("\n".join(found))
    assert (anna["customer_id"], bob["customer_id"]) == ("anna", "bob")
    assert anna["purchases"][0]["purchase_id"] == "p1"
    assert {"quantity", "price", "value", "purchased_at", "product_id"} <= set(anna["purchases"][0])
    assert bob["purchases"] == []
    assert json.loads("\n".join(lines(as_json=True))) == []
    assert lines(as_json=False) == ["Customers: none yet."]


def test_the_json_of_a_customer_has_the_contracts_fields_and_no_other() -> None:
    """The fields are those of the events, `source`, and the customer's purchases."""
    (anna,) = json.loads("\n".join(lines({**ANNA, "purchases": [BOUGHT]}, as_json=True)))
    assert set(anna) == {*(set(ANNA) - {"_id"}), "customer_id", "purchases"}
    (bought,) = anna["purchases"]
    assert set(bought) == {*(set(BOUGHT) - {"_id"}), "purchase_id"}
    assert (bought["quantity"], bought["price"], bought["value"]) == (3, 389, 1167)
    assert datetime.fromisoformat(bought["purchased_at"].replace("Z", "+00:00")) == NOON


def test_polish_letters_are_written_as_they_are() -> None:
    """Letters in JSON are not escaped, because people read it too."""
    (text,) = listing.products([MILK], as_json=True)
    assert "Mleko Łaciate" in text
    assert "Żółć" in "".join(lines({**ANNA, "purchases": []}, as_json=True))


def test_prices_are_in_one_column() -> None:
    """Long names and Polish letters don't move the prices."""
    documents = [MILK, {**MILK, "name": "Śmietana kremówka z Łowicza", "price": 129900}, {**MILK, "name": "Ser"}]
    assert len({line.index("zł") for line in list(listing.products(documents, as_json=False))[1:]}) == 1


def test_what_does_not_fit_is_on_a_second_line() -> None:
    """No line is longer than the terminal, and no number, name or id is broken."""
    long = {**MILK, "_id": "mleko-mlekovita-3-2", "name": "Mleko Mlekovita 3,2% 1 l", "stock": 2000, "price": 1_234_567}
    sold = {"mleko-mlekovita-3-2": {"units": 7_001, "revenue": 2_793_399}}
    left = {"mleko-mlekovita-3-2": 1_544}
    assert plain(listing.products([long], sold, left, as_json=False, terminal=60)) == [
        "product                          price  left",
        "     sold       revenue  type   id",
        "Mleko Mlekovita 3,2% 1 l  12 345,67 zł  1 544 of 2 000",
        "    7 001  27 933,99 zł  mleko  mleko-mlekovita-3-2",
    ]
    for terminal in (80, 60):
        for found in (
            listing.price_history(PRICES, as_json=False, terminal=terminal),
            lines({**ANNA, "_id": "f" * 32, "purchases": [BOUGHT]}, as_json=False, purchases=False, terminal=terminal),
        ):
            assert max(map(len, found)) <= terminal


def test_a_customer_who_bought_nothing_has_a_line_that_says_so() -> None:
    """Such a customer has "nothing bought yet" instead of sums of 0."""
    assert [line.strip() for line in lines({**ANNA, "purchases": []}, as_json=False)][1:] == ["nothing bought yet"]


def test_the_customers_are_a_stream() -> None:
    """A line is printed before the next customer is read, so that a million of them fit into memory."""
    read: list[str] = []

    async def stream() -> AsyncIterator[dict[str, Any]]:
        for name in ("anna", "bob"):
            read.append(name)
            yield {**ANNA, "_id": name, "purchases": []}

    async def first() -> str:
        return await listing.customers(stream(), as_json=True).__anext__()

    assert '"customer_id":"anna"' in asyncio.run(first())
    assert read == ["anna"]


REPORT = Report(
    status=1,
    kafka={"purchases": 5, "waiting": 0, "dead_letters": 7},
    mongodb={"purchases": 3},
    tables={"purchases": 2, "duplicates": 1, "rejected": 2},
    checks=[Check("lag", True, "0 events wait in Kafka"), Check("customers", False, "1 differ: anna: ...")],
)


def test_a_report_says_what_holds_and_what_does_not() -> None:
    """`verify` prints the numbers, a line for each check, and the verdict."""
    assert list(listing.report(REPORT, as_json=False)) == [
        "Purchases: 5 in Kafka, 3 in MongoDB, 2 in the tables (1 sent twice, 2 not accepted). Dead letters: 7.",
        "ok  lag: 0 events wait in Kafka",
        "NOT customers: 1 differ: anna: ...",
        "Kafka, MongoDB and the tables do NOT agree.",
    ]


def test_a_report_as_json_has_all_of_it() -> None:
    """Scripts get every part of the report."""
    (line,) = listing.report(REPORT, as_json=True)
    found = json.loads(line)
    assert set(found) == {"status", "kafka", "mongodb", "tables", "workers", "deep", "checks"}
    assert found["checks"][1] == {"name": "customers", "good": False, "detail": "1 differ: anna: ..."}


def test_a_check_that_could_not_be_made_is_marked() -> None:
    """An unknown result is neither good nor wrong: `??` in text, null in JSON."""
    report = Report(status=2, checks=[Check("workers", None, "1 can't be asked: ...")])
    assert list(listing.report(report, as_json=False))[1:] == ["??  workers: 1 can't be asked: ...", "Could not check."]
    (line,) = listing.report(report, as_json=True)
    assert json.loads(line)["checks"][0]["good"] is None


def test_a_report_of_status_2_says_so() -> None:
    """A verification that found nothing out says "Could not check.", also without any check."""
    assert list(listing.report(Report(), as_json=False))[-1] == "Could not check."


# -- dead letters

EVIL = "\x1b[31m\x9b1m\u202e\u2028\r\n\x07"
SECOND = NOON + HOUR
FAILURE = Failure("1:2", "shop.purchases", 1, 17, f"unknown product: {EVIL}", "2026-05-01T11:00:00.000+00:00")


def letter(offset: int = 5, **fields: Any) -> Letter:
    """A dead letter with all its fields."""
    said = {
        "id": Id(1, offset),
        "time": NOON,
        "topic": "shop.purchases",
        "partition": 1,
        "offset": 41,
        "reason": "unknown product: product_id 'x' was never offered",
        "key": b"anna",
        "value": b'{"a": 1}',
        "headers": (("trace", b"\xff"),),
    }
    return Letter(**{**said, **fields})


def dead(*found: Letter, limit: int | None = None, as_json: bool = False) -> list[str]:
    """The lines of `dead-letters list`; the one with offset 5 was retried."""

    async def stream() -> AsyncIterator[Letter]:
        for one in found:
            yield one

    async def collect() -> list[str]:
        back = {Id(1, 5): SECOND}
        return [line async for line in listing.dead_letters(stream(), back, limit=limit, as_json=as_json)]

    return asyncio.run(collect())


def test_a_dead_letter_is_a_line() -> None:
    """The line has id, time, origin, key and reason, and whether it failed before or was retried."""
    line, other, summary = dead(letter(), letter(6, retries=2))
    local = NOON.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    back = SECOND.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    reason = "unknown product: product_id 'x' was never offered"
    assert line == f"1:5  {local}  shop.purchases:1:41  anna  {reason}  (retried {back})"
    assert other == f"1:6  {local}  shop.purchases:1:41  anna  {reason}  (failed 2 times before)"
    assert summary == "Dead letters: 2 (1 retried): 2 unknown product."


def test_dead_letters_are_summed_up_by_reason() -> None:
    """The kinds of reasons are counted, the most frequent first, over all dead letters, also those beyond the limit."""
    found = [letter(number, reason=f"{label}: {number}") for number, label in enumerate("aabaabc")]
    *lines, summary = dead(*found, limit=2)
    assert [line.partition(" ")[0] for line in lines] == ["1:5", "1:6"]
    assert summary == "Dead letters: 7 (1 retried): 4 a, 2 b, 1 c."
    assert dead(*found, limit=0) == [summary]
    *_, summary = dead(*(letter(reason=f"reason {number}") for number in range(2_000)))
    assert summary.endswith(", 991 more reasons.")
    assert len(summary) < 500


@pytest.mark.parametrize("limit", [None, 0, 3])
def test_no_dead_letters(limit: int | None) -> None:
    """Without dead letters there is one line, or an empty array."""
    assert dead(limit=limit) == ["Dead letters: none."]
    assert dead(limit=limit, as_json=True) == ["[]"]


def test_dead_letters_as_json_are_an_array() -> None:
    """The array has every field of the list. Bytes that are no text are in Base64."""
    found = json.loads("".join(dead(letter(history=(FAILURE,), retries=1), letter(6, key=b"\xff"), as_json=True)))
    assert [one["id"] for one in found] == ["1:5", "1:6"]
    assert [one["key"] for one in found] == ["anna", {"base64": "/w=="}]
    assert [one["put_back"] for one in found] == ["2026-05-01T13:00:00Z", None]
    assert found[0]["history"][0] == {name: getattr(FAILURE, name) for name in FAILURE.__struct_fields__}
    assert set(found[0]) == {
        *("id", "time", "topic", "partition", "offset", "reason", "key", "put_back", "retries", "history")
    }


def record(offset: int, key: bytes | None, value: bytes | None, at: datetime = NOON) -> Any:
    """A record as aiokafka returns it."""
    return SimpleNamespace(
        partition=1, offset=offset, timestamp=int(at.timestamp() * 1000), key=key, value=value, headers=()
    )


def test_a_record_is_a_line() -> None:
    """The line has partition and offset, time, key and value. Line breaks and control characters are escaped."""
    found = [record(5, b"anna", b'{"a":\n1}'), record(6, None, None), record(7, b"\xff", b"\x1b[2J")]
    local = NOON.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert list(listing.records(found, as_json=False)) == [
        f'1:5  {local}  anna  {{"a":\\n1}}', f"1:6  {local}  -  -", f"1:7  {local}  base64:/w==  \\x1b[2J",
    ]  # fmt: skip
    assert list(listing.records([], as_json=False)) == ["Records: none yet."]


def test_a_record_says_who_sent_it() -> None:
    """The headers of CloudEvents and of W3C Trace Context are behind the value; other headers are in JSON only."""
    headers = (("ce_type", b"pl.shop.bought"), ("other", b"x"), ("traceparent", b"00-ab-cd-01"), ("ce_id", b"\n\xff"))
    found = record(5, b"anna", b"{}")
    found.headers = headers
    (line,) = listing.records([found], as_json=False)
    assert line.endswith("  {}  ce_type=pl.shop.bought  traceparent=00-ab-cd-01  ce_id=base64:Cv8=")
    (shown,) = json.loads("".join(listing.records([found], as_json=True)))
    assert shown["headers"] == [
        ["ce_type", "pl.shop.bought"],
        ["other", "x"],
        ["traceparent", "00-ab-cd-01"],
        ["ce_id", {"base64": "Cv8="}],
    ]


def test_records_as_json_are_an_array() -> None:
    """A value in JSON stays JSON, a text is a string, and other bytes are in Base64."""
    found = [
        record(5, b"anna", b'{"a":1}'),
        record(6, None, None),
        record(7, b"b", b"no json"),
        record(8, b"b", b"\xff"),
    ]
    shown = json.loads("".join(listing.records(found, as_json=True)))
    assert shown[0] == {
        "partition": 1,
        "offset": 5,
        "time": "2026-05-01T12:00:00Z",
        "key": "anna",
        "value": {"a": 1},
        "headers": [],
    }
    assert [one["value"] for one in shown[1:]] == [None, "no json", {"base64": "/w=="}]
    assert list(listing.records([], as_json=True)) == ["[]"]


def test_one_dead_letter_with_all_that_is_known_of_it() -> None:
    """`dead-letters show` prints a line for each field, or one JSON object."""
    mark = (SECOND, Mark("1:5", "shop.purchases", 1, 77))
    one = letter(value=b"\xff\x00", history=(replace(FAILURE, reason="why"),), retries=1)
    shown = list(listing.dead_letter(one, mark, as_json=False))
    for text in (
        "shop.purchases:1:41",
        "unknown product",
        "to shop.purchases:1:77",
        "1:2  2026-05-01T11:00:00.000+00:00",
    ):
        assert sum(text in line for line in shown) == 1, text
    assert shown[-1] == "value:    base64:/wA="
    assert "    trace: base64:/w==" in shown
    (line,) = listing.dead_letter(one, mark, as_json=True)
    found = json.loads(line)
    assert found["put_back_to"] == {"topic": "shop.purchases", "partition": 1, "offset": 77}
    assert found["headers"] == [["trace", {"base64": "/w=="}]]
    assert found["value"] == {"base64": "/wA="}
    assert "retried:  no" in list(listing.dead_letter(letter(), None, as_json=False))
    (line,) = listing.dead_letter(letter(value=None, key=None), None, as_json=True)
    assert (json.loads(line)["put_back"], json.loads(line)["value"]) == (None, None)


def test_nothing_of_a_dead_letter_moves_a_terminal() -> None:
    """Anybody may have written the record, so control characters, direction marks and line breaks are escaped."""
    evil = EVIL.encode()
    one = letter(
        topic=EVIL,
        reason=EVIL,
        key=evil,
        value=evil,
        headers=((EVIL, evil), ("x", None)),
        history=(FAILURE,),
        retries=1,
    )
    foreign = letter(topic="", partition=-1, offset=-1, reason="", key=None, value=None, headers=())
    for found in (one, foreign):
        for as_json in (False, True):
            lines = dead(found, as_json=as_json)
            lines += listing.dead_letter(found, (SECOND, Mark("1:5", EVIL, 1, 2)), as_json=as_json)
            assert all(line.isprintable() for line in lines)
    (line,) = listing.dead_letter(one, None, as_json=True)
    assert json.loads(line)["value"] == EVIL
    assert json.loads("".join(dead(letter(reason="\U000e0001 x"), as_json=True)))[0]["reason"] == "\U000e0001 x"


def test_a_long_reason_is_cut_in_a_list_and_whole_when_shown() -> None:
    """The list also cuts long keys, so that a line stays readable."""
    one = letter(reason="r" * 10_000, key=b"k" * 10_000)
    assert all(len(line) < 700 for line in dead(one))
    assert f"reason:   {'r' * 10_000}" in list(listing.dead_letter(one, None, as_json=False))


def test_the_result_of_a_retry_is_printed() -> None:
    """The line counts the retried ones, those that had been retried before, and the refused ones."""
    assert listing.retried(Outcome(2, 3)) == "2 retried, 3 had been retried before."
    refused = Outcome(0, 0, [(Id(0, 1), "why")])
    assert listing.retried(refused) == "0 retried, 0 had been retried before, 1 could not be retried."


PRICES = Prices(
    "milk",
    "Mleko Łaciate",
    (
        Period(None, NOON, 389, 1, 389),
        Period(NOON, NOON + HOUR, 389, 1234, 480_026),
        Period(NOON + HOUR, NOON + 2 * HOUR, None),
        Period(NOON + 2 * HOUR, None, 419, 2, 838),
    ),
    (Period(NOON, NOON + HOUR, 333, 527, 175_491), Period(NOON, NOON + HOUR, None, 3, 999)),
)


def test_prices_over_time_are_a_line_each() -> None:
    """The line has the beginning and end of a price, and the units and revenue at that price."""
    times = [(NOON + number * HOUR).astimezone().strftime("%Y-%m-%d %H:%M:%S") for number in range(3)]
    assert plain(listing.price_history(PRICES, as_json=False)) == [
        "Mleko Łaciate  (milk)",
        "since                until                       price  units      revenue",
        f"before that          {times[0]}       3,89 zł      1      3,89 zł",
        f"{times[0]}  {times[1]}       3,89 zł  1 234  4 800,26 zł",
        "  at another price                             3,33 zł    527  1 754,91 zł",
        "  at another price                             several      3      9,99 zł",
        f"{times[1]}  {times[2]}  not for sale      0      0,00 zł",
        f"{times[2]}                            4,19 zł      2      8,38 zł",
    ]


def test_prices_over_time_as_json() -> None:
    """The object has the documented fields."""
    (line,) = listing.price_history(PRICES, as_json=True)
    said = json.loads(line)
    assert list(said) == ["product_id", "name", "prices", "other_prices"]
    assert (said["product_id"], said["name"], len(said["prices"])) == ("milk", "Mleko Łaciate", 4)
    assert said["prices"][0]["since"] is None
    assert said["prices"][2:] == [
        {"since": "2026-05-01T13:00:00Z", "until": "2026-05-01T14:00:00Z", "price": None, "units": 0, "revenue": 0},
        {"since": "2026-05-01T14:00:00Z", "until": None, "price": 419, "units": 2, "revenue": 838},
    ]


def test_what_a_terminal_would_obey_is_shown_in_the_prices() -> None:
    """A product's name and id may hold escape sequences."""
    for as_json in (False, True):
        lines = list(listing.price_history(Prices("\x1b[2J", "\x07", ()), as_json=as_json))
        assert all(line.isprintable() for line in lines)


def test_the_plot_is_of_what_was_in_force_within_its_time() -> None:
    """A price that begins after the plot's end is not drawn."""
    later = Period(NOON + 99 * HOUR, None, 99_999)
    found = Prices("milk", "Milk", (*PRICES.prices[:-1], Period(NOON + 2 * HOUR, NOON + 99 * HOUR, 419), later))
    sold = SalesOverTime(NOON, NOON + 3 * HOUR, "hour", (Sold(NOON, 1234, 480_026),))
    lines = list(listing.sales_over_time(Paper(80, False), found, sold))
    assert lines[:2] == ["", "Price, zł"]
    assert "4,19┤" in lines[2]
    assert any("1234┤" in line for line in lines)


@pytest.mark.parametrize("year", [1, 9999])
def test_a_time_at_the_end_of_the_calendar_is_shown(year: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that has no local time is shown in UTC."""
    at = datetime(year, 1, 1, tzinfo=timezone.utc) if year == 1 else datetime(year, 12, 31, 23, 59, tzinfo=timezone.utc)
    for zone in ("Etc/GMT+12", "Etc/GMT-14"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            lines = list(listing.price_history(Prices("milk", "Milk", (Period(at, None, 1),)), as_json=False))
            assert "0,01 zł" in plain(lines[-1])
        finally:
            monkeypatch.undo()
            time.tzset()


def listed(*vouchers: dict[str, Any], as_json: bool = False) -> list[str]:
    """The lines of `list-vouchers`."""
    return asyncio.run(everything(listing.vouchers(each(vouchers), as_json=as_json)))


def test_a_voucher_is_a_line() -> None:
    """The line has the customer, the rule, what the voucher is worth and its last day."""
    two = listed(
        voucher("v", worth={"product_type": "masło", "percent": 20}),
        voucher("w", customer="b\n", worth={"text": "a \x1b[2J", "amount": 1_050}),
    )
    assert plain(line.partition("  ")[2] for line in two) == [
        "anna  bread: 20% off masło, until 2026-05-02",
        "b\\n  bread: 10,50 zł off a \\x1b[2J, until 2026-05-02",
    ]
    assert listed() == ["Vouchers: none yet."]


def test_vouchers_as_json_are_an_array() -> None:
    """The id's field is `voucher_id`, as in the event."""
    assert json.loads("".join(listed(as_json=True))) == []
    (first, second) = json.loads("".join(listed(voucher("v"), voucher("w", worth={"amount": 7}), as_json=True)))
    assert (first["voucher_id"], first["percent"], second["amount"]) == ("v", 5, 7)
    assert "_id" not in first


def test_the_result_of_a_trial_is_printed() -> None:
    """The line has the number of vouchers and customers, the time span, and the number of events that were read."""
    trial = Trial("bread", of_registrations=False, looked_at=7)
    assert listing.tried(trial, as_json=False) == (
        "bread: 0 vouchers for 0 customers; 7 purchases were read, no voucher was given."
    )
    trial.vouchers, trial.customers = 3, {"anna", "bob"}
    trial.first = trial.last = NOON
    assert listing.tried(trial, as_json=False).startswith("bread: 3 vouchers for 2 customers, from 2026-05-01 ")
    assert json.loads(listing.tried(trial, as_json=True)) == {
        "rule": "bread", "looked_at": 7, "vouchers": 3, "customers": 2,
        "first": "2026-05-01T12:00:00Z", "last": "2026-05-01T12:00:00Z",
    }  # fmt: skip


def test_a_product_with_a_stock_shows_what_is_left() -> None:
    """`left` is shown if it is known. A product whose stock is not tracked has no such text."""
    stocked = {**MILK, "stock": 300, "stock_limit": 30}
    lines = list(listing.products([stocked, {**MILK, "_id": "other"}], left={"milk": 12}, as_json=False))
    assert [line.partition("  12 of 300")[1] != "" for line in lines[1:]] == [True, False]
    assert lines[0].split() == ["product", "price", "left", "type", "id"]
    (_, line) = listing.products([stocked], left={"milk": -1333}, as_json=False)
    assert "sold out, 1 333 ordered beyond it" in plain(line)
    one, other = json.loads("".join(listing.products([stocked, MILK], left={"milk": 12}, as_json=True)))
    assert (one["left"], one["stock"], one["stock_limit"]) == (12, 300, 30)
    (untracked,) = json.loads("".join(listing.products([MILK], as_json=True)))
    assert "left" not in untracked
    assert other["left"] == 12


# -- what anybody may have written

HOSTILE = "x\x1b]0;pwn\x07\x9b\n"
SHOWN = "x\\x1b]0;pwn\\x07\\x9b\\n"
JSON_SHOWN = r"x\u001b]0;pwn\u0007\u009b\n"


def test_no_listing_sends_commands_to_a_terminal() -> None:
    """Escape sequences in names, ids and checks are made visible; in JSON they are escaped."""
    product = {**MILK, "_id": HOSTILE, "name": HOSTILE, "type": HOSTILE}
    bought = {**BOUGHT, "product_name": HOSTILE}
    customer = {**ANNA, "_id": HOSTILE, "first_name": HOSTILE, "address": HOSTILE, "purchases": [bought]}
    report = Report(checks=[Check("registrations", True, HOSTILE)])
    for for_people, as_json in (
        (listing.products([product], as_json=False), listing.products([product], as_json=True)),
        (lines(customer, as_json=False), lines(customer, as_json=True)),
        (listing.report(report, as_json=False), listing.report(report, as_json=True)),
    ):
        text = plain("".join(for_people))
        assert text.isprintable()
        assert SHOWN in text
        encoded = "".join(as_json)
        assert encoded.isprintable()
        assert JSON_SHOWN in encoded
        json.loads(encoded)


def test_documents_of_other_programs_are_listed_as_they_are() -> None:
    """A missing field is `-`, and a price that was stored as a double is a price."""
    (_, line) = listing.products([{"_id": "milk", "price": 449.0}], as_json=False)
    assert line.split() == ["milk", "4,49", "zł", "-", "milk"]
    (_, line) = listing.products([{"_id": "milk", "name": 5, "price": "cheap", "type": ["a"]}], as_json=False)
    assert line.split() == ["5", "cheap", "['a']", "milk"]
    name, purchase, total = lines({"_id": "anna", "purchases": [{"_id": "p"}]}, as_json=False)
    assert name == "- -, -  (anna)"
    assert purchase.split() == ["-", "-", "x", "-,", "-", "each", "=", "-"]
    assert total.split() == ["1", "purchases,", "0,00", "zł"]
    assert listing.voucher({"_id": "v"}) == "-  -  -: - off -, until -"
    (line,) = listing.products([{"_id": "milk", "updated_at": DatetimeMS(2**58)}], as_json=True)
    assert json.loads(line)[0]["updated_at"]
