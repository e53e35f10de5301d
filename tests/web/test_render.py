"""The texts and tables that the page shows."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from shopflow.kafka.offsets import Span
from shopflow.shop.recent_sales import Sale, Snapshot
from shopflow.shop.text import visible
from shopflow.web.cached import UNASKED, Age
from shopflow.web.page import render
from shopflow.web.page.render import Cell
from shopflow.web.page.warnings import Learned, ShopState, WorkerState
from tests.support.text import plain
from tests.web.test_warnings import AT, GONE, KNOWN, WELL, letter, report, state

HOSTILE = "<img src=x>\x1b[2J\u202e"


def replaced(seconds: dict[int, tuple[int, int]]) -> Snapshot:
    """A board that knows all, with these sales."""
    return Snapshot(seconds, since=KNOWN.since)


def texts(name: str, now: object = WELL) -> list[list[str]]:
    """The texts of a table's cells."""
    return plain([[cell.text for cell in row] for row in render.shown(now).tables[name]])  # type: ignore[arg-type]


def test_the_charts_end_with_the_last_whole_second() -> None:
    """The current second is left out: it would always look like a slump. Money is the sum of sixty seconds."""
    now = 1_000.7
    seconds = {1_000: (9, 9), 999: (3, 250), 960: (1, 100), 641: (1, 50), 640: (9, 9), 700: (2, 1_000)}
    board = replaced(seconds)
    found = render.series(board, now)
    assert (found.ago[0], found.ago[-1]) == (-299, 0)
    assert (found.purchases[-1], found.money[-1]) == (3, 3.5)
    assert found.money[0] == 10.5  # of second 700, and of the minute before the chart
    assert len(found.ago) == len(found.purchases) == len(found.money) == 300
    assert render.series(KNOWN, now).money == [0.0] * 300


def test_the_charts_begin_when_the_first_sales_are_known() -> None:
    """What is not known is left out: a zero would say that nothing was sold."""
    found = render.series(Snapshot({990: (2, 5)}, since={0: 995.5, 1: 990.0}), 1_000.7)
    assert (found.ago, found.purchases) == ([*range(-9, 1)], [2, *[0] * 9])
    assert render.series(Snapshot(), 1_000.7) == render.Series([], [], [])


def test_a_shop_that_is_well() -> None:
    """The headline says that all is well, and the numbers are summed over all workers."""
    board = replaced({int(AT) - 1: (20, 4_500), int(AT) - 70: (1, 1)})
    workers = [WorkerState("http://h:1", report(0, 1))]
    workers[0].report.counted[1].update(purchases=1_234_567, spent=100)  # type: ignore[union-attr]
    found = render.shown(replace(WELL, board=board, workers=[*workers, WorkerState("http://h:2", report())]))
    assert (found.level, found.headline, found.sentences) == ("good", "All is well", [])
    assert plain(found.numbers) == {
        "Purchases per second": "2,0",
        "Money in the last minute": "45,00 zł",
        "Events waiting": "2",
        "Purchases so far": "1 234 567",
        "Money so far": "1,00 zł",
        "Dead letters": "0",
    }
    assert {name: cell.text for name, cell in found.services.items()} == {
        "Kafka": "up",
        "MongoDB": "up",
        "Workers": "2 up",
    }


def test_an_empty_shop_is_told_how_to_fill_it() -> None:
    """Only where it is known that nothing was sold: all partitions are counted, and MongoDB answers."""
    assert render.shown(WELL).empty
    sold = Learned([{"product_id": "p", "units": 1, "revenue": 5}])
    assert not render.shown(replace(WELL, learned=sold)).empty
    assert not render.shown(replace(WELL, mirrored=replace(WELL.mirrored, failure="away"))).empty
    assert not render.shown(replace(WELL, workers=[state(1, 0)])).empty
    bought = state(1, 0, 1)
    bought.report.counted[0].update(purchases=1)  # type: ignore[union-attr]
    assert not render.shown(replace(WELL, workers=[bought])).empty


