"""The package's errors, each named by how to react to it.

BatchError
├── Unavailable      retry: a server is away, nothing is wrong with the data
│   └── Slow         retry, with a smaller request: the server answers, but did not finish in time
├── Unreadable       dead-letter the record, whose bytes can't be taken apart (in unreadable.py)
└── PartitionLost    drop the batch: the partition's next owner reads it again
"""

from __future__ import annotations


class BatchError(Exception):
    """Base of all errors that are raised on purpose."""


class Unavailable(BatchError):  # noqa: N818 - named by the reaction
    """A server did not answer, or refused for now. The same request may succeed later."""

    def __init__(self, service: str, reason: object) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service


class Slow(Unavailable):
    """A server answers, but did not finish a request in time. It is not away; a smaller request may succeed."""


class PartitionLost(BatchError):  # noqa: N818 - named by the reaction
    """The batch no longer counts: its partition was revoked, or is read again from an earlier offset."""
