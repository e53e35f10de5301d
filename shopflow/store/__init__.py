"""MongoDB: the collections, and every request to them. No other room imports pymongo."""

from __future__ import annotations

from .announcements import Announcements
from .catalogue import Catalogue
from .features import Features
from .purchases import Purchases
from .sales import Sales

__all__ = ["MongoStore"]


class MongoStore(Catalogue, Purchases, Sales, Announcements, Features):
    """A MongoDB database with all of shopflow's collections.

    Every coroutine and iterator raises `Unavailable` if the server is away, refuses the login or could not confirm a
    write. All writes are idempotent, so any call can be repeated. When a write returns, its documents are in the
    journal of a majority of the servers. Documents have the fields of the contract, with times in UTC. Documents given
    as arguments are not changed.
    """
