"""What the store takes and gives: the names of the collections, documents, and the values that methods return."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timezone
from operator import itemgetter
from typing import Any

Document = dict[str, Any]

PRODUCTS, CUSTOMERS, PURCHASES, PRICES = "products", "customers", "purchases", "prices"
#: What was sold, and up to which position each partition of the purchases is counted in it.
SALES, SALES_STATE = "sales", "sales_state"
VOUCHERS, ALERTS = "vouchers", "alerts"

#: The field that says which of two documents with one `_id` is the newer.
TIME = {PRODUCTS: "updated_at", CUSTOMERS: "registered_at", PRICES: "since"}

#: Since when a product of another program has its price.
BEGINNING = datetime.min.replace(tzinfo=timezone.utc)

#: From when on, and until when; None: without a limit.
Span = tuple[datetime | None, datetime | None]


def milliseconds(time: datetime) -> datetime:
    """The time as MongoDB keeps it.

    MongoDB keeps milliseconds, Python microseconds. This cuts the rest off wherever Python compares times, as the
    driver does on the way to the server, so that both come to the same answer. Two changes within one millisecond are
    simultaneous: their offsets decide, and a price counts from the start of its millisecond.
    """
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


@dataclass(frozen=True)
class Inserted:
    """What became of the purchases of one call. Those it does not name are stored, now or by an earlier try."""

    duplicates: frozenset[int] = frozenset()
    """Indexes of those whose `_id` is taken by another event: sent twice, or written by `--direct`."""

    refused: dict[int, str] = field(default_factory=dict)
    """Indexes of those that MongoDB will never take, each with the reason."""

    differing: dict[int, Document] = field(default_factory=dict)
    """Indexes of those that an earlier try has stored with other fields; each with what is stored."""


@dataclass(frozen=True)
class Deletion:
    """A product or customer that was deleted at `at` (UTC); `source` is where the deletion came from."""

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
    """Those who bought something."""


@dataclass(frozen=True)
class PartitionSales:
    """What one partition of the purchases sold of a product in a period, up to a position."""

    period: str
    """total, day or hour."""

    start: datetime | None
    """When the period begins, UTC; None: the total."""

    product_id: str
    purchases: int
    units: int
    revenue: int
    """Grosze."""

    position: tuple[int, int]
    """Era and offset. Of two, the larger is the later."""


@dataclass(frozen=True)
class PriceHistory:
    """Every price that a product ever had."""

    prices: tuple[tuple[datetime, int | None], ...]
    """`(since, grosze)`, oldest first; None: from then on it was not for sale."""

    def at(self, time: datetime) -> int | None:
        """The price in grosze in force at `time`; None if it was deleted then, or never had one.

        Before the first one, the first known price counts: events may come a little late.
        """
        position = bisect_right(self.prices, milliseconds(time), key=itemgetter(0))
        if position:
            return self.prices[position - 1][1]
        return self.first

    @property
    def first(self) -> int | None:
        """The first known price, which counts before it was known; None if there never was one."""
        return next((price for _, price in self.prices if price is not None), None)


@dataclass(frozen=True)
class Sold:
    """What was sold of a product from a time on, in purchases from Kafka and direct ones."""

    since: datetime | None
    """None: from the first purchase on."""

    units: int
    revenue: int
    """Grosze, as the purchases say."""
