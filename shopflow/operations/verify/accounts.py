"""Compares the records of the purchases with the counts, also if Kafka has removed records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import msgspec

from shopflow.kafka import reading
from shopflow.kafka.offsets import Span
from shopflow.kafka.security import Bootstrap
from shopflow.models import PartitionTotals

from .report import Check, FirstTen
from .tables import Tables


class Accepted(msgspec.Struct, frozen=True):
    """A loss that was accepted: the number of offsets that Kafka removed unread, in an era of the counts."""

    offsets: int
    era: int


#: Returns the accepted losses by partition. It reads a topic, so it is asked only if something is lost.
AcceptedLosses = Callable[[], Awaitable[Mapping[int, Accepted]]]


async def _none_accepted() -> Mapping[int, Accepted]:
    return {}


@dataclass(frozen=True)
class Account:
    """A partition of the purchases: its records in Kafka, and the number that its totals count.

    Arguments:
        before: The number of records before the offset at which counting began.
        counted: The number of records from there up to the totals' offset.
        after: The number of records after the totals' offset.
        replaced: True if the totals count another topic, of the same name, that was deleted.
        accepted: How many of the offsets that were removed unread were accepted as lost.
    """

    span: Span
    totals: PartitionTotals
    before: int
    counted: int
    after: int
    replaced: bool = False
    accepted: int = 0

    @property
    def records(self) -> int:
        return self.before + self.counted + self.after

    @property
    def accounted(self) -> int:
        return self.totals.purchases + self.totals.duplicates + self.totals.rejected

    @property
    def removed(self) -> int:
        """How many of the counted offsets Kafka has removed."""
        return max(0, min(self.span.start, self.totals.offset + 1) - self.totals.first)

    @property
    def unread(self) -> int:
        """How many offsets Kafka removed before a worker read them; 0 if the partition was never counted."""
        waiting = self.span.start - (self.totals.offset + 1)
        return self.totals.unread + (max(0, waiting) if self.totals.offset >= 0 else 0)

    @property
    def removed_records(self) -> int:
        """How many records must have been before the first one that Kafka still has, if all were counted."""
        return self.accounted - self.counted

    @property
    def untold(self) -> int:
        """Removed offsets that are not in the counts: markers of transactions, or records that nobody counted."""
        return self.removed - self.totals.unread - self.removed_records

    @property
    def gone(self) -> int:
        """How many counted records are not in Kafka, though it has offsets for them between others; 0 if it has not."""
        offsets = self.totals.offset + 1 - max(self.totals.first, self.span.start)
        return -self.untold if 0 < -self.untold <= offsets - self.counted else 0


async def compare_accounts(
    bootstrap: Bootstrap,
    topic: str,
    spans: Mapping[int, Span],
    tables: Tables,
    *,
    topic_id: str = "",
    accepted: AcceptedLosses = _none_accepted,
) -> tuple[int, Check]:
    """Check that each record is counted, repeated or rejected. Returns the number of records in Kafka and the check.

    Of records that Kafka has removed only the counts are left. Those that were removed after they were counted are
    old; those removed before that are lost. The totals have the number of these.

    Arguments:
        topic_id: Kafka's id of the topic; empty: not known.

    Raises:
        Unavailable: Kafka does not answer.
    """
    found = {
        number: await account(bootstrap, topic, number, span, tables, topic_id=topic_id)
        for number, span in sorted(spans.items())
    }
    if any(account.unread for account in found.values()):
        known = await accepted()
        for number, one in found.items():
            if (loss := known.get(number)) and loss.era == one.totals.era:
                found[number] = replace(one, accepted=loss.offsets)
    sent = sum(account.records for account in found.values())
    return sent, _check(topic, found, sent, tables.sums())


async def account(
    bootstrap: Bootstrap,
    topic: str,
    partition: int,
    span: Span,
    tables: Tables,
    *,
    topic_id: str = "",
    exact: bool = False,
) -> Account:
    """Compare a partition with its totals.

    Arguments:
        topic_id: Kafka's id of the topic; empty: not known.
        exact: Count its records also if the offsets add up: after a compaction, they do so without the records.
    """
    totals = tables.totals(partition)
    replaced = bool(topic_id and totals.topic_id) and totals.topic_id != topic_id
    accounted = totals.purchases + totals.duplicates + totals.rejected
    if not exact and accounted == span.end - totals.first and span.start <= span.end and totals.offset + 1 == span.end:
        first = max(0, min(span.end, totals.first) - span.start)  # each offset is a counted record
        return Account(span, totals, first, span.end - span.start - first, 0, replaced)
    before = counted = after = 0  # some offsets may be no records, so count the records
    async with reading.runs(bootstrap, topic, partition, values=False, odd=True) as runs:
        async for run in runs:
            for record in run:
                before += record.offset < totals.first
                after += record.offset > totals.offset
            counted += len(run)
    return Account(span, totals, before, counted - before - after, after, replaced)


def _check(topic: str, found: Mapping[int, Account], sent: int, sums: Mapping[str, int]) -> Check:
    name = "purchases in Kafka and tables"
    accounted = sum(account.accounted for account in found.values())
    parts = f"{sums['purchases']} counted + {sums['duplicates']} repeated + {sums['rejected']} rejected"
    if not any(account.removed or account.unread or account.replaced or account.gone for account in found.values()):
        return Check(name, sent == accounted, f"{sent} sent = {parts}")
    wrong, begins = FirstTen(), FirstTen()
    for number, account in found.items():
        if fault := _fault(account):
            lost = account.unread > account.accepted and not account.replaced
            hint = f"; `faust -A shopflow verify --accept-loss {topic}:{number}` accepts that" if lost else ""
            wrong.add(f"partition {number}: {fault}{hint}")
        if account.removed:
            begins.add(f"{account.span.start} of partition {number}")
    if wrong.count:
        return Check(name, False, f"{wrong.differ()}. {sent} in Kafka, {parts}")
    if gone := sum(account.gone for account in found.values()):
        return Check(
            name,
            None,
            f"{gone} counted events are not in Kafka, which has earlier and later ones: it compacted {topic} once, or "
            "they were never sent; which of the two can't be told any more",
        )
    since = f", from offset {begins.listed(', ')} on" if begins.count else ""
    detail = f"{accounted} = {parts}; {sent} of them are in Kafka{since}"
    if untold := sum(account.untold for account in found.values()):
        detail += (
            f". Before that, {untold} removed offsets were ends of transactions, or records that nobody counted: "
            "which of the two can't be told any more"
        )
    if unread := sum(account.unread for account in found.values()):
        detail += f". {unread} offsets that Kafka removed before a worker read them were accepted as lost"
    return Check(name, True, detail)


def _fault(account: Account) -> str:
    """The fault that is certain; empty if there is none."""
    if account.replaced:
        return (
            f"the {account.accounted} counted ones were in a topic of this name that was deleted, and Kafka has "
            f"{account.records} in the one that was made anew; `faust -A shopflow replay` counts these"
        )
    if account.unread > account.accepted:
        some = f", and {account.accepted} of them were accepted as lost" if account.accepted else ""
        return f"Kafka removed {account.unread} offsets before a worker read them{some}"
    if account.before or account.after:
        return f"{account.before + account.after} events in Kafka are not counted"
    if account.untold < 0 and not account.gone:
        return f"{-account.untold} more are counted than were sent"
    if account.removed_records < 0:
        return f"{-account.removed_records} events in Kafka are not counted"
    return ""
