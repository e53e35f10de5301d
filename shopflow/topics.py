"""Every topic: name, key, value, partitions, retention."""

from __future__ import annotations

from .app import app, config
from .kafka.connection import MAX_MESSAGE_BYTES
from .kafka.needs import Role, TopicSpec
from .shop.layout import Layout

#: A dead letter has more headers than its record.
_HEADERS_BYTES = 1024 * 1024


def _name(kind: str) -> str:
    return config.topics.prefix + kind


#: Key product_id, value `models.Product`. Compacted: the last event of each product stays.
products = app.batched_topic(_name("products"))

#: Key customer_id, value `models.Customer`. Compacted.
customers = app.batched_topic(_name("customers"))

#: Key customer_id, value `models.Purchase`. All of a customer's purchases are in one partition, in order.
purchases = app.batched_topic(_name("purchases"))

#: Key and value of the rejected record, with the reason and the origin in Kafka Connect's `__connect.errors.*` headers.
DEAD_LETTERS = _name("dead-letters")

#: Key customer_id, value `models.CustomerActivity`: the customer's counts, after each change. Compacted: the latest
#: of each customer stays.
ACTIVITY = _name("customer-activity")

#: The decided prices of purchases that came without one, in the partition with the purchases' number.
PRICES = _name("purchase-prices")

#: Key the dead letter's id, value `letters.Mark`: the dead letter was retried. Compacted: one stays for each.
RETRIES = _name("retries")

#: Key customer_id, value as in docs/PROMOTIONS.md, in the partition with the number of the event that earned it.
VOUCHERS = _name("vouchers")

#: Key product_id, value as `stock.alert_document` with `alert_id`, in the partition with the number of the product's.
ALERTS = _name("alerts")

_retention_ms = -1 if config.topics.retention_hours == -1 else config.topics.retention_hours * 3_600_000


def _spec(
    name: str,
    role: Role,
    *,
    compacted: bool = False,
    kept: bool = False,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> TopicSpec:
    return TopicSpec(
        name,
        config.topics.partitions,
        config.topics.replication,
        compacted=compacted,
        retention_ms=-1 if kept else _retention_ms,
        max_message_bytes=max_message_bytes,
        role=role,
    )


#: The changelog of table `purchase_counts`, named as Faust names it.
CHANGELOG = f"{config.app_id}-purchase_counts-changelog"

#: The changelog of table `product_sales`.
SALES_CHANGELOG = f"{config.app_id}-product_sales-changelog"

#: The changelog of table `customer_windows`.
WINDOWS = f"{config.app_id}-customer_windows-changelog"

#: How the topics are created. The tables' changelogs are among them: they have as many partitions as the purchases.
SPECS = (
    _spec(products.get_topic_name(), Role.EVENTS, compacted=True),
    _spec(customers.get_topic_name(), Role.EVENTS, compacted=True),
    _spec(purchases.get_topic_name(), Role.EVENTS),
    _spec(ACTIVITY, Role.RECORDS, compacted=True),
    _spec(PRICES, Role.RECORDS),
    _spec(DEAD_LETTERS, Role.RECORDS, max_message_bytes=MAX_MESSAGE_BYTES + _HEADERS_BYTES),
    _spec(RETRIES, Role.RECORDS, compacted=True),
    _spec(CHANGELOG, Role.CHANGELOG, compacted=True),
    _spec(SALES_CHANGELOG, Role.CHANGELOG, compacted=True),
    _spec(VOUCHERS, Role.RECORDS, kept=True),  # without these events, a voucher or alert would be published again
    _spec(ALERTS, Role.RECORDS, kept=True),
    _spec(WINDOWS, Role.CHANGELOG, compacted=True),
)

#: All of these topics.
NAMES = tuple(spec.name for spec in SPECS)

#: The topics that other programs may read, by their names without the prefix.
SHOWN = {
    spec.name.removeprefix(config.topics.prefix): spec.name
    for spec in SPECS
    if spec.name not in {CHANGELOG, SALES_CHANGELOG, WINDOWS}
}

#: The field that is each topic's key.
KEYS = {
    products.get_topic_name(): "product_id",
    customers.get_topic_name(): "customer_id",
    purchases.get_topic_name(): "customer_id",
}

LAYOUT = Layout(
    group=config.app_id,
    products=products.get_topic_name(),
    customers=customers.get_topic_name(),
    purchases=purchases.get_topic_name(),
    dead_letters=DEAD_LETTERS,
    retries=RETRIES,
    changelog=CHANGELOG,
    sales_changelog=SALES_CHANGELOG,
    prices=PRICES,
    vouchers=VOUCHERS,
    alerts=ALERTS,
    partitions=config.topics.partitions,
)
