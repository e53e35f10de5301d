"""The texts and tables of the page, for its HTML and its updates. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from urllib.parse import quote

import msgspec

from shopflow.shop.recent_sales import Snapshot
from shopflow.shop.stock import in_words
from shopflow.shop.text import day, day_and_time, decimal, gift, grouped, money, visible
from shopflow.store.types import Document
from shopflow.web.cached import Age

from .warnings import ShopState, WorkerState, duration, warnings

#: Whole seconds that the charts show.
CHART_SECONDS = 300
_AVERAGE_SECONDS = 10
_MINUTES = 10
_LATEST = 12
#: Characters of a name, and of a reason.
_SHORT = 60
_LONG = 200
_UNKNOWN = "not known"


class Cell(msgspec.Struct, frozen=True):
    text: str
    href: str = ""
    level: str = ""


Rows: TypeAlias = list[list[Cell]]


def row(*cells: str | Cell) -> list[Cell]:
    """A row of a table; a text is a cell without a link or a level."""
    return [cell if isinstance(cell, Cell) else Cell(cell) for cell in cells]


class Shown(msgspec.Struct):
    """Everything on the page that changes."""

    level: str
    headline: str
    sentences: list[Cell]
    services: dict[str, Cell]
    numbers: dict[str, str]
    tables: dict[str, Rows]
    notes: dict[str, Cell]
    """The moment of what is shown, by a number's name or a source. With a level: it is not known now, or not whole."""

    time: str
    empty: bool  #: Nothing was sold yet; False also if that is not known.
    facts: dict[str, str] = {}  #: of the product that is shown


class Series(msgspec.Struct):
    """The columns of the shop's charts."""

    ago: list[int]  #: seconds, from the oldest to 0
    purchases: list[int]  #: of that second
    money: list[float]  #: zł, of the sixty seconds up to then


class Customer(msgspec.Struct):
    customer_id: str
    name: str
    facts: dict[str, str]
    purchases: Rows
    problems: list[str]
    vouchers: Rows
    moment: Cell = Cell("")


def series(board: Snapshot, now: float) -> Series:
    """The last five minutes, second by second, as far as they are known.

    Arguments:
        now: When the board was asked for.
    """
    known = min(board.since.values(), default=now)
    last = int(now) - 1
    earned = sum(_money(board, second) for second in range(last - CHART_SECONDS - 59, last - CHART_SECONDS + 1))
    found = Series([], [], [])
    for ago in range(CHART_SECONDS - 1, -1, -1):
        second = last - ago
        earned += _money(board, second) - _money(board, second - 60)
        if second < int(known):
            continue
        found.ago.append(-ago)
        found.purchases.append(board.seconds.get(second, (0, 0))[0])
        found.money.append(earned / 100)
    return found


def _money(board: Snapshot, second: int) -> int:
    return board.seconds.get(second, (0, 0))[1]


def shown(now: ShopState) -> Shown:
    found = warnings(now)
    level = found[0].level if found else "good"
    attention = "One thing needs" if len(found) == 1 else f"{len(found)} things need"
    return Shown(
        level=level,
        headline=f"{attention} attention" if found else "All is well",
        sentences=[Cell(visible(warning.text), warning.href, warning.level) for warning in found],
        services=_services(now),
        numbers=_numbers(now),
        tables={
            "partitions": _partitions(now),
            "hour": _bestsellers(now, now.learned.hour),
            "today": _bestsellers(now, now.learned.today),
            "ever": _bestsellers(now, now.learned.ever),
            "vouchers": _vouchers(now),
            "alerts": _alerts(now),
            "latest": _latest(now),
            "letters": _letters(now),
            "minutes": _minutes(now),
        },
        notes=_notes(now),
        time=_clock(now.at, zone=True),
        empty=_empty(now),
    )


def _empty(now: ShopState) -> bool:
    counted = len(now.counted) == now.partitions and now.mirrored.known(now.at)
    return counted and not now.learned.ever and not any(sums["purchases"] for sums in now.counted.values())


