"""Formats documents, records and reports as the lines that commands print. No I/O."""

from __future__ import annotations

import base64
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from textwrap import wrap
from typing import Any

import msgspec

from shopflow.operations.letters import Failure, Id, Letter, Mark, is_of_sender, time_of
from shopflow.operations.retry import Outcome
from shopflow.operations.verify.report import Check, Report
from shopflow.shop.price_history import Period, Prices, SalesOverTime
from shopflow.shop.promotions.trial import Trial
from shopflow.shop.stock import in_words
from shopflow.shop.text import day, day_and_time, gift, grouped, money, text_of, visible, whole
from shopflow.store.types import Document

from .output import NOTHING_YET, Column, JsonArray, aligned, as_one_line, one_by_one
from .plots import Paper, price_and_units

#: A terminal with fewer columns gets fewer, or more lines.
_WIDE = 80
#: Characters of a key or a reason in a list.
_SHORT = 200
#: Reasons that a summary names, and that it counts separately.
_NAMED, _MAX_REASONS = 10, 1_000


def products(
    documents: Sequence[Document],
    sold: Mapping[str, Document] | None = None,
    left: Mapping[str, int] | None = None,
    *,
    as_json: bool,
    terminal: int | None = None,
) -> Iterator[str]:
    """A header and one line per product; as JSON one array.

    Arguments:
        sold: The sales by product_id. None: they are not shown.
        left: The units left by product_id, for products with a stock.
        terminal: Its width; None: no limit.
    """
    left = left or {}
    if as_json:
        shown = [_public(document, "product_id") for document in documents]
        for document in shown:
            name = document["product_id"]
            if name in left:
                document["left"] = left[name]
            if sold is not None:
                document.update({field: _sold(sold, name)[field] for field in _SOLD})
        yield as_one_line(shown)
        return
    if not documents:
        yield f"Products: {NOTHING_YET}."
        return
    columns = [Column("product"), Column("price", number=True)]
    columns += [Column("left")] if left else []
    columns += [Column("sold", number=True), Column("revenue", number=True)] if sold is not None else []
    rows = [_product(document, sold, left) for document in documents]
    yield from aligned([*columns, Column("type"), Column("id")], rows, terminal)


def _product(document: Document, sold: Mapping[str, Document] | None, left: Mapping[str, int]) -> list[str]:
    name = document["_id"]
    cells = [_name(document), money(document.get("price"))]
    if left:
        cells.append(in_words(left[name], document["stock"]) if name in left else "")
    if sold is not None:
        sale = _sold(sold, name)
        cells += [grouped(sale["units"]), money(sale["revenue"])]
    return [*cells, text_of(document, "type"), _id(document)]


_SOLD = ("purchases", "units", "revenue")


def _id(document: Document) -> str:
    return visible(str(document["_id"]))


def _name(product: Document) -> str:
    return visible(str(product.get("name") or product["_id"]))


def _sold(sold: Mapping[str, Document], product_id: str) -> Document:
    return sold.get(product_id) or dict.fromkeys(_SOLD, 0)


def price_history(found: Prices, *, as_json: bool, terminal: int | None = None) -> Iterator[str]:
    """One line per price, oldest first, with the sales at it; as JSON one object.

    Arguments:
        terminal: Its width; None: no limit. A narrow one has no room for the end of a price, where the next one begins.
    """
    if as_json:
        yield as_one_line(found)
        return
    yield f"{visible(found.name or 'no longer offered')}  ({visible(found.product_id)})"
    until = terminal is None or terminal >= _WIDE
    columns = [Column("since"), *([Column("until")] if until else [])]
    columns += [Column(name, number=True) for name in ("price", "units", "revenue")]
    rows = [_period(period, other) for period, other in found.rows()]
    yield from aligned(columns, [row if until else [row[0], *row[2:]] for row in rows], terminal)


def _period(period: Period, other: bool) -> list[str]:
    since = "before that" if period.since is None else day_and_time(period.since)
    until = "" if period.until is None else day_and_time(period.until)
    if other:
        since, until = "  at another price", ""
    nothing = "several" if other else "not for sale"
    price = nothing if period.price is None else money(period.price)
    return [since, until, price, grouped(period.units), money(period.revenue)]


