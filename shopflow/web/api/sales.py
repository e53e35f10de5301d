"""View of the sales of each product, over all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import msgspec
from yarl import URL

from faust_batches import TOTALS_KEY, position_of
from shopflow.app import config
from shopflow.shop.counts import decode_count
from shopflow.shop.sales import PERIODS, key_of, start_of
from shopflow.shop.times import read_time
from shopflow.tables import product_sales
from shopflow.web import peers
from shopflow.web.access import Refusal
from shopflow.web.answers import limit_of, owned, route, time_text, wrong_field

ROWS, MOST_ROWS = 1_000, 10_000
#: The most rows that a worker reads for one answer, and in one slice.
_MOST_READ, _SLICE = 200_000, 1_000
#: Without `since`, the sales start this long ago.
_BACK = {"day": timedelta(days=60), "hour": timedelta(hours=48)}

Sold = dict[tuple[str, str], list[int]]  # (start, product_id) -> purchases, units, revenue


class Wanted(NamedTuple):
    by: str
    since: datetime | None
    product_id: str
    limit: int


class Answer(msgspec.Struct):
    """A worker's answer to another worker: the sums of its own partitions."""

    partitions: list[int]
    sales: list[tuple[str, str, int, int, int]]  #: start, product_id, purchases, units, revenue


@route("get", "/sales/")
async def sales(request: Any) -> tuple[int, Any]:
    """Sales of each product over all workers: `?by=total|day|hour&since=TIME&product_id=ID&limit=N`."""
    wanted = _wanted(request)
    partitions, sold = await _local(wanted)
    if peers.LOCAL in request.query:
        return 200, {"partitions": partitions, "sales": [[*key, *sums] for key, sums in sold.items()]}
    await _add_others(request.query, partitions, sold)
    rows = _sorted(wanted, sold)
    since = time_text(wanted.since) if wanted.since else None
    shown = [_shown(wanted, key, sums) for key, sums in rows[: wanted.limit]]
    return 200, {"by": wanted.by, "since": since, "sales": shown, "more": len(rows) > wanted.limit}


def _wanted(request: Any) -> Wanted:
    query = request.query
    by = query.get("by", "total")
    if by not in PERIODS:
        raise wrong_field("by", f"must be one of {', '.join(PERIODS)}")
    limit = limit_of(request, MOST_ROWS, ROWS)
    return Wanted(by, _since(by, query.get("since")), query.get("product_id", ""), limit)


def _since(by: str, text: str | None) -> datetime | None:
    """UTC, cut to the start of its period, so that the first period is whole."""
    if by == "total":
        if text is not None:
            raise wrong_field("since", "needs by=day or by=hour")
        return None
    if text is None:
        time = datetime.now(timezone.utc) - _BACK[by]
    else:
        try:
            # A "+" in a query is a space.
            time = read_time(text.replace(" ", "+"))
            time = time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
        except (ValueError, OverflowError) as error:
            example = "2026-05-01 or 2026-05-01T12:00Z"
            raise wrong_field("since", f"must be a time in ISO 8601, like {example}") from error
    time = time.replace(minute=0, second=0, microsecond=0)
    return time.replace(hour=0) if by == "day" else time


async def _local(wanted: Wanted) -> tuple[list[int], Sold]:
    """The sales in this worker's partitions; a refusal in a rebalance, or if there are too many rows."""
    sold: Sold = {}
    read = 0
    partitions = owned(product_sales, "sales")
    for partition in partitions:
        for rows in _slices(partition, wanted):
            read += len(rows)
            if read > _MOST_READ:
                raise wrong_field("since", f"more than {_MOST_READ} entries since then; use a later time")
            for key, value in rows:
                _, start, product_id = key.decode().split(" ", 2)
                if not wanted.product_id or product_id == wanted.product_id:
                    count = decode_count(value)
                    _add(sold, (start, product_id), (count.purchases, count.items, count.spent))
            await asyncio.sleep(0)
            if partition not in owned(product_sales, "sales"):  # another worker may own it now
                raise Refusal(503, f"partition {partition} is being reassigned")
    return partitions, sold


def _slices(partition: int, wanted: Wanted) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows of the period since the time, without those of an earlier era."""
    prefix = f"{wanted.by} ".encode()
    since = wanted.since.isoformat()[: 10 if wanted.by == "day" else 13] if wanted.since else ""
    after = f"{wanted.by} {since}".encode()
    totals = product_sales.reader(partition)(TOTALS_KEY)
    era = position_of(totals).era if totals else 0
    while found := product_sales.scan(partition, after, _SLICE):
        after = found[-1][0]
        rows = [(key, value) for key, value in found if key.startswith(prefix) and position_of(value).era >= era]
        yield rows
        if not after.startswith(prefix):
            return


def _add(sold: Sold, key: tuple[str, str], sums: Sequence[int]) -> None:
    known = sold.setdefault(key, [0, 0, 0])
    for index, number in enumerate(sums):
        known[index] += number


async def _add_others(query: Mapping[str, str], partitions: list[int], sold: Sold) -> None:
    """Add the sales in the other workers' partitions; a refusal unless each partition has one owner that answers."""
    found = set(partitions)
    for answer in await asyncio.gather(*(_ask(host, query) for host in peers.others())):
        if found & set(answer.partitions):
            raise Refusal(503, "partitions are being reassigned")
        found |= set(answer.partitions)
        for start, product_id, *sums in answer.sales:
            _add(sold, (start, product_id), sums)
    if missing := sorted(set(range(config.topics.partitions)) - found):
        raise Refusal(503, f"no worker owns partition {missing[0]} now")


async def _ask(host: URL, query: Mapping[str, str]) -> Answer:
    found = await peers.fetch(host, "/sales/", Answer, query)
    if found is None:
        raise Refusal(503, f"{host}: answered 404")
    return found


def _sorted(wanted: Wanted, sold: Sold) -> list[tuple[tuple[str, str], list[int]]]:
    """The best sellers first; periods from the latest back, the best sellers of each first."""
    rows = sorted(sold.items(), key=lambda row: (-row[1][2], row[0][1]))
    return rows if wanted.by == "total" else sorted(rows, key=lambda row: row[0][0], reverse=True)


def _shown(wanted: Wanted, key: tuple[str, str], sums: Sequence[int]) -> dict[str, Any]:
    start = start_of(key_of(wanted.by, *key))[1]
    period = {"start": time_text(start)} if start else {}
    return {"product_id": key[1], **period, **dict(zip(("purchases", "units", "revenue"), sums, strict=True))}