def test_a_shop_with_faults() -> None:
    """Each fault is shown in the headline, in its service and in its partition."""
    workers = [state(1, 0, mongodb_away=3.0), WorkerState("http://h:2", None)]
    now = replace(WELL, workers=workers, kafka=UNASKED, spans={"sold": {0: Span(0, 1, 4)}})
    found = render.shown(now)
    assert (found.level, found.headline) == ("bad", "2 things need attention")
    assert [cell.text for cell in found.services.values()] == ["not known", "down", "1 up, 1 down"]
    assert texts("partitions", now) == [
        ["0", "h:1", "running", "none", "not known"],
        ["1", "none", "its worker does not answer", "none", "not known"],
    ]
    assert texts("partitions", replace(now, workers=workers[:1]))[1][2] == "no worker"


def test_a_recovery_shows_its_progress() -> None:
    """A partition shows how much of its counts is recovered, and which worker has a copy. Names lead to the workers."""
    recovering = state(1, 0, 1, serving=False, recovering={0: (3_000, 10_000)})
    now = replace(WELL, workers=[recovering, state(2, standby=[0])])
    first, second = render.shown(now).tables["partitions"]
    assert plain([cell.text for cell in first]) == ["0", "h:1", "recovering, 30 %, 7 000 left", "h:2", "0"]
    assert [cell.text for cell in second[1:4]] == ["h:1", "waits for the others", "none"]
    assert [cell.href for cell in first[1:4]] == ["http://h:1/", "", "http://h:2/"]
    assert texts("partitions", replace(now, workers=[state(1, 0, 1, serving=False)]))[0][2] == "in a rebalance"


def test_since_when_the_last_minutes_are_known() -> None:
    """A worker that took partitions over may not know yet what was sold before. Older gaps are behind the charts."""
    late = replace(WELL, board=Snapshot({int(AT) - 1: (20, 4_500)}, since={0: AT - 30, 1: 0.0}))
    assert notes(late)["workers"] == f"Not known: what was sold in 1 of 2 partitions before {clock(AT - 30)}."
    assert "Purchases per second" not in notes(late)
    assert (
        notes(late)["Money in the last minute"] == f"without what was sold in 1 of 2 partitions before {clock(AT - 30)}"
    )
    assert plain(texts("minutes", late)[2][1:]) == ["at least 0", "at least 0,00 zł"]
    every = replace(late, board=Snapshot({}, since={0: AT - 30, 1: AT - 40}))
    assert notes(every)["workers"] == f"Not known: what was sold before {clock(AT - 30)}."
    assert texts("minutes", every)[2][1:] == ["not known", "not known"]
    assert "workers" not in notes(replace(WELL, board=Snapshot({}, since={0: AT - 400, 1: AT - 900})))
    lost = notes(replace(late, board=Snapshot({}, since={0: AT - 30})))["workers"]
    assert lost == f"Not known: the purchases of 1 of 2 partitions, and what was sold before {clock(AT - 30)}."


def notes(now: ShopState) -> dict[str, str]:
    """The texts of the notes that are not empty."""
    return {name: cell.text for name, cell in render.shown(now).notes.items() if cell.text}


def clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}"


def test_what_is_known_has_its_moment() -> None:
    """Answers are requested at different times, so each says of when it is."""
    hour = datetime.fromtimestamp(AT - 100, timezone.utc)
    now = replace(WELL, kafka=Age(AT - 2, ""), mirrored=Age(AT - 9, ""), learned=Learned(since=hour))
    moment = f"As of {clock(AT - 9)}."
    assert notes(now) == {
        "kafka": f"As of {clock(AT - 2)}.",
        "mongodb": moment,
        "bestsellers": f"{moment} This hour began at {clock(AT - 100)[:5]}.",
    }
    assert {cell.level for cell in render.shown(now).notes.values()} == {""}


