"""The errors of the heart, named by the reaction that each demands.

BatchError
├── Unavailable      try again: a server is away, nothing is wrong with the data
└── PartitionLost    drop the work in hand: the partition's next owner does it again
"""

from __future__ import annotations


class BatchError(Exception):
    """Base of all errors that are raised on purpose."""


class Unavailable(BatchError):  # noqa: N818 - named by the reaction
    """A server did not answer, or said "not now". The same request may succeed later."""

    def __init__(self, service: str, reason: object) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service


class PartitionLost(BatchError):  # noqa: N818 - named by the reaction
    """A rebalance took the partition away while its batch was in hand."""
