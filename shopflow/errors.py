"""Every error of shopflow, named by the reaction it demands.

ShopflowError
├── Refused          say why in one line and stop: bad configuration, no server, a topic of the wrong shape
├── Unavailable      try again: a server is away, nothing is wrong with the data
├── Rejected         dead-letter the record: it will never be accepted, its neighbours go on
└── PartitionLost    drop the work in hand: the partition's next owner does it again
"""

from __future__ import annotations

import click

__all__ = ["PartitionLost", "Refused", "Rejected", "ShopflowError", "Unavailable"]


class ShopflowError(Exception):
    """Base of all errors that shopflow raises on purpose."""


class Refused(ShopflowError, click.ClickException):  # noqa: N818 - named by the reaction
    """The program can't start or go on as asked; the message names the field, option or server.

    Also a `click.ClickException`, so that a bad configuration found while Faust's command line imports
    the application is one line on stderr and exit status 2, not a traceback.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        click.ClickException.__init__(self, message)


class Unavailable(ShopflowError):  # noqa: N818 - named by the reaction
    """A server did not answer, or said "not now". The same request may succeed later."""

    def __init__(self, service: str, reason: object) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service


class Rejected(ShopflowError):  # noqa: N818 - named by the reaction
    """A record that can't be accepted, now or later.

    Arguments:
        reason: A few words that stay the same for all records with this fault (a label for counting).
        detail: What exactly was found; names the field.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class PartitionLost(ShopflowError):  # noqa: N818 - named by the reaction
    """A rebalance took the partition away while its batch was in hand."""
