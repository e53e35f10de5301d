"""Every table: key, value, partitioning, guarantee."""

from __future__ import annotations

from . import topics
from .app import app, config
from .config.promotions import active
from .models import ProductSales, PurchaseCount
from .shop.promotions.windows import Rules

_SUMS = ("purchases", "items", "spent")

#: Key customer_id, value `models.PurchaseCount`: what each customer bought so far. Partitioned as the purchases are,
#: so the worker that reads a customer's purchases has their counts. Every purchase that is stored is counted once: the
#: value carries the offset last applied, and a purchase at or below it is a redelivery.
purchase_counts = app.exactly_once_table(
    "purchase_counts",
    value=PurchaseCount,
    source=topics.purchases.get_topic_name(),
    sums=_SUMS,
    count="customers",
    help="what each customer bought so far: purchases, items, spent (grosze)",
)

#: Key `sales.key_of`: a product in a period. Value `models.ProductSales`: what was sold of it then. Partitioned as the
#: purchases are: a product's sales are the sum over all partitions. The guarantee is that of `purchase_counts`.
product_sales = app.exactly_once_table(
    "product_sales",
    value=ProductSales,
    source=topics.purchases.get_topic_name(),
    sums=_SUMS,
    count="customers",  # rows, under the name that the totals have for them
    help="what was sold of each product, ever, by day and by hour: purchases, units (items), revenue (spent, grosze)",
)

#: The promotions that are switched on.
rules = Rules(active(config.promotions))

#: Key customer_id, value `windows.Window`: JSON, to Faust. Partitioned and guarded as the counts, whose era is also its
#: own: counted anew with them. None while no rule is about purchases: then nothing is kept.
customer_windows = (
    app.exactly_once_table(
        "customer_windows",
        value=None,
        source=topics.purchases.get_topic_name(),
        help="what each customer bought lately, as far as promotions ask for it",
    )
    if rules.about_purchases
    else None
)
