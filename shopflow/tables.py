"""Every table: key, value, partitioning, guarantee."""

from __future__ import annotations

from . import topics
from .app import app, config
from .config.promotions import active
from .models import ProductSales, PurchaseCount
from .shop.promotions.windows import Rules

_SUMS = ("purchases", "items", "spent")

#: Key customer_id, value `models.PurchaseCount`: the counts of each customer. Partitioned as the purchases are, so the
#: worker that reads a customer's purchases has their counts. Every stored purchase is counted once: the value carries
#: the offset of the last purchase counted, and a purchase at or below it is a redelivery.
purchase_counts = app.exactly_once_table(
    "purchase_counts",
    value=PurchaseCount,
    source=topics.purchases.get_topic_name(),
    sums=_SUMS,
    count="customers",
    help="counts of each customer: purchases, items, spent (grosze)",
)

#: Key `sales.key_of`: a product in a period. Value `models.ProductSales`. Partitioned as the purchases are: a product's
#: sales are the sum over all partitions. The guarantee is that of `purchase_counts`.
product_sales = app.exactly_once_table(
    "product_sales",
    value=ProductSales,
    source=topics.purchases.get_topic_name(),
    sums=_SUMS,
    count="customers",  # the field of the totals for the number of rows
    help="sales of each product, in total, by day and by hour: purchases, units (items), revenue (spent, grosze)",
)

#: The promotions that are switched on.
rules = Rules(active(config.promotions))

#: Key customer_id, value `windows.Window`; Faust sees JSON. Partitioned as the counts, with the same guarantee and the
#: same era. None while no rule is about purchases.
customer_windows = (
    app.exactly_once_table(
        "customer_windows",
        value=None,
        source=topics.purchases.get_topic_name(),
        help="recent purchases of each customer, as far as promotions need them",
    )
    if rules.about_purchases
    else None
)