def test_what_a_silent_server_was_asked_for_is_not_known() -> None:
    """No number and no table says "none" while its server is silent. The last answer is there, with its age."""
    found = render.shown(replace(WELL, kafka=GONE, mirrored=GONE, dead=2))
    assert (found.numbers["Dead letters"], found.numbers["Events waiting"]) == ("not known", "not known")
    assert (found.notes["Dead letters"].text, found.notes["Events waiting"].text) == (
        f"2 at {clock(AT - 42)}", f"2 at {clock(AT - 42)}",
    )  # fmt: skip
    last = f"Its last answer is of {clock(AT - 42)}, 40 s ago."
    assert found.notes["kafka"] == Cell(f"Not known now: Kafka does not answer. {last}", level="warn")
    assert found.notes["mongodb"] == Cell(f"Not known now: MongoDB does not answer. {last}", level="warn")
    assert {row[-1].text for row in found.tables["partitions"]} == {"not known"}


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (UNASKED, "Not known: MongoDB has not answered yet."),
        (Age(None, "gone"), "Not known: MongoDB does not answer."),
        (
            Age(AT - 7_200, ""),
            f"Not known now: MongoDB has not answered yet. Its last answer is of {clock(AT - 7_200)}, 2 h ago.",
        ),
        (Age(AT - 3, "gone"), f"Not known now: MongoDB does not answer. Its last answer is of {clock(AT - 3)}."),
    ],
)  # fmt: skip
def test_why_it_is_not_known(age: Age, text: str) -> None:
    """A server that was not asked yet, one that never answered, and one that is silent since then are different."""
    assert render.moment(AT, "MongoDB", age) == Cell(text, level="warn")
    refuses = Cell("Not known: MongoDB refuses the request.", level="warn")
    assert render.moment(AT, "MongoDB", Age(None, "no rights"), {"MongoDB"}) == refuses


def test_sums_without_all_workers_are_said_to_be_partial() -> None:
    """A sum that lacks partitions is the least that it can be. Of two claims to a partition the later one counts."""
    late, early = state(1, 0), state(3, 0)
    late.report.counted[0].update(purchases=7, spent=700)  # type: ignore[union-attr]
    early.report.counted[0].update(purchases=5, spent=900)  # type: ignore[union-attr]
    now = replace(WELL, workers=[late, early, WorkerState("http://h:2", None)])
    now = replace(now, board=Snapshot(since={0: 0.0}))
    found = render.shown(now)
    sums = plain([found.numbers["Purchases so far"], found.numbers["Money so far"]])
    assert sums == ["at least 7", "at least 7,00 zł"]
    assert notes(now) | {"kafka": "", "mongodb": "", "bestsellers": ""} == {
        "workers": "Not known: the purchases of 1 of 2 partitions.",
        "Purchases per second": "without the purchases of 1 of 2 partitions",
        "Money in the last minute": "without the purchases of 1 of 2 partitions",
        **dict.fromkeys(("Purchases so far", "Money so far"), "1 of 2 partitions not known"),
        "kafka": "", "mongodb": "", "bestsellers": "",
    }  # fmt: skip
    recovering = replace(WELL, workers=[state(1, 0, 1, serving=False, counted={})])
    assert render.shown(recovering).numbers["Purchases so far"] == "not known"


def test_names_are_shown_as_plain_text() -> None:
    """Names are cut, and their control characters are made visible. An unknown name is replaced by its id."""
    sale = Sale(AT, "b", HOSTILE, "p", 2, 798)
    sold = [{"product_id": name, "units": units, "revenue": grosze} for name, units, grosze in
            (("p", 2, 798), ("q" * 100, 1, 1))]  # fmt: skip
    now = replace(WELL, board=Snapshot({}, [sale] * 30), learned=Learned(hour=sold), products={"p": HOSTILE})
    assert texts("hour", now) == [[visible(HOSTILE), "2", "7,98 zł"], ["q" * 60 + "...", "1", "0,01 zł"]]
    rows = render.shown(now).tables["latest"]
    assert len(rows) == 12
    assert plain(cell.text for cell in rows[0][1:]) == [visible(HOSTILE), visible(HOSTILE), "2", "7,98 zł"]
    assert rows[0][1].href == "/?customer=%3Cimg%20src%3Dx%3E%1B%5B2J%E2%80%AE#customer"