def _notes(now: ShopState) -> dict[str, Cell]:
    mirrored, began = moment(now.at, "MongoDB", now.mirrored, now.refusing), now.learned.since
    since = f" This hour began at {_clock(began.timestamp())[:-3]}." if began else ""
    lacking = _lacking(now, CHART_SECONDS + 60)
    return {
        "mongodb": mirrored,
        "bestsellers": Cell(mirrored.text + since, level=mirrored.level),
        "kafka": moment(now.at, "Kafka", now.kafka, now.refusing),
        "workers": Cell(f"Not known: {lacking}." if lacking else "", level="warn" if lacking else ""),
        **_of_numbers(now),
    }


def _lacking(now: ShopState, seconds: int) -> str:
    """The purchases of these last seconds that are not known; empty: all are."""
    asked, since, every = now.asked.at or now.at, now.board.since, now.partitions
    missing, late = every - len(since), [one for one in since.values() if one > asked - seconds]
    found = [f"the purchases of {missing} of {every} partitions"] if missing else []
    if late:
        where = f" in {len(late)} of {every} partitions" if len(late) < every - missing else ""
        found.append(f"what was sold{where} before {_clock(max(late))}")
    return ", and ".join(found)


def _of_numbers(now: ShopState) -> dict[str, Cell]:
    found = dict.fromkeys(_numbers(now), Cell(""))
    for name, seconds in (("Purchases per second", _AVERAGE_SECONDS), ("Money in the last minute", 60)):
        if lacking := _lacking(now, seconds):
            found[name] = Cell(f"without {lacking}", level="warn")
    if uncounted := now.partitions - len(now.counted):
        lacks = Cell(f"{uncounted} of {now.partitions} partitions not known", level="warn")
        found |= dict.fromkeys(("Purchases so far", "Money so far"), lacks)
    if not now.kafka.known(now.at) and now.kafka.at is not None and now.waiting is not None:
        for name, number in (("Events waiting", now.waiting), ("Dead letters", now.dead)):
            found[name] = Cell(f"{grouped(number)} at {_clock(now.kafka.at)}", level="warn")
    return found


def moment(now: float, service: str, age: Age, refusing: Collection[str] = ()) -> Cell:
    """When an answer of a server was asked for, and why there is no newer one."""
    if age.at is not None and age.known(now):
        return Cell(f"As of {_clock(age.at)}.")
    silence = "refuses the request" if service in refusing else "does not answer"
    why = f"{service} {silence if age.failure else 'has not answered yet'}"
    if age.at is None:
        return Cell(f"Not known: {why}.", level="warn")
    ago = f", {duration(now - age.at)} ago" if now - age.at >= 10 else ""
    return Cell(f"Not known now: {why}. Its last answer is of {_clock(age.at)}{ago}.", level="warn")


def _services(now: ShopState) -> dict[str, Cell]:
    silent = len(now.workers) - len(now.reports)
    workers = f"{len(now.reports)} up" + (f", {silent} down" if silent else "")
    return {
        "Kafka": _service(now.kafka.failure, [report.kafka_away for report in now.reports]),
        "MongoDB": _service(now.mongodb.failure, [report.mongodb_away for report in now.reports]),
        "Workers": Cell(workers, level="bad" if silent else "good"),
    }


def _service(failure: str | None, away: Sequence[float | None]) -> Cell:
    if failure or any(seconds is not None for seconds in away):
        return Cell("down", level="bad")
    return Cell(_UNKNOWN, level="warn") if failure is None else Cell("up", level="good")


def _numbers(now: ShopState) -> dict[str, str]:
    last = int(now.asked.at or now.at) - 1
    recent = sum(now.board.seconds.get(last - ago, (0, 0))[0] for ago in range(_AVERAGE_SECONDS))
    return {
        "Purchases per second": decimal(recent / _AVERAGE_SECONDS),
        "Money in the last minute": money(sum(_money(now.board, last - ago) for ago in range(60))),
        "Events waiting": grouped(now.waiting) if now.kafka.known(now.at) else _UNKNOWN,
        "Purchases so far": _total(now, "purchases", grouped),
        "Money so far": _total(now, "spent", money),
        "Dead letters": grouped(now.dead) if now.kafka.known(now.at) else _UNKNOWN,
    }