def sales_over_time(on: Paper, found: Prices, sold: SalesOverTime) -> Iterator[str]:
    """A plot of the prices, and below it the sales."""
    start, end = sold.start, sold.end
    steps = [(one.since or start, one.until or end, one.price) for one in found.prices]
    bars = [(one.since or start, (one.since or start) + sold.width, one.units) for one in sold.sold]
    shown = [(since, until, price) for since, until, price in steps if since < end and until > start]
    yield ""
    yield from price_and_units(on, start, end, shown, bars, bucket=sold.bucket)


async def customers(
    documents: AsyncIterator[Document], *, as_json: bool, purchases: bool = False, terminal: int | None = None
) -> AsyncIterator[str]:
    """One line per customer; as JSON one array, with a line per customer and all purchases.

    Arguments:
        purchases: Below each customer a line for each purchase.
        terminal: Its width; None: no limit. A narrow one has a line of its own for the id.
    """
    if as_json or purchases:
        async for line in one_by_one(documents, _public_customer if as_json else None, _customer, "Customers"):
            yield line
        return
    found = False
    async for document in documents:
        if not found:
            yield _CUSTOMER.format("customer", "purchases", "spent", "id")
        found = True
        for line in _short_customer(document, narrow=terminal is not None and terminal < _WIDE):
            yield line
    yield "What each bought: list-customers --purchases" if found else f"Customers: {NOTHING_YET}."


#: Each customer is printed before the next is read, so the columns have fixed widths.
_CUSTOMER = "{:<22} {:>9} {:>13}  {}"


def _short_customer(document: Document, *, narrow: bool) -> Iterator[str]:
    name = " ".join(text_of(document, field) for field in ("first_name", "last_name"))
    spent = sum(whole(purchase.get("value")) or 0 for purchase in document["purchases"])
    sums = name, grouped(len(document["purchases"])), money(spent)
    if narrow:
        yield _CUSTOMER.format(*sums, "").rstrip()
        yield f"    {_id(document)}"
    else:
        yield _CUSTOMER.format(*sums, _id(document))


def _customer(document: Document) -> Iterator[str]:
    purchases = document["purchases"]
    first, last, address = (text_of(document, field) for field in ("first_name", "last_name", "address"))
    yield f"{first} {last}, {address}  ({_id(document)})"
    for purchase in purchases:
        name = text_of(purchase, "product_name" if purchase.get("product_name") else "product_id")
        bought = f"{text_of(purchase, 'quantity')} x {name}"
        price, value = money(purchase.get("price")), money(purchase.get("value"))
        yield f"    {day_and_time(purchase.get('purchased_at'))}  {bought}, {price} each = {value}"
    if not purchases:
        yield "    nothing bought yet"
    else:
        total = sum(whole(purchase.get("value")) or 0 for purchase in purchases)
        yield f"    {grouped(len(purchases))} purchases, {money(total)}"


def _public_customer(document: Document) -> Document:
    purchases = [_public(purchase, "purchase_id") for purchase in document["purchases"]]
    return {**_public(document, "customer_id"), "purchases": purchases}


def _public(document: Document, key: str) -> Document:
    return {
        key: document["_id"],
        **{name: value for name, value in document.items() if name not in {"_id", "purchases"}},
    }


def vouchers(documents: AsyncIterator[Document], *, as_json: bool) -> AsyncIterator[str]:
    """One line per voucher; as JSON one array, with a line per voucher."""
    public = partial(_public, key="voucher_id") if as_json else None
    return one_by_one(documents, public, lambda document: [voucher(document)], "Vouchers")


def voucher(document: Document) -> str:
    issued, until = day_and_time(document.get("issued_at")), day(document.get("valid_until"))
    customer, rule = text_of(document, "customer_id"), text_of(document, "rule")
    return f"{issued}  {customer}  {rule}: {gift(document)}, until {until}"