def test_bestsellers_and_vouchers() -> None:
    """Bestsellers and vouchers show names where they are known, and link to the product and the customer."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    given = {"customer_id": "c", "rule": "r", "amount": 500, "text": HOSTILE, "issued_at": at, "valid_until": at}
    sold = [{"product_id": "p", "units": 1_234, "revenue": 5}, {"product_id": HOSTILE, "units": 1, "revenue": 5}]
    now = replace(
        WELL, learned=Learned(sold, sold[:1], vouchers=[given]), products={"p": "Milk"}, customers={"c": "Anna"}
    )
    assert texts("ever", now) == [
        ["Milk", "1 234", "0,05 zł"],
        [visible(HOSTILE), "1", "0,05 zł"],
    ]
    assert texts("today", now) == texts("ever", now)[:1]
    rows = render.shown(now).tables
    assert [row[0].href for row in rows["ever"]] == [
        "/?product=p#product",
        "/?product=%3Cimg%20src%3Dx%3E%1B%5B2J%E2%80%AE#product",
    ]
    ((_, customer, *rest),) = rows["vouchers"]
    assert (customer.text, customer.href) == ("Anna", "/?customer=c#customer")
    assert plain(cell.text for cell in rest) == ["r", f"5,00 zł off {visible(HOSTILE)}", "2026-01-02"]
    known = render.customer("c", None, None, [], [], vouchers=[given])
    assert [cell.text for cell in known.vouchers[0]] == [rows["vouchers"][0][0].text, *(cell.text for cell in rest)]


def test_alerts_of_low_stock() -> None:
    """An alert shows its time, the product, what was left and the stock. More than the stock may have been ordered."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    told = [{"product_id": name, "left": left, "stock": 1_000, "at": at} for name, left in (("p", 3), (HOSTILE, -2))]
    now = replace(WELL, learned=Learned(alerts=told), products={"p": "Milk"})
    assert [row[1:] for row in texts("alerts", now)] == [
        ["Milk", "3", "1 000"], [visible(HOSTILE), "sold out, 2 ordered beyond it", "1 000"],
    ]  # fmt: skip
    assert render.shown(now).tables["alerts"][0][1].href == "/?product=p#product"


def test_dead_letters_have_their_reasons() -> None:
    """A dead letter is shown with its reason, its origin, and the id that `dead-letters show` takes."""
    ((_, reason, place, number),) = texts("letters", replace(WELL, letters=[letter("not JSON: \x07", 1)], dead=1))
    assert (reason, place, number) == ("not JSON: \\x07", "sold:0:1", "0:1")


def test_a_table_has_the_numbers_of_the_charts() -> None:
    """A table has the charts' numbers of the last ten minutes, for screen readers."""
    minute = int(AT) // 60
    rows = texts("minutes", replace(WELL, board=replaced({minute * 60 - 1: (2, 300), minute * 60 - 60: (1, 5)})))
    assert len(rows) == 10
    assert rows[1][1:] == ["3", "3,05 zł"]
    assert rows[2][1:] == ["0", "0,00 zł"]


def test_a_customer() -> None:
    """A known customer has a name, facts and purchases. An unknown one has the id and the problems."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    bought = {
        "_id": "b 1",
        "purchased_at": at,
        "product_id": "p",
        "product_name": None,
        "quantity": 2,
        "price": 5,
        "value": 10,
    }
    known = {"first_name": "Anna", "last_name": "Nowak", "address": "a", "city": None, "registered_at": at}
    found = render.customer("anna", {"purchases": 1, "items": 2, "spent": 10}, known, [bought], [])
    assert found.name == "Anna Nowak"
    assert list(found.facts) == ["Address", "Registered", "Purchases", "Items", "Spent"]
    assert found.purchases[0][0].href == "/trace/?purchase=b%201"
    assert plain(cell.text for cell in found.purchases[0][1:]) == ["p", "2", "0,05 zł", "0,10 zł"]
    nobody = render.customer(HOSTILE, None, None, [], ["why"])
    assert (nobody.customer_id, nobody.name, nobody.facts, nobody.problems) == (visible(HOSTILE), "", {}, ["why"])


def test_documents_without_fields_are_shown() -> None:
    """A document without any field gives dashes; the page must not fail."""
    shown = render.customer("anna", None, {"_id": "anna"}, [{"_id": "p"}], [], vouchers=[{"_id": "v"}])
    assert shown.facts == {"Address": "", "Registered": "-"}
    assert [cell.text for cell in shown.purchases[0]] == ["-"] * 5
    assert [cell.text for cell in shown.vouchers[0]] == ["-", "-", "- off -", "-"]