def _total(now: ShopState, name: str, form: Callable[[int], str]) -> str:
    """The sum over all partitions, or what it is at least."""
    if not now.counted:
        return _UNKNOWN
    least = "at least " if len(now.counted) < now.partitions else ""
    return least + form(sum(sums[name] for sums in now.counted.values()))


def _partitions(now: ShopState) -> Rows:
    """A row for each partition: its workers, its state, the workers with a copy of it, and its lag in each topic."""
    rows = []
    owners = {topic: now.owners(topic) for topic in now.topics}
    for number in range(now.partitions):
        having = list({owned[number].url: owned[number] for owned in owners.values() if number in owned}.values())
        missing = any(number not in owned for owned in owners.values())
        state = _state(having, number, missing=missing, silent=len(now.reports) < len(now.workers))
        copies = [worker for worker in now.workers if worker.report and number in worker.report.standby]
        lag = (_waiting(now, topic, number) for topic in now.topics)
        rows.append(row(str(number), _workers(having, "bad"), state, _workers(copies), *lag))
    return rows


def _workers(found: Sequence[WorkerState], level: str = "") -> Cell:
    """The names; of one worker alone with a link to its page."""
    if not found:
        return Cell("none", level=level)
    return Cell(", ".join(one.name for one in found), f"{found[0].url}/" if len(found) == 1 else "")


def _state(having: Sequence[WorkerState], number: int, *, missing: bool, silent: bool) -> Cell:
    if missing:
        return Cell("its worker does not answer" if silent else "no worker", level="bad")
    for report in [worker.report for worker in having if worker.report and not worker.report.serving]:
        if number not in report.recovering:
            return Cell("waits for the others" if report.recovering else "in a rebalance", level="warn")
        done, every = report.recovering[number]
        return Cell(f"recovering, {100 * done // every} %, {grouped(every - done)} left", level="warn")
    return Cell("running", level="good")


def _waiting(now: ShopState, topic: str, number: int) -> str:
    span = (now.spans or {}).get(topic, {}).get(number)
    return grouped(span.high - span.done) if span and now.kafka.known(now.at) else _UNKNOWN


def _bestsellers(now: ShopState, sold: Sequence[Mapping[str, Any]]) -> Rows:
    return [_sold(now, one["product_id"], one["units"], one["revenue"]) for one in sold]


def _sold(now: ShopState, product_id: str, units: int, revenue: int) -> list[Cell]:
    return row(_product(now, product_id), grouped(units), money(revenue))


def _product(now: ShopState, product_id: str) -> Cell:
    return _linked("product", product_id, now.products.get(product_id))


def _buyer(now: ShopState, customer_id: str) -> Cell:
    return _linked("customer", customer_id, now.customers.get(customer_id))


def _linked(kind: str, id_: str, name: Any) -> Cell:
    """The name, or else the id, with a link to its part of the page."""
    return Cell(short(str(name or id_)), f"/?{kind}={quoted(id_)}#{kind}")


def traced(purchase_id: str) -> str:
    """The address of the page that follows a purchase."""
    return f"/trace/?purchase={quoted(purchase_id)}"


def quoted(id_: str) -> str:
    return quote(id_.encode("utf-8", "backslashreplace"), safe="")


def _vouchers(now: ShopState) -> Rows:
    return [
        row(_minute(one.get("issued_at")), _buyer(now, str(one.get("customer_id", "-"))), *_given(one))
        for one in now.learned.vouchers
    ]


def _alerts(now: ShopState) -> Rows:
    return [
        row(
            _minute(one.get("at")),
            _product(now, str(one.get("product_id", "-"))),
            in_words(one.get("left")),
            grouped(one.get("stock")),
        )
        for one in now.learned.alerts
    ]


def _minute(at: Any) -> str:
    return day_and_time(at)[: len("2026-01-31 23:59")]


def _given(voucher: Mapping[str, Any]) -> tuple[str, str, str]:
    return short(str(voucher.get("rule", "-"))), gift(voucher), day(voucher.get("valid_until"))


