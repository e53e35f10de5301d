"""The events and the tables' values as `faust.Record`s: the only schema of the data in Kafka."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Optional

import faust
from faust.models.fields import IntegerField, StringField

#: Largest price and value in grosze (ten billion zł). MongoDB and JSON readers keep sums of such values exact.
MAX_VALUE = 10**12
MAX_QUANTITY = 10**9
MAX_ID_LENGTH = 128


def _identifier() -> Any:
    return StringField(min_length=1, max_length=MAX_ID_LENGTH)


def _price() -> Any:
    return IntegerField(min_value=0, max_value=MAX_VALUE)


def _units() -> Any:
    return IntegerField(min_value=0, max_value=MAX_QUANTITY, required=False, default=None)


class Product(faust.Record, serializer="json", validation=True, coerce=True):
    """A product as offered from `updated_at` on. Topic `products`, key `product_id`.

    `stock` is the quantity on hand at `updated_at`. Without it, stock is not tracked. When at most `stock_limit` units
    are left (without it: 0), an alert is published.
    """

    product_id: str = _identifier()
    name: str
    type: str
    price: int = _price()  # grosze
    updated_at: datetime
    stock: Optional[int] = _units()  # noqa: UP045 - Faust's fields don't know `str | None` on Python 3.10
    stock_limit: Optional[int] = _units()  # noqa: UP045


class Customer(faust.Record, serializer="json", validation=True, coerce=True):
    """A customer. Topic `customers`, key `customer_id`."""

    customer_id: str = _identifier()
    first_name: str
    last_name: str
    address: str
    registered_at: datetime
    city: Optional[str] = None  # noqa: UP045


class Purchase(faust.Record, serializer="json", validation=True, coerce=True):
    """A customer bought a product. Topic `purchases`, key `customer_id`.

    `price` is that of one unit, in grosze. Without it, the product's price at `purchased_at` counts. `quantity` times
    price is at most 10^12.
    """

    purchase_id: str = _identifier()
    customer_id: str = _identifier()
    product_id: str = _identifier()
    quantity: int = IntegerField(min_value=1, max_value=MAX_QUANTITY)
    purchased_at: datetime
    price: Optional[int] = IntegerField(  # noqa: UP045
        min_value=0, max_value=MAX_VALUE, required=False, default=None
    )


class PurchaseCount(faust.Record, serializer="json"):
    """The counts of one customer: the value of table `purchase_counts`.

    `offset` is that of the last purchase counted: one at or below it is a redelivery. `first` is that of the first.
    `era` is later after each replay: a row of an earlier era than its partition's totals no longer counts.
    """

    purchases: int = 0
    items: int = 0
    spent: int = 0  # grosze
    first: int = -1
    offset: int = -1
    era: int = 0


class ProductSales(PurchaseCount, serializer="json"):
    """The sales of a product in a period: the value of table `product_sales`, with the fields of `PurchaseCount`.

    `items` are the units, `spent` is the revenue in grosze.
    """


class PartitionTotals(faust.Record, serializer="json"):
    """The sums over one partition of the purchases, up to and including `offset`.

    Every record of the topic counts in `purchases`, `duplicates` (a purchase that was sent again) or `rejected`.
    Two kinds of records do not: those before `first`, the offset at which counting began, and those that Kafka removed
    before a worker read them; `unread` is the number of their offsets.
    `topic_id` is Kafka's id of the topic; empty if not known. The offsets mean nothing in another topic.
    `settled` is the last offset of the batch that these totals were written with. It is before `offset` while a batch
    is redelivered in smaller ones: the totals are then ahead of the customers' rows in the changelog.
    """

    customers: int = 0
    purchases: int = 0
    items: int = 0
    spent: int = 0  # grosze
    duplicates: int = 0
    rejected: int = 0
    first: int = 0
    unread: int = 0
    offset: int = -1
    settled: int = -1
    era: int = 0
    topic_id: str = ""


class CustomerActivity(faust.Record, serializer="json"):
    """The counts of one customer, for other systems. Topic `customer-activity`, key `customer_id`.

    `offset` is that of the last purchase counted, in the partition of the purchases with this record's number. Of two
    records of a customer the one with the larger offset is the later. After a `replay` offsets start again.
    """

    customer_id: str
    purchases: int
    items: int
    spent: int  # grosze
    offset: int
