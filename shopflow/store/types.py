"""The store's types: names of collections, documents, and the values that methods take and return."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timezone
from operator import itemgetter
from typing import Any

Document = dict[str, Any]

PRODUCTS, CUSTOMERS, PURCHASES, PRICES = "products", "customers", "purchases", "prices"
#: Sales, and the position up to which each partition of the purchases is counted in them.
SALES, SALES_STATE = "sales", "sales_state"
VOUCHERS, ALERTS = "vouchers", "alerts"

#: The `source.origin` of a purchase that is set apart: Kafka no longer has its event, and it is in no count.
REMOVED = "removed"

#: The field with the time that decides which of two documents with one `_id` is newer.
TIME = {PRODUCTS: "updated_at", CUSTOMERS: "registered_at", PRICES: "since"}

#: The start of the price of a product that another program stored.
BEGINNING = datetime.min.replace(tzinfo=timezone.utc)

#: From the first time on, before the second; None: no limit.
Span = tuple[datetime | None, datetime | None]


def milliseconds(time: datetime) -> datetime:
    """The time cut to milliseconds, as MongoDB stores it.

    Python's times have microseconds, which the driver cuts off. Cut a time before Python compares it, so that Python
    and MongoDB agree. Two changes within one millisecond are simultaneous: their offsets decide. A price counts from
    the start of its millisecond.
    """
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


@dataclass(frozen=True)
class Inserted:
    """The result of `insert_purchases`. All purchases but the duplicates and the refused ones are stored now."""

    duplicates: frozenset[int] = frozenset()
    """Indexes of purchases whose `_id` is stored from another event: sent twice, or written by `--direct`."""

    refused: dict[int, str] = field(default_factory=dict)
    """Indexes of purchases that MongoDB will never accept, each with the reason."""

    differing: dict[int, Document] = field(default_factory=dict)
    """Indexes of purchases that are stored from the same event but with other fields; each with the stored document."""

    def followed_by(self, other: Inserted, start: int) -> Inserted:
        """This result and that of the purchases from index `start` on, as one."""
        return Inserted(
            self.duplicates | {start + index for index in other.duplicates},
            {**self.refused, **{start + index: reason for index, reason in other.refused.items()}},
            {**self.differing, **{start + index: stored for index, stored in other.differing.items()}},
        )


@dataclass(frozen=True)
class Deletion:
    """A product or customer that was deleted at `at` (UTC). `source` has the topic, partition and offset."""

    id: str
    at: datetime
    source: Document


@dataclass(frozen=True)
class Totals:
    """Sums over the purchases that came from Kafka."""

    purchases: int = 0
    items: int = 0
    spent: int = 0
    """Grosze."""

    customers: int = 0
    """Customers with at least one purchase."""


@dataclass(frozen=True)
class PartitionSales:
    """Sales of a product in a period, in the purchases of one partition up to a position."""

    period: str
    """`total`, `day` or `hour`."""

    start: datetime | None
    """The start of the period, in UTC; None for the total."""

    product_id: str
    purchases: int
    units: int
    revenue: int
    """Grosze."""

    position: tuple[int, int]
    """Era and offset. Of two positions the larger is the later."""


@dataclass(frozen=True)
class PriceHistory:
    """Every price that a product ever had."""

    prices: tuple[tuple[datetime, int | None], ...]
    """`(since, grosze)`, oldest first. None instead of grosze: the product was not for sale from then on."""

    def at(self, time: datetime) -> int | None:
        """The price in grosze at `time`; None if the product was deleted then, or never had a price.

        A time before the first price gets the first price: product events may come a little late.
        """
        count = bisect_right(self.prices, milliseconds(time), key=itemgetter(0))
        if count:
            return self.prices[count - 1][1]
        return self.first

    @property
    def first(self) -> int | None:
        """The first price in grosze, which also counts for earlier times; None if there never was one."""
        return next((price for _, price in self.prices if price is not None), None)


@dataclass(frozen=True)
class Sold:
    """Sales of a product from a time on, in purchases from Kafka and direct ones."""

    since: datetime | None
    """The start; None: from the first purchase on."""

    units: int
    revenue: int
    """Grosze: the sum of the purchases' values."""
