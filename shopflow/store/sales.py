"""Sales by product and period: one part for each partition of the purchases, and the sums over all parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime, timedelta

from .connection import REQUESTS_AT_ONCE, Connection
from .errors import translated
from .rules import sale_id, upsert, without_id
from .types import SALES, SALES_STATE, Document, PartitionSales

_SUMS = ("purchases", "units", "revenue")


class Sales(Connection):
    """The collections `sales` and `sales_state`."""

    async def put_sales(self, partition: int, sales: Sequence[PartitionSales]) -> None:
        """Store a partition's part of these sales. A stored part with a later position stays."""
        await self._write(SALES, [sale_update(partition, sale) for sale in sales])

    async def sales_position(self, partition: int) -> tuple[int, int]:
        """The era and offset up to which the sales of a partition are complete; (-1, -1) if none are stored."""
        found = await self._read(SALES_STATE, {"_id": partition}, limit=1)
        return (found[0]["era"], found[0]["offset"]) if found else (-1, -1)

    async def reached_sales(self, partition: int, position: tuple[int, int]) -> None:
        """Record that the sales of a partition are complete up to this position. A later one stays."""
        document = {"_id": partition, "era": position[0], "offset": position[1]}
        later = _not_before({"era": "$era", "offset": "$offset"}, position)
        update = [{"$replaceWith": {"$cond": [later, {"$literal": document}, "$$ROOT"]}}]
        await self._write(SALES_STATE, [upsert({"_id": partition}, update)])

    async def clear_sales(self) -> None:
        """Delete all sales, so that they are counted anew."""
        for name in (SALES, SALES_STATE):
            with translated():
                await self._collection(name).delete_many({})

    async def sales(self, period: str, since: datetime | None = None) -> AsyncIterator[Document]:
        """Sales of each product and each period of this kind that starts at `since` or later, over all partitions.

        The documents have `product_id`, `period`, `start`, `purchases`, `units`, `revenue`. They are sorted by start.
        """
        condition = {"period": period} if since is None else {"period": period, "start": {"$gte": since}}
        async for document in self._stream(SALES, condition, {"parts": 0}, sort=[("start", 1)]):
            yield without_id(document)

    async def best_sellers(self, period: str, start: datetime | None, limit: int) -> list[Document]:
        """The products with the most units in one period, best first, as documents like those of `sales`."""
        condition, most_first = {"period": period, "start": start}, [("units", -1), ("product_id", 1)]
        found = await self._read(SALES, condition, {"parts": 0}, sort=most_first, limit=limit)
        return [without_id(document) for document in found]

    async def sold_ever(self, product_ids: Collection[str]) -> dict[str, int]:
        """Units sold of each product in total, by product id. Products without sales are left out."""
        ids = [sale_id("total", None, product_id) for product_id in product_ids]
        found = await self._find(SALES, "_id", ids, {"product_id": 1, "units": 1}, at_once=REQUESTS_AT_ONCE)
        return {document["product_id"]: int(document["units"]) for document in found}

    async def sold_from(self, product_id: str, hour: datetime) -> int:
        """Units sold of a product in this hour and all later ones. `hour` is the hour's start, in UTC."""
        # Rows of hours for the first day, rows of days after it: so the number of rows grows slowly.
        hours: Document = {"$gte": hour}
        spans = [("hour", hours)]
        if (day := hour.replace(hour=0)).date() < datetime.max.date():
            hours["$lt"] = day + timedelta(days=1)
            spans.append(("day", {"$gte": hours["$lt"]}))
        units = 0
        for period, span in spans:
            condition = {"product_id": {"$eq": product_id}, "period": period, "start": span}
            units += sum(int(document["units"]) for document in await self._read(SALES, condition, {"units": 1}))
        return units


def sale_update(partition: int, sale: PartitionSales) -> Document:
    """The atomic update that stores a partition's part, unless a later one is stored, and sums up all parts."""
    era, offset = sale.position
    part = {"era": era, "offset": offset, **{name: getattr(sale, name) for name in _SUMS}}
    field = f"parts.p{partition}"
    stored = {"era": f"${field}.era", "offset": f"${field}.offset"}
    parts = {"$objectToArray": "$parts"}
    return upsert(
        {"_id": sale_id(sale.period, sale.start, sale.product_id)},
        [
            {
                "$set": {
                    "product_id": {"$literal": sale.product_id},
                    "period": sale.period,
                    "start": sale.start,
                    field: {"$cond": [_not_before(stored, sale.position), {"$literal": part}, f"${field}"]},
                }
            },
            {"$set": {name: {"$sum": {"$map": {"input": parts, "in": f"$$this.v.{name}"}}} for name in _SUMS}},
        ],
    )


def _not_before(stored: Document, position: tuple[int, int]) -> Document:
    """An expression: true if the position is not before the stored one. A missing one is null, less than any number."""
    era, offset = position
    return {
        "$or": [
            {"$lt": [stored["era"], era]},
            {"$and": [{"$eq": [stored["era"], era]}, {"$lte": [stored["offset"], offset]}]},
        ]
    }
