"""The package's errors, each named by how to react to it.

BatchError
├── Unavailable      retry: a server is away, nothing is wrong with the data
│   ├── Slow         retry, with a smaller request: the server answers, but did not finish in time
│   └── Refusal      retry, less often, and tell: only a change of the server's configuration ends it
├── Unreadable       dead-letter the record, whose bytes can't be taken apart (in unreadable.py)
└── PartitionLost    drop the batch: the partition's next owner reads it again
"""

from __future__ import annotations

from faust.exceptions import ImproperlyConfigured


class BatchError(Exception):
    """Base of all errors that are raised on purpose."""


class Unavailable(BatchError):  # noqa: N818 - named by the reaction
    """A server did not answer, or refused for now. The same request may succeed later."""

    def __init__(self, service: str, reason: object) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service


class Slow(Unavailable):
    """A server answers, but did not finish a request in time. It is not away; a smaller request may succeed."""


class Refusal(Unavailable):
    """A server answered, and refused. The same request succeeds once somebody has changed the server's configuration.

    Arguments:
        subject: What it is about: a topic, a group, a collection.
        text: One sentence without a full stop, that can stand alone: what is refused, which setting is to blame, and
            the command that changes it.
    """

    def __init__(self, service: str, subject: str, text: str) -> None:
        super().__init__(service, text)
        self.args = (text,)  # it names the service
        self.subject = subject
        self.text = text


class ChangelogUnusable(ImproperlyConfigured):
    """A table can't be used with the changelog that there is. The log has said so in a critical line."""


class PartitionLost(BatchError):  # noqa: N818 - named by the reaction
    """The batch no longer counts: its partition was revoked, or is read again from an earlier offset."""
