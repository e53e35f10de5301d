"""MongoDB: what the events become there, and how it is read. No other room imports pymongo."""

from __future__ import annotations

from .announcements import Announcements
from .catalogue import Catalogue
from .purchases import Purchases
from .sales import Sales

__all__ = ["MongoStore"]


class MongoStore(Catalogue, Purchases, Sales, Announcements):
    """A MongoDB database with all that shopflow keeps in it.

    Every coroutine and iterator raises `Unavailable` when the server is away, refuses the login or could not confirm a
    write. The same call can be made again, any number of times: all writes are idempotent. When a write returns, its
    documents are in the journal of a majority of the servers. Documents are those of the contract, times in UTC;
    they are not changed.
    """
