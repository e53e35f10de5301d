"""View of the sales: what all workers together have sold of each product."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import msgspec
from yarl import URL

from faust_batches import TOTALS_KEY, position_of
from shopflow.app import config
from shopflow.errors import Unavailable
from shopflow.shop.counts import decode_count
from shopflow.shop.sales import PERIODS, key_of, start_of
from shopflow.tables import product_sales
from shopflow.web import peers
from shopflow.web.answers import Refusal, limit_of, owned, route, wrong_parameter
from shopflow.web.client import reason

ROWS, MOST_ROWS = 1_000, 10_000
#: Most rows that a worker reads for one answer, and at once.
_MOST_READ, _SLICE = 200_000, 1_000
#: How far back the sales go without `since`.
_BACK = {"day": timedelta(days=60), "hour": timedelta(hours=48)}

Sold = dict[tuple[str, str], list[int]]  # (start, product_id) -> purchases, units, revenue


class Wanted(NamedTuple):
    by: str
    since: datetime | None
    product_id: str
    limit: int


class Answer(msgspec.Struct):
    """What a worker answers to another: the sums of its own partitions."""

    partitions: list[int]
    sales: list[tuple[str, str, int, int, int]]  #: start, product_id, purchases, units, revenue


@route("get", "/sales/")
async def sales(request: Any) -> tuple[int, Any]:
    """What was sold of each product: `?by=total|day|hour&since=TIME&product_id=ID&limit=N`, over all workers."""
    wanted = _wanted(request)
    partitions, sold = await _local(wanted)
    if peers.LOCAL in request.query:
        return 200, {"partitions": partitions, "sales": [[*key, *sums] for key, sums in sold.items()]}
    await _add_others(request.query, partitions, sold)
    rows = _sorted(wanted, sold)
    since = wanted.since.isoformat() if wanted.since else None
    shown = [_shown(wanted, key, sums) for key, sums in rows[: wanted.limit]]
    return 200, {"by": wanted.by, "since": since, "sales": shown, "more": len(rows) > wanted.limit}


def _wanted(request: Any) -> Wanted:
    query = request.query
    by = query.get("by", "total")
    if by not in PERIODS:
        raise wrong_parameter("by", f"must be one of {', '.join(PERIODS)}")
    limit = limit_of(request, MOST_ROWS, ROWS, wrong_parameter)
    return Wanted(by, _since(by, query.get("since")), query.get("product_id", ""), limit)


def _since(by: str, text: str | None) -> datetime | None:
    """UTC, cut to the start of its period, so that the first period is whole."""
    if by == "total":
        if text is not None:
            raise wrong_parameter("since", "goes with by=day or by=hour")
        return None
    if text is None:
        time = datetime.now(timezone.utc) - _BACK[by]
    else:
        try:
            # A "+" in a query is a space.
            time = datetime.fromisoformat(text.replace(" ", "+").replace("Z", "+00:00"))
            time = time.replace(tzinfo=time.tzinfo or timezone.utc).astimezone(timezone.utc)
        except (ValueError, OverflowError) as error:
            example = "2026-05-01 or 2026-05-01T12:00Z"
            raise wrong_parameter("since", f"must be a time in ISO 8601, like {example}") from error
    time = time.replace(minute=0, second=0, microsecond=0)
    return time.replace(hour=0) if by == "day" else time


async def _local(wanted: Wanted) -> tuple[list[int], Sold]:
    """What was sold in this worker's partitions.

    Raises:
        Refusal: The partitions change hands, or it is too much for one answer.
    """
    sold: Sold = {}
    read = 0
    partitions = owned(product_sales, "sales")
    for partition in partitions:
        for rows in _slices(partition, wanted):
            read += len(rows)
            if read > _MOST_READ:
                raise wrong_parameter("since", f"more than {_MOST_READ} entries since then; ask for a later time")
            for key, value in rows:
                _, start, product_id = key.decode().split(" ", 2)
                if not wanted.product_id or product_id == wanted.product_id:
                    count = decode_count(value)
                    _add(sold, (start, product_id), (count.purchases, count.items, count.spent))
            await asyncio.sleep(0)
            if partition not in owned(product_sales, "sales"):  # its database may be another's by now
                raise Refusal(503, f"partition {partition} goes to another worker")
    return partitions, sold


def _slices(partition: int, wanted: Wanted) -> Iterator[list[tuple[bytes, bytes]]]:
    """The rows of the period since the time; those of an era before the partition's count no more."""
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
    for place, number in enumerate(sums):
        known[place] += number


async def _add_others(query: Mapping[str, str], partitions: list[int], sold: Sold) -> None:
    """Add what the other workers sold.

    Raises:
        Refusal: One does not answer, or no worker has a partition.
    """
    found = set(partitions)
    for answer in await asyncio.gather(*(_ask(host, query) for host in peers.others())):
        if found & set(answer.partitions):
            raise Refusal(503, "partitions change hands")
        found |= set(answer.partitions)
        for start, product_id, *sums in answer.sales:
            _add(sold, (start, product_id), sums)
    if missing := sorted(set(range(config.topics.partitions)) - found):
        raise Refusal(503, f"partition {missing[0]}: no worker has it now")


async def _ask(host: URL, query: Mapping[str, str]) -> Answer:
    try:
        status, body = await peers.ask(host, "/sales/", {**query, peers.LOCAL: "1"})
        if status != 200:
            raise Refusal(503, f"another worker, {host}: {reason(body, status)}")
        return msgspec.json.decode(body, type=Answer)
    except (Unavailable, msgspec.MsgspecError) as error:
        raise Refusal(503, f"another worker, {host}: {error}") from error


def _sorted(wanted: Wanted, sold: Sold) -> list[tuple[tuple[str, str], list[int]]]:
    """The best sellers first; periods from the latest back, the best sellers of each first."""
    rows = sorted(sold.items(), key=lambda row: (-row[1][2], row[0][1]))
    return rows if wanted.by == "total" else sorted(rows, key=lambda row: row[0][0], reverse=True)


def _shown(wanted: Wanted, key: tuple[str, str], sums: Sequence[int]) -> dict[str, Any]:
    start = start_of(key_of(wanted.by, *key))[1]
    period = {"start": start.isoformat()} if start else {}
    return {"product_id": key[1], **period, **dict(zip(("purchases", "units", "revenue"), sums, strict=True))}
