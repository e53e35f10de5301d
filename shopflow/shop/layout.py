"""The names of a shop's topics in Kafka, of its consumer group and of its tables' changelogs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Layout:
    """The topics that hold a shop's events, dead letters and counts.

    Arguments:
        retries: The topic of the marks, one for each retried dead letter.
        changelog, sales_changelog: The changelogs of the tables `purchase_counts` and `product_sales`.
        partitions: How many each of the topics has.
    """

    group: str
    products: str
    customers: str
    purchases: str
    dead_letters: str
    retries: str
    changelog: str
    sales_changelog: str
    prices: str
    vouchers: str
    alerts: str
    partitions: int

    @property
    def events(self) -> tuple[str, str, str]:
        return self.products, self.customers, self.purchases

    @property
    def records(self) -> tuple[str, ...]:
        """The topics that the workers and the commands write, and read again."""
        changelogs = (self.changelog, self.sales_changelog)
        return (*changelogs, self.dead_letters, self.retries, self.prices, self.vouchers, self.alerts)

    def of(self, app_id: str, prefix: str, *, own: str, partitions: int) -> Layout:
        """The names in another shop.

        Arguments:
            own: This shop's `topics.prefix`.
        """
        names = {field.name: getattr(self, field.name) for field in fields(self)[:-1]}
        changelogs = {
            kind: app_id + names.pop(kind).removeprefix(self.group) for kind in ("changelog", "sales_changelog")
        }
        topics = {kind: prefix + name.removeprefix(own) for kind, name in names.items()}
        return replace(self, **{**topics, **changelogs, "group": app_id, "partitions": partitions})
