"""`verify`: compares totals, customers, sales and announcements in Kafka, MongoDB and the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from time import monotonic

from shopflow.errors import Unavailable
from shopflow.kafka import offsets, producers
from shopflow.kafka.held import HeldUp
from shopflow.kafka.security import Bootstrap
from shopflow.kafka.topics import id_of
from shopflow.operations import losses
from shopflow.shop import announcements
from shopflow.shop.layout import Layout
from shopflow.store import MongoStore
from shopflow.web import client

from . import workers
from .accounts import compare_accounts
from .announcements import compare_announcements
from .report import Check, FirstTen, Report
from .sales import compare_sales
from .tables import Counts, Tables, in_words

#: The most comparisons while events are handled, and the pause between two.
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.5
#: Comparisons without a change after which nothing reads the waiting events.
_UNCHANGED_ATTEMPTS = 4
#: How long to compare again while workers don't answer, as in a rebalance.
_PATIENCE_SECONDS = 15.0
#: Customers that are looked up in MongoDB at once.
_REGISTERED_AT_ONCE = 1_000


#: The state that must not change during a comparison.
_State = tuple[dict[str, offsets.Lag], workers.Live]


async def verify(bootstrap: Bootstrap, store: MongoStore, shop: Layout, *, token: str = "") -> Report:
    """Compare the events in Kafka, the documents and the counts. Wait some seconds for waiting events.

    Arguments:
        token: The token for reading, if the workers need one.

    Raises:
        Unavailable: Kafka or MongoDB does not answer.
    """
    report = Report()
    held_up = HeldUp(partial(producers.producers, bootstrap))
    unchanged, last = 0, None
    deadline = monotonic() + _PATIENCE_SECONDS
    for _ in range(_ATTEMPTS):
        before = await _state(bootstrap, shop)
        lags = before[0]
        if any(topic not in lags for topic in shop.events):
            raise Unavailable("Kafka", "the shop's topics do not exist yet: start a worker, or seed some events")
        lag, hidden = await _lag(bootstrap, lags, held_up, shop)
        report = await _compare(bootstrap, store, before, shop, token=token, lag=lag, hidden=hidden)
        after = await _state(bootstrap, shop)
        moved = before != after or last not in (None, before)
        last = after
        unchanged = 0 if moved else unchanged + 1
        unclear, patient = report.status == 2 or held_up.undecided, monotonic() < deadline
        if unchanged and (not patient if unclear else _settled(report, unchanged, waits=_waiting(lags, shop) > 0)):
            return report
        if moved:
            report.status = 2
            report.checks.append(Check("quiet", None, "events arrive faster than they can be compared"))
        await asyncio.sleep(_PAUSE_SECONDS)
    return report


def _settled(report: Report, unchanged: int, *, waits: bool) -> bool:
    """True if another comparison would give the same report."""
    return report.status == 0 or not waits or unchanged >= _UNCHANGED_ATTEMPTS


async def _state(bootstrap: Bootstrap, shop: Layout) -> _State:
    lags = await offsets.lags(bootstrap, shop.group, (*shop.events, shop.dead_letters))
    return lags, await workers.live(bootstrap, shop.group, shop.changelog)


def _waiting(lags: dict[str, offsets.Lag], shop: Layout) -> int:
    return sum(lags[topic].all_waiting for topic in shop.events)


async def _lag(
    bootstrap: Bootstrap, lags: dict[str, offsets.Lag], held_up: HeldUp, shop: Layout
) -> tuple[Check, list[str]]:
    """Check that no event waits, and that no open transaction keeps events or other records from their readers.

    Also returns the partitions of what is compared here that have such records.
    """
    spans = {(topic, number): span for topic in shop.events for number, span in lags[topic].spans.items()}
    for topic, found in (await offsets.spans(bootstrap, shop.group, shop.records)).items():
        spans |= {(topic, number): span for number, span in found.items()}
    holds = await held_up.look(spans)
    waiting = _waiting(lags, shop)
    detail = "; ".join([f"{waiting} events wait in Kafka", *(hold.text for hold in holds)])
    compared = {shop.changelog, shop.sales_changelog, shop.vouchers, shop.alerts}
    hidden = [f"{topic}[{number}]" for (topic, number), span in spans.items() if span.held and topic in compared]
    if holds or any(lags[topic].waiting for topic in shop.events):
        return Check("lag", False, detail), hidden
    if held_up.undecided:
        return Check("lag", None, f"{detail}; a transaction is open, and may be committed soon"), hidden
    return Check("lag", True, detail), hidden


def _judged(checks: Sequence[Check], hidden: Sequence[str]) -> list[Check]:
    """The checks; a difference is only a doubt while an open transaction hides records of these partitions."""
    cause = f"records of {', '.join(hidden)} are held up by an open transaction, which may be the cause: "
    return [Check(one.name, None, cause + one.detail) if hidden and one.good is False else one for one in checks]


async def _compare(
    bootstrap: Bootstrap,
    store: MongoStore,
    state: _State,
    shop: Layout,
    *,
    token: str,
    lag: Check,
    hidden: Sequence[str],
) -> Report:
    lags, live = state
    counts = await Tables.read(bootstrap, shop.changelog, shop.partitions)
    totals, sizes = await store.totals(), await store.sizes()
    sums, waiting = counts.sums(), _waiting(lags, shop)
    sent, accounts = await compare_accounts(
        bootstrap, shop.purchases, lags[shop.purchases].spans, counts,
        topic_id=await id_of(bootstrap, shop.purchases), accepted=partial(losses.accepted, bootstrap, shop),
    )  # fmt: skip
    sold = await Tables.read(bootstrap, shop.sales_changelog, shop.partitions)
    sales = await compare_sales(sold, sums, store, live=bool(live.workers))
    customers, unregistered = await _customers(counts.by_key(), store)
    report = Report(
        status=0,
        kafka={
            "purchases": sent,
            "waiting": waiting,
            "dead_letters": lags[shop.dead_letters].records if shop.dead_letters in lags else 0,
        },
        mongodb={
            **sizes,
            "purchases": totals.purchases,
            "items": totals.items,
            "spent": totals.spent,
            "unregistered": unregistered.count,
        },
        tables=sums,
        workers=[asdict(worker) for worker in live.workers],
    )
    stored = f"{totals.purchases} stored, {sums['purchases']} counted"
    if sizes["purchases"] > totals.purchases and (apart := await store.removed()):
        stored += f"; {apart} more are stored that Kafka no longer has, and in no count since `replay --lose-counts`"
    compared = [
        accounts,
        Check("purchases in MongoDB and tables", totals.purchases == sums["purchases"], stored),
        customers,
        _sums(counts),
        sales,
        await compare_announcements(bootstrap, shop.group, shop.vouchers, announcements.VOUCHERS, store),
        await compare_announcements(bootstrap, shop.group, shop.alerts, announcements.ALERTS, store),
        await workers.compare_workers(live, counts, token),
    ]
    troubles = await workers.troubles(live, shop.purchases, partial(client.session, token))
    report.add([lag, *_judged(compared, hidden), troubles, _registrations(unregistered)])
    return report


async def _customers(counted: dict[str, Counts], store: MongoStore) -> tuple[Check, FirstTen]:
    """Compare each customer's counts with the sums of their purchases. Also find buyers who are not registered."""
    customers, wrong, unregistered = 0, FirstTen(), FirstTen()
    names: list[str] = []

    async def look_up() -> None:
        registered = await store.registered(names)
        for name in names:
            if name not in registered:
                unregistered.add(name)
        names.clear()

    async for name, purchases, items, spent in store.counts():
        customers += 1
        stored, found = (purchases, items, spent), counted.pop(name, None)
        if found != stored:
            wrong.add(f"{name}: stored {in_words(stored)}, counted {in_words(found)}")
        names.append(name)
        if len(names) == _REGISTERED_AT_ONCE:
            await look_up()
    await look_up()
    for name, found in counted.items():
        wrong.add(f"{name}: stored nothing, counted {in_words(found)}")
    detail = f"{customers} customers, each with the counts their purchases add up to"
    return Check.of("customers", wrong, detail), unregistered


def _sums(tables: Tables) -> Check:
    """Compare each partition's totals with the sums over its customers."""
    wrong = FirstTen()
    for partition in range(tables.partitions):
        counts, sums = tables.counts(partition).values(), tables.totals(partition)
        added = (
            sum(count.purchases for count in counts),
            sum(count.items for count in counts),
            sum(count.spent for count in counts),
        )
        recorded = (sums.purchases, sums.items, sums.spent)
        if (sums.customers, recorded) != (len(counts), added):
            wrong.add(
                f"partition {partition}: the sums say {sums.customers} customers with {in_words(recorded)}, "
                f"its customers add up to {len(counts)} customers with {in_words(added)}"
            )
    return Check.of("sums", wrong, f"{tables.partitions} partitions, each with the sums its customers add up to")


def _registrations(unregistered: FirstTen) -> Check:
    """List buyers who are not registered. The check never fails: their registration may come later."""
    if not unregistered.count:
        return Check("registrations", True, "every customer who bought is registered")
    detail = f"{unregistered.count} customers who bought are not registered: {unregistered.listed(', ')}"
    return Check("registrations", True, detail)