def tried(trial: Trial, *, as_json: bool) -> str:
    """The line that `try-promotion` prints."""
    if as_json:
        return as_one_line(trial.as_json())
    what = "registrations" if trial.of_registrations else "purchases"
    found = f"{trial.rule}: {trial.vouchers} vouchers for {len(trial.customers)} customers"
    span = f", from {day_and_time(trial.first)} to {day_and_time(trial.last)}" if trial.first and trial.last else ""
    return f"{found}{span}; {trial.looked_at} {what} were read, no voucher was given."


_VERDICTS = {
    0: "Kafka, MongoDB and the tables agree.",
    1: "Kafka, MongoDB and the tables do NOT agree.",
    2: "Could not check.",
}
_MARKS = {True: "ok ", False: "NOT", None: "?? "}


def report(found: Report, *, as_json: bool) -> Iterator[str]:
    """The lines that `verify` prints."""
    if as_json:
        yield as_one_line(found)
        return
    yield (
        f"Purchases: {found.kafka.get('purchases', 0)} in Kafka, {found.mongodb.get('purchases', 0)} in MongoDB, "
        f"{found.tables.get('purchases', 0)} in the tables ({found.tables.get('duplicates', 0)} sent twice, "
        f"{found.tables.get('rejected', 0)} not accepted). Dead letters: {found.kafka.get('dead_letters', 0)}."
    )
    for check in found.checks:
        yield f"{_MARKS[check.good]} {check.name}: {visible(check.detail)}"
    yield _VERDICTS[found.status]


_DOCTOR = {0: "All is good.", 1: "Something is bad.", 2: "Nothing is known to be bad, but not all could be told."}


def doctor(checks: Sequence[Check], *, columns: int | None, as_json: bool) -> Iterator[str]:
    """The lines that `doctor` prints.

    Arguments:
        columns: The width of the terminal; None: one line for each check.
    """
    status = doctor_status(checks)
    if as_json:
        yield as_one_line({"status": status, "checks": checks})
        return
    for check in checks:
        line = f"{_MARKS[check.good]} {check.name}: {visible(check.detail)}"
        if columns is None:
            yield line
        else:
            yield from wrap(
                line, max(columns, 20), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
            )
    yield _DOCTOR[status]


def doctor_status(checks: Sequence[Check]) -> int:
    """0: all is good. 1: something is bad. 2: something could not be told."""
    found = {check.good for check in checks}
    return 1 if False in found else 2 if None in found else 0


def _text(data: bytes | None) -> str:
    """UTF-8 as text, other bytes as Base64; `-` for None."""
    known = _bytes(data)
    return "-" if known is None else known if isinstance(known, str) else f"base64:{known['base64']}"


