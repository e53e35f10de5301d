"""Every error of shopflow, each named by how to react to it.

Refused          print the reason in one line and exit: bad configuration, no server, a topic of the wrong shape
Rejected         dead-letter the record, which will never be accepted; go on with the others
BatchError
├── Unavailable      retry: a server is away, nothing is wrong with the data
│   ├── Slow         retry, with a smaller request: the server answers, but did not finish in time
│   └── Refusal      retry, less often, and tell: only a change of the server's configuration ends it
└── PartitionLost    drop the batch: the partition's next owner reads it again
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from difflib import get_close_matches

from faust_batches.errors import BatchError, PartitionLost, Refusal, Slow, Unavailable

__all__ = ["BatchError", "PartitionLost", "Refusal", "Refused", "Rejected", "Slow", "Unavailable", "meant"]


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


def meant(wrong: str, names: Collection[str], listed: Sequence[str] | None = None, *, prefix: str = "") -> str:
    """The end of an error about an unknown name: the name that is like it, or all.

    Arguments:
        listed: The names to list, if these are others than `names`.
        prefix: All names begin with it, so it makes none of them like the wrong one.
    """
    like = get_close_matches(wrong.removeprefix(prefix), [name.removeprefix(prefix) for name in names], n=1)
    return f"did you mean {prefix}{like[0]}?" if like else f"there are: {', '.join(listed or sorted(names))}"