def _latest(now: ShopState) -> Rows:
    return [
        row(
            Cell(_clock(sale.at), traced(sale.purchase_id)),
            _buyer(now, sale.customer_id),
            *_sold(now, sale.product_id, sale.quantity, sale.value),
        )
        for sale in now.board.latest[:_LATEST]
    ]


def _letters(now: ShopState) -> Rows:
    return [
        row(
            day_and_time(letter.time),
            visible(letter.reason, _LONG) or "none given",
            f"{short(letter.topic)}:{letter.partition}:{letter.offset}" if letter.topic else "unknown",
            Cell(str(letter.id), f"/dead-letters/{letter.id}/"),
        )
        for letter in now.letters
    ]


def _minutes(now: ShopState) -> Rows:
    """The numbers of the charts by minute, newest first."""
    rows = []
    asked, since = now.asked.at or now.at, now.board.since.values()
    known = min(since, default=asked)
    complete = max(since, default=asked) if len(since) == now.partitions else asked
    this = int(asked) // 60
    for minute in range(this, this - _MINUTES, -1):
        sums = [now.board.seconds.get(second, (0, 0)) for second in range(minute * 60, minute * 60 + 60)]
        begins = datetime.fromtimestamp(minute * 60).astimezone()
        texts = grouped(sum(count for count, _ in sums)), money(sum(grosze for _, grosze in sums))
        if minute * 60 + 60 <= known:
            texts = (_UNKNOWN, _UNKNOWN)
        elif minute * 60 < complete:
            texts = (f"at least {texts[0]}", f"at least {texts[1]}")
        rows.append(row(f"{begins:%H:%M}", *texts))
    return rows


def customer(
    customer_id: str,
    count: Mapping[str, int] | None,
    document: Document | None,
    purchases: Sequence[Document],
    problems: Sequence[str],
    *,
    vouchers: Sequence[Document] = (),
) -> Customer:
    """A customer.

    Arguments:
        count: Purchases, items and spent; None: no purchases, or unknown.
        document: The document in MongoDB.
        problems: Sentences that say why something is missing.
    """
    known = document or {}
    name = " ".join(str(known[field]) for field in ("first_name", "last_name") if known.get(field))
    facts = {}
    if known:
        address = (str(known[field]) for field in ("address", "city") if known.get(field))
        registered = day_and_time(known.get("registered_at"))
        facts = {"Address": visible(", ".join(address), _LONG), "Registered": registered}
    if count:
        facts |= {
            "Purchases": grouped(count["purchases"]),
            "Items": grouped(count["items"]),
            "Spent": money(count["spent"]),
        }
    bought = [
        row(
            Cell(day_and_time(one.get("purchased_at")), traced(str(one["_id"]))),
            _linked("product", str(one.get("product_id", "-")), one.get("product_name")),
            grouped(one.get("quantity")),
            money(one.get("price")),
            money(one.get("value")),
        )
        for one in purchases
    ]
    given = [row(_minute(one.get("issued_at")), *_given(one)) for one in vouchers]
    missing = [visible(problem) for problem in problems]
    return Customer(visible(customer_id, _LONG), short(name), facts, bought, missing, given)


def matches(kind: str, found: Sequence[Document], most: int) -> list[Cell]:
    """Links to products or customers that a search found, and a sentence if there are more than `most`."""
    one = kind.removesuffix("s")
    links = [_linked(one, str(document["_id"]), _named(document)) for document in found[:most]]
    return links + [Cell("There are more: type more of the name.")] * (len(found) > most)


def _named(document: Document) -> str:
    """The name; a customer's with the city, to tell those of one name apart."""
    names = (str(document[field]) for field in ("name", "first_name", "last_name") if document.get(field))
    return " ".join(names) + (f", {document['city']}" if document.get("city") else "")


def short(text: str) -> str:
    return visible(text, _SHORT)


def _clock(at: float, *, zone: bool = False) -> str:
    found = datetime.fromtimestamp(at).astimezone()
    return f"{found:%H:%M:%S} {found.tzname()}" if zone else f"{found:%H:%M:%S}"