def _bytes(data: bytes | None) -> Any:
    """For JSON: UTF-8 as text, other bytes as an object with Base64; None for None."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


async def dead_letters(
    letters: AsyncIterator[Letter], retried: Mapping[Id, datetime], *, limit: int | None, as_json: bool
) -> AsyncGenerator[str, None]:
    """One line per dead letter, newest last, and a summary; as JSON one array, with a line per dead letter.

    Arguments:
        retried: The times of the retries, by dead letter.
        limit: At most this many, the newest; None: all.
    """
    array, count = JsonArray(), 0
    reasons: Counter[str] = Counter()
    newest: deque[Letter] = deque(maxlen=limit)

    def line(letter: Letter) -> str:
        when = retried.get(letter.id)
        return array.line(_public_letter(letter, when)) if as_json else _letter(letter, when)

    async for letter in letters:
        count += letter.id in retried
        reason = visible(letter.label, _SHORT) or "no reason"
        reasons[reason if reason in reasons or len(reasons) < _MAX_REASONS else "other reasons"] += 1
        if limit is None:
            yield line(letter)
        else:
            newest.append(letter)
    for letter in newest:
        yield line(letter)
    yield array.end() if as_json else _summary(reasons, count)


def _summary(reasons: Counter[str], retried: int) -> str:
    if not reasons:
        return "Dead letters: none."
    named = [f"{count} {reason}" for reason, count in reasons.most_common(_NAMED)]
    if others := len(reasons) - len(named):
        named.append(f"{others} more reasons")
    return f"Dead letters: {reasons.total()} ({retried} retried): {', '.join(named)}."


def _origin(topic: str, partition: int, offset: int) -> str:
    return f"{visible(topic, _SHORT)}:{partition}:{offset}" if topic else "unknown topic"


def _letter(letter: Letter, retried: datetime | None) -> str:
    notes = [f"failed {letter.retries} times before"] if letter.retries else []
    if retried:
        notes.append(f"retried {day_and_time(retried)}")
    return "  ".join(
        [
            str(letter.id),
            day_and_time(letter.time),
            _origin(letter.topic, letter.partition, letter.offset),
            visible(_text(letter.key), _SHORT),
            visible(letter.reason, _SHORT) or "no reason",
            *([f"({'; '.join(notes)})"] if notes else []),
        ]
    )


def _public_letter(letter: Letter, retried: datetime | None) -> dict[str, Any]:
    return {
        "id": str(letter.id),
        "time": letter.time,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "key": _bytes(letter.key),
        "put_back": retried,
        "retries": letter.retries,
        "history": letter.history,
    }


def dead_letter(letter: Letter, retried: tuple[datetime, Mark] | None, *, as_json: bool) -> Iterator[str]:
    when, mark = retried or (None, None)
    if as_json:
        yield as_one_line(
            {
                **_public_letter(letter, when),
                "put_back_to": mark and {"topic": mark.topic, "partition": mark.partition, "offset": mark.offset},
                "headers": [[name, _bytes(value)] for name, value in letter.headers],
                "value": _bytes(letter.value),
            }
        )
        return
    yield f"Dead letter {letter.id}, {day_and_time(letter.time)}"
    yield f"from:     {_origin(letter.topic, letter.partition, letter.offset)}"
    yield f"reason:   {visible(letter.reason) or 'none given'}"
    if when and mark:
        yield f"retried:  {day_and_time(when)}, to {_origin(mark.topic, mark.partition, mark.offset)}"
    else:
        yield "retried:  no"
    yield f"failed:   {letter.retries} times before"
    for failure in letter.history:
        yield f"    {_failure(failure)}"
    yield "headers:"
    for name, value in letter.headers:
        yield f"    {visible(name)}: {visible(_text(value))}"
    yield f"key:      {visible(_text(letter.key))}"
    yield f"value:    {visible(_text(letter.value))}"


def _failure(failure: Failure) -> str:
    origin = _origin(failure.topic, failure.partition, failure.offset)
    return visible(f"{failure.dead_letter}  {failure.time}  {origin}  {failure.reason}")


def records(found: Iterable[Any], *, as_json: bool) -> Iterator[str]:
    """One line per record: partition and offset, time, key and value; as JSON one array, with a line per record.

    Behind the value are the headers of CloudEvents and of W3C Trace Context. The array has all headers. In it a JSON
    value is unchanged. Any other is text if it is UTF-8, else an object with Base64.
    """
    array, shown = JsonArray(), False
    for record in found:
        shown, number, offset, time = True, record.partition, record.offset, time_of(record)
        if as_json:
            known = {"partition": number, "offset": offset, "time": time, "key": _bytes(record.key)}
            headers = [[name, _bytes(value)] for name, value in record.headers]
            yield array.line({**known, "value": _value(record.value), "headers": headers})
        else:
            key, value = visible(_text(record.key), _SHORT), visible(_text(record.value))
            sender = [
                visible(f"{name}={_text(content)}", _SHORT) for name, content in record.headers if is_of_sender(name)
            ]
            yield "  ".join([f"{number}:{offset}", day_and_time(time), key, value, *sender])
    if as_json:
        yield array.end()
    elif not shown:
        yield f"Records: {NOTHING_YET}."


def _value(data: bytes | None) -> Any:
    try:
        return msgspec.json.decode(data or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _bytes(data)


def trace(found: Any, texts: Iterable[str], *, as_json: bool) -> Iterable[str]:
    """The lines that `trace` prints; as JSON one object."""
    return [as_one_line(found)] if as_json else texts


def retried(outcome: Outcome) -> str:
    """The line that `dead-letters retry` prints."""
    refused = f", {len(outcome.refused)} could not be retried" if outcome.refused else ""
    return f"{outcome.retried} retried, {outcome.already} had been retried before{refused}."
