"""Every error of shopflow, named by the reaction it demands.

Refused          say why in one line and stop: bad configuration, no server, a topic of the wrong shape
Rejected         dead-letter the record: it will never be accepted, its neighbours go on
BatchError
├── Unavailable      try again: a server is away, nothing is wrong with the data
└── PartitionLost    drop the work in hand: the partition's next owner does it again
"""

from __future__ import annotations

from faust_batches.errors import BatchError, PartitionLost, Unavailable

__all__ = ["BatchError", "PartitionLost", "Refused", "Rejected", "Unavailable"]


class Refused(Exception):  # noqa: N818 - named by the reaction
    """The program can't start or go on as asked; the message, one line, names the field, option or server."""

    exit_code = 2


class Rejected(Exception):  # noqa: N818 - named by the reaction
    """A record that can't be accepted, now or later.

    Arguments:
        reason: A few words that stay the same for all records with this fault (a label for counting).
        detail: What exactly was found; names the field.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
