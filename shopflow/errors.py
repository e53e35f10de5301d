"""Every error of shopflow, each named by how to react to it.

Refused          print the reason in one line and exit: bad configuration, no server, a topic of the wrong shape
Rejected         dead-letter the record, which will never be accepted; go on with the others
BatchError
├── Unavailable      retry: a server is away, nothing is wrong with the data
└── PartitionLost    drop the batch: the partition's next owner reads it again
"""

from __future__ import annotations

from faust_batches.errors import BatchError, PartitionLost, Unavailable

__all__ = ["BatchError", "PartitionLost", "Refused", "Rejected", "Unavailable"]


class Refused(Exception):  # noqa: N818 - named by the reaction
    """The program can't start or go on. The message, one line, names the field, option or server."""

    exit_code = 2


class Rejected(Exception):  # noqa: N818 - named by the reaction
    """A record that can't be accepted, now or later.

    Arguments:
        reason: A few words, the same for all records with this fault: a label of a metric.
        detail: The fault in this record, with the field's name.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
